"""How well scores predict the effects of random removals (LDS), and how well anything could: its ceiling.

`Judge` makes one `Predictions` per site from the outcomes of the random control; it takes no removal of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp import statistics
from lightning_neuroimp.ablation.control import RandomControl
from lightning_neuroimp.ablation.outcomes import Outcomes
from lightning_neuroimp.results.importance import ORDER, Importance

LDS_FRACTION = 0.1
"""Share of the neurons in the removals from which the linear datamodeling score is computed."""

_STREAM = 3  # of the random numbers by which draws are resampled


@dataclass(frozen=True, eq=False)
class Prediction:
    """Hold how one score, and others of the same pass, predict removal; rows as in `Faithfulness`.

    Attributes:
        lds: linear datamodeling score of the score, then of each alternative.
        interval: 95% interval of the score's own.
        alternative_interval: 95% interval of (LDS of each alternative - LDS).
    """

    lds: Float[np.ndarray, "score row"]
    interval: Float[np.ndarray, "row 2"]
    alternative_interval: Float[np.ndarray, "alternative row 2"]


class Predictions:
    """Compute linear datamodeling scores at one site, and their ceiling.

    The masks are the random orders of all scores, cut at the point nearest to 10% of the neurons: in each cell by
    itself they are as random as any.

    Args:
        outcomes: of all orders.
        control: knows which of these are random.
        half_members: rows of the outcomes in each half of each cluster.
        weight: of each cluster in the last row.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        control: RandomControl,
        half_members: Sequence[Sequence[Int[np.ndarray, " _"]]],
        weight: Float[np.ndarray, " cluster"],
    ) -> None:
        self._outcomes, self._control = outcomes, control
        self._half_members, self._weight = half_members, weight
        self._cells: dict[tuple[int, int], Float[np.ndarray, "run sample"]] = {}

    def of(self, importance: Importance) -> Prediction:
        """Compute the linear datamodeling scores of one score and of its alternatives.

        A score that is an order predicts no effects: its own is NaN.

        Args:
            importance: of one attribution at the site.
        """
        value, replicates = self._of_halves(importance)
        both = np.ones(2)
        value = self._with_all(np.asarray(statistics.weighted_mean(value, both)))  # (score, row)
        replicates = np.asarray(statistics.weighted_mean(replicates.swapaxes(2, 3), both))
        replicates = self._with_all(replicates.swapaxes(1, 2)).swapaxes(1, 2)  # (score, row, replicate)
        interval = statistics.correlation_interval(replicates[0].T, value[0], self._control.made)
        # scores that do not differ predict nothing
        lead = replicates[1:] - np.nan_to_num(replicates[0])
        alternatives = np.stack([[statistics.percentiles(row) for row in rows] for rows in lead])
        if importance.attribution_kind == ORDER:
            value[0], interval[:], alternatives[:] = np.nan, np.nan, np.nan
        return Prediction(value, interval, alternatives)

    @cached_property
    def ceiling(self) -> Float[np.ndarray, " row"]:
        """Return how well the effects on a half can be predicted from those on another half as large, in each row.

        That is the correlation that the mean effects on two independent halves would have over the masks. The halves
        have masks of their own, so that it is estimated within each half: by Cronbach's alpha, the mean over all ways
        to split a half in two of their correlation, stepped up to the size of the half. Never below zero.

        References:
            Cronbach, "Coefficient alpha and the internal structure of tests", Psychometrika 16 (1951).
        """
        value = np.full((len(self._half_members), 2), np.nan)
        for cluster, half in np.ndindex(value.shape):
            if len(self._half_members[cluster][half]):
                value[cluster, half] = reliability_of_means(self._falls(cluster, half))
        return self._with_all(np.asarray(statistics.weighted_mean(value, np.ones(2))))

    def _with_all(self, table: Float[np.ndarray, "*rest cluster"]) -> Float[np.ndarray, "*rest row"]:
        """Append the mean over the clusters, by their weights, as a last row."""
        together = np.asarray(statistics.weighted_mean(table, self._weight))
        return np.concatenate([table, together[..., None]], -1)

    def _falls(self, cluster: int, half: int) -> Float[np.ndarray, "run sample"]:
        """Return the fall of the margin of each sample of a cell in each random order; NaN where it is not finite."""
        if (cluster, half) not in self._cells:
            rows, outcomes = self._half_members[cluster][half], self._outcomes
            left = outcomes.margin[self._control.every_run, self._point][:, rows]
            self._cells[cluster, half] = outcomes.intact_margin[rows] - left
        return self._cells[cluster, half]

    @cached_property
    def _point(self) -> int:
        """Return the place of the number of removed neurons that is nearest to a tenth of them."""
        return int(np.abs(self._control.removed - LDS_FRACTION * self._control.n_neurons).argmin())

    @cached_property
    def _resampled(self) -> Int[np.ndarray, "replicate run"]:
        """Return how often each random order is drawn again.

        Draws are resampled, with the masks of all scores in them, as these are alike where scores agree. Samples are
        not: effects on few samples are noisy, and noise draws every correlation towards zero.
        """
        made = self._control.made
        generator = np.random.default_rng([*self._control.seed, _STREAM])
        draws = generator.integers(made, size=(statistics.N_REPLICATES, made))
        return np.stack([np.bincount(row, minlength=made) for row in draws])[:, self._control.draw_of_run]

    def _of_halves(
        self, importance: Importance
    ) -> tuple[Float[np.ndarray, "score cluster half"], Float[np.ndarray, "score cluster half replicate"]]:
        """Compute linear datamodeling scores of the scores and alternatives in each half of each cluster.

        Returns:
            The values on the masks, and on those of resampled draws.
        """
        candidates = [
            importance.half_mean,
            importance.half_abs_mean,
            importance.half_deviation,
            importance.half_first_order,
            shared_scores(importance),
        ]
        value = np.full((len(candidates), len(self._half_members), 2), np.nan)
        replicates = np.full((*value.shape, statistics.N_REPLICATES), np.nan)
        for cluster, half in np.ndindex(value.shape[1:]):
            if not len(self._half_members[cluster][half]):
                continue
            masks = self._control.masks(2 * cluster + half, int(self._control.removed[self._point]))
            effects = self._falls(cluster, half).mean(1)
            for place, candidate in enumerate(candidates):
                if candidate is None:
                    continue
                scores = candidate[1 - half, cluster]
                value[place, cluster, half] = statistics.linear_datamodeling_score(scores, masks, effects)
                resampled = statistics.weighted_correlations(self._resampled, masks @ scores, effects)
                replicates[place, cluster, half] = resampled
        return value, replicates


