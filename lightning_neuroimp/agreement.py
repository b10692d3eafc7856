"""Agreement of scores with one another: of a cluster's two halves, and of two epochs."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp import statistics
from lightning_neuroimp.earlier import Earlier
from lightning_neuroimp.results import Drift, Importance, Reliability, Results

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


def drift(one: Importance, before: Earlier) -> Drift | None:
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


@dataclass(frozen=True)
class Agreement:
    """Agreement of one measurement's scores at one site: means over clusters by their size.

    Attributes:
        epoch: of the measurement.
        site: name of the module.
        attribution: name of the score.
        reliability: of the two halves (`Reliability.split_half`).
        stability: rank correlation with the last measured epoch; NaN without one.
    """

    epoch: int
    site: str
    attribution: str
    reliability: float
    stability: float


def agreement(results: Results, one: Importance) -> Agreement:
    """Agreement at one site, all clusters together."""
    size = results.clusters.size
    return Agreement(
        results.epoch,
        one.site,
        one.attribution,
        float(statistics.weighted_mean(one.reliability.split_half, size)),
        float("nan") if one.drift is None else float(statistics.weighted_mean(one.drift.rank_correlation, size)),
    )


def _top(n_neurons: int) -> int:
    return max(1, math.ceil(TOP_SHARE * n_neurons - 1e-9))
