"""Faithfulness: how removal supports a ranking, against random removal of the same neurons."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.results.record import Record
from lightning_neuroimp.results.verdict import Verdict


@dataclass(frozen=True, eq=False, repr=False)
class DeletionCurve(Record):
    """Hold what is left of a model's accuracy and margin when neurons are removed in one order.

    Attributes:
        removed: number of removed neurons at each point.
        accuracy: accuracy at each point, 0 to 1.
        margin: mean margin at each point, in logits.
        intact_accuracy: accuracy with all neurons, 0 to 1.
        intact_margin: mean margin with all neurons, in logits.

    >>> curve = DeletionCurve(np.array([1, 2]), np.array([0.9, 0.5]), np.array([2.0, 0.1]), 1.0, 3.0)
    >>> float(curve.intact_accuracy - curve.accuracy[-1])
    0.5
    """

    removed: Int[np.ndarray, " point"]
    accuracy: Float[np.ndarray, " point"]
    margin: Float[np.ndarray, " point"]
    intact_accuracy: float
    intact_margin: float


@dataclass(frozen=True, eq=False, repr=False)
class Specificity(Record):
    """Hold what removing the top neurons of one cluster costs every cluster.

    Attributes:
        removed: number of removed neurons.
        accuracy_drop: fall of the accuracy, 0 to 1, of the row's cluster when the top neurons of the column's cluster
            are removed; ranked on one half, removed on the other.
        value: mean over clusters of (drop of the cluster itself - mean drop of the others).
        p_value: fraction of assignments of columns to clusters whose value is at least as large; NaN below four
            clusters.
        balanced_accuracy: of telling the cluster's class from all others, the mean of both rates, with all neurons
            (first row) and without the cluster's top neurons (second row); NaN for clusters of several classes.

    >>> Specificity(1, np.eye(4), 1.0, 0.04, np.ones((2, 4))).removed
    1
    """

    removed: int
    accuracy_drop: Float[np.ndarray, "cluster cluster"]
    value: float
    p_value: float
    balanced_accuracy: Float[np.ndarray, "2 cluster"]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Record):
    """Compare two attributions at one site: which ranking does removal support better?

    Attributes:
        site: the site in words.
        first: name of one attribution.
        second: name of the other one.
        difference: gap of the first one - gap of the second one, all clusters together, in accuracy (0 to 1).
        interval: 95% interval of the difference over the samples, with the rankings fixed.
        cluster_difference: difference in each cluster.
        cluster_interval: 95% interval in each cluster.

    >>> both = Comparison("1", "gradient", "activation", -0.1, np.array([-0.2, -0.05]), np.ones(1), np.ones((1, 2)))
    >>> both.better
    'activation'
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
        """Name the better attribution; None where the interval holds zero."""
        return self.first if self.interval[0] > 0 else self.second if self.interval[1] < 0 else None


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness(Record):
    """Hold how removal supports one ranking: per cluster, and in the last row for all clusters together.

    Each cluster has two halves; neurons are ranked on one and ablated on the other, both ways, and the outcomes of the
    two are pooled. Axes named `row` have one entry per cluster, in the order of the cluster table, and a last one for
    all clusters, weighted by their sizes in the probe set: `faithfulness.gap[-1]` is the gap of the layer. Clusters
    with too few samples for a verdict of their own are left out of it, unless they are most of the samples.

    Attributes:
        removed: number of removed neurons at each point of the curves.
        samples: number of ablated samples; in the last row those of the clusters that count there.
        intact_accuracy: accuracy with all neurons, 0 to 1.
        intact_margin: mean margin with all neurons, in logits.
        accuracy: the deletion curve, most important neurons first.
        margin: its mean margin.
        random_accuracy: the deletion curve of each random order: the rankings of all clusters and halves themselves,
            with the names of the neurons permuted, by one permutation in each order.
        random_margin: its mean margin.
        references: keys of the reference rankings: "activation_size" (mean |activation - baseline|), "shared_ranking"
            (one ranking for all clusters) and "first_order" (the effect of removal to first order).
        reference_accuracy: their deletion curves; NaN where there were no gradients for the last one.
        gap: unweighted mean over `removed` of (mean accuracy under random removal - deletion curve), in accuracy
            (0 to 1); positive is faithful.
        relative_gap: gap over the mean accuracy under random removal.
        p_value: fraction of the random orders (counting the ranking itself) whose gap is at least as large.
        p_value_worse: fraction whose gap is at most as large.
        margin_gap: the gap in margin, in logits: unweighted mean over `removed` of (mean margin under random removal -
            mean margin of the deletion curve), over the samples whose margins are all finite.
        margin_p_value: as `p_value`, of the margin's gap.
        margin_p_value_worse: as `p_value_worse`, of the margin's gap.
        q_value: smallest false discovery rate, over all clusters, sites and attributions of the measurement, at which
            the cluster's gap is a discovery (Benjamini-Hochberg, or Benjamini-Yekutieli on request); NaN in the last
            row, which is not one of these tests.
        verdict: whether ablation supports the ranking, a `Verdict` for each row.
        lds: linear datamodeling score: correlation, over random removals of a tenth of the neurons, of the sum of
            their scores with the measured fall of the margin; mean over the halves.
        lds_ceiling: how well these falls can be predicted from those of another half as large: the LDS that measured
            effects would have, 0 to 1; NaN where nothing falls.
        reference_gap: gap of each reference ranking.
        reference_margin_gap: its gap in margin, in logits.
        reference_interval: 95% interval of (gap - gap of each reference ranking), over the samples.
        alternatives: keys of other scores that the same pass gave, without removals of their own: "absolute_values",
            "activation_size", "first_order", the effect of removal to first order, and "shared_scores", the mean over
            all clusters.
        alternative_lds: their LDS.
        alternative_interval: 95% interval of (LDS of each alternative - LDS), over the random orders.
        gap_interval: 95% interval of the gap, over samples (or groups of them) and random orders, with the rankings
            fixed.
        lds_interval: 95% interval of the LDS, with random orders drawn again, for the samples that were ablated.
        least_accuracy: deletion curve with the least important neurons first; None where it was not asked for.
        srg: symmetric relevance gain: mean over the points of (least first - most first).
        srg_interval: its 95% interval over the samples.
        best_accuracy: deletion curve of a progressive order, which is about the best one that is known; None where it
            was not asked for.
        normalised_gap: gap over that of this order; NaN where that is not positive.
        kept_accuracy: accuracy with all neurons removed but the `removed` most important ones; None where it was not
            asked for.
        random_kept_accuracy: the same with only random neurons left, in up to 19 of the random orders; None likewise.
        n_draws: number of random orders that were asked for, or of all that there are; fewer were made where all was
            decided before.
        specificity: None where it was not asked for.

    References:
        arXiv 2401.06654 (symmetric relevance gain); arXiv 2404.11534 (LDS for components of a network).

    >>> import torch
    >>> from lightning_neuroimp import ablation_faithfulness, neuron_importance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> batches = [(torch.randn(20, 4), torch.arange(20) % 2)]
    >>> results = ablation_faithfulness(model, batches, neuron_importance(model, batches, layers="1"))
    >>> str(results["1"].faithfulness.verdict[-1])
    'too few samples to say'
    """

    removed: Int[np.ndarray, " point"]
    samples: Int[np.ndarray, "half row"]
    intact_accuracy: Float[np.ndarray, " row"]
    intact_margin: Float[np.ndarray, " row"]
    accuracy: Float[np.ndarray, "row point"]
    margin: Float[np.ndarray, "row point"]
    random_accuracy: Float[np.ndarray, "draw row point"]
    random_margin: Float[np.ndarray, "draw row point"]
    references: tuple[str, ...]
    reference_accuracy: Float[np.ndarray, "reference row point"]
    gap: Float[np.ndarray, " row"]
    relative_gap: Float[np.ndarray, " row"]
    p_value: Float[np.ndarray, " row"]
    p_value_worse: Float[np.ndarray, " row"]
    margin_gap: Float[np.ndarray, " row"]
    margin_p_value: Float[np.ndarray, " row"]
    margin_p_value_worse: Float[np.ndarray, " row"]
    q_value: Float[np.ndarray, " row"]
    verdict: tuple[Verdict, ...]
    lds: Float[np.ndarray, " row"]
    lds_ceiling: Float[np.ndarray, " row"]
    reference_gap: Float[np.ndarray, "reference row"]
    reference_margin_gap: Float[np.ndarray, "reference row"]
    reference_interval: Float[np.ndarray, "reference row 2"]
    alternatives: tuple[str, ...]
    alternative_lds: Float[np.ndarray, "alternative row"]
    alternative_interval: Float[np.ndarray, "alternative row 2"]
    gap_interval: Float[np.ndarray, "row 2"]
    lds_interval: Float[np.ndarray, "row 2"]
    least_accuracy: Float[np.ndarray, "row point"] | None
    srg: Float[np.ndarray, " row"]
    srg_interval: Float[np.ndarray, "row 2"]
    best_accuracy: Float[np.ndarray, "row point"] | None
    normalised_gap: Float[np.ndarray, " row"]
    kept_accuracy: Float[np.ndarray, "row point"] | None
    random_kept_accuracy: Float[np.ndarray, "kept row point"] | None
    n_draws: int
    specificity: Specificity | None
