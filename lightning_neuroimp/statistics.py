"""Statistics of deletion curves: gaps, randomisation p-values and the linear datamodeling score."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num

_ROUNDING = 1e-9  # means of counts that are equal on paper differ by less than this, others by more


def points(fractions: Sequence[float], n_neurons: int) -> Int[np.ndarray, " point"]:
    """How many neurons to remove: each fraction rounded up, without repeats.

    >>> points((0.01, 0.02, 0.05, 0.1, 0.2, 0.5), 64)
    array([ 1,  2,  4,  7, 13, 32])
    >>> points((0.01, 0.02, 0.05, 0.1, 0.2, 0.5), 16)
    array([1, 2, 4, 8])
    """
    # the tolerance keeps .1 * 30 = 3.0000000000000004 from being rounded up to 4
    return np.unique(np.ceil(np.array(fractions) * n_neurons - 1e-9).astype(np.int64))


def gap(
    curve: Float[np.ndarray, "*curves point"], control: Float[np.ndarray, "draw *curves point"]
) -> Float[np.ndarray, "*curves"]:
    """Mean over the points of (mean of the random control - deletion curve); positive is faithful.

    Args:
        curve: accuracy after removing the most important neurons.
        control: the same for each random order.
    """
    return np.asarray((control.mean(0) - curve).mean(-1))


def relative_gap(
    curve: Float[np.ndarray, "*curves point"], control: Float[np.ndarray, "draw *curves point"]
) -> Float[np.ndarray, "*curves"]:
    """The gap over the mean of the random control; NaN where random removal leaves no accuracy at all."""
    level = np.asarray(control.mean(0).mean(-1))
    return np.divide(gap(curve, control), level, out=np.full(level.shape, np.nan), where=level > 0)


def randomisation_p_value(
    statistic: Float[np.ndarray, "*statistics"], null: Float[np.ndarray, "draw *statistics"]
) -> Float[np.ndarray, "*statistics"]:
    """(1 + draws at least as large as the statistic) / (1 + draws): exact where the null is exchangeable with it.

    NaN where the statistic is.

    Source: Phipson and Smyth, "Permutation P-values should never be zero", 2010.

    >>> float(randomisation_p_value(np.array(3.0), np.array([1.0, 2.0, 3.0, 4.0])))
    0.6
    """
    share = (1 + (null >= statistic - _ROUNDING).sum(0)) / (1 + len(null))
    return np.where(np.isnan(statistic), np.nan, share)


def gap_p_values(
    curve: Float[np.ndarray, "*curves point"], control: Float[np.ndarray, "draw *curves point"]
) -> tuple[Float[np.ndarray, "*curves"], Float[np.ndarray, "*curves"]]:
    """The p-values of a gap: against no better than random, and against no worse.

    The control's mean is the same in every gap, so comparing gaps is comparing mean accuracies.
    """
    level, null = -curve.mean(-1), -control.mean(-1)
    return randomisation_p_value(np.asarray(level), null), randomisation_p_value(np.asarray(-level), -null)


def linear_datamodeling_score(
    scores: Float[np.ndarray, " neuron"],
    masks: Bool[np.ndarray, "mask neuron"],
    effects: Float[np.ndarray, " mask"],
) -> float:
    """Correlation, over masks, of the sum of the removed neurons' scores with the measured joint effect.

    Args:
        scores: importance per neuron, from other samples than the effects.
        masks: which neurons each mask removes.
        effects: fall of the mean margin under each mask.

    Returns:
        Pearson's r; NaN where scores or effects do not vary over the masks, or are not finite.

    Source: Park et al., "TRAK", 2023; for components of a network Shah et al., "COAR", arXiv 2404.11534.

    >>> masks = np.array([[True, False, False], [False, True, False], [True, True, False]])
    >>> scores = np.array([1.0, 2.0, 0.0])
    >>> round(linear_datamodeling_score(scores, masks, masks @ scores), 6)
    1.0
    """
    predicted = masks.astype(float) @ scores
    if not (np.isfinite(predicted).all() and np.isfinite(effects).all()):
        return float("nan")
    predicted, measured = predicted - predicted.mean(), effects - effects.mean()
    norm = np.linalg.norm(predicted) * np.linalg.norm(measured)
    return float(predicted @ measured / norm) if norm > 1e-12 * (1 + np.abs(effects).sum()) else float("nan")


def weighted_mean(values: Float[np.ndarray, "*rest cluster"], weights: Num[np.ndarray, " cluster"]) -> np.ndarray:
    """Mean over the last axis by weight, leaving out what is not finite; NaN where nothing is left."""
    weight = np.where(np.isfinite(values), weights, 0.0)
    total = weight.sum(-1)
    product = np.where(weight > 0, values, 0.0) * weight
    return np.divide(product.sum(-1), total, out=np.full(total.shape, np.nan), where=total > 0)
