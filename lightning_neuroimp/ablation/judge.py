"""Judge: what the outcomes of ablation say against random removal."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from lightning_neuroimp import statistics
from lightning_neuroimp.ablation.orders import ALTERNATIVES, REFERENCES, Plan
from lightning_neuroimp.ablation.outcomes import Outcomes
from lightning_neuroimp.results.faithfulness import Comparison, Faithfulness, Overall
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.verdict import verdict

LDS_FRACTION = 0.1


class Judge:
    """Curves, gaps, p-values, intervals and verdicts from ablation outcomes at one site.

    Args:
        ones: the attributions.
        outcomes: orders as in `plan`, then the random control; groups are clusters and halves.
        plan: which order is what.
        removed: the points of the curves.
        control: the random orders that were made.
        n_draws: how many were asked for.
        seed: of resampling.
        sample_group: of each sample of the outcomes; whole groups are drawn again. None: each sample by itself.
    """

    def __init__(
        self,
        ones: Sequence[Importance],
        outcomes: Outcomes,
        plan: Plan,
        removed: Int[np.ndarray, " point"],
        control: Int[np.ndarray, "draw neuron"],
        n_draws: int,
        seed: Sequence[int],
        sample_group: Int[np.ndarray, " sample"] | None = None,
    ) -> None:
        self.sample_group = sample_group
        self.ones, self.outcomes, self.plan, self.removed = ones, outcomes, plan, removed
        self.control, self.n_draws, self.seed = control, n_draws, seed
        cluster, half = outcomes.group // 2, outcomes.group % 2
        # a half without samples in the other half has no ranking: its samples say nothing
        count = ones[0].count
        ranked = (count[::-1] > 0).T[cluster, half] if len(cluster) else np.zeros(0, bool)
        self.rows = [np.flatnonzero(ranked & (cluster == row)) for row in range(count.shape[1])]
        self.half_rows = [[rows[half[rows] == side] for side in range(2)] for rows in self.rows]
        self.samples = np.array([[len(side) for side in sides] for sides in self.half_rows], np.int64).reshape(-1, 2)
        self.size = self.samples.sum(1)
        self.level = outcomes.correct.mean(1)  # of each order, over the points: (order, sample)
        self.accuracy = self._pooled(outcomes.correct)  # (order, cluster, point)
        self.margin = self._pooled(outcomes.margin)

    def _pooled(self, values: Shaped[np.ndarray, "*rest sample"]) -> Float[np.ndarray, "..."]:
        """Mean over the samples of each cluster, clusters in front of the last axis that is left."""
        empty = np.full(values.shape[:-1], np.nan)
        means = [values[..., rows].mean(-1) if len(rows) else empty for rows in self.rows]
        return np.moveaxis(np.array(means), 0, min(1, values.ndim - 1))

    def decided(self) -> bool:
        """Whether more random orders could not change any p-value's side of the level."""
        for own in self.plan.own:
            for curve, control in self._curves(own):
                upper, lower = statistics.sequential_gap_p_values(curve, control, self.n_draws)
                if not np.isnan(curve).any() and (upper is None or lower is None):
                    return False
        return True

    def _curves(self, order: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The curve and the control of each cluster, then of all together."""
        control = self.accuracy[self.plan.control :]
        curves = [(self.accuracy[order, row], control[:, row]) for row in range(len(self.rows))]
        return [*curves, (self._together(self.accuracy[order]), self._together(control))]

    def _together(self, curves: Float[np.ndarray, "*some cluster point"]) -> Float[np.ndarray, "*some point"]:
        return np.asarray(statistics.weighted_mean(curves.swapaxes(-1, -2), self.size))

    def faithfulness(self, position: int) -> Faithfulness:
        """All that is known of one attribution's ranking."""
        own, n_clusters = self.plan.own[position], len(self.rows)
        curve, control = self.accuracy[own], self.accuracy[self.plan.control :]
        references = self.accuracy[[self.plan.size, self.plan.shared[position]]]
        least = self.accuracy[self.plan.least[position]] if self.plan.least else None
        greedy = None if self.plan.greedy is None else self.accuracy[self.plan.greedy]
        p_values = np.array([self._p_values(*pair) for pair in self._curves(own)])
        gap, relative = statistics.gap(curve, control), statistics.relative_gap(curve, control)
        (lds, *alternatives), (lds_replicates, *theirs) = self._lds(self.ones[position])
        replicates = [self._gap_replicates(own, rows) for rows in [*self.rows, np.concatenate(self.rows)]]
        n_samples = [self._units(rows) for rows in [*self.rows, np.concatenate(self.rows)]]
        intervals = np.stack([statistics.bootstrap_interval(*pair) for pair in zip(replicates, n_samples, strict=True)])
        gains = [self._srg(position, rows) for rows in [*self.rows, np.concatenate(self.rows)]]
        n_lds = len(self.control)
        lds_intervals = statistics.correlation_interval(lds_replicates.T, lds, n_lds)
        lds_together, *others = (
            np.asarray(statistics.weighted_mean(one.T, self.size)) for one in (lds_replicates, *theirs)
        )
        lds_overall = float(statistics.weighted_mean(lds, self.size))
        smallest = self.samples.min(1)
        nan = np.full(n_clusters, np.nan)
        greedy_gap = None if greedy is None else statistics.gap(greedy, control)
        intact = self._pooled(self.outcomes.intact_correct)
        whole = self._together(curve), self._together(control)
        whole_gap, whole_relative = float(statistics.gap(*whole)), float(statistics.relative_gap(*whole))
        overall = Overall(
            intact_accuracy=float(statistics.weighted_mean(intact, self.size)),
            accuracy=whole[0],
            random_accuracy=whole[1],
            reference_accuracy=self._together(references),
            gap=whole_gap,
            relative_gap=whole_relative,
            p_value=float(p_values[-1, 0]),
            p_value_worse=float(p_values[-1, 1]),
            lds=lds_overall,
            verdict=verdict(
                float(p_values[-1, 0]), float(p_values[-1, 1]), whole_relative, int(self.samples.sum(0).min())
            ),
            reference_gap=np.stack([statistics.gap(self._together(one), whole[1]) for one in references]),
            reference_interval=np.stack(
                [self._difference(order, own) for order in (self.plan.size, self.plan.shared[position])]
            ),
            alternative_lds=np.array([float(statistics.weighted_mean(one, self.size)) for one in alternatives]),
            # scores that do not differ predict nothing
            alternative_interval=np.stack([percentiles(one - np.nan_to_num(lds_together)) for one in others]),
            gap_interval=intervals[-1],
            lds_interval=statistics.correlation_interval(lds_together, np.array(lds_overall), n_lds),
            least_accuracy=None if least is None else self._together(least),
            srg=gains[-1][0],
            srg_interval=gains[-1][1],
            greedy_accuracy=None if greedy is None else self._together(greedy),
            normalised_gap=_share(
                whole_gap, float("nan") if greedy is None else float(statistics.gap(self._together(greedy), whole[1]))
            ),
        )
        return Faithfulness(
            removed=self.removed,
            samples=self.samples.T,
            intact_accuracy=intact,
            intact_margin=self._pooled(self.outcomes.intact_margin),
            accuracy=curve,
            margin=self.margin[own],
            random_accuracy=control,
            random_margin=self.margin[self.plan.control :],
            references=REFERENCES,
            reference_accuracy=references,
            gap=gap,
            relative_gap=relative,
            p_value=p_values[:-1, 0],
            p_value_worse=p_values[:-1, 1],
            lds=lds,
            reference_gap=np.stack([statistics.gap(one, control) for one in references]),
            alternatives=ALTERNATIVES,
            alternative_lds=np.stack(alternatives),
            verdict=tuple(
                verdict(float(p_values[row, 0]), float(p_values[row, 1]), float(relative[row]), int(smallest[row]))
                for row in range(n_clusters)
            ),
            gap_interval=intervals[:-1],
            lds_interval=lds_intervals,
            least_accuracy=least,
            srg=np.array([value for value, _ in gains[:-1]]),
            srg_interval=np.stack([interval for _, interval in gains[:-1]]),
            greedy_accuracy=greedy,
            normalised_gap=nan if greedy_gap is None else np.array(list(map(_share, gap, greedy_gap))),
            q_value=nan,
            n_draws=self.n_draws,
            specificity=None,
            overall=overall,
        )

    def _generator(self, *more: int) -> np.random.Generator:
        return np.random.default_rng([*self.seed, *more])

    def _p_values(self, curve: np.ndarray, control: np.ndarray) -> tuple[float, float]:
        if len(control) < self.n_draws:
            early = statistics.sequential_gap_p_values(curve, control, self.n_draws)
            upper, lower = (np.nan if p_value is None else p_value for p_value in early)
        else:
            upper, lower = map(float, statistics.gap_p_values(curve, control))
        return upper, lower

    def _gap_replicates(self, order: int, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, " replicate"]:
        if len(rows) < 2:
            return np.full(statistics.N_REPLICATES, np.nan)
        control = self.level[self.plan.control :, rows]
        return statistics.gap_replicates(
            self.level[order, rows], control, self._generator(1), groups=self._groups(rows)
        )

    def _groups(self, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"] | None:
        return None if self.sample_group is None else self.sample_group[rows]

    def _units(self, rows: Int[np.ndarray, " row"]) -> int:
        """How many samples, or groups of them, are drawn again."""
        return len(rows) if self.sample_group is None else len(np.unique(self.sample_group[rows]))

    def _srg(self, position: int, rows: Int[np.ndarray, " row"]) -> tuple[float, Float[np.ndarray, "2"]]:
        if not self.plan.least or not len(rows):
            return float("nan"), np.full(2, np.nan)
        gain = self.level[self.plan.least[position], rows] - self.level[self.plan.own[position], rows]
        return float(gain.mean()), self._mean_interval(gain, rows)

    def _mean_interval(
        self, values: Float[np.ndarray, " sample"], rows: Int[np.ndarray, " sample"]
    ) -> Float[np.ndarray, "2"]:
        if len(values) < 2:
            return np.full(2, np.nan)
        weights = statistics.resamples(len(values), statistics.N_REPLICATES, self._generator(2), self._groups(rows))
        return statistics.bootstrap_interval(weights @ values, self._units(rows))

    def _difference(self, first: int, second: int) -> Float[np.ndarray, "2"]:
        """95% interval of how much more accuracy one order leaves than another, over all samples."""
        rows = np.concatenate(self.rows)
        return self._mean_interval((self.level[first] - self.level[second])[rows], rows)

    def _lds(self, one: Importance) -> tuple[Float[np.ndarray, "score cluster"], Float[np.ndarray, "score cluster _"]]:
        """Linear datamodeling score from the control's masks nearest to 10%, mean of the halves, and resampled masks.

        Of the scores, then of each alternative (NaN where there is none), over the same masks and replicates.

        Samples are not drawn again: effects on few samples are noisy, and noise draws every correlation towards zero.
        """
        n_draws, point = len(self.control), nearest(self.removed, self.control.shape[1], LDS_FRACTION)
        masks: Bool[np.ndarray, "draw neuron"] = np.argsort(self.control, axis=1) < self.removed[point]
        draws = self._generator(3).integers(n_draws, size=(statistics.N_REPLICATES, n_draws))
        candidates = [one.half_mean, one.half_abs_mean, one.half_deviation, one.half_first_order]
        score = np.full((len(candidates), *self.samples.shape), np.nan)
        replicates = np.full((*score.shape, statistics.N_REPLICATES), np.nan)
        for cluster, half in np.ndindex(self.samples.shape):
            rows = self.half_rows[cluster][half]
            if not len(rows):
                continue
            margins = self.outcomes.intact_margin[rows] - self.outcomes.margin[self.plan.control :, point, rows]
            effects = margins.mean(1)
            for place, candidate in enumerate(candidates):
                if candidate is None:
                    continue
                scores = candidate[1 - half, cluster]
                score[place, cluster, half] = statistics.linear_datamodeling_score(scores, masks, effects)
                replicates[place, cluster, half] = statistics.row_correlations((masks @ scores)[draws], effects[draws])
        both = np.ones(2)
        return (
            np.asarray(statistics.weighted_mean(score, both)),
            np.asarray(statistics.weighted_mean(replicates.swapaxes(2, 3), both)),
        )

    def comparisons(self) -> list[Comparison]:
        """Each two attributions."""
        found = []
        for first, second in itertools.combinations(range(len(self.ones)), 2):
            better = self.level[self.plan.own[second]] - self.level[self.plan.own[first]]
            rows = np.concatenate(self.rows)
            found.append(
                Comparison(
                    site=self.ones[0].site,
                    first=self.ones[first].attribution,
                    second=self.ones[second].attribution,
                    difference=float(better[rows].mean()) if len(rows) else float("nan"),
                    interval=self._mean_interval(better[rows], rows),
                    cluster_difference=np.array(
                        [better[rows].mean() if len(rows) else np.nan for rows in self.rows], float
                    ),
                    cluster_interval=np.stack([self._mean_interval(better[rows], rows) for rows in self.rows]),
                )
            )
        return found


def percentiles(replicates: Float[np.ndarray, " replicate"]) -> Float[np.ndarray, "2"]:
    """95% of bootstrap replicates; NaN where most of them are undefined."""
    known = replicates[np.isfinite(replicates)]
    return np.quantile(known, [0.025, 0.975]) if len(known) > len(replicates) / 2 else np.full(2, np.nan)


def nearest(removed: Int[np.ndarray, " point"], n_neurons: int, fraction: float) -> int:
    """The point of the curves nearest to a fraction of the neurons."""
    return int(np.abs(removed - fraction * n_neurons).argmin())


def _share(gap: float, greedy: float) -> float:
    return float(gap) / float(greedy) if greedy > 0 else float("nan")
