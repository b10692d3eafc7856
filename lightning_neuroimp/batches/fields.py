"""Find inputs, targets and masks in a batch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lightning_neuroimp.batches.masks import FIXED, NOTHING, Part, Reading, is_mask_name, read_lengths, read_mask
from lightning_neuroimp.batches.sample_lists import is_list_of_samples
from lightning_neuroimp.batches.structure import describe, fields_of, to_numpy
from lightning_neuroimp.errors import InvalidArgument

LABELS = ("labels", "label", "targets", "target", "y")
"""Names of the targets in a batch that is a mapping, named tuple or dataclass; the first one that is there counts."""

_DEEPEST, _MOST_PARTS = 3, 16  # containers in containers, and items of a sequence, among which masks are looked for

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
        InvalidArgument: if they cannot be told apart, or the batch is a list of samples.

    >>> split_batch(["inputs", "targets"])
    ('inputs', 'targets')
    >>> split_batch({"image": 1, "label": 2})
    ({'image': 1}, 2)
    """
    if is_list_of_samples(batch):
        raise InvalidArgument(
            f"the batch is a list of {len(batch)} samples, each {describe(batch[0])}; join them in the loader's "
            f"collate_fn, or pass {_joining(batch[0])}"
        )
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


def _joining(sample: Any) -> str:
    """Return the forward_fn that joins samples like this one, as a line of code."""
    named = fields_of(sample)
    if named is None:
        last = len(sample) - 1
        image, label, of = sample[0], sample[last], ["one[0]", f"one[{last}]"]
    else:
        names = list(named)
        target = next((name for name in LABELS if name in named), names[-1])
        source = next((name for name in names if name != target and _is_array(named[name])), names[0])
        image, label = named[source], named[target]
        of = [f"one[{name!r}]" if isinstance(sample, Mapping) else f"one.{name}" for name in (source, target)]
    inputs = f"[{of[0]} for one in batch]"
    if isinstance(image, np.ndarray):
        inputs = f"torch.stack([torch.as_tensor({of[0]}) for one in batch])"
    elif isinstance(image, Tensor):
        inputs = f"torch.stack({inputs})"
    targets = f"torch.tensor([{of[1]} for one in batch])"
    if isinstance(label, str):
        targets = f"torch.tensor([names.index({of[1]}) for one in batch])"
    elif _is_array(label):
        targets = f"torch.stack([{of[1]} for one in batch])"
    return f"forward_fn=lambda model, batch: (model({inputs}), {targets})"


def _is_array(part: Any) -> bool:
    return isinstance(part, Tensor | np.ndarray) and part.ndim > 0


def labels_of(batch: Any) -> Int[np.ndarray, " sample"] | None:
    """Return the class labels in a batch, without a forward pass; None where they cannot be told."""
    try:
        labels = _labels_of_samples(batch) if is_list_of_samples(batch) else split_batch(batch)[1]
    except InvalidArgument:
        return None
    values = to_numpy(labels) if isinstance(labels, Tensor) else labels
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iubf" or not values.ndim:
        return None
    if values.ndim == 2 and values.shape[1] > 1 and ((values == 0) | (values == 1)).all():
        return values.argmax(1) if (values.sum(1) == 1).all() else None  # one-hot
    if values.shape[1:] not in ((), (1,)) or (values.dtype.kind == "f" and (values % 1 != 0).any()):
        return None
    return values.reshape(-1).astype(np.int64)


def _labels_of_samples(batch: Sequence[Any]) -> Any:
    """Return the class numbers in a list of samples that name them, or are pairs with one; None for any other list."""
    named = fields_of(batch[0])
    key = None if named is None else next((name for name in LABELS if name in named), None)
    if (key is None and (named is not None or len(batch[0]) != 2)) or any(one is None for one in batch):
        return None
    found = [one[1] if key is None else (fields_of(one) or {})[key] for one in batch]
    found = [one.item() if isinstance(one, Tensor | np.ndarray) and one.ndim == 0 else one for one in found]
    return np.array(found) if all(isinstance(one, int | float | np.number) for one in found) else None


def find_tokens(batch: Any) -> Any:
    """Return the mask of shape (sample, token) in a batch or in its inputs, True for non-padding tokens; None if none.

    Args:
        batch: as for `tokens_and_doubt`.
    """
    return tokens_and_doubt(batch)[0]


def tokens_and_doubt(batch: Any) -> Reading:
    """Return the mask of tokens in a batch or in its inputs, or why a field that may be one is not used.

    Args:
        batch: a mapping, named tuple or dataclass, or a sequence of inputs, targets and perhaps more, or of inputs.
            Masks are known by their names, or by what they and the other inputs hold; floating-point masks of zeros
            and large negative numbers are those that are added to attention scores. Without one, lengths are read.

    >>> ids, mask = torch.tensor([[5, 7, 0], [4, 0, 0]]), torch.tensor([[True, True, False], [True, False, False]])
    >>> tokens_and_doubt({"ids": ids, "mask": mask}).tokens.tolist()
    [[True, True, False], [True, False, False]]
    >>> tokens_and_doubt({"mask": mask}).doubt
    "'mask' of the batch may be a mask of tokens, but whether its padding is True or False cannot be told"
    """
    parts = list(_parts(batch))
    for name in FIXED:
        for part in parts:
            if part.name == name and (found := read_mask(part, ())).tokens is not None:
                return found
    masks: list[Tensor] = []
    doubt = ""
    for part in sorted(parts, key=lambda part: not is_mask_name(part.name)):
        others = [other.tensor for other in parts if other is not part]
        reading = read_mask(part, others) if part.tensor.ndim > 1 else NOTHING
        masks += [] if reading.tokens is None else [reading.tokens]
        doubt = doubt or reading.doubt
    if not masks and not doubt:
        for part in parts:
            reading = read_lengths(part, [other.tensor for other in parts if other is not part])
            masks += [] if reading.tokens is None else [reading.tokens]
            doubt = doubt or reading.doubt
    if not masks:
        return Reading(None, doubt)
    if all(torch.equal(masks[0], other) for other in masks[1:]):
        return Reading(masks[0])
    return Reading(None, f"the batch holds {len(masks)} masks of tokens that differ")


def _parts(batch: Any, name: str | None = None, place: str = "the inputs", depth: int = 0) -> Iterator[Part]:
    """Yield the tensors in the inputs of a batch, but for targets.

    Args:
        batch: the batch, or a part of it.
        name: of the part's field.
        place: of the part, in words.
        depth: number of containers around it.
    """
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biuf":
        batch = torch.from_numpy(batch)
    if isinstance(batch, Tensor):
        if batch.layout == torch.strided and not batch.is_nested:
            yield Part(name, place, batch)
        return
    named = fields_of(batch)
    if depth == _DEEPEST:
        return
    if named is not None:
        for key, part in named.items():
            if key not in LABELS:
                yield from _parts(part, str(key), repr(key), depth + 1)
    elif isinstance(batch, tuple | list) and len(batch) <= _MOST_PARTS:
        inputs = batch[:1] if not depth and len(batch) == 2 else batch
        for number, part in enumerate(inputs):
            yield from _parts(part, None, f"item {number}", depth + 1)
