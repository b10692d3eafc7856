"""Read the private parts of other packages: here and nowhere else.

Each entry says what it is and what would replace it; `tests/internals/test_compat.py` asserts that each one exists, and
that no other file of the package reads a private attribute of another package.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "AS_STRIDED",
    "CLONE",
    "COLLECTIVE",
    "COMPILED_CALL",
    "CONVOLUTIONAL",
    "CheckpointHook",
    "StorageWeakRef",
    "TorchDispatchMode",
    "batches_that_stepped",
    "buffers_of",
    "is_operation",
    "lightning_attachments",
    "members_of",
    "mode_depths",
    "module_as_written",
    "parameters_of",
    "saved_value",
    "set_checkpoint_hook",
    "storage_id",
    "validation_metrics",
    "write_count",
    "written_arguments",
]

# `StorageWeakRef` keeps a storage's identity from being given to other memory. Without it: the tensors are kept alive.
# `TorchDispatchMode` sees every operation that torch dispatches. Without it: each ablation is a full pass.

CheckpointHook: type = checkpoint._checkpoint_hook
"""What keeps a checkpoint that is not reentrant from saving what is inside. Without it: gradients of the activations
that the model has, whatever was put in their place."""

CONVOLUTIONAL: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,  # batch norm and instance norm
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


COLLECTIVE = ("c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd")
"""Namespaces of operations by which processes exchange data. Without them: trials on random ablations notice it."""

COMPILED_CALL = "_compiled_call_impl"
"""Attribute in which `module.compile()` puts what is called. Without it: nothing tells that a module is compiled."""


def is_operation(func: Any) -> bool:
    """Tell whether what torch dispatches is a plain operation; others are of a higher order, such as `torch.cond`.

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


def members_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], set[str]]:
    """Return what a module itself holds: submodules, parameters, buffers, and the names of buffers that are not saved.

    They are the module's own dictionaries, which also have None for what is registered and not there. Without them:
    `named_children()`, `named_parameters()` and `named_buffers()`, which leave out None and what comes twice.
    """
    return module._modules, module._parameters, module._buffers, module._non_persistent_buffers_set


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return a module's own dictionary of parameters, as in `members_of`."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own dictionary of buffers, as in `members_of`."""
    return module._buffers


def write_count(tensor: Tensor) -> int:
    """Return how many times a tensor was written in place, which autograd counts.

    Without it: a copy of every parameter, compared afterwards.
    """
    return tensor._version


def module_as_written(module: nn.Module) -> nn.Module | None:
    """Return the module that `torch.compile(module)` wraps; None for any other module.

    Without it: compiled modules run in full passes, as a recorder that is entered inside does not see what follows.
    """
    return module._modules.get("_orig_mod") if isinstance(module, torch._dynamo.OptimizedModule) else None


def lightning_attachments(module: nn.Module) -> list[Any]:
    """Return the trainer and the fabric that a LightningModule refers to, without the error for one without them.

    Without them: `module.trainer` and `module.fabric`, with that error caught.
    """
    attached = [vars(module).get(name) for name in ("_trainer", "_fabric")]
    return [value for value in attached if value is not None]


def batches_that_stepped(trainer: Any) -> int:
    """Return the number of batches that stepped, at which Lightning's own loggers put what is logged.

    Without it: `global_step`, which counts every optimizer.
    """
    loop = getattr(getattr(trainer, "fit_loop", None), "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def validation_metrics(trainer: Any) -> dict[str, Tensor]:
    """Return what the present validation run has logged, of the values in `trainer.callback_metrics`, by the same keys.

    Without it: all of these, among which those that the training logs cannot be told.

    Args:
        trainer: at the end of a validation run, where all values have been computed.
    """
    results: Any = getattr(trainer, "_results", None) or {}
    logged = [item for item in results.values() if item.meta.on_epoch and not item.has_reset]
    names = {results._forked_name(item, False)[0] for item in logged}
    return {key: value for key, value in trainer.callback_metrics.items() if key in names}


def set_checkpoint_hook(hook: Callable[..., Any]) -> None:
    """Let checkpoints that are not reentrant save what a hook says.

    Without it: as without `CheckpointHook`.

    Args:
        hook: makes a context from what torch knows of the checkpoint.
    """
    checkpoint._checkpoint_hook = hook  # type: ignore[assignment,misc]
