"""Faithfulness: deletion curves of a ranking against random removal."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Overall:
    """Faithfulness of a site as a whole: all clusters together, weighted by their sizes.

    Attributes:
        intact_accuracy: accuracy with all neurons, 0 to 1.
        accuracy: the deletion curve, most important neurons first.
        random_accuracy: the same for each random order.
        reference_accuracy: the same for each reference ranking.
        gap: mean over the numbers of removed neurons of (accuracy under random removal - accuracy under removal of
            the most important), in accuracy (0 to 1).
        relative_gap: gap over the mean accuracy under random removal.
        p_value: share of random orders with a gap at least as large, the ranking itself counted.
        p_value_worse: the same for a gap at most as large.
        lds: linear datamodeling score, the correlation of predicted with measured joint effects, mean over clusters.
        verdict: in words.
        reference_gap: gap of each reference ranking.
        reference_interval: 95% of (gap - gap of each reference ranking), over the samples.
        alternative_lds: the LDS of each alternative score that the same pass has given.
        alternative_interval: 95% of (LDS of each alternative - LDS).
        gap_interval: 95%, with samples and random orders drawn again and the rankings fixed.
        lds_interval: 95%, with random orders drawn again, for the samples that were ablated.
        least_accuracy: the curve with the least important neurons removed first; None where it was not asked for.
        srg, srg_interval: symmetric relevance gain, the mean over the points of (least first - most first).
        greedy_accuracy: the curve of a greedy order; None where it was not asked for.
        normalised_gap: gap over that of the greedy order; NaN where that is not positive.
    """

    intact_accuracy: float
    accuracy: Float[np.ndarray, " point"]
    random_accuracy: Float[np.ndarray, "draw point"]
    reference_accuracy: Float[np.ndarray, "reference point"]
    gap: float
    relative_gap: float
    p_value: float
    p_value_worse: float
    lds: float
    verdict: str
    reference_gap: Float[np.ndarray, " reference"]
    reference_interval: Float[np.ndarray, "reference 2"]
    alternative_lds: Float[np.ndarray, " alternative"]
    alternative_interval: Float[np.ndarray, "alternative 2"]
    gap_interval: Float[np.ndarray, "2"]
    lds_interval: Float[np.ndarray, "2"]
    least_accuracy: Float[np.ndarray, " point"] | None
    srg: float
    srg_interval: Float[np.ndarray, "2"]
    greedy_accuracy: Float[np.ndarray, " point"] | None
    normalised_gap: float


@dataclass(frozen=True, eq=False)
class DeletionCurve:
    """What is left when neurons are removed in one order.

    Attributes:
        removed: how many neurons, at each point.
        accuracy: 0 to 1.
        margin: mean margin, in logits.
        intact_accuracy, intact_margin: with all neurons.
    """

    removed: Int[np.ndarray, " point"]
    accuracy: Float[np.ndarray, " point"]
    margin: Float[np.ndarray, " point"]
    intact_accuracy: float
    intact_margin: float


@dataclass(frozen=True, eq=False)
class Specificity:
    """What removing the top neurons of one cluster does to all others.

    Attributes:
        removed: how many neurons.
        damage: fall of the accuracy of the cluster of the row when the top neurons of the cluster of the column are
            removed; ranked on one half, removed on the other.
        value: mean over clusters of (damage to itself - mean damage to the others).
        p_value: share of assignments of columns to clusters with a value at least as large; NaN below four clusters.
        balanced_accuracy: with all neurons, and without the cluster's top neurons: of telling the cluster's class from
            all others, the mean of both rates; NaN for clusters that are not of one class each.
    """

    removed: int
    damage: Float[np.ndarray, "cluster cluster"]
    value: float
    p_value: float
    balanced_accuracy: Float[np.ndarray, "2 cluster"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two attributions at one site: whose ranking does removal bear out better?

    Attributes:
        site: name of the module.
        first, second: the attributions.
        difference: gap of the first one - gap of the second one, all clusters together.
        interval: 95%, over the samples that both removed neurons of, with the rankings fixed.
        cluster_difference, cluster_interval: the same per cluster.
    """

    site: str
    first: str
    second: str
    difference: float
    interval: Float[np.ndarray, "2"]
    cluster_difference: Float[np.ndarray, " cluster"]
    cluster_interval: Float[np.ndarray, "cluster 2"]

    @property
    def better(self) -> str | None:
        """The better one, where the interval does not hold zero."""
        return self.first if self.interval[0] > 0 else self.second if self.interval[1] < 0 else None


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Deletion curves of one ranking against random removal.

    Each cluster has two halves; neurons are ranked on one and ablated on the other, both ways, and the outcomes of the
    two are pooled. The gap is the unweighted mean over `removed` of (mean random control - deletion curve).

    Attributes:
        removed: how many neurons were removed at each point of the curves.
        samples: ablated samples per half and cluster.
        intact_accuracy: accuracy with all neurons, 0 to 1.
        intact_margin: mean margin with all neurons, in logits.
        accuracy, margin: the deletion curve, most important neurons first.
        random_accuracy, random_margin: the same for each random order.
        references: names of the reference rankings.
        reference_accuracy: their deletion curves.
        alternatives: names of other scores that the same pass has given, without removals of their own.
        alternative_lds: their LDS.
        gap, relative_gap, p_value, p_value_worse, lds, verdict, reference_gap, gap_interval, lds_interval,
            least_accuracy, srg, srg_interval, greedy_accuracy, normalised_gap: as in `Overall`, per cluster.
        q_value: smallest false discovery rate, over all clusters, sites and attributions of the measurement, at which
            the cluster's gap is a discovery.
        n_draws: random orders that were asked for; fewer were made where all was decided before.
        specificity: None where it was not asked for.
        overall: all clusters together.
    """

    removed: Int[np.ndarray, " point"]
    samples: Int[np.ndarray, "half cluster"]
    intact_accuracy: Float[np.ndarray, " cluster"]
    intact_margin: Float[np.ndarray, " cluster"]
    accuracy: Float[np.ndarray, "cluster point"]
    margin: Float[np.ndarray, "cluster point"]
    random_accuracy: Float[np.ndarray, "draw cluster point"]
    random_margin: Float[np.ndarray, "draw cluster point"]
    references: tuple[str, ...]
    reference_accuracy: Float[np.ndarray, "reference cluster point"]
    gap: Float[np.ndarray, " cluster"]
    relative_gap: Float[np.ndarray, " cluster"]
    p_value: Float[np.ndarray, " cluster"]
    p_value_worse: Float[np.ndarray, " cluster"]
    lds: Float[np.ndarray, " cluster"]
    reference_gap: Float[np.ndarray, "reference cluster"]
    alternatives: tuple[str, ...]
    alternative_lds: Float[np.ndarray, "alternative cluster"]
    verdict: tuple[str, ...]
    gap_interval: Float[np.ndarray, "cluster 2"]
    lds_interval: Float[np.ndarray, "cluster 2"]
    least_accuracy: Float[np.ndarray, "cluster point"] | None
    srg: Float[np.ndarray, " cluster"]
    srg_interval: Float[np.ndarray, "cluster 2"]
    greedy_accuracy: Float[np.ndarray, "cluster point"] | None
    normalised_gap: Float[np.ndarray, " cluster"]
    q_value: Float[np.ndarray, " cluster"]
    n_draws: int
    specificity: Specificity | None
    overall: Overall
