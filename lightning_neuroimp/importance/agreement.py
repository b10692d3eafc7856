"""Measure how well scores agree: between the halves of a cluster, and between two epochs."""

import math

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp import statistics
from lightning_neuroimp.results.agreement import Drift, Reliability
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement

TOP_SHARE = 0.1
"""Share of the neurons whose overlap is measured."""


def reliability(
    half_mean: Float[np.ndarray, "half cluster neuron"], count: Int[np.ndarray, "half cluster"]
) -> Reliability:
    """Measure how well the importances from the two halves of each cluster agree.

    Args:
        half_mean: mean score on each half.
        count: number of samples in each half.
    """
    k = _top(half_mean.shape[-1])
    split_half, overlap = [], []
    for one, other in zip(*half_mean, strict=True):
        split_half.append(statistics.split_half_reliability(one, other))
        overlap.append(statistics.top_overlap(one, other, k)[0])
    needed = [
        statistics.samples_needed(value, float(size)) for value, size in zip(split_half, count.sum(0), strict=True)
    ]
    chance = k / (2 * half_mean.shape[-1] - k)
    return Reliability(np.array(split_half, float), k, np.array(overlap, float), chance, np.array(needed, float))


def drift(importance: Importance, before: PreviousMeasurement) -> Drift | None:
    """Measure how importances have changed since the measurement before, for each cluster of the same identity.

    Args:
        importance: the importance of this measurement.
        before: the measurement before.

    Returns:
        Correlation and overlap of each cluster, NaN for new ones; None if the score was not measured before.
    """
    now, then = importance.mean, before.means.get((importance.site, importance.attribution))
    if then is None:
        return None
    row_of = {cluster: row for row, cluster in enumerate(before.ids.tolist())}
    correlation, overlap = np.full((2, len(now)), np.nan)
    for row, cluster in enumerate(importance.cluster_ids.tolist()):
        if cluster in row_of and now.shape[1] == then.shape[1]:
            pair = now[row], then[row_of[cluster]]
            correlation[row] = statistics.rank_correlation(*pair)
            overlap[row] = statistics.top_overlap(*pair, _top(now.shape[1]))[0]
    return Drift(before.epoch, correlation, overlap)


def _top(n_neurons: int) -> int:
    """Return the number of top neurons: a tenth of all, rounded up."""
    return max(1, math.ceil(TOP_SHARE * n_neurons - 1e-9))
