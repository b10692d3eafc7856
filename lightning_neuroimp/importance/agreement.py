"""How well scores agree: between the halves of a cluster, and between two epochs."""

import math

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp import statistics
from lightning_neuroimp.results.agreement import Drift, Reliability
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.previous import PreviousMeasurement

TOP_SHARE = 0.1


def reliability(
    half_mean: Float[np.ndarray, "half cluster neuron"], count: Int[np.ndarray, "half cluster"]
) -> Reliability:
    """How well the halves agree.

    Args:
        half_mean: importances of each half.
        count: samples that they are means of.
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


def drift(one: Importance, before: PreviousMeasurement) -> Drift | None:
    """How importances have changed, cluster by cluster of the same identity; None where there were none.

    Args:
        one: now.
        before: the measurement before.
    """
    now, then = one.mean, before.means.get((one.site, one.attribution))
    if then is None:
        return None
    row_of = {cluster: row for row, cluster in enumerate(before.ids.tolist())}
    correlation, overlap = np.full((2, len(now)), np.nan)
    for row, cluster in enumerate(one.cluster_ids.tolist()):
        if cluster in row_of and now.shape[1] == then.shape[1]:
            pair = now[row], then[row_of[cluster]]
            correlation[row] = statistics.rank_correlation(*pair)
            overlap[row] = statistics.top_overlap(*pair, _top(now.shape[1]))[0]
    return Drift(before.epoch, correlation, overlap)


def _top(n_neurons: int) -> int:
    return max(1, math.ceil(TOP_SHARE * n_neurons - 1e-9))
