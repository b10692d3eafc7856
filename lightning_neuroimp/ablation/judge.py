"""Judge rankings: from the outcomes of ablation at one site to curves, gaps, p-values, intervals and verdicts.

Two tests with the same random orders decide: the margin's gap says whether a ranking is right, as it moves wherever
removal does anything, and the gap in accuracy whether decisions hang on it.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from lightning_neuroimp import statistics
from lightning_neuroimp.ablation.control import RandomControl
from lightning_neuroimp.ablation.early_stopping import sequential_gap_p_values
from lightning_neuroimp.ablation.intervals import gap_interval, mean_interval
from lightning_neuroimp.ablation.orders import ALTERNATIVES, REFERENCES, RemovalOrders
from lightning_neuroimp.ablation.outcomes import Outcomes
from lightning_neuroimp.ablation.predictions import Predictions
from lightning_neuroimp.results.faithfulness import Comparison, Faithfulness
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.verdict import MIN_HALF, GapTest, Verdict, verdict

MARGIN_ROUNDING = 1e-6
"""Margins that are equal on paper differ by less than this share of the mean absolute margin (of logits in float32)."""


class Judge:
    """Judge the rankings of one site from the outcomes of ablation.

    Tables have one row per cluster and a last one for all clusters, weighted by their sizes in the probe set. Clusters
    with too few ablated samples for a verdict of their own are left out of it, if the others are most of the samples.

    Args:
        importances: the attributions of the site.
        outcomes: of the orders in `orders`, and of the random control; their groups are cells (2 * cluster + half).
        orders: the orders of removal before the random control.
        control: knows the random orders that were run, and which of the outcomes are theirs.
        sample_group: group of each sample of the outcomes; intervals are over groups. None: over single samples.

    Attributes:
        members: rows of the outcomes that belong to each cluster, and last to all that count.
        half_members: rows of the outcomes in each half of each cluster.
        weight: weight of each cluster in the last row; 0 for those that are left out of it.
        samples: number of ablated samples, (row of the tables, half).
        level: correctness of each sample, averaged over the points: (order, sample).
        accuracy: (order, row of the tables, point).
        margin: mean margin in logits, (order, row of the tables, point).
    """

    def __init__(
        self,
        importances: Sequence[Importance],
        outcomes: Outcomes,
        orders: RemovalOrders,
        control: RandomControl,
        sample_group: Int[np.ndarray, " sample"] | None = None,
    ) -> None:
        self.importances, self.outcomes, self.orders = importances, outcomes, orders
        self.control, self.sample_group = control, sample_group
        cluster, half = outcomes.cell // 2, outcomes.cell % 2
        # without samples in the other half there is no ranking to judge
        count = importances[0].count
        ranked = (count[::-1] > 0).T[cluster, half] if len(cluster) else np.zeros(0, bool)
        self.members = [np.flatnonzero(ranked & (cluster == row)) for row in range(count.shape[1])]
        self.half_members = [[rows[half[rows] == side] for side in range(2)] for rows in self.members]
        sizes = np.array([[len(side) for side in sides] for sides in self.half_members], np.int64).reshape(-1, 2)
        counted = counted_clusters(sizes, count.sum(0))
        self.weight = np.where(counted, count.sum(0), 0).astype(float)
        self.samples = np.concatenate([sizes, sizes[counted].sum(0, keepdims=True)])  # (row, half)
        self.members.append(np.concatenate([self.members[row] for row in np.flatnonzero(counted)] or [cluster[:0]]))
        self._sample_weight = self._weights_of_samples(cluster)
        self._predictions = Predictions(outcomes, control, self.half_members, self.weight)
        finite = np.isfinite(outcomes.intact_margin)
        scale = float(np.abs(outcomes.intact_margin[finite]).mean()) if finite.any() else 0.0
        self._rounding = MARGIN_ROUNDING * scale
        self.level = outcomes.correct.mean(1)
        self.accuracy = self._pool(outcomes.correct)
        self.margin = self._pool(outcomes.margin)

    def undecided(self) -> list[int]:
        """Return the places of the scores of which a p-value could still move across the level of the verdict."""
        return [
            position
            for position in range(len(self.orders.own))
            if any(
                None in self._early(*test, row) for test in self._tests(position) for row in range(len(self.members))
            )
        ]

    def faithfulness(self, position: int) -> Faithfulness:
        """Collect the results of the check of one attribution's ranking.

        Args:
            position: place of the attribution among the importances.
        """
        own, references = self.orders.own[position], self.orders.references(position)
        runs = self.control.runs(position)
        curve, control = self.accuracy[own], self.accuracy[runs]
        least = self.accuracy[self.orders.least[position]] if self.orders.least else None
        best = None if self.orders.best is None else self.accuracy[self.orders.best]
        gap, relative = statistics.gap(curve, control), statistics.relative_gap(curve, control)
        accuracy, margin = (self._gap_tests(*test) for test in self._tests(position))
        prediction = self._predictions.of(self.importances[position])
        reference_gap = self._reference_gaps(self.accuracy, references, control)
        gain = self._symmetric_gain(position)
        best_gap = np.full(len(gap), np.nan) if best is None else statistics.gap(best, control)
        return Faithfulness(
            removed=self.control.removed,
            samples=self.samples.T,
            intact_accuracy=self._pool(self.outcomes.intact_correct),
            intact_margin=self._pool(self.outcomes.intact_margin),
            accuracy=curve,
            margin=self.margin[own],
            random_accuracy=control,
            random_margin=self.margin[runs],
            references=REFERENCES,
            reference_accuracy=np.stack([self._curves(self.accuracy, order) for order in references]),
            gap=gap,
            relative_gap=relative,
            p_value=np.array([test.p_value for test in accuracy]),
            p_value_worse=np.array([test.p_value_worse for test in accuracy]),
            margin_gap=np.array([test.gap for test in margin]),
            margin_p_value=np.array([test.p_value for test in margin]),
            margin_p_value_worse=np.array([test.p_value_worse for test in margin]),
            q_value=np.full(len(gap), np.nan),
            verdict=self._verdicts(
                position, accuracy, margin, relative, reference_gap[REFERENCES.index("first_order")]
            ),
            lds=prediction.lds[0],
            lds_ceiling=self._predictions.ceiling,
            reference_gap=reference_gap,
            reference_margin_gap=self._reference_gaps(self.margin, references, self.margin[runs]),
            reference_interval=self._reference_intervals(references, own),
            alternatives=ALTERNATIVES,
            alternative_lds=prediction.lds[1:],
            alternative_interval=prediction.alternative_interval,
            gap_interval=np.stack([self._gap_interval(position, row) for row in range(len(gap))]),
            lds_interval=prediction.interval,
            least_accuracy=least,
            srg=gain[0],
            srg_interval=gain[1],
            best_accuracy=best,
            normalised_gap=np.divide(gap, best_gap, out=np.full_like(gap, np.nan), where=best_gap > 0),
            kept_accuracy=None,
            random_kept_accuracy=None,
            n_draws=self.control.n_draws,
            specificity=None,
        )

    def curves_of(self, outcomes: Outcomes) -> Float[np.ndarray, "order row point"]:
        """Return the accuracies of other orders on the same samples, in the rows of the tables.

        Args:
            outcomes: of these orders.
        """
        assert np.array_equal(outcomes.sample, self.outcomes.sample)
        return self._pool(outcomes.correct)

    def comparisons(self) -> list[Comparison]:
        """Compare every pair of attributions of the site: the difference of their gaps, with 95% intervals."""
        found = []
        for first, second in itertools.combinations(range(len(self.importances)), 2):
            (difference,), (interval,) = self._differences([self.orders.own[second]], self.orders.own[first])
            found.append(
                Comparison(
                    site=self.importances[0].site,
                    first=self.importances[first].attribution,
                    second=self.importances[second].attribution,
                    difference=float(difference[-1]),
                    interval=interval[-1],
                    cluster_difference=difference[:-1],
                    cluster_interval=interval[:-1],
                )
            )
        return found

    def _pool(self, values: Shaped[np.ndarray, "*rest sample"]) -> Float[np.ndarray, "..."]:
        """Average over the samples of each cluster, then over the clusters by weight.

        Args:
            values: one per sample, on the last axis.

        Returns:
            Means, with the tables' rows as second axis (first where there are no others).
        """
        empty = np.full(values.shape[:-1], np.nan)
        means = [values[..., rows].mean(-1) if len(rows) else empty for rows in self.members[:-1]]
        table = np.array(means)
        together = np.asarray(statistics.weighted_mean(np.moveaxis(table, 0, -1), self.weight))
        return np.moveaxis(np.concatenate([table, together[None]]), 0, min(1, values.ndim - 1))

    def _weights_of_samples(self, cluster: Int[np.ndarray, " sample"]) -> Float[np.ndarray, " member"] | None:
        """Return the weights of the last row's samples, 1 on average; None where they are equal.

        Args:
            cluster: row of the cluster of each sample of the outcomes.
        """
        share = np.array([weight / max(len(rows), 1) for weight, rows in zip(self.weight, self.members, strict=False)])
        weight = share[cluster[self.members[-1]]]
        return None if not len(weight) or np.ptp(weight) < 1e-9 * weight.max() else weight / weight.mean()

    def _linearised(self, values: Float[np.ndarray, "*rest member"], row: int) -> Float[np.ndarray, "*rest member"]:
        """Return values whose plain mean and its variance are those of the weighted mean in a row of the tables."""
        weight = self._sample_weight
        if weight is None or row < len(self.members) - 1:
            return values
        mean = np.asarray(values @ weight / len(weight))[..., None]
        return mean + weight * (values - mean)

    def _tests(self, position: int) -> tuple[tuple[Float[np.ndarray, "order row"], float], ...]:
        """Return what the tests of a score compare: accuracies, then margins, averaged over the points.

        Returns:
            Of each: its level in every row after the score's own order, then after its random ones; and the smallest
            difference that is none of rounding.
        """
        orders = [self.orders.own[position], *self.control.runs(position)]
        return (self.accuracy[orders].mean(-1), statistics.ROUNDING), (self._margin_levels(orders), self._rounding)

    def _margin_levels(self, orders: Sequence[int]) -> Float[np.ndarray, "order row"]:
        """Average the margins over the points and the samples of each row; NaN where there are none.

        A sample whose margin is not finite in one of the orders is left out in all of them.
        """
        level = self.outcomes.margin[list(orders)].mean(1)  # (order, sample)
        finite, empty = np.isfinite(level).all(0), np.full(len(orders), np.nan)
        kept = [rows[finite[rows]] for rows in self.members[:-1]]
        table = np.stack([level[:, rows].mean(1) if len(rows) else empty for rows in kept], 1)
        return np.concatenate([table, statistics.weighted_mean(table, self.weight)[:, None]], 1)

    def _early(
        self, level: Float[np.ndarray, "order row"], rounding: float, row: int
    ) -> tuple[float | None, float | None]:
        """Return both p-values of a gap in one row as far as they are decided; NaN where there is no gap."""
        if np.isnan(level[0, row]):
            return float("nan"), float("nan")
        curve, control = level[:1, row], level[1:, row, None]
        return sequential_gap_p_values(curve, control, self.control.n_draws, rounding)

    def _gap_tests(self, level: Float[np.ndarray, "order row"], rounding: float) -> list[GapTest]:
        """Test a score's gap in every row; p-values are sequential ones if the control stopped early."""
        gap = level[1:].mean(0) - level[0]
        if len(level) - 1 == self.control.n_draws:
            tails = statistics.gap_p_values(level[0][:, None], level[1:, :, None], rounding)
            return [GapTest(*map(float, test)) for test in zip(gap, *tails, strict=True)]
        early = [self._early(level, rounding, row) for row in range(level.shape[1])]
        return [
            GapTest(float(value), *(float("nan") if p_value is None else p_value for p_value in tails))
            for value, tails in zip(gap, early, strict=True)
        ]

    def _verdicts(
        self,
        position: int,
        accuracy: Sequence[GapTest],
        margin: Sequence[GapTest],
        relative_gap: Float[np.ndarray, " row"],
        first_order_gap: Float[np.ndarray, " row"],
    ) -> tuple[Verdict, ...]:
        """Decide on a score in every row."""
        return tuple(
            verdict(
                accuracy[row],
                margin[row],
                relative_gap=float(relative_gap[row]),
                first_order_gap=float(first_order_gap[row]),
                smallest_half=int(self.samples[row].min()),
                smallest_p_value=self.control.tie_probability(position, self._cells(row)),
            )
            for row in range(len(self.members))
        )

    def _cells(self, row: int) -> list[int]:
        """Return the numbers of the cells whose samples count in a row of the tables."""
        return np.unique(self.outcomes.cell[self.members[row]]).tolist()

    def _curves(self, table: Float[np.ndarray, "order row point"], order: int | None) -> Float[np.ndarray, "row point"]:
        """Return the curves of an order; NaN for None."""
        return np.full(table.shape[1:], np.nan) if order is None else table[order]

    def _reference_gaps(
        self,
        table: Float[np.ndarray, "order row point"],
        references: Sequence[int | None],
        control: Float[np.ndarray, "draw row point"],
    ) -> Float[np.ndarray, "reference row"]:
        """Return the gaps of reference rankings against a score's random control; NaN for those that are not known."""
        return np.stack([statistics.gap(self._curves(table, order), control) for order in references])

    def _reference_intervals(self, references: Sequence[int | None], own: int) -> Float[np.ndarray, "reference row 2"]:
        """Return the intervals of (gap - gap of each reference ranking); NaN for those that are not known."""
        unknown = np.full((len(self.members), 2), np.nan)
        return np.stack([unknown if order is None else self._differences([order], own)[1][0] for order in references])

    def _groups(self, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"] | None:
        """Return the groups of some samples; None without groups."""
        return None if self.sample_group is None else self.sample_group[rows]

    def _gap_interval(self, position: int, row: int) -> Float[np.ndarray, "2"]:
        """Compute the 95% interval of a score's gap in one row; NaN with fewer than two samples."""
        rows = self.members[row]
        control = self._linearised(self.level[self.control.runs(position)][:, rows], row)
        own = self._linearised(self.level[self.orders.own[position], rows], row)
        return gap_interval(own, control, self._groups(rows))

    def _symmetric_gain(self, position: int) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, "row 2"]]:
        """Compute the symmetric relevance gain and its 95% interval; NaN if the least important were not removed."""
        if not self.orders.least:
            return np.full(len(self.members), np.nan), np.full((len(self.members), 2), np.nan)
        (value,), (interval,) = self._differences([self.orders.least[position]], self.orders.own[position])
        return value, interval

    def _differences(
        self, orders: Sequence[int], other: int
    ) -> tuple[Float[np.ndarray, "order row"], Float[np.ndarray, "order row 2"]]:
        """Compute how much more accuracy each order leaves than another, and the 95% intervals over the samples."""
        difference = self.level[list(orders)] - self.level[other]  # (order, sample)
        empty = np.full(len(difference), np.nan)
        parts = [self._linearised(difference[:, rows], row) for row, rows in enumerate(self.members)]
        value = [part.mean(1) if part.shape[1] else empty for part in parts]
        interval = [mean_interval(part, self._groups(rows)) for part, rows in zip(parts, self.members, strict=True)]
        return np.stack(value, 1), np.stack(interval, 1)


def counted_clusters(
    sizes: Int[np.ndarray, "cluster half"], weight: Int[np.ndarray, " cluster"]
) -> Bool[np.ndarray, " cluster"]:
    """Tell which clusters count in the row of all clusters.

    Those with enough ablated samples for a verdict of their own; all that were ablated, where those are less than half.

    Args:
        sizes: number of ablated samples in each half.
        weight: size of each cluster.
    """
    ablated, enough = sizes.sum(1) > 0, sizes.min(1) >= MIN_HALF
    return enough if 2 * weight[enough].sum() >= max(weight[ablated].sum(), 1) else ablated
