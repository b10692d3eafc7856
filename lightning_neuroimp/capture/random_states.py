"""Read and put back the states of the global random generators: Python's, NumPy's, and torch's on each device."""

import random
from collections.abc import Callable
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


def restore(states: States) -> None:
    """Put back what `random_states` has returned."""
    for _, put_back in states.values():
        put_back()