def shared_scores(importance: Importance) -> Float[np.ndarray, "half cluster neuron"]:
    """Return the mean of a score over all clusters, by their sizes, in each half; the same for every cluster."""
    weight = importance.count / np.maximum(importance.count.sum(1, keepdims=True), 1)
    mean = (weight[..., None] * np.nan_to_num(importance.half_mean)).sum(1, keepdims=True)
    return np.repeat(mean, importance.half_mean.shape[1], axis=1)


def reliability_of_means(values: Float[np.ndarray, "mask sample"]) -> float:
    """Estimate the correlation, over masks, of the means over these samples and over as many others (Cronbach's alpha).

    Args:
        values: effect of each mask on each sample; samples with a value that is not finite are left out.

    Returns:
        From 0 to 1; NaN with fewer than two samples or masks, or without any effect.

    >>> reliability_of_means(np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]))
    1.0
    """
    values = values[:, np.isfinite(values).all(0)]
    n_masks, n = values.shape
    if n < 2 or n_masks < 2:
        return float("nan")
    centred = values - values.mean(0)
    mean = centred.mean(1)
    of_means, within = float(mean @ mean), float(((centred - mean[:, None]) ** 2).sum()) / (n - 1) / n
    if not of_means > 1e-24 * (1 + float((values**2).sum())):
        return float("nan")
    return max(0.0, 1 - within / of_means)
