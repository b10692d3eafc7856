"""Judge rankings: from the outcomes of ablation at one site to curves, gaps, p-values, intervals and verdicts."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from lightning_neuroimp import statistics
from lightning_neuroimp.ablation.control import RandomControl
from lightning_neuroimp.ablation.early_stopping import sequential_gap_p_values
from lightning_neuroimp.ablation.intervals import gap_interval, mean_interval
from lightning_neuroimp.ablation.orders import ALTERNATIVES, REFERENCES, RemovalOrders
from lightning_neuroimp.ablation.outcomes import Outcomes
from lightning_neuroimp.results.faithfulness import Comparison, Faithfulness
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.verdict import verdict

LDS_FRACTION = 0.1
"""Share of the neurons in the removals from which the linear datamodeling score is computed."""


class Judge:
    """Judge the rankings of one site from the outcomes of ablation.

    Tables have one row per cluster and a last one for all clusters, weighted by their numbers of ablated samples.

    Args:
        importances: the attributions of the site.
        outcomes: of the orders in `orders`, and of the random control; their groups are cells (2 * cluster + half).
        orders: the orders of removal before the random control.
        control: knows the random orders that were run, and which of the outcomes are theirs.
        sample_group: group of each sample of the outcomes; intervals are over groups. None: over single samples.

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

    def undecided(self) -> list[int]:
        """Return the places of the scores of which a p-value could still move across the level of the verdict."""
        found = []
        for position, own in enumerate(self.orders.own):
            for row in range(len(self.members)):
                curve, control = self.accuracy[own, row], self._control(position, row)
                early = sequential_gap_p_values(curve, control, self.control.n_draws)
                if not np.isnan(curve).any() and None in early:
                    found.append(position)
                    break
        return found

    def faithfulness(self, position: int) -> Faithfulness:
        """Collect the results of the check of one attribution's ranking.

        Args:
            position: place of the attribution among the importances.
        """
        own, references = self.orders.own[position], self.orders.references(position)
        runs = self.control.runs(position)
        curve, control = self.accuracy[own], self.accuracy[runs]
        least = self.accuracy[self.orders.least[position]] if self.orders.least else None
        greedy = None if self.orders.greedy is None else self.accuracy[self.orders.greedy]
        gap, relative = statistics.gap(curve, control), statistics.relative_gap(curve, control)
        every = range(len(self.members))
        p_value, p_value_worse = np.array([self._p_values(position, row) for row in every]).T
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
            random_margin=self.margin[runs],
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
            gap_interval=np.stack([self._gap_interval(position, rows) for rows in self.members]),
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

    def _control(self, position: int, row: int) -> Float[np.ndarray, "draw point"]:
        """Return the accuracies of a score's random control in one row of the tables."""
        return self.accuracy[self.control.runs(position), row]

    def _p_values(self, position: int, row: int) -> tuple[float, float]:
        """Return both p-values of a gap in one row; sequential ones if the control stopped early."""
        curve, control = self.accuracy[self.orders.own[position], row], self._control(position, row)
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

    def _gap_interval(self, position: int, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, "2"]:
        """Compute the 95% interval of a score's gap over some samples; NaN with fewer than two."""
        control = self.level[self.control.runs(position)][:, rows]
        return gap_interval(self.level[self.orders.own[position], rows], control, self._groups(rows))

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
        interval = [mean_interval(difference[:, rows], self._groups(rows)) for rows in self.members]
        return np.stack(value, 1), np.stack(interval, 1)

    def _lds(
        self, importance: Importance
    ) -> tuple[Float[np.ndarray, "score row"], Float[np.ndarray, "row 2"], Float[np.ndarray, "alternative row 2"]]:
        """Compute linear datamodeling scores.

        Returns:
            Those of the scores and then of each alternative; the 95% interval of the scores' own; and the 95%
            intervals of the alternatives' lead over it.
        """
        value, replicates = self._lds_of_halves(importance)
        both = np.ones(2)
        value = np.asarray(statistics.weighted_mean(value, both))  # (score, cluster)
        replicates = np.asarray(statistics.weighted_mean(replicates.swapaxes(2, 3), both))
        value = np.concatenate([value, np.asarray(statistics.weighted_mean(value, self.size))[:, None]], 1)
        together = np.asarray(statistics.weighted_mean(replicates.swapaxes(1, 2), self.size))
        replicates = np.concatenate([replicates, together[:, None]], 1)  # (score, row, replicate)
        interval = statistics.correlation_interval(replicates[0].T, value[0], self.control.made)
        # scores that do not differ predict nothing
        lead = replicates[1:] - np.nan_to_num(replicates[0])
        return value, interval, np.stack([[statistics.percentiles(row) for row in rows] for rows in lead])

    def _lds_of_halves(
        self, importance: Importance
    ) -> tuple[Float[np.ndarray, "score cluster half"], Float[np.ndarray, "score cluster half replicate"]]:
        """Compute linear datamodeling scores of the scores and alternatives in each half of each cluster.

        The masks are the random orders of all scores, cut at the point nearest to 10% of the neurons: in each cell by
        itself they are as random as any. Draws are resampled, with the masks of all scores in them, as these are alike
        where scores agree. Samples are not: effects on few samples are noisy, and noise draws every correlation towards
        zero.

        Returns:
            The values on the masks, and on those of resampled draws.
        """
        removed, runs = self.control.removed, self.control.every_run
        point = int(np.abs(removed - LDS_FRACTION * importance.removal.n_neurons).argmin())
        made = self.control.made
        draws = self._generator(3).integers(made, size=(statistics.N_REPLICATES, made))
        weights = np.stack([np.bincount(row, minlength=made) for row in draws])[:, self.control.draw_of_run]
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
            masks = self.control.masks(2 * cluster + half, int(removed[point]))
            falls = self.outcomes.intact_margin[rows] - self.outcomes.margin[runs, point][:, rows]
            effects = falls.mean(1)
            for place, candidate in enumerate(candidates):
                if candidate is None:
                    continue
                scores = candidate[1 - half, cluster]
                value[place, cluster, half] = statistics.linear_datamodeling_score(scores, masks, effects)
                resampled = statistics.weighted_correlations(weights, masks @ scores, effects)
                replicates[place, cluster, half] = resampled
        return value, replicates
