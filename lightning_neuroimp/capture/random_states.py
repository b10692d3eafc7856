"""Read and put back the states of the global random generators: Python's, NumPy's, and torch's on each device."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

States = dict[str, tuple[bytes, Callable[[], None]]]
"""For each generator what tells its state from others, and what puts that state back."""


def random_states() -> States:
    """Return the states of all global generators."""
    python, legacy = random.getstate(), _numpy_state()
    cpu = torch.random.get_rng_state()
    states: States = {
        "random": (repr(python).encode(), partial(random.setstate, python)),
        "numpy.random": (repr(legacy[2:]).encode() + legacy[1].tobytes(), partial(np.random.set_state, legacy)),
        "torch.random": (cpu.numpy().tobytes(), partial(torch.random.set_rng_state, cpu)),
    }
    if torch.cuda.is_initialized():
        for device, state in enumerate(torch.cuda.get_rng_state_all()):
            put_back = partial(torch.cuda.set_rng_state, state, device)
            states[f"torch.cuda.random {device}"] = (state.numpy().tobytes(), put_back)
    return states


def _numpy_state() -> Any:
    """Return the state of NumPy's global generator, which users, and libraries that they use, draw from."""
    return np.random.get_state()  # noqa: NPY002


def same_states(before: States, after: States) -> bool:
    """Tell whether no random number was drawn between two calls of `random_states`."""
    return {name: state for name, (state, _) in before.items()} == {name: state for name, (state, _) in after.items()}


def restore(states: States) -> None:
    """Put back what `random_states` has returned."""
    for _, put_back in states.values():
        put_back()


@contextmanager
def starting_from(states: States) -> Iterator[None]:
    """Run what is inside from given states, and put back afterwards what was there before."""
    before = random_states()
    restore(states)
    try:
        yield
    finally:
        restore(before)
