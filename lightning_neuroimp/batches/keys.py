"""Pseudo-random keys of samples, by which everything that is drawn is drawn."""

import numpy as np
from jaxtyping import Int, UInt64


def sample_keys(index: Int[np.ndarray, " sample"], seed: int) -> UInt64[np.ndarray, " sample"]:
    """A pseudo-random 64-bit key per sample number: the splitmix64 mixer (Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = index.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        # a second round: neighbouring seeds must not give shifted copies of one another's keys
        z = (z ^ (z >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
        return z ^ (z >> np.uint64(29))
