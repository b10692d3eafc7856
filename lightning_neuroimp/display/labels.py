"""Name kinds and keys of results in tables, figures and text."""

from lightning_neuroimp.site import Removal

REFERENCE_LABELS = {
    "activation_size": "activation size",
    "shared_ranking": "one ranking for all clusters",
    "first_order": "effects to first order",
}
"""What reference rankings are called, by their keys."""


def baseline_label(removal: Removal) -> str:
    """Name a baseline for people.

    >>> import numpy as np
    >>> from lightning_neuroimp.site import Site
    >>> baseline_label(Removal(Site("1"), 1, "constant", np.full(3, 0.5), "margin"))
    'constant 0.5'
    """
    if removal.baseline == "constant":
        return f"constant {removal.baseline_value[0]:g}"
    return {"vector": "one value per channel", "reference": "a reference input"}.get(removal.baseline, removal.baseline)


def reference_label(reference: str) -> str:
    """Name a reference ranking for people; one without a label is called by its key.

    >>> reference_label("activation_size")
    'activation size'
    """
    return REFERENCE_LABELS.get(reference, reference)
