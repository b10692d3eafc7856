"""undisturbed(model): look at a model without leaving a trace."""

import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

_DEPTH = 4  # of containers in containers


_LARGE = 2**26  # bytes of a tensor or array that is no buffer: data rather than state, and dear to copy


_LEFT_ALONE = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, with gradients allowed, and put everything back, also after an exception.

    Put back: each module's own train or eval flag; its buffers, also those that a forward pass has made or replaced;
    all other attributes that hold tensors (of up to 64 MB), numbers, strings, random generators, or lists,
    dictionaries, sets and deques of them (a hidden state, counters, caches, the state of a metric); the weights of
    embeddings with `max_norm`, which looking up rewrites; and the random states of Python, NumPy and torch (of each
    CUDA device too). Inside, inference mode is off, compiled code runs eagerly (hooks are ignored otherwise), and the
    fused attention path is off (it would bypass patched modules). Other parameters and their `.grad` are not touched:
    compute derivatives with `torch.autograd.grad`. What a forward pass changes elsewhere, in globals, closures or
    objects of classes of your own, cannot be put back; where it writes into a parameter, a warning says so.

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
        versions = [
            (module, name, parameter, parameter._version)
            for module in modules
            for name, parameter in module._parameters.items()
            if parameter is not None and not is_lazy(parameter) and not parameter.is_inference()
        ]
        rewritten = [module.weight for module in modules if getattr(module, "max_norm", None) is not None]
        put_back = [_tensor(weight) for weight in rewritten if isinstance(weight, torch.Tensor)]
        for module in modules:
            if _changes_its_kind(module):
                put_back += [_tensor(buffer) for buffer in module.buffers(recurse=False)]
            else:
                put_back += [_members(module), _buffers(module), _attributes(module)]
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
            with ExitStack() as stack, torch.no_grad():  # all of them, whatever one raises
                for restore in put_back:
                    stack.callback(restore)
            for module, name, parameter, version in versions:
                if parameter._version != version and not any(parameter is weight for weight in rewritten):
                    warnings.warn(
                        f"a forward pass in evaluation mode writes into the parameter {name!r} of a "
                        f"{type(module).__name__}: what a measurement wrote there stays",
                        stacklevel=3,
                    )
                    break


Restore = Callable[[], None]


def _changes_its_kind(module: nn.Module) -> bool:
    """A lazy module becomes what it is going to be, all of it; a scripted one has no attributes of Python's."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return isinstance(module, torch.jit.ScriptModule) or any(
        isinstance(one, torch.nn.parameter.UninitializedParameter) for one in own
    )


def _members(module: nn.Module) -> Restore:
    """Takes away modules and parameters that a forward pass has made, and puts back those that it has replaced."""
    mappings: list[dict[str, Any]] = [module._modules, module._parameters]
    then = [dict(mapping) for mapping in mappings]

    def restore() -> None:
        for mapping, before in zip(mappings, then, strict=True):
            _rebind(mapping, before)

    return restore


def _rebind(now: dict[str, Any], then: dict[str, Any]) -> None:
    if now.keys() != then.keys() or any(now[name] is not value for name, value in then.items()):
        now.clear()
        now.update(then)


def _buffers(module: nn.Module) -> Restore:
    """Puts a module's buffers back: those that there were, with what they held."""
    then, passing = dict(module._buffers), set(module._non_persistent_buffers_set)
    contents = [_tensor(buffer) for buffer in then.values() if buffer is not None]

    def restore() -> None:
        _rebind(module._buffers, then)
        if module._non_persistent_buffers_set != passing:
            module._non_persistent_buffers_set = passing
        for content in contents:
            content()

    return restore


def _attributes(module: nn.Module) -> Restore:
    """Puts a module's other attributes back: the same objects, and what those that are known held."""
    values = vars(module)
    kept = {name: value for name, value in values.items() if name not in _LEFT_ALONE and "hook" not in name}
    contents = [content for value in kept.values() if (content := _content(value, _DEPTH)) is not None]

    def restore() -> None:
        for name in [name for name in values if name not in kept and name not in _LEFT_ALONE and "hook" not in name]:
            del values[name]
        for name, value in kept.items():
            if name not in values or values[name] is not value:
                values[name] = value
        for content in contents:
            content()

    return restore


def _content(value: Any, depth: int) -> Restore | None:
    """Puts back what a value holds; None for what cannot change, or is not known."""
    if isinstance(value, torch.Tensor):
        return None if is_lazy(value) or value.numel() * value.element_size() > _LARGE else _tensor(value)
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return partial(_set_state, value, state)
    if isinstance(value, np.random.Generator):
        inner = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", inner)
    if isinstance(value, random.Random):
        drawn = value.getstate()
        return lambda: value.setstate(drawn)
    if isinstance(value, np.ndarray) and value.flags.writeable and value.dtype != object and value.nbytes <= _LARGE:
        copied = value.copy()
        return lambda: np.copyto(value, copied)
    if not depth or not isinstance(value, list | dict | set | deque):
        return None
    members = list(value.values()) if isinstance(value, dict) else list(value)
    inside = [content for member in members if (content := _content(member, depth - 1)) is not None]
    shallow = value.copy()

    def restore() -> None:
        if len(value) != len(shallow) or any(a is not b for a, b in zip(_parts(value), _parts(shallow), strict=True)):
            value.clear()
            value.extend(shallow) if isinstance(value, list | deque) else value.update(shallow)
        for content in inside:
            content()

    return restore


def _set_state(generator: torch.Generator, state: torch.Tensor) -> None:
    generator.set_state(state)


def _parts(value: Any) -> Iterator[Any]:
    for part in value.items() if isinstance(value, dict) else value:
        yield from part if isinstance(value, dict) else (part,)


def _tensor(tensor: torch.Tensor) -> Restore:
    """Puts back what a tensor holds."""
    if is_lazy(tensor):
        return lambda: None
    before = tensor.detach().clone()

    def restore() -> None:
        # only what changed: a write would make autograd reject graphs that hold the tensor
        if not _same_bits(tensor.detach(), before):
            tensor.detach().copy_(before)

    return restore


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
            written = module._modules.get("_orig_mod") if "dynamo_ctx" in values else None
            if written is not None and "forward" in values:  # torch.compile(module)
                replaced.append((values, "forward", values["forward"]))
                values["forward"] = written.__call__
            if values.get("_compiled_call_impl") is not None:  # module.compile()
                replaced.append((values, "_compiled_call_impl", values["_compiled_call_impl"]))
                values["_compiled_call_impl"] = None
        yield
    finally:
        for values, name, value in replaced:
            values[name] = value


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.layout is not torch.strided or one.is_nested or one.is_quantized or one.is_meta:
        return one.is_meta  # others are written again: there is no telling
    if one.shape != other.shape or not one.is_contiguous():
        return one.shape == other.shape and torch.equal(one, other)
    return torch.equal(one.reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8))
