"""Hold the operations of a forward pass on a tape, and run them again with other activations."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Fill = tuple[Any, int | None, int]
"""An argument that is a value computed before: its place or keyword, its place in a list there (or None), its slot."""


class TapeBroken(Exception):
    """Say that operations depend on the values: with these activations the model would not do what was recorded."""


@dataclass(frozen=True)
class Slot:
    """Name the place of a value of a run."""

    number: int


@dataclass
class Step:
    """Hold one operation.

    Attributes:
        operation: of torch, called with the arguments and keywords once `fills` and `named` are filled in.
        arguments: constants, and None where a value is filled in.
        keywords: the same for keyword arguments.
        fills: arguments that are values computed before.
        named: keyword arguments that are values computed before.
        single: slot of the result; None if there are several results, or none.
        several: place and slot of each of several results.
        expected: place and value of plain numbers among the results, which Python was given.
        shapes: slot and shape of each result.
        dynamic: whether the shapes may depend on values.
        storages: memory that the operation makes, hands on or writes into.
        read: memory of the values that it reads.
        drop: slots that are not needed afterwards.
    """

    operation: Any
    arguments: list[Any]
    keywords: dict[str, Any]
    fills: list[Fill]
    named: list[Fill]
    single: int | None = None
    several: list[tuple[int, int]] = field(default_factory=list)
    expected: list[tuple[int | None, object]] = field(default_factory=list)
    shapes: list[tuple[int, torch.Size]] = field(default_factory=list)
    dynamic: bool = False
    storages: set[int] = field(default_factory=set)
    read: set[int] = field(default_factory=set)
    drop: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the operation's name, such as `aten::add.Tensor`."""
        return self.operation.name()

    @property
    def inputs(self) -> Iterator[int]:
        """Yield the slots that the step reads."""
        for _, _, slot in (*self.fills, *self.named):
            yield slot

    @property
    def outputs(self) -> Iterator[int]:
        """Yield the slots that the step writes."""
        if self.single is not None:
            yield self.single
        for _, slot in self.several:
            yield slot

    def run(self, values: list[Any]) -> None:
        """Call the operation on the values in its slots, and put its results into theirs.

        Args:
            values: by slot; changed in place.

        Raises:
            TapeBroken: if a number that Python was given, or a shape, is not what was recorded.
        """
        arguments = _fill(self.arguments, self.fills, values)
        if self.keywords:
            out = self.operation(*arguments, **_fill(self.keywords, self.named, values))
        else:
            out = self.operation(*arguments)
        if self.single is not None:
            values[self.single] = out
        for place, slot in self.several:
            values[slot] = out[place]
        for where, value in self.expected:
            if (out if where is None else out[where]) != value:
                raise TapeBroken(f"Python reads values that depend on it ({self.name})")
        for slot, shape in self.shapes:
            if values[slot].shape != shape:
                raise TapeBroken(f"the shape of a result depends on its values ({self.name})")
        for slot in self.drop:
            values[slot] = None


class Tape:
    """Run recorded operations again.

    Attributes:
        signature: names of all recorded operations: tapes that differ in it took different ways through the model.
        overwrites: whether running it writes into the activations that it is given.

    Args:
        steps: as recorded.
        values: constants by slot; None where a step makes the value, and in slot 0, which is for the activations.
        outputs: slots, or whatever does not depend on the activations.
        needed: storages of the outputs.
        overwrites: as above.
    """

    def __init__(
        self, steps: list[Step], values: list[Any], outputs: Sequence[Any], needed: set[int], *, overwrites: bool
    ) -> None:
        self._outputs, self.overwrites = outputs, overwrites
        self.signature = tuple(step.name for step in steps)
        self._steps = _needed_steps(steps, needed)
        used = {slot for step in self._steps for slot in step.inputs}
        self._values = [value if slot in used else None for slot, value in enumerate(values)]
        self._drop_after_last_use()

    def _drop_after_last_use(self) -> None:
        """Note where each value is used last, so that a run needs no more memory than the model does."""
        last: dict[int, int] = {}
        for number, step in enumerate(self._steps):
            for slot in step.inputs:
                last[slot] = number
            for slot in step.outputs:
                last.setdefault(slot, number)
        kept = {output.number for output in self._outputs if isinstance(output, Slot)}
        for slot, number in last.items():
            if slot not in kept and self._values[slot] is None:
                self._steps[number].drop.append(slot)

    def __len__(self) -> int:
        return len(self._steps)

    def run(self, activation: Tensor) -> tuple[Any, ...]:
        """Return the outputs that other activations lead to.

        Args:
            activation: of the recorded one's shape, strides and type; overwritten where `overwrites` says so.

        Raises:
            TapeBroken: if what Python has read of the values, or a shape, is not what was recorded.
        """
        values = self._values.copy()
        values[0], device = activation, activation.device.type
        del activation  # so that it is freed after its last use, like all other values
        # the casts that autocast made are on the tape; it must not make them again, or where it was off
        casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if casts else nullcontext():
            for step in self._steps:
                step.run(values)
        return tuple(values[output.number] if isinstance(output, Slot) else output for output in self._outputs)


def _needed_steps(steps: list[Step], needed: set[int]) -> list[Step]:
    """Leave out operations on memory that nothing reads afterwards, unless Python may have read their results."""
    kept = []
    for step in reversed(steps):
        if step.expected or step.dynamic or not needed.isdisjoint(step.storages):
            kept.append(step)
            needed = needed | step.storages | step.read
    return kept[::-1]


def _fill(template: Any, fills: list[Fill], values: list[Any]) -> Any:
    """Return a copy of arguments with values filled in."""
    filled = template.copy()
    for place, inner, slot in fills:
        if inner is None:
            filled[place] = values[slot]
        else:
            if filled[place] is template[place]:
                filled[place] = list(template[place])
            filled[place][inner] = values[slot]
    return filled
