"""Remember what modules hold, and put it back.

`undisturbed()` asks for the state of a model before a measurement. It gets one function for each object that a forward
pass may change: a module, a buffer, a list in an attribute. The functions are filed under the ids of these objects, so
that measurements of the same object in several threads can find each other's.
"""

import random
from collections import deque
from collections.abc import Callable, Collection, Container, Mapping
from functools import partial
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_neuroimp import _compat

Restore = Callable[[], object]

# what holds more is data rather than state, and expensive to copy; the last three are for one attribute of a module
_MOST_BYTES = 2**26  # of one tensor or array
_MOST_BYTES_TOGETHER = 2**30
_MOST_COPIES = 2**14  # of tensors, arrays and random generators, which are copied one by one
_MOST_MEMBERS = 2**17  # of all containers, nested ones included

_CALLS = ("forward", _compat.COMPILED_CALL)  # what torch.compile(module) and module.compile() set
_OWNED_BY_TORCH = {*vars(nn.Module()), _compat.COMPILED_CALL}

_CONTAINERS = (list, dict, set, deque)
_COPIED = (torch.Tensor, np.ndarray, torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def module_state(modules: Collection[nn.Module]) -> dict[int, Restore]:
    """Return what puts each module, and each object in it that can change, back as it is now, by the object's id."""
    found: dict[int, Restore] = {}
    # parameters are left alone, also where an attribute lists them, as in recurrent layers
    parameters = {id(parameter) for module in modules for parameter in _own_parameters(module).values()}
    for module in modules:
        tensors: list[torch.Tensor | None] = list(_own_buffers(module).values())
        if getattr(module, "max_norm", None) is not None:
            tensors.append(getattr(module, "weight", None))  # of an embedding, which rewrites what it looks up
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and id(tensor) not in found:
                found[id(tensor)] = _remember_tensor(tensor)
        if not _keeps_attributes(module):
            found[id(module)] = partial(_restore_flag_and_call, module, *_flag_and_call(module))
            continue
        attributes = {name: value for name, value in vars(module).copy().items() if name not in _OWNED_BY_TORCH}
        mappings = _compat.members_of(module)
        found[id(module)] = partial(
            _restore_module, module, *_flag_and_call(module), attributes, [*map(_remember_members, mappings)]
        )
        values = list(attributes.values())
        for value in _select(values, set(map(type, values)), (*_CONTAINERS, *_COPIED, tuple)):
            _remember_contents(value, found, parameters)
    return found


def call_as_written(module: nn.Module) -> None:
    """Undo torch.compile of one module, until its state is put back.

    Under the stance "force_eager" it runs eagerly already, but dynamo's wrapper puts torch's modes back when it
    returns, so that a mode that was entered inside, such as a recorder, would end there.
    """
    values = vars(module)
    written = _compat.module_as_written(module)
    if written is not None and "forward" in values:  # torch.compile(module)
        values["forward"] = written.__call__
    if values.get(_compat.COMPILED_CALL) is not None:  # module.compile()
        values[_compat.COMPILED_CALL] = None


def parameter_versions(modules: Collection[nn.Module]) -> list[tuple[nn.Module, str, torch.Tensor, int]]:
    """Return module, name, parameter and the counter of in-place writes of each parameter that has one."""
    return [
        (module, name, parameter, _compat.write_count(parameter))
        for module in modules
        for name, parameter in _own_parameters(module).items()
        if parameter is not None and not is_lazy(parameter) and not parameter.is_inference()
    ]


def _own_parameters(module: nn.Module) -> Mapping[str, torch.Tensor | None]:
    """Return a module's parameters, without those of submodules; scripted modules have no dictionary of them.

    Those of scripted modules that were loaded are plain tensors.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return dict(module.named_parameters(recurse=False))
    return _compat.parameters_of(module)


def _own_buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return a module's buffers, without those of submodules; scripted modules have no dictionary of them."""
    if isinstance(module, torch.jit.ScriptModule):
        return dict(module.named_buffers(recurse=False))
    return _compat.buffers_of(module)


def _keeps_attributes(module: nn.Module) -> bool:
    """Tell whether a module has its attributes in Python, and for good.

    Those of scripted modules are not in Python; a lazy module turns into what it is going to be, all of it.
    """
    own = chain(_own_parameters(module).values(), _own_buffers(module).values())
    return not isinstance(module, torch.jit.ScriptModule) and not any(
        tensor is not None and is_lazy(tensor) for tensor in own
    )


def _flag_and_call(module: nn.Module) -> tuple[bool, dict[str, Any]]:
    """Return a module's train or eval flag, and what call_as_written() replaces."""
    values = vars(module)
    return module.training, {name: values[name] for name in _CALLS if name in values}


def _restore_flag_and_call(module: nn.Module, training: bool, calls: dict[str, Any]) -> None:
    """Put back a module's train or eval flag, and what call_as_written() has replaced."""
    module.training = training
    vars(module).update(calls)


def _restore_module(
    module: nn.Module, training: bool, calls: dict[str, Any], attributes: dict[str, Any], mappings: list[Restore]
) -> None:
    """Put back which objects a module's attributes, buffers and submodules are, and its train or eval flag."""
    _restore_flag_and_call(module, training, calls)
    for restore in mappings:
        restore()
    values = vars(module)
    for name in values.keys() - attributes.keys() - _OWNED_BY_TORCH:
        del values[name]
    for name, value in attributes.items():
        if name not in values or values[name] is not value:
            values[name] = value


def _remember_contents(value: Any, found: dict[int, Restore], parameters: Container[int]) -> None:
    """Add what puts back the contents of an attribute's value, and of all that it holds, nearest first.

    Members that cannot change are only compared by identity, all at once: a list may have many.

    Args:
        value: the attribute's value.
        found: what puts back the objects that were found so far, by id; is extended.
        parameters: ids of all parameters.
    """
    members, copies, size = _MOST_MEMBERS, _MOST_COPIES, _MOST_BYTES_TOGETHER
    level = [value]
    while level:
        kinds = set(map(type, level))
        copied = [held for held in _select(level, kinds, _COPIED, found, parameters) if _is_state(held)]
        copied_size = sum(map(_bytes, copied))
        if len(copied) <= copies and copied_size <= size:
            copies, size = copies - len(copied), size - copied_size
            found.update((id(held), _remember_copy(held)) for held in copied)
        tuples = [held for held in _select(level, kinds, (tuple,)) if len(held) <= _MOST_MEMBERS]
        containers = [held for held in _select(level, kinds, _CONTAINERS, found) if len(held) <= _MOST_MEMBERS]
        members -= sum(map(len, chain(tuples, containers)))
        if members < 0:
            return
        found.update((id(held), _remember_members(held)) for held in containers)
        held_by_containers = [held.values() if isinstance(held, dict) else held for held in containers]
        level = list(chain.from_iterable(chain(tuples, held_by_containers)))


def _select(values: list[Any], kinds: set[type], wanted: tuple[type, ...], *known: Container[int]) -> list[Any]:
    """Return the values of wanted kinds, each object once and without those whose ids are known.

    Args:
        values: any objects.
        kinds: the types of all values.
        wanted: the types that are selected, with their subclasses.
        known: containers of ids.
    """
    selected = {kind for kind in kinds if issubclass(kind, wanted)}
    if not selected:
        return []
    once = {id(value): value for value in values if type(value) in selected}
    for ids in known:
        once = {key: value for key, value in once.items() if key not in ids}
    return list(once.values())


def _is_state(value: Any) -> bool:
    """Tell whether a tensor, an array or a random generator can be copied, and is not data."""
    if isinstance(value, torch.Tensor):
        return not is_lazy(value) and _bytes(value) <= _MOST_BYTES
    if isinstance(value, np.ndarray):
        return value.flags.writeable and value.nbytes <= _MOST_BYTES
    return not isinstance(value, random.SystemRandom)


def _bytes(value: Any) -> int:
    """Return the size of a tensor or an array; 0 for a random generator."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return value.nbytes if isinstance(value, np.ndarray) else 0


def _remember_copy(value: Any) -> Restore:
    """Return what puts back the contents of a tensor, an array or a random generator."""
    if isinstance(value, torch.Tensor):
        return _remember_tensor(value)
    if isinstance(value, np.ndarray):
        return partial(np.copyto, value, value.copy())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    return partial(value.set_state, value.get_state())


def _remember_members(value: Any) -> Restore:
    """Return what puts back the members of a container, compared by identity."""
    return partial(_restore_members, value, dict(value) if isinstance(value, dict) else list(value))


def _restore_members(value: Any, before: Any) -> None:
    """Put back the members of a container, where they have changed."""
    is_dict = isinstance(value, dict)
    if (
        len(value) == len(before)
        and all(map(is_, value, before))
        and (not is_dict or all(map(is_, value.values(), before.values())))
    ):
        return
    value.clear()
    if is_dict:
        for key, member in before.items():  # some dictionaries forbid update()
            value[key] = member
    elif isinstance(value, set):
        value.update(before)
    else:
        value.extend(before)


def _remember_tensor(tensor: torch.Tensor) -> Restore:
    """Return what puts back the values of a tensor."""
    return partial(_restore_tensor, tensor, None if is_lazy(tensor) else tensor.detach().clone())


def _restore_tensor(tensor: torch.Tensor, before: torch.Tensor | None) -> None:
    """Put back the values of a tensor, where they have changed: a write makes autograd reject graphs that hold it."""
    if before is not None and not _same_bits(tensor.detach(), before):
        tensor.detach().copy_(before)


def _same_bits(tensor: torch.Tensor, before: torch.Tensor) -> bool:
    """Tell whether two tensors hold the same bits; False for kinds that cannot be compared, which are written."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        return tensor.is_meta
    if tensor.shape != before.shape or not tensor.is_contiguous():
        return tensor.shape == before.shape and torch.equal(tensor, before)
    return torch.equal(tensor.reshape(-1).view(torch.uint8), before.contiguous().reshape(-1).view(torch.uint8))
