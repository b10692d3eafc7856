"""Find inputs, targets and masks in a batch."""

from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from lightning_neuroimp.batches.structure import describe, fields_of, to_numpy
from lightning_neuroimp.errors import InvalidArgument

LABELS = ("labels", "label", "targets", "target", "y")
"""Names of the targets in a batch that is a mapping, named tuple or dataclass; the first one that is there counts."""

_IS_PADDING = {"attention_mask": False, "src_key_padding_mask": True, "key_padding_mask": True, "padding_mask": True}
"""Names of token masks in such a batch, and whether they are True for padding."""

REMEDY = "pass forward_fn=, a function (model, batch) -> (logits, targets) of shapes (sample, class) and (sample,)"
"""What to do where logits and class numbers cannot be inferred."""


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Tell a batch's inputs from its targets.

    Args:
        batch: what the validation loader yields: a sequence `(inputs, targets)`, or a mapping, named tuple or dataclass
            with targets named "labels", "label", "targets", "target" or "y".

    Returns:
        The inputs (a dictionary of all other fields where they have names) and the targets.

    Raises:
        InvalidArgument: if they cannot be told apart.

    >>> split_batch(["inputs", "targets"])
    ('inputs', 'targets')
    >>> split_batch({"image": 1, "label": 2})
    ({'image': 1}, 2)
    """
    named = fields_of(batch)
    if named is not None:
        for label in LABELS:
            if label in named:
                return {key: part for key, part in named.items() if key != label}, named[label]
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise InvalidArgument(
        "cannot tell inputs from targets: expected a batch of the form (inputs, targets), or a mapping with "
        f"{', '.join(LABELS[:-1])} or {LABELS[-1]}, got {describe(batch)}; {REMEDY}"
    )


def labels_of(batch: Any) -> Int[np.ndarray, " sample"] | None:
    """Return the class labels in a batch, without a forward pass; None where they cannot be told."""
    try:
        labels = split_batch(batch)[1]
    except InvalidArgument:
        return None
    values = to_numpy(labels) if isinstance(labels, Tensor) else labels
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iubf" or not values.ndim:
        return None
    if values.shape[1:] not in ((), (1,)) or (values.dtype.kind == "f" and (values % 1 != 0).any()):
        return None
    return values.reshape(-1).astype(np.int64)


def find_tokens(batch: Any) -> Any:
    """Return the mask of shape (sample, token) in a batch or in its inputs, True for non-padding tokens; None if none.

    Args:
        batch: a mapping, named tuple or dataclass with a mask under one of its usual names, or a sequence that begins
            with one.
    """
    for part in (batch, *(batch[:1] if isinstance(batch, tuple | list) else ())):
        named = fields_of(part) or {}
        for name, is_padding in _IS_PADDING.items():
            mask = named.get(name)
            if isinstance(mask, Tensor) and mask.ndim == 2:
                return mask == 0 if is_padding else mask != 0
    return None
