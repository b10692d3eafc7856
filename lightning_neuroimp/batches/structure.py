"""Take batches apart into named parts, rebuild them, move them between devices, and fingerprint their content.

A batch is any nesting of mappings, sequences, dataclasses, tensors and arrays; or a list of objects, one per sample; or
a batch of graphs with `to_data_list` and `from_data_list`, such as PyTorch Geometric's.
"""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from lightning_neuroimp import _validate

PLAIN = (str, bytes, int, float, complex, bool, np.generic, torch.Size, torch.dtype, torch.device, type(None))
"""Types of values that are no containers."""

_DEEPEST = 4  # objects in objects


def fields_of(batch: Any) -> dict[Any, Any] | None:
    """Return the parts of a mapping, named tuple or dataclass by name; None for anything else."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return None


def parts_of(batch: Any) -> list[Any] | None:
    """Return what a mapping, sequence or dataclass holds; None for anything else."""
    if isinstance(batch, tuple | list):
        return list(batch)
    named = fields_of(batch)
    return None if named is None else list(named.values())


def map_parts(function: Callable[[Any], Any], batch: Any) -> Any:
    """Return a copy of a container with a function applied to each part; anything else as it is.

    Args:
        function: takes a part and returns what takes its place.
        batch: a mapping, sequence or dataclass, whose type is kept; mappings without `update` become dictionaries.
    """
    if isinstance(batch, Mapping):
        parts = {key: function(part) for key, part in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return parts
        like = copy.copy(batch)  # the user's own type of mapping, with whatever else it holds
        like.update(parts)
        return like
    if isinstance(batch, tuple | list):
        items = [function(part) for part in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    named = fields_of(batch)
    if named is None:
        return batch
    like = copy.copy(batch)  # a dataclass: it may be frozen, or have fields that its constructor does not take
    for name, part in named.items():
        object.__setattr__(like, name, function(part))
    return like


def is_packed(batch: Any) -> bool:
    """Tell whether something is a batch of graphs that can be taken apart and joined again."""
    return hasattr(type(batch), "to_data_list") and hasattr(type(batch), "from_data_list")


def to_device(batch: Any, device: torch.device) -> Any:
    """Move a batch to a device; tensors that are there already are not copied, but shared with the original.

    For batches that are run once. See `copied_to` for batches that are needed again after a model has had them.

    Args:
        batch: left as it is, except that a model which works in place on the result may write to shared tensors.
        device: of the result.
    """
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, PLAIN):
        return batch
    if is_packed(batch) and hasattr(type(batch), "to"):
        return copy.copy(batch).to(device)
    return copied_to(batch, device) if is_packed(batch) else map_parts(lambda part: to_device(part, device), batch)


def copied_to(batch: Any, device: torch.device) -> Any:
    """Copy a batch to a device; tensors and arrays are copied also where they are there already.

    For batches that are run several times: a model may work in place on what it is called with. Objects that are
    neither containers nor batches of graphs are shared with the original.

    Args:
        batch: left as it is, whatever is done to the result.
        device: of the result.

    >>> batch = {"image": torch.zeros(2)}
    >>> copied_to(batch, torch.device("cpu"))["image"].add_(1)
    tensor([1., 1.])
    >>> batch["image"]
    tensor([0., 0.])
    """
    if isinstance(batch, Tensor):
        return batch.to(device, copy=True)
    if isinstance(batch, np.ndarray):
        return batch.copy()
    if isinstance(batch, PLAIN):
        return batch
    if is_packed(batch):  # what joins graphs concatenates their tensors
        return type(batch).from_data_list([copy.copy(graph).to(device) for graph in batch.to_data_list()])
    return map_parts(lambda part: copied_to(part, device), batch)


def fingerprint(batch: Any, depth: int = 0) -> int:
    """Return a checksum of a batch's content, which tells whether two samples are the same.

    Args:
        batch: anything, on the host.
        depth: number of objects around it; from the fifth on only an object's class counts, as objects may refer to
            each other.
    """
    if isinstance(batch, Tensor):
        if batch.layout != torch.strided:
            return crc32(repr([str(batch.layout), tuple(batch.shape), *map(fingerprint, sparse_parts(batch))]).encode())
        batch = batch.detach().resolve_conj().resolve_neg()  # such views of complex tensors have no bytes of their own
        return crc32(batch.contiguous().view(-1).view(torch.uint8).numpy().data)
    if isinstance(batch, np.ndarray):  # an array of objects holds addresses, which say nothing
        return fingerprint(batch.tolist(), depth) if batch.dtype.hasobject else crc32(batch.tobytes())
    if isinstance(batch, Mapping):
        return crc32(repr([(key, fingerprint(part, depth)) for key, part in batch.items()]).encode())
    parts = parts_of(batch)
    if parts or isinstance(batch, tuple | list):
        return crc32(repr([fingerprint(part, depth) for part in parts or []]).encode())
    if isinstance(batch, PLAIN):
        return crc32(repr(batch).encode())
    content = batch.to_dict() if hasattr(type(batch), "to_dict") else getattr(batch, "__dict__", None)
    known = fingerprint(content, depth + 1) if isinstance(content, dict) and depth < _DEEPEST else 0
    return crc32(repr((type(batch).__name__, known)).encode())


def sparse_parts(tensor: Tensor) -> list[Tensor]:
    """Return the dense tensors that make up a sparse one: its indices, and its values last."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.detach().coalesce()
        return [tensor.indices(), tensor.values()]
    by_row = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    indices = (tensor.crow_indices(), tensor.col_indices()) if by_row else (tensor.ccol_indices(), tensor.row_indices())
    return [*indices, tensor.detach().values()]


def describe(value: Any) -> str:
    """Say in a few words what something is, for messages.

    >>> describe(torch.zeros(2, 3))
    'a Tensor of shape (2, 3) and type torch.float32'
    """
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {_validate.shown(list(value), 32)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def to_numpy(tensor: Shaped[Tensor, "..."]) -> Shaped[np.ndarray, "..."]:
    """Return a tensor as a dense array on the host; half precisions become single ones, which NumPy can hold."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    if tensor.dtype == torch.complex32:
        tensor = tensor.to(torch.complex64)
    return tensor.cpu().resolve_conj().resolve_neg().numpy()
