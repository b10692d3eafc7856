"""Importance: attributions at one site, aggregated over clusters."""

from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp import _validate
from lightning_neuroimp.results.agreement import Drift, Reliability
from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.record import Record
from lightning_neuroimp.site import Removal

ORDER = "progressive_gradient"
"""Key of the score whose importances are an order of the neurons: they predict no effects."""


@dataclass(frozen=True, eq=False, repr=False)
class Importance(Record):
    """Hold the importances of one site's neurons: one attribution, averaged over each half of each cluster.

    `mean` has the importances of whole clusters; all of its relatives are in the unit of the target (logits for the
    margin), but for `deviation`, which is in that of the activations.

    Attributes:
        removal: site, baseline and target that the scores are for.
        attribution: name of the score.
        attribution_kind: key of the built-in score; "own" for a user's function, whatever its name is.
        cluster_ids: ids of the clusters, in the order of the rows.
        count: number of samples with finite values.
        half_mean: mean attribution; NaN where a half is empty.
        half_abs_mean: mean absolute attribution; NaN likewise.
        half_square_mean: mean squared attribution; NaN likewise.
        half_deviation: mean |activation - baseline|, summed over positions: the reference ranking by activation size.
        half_first_order: mean (activation - baseline) x gradient, the effect of removal to first order; of the margin
            for the targets "margin", "probability" and "log_probability", otherwise of the target itself. None where no
            gradients were computed.
        effective_samples: number of equally weighted samples that would carry the cluster's scores: (sum of s)^2 over
            the sum of s^2, with s a sample's sum of absolute attributions.
        non_finite: number of samples left out because of values that were not finite.
        reliability: agreement of the halves.
        drift: change since the last measured epoch; None without one.
        faithfulness: how removal supports the ranking; None where it was not measured.
        cluster_names: names of the clusters, in the order of the rows.

    References:
        Kish, "Survey Sampling", 1965 (effective sample size).

    >>> import torch
    >>> from lightning_neuroimp import neuron_importance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> results = neuron_importance(model, [(torch.randn(20, 4), torch.arange(20) % 2)], layers="1")
    >>> results["1"].mean.shape, len(results["1"].top(0, k=3))
    ((2, 8), 3)
    """

    removal: Removal
    attribution: str
    attribution_kind: str
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
    cluster_names: tuple[str, ...] = ()

    @property
    def site(self) -> str:
        """Return the site in words."""
        return self.removal.site

    @property
    def mean(self) -> Float[np.ndarray, "cluster neuron"]:
        """Return the mean attribution over each cluster: the importance by which neurons are ranked."""
        return self._pooled(self.half_mean)

    @property
    def abs_mean(self) -> Float[np.ndarray, "cluster neuron"]:
        """Return the mean absolute attribution over each cluster."""
        return self._pooled(self.half_abs_mean)

    @property
    def first_order(self) -> Float[np.ndarray, "cluster neuron"] | None:
        """Return the mean (activation - baseline) x gradient over each cluster; None without gradients."""
        return None if self.half_first_order is None else self._pooled(self.half_first_order)

    @property
    def deviation(self) -> Float[np.ndarray, "cluster neuron"]:
        """Return the mean |activation - baseline| over each cluster."""
        return self._pooled(self.half_deviation)

    @property
    def std(self) -> Float[np.ndarray, "cluster neuron"]:
        """Return the standard deviation of the attribution within each cluster."""
        return np.sqrt(np.maximum(self._pooled(self.half_square_mean) - self.mean**2, 0.0))

    @property
    def stderr(self) -> Float[np.ndarray, "cluster neuron"]:
        """Return the standard error of the mean, from the sample standard deviation; NaN for clusters of one."""
        count = self.count.sum(0)[:, None].astype(float)
        return self.std / np.sqrt(np.where(count > 1, count - 1, np.nan))

    def row(self, cluster: SupportsIndex | str) -> int:
        """Return the row of a cluster.

        Args:
            cluster: id or name of the cluster.

        Raises:
            KeyError: if there is no such cluster.
        """
        if isinstance(cluster, str):
            if self.cluster_names.count(cluster) == 1:
                return self.cluster_names.index(cluster)
            several = cluster in self.cluster_names
            hint = (
                f"several have this name; pass one of the ids {self.cluster_ids.tolist()}"
                if several
                else _validate.closest(cluster, self.cluster_names, "clusters")
            )
            raise KeyError(f"no cluster {_validate.shown(cluster)} at {self.site!r}: {hint}")
        found = np.flatnonzero(self.cluster_ids == int(cluster))
        if not len(found):
            raise KeyError(f"no cluster {cluster} at {self.site!r}: the clusters are {self.cluster_ids.tolist()}")
        return int(found[0])

    def top(self, cluster: SupportsIndex | str, k: int = 10) -> Int[np.ndarray, " top"]:
        """Return the numbers of the most important neurons of a cluster, best first.

        Args:
            cluster: id or name of the cluster, such as `0` or `"label 0"`.
            k: upper bound on the number of neurons.

        Returns:
            k neurons, or all where there are fewer; none where the cluster has no finite importances.

        Raises:
            KeyError: if there is no such cluster.
            InvalidArgument: if k is no positive integer.
        """
        k = _validate.integer("k", k, least=1)
        mean = self.mean[self.row(cluster)]
        return np.argsort(-mean, kind="stable")[: k if np.isfinite(mean).all() else 0]

    def _pooled(self, half: Float[np.ndarray, "half cluster neuron"]) -> Float[np.ndarray, "cluster neuron"]:
        """Average the halves by their numbers of samples; NaN where both are empty."""
        weight = self.count[..., None].astype(float)
        total = np.where(weight > 0, half * weight, 0.0).sum(0)
        return np.divide(total, weight.sum(0), out=np.full_like(total, np.nan), where=weight.sum(0) > 0)
