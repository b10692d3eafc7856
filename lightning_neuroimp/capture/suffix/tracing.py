"""Record what a forward pass computes from one tensor on, operation by operation.

Recorded are the operations that torch dispatches, not the user's Python. Those that depend on the tensor go onto the
tape; whatever else they read is a constant. Dependence is a property of memory, not of tensors: a view, an alias or a
buffer that something dependent was written into is followed by its storage.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_neuroimp import _compat
from lightning_neuroimp.capture.suffix.reads import ReadsMode, tensors_in
from lightning_neuroimp.capture.suffix.storage import (
    Geometry,
    copy_of,
    geometry_of,
    has_storage,
    storage_of,
    whole_storage,
)
from lightning_neuroimp.capture.suffix.tape import Fill, Slot, Step, Tape

_REARRANGING = ("aten::resize_", "aten::resize_as_", "aten::set_", "aten::_resize_output_", "aten::set_data")
"""Operations by which a storage changes its size or its owner, after which its views cannot be made again."""


class _Memory(NamedTuple):
    """Hold what is known of memory that depends on the activations.

    Attributes:
        alive: keeps the storage's identity from being given to other memory.
        slot: of the first value in it.
        dtype: of that value.
    """

    alive: Any
    slot: int
    dtype: torch.dtype


class _Known(NamedTuple):
    """Hold the slot of one tensor object, as long as it lives and is the same part of the same memory."""

    tensor: "weakref.ref[Tensor]"
    storage: int
    geometry: Geometry
    slot: int


class TapeRecorder(_compat.TorchDispatchMode):
    """Record one forward pass from the tensor on that `start` is given.

    Example:
        recorder = TapeRecorder()
        with recorder.watch():
            recorder.start(activation := first_half(x))
            logits = second_half(activation)
        tape = recorder.finish((logits,))

    Attributes:
        reason: why no tape can be made; None while recording is still possible.
        started: whether the pass has reached the site.
        busy: whether the recorder itself is looking at tensors.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.reason: str | None = None
        self.started = False
        self.busy = False
        self._steps: list[Step] = []
        self._values: list[Any] = []  # constants by slot
        self._overwrites = False
        self._modes, self._depth = ExitStack(), (0, 0)
        self._memory: dict[int, _Memory] = {}  # by storage; memory that depends on the activations
        self._views: dict[int, dict[Geometry, int]] = {}  # slot by storage and which part of it a tensor is
        self._known: dict[int, _Known] = {}  # by identity of the tensor
        self._constants: dict[tuple[int, int, Geometry], int] = {}  # slot by identity of the tensor, and its memory
        self._captured: dict[int, list[tuple[Tensor, int]]] = {}  # constants by storage; keeps the tensors alive

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch the one forward pass inside this context.

        The modes that see operations are entered where `start` is called and left at the end, so that the part of the
        pass before the site runs at its full speed.
        """
        self._depth = _compat.mode_depths()
        with self._modes:
            yield

    def stop(self, reason: str) -> None:
        """Give up the tape; the pass goes on unrecorded.

        Args:
            reason: why no tape can be made; the first one is kept.
        """
        if self.reason is None:
            self.reason = reason
        self._release()

    def _release(self) -> None:
        """Let go of all tensors."""
        self._steps, self._values = [], []
        self._captured.clear()
        self._constants.clear()

    def start(self, activation: Tensor) -> None:
        """Record, from here on, whatever depends on this tensor."""
        self.started = True
        if _compat.mode_depths() != self._depth:  # ours would be left before one that was entered earlier
            self.stop("the forward pass reaches it inside a mode for torch's functions or operations")
        if self.reason is None and self._is_plain(activation):
            self._values.append(None)
            self._register(activation, 0)
            report = lambda name: self.stop(f"Python reads values that depend on it ({name})")  # noqa: E731
            self._modes.enter_context(ReadsMode(lambda: self.busy, self.depends, report))
            self._modes.enter_context(self)

    def depends(self, tensor: Tensor) -> bool:
        """Tell whether the tensor's memory depends on the activations."""
        return self.started and has_storage(tensor) and storage_of(tensor) in self._memory

    def finish(self, outputs: Sequence[Any]) -> Tape | None:
        """Return the tape that leads to these outputs; None where `reason` says why there is none.

        Args:
            outputs: tensors of the pass; those that do not depend on the activations are constants.
        """
        dependent = [isinstance(output, Tensor) and self.depends(output) for output in outputs]
        found: list[Any] = []
        for output, depends in zip(outputs, dependent, strict=True):
            if self.reason is None:
                found.append(Slot(self._slot(output)) if depends else output)
        if self.reason is not None:
            return None
        needed = {storage_of(output) for output, depends in zip(outputs, dependent, strict=True) if depends}
        tape = Tape(self._steps, self._values, found, needed, overwrites=self._overwrites)
        self._release()
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
        if not _compat.is_operation(func):
            self.stop(f"an operation of a higher order follows it ({func})")
            return func(*args, **kwargs)
        if func.namespace in _compat.COLLECTIVE:  # also of weights: sharded modules gather them and give them back
            self.stop(f"processes exchange data after it ({func.name()})")
            return func(*args, **kwargs)
        self.busy = True
        try:
            return self._run(func, args, kwargs)
        finally:
            self.busy = False

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation of torch, and record it if it reads or writes memory that depends on the activations."""
        tensors = list(tensors_in((*args, *kwargs.values())))
        written = _written(func, args, kwargs)
        if not any(map(self.depends, tensors)):
            for tensor in written:
                self._preserve_constants(tensor)
            return func(*args, **kwargs)
        if func.name().partition(".")[0] in _REARRANGING:
            self.stop(f"memory changes its size or owner after it ({func.name()})")
        if self.reason is not None:
            return func(*args, **kwargs)
        for tensor in written:
            self._make_dependent(tensor)
        arguments, fills = self._template(list(args), enumerate(args))
        keywords, named = self._template(dict(kwargs), kwargs.items())
        step = Step(func, arguments, keywords, fills, named)
        step.dynamic = func.namespace not in ("aten", "prims") or torch.Tag.dynamic_output_shape in func.tags
        step.read = {storage_of(tensor) for tensor in tensors if self.depends(tensor)}
        step.storages = {storage_of(tensor) for tensor in written if has_storage(tensor)}
        out = func(*args, **kwargs)
        if self.reason is None:
            self._record_outputs(step, out, tensors)
            self._steps.append(step)
        return out

    def _is_plain(self, tensor: Tensor) -> bool:
        """Tell whether a result can be followed by its memory; stop if not."""
        if not has_storage(tensor):
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            self.stop(f"results that depend on it are {kind} tensors")
        return self.reason is None

    def _template(self, template: Any, items: Any) -> tuple[Any, list[Fill]]:
        """Return arguments with their constants in place, and what is to be filled in.

        Args:
            template: a copy of the arguments, changed in place.
            items: place or keyword of each argument, and its value.
        """
        fills: list[Fill] = []
        for place, value in items:
            if isinstance(value, Tensor):
                fills.append((place, None, self._slot(value)))
                template[place] = None
            elif isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
                template[place] = [None if isinstance(part, Tensor) else part for part in value]
                fills += [(place, i, self._slot(part)) for i, part in enumerate(value) if isinstance(part, Tensor)]
        return template, fills

    def _slot(self, tensor: Tensor) -> int:
        """Return the slot that holds the tensor's value at this moment of a run."""
        if not has_storage(tensor):  # a sparse matrix, say, that does not depend on anything
            return self._new_slot(tensor)
        storage = storage_of(tensor)
        if storage not in self._memory:
            return self._constant(tensor, storage)
        geometry = geometry_of(tensor)
        known = self._known.get(id(tensor))
        if known is not None and known.tensor() is tensor and (known.storage, known.geometry) == (storage, geometry):
            return known.slot
        slot = self._views[storage].get(geometry)
        if slot is not None:
            return slot
        memory = self._memory[storage]
        if memory.dtype != tensor.dtype or tensor.is_conj() or tensor.is_neg():
            self.stop("memory is read as of two types after it")
            return 0
        # a view that was made before the memory depended on anything, or that torch did not dispatch
        slot = self._new_slot()
        where = [list(tensor.size()), list(tensor.stride()), tensor.storage_offset()]
        fills: list[Fill] = [(0, None, memory.slot)]
        self._steps.append(Step(_compat.AS_STRIDED, [None, *where], {}, fills, [], slot, storages={storage}))
        self._views[storage][geometry] = slot
        return slot

    def _constant(self, tensor: Tensor, storage: int) -> int:
        """Return the slot of a tensor that does not depend on the activations."""
        identity = (id(tensor), storage, geometry_of(tensor))
        slot = self._constants.get(identity)
        if slot is None:
            slot = self._constants[identity] = self._new_slot(tensor.detach())
            self._captured.setdefault(storage, []).append((tensor, slot))
        return slot

    def _preserve_constants(self, tensor: Tensor) -> None:
        """Copy the constants in this tensor's memory, which is going to be written: they keep what they had."""
        if not has_storage(tensor):
            return
        storage = storage_of(tensor)
        for _, slot in self._captured.pop(storage, []):
            self._values[slot] = copy_of(self._values[slot])
        self._constants = {identity: slot for identity, slot in self._constants.items() if identity[1] != storage}

    def _make_dependent(self, tensor: Tensor) -> None:
        """Note that something that depends on the activations is going to be written into this tensor's memory."""
        if not has_storage(tensor):
            return
        storage = storage_of(tensor)
        if storage not in self._memory:
            self._preserve_constants(tensor)
            # each run writes into its own copy of what was there
            before, base = self._new_slot(whole_storage(tensor).clone()), self._new_slot()
            self._steps.append(Step(_compat.CLONE, [None], {}, [(0, None, before)], [], base, storages={storage}))
            self._begin_memory(tensor, base)
        elif self._memory[storage].slot == 0:
            self._overwrites = True

    def _record_outputs(self, step: Step, out: Any, inputs: list[Tensor]) -> None:
        """Give the results of a step their slots."""
        several = isinstance(out, list | tuple)
        for place, value in enumerate(out if several else [out]):
            if not isinstance(value, Tensor):
                if isinstance(value, bool | int | float | complex):
                    step.expected.append((place if several else None, value))
                continue
            if not self._is_plain(value):
                return
            storage = storage_of(value)
            shared = any(has_storage(tensor) and storage_of(tensor) == storage for tensor in inputs)
            if storage not in self._memory and shared:
                self.stop(f"an operation hands on memory that does not depend on it ({step.name})")
                return
            slot = self._new_slot()
            if several:
                step.several.append((place, slot))
            else:
                step.single = slot
            step.shapes.append((slot, value.shape))
            step.storages.add(storage)
            self._register(value, slot)

    def _register(self, tensor: Tensor, slot: int) -> None:
        """Note which slot holds a tensor that depends on the activations."""
        storage, geometry = storage_of(tensor), geometry_of(tensor)
        if storage not in self._memory:
            self._begin_memory(tensor, slot)
        self._views[storage][geometry] = slot
        self._known[id(tensor)] = _Known(weakref.ref(tensor), storage, geometry, slot)

    def _begin_memory(self, tensor: Tensor, slot: int) -> None:
        """Note that a tensor's memory depends on the activations from now on."""
        storage = storage_of(tensor)
        self._memory[storage] = _Memory(_compat.StorageWeakRef(tensor.untyped_storage()), slot, tensor.dtype)
        self._views[storage] = {}

    def _new_slot(self, value: Tensor | None = None) -> int:
        """Return a new slot: of a constant, or for a value that a step makes."""
        self._values.append(value)
        return len(self._values) - 1


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation writes into."""
    places = _compat.written_arguments(func)
    found: list[Any] = [args[place] if place < len(args) else kwargs.get(name) for place, name in places]
    return list(tensors_in(found))
