"""History: how scores have agreed from measurement to measurement."""

from dataclasses import dataclass

from lightning_neuroimp import statistics
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results


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
