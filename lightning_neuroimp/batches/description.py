"""Describe single samples, as pictures or in words."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.fields import find_tokens, split_batch
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.batches.structure import describe, parts_of, to_numpy
from lightning_neuroimp.errors import InvalidArgument

DescribeFn = Callable[..., Any]
"""`describe_sample(sample) -> text or picture`; the sample is what the batch holds of it, without the sample axis."""

Description = str | UInt8[np.ndarray, "height width 3"]

_MAX_VALUES = 12

_LARGEST = 96  # pixels


def describe_samples(
    probe: ProbeSet,
    numbers: list[int],
    describe_sample: DescribeFn | None = None,
    processes: Processes = Processes(),  # noqa: B008 (frozen)
) -> dict[int, Description]:
    """Describe some samples of a probe set, such as those that a neuron responds to most, as pictures or in words.

    Args:
        probe: holds the samples. Those that it does not hold are left out.
        numbers: sample numbers, as in `ProbeSet.index` and `Results.sample_index`.
        describe_sample: `sample -> text or picture`; the sample is what the batch holds of it, without the sample axis,
            and a picture an array or tensor of shape (height, width), (channel, height, width) or (height, width,
            channel) with 1 or 3 channels. None: a picture where the input looks like one, otherwise its first values.
        processes: those that share the study; each describes the samples that it holds, and gets all descriptions.

    Returns:
        The text or the picture of each sample, by its number. Pictures are arrays of shape (height, width, 3) and type
        uint8 with up to 96 pixels a side; other types than uint8 go from their smallest value, black, to their largest
        one, white.

    Raises:
        InvalidArgument: if `describe_sample` is no function, fails, or returns neither text nor a picture.

    >>> import torch
    >>> probe = ProbeSet.from_batches([{"pixels": torch.zeros(4, 8, 6), "label": torch.arange(4)}])
    >>> describe_samples(probe, [2])[2].shape
    (8, 6, 3)
    >>> describe_samples(probe, [2], lambda sample: f"a picture of class {sample['label']}")
    {2: 'a picture of class 2'}
    """
    chosen = probe.select(np.array(numbers, np.int64))
    descriptions: dict[int, Description] = {}
    if describe_sample is None:
        for batch, index in chosen.batches(1):
            descriptions[int(index[0])] = default_description(batch)
    else:
        _validate.function("describe_sample", describe_sample, "(sample) -> text or picture")
        for sample, number in chosen.samples():
            with _validate.users_function("describe_sample"):
                description = describe_sample(sample)
            descriptions[number] = _validated(description)
    return processes.union(descriptions)


def default_description(batch: Any) -> Description:
    """Return a picture of a batch of one sample where its input looks like one, otherwise its text or first values.

    Args:
        batch: with one sample.
    """
    try:
        inputs = split_batch(batch)[0]
    except InvalidArgument:
        inputs = batch
    leaves = list(_leaves(inputs))
    texts = [leaf for leaf in leaves if isinstance(leaf, str)]
    if texts:
        return texts[0]
    arrays = [np.asarray(to_numpy(leaf)[0]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    for array in arrays:
        if _is_picture(array):
            return as_picture(array)
    tokens = find_tokens(batch)
    for array in arrays:
        values = array.reshape(-1)
        if tokens is not None and array.shape == tokens.shape[1:]:
            values = values[to_numpy(tokens[0]).astype(bool)]
        more = " ..." if len(values) > _MAX_VALUES else ""
        return " ".join(f"{value:.3g}" for value in values[:_MAX_VALUES].tolist()) + more
    return f"a {type(inputs).__name__}"


def _leaves(inputs: Any) -> Iterator[Any]:
    """Yield what is no container in the inputs of a batch."""
    parts = parts_of(inputs)
    if parts is None:
        yield inputs
    for part in parts or ():
        yield from _leaves(part)


def _is_picture(array: np.ndarray) -> bool:
    """Tell whether an input looks like a picture: floats or bytes, with two axes in addition to 1 or 3 channels."""
    if array.dtype.kind not in "fu":
        return False
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array[0]
    elif array.ndim == 3 and array.shape[2] in (1, 3):
        array = array[..., 0]
    return array.ndim == 2 and min(array.shape) > 1


def _validated(value: Any) -> Description:
    """Return what `describe_sample` has returned, as text or a picture.

    Raises:
        InvalidArgument: if it is neither.
    """
    if isinstance(value, str):
        return value
    array = to_numpy(value) if isinstance(value, Tensor) else value
    if (
        isinstance(array, np.ndarray)
        and array.size
        and (array.ndim == 2 or (array.ndim == 3 and {array.shape[0], array.shape[2]} & {1, 3}))
    ):
        return as_picture(array)
    raise InvalidArgument(
        "describe_sample must return text, or a picture as an array or tensor of shape (height, width), (channel, "
        f"height, width) or (height, width, channel) with 1 or 3 channels, got {describe(array)}"
    )


def as_picture(array: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """Return an array as a picture of up to 96 pixels a side.

    Args:
        array: of shape (height, width), or with 1 or 3 channels, first or last. Its smallest value becomes black and
            its largest one white, unless its type is uint8.
    """
    if array.ndim == 2:
        array = array[..., None]
    elif array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, 2)
    step = -(-max(array.shape[:2]) // _LARGEST)
    array = array[::step, ::step]
    if array.dtype != np.uint8:
        array = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
        low, high = array.min(), array.max()
        array = ((array - low) / (high - low if high > low else 1.0) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
