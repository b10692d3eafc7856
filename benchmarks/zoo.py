"""Try the package on public architectures, at three sites each, and compare everything with a slow twin.

The architectures are those of `transformers`, `monai`, `vit-pytorch`, `x-transformers`, `torch_geometric`, `peft` and
`timm`, and plain recurrent and state-space networks: small, with random weights and a batch of eight samples, padded
where the architecture knows padding; nothing is downloaded. For each site as a user would name it: the scores of each
sample and of each class (`neuron_importance`), the logits without the better half of the neurons (`ablate`), and margin
and accuracy without them (`ablation_faithfulness`), against plain hooks and `torch.autograd.grad`, one sample at a
time. Where the neurons and the padding are is written down by hand for each site. Weights are in float64.

Each row is

- right: all of it equals the twin's, up to 1e-8 of the largest number;
- refused: the package raises `InvalidArgument`, whose sentence is printed; "(must be)" where no number can be right,
  as where a window of a picture or all nodes of several graphs take the place of the samples; "(right if named)"
  where the site is tried again with its axes named, as such sentences advise;
- wrong, error (raised in other words), or idle (the site makes no difference: the table has to be mended).

"replayed" says that removal ran only what follows the site; for full passes the reason is printed.

Goals: none is wrong, an error or idle; at least 95% of those that can be right are; no sentence is longer than 300
characters. Packages that are not installed are left out and named: `pip install -e '.[zoo]'` has most. `vit-pytorch`
and `timm` ask for torchvision: `pip install --no-deps vit-pytorch` is enough for the one, the other needs it.
"""

import argparse
import json
import logging
import os
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

LONGEST = 300
"""Upper bound on the characters of a sentence that refuses."""


def line(row: Any) -> str:
    """Return a row as text, with what it says below it."""
    outcome = f"{row.outcome} (must be)" if row.must_be_refused else row.outcome
    if row.named:
        outcome += f" ({row.named} if named)"
    text = f"{row.architecture:44.44} {row.site:66.66} {outcome:25}"
    text += f"{'' if row.difference != row.difference else f'{row.difference:.0e}':>7}  {row.passes}"
    return text + (f"\n    {row.says}" if row.says else "")


def totals(rows: list[Any]) -> tuple[str, list[str]]:
    """Return the totals of all rows in words, and the goals that are missed."""
    count = Counter(row.outcome for row in rows)
    possible = [row for row in rows if not row.must_be_refused]
    share = sum(row.outcome == "right" for row in possible) / max(1, len(possible))
    replayed = sum(row.passes == "replayed" for row in rows if row.outcome == "right")
    refusals = [row for row in rows if row.outcome == "refused"]
    must_be = sum(row.must_be_refused for row in refusals)
    named = sum(row.named == "right" for row in refusals)
    longest = max([len(row.says) for row in refusals], default=0)
    largest = max([row.difference for row in rows if row.outcome == "right"], default=0.0)
    text = (
        f"{len({row.architecture for row in rows})} architectures, {len(rows)} sites: {count['right']} right "
        f"({share:.1%} of the {len(possible)} that can be; largest difference {largest:.0e}), of which {replayed} "
        f"replayed; {count['refused']} refused, of which {must_be} must be and {named} are right once their axes are "
        f"named; {count['wrong']} wrong, {count['error']} "
        f"errors, {count['idle']} idle; longest sentence {longest} characters"
    )
    goals = {
        "none is wrong": not count["wrong"],
        "no other error": not count["error"],
        "none is idle": not count["idle"],
        "95% are right": share >= 0.95,
        f"sentences of up to {LONGEST} characters": longest <= LONGEST,
    }
    return text, [goal for goal, held in goals.items() if not held]


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few architectures")
    parser.add_argument("--only", metavar="NAME", action="append", help="architectures whose name holds NAME")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    # before transformers is imported: it would look for files on the internet, and advise
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", LOGURU_LEVEL="ERROR")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # of the libraries, as models are made; the package's are recorded
    from zoo_models import all_entries
    from zoo_models.comparing import compare

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    rows, missing, start = [], set(), time.perf_counter()
    for entry in all_entries():
        named = options.only is None or any(name.lower() in entry.name.lower() for name in options.only)
        if not named or (options.quick and not entry.quick):
            continue
        if not entry.installed():
            missing.add(entry.package)
            continue
        for row in compare(entry):
            rows.append(row)
            print(line(row), flush=True)
    text, missed = totals(rows)
    print(f"{text}; {time.perf_counter() - start:.0f} s" + (f"   MISSED: {', '.join(missed)}" if missed else ""))
    if missing:
        print(f"left out, as they are not installed: {', '.join(sorted(missing))}")
    if options.json:
        options.json.write_text(json.dumps({"rows": [row.dictionary() for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
