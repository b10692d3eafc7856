"""Record what follows a site in a forward pass, and run it again with other activations there.

`SuffixRecorder.record(batch)` makes one forward pass and returns a `Suffix`: the logits, the site's activations, and a
tape of the operations that depend on them (`tracing.py` records it, `tape.py` runs it). A tape is trusted only once it
has reproduced a random ablation made by a hook in a full pass; where there is no such tape, full passes take its place.
"""
