"""What single samples look like, in a picture or in words, and which of them are worth showing."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from lightning_neuroimp.batches import find_tokens, split_batch
from lightning_neuroimp.probe import Gather, ProbeSet, alone
from lightning_neuroimp.results import Results
from lightning_neuroimp.rows import fields_of, map_parts, to_numpy

DescribeFn = Callable[..., Any]
"""`describe_sample(sample) -> text or picture`; the sample is what the batch holds of it, without the sample axis."""

Description = str | UInt8[np.ndarray, "height width 3"]

MAX_ROWS = 12
MAX_SITES = 16
"""The samples that drive top neurons are shown for so many layers."""

_MAX_VALUES = 12
_LARGEST = 96  # pixels


def top_neurons(results: Results, site: str, most: int = MAX_ROWS) -> dict[int, list[str]]:
    """The most important neuron of each of the largest clusters, and which clusters' it is.

    Args:
        results: one measurement.
        site: in words.
        most: at most so many neurons.
    """
    one, found = results[site], dict[int, list[str]]()
    for row in np.argsort(-results.clusters.size, kind="stable").tolist():
        for neuron in one.top(one.cluster_ids[row], 1).tolist():
            if neuron in found or len(found) < most:
                found.setdefault(neuron, []).append(results.clusters.names[row])
    return found


def shown_samples(results: Results) -> list[int]:
    """Numbers of the samples nearest to the clusters' centres, and of those that drive the top neurons most."""
    numbers = set(results.clusters.exemplars[_largest(results)].reshape(-1).tolist())
    for activity in results.activities[:MAX_SITES]:
        for neuron in top_neurons(results, activity.site):
            numbers |= set(activity.top_samples[neuron].tolist())
    return sorted(numbers - {-1})


def _largest(results: Results) -> np.ndarray:
    return np.sort(np.argsort(-results.clusters.size, kind="stable")[:MAX_ROWS])


def exemplar_rows(results: Results) -> list[tuple[str, list[int]]]:
    """The largest clusters, each with the numbers of the samples nearest to its centre."""
    table = results.clusters
    return [(table.names[row], _present(table.exemplars[row])) for row in _largest(results).tolist()]


def neuron_rows(results: Results, site: str) -> list[tuple[str, list[int]]]:
    """The clusters' top neurons, each with the numbers of the samples that drive it most."""
    activity = results.activity(site)
    return [
        (f"neuron {neuron}, top of {_some(names)}", _present(activity.top_samples[neuron]))
        for neuron, names in top_neurons(results, site).items()
    ]


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _present(numbers: np.ndarray) -> list[int]:
    return [number for number in numbers.tolist() if number >= 0]


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
