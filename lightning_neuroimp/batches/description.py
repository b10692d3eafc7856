"""What single samples look like, as a picture or in words."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from lightning_neuroimp.batches.fields import find_tokens, split_batch
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Gather, alone
from lightning_neuroimp.batches.structure import fields_of, map_parts, to_numpy

DescribeFn = Callable[..., Any]
"""`describe_sample(sample) -> text or picture`; the sample is what the batch holds of it, without the sample axis."""


Description = str | UInt8[np.ndarray, "height width 3"]


_MAX_VALUES = 12


_LARGEST = 96  # pixels


def describe_samples(
    probe: ProbeSet, numbers: list[int], describe_sample: DescribeFn | None = None, gather: Gather = alone
) -> dict[int, Description]:
    """What samples look like.

    Args:
        probe: holds them.
        numbers: in the stream.
        describe_sample: `sample -> text or picture`; the sample is what the batch holds of it, without the sample axis.
            By default a picture where the input looks like one, else its first values.
        gather: collects from processes, each of which describes those that it holds.

    Raises:
        ValueError: if `describe_sample` returns neither text nor a picture.
    """
    found: dict[int, Description] = {}
    for batch, index in probe.select(np.array(numbers, np.int64)).batches(1):
        if describe_sample is None:
            found[int(index[0])] = default_description(batch)
        else:
            found[int(index[0])] = _checked(describe_sample(_first(batch)))
    return {number: one for share in gather(found) for number, one in share.items()}


def _first(batch: Any) -> Any:
    """The one sample of a batch of one, without the sample axis."""
    if isinstance(batch, Tensor | np.ndarray):
        return batch[0] if batch.ndim else batch
    if isinstance(batch, list) and len(batch) == 1 and not isinstance(batch[0], Tensor | np.ndarray):
        return batch[0]
    return map_parts(_first, batch)


def default_description(batch: Any) -> Description:
    """A picture of a batch of one sample where its input looks like one, else its first values.

    Args:
        batch: with one sample.
    """
    try:
        inputs = split_batch(batch)[0]
    except ValueError:
        inputs = batch
    parts = list(_leaves(inputs))
    texts = [part for part in parts if isinstance(part, str)]
    if texts:
        return texts[0]
    arrays = [np.asarray(to_numpy(part)[0]) for part in parts if isinstance(part, Tensor) and part.ndim]
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
    if isinstance(inputs, tuple | list):
        for part in inputs:
            yield from _leaves(part)
    elif (named := fields_of(inputs)) is not None:
        for part in named.values():
            yield from _leaves(part)
    else:
        yield inputs


def _is_picture(array: np.ndarray) -> bool:
    if array.dtype.kind not in "fu":
        return False
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array[0]
    elif array.ndim == 3 and array.shape[2] in (1, 3):
        array = array[..., 0]
    return array.ndim == 2 and min(array.shape) > 1


def _checked(value: Any) -> Description:
    if isinstance(value, str):
        return value
    if isinstance(value, Tensor):
        value = to_numpy(value)
    if (
        isinstance(value, np.ndarray)
        and value.size
        and (value.ndim == 2 or (value.ndim == 3 and {value.shape[0], value.shape[2]} & {1, 3}))
    ):
        return as_picture(value)
    raise ValueError(
        "describe_sample must return text, or a picture as an array or tensor of shape (height, width), (channel, "
        f"height, width) or (height, width, channel) with 1 or 3 channels, got a {type(value).__name__}"
        + (f" of shape {value.shape}" if isinstance(value, np.ndarray) else "")
    )


def as_picture(array: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """An array as a picture of at most 96 pixels; floats from their least value, black, to their largest, white.

    Args:
        array: (height, width), or with 1 or 3 channels, first or last.
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
