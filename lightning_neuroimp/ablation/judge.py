"""Judge rankings: from the outcomes of ablation at one site to curves, gaps, p-values, intervals and verdicts."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from lightning_neuroimp import statistics
from lightning_neuroimp.ablation.early_stopping import sequential_gap_p_values
from lightning_neuroimp.ablation.orders import ALTERNATIVES, REFERENCES, RemovalOrders
from lightning_neuroimp.ablation.outcomes import Outcomes
from lightning_neuroimp.results.faithfulness import Comparison, Faithfulness
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.verdict import verdict

LDS_FRACTION = 0.1
"""Share of the neurons in the removals from which the linear datamodeling score is computed."""


@dataclass(frozen=True)
class RandomControl:
    """Hold random orders of a site's neurons, shared by all clusters and halves.

    Attributes:
        removed: number of removed neurons at each point of the curves.
        orders: the random orders.
        n_draws: number of orders that were asked for.
        seed: of the orders, and of the resampling.
    """

    removed: Int[np.ndarray, " point"]
    orders: Int[np.ndarray, "draw neuron"]
    n_draws: int
    seed: tuple[int, ...]

    @classmethod
    def draw(
        cls, removed: Int[np.ndarray, " point"], n_neurons: int, n_draws: int, seed: Sequence[int]
    ) -> "RandomControl":
        """Draw permutations of the neurons.

        Args:
            removed: number of removed neurons at each point of the curves.
            n_neurons: at the site.
            n_draws: number of permutations.
            seed: of the permutations, and of the resampling.
        """
        generator = np.random.default_rng(list(seed))
        orders = np.stack([generator.permutation(n_neurons) for _ in range(n_draws)])
        return cls(removed, orders, n_draws, tuple(seed))

    def first(self, made: int) -> "RandomControl":
        """Return the control as it is after `made` orders."""
        return RandomControl(self.removed, self.orders[:made], self.n_draws, self.seed)


class Judge:
    """Judge the rankings of one site from the outcomes of ablation.

    Tables have one row per cluster and a last one for all clusters, weighted by their numbers of ablated samples.

    Args:
        importances: the attributions of the site.
        outcomes: of the orders in `orders`, then of the random control; their groups are cells (2 * cluster + half).
        orders: the orders of removal before the random control.
        control: the random orders that were run.
        sample_group: group of each sample of the outcomes; whole groups are resampled. None: single samples.

    Attributes:
        members: rows of the outcomes that belong to each cluster, and last to all of them.
        half_members: rows of the outcomes in each half of each cluster.
        size: number of ablated samples in each cluster.
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
        self.size = sizes.sum(1)
        self.samples = np.concatenate([sizes, sizes.sum(0, keepdims=True)])  # (row, half)
        self.members.append(np.concatenate(self.members))
        self.level = outcomes.correct.mean(1)
        self.accuracy = self._pool(outcomes.correct)
        self.margin = self._pool(outcomes.margin)
        self._weights: dict[int, Float[np.ndarray, "replicate sample"]] = {}  # of resampled samples, by row

    def decided(self) -> bool:
        """Tell whether further random orders could not move any p-value across the level of the verdict."""
        for own in self.orders.own:
            for row in range(len(self.members)):
                curve, control = self.accuracy[own, row], self._control(row)
                early = sequential_gap_p_values(curve, control, self.control.n_draws)
                if not np.isnan(curve).any() and None in early:
                    return False
        return True

    def faithfulness(self, position: int) -> Faithfulness:
        """Collect the results of the check of one attribution's ranking.

        Args:
            position: place of the attribution among the importances.
        """
        own, references = self.orders.own[position], self.orders.references(position)
        curve, control = self.accuracy[own], self.accuracy[self.orders.control :]
        least = self.accuracy[self.orders.least[position]] if self.orders.least else None
        greedy = None if self.orders.greedy is None else self.accuracy[self.orders.greedy]
        gap, relative = statistics.gap(curve, control), statistics.relative_gap(curve, control)
        every = range(len(self.members))
        p_value, p_value_worse = np.array([self._p_values(own, row) for row in every]).T
        lds, lds_interval, alternative_interval = self._lds(self.importances[position])
        gain = self._symmetric_gain(position)
        greedy_gap = np.full(len(gap), np.nan) if greedy is None else statistics.gap(greedy, control)
        return Faithfulness(
            removed=self.control.removed,
            samples=self.samples.T,
            intact_accuracy=self._pool(self.outcomes.intact_correct),
            intact_margin=self._pool(self.outcomes.intact_margin),
            accuracy=curve,
            margin=self.margin[own],
            random_accuracy=control,
            random_margin=self.margin[self.orders.control :],
            references=REFERENCES,
            reference_accuracy=self.accuracy[references],
            gap=gap,
            relative_gap=relative,
            p_value=p_value,
            p_value_worse=p_value_worse,
            q_value=np.full(len(gap), np.nan),
            verdict=tuple(
                verdict(float(p_value[row]), float(p_value_worse[row]), float(relative[row]), int(smallest))
                for row, smallest in enumerate(self.samples.min(1))
            ),
            lds=lds[0],
            reference_gap=np.stack([statistics.gap(self.accuracy[order], control) for order in references]),
            reference_interval=self._differences(references, own)[1],
            alternatives=ALTERNATIVES,
            alternative_lds=lds[1:],
            alternative_interval=alternative_interval,
            gap_interval=np.stack([self._gap_interval(own, rows) for rows in self.members]),
            lds_interval=lds_interval,
            least_accuracy=least,
            srg=gain[0],
            srg_interval=gain[1],
            greedy_accuracy=greedy,
            normalised_gap=np.divide(gap, greedy_gap, out=np.full_like(gap, np.nan), where=greedy_gap > 0),
            n_draws=self.control.n_draws,
            specificity=None,
        )

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
        """Average over the samples of each cluster, then over all clusters by size.

        Args:
            values: one per sample, on the last axis.

        Returns:
            Means, with the tables' rows as second axis (first where there are no others).
        """
        empty = np.full(values.shape[:-1], np.nan)
        means = [values[..., rows].mean(-1) if len(rows) else empty for rows in self.members[:-1]]
        table = np.array(means)
        together = np.asarray(statistics.weighted_mean(np.moveaxis(table, 0, -1), self.size))
        return np.moveaxis(np.concatenate([table, together[None]]), 0, min(1, values.ndim - 1))

    def _control(self, row: int) -> Float[np.ndarray, "draw point"]:
        """Return the accuracies of the random control in one row of the tables."""
        return self.accuracy[self.orders.control :, row]

    def _p_values(self, own: int, row: int) -> tuple[float, float]:
        """Return both p-values of a gap in one row; sequential ones if the control stopped early."""
        curve, control = self.accuracy[own, row], self._control(row)
        if len(control) == self.control.n_draws:
            upper, lower = statistics.gap_p_values(curve, control)
            return float(upper), float(lower)
        early = sequential_gap_p_values(curve, control, self.control.n_draws)
        above, below = (float("nan") if p_value is None else p_value for p_value in early)
        return above, below

    def _generator(self, stream: int) -> np.random.Generator:
        """Make a generator of random numbers, independent of those with other stream numbers."""
        return np.random.default_rng([*self.control.seed, stream])

    def _groups(self, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"] | None:
        """Return the groups of some samples; None without groups."""
        return None if self.sample_group is None else self.sample_group[rows]

    def _n_units(self, rows: Int[np.ndarray, " row"]) -> int:
        """Count the units of resampling among some samples: groups if there are any, otherwise samples."""
        return len(rows) if self.sample_group is None else len(np.unique(self.sample_group[rows]))

    def _gap_interval(self, order: int, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, "2"]:
        """Compute the 95% interval of an order's gap over some samples; NaN with fewer than two."""
        if len(rows) < 2:
            return np.full(2, np.nan)
        control = self.level[self.orders.control :, rows]
        groups = self._groups(rows)
        replicates = statistics.gap_replicates(self.level[order, rows], control, self._generator(1), groups=groups)
        return statistics.bootstrap_interval(replicates, self._n_units(rows))

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
        value = [difference[:, rows].mean(1) if len(rows) else empty for rows in self.members]
        interval = [self._mean_intervals(difference, row) for row in range(len(self.members))]
        return np.stack(value, 1), np.stack(interval, 1)

    def _mean_intervals(self, values: Float[np.ndarray, "order sample"], row: int) -> Float[np.ndarray, "order 2"]:
        """Compute the 95% intervals of means over the samples of a row; NaN with fewer than two samples."""
        rows = self.members[row]
        if len(rows) < 2:
            return np.full((len(values), 2), np.nan)
        if row not in self._weights:  # the same samples are drawn for all that is compared
            self._weights[row] = statistics.resamples(
                len(rows), statistics.N_REPLICATES, self._generator(2), self._groups(rows)
            )
        return statistics.bootstrap_interval(self._weights[row] @ values[:, rows].T, self._n_units(rows))

    def _lds(
        self, importance: Importance
    ) -> tuple[Float[np.ndarray, "score row"], Float[np.ndarray, "row 2"], Float[np.ndarray, "alternative row 2"]]:
        """Compute linear datamodeling scores.

        Returns:
            Those of the scores and then of each alternative; the 95% interval of the scores' own; and the 95%
            intervals of the alternatives' lead over it.
        """
        n_masks = len(self.control.orders)
        value, replicates = self._lds_of_halves(importance)
        both = np.ones(2)
        value = np.asarray(statistics.weighted_mean(value, both))  # (score, cluster)
        replicates = np.asarray(statistics.weighted_mean(replicates.swapaxes(2, 3), both))
        value = np.concatenate([value, np.asarray(statistics.weighted_mean(value, self.size))[:, None]], 1)
        together = np.asarray(statistics.weighted_mean(replicates.swapaxes(1, 2), self.size))
        replicates = np.concatenate([replicates, together[:, None]], 1)  # (score, row, replicate)
        interval = statistics.correlation_interval(replicates[0].T, value[0], n_masks)
        # scores that do not differ predict nothing
        lead = replicates[1:] - np.nan_to_num(replicates[0])
        return value, interval, np.stack([[statistics.percentiles(row) for row in rows] for rows in lead])

    def _lds_of_halves(
        self, importance: Importance
    ) -> tuple[Float[np.ndarray, "score cluster half"], Float[np.ndarray, "score cluster half replicate"]]:
        """Compute linear datamodeling scores of the scores and alternatives in each half of each cluster.

        The masks are the control's orders, cut at the point nearest to 10% of the neurons. Masks are resampled, samples
        are not: effects on few samples are noisy, and noise draws every correlation towards zero.

        Returns:
            The values on the masks, and on resampled masks.
        """
        orders, removed = self.control.orders, self.control.removed
        point = int(np.abs(removed - LDS_FRACTION * orders.shape[1]).argmin())
        masks: Bool[np.ndarray, "draw neuron"] = np.argsort(orders, axis=1) < removed[point]
        draws = self._generator(3).integers(len(orders), size=(statistics.N_REPLICATES, len(orders)))
        candidates = [
            importance.half_mean,
            importance.half_abs_mean,
            importance.half_deviation,
            importance.half_first_order,
        ]
        value = np.full((len(candidates), len(self.half_members), 2), np.nan)
        replicates = np.full((*value.shape, statistics.N_REPLICATES), np.nan)
        for cluster, half in np.ndindex(value.shape[1:]):
            rows = self.half_members[cluster][half]
            if not len(rows):
                continue
            falls = self.outcomes.intact_margin[rows] - self.outcomes.margin[self.orders.control :, point, rows]
            effects = falls.mean(1)
            for place, candidate in enumerate(candidates):
                if candidate is None:
                    continue
                scores = candidate[1 - half, cluster]
                value[place, cluster, half] = statistics.linear_datamodeling_score(scores, masks, effects)
                resampled = statistics.row_correlations((masks @ scores)[draws], effects[draws])
                replicates[place, cluster, half] = resampled
        return value, replicates
