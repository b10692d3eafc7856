"""History: how scores have agreed from measurement to measurement."""

from dataclasses import dataclass

from lightning_neuroimp import statistics
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results


@dataclass(frozen=True)
class Agreement:
    """Hold how one measurement's scores at one site agree; means over the clusters, weighted by their sizes.

    Attributes:
        epoch: epoch of the measurement.
        site: the site in words.
        attribution: name of the score.
        reliability: agreement of the two halves of a cluster (`Reliability.split_half`).
        stability: rank correlation with the last measured epoch; NaN without one.
    """

    epoch: int
    site: str
    attribution: str
    reliability: float
    stability: float


def agreement(results: Results, importance: Importance) -> Agreement:
    """Summarise how one score at one site agrees, all clusters together.

    Args:
        results: one measurement.
        importance: one of its importances.
    """
    size, drift = results.clusters.size, importance.drift
    return Agreement(
        results.epoch,
        importance.site,
        importance.attribution,
        float(statistics.weighted_mean(importance.reliability.split_half, size)),
        float("nan") if drift is None else float(statistics.weighted_mean(drift.rank_correlation, size)),
    )
