"""Keep the identities of clusters from epoch to epoch, by their members."""

import numpy as np
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from lightning_neuroimp.batches.numbers import rows_of
from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement

MIN_OVERLAP = 0.5
"""Smallest Jaccard index between the members of two clusters that can be the same one."""

MAX_RETIRED = 50
"""Upper bound on the number of vanished clusters that are remembered, so that one of the latest can revive."""


def keep_identities(
    number: Int[np.ndarray, " sample"],
    index: Int[np.ndarray, " sample"],
    previous: ClusterTable | PreviousMeasurement | None,
) -> tuple[Int[np.ndarray, " sample"], Int[np.ndarray, " cluster"], Int[np.ndarray, "entry 2"]]:
    """Give new clusters the ids of the old ones that they continue.

    A live cluster keeps its id if its members overlap with the old ones at a Jaccard index of at least .5, under the
    best (Hungarian) matching. Otherwise the retired cluster that overlaps best, at least as much, revives; failing that
    the id is new.

    Args:
        number: cluster of each sample, in any numbering; -1: in none.
        index: number of each sample in the stream.
        previous: the clusters of the measurement before; None: there was none.

    Returns:
        The cluster id of each sample, the sorted ids, and the history for the next measurement: rows (id, sample).
    """
    new = {key: set(index[number == key].tolist()) for key in np.unique(number[number >= 0]).tolist()}
    old: dict[int, set[int]] = {}
    if previous is not None:
        for key, sample in previous.history.tolist():
            old.setdefault(key, set()).add(sample)
    live = set() if previous is None else set(previous.ids.tolist())
    ids: dict[int, int] = {}
    for candidates in (sorted(live & set(old)), sorted(set(old) - live)):
        open_ = [key for key in new if key not in ids]
        if not open_ or not candidates:
            continue
        overlap = np.array([[_jaccard(new[key], old[candidate]) for candidate in candidates] for key in open_])
        overlap[overlap < MIN_OVERLAP] = 0.0  # or two poor pairs could outweigh one good pair
        for row, column in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[row, column]:
                ids[open_[row]] = candidates[column]
    fresh = max(old, default=-1) + 1
    for key in sorted((key for key in new if key not in ids), key=lambda key: (-len(new[key]), key)):
        ids[key] = fresh
        fresh += 1
    named = np.array([ids.get(key, -1) for key in number.tolist()], np.int64)
    retired = sorted(set(old) - set(ids.values()))[-MAX_RETIRED:]
    members = {**{key: old[key] for key in retired}, **{ids[key]: samples for key, samples in new.items()}}
    history = [(key, sample) for key, samples in sorted(members.items()) for sample in sorted(samples)]
    return named, np.array(sorted(ids.values()), np.int64), np.array(history, np.int64).reshape(-1, 2)


def _jaccard(one: set[int], other: set[int]) -> float:
    """Compute the Jaccard index of two sets: the size of their intersection over that of their union."""
    return len(one & other) / len(one | other)


def agreement(
    cluster: Int[np.ndarray, " sample"],
    index: Int[np.ndarray, " sample"],
    previous: ClusterTable | PreviousMeasurement | None,
) -> float:
    """Compute the adjusted Rand index between clusters and those of the measurement before, on the samples in both.

    Args:
        cluster: cluster id of each sample; -1: in none.
        index: sample numbers.
        previous: the clusters of the measurement before; None: there was none.

    Returns:
        1 for the same clusters, about 0 for a chance agreement, NaN without a sample in both.
    """
    if previous is None:
        return float("nan")
    live = previous.history[np.isin(previous.history[:, 0], previous.ids)]
    both = np.isin(index, live[:, 1]) & (cluster >= 0)
    if not both.any():
        return float("nan")
    before = live[rows_of(live[:, 1], index[both]), 0]
    return float(adjusted_rand_score(before, cluster[both]))
