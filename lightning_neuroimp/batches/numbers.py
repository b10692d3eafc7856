"""Derive pseudo-random keys from sample numbers, and find samples in a table by their numbers.

A sample's number is its position in the stream of validation samples; it identifies the sample in every process, batch
and epoch. With several validation loaders the numbers of each begin at a multiple of `LOADER`.
"""

import numpy as np
from jaxtyping import Int, UInt64

LOADER = 2**40
"""Distance between the sample numbers of different validation loaders, which must not overlap."""


def sample_keys(index: Int[np.ndarray, " sample"], seed: int) -> UInt64[np.ndarray, " sample"]:
    """Return a pseudo-random 64-bit key per sample number.

    Args:
        index: sample numbers.
        seed: another seed gives other keys.

    References:
        The splitmix64 mixer: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        z = index.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        # a second round: neighbouring seeds must not give shifted copies of one another's keys
        z = (z ^ (z >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
        return z ^ (z >> np.uint64(29))


FEW_VALUES = (16, 0.1)
"""Data take few values where fewer contents than the first, or than the second as a share of the samples, differ."""


def are_copies(fingerprint: Int[np.ndarray, " sample"]) -> bool:
    """Tell whether samples of the same content are copies of one another.

    Data that take few values, such as a handful of binary features, repeat them by chance.

    Args:
        fingerprint: checksum of each sample's content.

    >>> are_copies(np.repeat(np.arange(100), 2)), are_copies(np.repeat(np.arange(8), 50))
    (True, False)
    """
    n_distinct = len(np.unique(fingerprint))
    return n_distinct >= max(FEW_VALUES[0], FEW_VALUES[1] * len(fingerprint))


def rows_of(index: Int[np.ndarray, " sample"], numbers: Int[np.ndarray, " asked"]) -> Int[np.ndarray, " asked"]:
    """Return the row of each asked sample in a table.

    Args:
        index: sample number of each row, in any order, each once.
        numbers: the samples that are asked for.

    Raises:
        KeyError: if a sample is not in the table.

    >>> rows_of(np.array([7, 3, 5]), np.array([5, 7]))
    array([2, 0])
    """
    order = np.argsort(index, kind="stable")
    place = np.minimum(np.searchsorted(index, numbers, sorter=order), max(len(index) - 1, 0))
    rows = order[place] if len(index) else np.zeros(len(numbers), np.int64)
    missing = numbers[index[rows] != numbers] if len(index) else numbers
    if len(missing):
        raise KeyError(f"the table does not hold the samples {missing[:5].tolist()}")
    return rows
