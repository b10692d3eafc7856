"""How single samples are taken out of batches and joined to others.

A batch is any nesting of mappings, sequences, dataclasses and tensors whose tensors share their first dimension, the
samples; or a list of objects, one per sample; or a batch of graphs that knows how it is taken apart and joined
(`to_data_list`, `from_data_list`, as PyTorch Geometric's do).
"""

import copy
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from numbers import Integral
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def batch_size(batch: Any) -> int:
    """Number of samples: the first dimension shared by all tensors of a batch, or the length of a list of objects.

    Raises:
        ValueError: if there is no tensor with a first dimension, or the first dimensions differ.

    >>> batch_size({"image": torch.zeros(3, 8), "label": torch.zeros(3)})
    3
    """
    _check_leaves(batch)
    sizes: set[int] = set()
    _collect_sizes(batch, sizes)
    if len(sizes) == 1:
        return sizes.pop()
    if not sizes and _is_objects(batch):
        return len(batch)
    found = f"first dimensions {sorted(sizes)}" if sizes else "no tensor with a first dimension"
    raise ValueError(
        f"the tensors of a batch must share their first dimension, one entry per sample, got {found} in "
        f"{describe(batch)}; let the loader's collate_fn return such batches"
    )


def take_rows(batch: Any, rows: Int[Tensor, " row"], size: int | None) -> Any:
    """The samples `rows` of a batch of `size` samples (None: of what `empty_rows` gave), copied to the host.

    What has no sample axis is kept as it is.
    """
    if isinstance(batch, Tensor):
        if not batch.ndim:
            return batch.detach().clone().cpu()
        return batch.detach()[rows.to(batch.device)].cpu()
    if isinstance(batch, np.ndarray) and batch.ndim:
        return batch[rows.numpy()]
    if isinstance(batch, _Packed):
        return batch.kind.from_data_list([batch[row] for row in rows.tolist()])
    if _is_column(batch, size):
        return [batch[row] for row in rows.tolist()]
    return map_parts(lambda part: take_rows(part, rows, size), batch)


def empty_rows(batch: Any, size: int | None, n_rows: int) -> Any:
    """Room on the host for `n_rows` samples like those of a batch of `size` samples (None: of such a room)."""
    if isinstance(batch, Tensor):
        shape = (n_rows, *batch.shape[1:])
        return torch.empty(shape, dtype=batch.dtype) if batch.ndim else batch.detach().clone().cpu()
    if isinstance(batch, np.ndarray) and batch.ndim:
        return np.empty((n_rows, *batch.shape[1:]), batch.dtype)
    if isinstance(batch, _Packed):
        return _Packed([None] * n_rows, batch.kind)
    if _is_column(batch, size):
        return _Column([None] * n_rows)
    return map_parts(lambda part: empty_rows(part, size, n_rows), batch)


def set_row(rows: Any, place: int, batch: Any, row: int, size: int | None) -> None:
    """Copy one sample of a batch of `size` samples (None: of such a room) into a place of what `empty_rows` gave."""
    if isinstance(batch, Tensor | np.ndarray):
        if batch.ndim:
            rows[place] = batch[row]
    elif _is_column(batch, size):
        rows[place] = batch[row]
    else:
        for target, part in zip(_parts(rows), _parts(batch), strict=True):
            set_row(target, place, part, row, size)


