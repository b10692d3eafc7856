"""undisturbed(model): look at a model without leaving a trace."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, with gradients allowed, and put everything back, also after an exception.

    Put back: each module's own train or eval flag, the buffers that it has, tensors that a forward pass has put on its
    attributes (a hidden state, stashed features; not where it has also changed attributes of another kind, which such
    tensors may go with), and the random states of Python, NumPy and torch (of each CUDA device too). Inside, inference
    mode is off, compiled code runs eagerly (hooks are ignored otherwise), and the fused attention path is off (it would
    bypass patched modules). Parameters and their `.grad` are not touched: compute derivatives with
    `torch.autograd.grad`.

    Args:
        model: any module.
    """
    modules = [module for module in model.modules() if hasattr(module, "training")]
    legacy = np.random.get_state()  # noqa: NPY002 (users, and libraries that they use, do)
    states = random.getstate(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
        _not_compiled(modules),
    ):
        flags = [(module, module.training) for module in modules]
        attributes = [(vars(module), vars(module).copy()) for module in modules]
        buffers = [
            (module, name, buffer, None if is_lazy(buffer) else buffer.detach().clone())
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        try:
            for module in modules:
                module.training = False
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_attention)
            random.setstate(states[0])
            np.random.set_state(legacy)  # noqa: NPY002
            torch.random.set_rng_state(states[1])
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)
            for module, flag in flags:
                module.training = flag
            for now, then in attributes:
                _put_back(now, then)
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    if before is not None:
                        module._buffers[name] = buffer  # a forward pass may have put another tensor in its place
                        # only what changed: a write would make autograd reject graphs that hold the buffer
                        if not _same_bits(buffer, before):
                            buffer.copy_(before)


@contextmanager
def _not_compiled(modules: list[nn.Module]) -> Iterator[None]:
    """Call compiled modules as they were written.

    Under "force_eager" they run eagerly already, but dynamo's wrapper puts the modes of torch back when it returns, so
    that one which was entered inside, as a recorder is, ends there.
    """
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in modules:
            values = vars(module)
            if (
                "_orig_mod" in module._modules and "forward" in values and "dynamo_ctx" in values
            ):  # torch.compile(module)
                replaced.append((values, "forward", values["forward"]))
                values["forward"] = module._modules["_orig_mod"].__call__  # type: ignore[union-attr]
            if values.get("_compiled_call_impl") is not None:  # module.compile()
                replaced.append((values, "_compiled_call_impl", values["_compiled_call_impl"]))
                values["_compiled_call_impl"] = None
        yield
    finally:
        for values, name, value in replaced:
            values[name] = value


def _put_back(now: dict[str, Any], then: dict[str, Any]) -> None:
    """A module's attributes, if only tensors have changed."""
    missing = object()
    changed = {name for name in now.keys() | then.keys() if now.get(name, missing) is not then.get(name, missing)}
    if all(_is_tensors(values.get(name)) for name in changed for values in (now, then)):
        for name in changed:
            if name in then:
                now[name] = then[name]
            else:
                del now[name]


def _is_tensors(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_tensors, value))
    return value is None or isinstance(value, torch.Tensor)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.layout is not torch.strided or one.is_nested or one.is_quantized or one.is_meta:
        return one.is_meta  # others are written again: there is no telling
    if one.shape != other.shape or not one.is_contiguous():
        return one.shape == other.shape and torch.equal(one, other)
    return torch.equal(one.reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8))
