"""Tell tensors apart by the memory that they are views of."""

from typing import Any

import torch
from torch import Tensor

from lightning_neuroimp import _compat

Geometry = tuple[Any, ...]
"""Which part of its storage a tensor is, and how it is read: type, sizes, strides, offset, conjugate, negative."""


def has_storage(tensor: Tensor) -> bool:
    """Tell whether a tensor is a view of one piece of memory: not a sparse or nested one."""
    return tensor.layout is torch.strided and not tensor.is_nested


def storage_of(tensor: Tensor) -> int:
    """Return the identity of a tensor's memory, which all of its views share."""
    return _compat.storage_id(tensor)


def geometry_of(tensor: Tensor) -> Geometry:
    """Return which part of its storage a tensor is, and how it is read."""
    return (
        tensor.dtype,
        tuple(tensor.size()),
        tensor.stride(),
        tensor.storage_offset(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def whole_storage(tensor: Tensor) -> Tensor:
    """Return all of a tensor's storage as one row of its type."""
    tensor = tensor.detach()
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def copy_of(tensor: Tensor) -> Tensor:
    """Return the same values in new memory, laid out in the same way."""
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.size(), tensor.stride(), strict=True)):
        return whole_storage(tensor).clone().as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
