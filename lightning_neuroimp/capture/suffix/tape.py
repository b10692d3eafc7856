"""Tape: operations of a forward pass that can be run again with other activations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class TapeBroken(Exception):  # noqa: N818 (it is no error of anybody's)
    """The operations depend on the values: with these activations the recorded ones are not what the model would do."""


@dataclass(frozen=True)
class Slot:
    """A place for a value of a run."""

    number: int


@dataclass
class Step:
    """One operation. `fills` and `named` say where its arguments are values computed before: (place, inner, slot)."""

    operation: Callable[..., Any]
    arguments: list[Any]
    keywords: dict[str, Any]
    fills: list[tuple[Any, int | None, int]]
    named: list[tuple[Any, int | None, int]]
    single: int | None = None
    several: list[tuple[int, int]] = field(default_factory=list)
    expected: list[tuple[int | None, object]] = field(default_factory=list)  # plain values that Python was given
    shapes: list[tuple[int, torch.Size]] = field(default_factory=list)
    dynamic: bool = False  # whether the shapes may depend on values
    storages: set[int] = field(default_factory=set)  # that it makes, hands on or writes into
    read: set[int] = field(default_factory=set)  # storages of the values that it reads
    drop: list[int] = field(default_factory=list)  # slots that are not needed any more

    @property
    def name(self) -> str:
        """That of the operation."""
        return str(getattr(self.operation, "_schema", self.operation)).split("(")[0]


class Tape:
    """Operations that can be run again.

    Attributes:
        signature: the names of its operations: tapes that differ in it come from different ways through the model.
        overwrites: whether running it writes into the activations that it is given.

    Args:
        steps: as recorded.
        values: constants by slot; None where a step makes the value, and in the first slot, the activations'.
        outputs: slots, or what does not depend on the activations.
        needed: storages of the outputs.
        overwrites: as above.
    """

    def __init__(
        self, steps: list[Step], values: list[Any], outputs: Sequence[Any], needed: set[int], *, overwrites: bool
    ) -> None:
        self._outputs, self.overwrites = outputs, overwrites
        self.signature = tuple(step.name for step in steps)
        self._steps = self._needed(steps, needed)
        used = {slot for step in self._steps for _, _, slot in (*step.fills, *step.named)}
        self._values = [value if slot in used else None for slot, value in enumerate(values)]
        self._forget()

    @staticmethod
    def _needed(steps: list[Step], needed: set[int]) -> list[Step]:
        """Without operations on memory that nothing reads afterwards; but Python may have read what they give."""
        kept = []
        for step in reversed(steps):
            if step.expected or step.dynamic or not needed.isdisjoint(step.storages):
                kept.append(step)
                needed = needed | step.storages | step.read
        return kept[::-1]

    def _forget(self) -> None:
        """Drop each value after its last use, so that a run needs no more memory than the model does."""
        last: dict[int, int] = {}
        for number, step in enumerate(self._steps):
            for _, _, slot in (*step.fills, *step.named):
                last[slot] = number
            for slot in _made(step):
                last.setdefault(slot, number)
        kept = {output.number for output in self._outputs if isinstance(output, Slot)}
        for slot, number in last.items():
            if slot not in kept and self._values[slot] is None:
                self._steps[number].drop.append(slot)

    def __len__(self) -> int:
        return len(self._steps)

    def run(self, activation: Tensor) -> tuple[Any, ...]:
        """The outputs that other activations lead to.

        Args:
            activation: of the recorded one's shape, strides and type; overwritten where `overwrites` says so.

        Raises:
            TapeBroken: if what Python has read of the values, or a shape, is not what was recorded.
        """
        values = self._values.copy()
        values[0], device = activation, activation.device.type
        del activation  # so that it goes after its last use, like all other values
        # the casts that autocast made are on the tape; it must not make them again, or where it was off
        casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if casts else nullcontext():
            for step in self._steps:
                _run(step, values)
        return tuple(values[output.number] if isinstance(output, Slot) else output for output in self._outputs)


def _run(step: Step, values: list[Any]) -> None:
    arguments = _fill(step.arguments, step.fills, values)
    if step.keywords:
        out = step.operation(*arguments, **_fill(step.keywords, step.named, values))
    else:
        out = step.operation(*arguments)
    if step.single is not None:
        values[step.single] = out
    for place, slot in step.several:
        values[slot] = out[place]
    for where, value in step.expected:
        if (out if where is None else out[where]) != value:
            raise TapeBroken(f"Python reads values that depend on it ({step.name})")
    for slot, shape in step.shapes:
        if values[slot].shape != shape:
            raise TapeBroken(f"the shape of a result depends on its values ({step.name})")
    for slot in step.drop:
        values[slot] = None


def _fill(template: Any, fills: list[tuple[Any, int | None, int]], values: list[Any]) -> Any:
    filled = template.copy()
    for place, inner, slot in fills:
        if inner is None:
            filled[place] = values[slot]
        else:
            if filled[place] is template[place]:
                filled[place] = list(template[place])
            filled[place][inner] = values[slot]
    return filled


def _made(step: Step) -> Iterator[int]:
    if step.single is not None:
        yield step.single
    for _, slot in step.several:
        yield slot
