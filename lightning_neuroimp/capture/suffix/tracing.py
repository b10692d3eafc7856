"""Recorder: what a forward pass computes from one tensor on, recorded operation by operation.

Recorded are the operations that torch dispatches, not the user's Python. Those that depend on the tensor go onto the
tape; whatever else they read is a constant. Memory, not tensors, is what depends: a view, an alias or a buffer that
something dependent was written into is followed by its storage.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_neuroimp.capture.suffix.tape import Slot, Step, Tape

_aten = torch.ops.aten


# with these a storage changes its size or its owner, and views of it could not be made again
_REARRANGING = ("aten::resize_", "aten::resize_as_", "aten::set_", "aten::_resize_output_", "aten::set_data")


_COLLECTIVE = ("c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd")


# functions that read an argument's values without an operation that torch dispatches, and which argument
_UNSEEN = ("numpy", "tolist", "data_ptr", "untyped_storage", "storage", "apply_", "map_", "map2_")


_SPECIAL = ("__array__", "__dlpack__", "__deepcopy__", "__reduce_ex__")


_READS = {getattr(Tensor, name): (f"Tensor.{name}", 0) for name in (*_UNSEEN, *_SPECIAL)}


_READS |= {Tensor.new_tensor: ("Tensor.new_tensor", 1), torch.tensor: ("torch.tensor", 0)}


_READS |= {Tensor.tensor_split: ("Tensor.tensor_split", 1), torch.tensor_split: ("torch.tensor_split", 1)}


# these read the tensors in a list, and hand on a single one
_LISTS = {torch.as_tensor: ("torch.as_tensor", 0), torch.asarray: ("torch.asarray", 0)}


class TapeRecorder(TorchDispatchMode):
    """Records one forward pass from the tensor on that `start` is given.

    Attributes:
        reason: why no tape can be made; None: nothing speaks against it so far.
        started: whether the pass has reached the site.
        busy: whether tensors are looked at by the recorder itself.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.reason: str | None = None
        self.started = False
        self._steps: list[Step] = []
        self._values: list[Any] = []
        self._overwrites = False
        self._looking_on, self._depth = ExitStack(), (0, 0)
        self._storages: dict[int, tuple[StorageWeakRef, int, torch.dtype]] = {}  # memory that depends, its first slot
        self._slots: dict[int, tuple[weakref.ref[Tensor], tuple[Any, ...], int]] = {}  # by identity of the tensor
        self._views: dict[int, dict[tuple[Any, ...], int]] = {}  # by storage and what part of it a tensor is
        self._constants: dict[tuple[Any, ...], int] = {}  # slot by identity and memory
        self._captured: dict[int, list[tuple[Tensor, int]]] = {}  # constants by storage; keeps the tensors alive
        self.busy = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """One forward pass.

        The modes that look on are entered where `start` is called and left at the end, so that what comes before the
        site runs at its full speed.
        """
        before = _random_states()
        self._depth = _mode_depth()
        with self._looking_on:
            yield
        if not _same_states(before, _random_states()):
            self.stop("the forward pass draws random numbers")

    def stop(self, reason: str) -> None:
        """No tape can be made; the pass goes on unrecorded."""
        if self.reason is None:
            self.reason = reason
        self._let_go()

    def _let_go(self) -> None:
        self._steps, self._values = [], []
        self._captured.clear()
        self._constants.clear()

    def start(self, activation: Tensor) -> None:
        """From here on, whatever depends on this tensor is recorded."""
        self.started = True
        if _mode_depth() != self._depth:  # ours would be left before one that was entered earlier
            self.stop("the forward pass reaches it inside a mode for torch's functions or operations")
        if self.reason is None and self._is_plain(activation):
            self._values.append(None)
            self._note(activation, 0)
            self._looking_on.enter_context(_Reads(self))
            self._looking_on.enter_context(self)

    def depends(self, tensor: Tensor) -> bool:
        """Whether the tensor's memory depends on the activations."""
        return self.started and _has_storage(tensor) and _storage(tensor) in self._storages

    def finish(self, outputs: Sequence[Any]) -> Tape | None:
        """The tape that leads to these outputs; None where `reason` says why there is none."""
        if self.reason is not None:
            return None
        found = [
            Slot(self._slot(output)) if isinstance(output, Tensor) and self.depends(output) else output
            for output in outputs
        ]
        if self.reason is not None:
            return None
        needed = {_storage(output) for output in outputs if isinstance(output, Tensor) and self.depends(output)}
        tape = Tape(self._steps, self._values, found, needed, overwrites=self._overwrites)
        self._let_go()
        return tape

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and record it if it depends on the activations."""
        kwargs = kwargs or {}
        if not self.started or self.reason is not None:
            return func(*args, **kwargs)
        if any(kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ for kind in types):
            return NotImplemented  # the subclass's own handler comes first, and what that does comes here
        if not isinstance(func, torch._ops.OpOverload):
            self.stop(f"an operation of a higher order follows it ({func})")
            return func(*args, **kwargs)
        if func.namespace in _COLLECTIVE:  # also of weights: sharded modules gather them and give them back
            self.stop(f"processes exchange data behind it ({func.name()})")
            return func(*args, **kwargs)
        self.busy = True
        try:
            return self._dispatch(func, args, kwargs)
        finally:
            self.busy = False

    def _dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = list(_tensors(args)) + list(_tensors(kwargs.values()))
        written = _written(func, args, kwargs)
        if not any(map(self.depends, tensors)):
            for tensor in written:
                self._freeze(tensor)
            return func(*args, **kwargs)
        if not self._may_record(func, tensors):
            return func(*args, **kwargs)
        for tensor in written:
            self._adopt(tensor)
        arguments, fills = self._template(list(args), enumerate(args))
        keywords, named = self._template(dict(kwargs), kwargs.items())
        step = Step(func, arguments, keywords, fills, named)
        step.dynamic = func.namespace not in ("aten", "prims") or torch.Tag.dynamic_output_shape in func.tags
        step.read = {_storage(tensor) for tensor in tensors if self.depends(tensor)}
        step.storages = {_storage(tensor) for tensor in written if _has_storage(tensor)}
        out = func(*args, **kwargs)
        if self.reason is None:
            self._outputs(step, out, tensors)
            self._steps.append(step)
        return out

    def _may_record(self, func: Any, tensors: list[Tensor]) -> bool:
        if func._schema.name in _REARRANGING:
            self.stop(f"memory changes its size or owner behind it ({func.name()})")
        return self.reason is None

    def _is_plain(self, tensor: Tensor) -> bool:
        if not _has_storage(tensor):
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            self.stop(f"results that depend on it are {kind} tensors")
        return self.reason is None

    def _template(self, template: Any, items: Any) -> tuple[Any, list[tuple[Any, int | None, int]]]:
        """The arguments with constants in place, and which are to be filled in."""
        fills: list[tuple[Any, int | None, int]] = []
        for place, value in items:
            if isinstance(value, Tensor):
                fills.append((place, None, self._slot(value)))
                template[place] = None
            elif isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
                template[place] = [None if isinstance(part, Tensor) else part for part in value]
                fills += [(place, i, self._slot(part)) for i, part in enumerate(value) if isinstance(part, Tensor)]
        return template, fills

    def _slot(self, tensor: Tensor) -> int:
        """Where the tensor's value is at this moment of a run."""
        if not _has_storage(tensor):  # a sparse matrix, say, that does not depend on anything
            return self._new(tensor)
        key = _storage(tensor)
        if key not in self._storages:
            return self._constant(tensor, key)
        part = _part(tensor)
        known = self._slots.get(id(tensor))
        if known is not None and known[0]() is tensor and known[1] == (key, part):
            return known[2]
        slot = self._views[key].get(part)
        if slot is not None:
            return slot
        _, base, dtype = self._storages[key]
        if dtype != tensor.dtype or tensor.is_conj() or tensor.is_neg():
            self.stop("memory is read as of two types behind it")
            return 0
        # a view that was made before the memory depended on anything, or out of torch's sight
        slot = self._new()
        geometry = [list(tensor.size()), list(tensor.stride()), tensor.storage_offset()]
        view = Step(_aten.as_strided.default, [None, *geometry], {}, [(0, None, base)], [], slot, storages={key})
        self._steps.append(view)
        self._views[key][part] = slot
        return slot

    def _constant(self, tensor: Tensor, key: int) -> int:
        identity = (id(tensor), key, _part(tensor))
        slot = self._constants.get(identity)
        if slot is None:
            slot = self._constants[identity] = self._new(tensor.detach())
            self._captured.setdefault(key, []).append((tensor, slot))
        return slot

    def _freeze(self, tensor: Tensor) -> None:
        """Memory is going to be written: constants that share it keep what they had."""
        if not _has_storage(tensor):
            return
        key = _storage(tensor)
        for _, slot in self._captured.pop(key, []):
            self._values[slot] = _copy(self._values[slot])
        self._constants = {identity: slot for identity, slot in self._constants.items() if identity[1] != key}

    def _adopt(self, tensor: Tensor) -> None:
        """What depends on the activations is going to be written into this tensor's memory."""
        if not _has_storage(tensor):
            return
        key = _storage(tensor)
        if key not in self._storages:
            self._freeze(tensor)
            # each run writes into a copy of its own of what was there
            before, base = self._new(_whole(tensor).clone()), self._new()
            self._steps.append(Step(_aten.clone.default, [None], {}, [(0, None, before)], [], base, storages={key}))
            self._storages[key] = (StorageWeakRef(tensor.untyped_storage()), base, tensor.dtype)
            self._views[key] = {}
        elif self._storages[key][1] == 0:
            self._overwrites = True

    def _outputs(self, step: Step, out: Any, inputs: list[Tensor]) -> None:
        several = isinstance(out, list | tuple)
        for place, value in enumerate(out if several else [out]):
            if not isinstance(value, Tensor):
                if isinstance(value, bool | int | float | complex):
                    step.expected.append((place if several else None, value))
                continue
            if not self._is_plain(value):
                return
            key = _storage(value)
            if key not in self._storages and any(_has_storage(one) and _storage(one) == key for one in inputs):
                self.stop(f"an operation hands on memory that does not depend on it ({step.name})")
                return
            slot = self._new()
            if several:
                step.several.append((place, slot))
            else:
                step.single = slot
            step.shapes.append((slot, value.shape))
            step.storages.add(key)
            self._note(value, slot)

    def _note(self, tensor: Tensor, slot: int) -> None:
        key, part = _storage(tensor), _part(tensor)
        if key not in self._storages:
            self._storages[key] = (StorageWeakRef(tensor.untyped_storage()), slot, tensor.dtype)
            self._views[key] = {}
        self._views[key][part] = slot
        self._slots[id(tensor)] = (weakref.ref(tensor), (key, part), slot)

    def _new(self, value: Tensor | None = None) -> int:
        self._values.append(value)
        return len(self._values) - 1