def fingerprint(batch: Any, depth: int = 0) -> int:
    """A checksum of a batch's content, by which samples are told apart.

    Args:
        batch: anything.
        depth: of objects in objects; from the fifth on only their class counts, as they may know each other.
    """
    if isinstance(batch, Tensor):
        return crc32(batch.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(batch, np.ndarray):
        return crc32(batch.tobytes())
    if isinstance(batch, Mapping):
        return crc32(repr([(key, fingerprint(part, depth)) for key, part in batch.items()]).encode())
    if _parts(batch) or isinstance(batch, tuple | list):
        return crc32(repr([fingerprint(part, depth) for part in _parts(batch)]).encode())
    if isinstance(batch, _PLAIN):
        return crc32(repr(batch).encode())
    content = batch.to_dict() if hasattr(type(batch), "to_dict") else getattr(batch, "__dict__", None)
    known = fingerprint(content, depth + 1) if isinstance(content, dict) and depth < _DEEPEST else 0
    return crc32(repr((type(batch).__name__, known)).encode())


def signature(batch: Any, size: int) -> Hashable:
    """Two batches of equal signature can be joined along the samples."""
    if isinstance(batch, Tensor | np.ndarray):
        value = None if batch.ndim else batch.item()
        return (type(batch).__name__, str(batch.dtype), tuple(batch.shape[1:]), value)
    if _is_column(batch, size):
        return ("packed", batch.kind) if isinstance(batch, _Packed) else "column"
    if isinstance(batch, Mapping):
        return (type(batch).__name__, *((key, signature(part, size)) for key, part in batch.items()))
    if _parts(batch) or _is_sequence(batch):
        return (type(batch).__name__, *(signature(part, size) for part in _parts(batch)))
    return (type(batch).__name__, repr(batch))


def bytes_per_sample(batch: Any) -> int:
    """Bytes of each sample in the tensors and arrays of a batch."""
    if isinstance(batch, Tensor | np.ndarray):
        return int(batch.nbytes) // max(1, int(batch.shape[0])) if batch.ndim else 0
    return sum(bytes_per_sample(part) for part in _parts(batch))


def to_device(batch: Any, device: torch.device) -> Any:
    """A copy of the batch with its tensors on `device`: a model may work in place on what it gets."""
    if isinstance(batch, Tensor):
        return batch.to(device, copy=True)
    if _packs(batch):
        return type(batch).from_data_list([copy.copy(graph).to(device) for graph in batch.to_data_list()])
    return map_parts(lambda part: to_device(part, device), batch)


def _collect_sizes(batch: Any, sizes: set[int]) -> None:
    if isinstance(batch, Tensor | np.ndarray):
        if batch.ndim:
            sizes.add(int(batch.shape[0]))
    elif isinstance(batch, _Packed):
        sizes.add(len(batch))
    elif not _is_objects(batch):
        for part in _parts(batch):
            _collect_sizes(part, sizes)


_DEEPEST = 4


_PLAIN = (str, bytes, int, float, complex, bool, np.generic, torch.dtype, torch.device, type(None))


def _check_leaves(batch: Any) -> None:
    """Refuse what might hold samples and cannot be divided: kept whole, it would be paired with others' labels."""
    if isinstance(batch, (Tensor, np.ndarray, _Column, *_PLAIN)) or _is_objects(batch):
        return
    if not isinstance(batch, tuple | list) and fields_of(batch) is None:
        raise ValueError(
            f"a batch holds {describe(batch)}, which cannot be divided into samples; let the loader's collate_fn "
            "return tensors, or a list with one object for each sample, which forward_fn joins"
        )
    for part in _parts(batch):
        _check_leaves(part)


def _parts(batch: Any) -> list[Any]:
    """What a container holds; nothing for anything else."""
    if isinstance(batch, tuple | list):
        return list(batch)
    named = fields_of(batch)
    return [] if named is None else list(named.values())


def _is_sequence(batch: Any) -> bool:
    return isinstance(batch, tuple | list)


def _is_objects(batch: Any) -> bool:
    """A list of objects of one kind, one per sample, that a user's forward_fn puts together."""
    return (
        isinstance(batch, list)
        and len(batch) > 0
        and not isinstance(batch[0], Tensor | np.ndarray | Mapping | tuple | list | str | int | float | bool | None)
        and len({type(value) for value in batch}) == 1
    )


def unpacked(batch: Any) -> Any:
    """With batches of graphs as lists of their graphs."""
    if _packs(batch):
        return _Packed(batch.to_data_list(), type(batch))
    return batch if isinstance(batch, _Column) or _is_objects(batch) else map_parts(unpacked, batch)


def _packs(batch: Any) -> bool:
    return hasattr(type(batch), "to_data_list") and hasattr(type(batch), "from_data_list")


class _Column(list[Any]):
    """A stored list with one plain value per sample."""


class _Packed(_Column):
    """The graphs of a batch, and what joins them."""

    def __init__(self, graphs: list[Any], kind: Any) -> None:
        super().__init__(graphs)
        self.kind = kind


def _is_column(batch: Any, size: int | None) -> bool:
    """A list with one plain value per sample, such as file names; without a size, only one that was stored as such."""
    if size is None or isinstance(batch, _Packed):
        return isinstance(batch, _Column)
    return (
        _is_sequence(batch)
        and len(batch) == size
        and not any(isinstance(value, Tensor | np.ndarray | Mapping | tuple | list) for value in batch)
    )


def map_parts(function: Callable[[Any], Any], batch: Any) -> Any:
    """A copy of a container with a function applied to each part; anything else as it is."""
    if isinstance(batch, Mapping):
        parts = {key: function(part) for key, part in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return parts
        like = copy.copy(batch)  # a user's own kind of mapping, with whatever else it holds
        like.update(parts)
        return like
    if _is_sequence(batch):
        return _rebuild(batch, [function(part) for part in batch])
    named = fields_of(batch)
    if named is not None:  # a dataclass, also a frozen one, or one with fields that its constructor does not take
        like = copy.copy(batch)
        for name, part in named.items():
            object.__setattr__(like, name, function(part))
        return like
    return batch


def _rebuild(like: Any, parts: list[Any]) -> Any:
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def describe(value: Any) -> str:
    """What something is, in a few words."""
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)}"
    if _is_sequence(value):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def fields_of(batch: Any) -> dict[Any, Any] | None:
    """The parts of a mapping, named tuple or dataclass by name; None for anything else."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return None


def to_numpy(tensor: Shaped[Tensor, "..."]) -> Shaped[np.ndarray, "..."]:
    """A tensor as an array on the host; half precisions become float32, which NumPy can hold."""
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.cpu().numpy()


def values_to_ids(values: Any, n_samples: int, of: str) -> list[int | str]:
    """What a callable gave for one batch as a list of integers or strings.

    Args:
        values: its outcome.
        n_samples: of the batch.
        of: who gave it, for the message.

    Raises:
        ValueError: if it is not one integer or string per sample.
    """
    plain = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    if (
        isinstance(plain, list | tuple)
        and len(plain) == n_samples
        and all(isinstance(value, Integral | str) for value in plain)
    ):
        return [value if isinstance(value, str) else int(value) for value in plain]
    raise ValueError(
        f"{of} must return one integer or string for each of the {n_samples} samples of a batch, got "
        f"a {type(values).__name__}: {str(values)[:80]}"
    )
