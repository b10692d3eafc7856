"""Importance: attributions at one site, aggregated over clusters."""

from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.results.agreement import Drift, Reliability
from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.record import Record
from lightning_neuroimp.site import Removal


@dataclass(frozen=True, eq=False, repr=False)
class Importance(Record):
    """Attributions at one site, aggregated over each cluster and each half of it.

    Attributes:
        removal: what was scored.
        attribution: name of the score.
        cluster_ids: the clusters' ids, in the order of the rows.
        count: samples per half and cluster that entered (those with finite values).
        half_mean, half_abs_mean, half_square_mean: mean of the attribution, of its absolute value and of its square;
            NaN where a half is empty.
        half_deviation: mean |activation - baseline|, summed over positions: the ranking by size, a reference.
        half_first_order: mean (activation - baseline) x derivative, the effect of removal to first order; of the margin
            for the targets "margin", "probability" and "log_probability", else of the target itself. None where no
            gradients were computed.
        effective_samples: by how many of a cluster's samples the scores would be carried if each had the same weight:
            (sum of s)^2 / sum of s^2, s a sample's sum of absolute attributions (Kish, "Survey Sampling", 1965).
        non_finite: samples left out because of values that were not finite.
        reliability: how well the halves agree.
        drift: since the last measured epoch; None where there is none.
        faithfulness: how removal bears out the scores; None where it was not measured.
    """

    removal: Removal
    attribution: str
    cluster_ids: Int[np.ndarray, " cluster"]
    count: Int[np.ndarray, "half cluster"]
    half_mean: Float[np.ndarray, "half cluster neuron"]
    half_abs_mean: Float[np.ndarray, "half cluster neuron"]
    half_square_mean: Float[np.ndarray, "half cluster neuron"]
    half_deviation: Float[np.ndarray, "half cluster neuron"]
    half_first_order: Float[np.ndarray, "half cluster neuron"] | None
    effective_samples: Float[np.ndarray, " cluster"]
    non_finite: int
    reliability: Reliability
    drift: Drift | None = None
    faithfulness: Faithfulness | None = None

    @property
    def site(self) -> str:
        """The site in words."""
        return self.removal.site

    def _pooled(self, half: Float[np.ndarray, "half cluster neuron"]) -> Float[np.ndarray, "cluster neuron"]:
        weight = self.count[..., None].astype(float)
        total = np.where(weight > 0, half * weight, 0.0).sum(0)
        return np.divide(total, weight.sum(0), out=np.full_like(total, np.nan), where=weight.sum(0) > 0)

    @property
    def mean(self) -> Float[np.ndarray, "cluster neuron"]:
        """Mean attribution over each cluster: the importance by which neurons are ranked, in units of the target."""
        return self._pooled(self.half_mean)

    @property
    def abs_mean(self) -> Float[np.ndarray, "cluster neuron"]:
        """Mean absolute attribution over each cluster."""
        return self._pooled(self.half_abs_mean)

    @property
    def first_order(self) -> Float[np.ndarray, "cluster neuron"] | None:
        """Mean (activation - baseline) x derivative over each cluster; None where no gradients were computed."""
        return None if self.half_first_order is None else self._pooled(self.half_first_order)

    @property
    def deviation(self) -> Float[np.ndarray, "cluster neuron"]:
        """Mean |activation - baseline| over each cluster."""
        return self._pooled(self.half_deviation)

    @property
    def std(self) -> Float[np.ndarray, "cluster neuron"]:
        """Standard deviation of the attribution inside each cluster."""
        return np.sqrt(np.maximum(self._pooled(self.half_square_mean) - self.mean**2, 0.0))

    @property
    def stderr(self) -> Float[np.ndarray, "cluster neuron"]:
        """Standard error of the mean, from the sample standard deviation; NaN for clusters of one."""
        count = self.count.sum(0)[:, None].astype(float)
        return self.std / np.sqrt(np.where(count > 1, count - 1, np.nan))

    def row(self, cluster: SupportsIndex) -> int:
        """Row of a cluster id.

        Raises:
            KeyError: if there is no such cluster.
        """
        found = np.flatnonzero(self.cluster_ids == int(cluster))
        if not len(found):
            raise KeyError(f"no cluster {cluster} at {self.site!r}: the clusters are {self.cluster_ids.tolist()}")
        return int(found[0])

    def top(self, cluster: SupportsIndex, k: int = 10) -> Int[np.ndarray, " top"]:
        """The k most important neurons of a cluster, best first.

        All of them where there are fewer; none where the cluster has no finite values.

        Args:
            cluster: the cluster's id.
            k: how many neurons.

        Raises:
            KeyError: if there is no such cluster.
            ValueError: if k is not positive.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        mean = self.mean[self.row(cluster)]
        return np.argsort(-mean, kind="stable")[: k if np.isfinite(mean).all() else 0]