class _Reads(TorchFunctionMode):
    """Notices methods that give values to Python past the dispatcher."""

    def __init__(self, recorder: TapeRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self._recorder.busy:
            name, place = _READS.get(func) or _LISTS.get(func) or ("", 0)
            read = [*args[place : place + 1], *(kwargs or {}).values()]
            if func in _LISTS:
                read = [value for value in read if not isinstance(value, Tensor)]
            if name and any(map(self._recorder.depends, _tensors(read))):
                self._recorder.stop(f"Python reads values that depend on it ({name})")
        return func(*args, **(kwargs or {}))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@cache
def _writes(func: Any) -> tuple[tuple[int, str], ...]:
    """Which arguments an operation writes into."""
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    found: list[Any] = [args[place] if place < len(args) else kwargs.get(name) for place, name in _writes(func)]
    return list(_tensors(found))


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _part(tensor: Tensor) -> tuple[Any, ...]:
    """Which part of its storage a tensor is, and read how."""
    return (
        tensor.dtype,
        tuple(tensor.size()),
        tensor.stride(),
        tensor.storage_offset(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor's storage, as one row."""
    tensor = tensor.detach()
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def _copy(tensor: Tensor) -> Tensor:
    """The same values in memory of their own, laid out in the same way."""
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.size(), tensor.stride(), strict=True)):
        return _whole(tensor).clone().as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _mode_depth() -> tuple[int, int]:
    return torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()


def _random_states() -> list[Tensor]:
    """Of the generators that tensors come from; Python's own also serves tools that merely look on."""
    states: list[Tensor] = [torch.random.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    legacy: Any = np.random.get_state()  # noqa: NPY002 (users, and libraries that they use, do)
    return [*states, torch.from_numpy(np.append(legacy[1], legacy[2]).astype(np.int64))]


def _same_states(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))
