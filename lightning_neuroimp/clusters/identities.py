"""Identities of clusters, kept from epoch to epoch by their members."""

import numpy as np
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from lightning_neuroimp.batches.numbers import rows_of
from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.previous import PreviousMeasurement

MIN_OVERLAP = 0.5


MAX_RETIRED = 50
"""So many vanished clusters are remembered, the latest ones, so that one of them can revive."""


def keep_identities(
    number: Int[np.ndarray, " sample"],
    index: Int[np.ndarray, " sample"],
    previous: ClusterTable | PreviousMeasurement | None,
) -> tuple[Int[np.ndarray, " sample"], Int[np.ndarray, " cluster"], Int[np.ndarray, "entry 2"]]:
    """Give new clusters the ids of the old ones that they continue.

    A live cluster's id goes on where members overlap at a Jaccard index of at least .5 under the best (Hungarian)
    matching; else the retired cluster that overlaps best, at least as much, revives; else the id is new.

    Args:
        number: each sample's cluster, in any numbering; -1: in none.
        index: each sample's number in the stream.
        previous: the last epoch's clusters.

    Returns:
        Each sample's cluster id, the sorted ids, and the history to hand on.
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
        overlap = np.array([[_jaccard(new[one], old[other]) for other in candidates] for one in open_])
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
    return len(one & other) / len(one | other)


def agreement(
    cluster: Int[np.ndarray, " sample"],
    index: Int[np.ndarray, " sample"],
    previous: ClusterTable | PreviousMeasurement | None,
) -> float:
    """Return the adjusted Rand index between clusters and the last epoch's, on the samples in both.

    Args:
        cluster: cluster id of each sample; -1: in none.
        index: sample numbers.
        previous: the last epoch's clusters.

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
