"""Read the private parts of other packages: here and nowhere else.

Each entry says what it is and what would replace it; `tests/internals/test_compat.py` asserts that each one exists, and
that no other file of the package reads a private attribute of another package.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "AS_STRIDED",
    "CLONE",
    "CONVOLUTIONAL",
    "StorageWeakRef",
    "TorchDispatchMode",
    "is_operation",
    "mode_depths",
    "saved_value",
    "storage_id",
    "written_arguments",
]

CONVOLUTIONAL: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,  # also instance norm
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
"""Bases of torch's layers with channels on axis 1. Without them: the list of all public subclasses."""

AS_STRIDED = torch.ops.aten.as_strided.default
"""The operation that makes any view of a storage. Without it: `torch.as_strided`, recorded by what it dispatches to."""

CLONE = torch.ops.aten.clone.default
"""The operation that copies a tensor. Without it: `torch.clone`, recorded by what it dispatches to."""


def is_operation(func: Any) -> bool:
    """Say whether what torch dispatches is a plain operation; others are of a higher order, such as `torch.cond`.

    Without `torch._ops`: whether it has the attributes `namespace`, `name` and `tags`.
    """
    return isinstance(func, torch._ops.OpOverload)


@cache
def written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Return place and name of the arguments that an operation of torch writes into, from its private schema.

    Without it: a table of the operations that write, which `native_functions.yaml` lists.
    """
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def storage_id(tensor: Tensor) -> int:
    """Return the identity of a tensor's storage, by the address of its private C++ object.

    Without it: the storage's `data_ptr()`, which all empty storages share.
    """
    return tensor.untyped_storage()._cdata


def mode_depths() -> tuple[int, int]:
    """Return how many modes for torch's operations, and for its functions, are entered in this thread.

    Without it: nothing tells, and a site that is reached inside a mode would be recorded wrongly; trials on random
    ablations notice that.
    """
    return torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()


def saved_value(node: Any, name: str) -> Any:
    """Return a parameter that a node of autograd's graph has saved, such as the slope of a leaky ReLU.

    Without it: the nonlinearity is not recognised, and findings about it are left out.

    Args:
        node: of a graph.
        name: of the parameter, without the prefix of saved values.
    """
    return getattr(node, f"_saved_{name}")


def batches_that_stepped(trainer: Any) -> int:
    """Return the number of batches that stepped, at which Lightning's own loggers put what is logged.

    Without it: `global_step`, which counts every optimizer.
    """
    loop = getattr(getattr(trainer, "fit_loop", None), "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))
