"""Let forward passes of one batch draw the same random numbers, so that what differs is what was ablated."""

import random
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_neuroimp.capture.random_states import States, random_states

_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_DEEPEST = 3  # containers around a generator, in an attribute of a module


class RandomSources:
    """Know the generators that a model may draw from: the global ones, and those that its modules hold.

    Args:
        model: whose modules' attributes are searched, and lists, tuples, dictionaries and sets in them.
    """

    def __init__(self, model: nn.Module) -> None:
        attributes = chain.from_iterable(vars(module).copy().values() for module in model.modules())
        self._own = list({id(found): found for found in _generators(attributes, _DEEPEST)}.values())

    def states(self) -> States:
        """Return the states of all generators, with what puts them back."""
        return {**random_states(), **{f"own {place}": _state_of(own) for place, own in enumerate(self._own)}}


def drawn_from(before: States, after: States) -> set[str]:
    """Return the names of the generators that were drawn from between two calls of `RandomSources.states`."""
    return {name for name in {**before, **after} if before.get(name, _NONE)[0] != after.get(name, _NONE)[0]}


_NONE = (b"", lambda: None)


def _generators(values: Iterable[Any], depth: int) -> Iterator[Any]:
    """Yield the random generators among values and in containers among them."""
    for value in values:
        if isinstance(value, _KINDS):
            if not isinstance(value, random.SystemRandom):  # it has no state
                yield value
        elif depth and isinstance(value, list | tuple | set | dict) and value:
            # copied first, as another thread may change it
            yield from _generators(list(value.values() if isinstance(value, dict) else value), depth - 1)


def _state_of(own: Any) -> tuple[bytes, partial[Any]]:
    """Return what tells a generator's state from others, and what puts that state back."""
    if isinstance(own, torch.Generator):
        state = own.get_state()
        return state.cpu().numpy().tobytes(), partial(own.set_state, state)
    if isinstance(own, np.random.Generator):
        value = own.bit_generator.state
        return _bytes(value), partial(setattr, own.bit_generator, "state", value)
    if isinstance(own, np.random.RandomState):
        return _bytes(own.get_state(legacy=False)), partial(own.set_state, own.get_state(legacy=False))
    python = own.getstate()
    return repr(python).encode(), partial(own.setstate, python)


def _bytes(state: Any) -> bytes:
    """Return the bytes of a nested dictionary of arrays and numbers."""
    if isinstance(state, dict):
        return b"".join(key.encode() + _bytes(value) for key, value in state.items())
    return state.tobytes() if isinstance(state, np.ndarray) else repr(state).encode()
