"""Let gradients be computed in evaluation mode where torch refuses to.

cuDNN's recurrent layers have no backward pass in evaluation mode, and reentrant checkpoints none that
`torch.autograd.grad` may ask for; other checkpoints run a part of the model again in the backward pass, when the hooks
that replace activations are gone, so that gradients would be those of other activations. All have an equal that is
right.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint

from lightning_neuroimp import _compat

_LOCK = threading.RLock()
_WITHOUT_CUDNN = [0, True]  # number of calls that run without it now, and whether it was on before the first of them
_DIRECT = dict[int, int]()  # by thread; how often its checkpoints have been switched to plain calls


@contextmanager
def with_gradients(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run recurrent layers on CUDA without cuDNN where gradients are enabled, and checkpoints as plain calls.

    Args:
        modules: all modules of a model.
    """
    with ExitStack() as stack:
        for module in _recurrent(modules):
            _hook(module, stack)
        stack.enter_context(_plain_checkpoints())
        yield


def _recurrent(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield recurrent layers on CUDA, and scripted modules with such inside, where no hooks are called."""
    inside: set[int] = set()
    for module in modules:
        if id(module) in inside:
            continue
        if isinstance(module, torch.jit.ScriptModule):
            parts = list(module.modules())
            inside |= set(map(id, parts))
            names = {getattr(part, "original_name", "") for part in parts}
            if names & {"RNN", "LSTM", "GRU"} and on_cuda(module):
                yield module
        elif isinstance(module, nn.RNNBase) and on_cuda(module):
            yield module


def on_cuda(module: nn.Module) -> bool:
    """Tell whether a module has parameters on a CUDA device."""
    return any(parameter.is_cuda for parameter in module.parameters())


def _hook(module: nn.Module, stack: ExitStack) -> None:
    """Turn cuDNN off in the module's calls that build a graph.

    Args:
        module: a recurrent layer.
        stack: removes the hooks, and turns cuDNN on again after a call that was never left.
    """
    opened: list[None] = []  # calls that are running

    def enter(module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            with _LOCK:
                if not _WITHOUT_CUDNN[0]:
                    _WITHOUT_CUDNN[1] = torch.backends.cudnn.enabled
                    torch.backends.cudnn.enabled = False
                _WITHOUT_CUDNN[0] += 1
            opened.append(None)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if opened:
            opened.pop()
            with _LOCK:
                _WITHOUT_CUDNN[0] -= 1
                if not _WITHOUT_CUDNN[0]:
                    torch.backends.cudnn.enabled = bool(_WITHOUT_CUDNN[1])

    def close() -> None:
        while opened:  # an exception that the hook after the call has not seen
            leave(module, None, None)

    stack.callback(close)
    # scripted modules hide these methods, but call the hooks
    stack.callback(nn.Module.register_forward_hook(module, leave, always_call=True).remove)
    stack.callback(nn.Module.register_forward_pre_hook(module, enter).remove)


@contextmanager
def _plain_checkpoints() -> Iterator[None]:
    """Call what is in a checkpoint as it is, in this thread: more memory, the same values and gradients."""
    thread = threading.get_ident()
    with _LOCK:
        if not _DIRECT:
            checkpoint.CheckpointFunction.apply = _apply  # type: ignore[method-assign]
            _compat.set_checkpoint_hook(_saving)
        _DIRECT[thread] = _DIRECT.get(thread, 0) + 1
    try:
        yield
    finally:
        with _LOCK:
            _DIRECT[thread] -= 1
            if not _DIRECT[thread]:
                del _DIRECT[thread]
            if not _DIRECT:
                del checkpoint.CheckpointFunction.apply
                _compat.set_checkpoint_hook(_compat.CheckpointHook)


def _saving(frame: Any) -> AbstractContextManager[Any]:
    """Stand in for what saves nothing of a checkpoint that is not reentrant."""
    return nullcontext() if threading.get_ident() in _DIRECT else _compat.CheckpointHook(frame)


def _apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
    """Stand in for `CheckpointFunction.apply`."""
    if threading.get_ident() in _DIRECT:
        return function(*args)
    return super(checkpoint.CheckpointFunction, checkpoint.CheckpointFunction).apply(
        function, preserve_rng_state, *args
    )
