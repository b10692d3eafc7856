"""Compute statistics of deletion curves and of scores: gaps, p-values, intervals, correlations.

Takes and returns NumPy arrays and plain numbers; knows neither models nor results.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import stats

from lightning_neuroimp.errors import InvalidArgument

N_REPLICATES = 999
"""Number of resampled data sets from which the interval of a correlation is computed."""

MIN_SPECIFIC = 4
"""Smallest number of clusters with enough assignments to tell specificity from chance."""

ROUNDING = 1e-9
"""Means of counts that are equal on paper differ by less than this, all others by more."""


def points(fractions: Sequence[float], n_neurons: int) -> Int[np.ndarray, " point"]:
    """Return the numbers of neurons to remove, ascending: each fraction rounded up, without repeats.

    Args:
        fractions: shares of the neurons, above 0 and up to 1.
        n_neurons: number of all neurons.

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
    """Average (mean of the random control - deletion curve) over the points; positive is faithful.

    Args:
        curve: accuracy after removing the most important neurons.
        control: accuracy after removing as many neurons in each random order.
    """
    return np.asarray((control.mean(0) - curve).mean(-1))


def relative_gap(
    curve: Float[np.ndarray, "*curves point"], control: Float[np.ndarray, "draw *curves point"]
) -> Float[np.ndarray, "*curves"]:
    """Divide the gap by the mean of the random control; NaN where random removal leaves no accuracy at all.

    Args:
        curve: as in `gap`.
        control: as in `gap`.
    """
    level = np.asarray(control.mean(0).mean(-1))
    return np.divide(gap(curve, control), level, out=np.full(level.shape, np.nan), where=level > 0)


def randomisation_p_value(
    statistic: Float[np.ndarray, "*statistics"],
    null: Float[np.ndarray, " draw *statistics"],
    rounding: float = ROUNDING,
) -> Float[np.ndarray, "*statistics"]:
    """Compute (1 + draws at least as large as the statistic) / (1 + draws): exact where these are exchangeable.

    Args:
        statistic: the observed value.
        null: its value in each random draw.
        rounding: values that differ by less are equal.

    Returns:
        One-sided p-values; NaN where the statistic is NaN.

    References:
        Phipson and Smyth, "Permutation P-values should never be zero", 2010.

    >>> float(randomisation_p_value(np.array(3.0), np.array([1.0, 2.0, 3.0, 4.0])))
    0.6
    """
    share = (1 + (null >= statistic - rounding).sum(0)) / (1 + len(null))
    return np.where(np.isnan(statistic), np.nan, share)


def gap_p_values(
    curve: Float[np.ndarray, "*curves point"],
    control: Float[np.ndarray, "draw *curves point"],
    rounding: float = ROUNDING,
) -> tuple[Float[np.ndarray, "*curves"], Float[np.ndarray, "*curves"]]:
    """Compute two p-values of each gap: that of a ranking no better than random, and that of one no worse.

    Args:
        curve: as in `gap`.
        control: as in `gap`.
        rounding: gaps that differ by less are equal.
    """
    # the control's mean is the same in every gap, so that comparing mean accuracies is comparing gaps
    level, null = -curve.mean(-1), -control.mean(-1)
    better = randomisation_p_value(np.asarray(level), null, rounding)
    return better, randomisation_p_value(np.asarray(-level), -null, rounding)


def linear_datamodeling_score(
    scores: Float[np.ndarray, " neuron"],
    masks: Bool[np.ndarray, "mask neuron"],
    effects: Float[np.ndarray, " mask"],
) -> float:
    """Correlate, over masks, the sum of the removed neurons' scores with the measured effect of removing them.

    Args:
        scores: importance per neuron, from other samples than the effects.
        masks: True where a mask removes a neuron.
        effects: fall of the mean margin under each mask.

    Returns:
        Pearson's r; NaN where scores or effects do not vary over the masks, or are not finite.

    References:
        Park et al., "TRAK", 2023; for components of a network Shah et al., "COAR", arXiv 2404.11534.

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
    """Average over the last axis by weight, leaving out values that are not finite; NaN where none is left.

    Args:
        values: one per cluster, or per unit of any other kind.
        weights: non-negative weight of each.
    """
    weight = np.where(np.isfinite(values), weights, 0.0)
    total = weight.sum(-1)
    product = np.where(weight > 0, values, 0.0) * weight
    return np.divide(product.sum(-1), total, out=np.full(total.shape, np.nan), where=total > 0)


def symmetric_relevance_gain(
    most_first: Float[np.ndarray, "*curves point"], least_first: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "*curves"]:
    """Average (accuracy without the least important - accuracy without the most important neurons) over the points.

    Compares rankings with one another more reliably than either curve does.

    Args:
        most_first: deletion curves, most important neurons removed first.
        least_first: deletion curves at the same points, least important neurons removed first.

    Returns:
        Values from -1 to 1; 0 for a ranking without information.

    Raises:
        InvalidArgument: if the curves differ in shape.

    References:
        Bluecher, Vielhaben and Strodthoff, "Decoupling pixel flipping and occlusion strategy for consistent XAI
        benchmarks", arXiv 2401.06654.

    >>> float(symmetric_relevance_gain(np.array([0.5, 0.1]), np.array([0.9, 0.7])))
    0.5
    """
    if most_first.shape != least_first.shape:
        raise InvalidArgument(
            f"the two curves must have the same shape, one value at each point, got {most_first.shape} and "
            f"{least_first.shape}"
        )
    return np.asarray((least_first - most_first).mean(-1))


def specificity(
    accuracy_drop: Float[np.ndarray, "cluster cluster"], *, n_permutations: int = 999, seed: int = 0
) -> tuple[float, float]:
    """Measure how much more removing a cluster's top neurons hurts that cluster than the others.

    Args:
        accuracy_drop: fall of cluster i's accuracy when the top neurons of cluster j are removed, at `[i, j]`; clusters
            with NaN on the diagonal are left out.
        n_permutations: number of random assignments of columns to clusters; all are taken if there are no more.
        seed: of the assignments.

    Returns:
        Mean over clusters of (own drop - mean drop of the others), and the fraction of assignments (counting the right
        one) whose value is at least as large; NaN for both with fewer than four clusters.

    >>> value, p_value = specificity(np.eye(5) * 0.5 + 0.1)
    >>> round(value, 3), round(p_value, 3)
    (0.5, 0.008)
    """
    kept = np.isfinite(np.diag(accuracy_drop))
    matrix = accuracy_drop[np.ix_(kept, kept)]
    n = len(matrix)
    if n < MIN_SPECIFIC or not np.isfinite(matrix).all():
        return float("nan"), float("nan")
    if math.factorial(n) <= n_permutations:
        columns = np.array(list(itertools.permutations(range(n))))[1:]  # the first one is the right one
    else:
        generator = np.random.default_rng(seed)
        columns = np.stack([generator.permutation(n) for _ in range(n_permutations)])
    trace = matrix[np.arange(n), columns].sum(1)
    # the mean of all entries stays the same, so that comparing traces is comparing specificities
    own = float(np.trace(matrix))
    value = own / n - (float(matrix.sum()) - own) / (n * (n - 1))
    return value, float(randomisation_p_value(np.asarray(own), trace))


def bootstrap_interval(
    replicates: Float[np.ndarray, " replicate *statistics"], n: int, level: float = 0.95
) -> Float[np.ndarray, "*statistics 2"]:
    """Compute a percentile interval, widened as Student's t is wider than the normal distribution.

    Args:
        replicates: the statistic on resampled data.
        n: number of units that were resampled.
        level: nominal coverage.

    Returns:
        Lower and upper ends; NaN where a replicate is NaN, or with fewer than two units.

    References:
        Hesterberg, "What teachers should know about the bootstrap", 2015, expanded percentile interval.
    """
    if n < 2:
        return np.full((*replicates.shape[1:], 2), np.nan)
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1))
    with np.errstate(invalid="ignore"):
        found = np.quantile(replicates, [tail, 1 - tail], axis=0)
    return np.where(np.isnan(replicates).any(0)[..., None], np.nan, np.moveaxis(found, 0, -1))


def correlation_interval(
    replicates: Float[np.ndarray, " replicate *statistics"], value: Float[np.ndarray, "*statistics"], n: int
) -> Float[np.ndarray, "*statistics 2"]:
    """Compute the 95% interval of a correlation by reflecting replicates at the value, on Fisher's scale.

    Args:
        replicates: correlations on resampled pairs.
        value: correlation on the pairs themselves.
        n: number of pairs.

    References:
        Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2 (basic bootstrap).
    """
    reflected = 2 * _fisher(np.asarray(value))[..., None] - bootstrap_interval(_fisher(replicates), n)
    return np.tanh(reflected[..., ::-1])


def _fisher(correlation: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Transform correlations to Fisher's scale, staying finite for perfect ones."""
    return np.asarray(np.arctanh(np.clip(correlation, -1 + 1e-9, 1 - 1e-9)))


def split_half_reliability(one: Float[np.ndarray, " neuron"], other: Float[np.ndarray, " neuron"]) -> float:
    """Correlate the ranks of two halves' scores, corrected to the size of both together (Spearman-Brown).

    Args:
        one: importance per neuron on one half of the samples.
        other: importance per neuron on the other half.

    Returns:
        2 r / (1 + r) with Spearman's r; r itself below zero, where the correction has no meaning; NaN if a half does
        not vary or is not finite.

    References:
        Spearman, and Brown, both in British Journal of Psychology 3 (1910).
    """
    r = rank_correlation(one, other)
    return 2 * r / (1 + r) if r > 0 else r


def rank_correlation(one: Float[np.ndarray, " neuron"], other: Float[np.ndarray, " neuron"]) -> float:
    """Compute Spearman's rank correlation of two scores; NaN if one does not vary or is not finite."""
    if len(one) < 2 or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("nan")
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(stats.spearmanr(one, other).statistic)


def samples_needed(reliability: float, n_samples: float, goal: float = 0.9) -> float:
    """Estimate the number of samples with which scores would be reliable (Spearman-Brown's prophecy formula).

    Args:
        reliability: of scores from `n_samples` samples, up to 1.
        n_samples: number of samples so far.
        goal: reliability to reach.

    Returns:
        Number of samples; infinite if the reliability is not above zero, NaN if it is NaN.

    >>> round(samples_needed(0.6, 100))
    600
    """
    if math.isnan(reliability):
        return float("nan")
    if reliability <= 0:
        return float("inf")
    if reliability >= 1:
        return 0.0
    return n_samples * goal * (1 - reliability) / (reliability * (1 - goal))


def top_overlap(one: Float[np.ndarray, " neuron"], other: Float[np.ndarray, " neuron"], k: int) -> tuple[float, float]:
    """Compute the Jaccard overlap of two scores' k top neurons, and that of random ones: k / (2 d - k) of d neurons.

    Both are shares from 0 to 1; the overlap is NaN if a score is not finite.

    >>> top_overlap(np.array([3.0, 2.0, 1.0]), np.array([3.0, 1.0, 2.0]), 2)
    (0.3333333333333333, 0.5)
    """
    k = min(k, len(one))
    chance = k / (2 * len(one) - k)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("nan"), chance
    top = [set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (one, other)]
    return len(top[0] & top[1]) / len(top[0] | top[1]), chance


def false_discovery(
    p_values: Float[np.ndarray, " test"], method: Literal["bh", "by"] = "bh"
) -> Float[np.ndarray, " test"]:
    """Return the smallest false discovery rate at which each test is a discovery; NaN where its p-value is NaN.

    Args:
        p_values: of all tests.
        method: "bh" (Benjamini-Hochberg) holds the rate where tests are independent or rise together, "by"
            (Benjamini-Yekutieli), which finds less, however they depend on one another.

    References:
        Benjamini and Hochberg, "Controlling the false discovery rate", 1995; Benjamini and Yekutieli, "The control of
        the false discovery rate in multiple testing under dependency", 2001.
    """
    known = np.isfinite(p_values)
    found = np.full(p_values.shape, np.nan)
    if known.any():
        found[known] = stats.false_discovery_control(p_values[known], method=method)
    return found


def weighted_correlations(
    weights: Num[np.ndarray, "replicate value"], one: Float[np.ndarray, " value"], other: Float[np.ndarray, " value"]
) -> Float[np.ndarray, " replicate"]:
    """Compute Pearson's correlation of two rows of values under several weights.

    Args:
        weights: non-negative, such as how often each value was drawn again.
        one: values.
        other: values to correlate them with.

    Returns:
        One correlation for each row of the weights; NaN where one does not vary.

    >>> weighted_correlations(np.array([[1, 1, 1], [2, 1, 0]]), np.array([0.0, 1, 2]), np.array([0.0, 1, 0])).round(3)
    array([0., 1.])
    """
    weights = weights.astype(float)  # products of integers are sixty times slower
    one, other = one - one.mean(), other - other.mean()
    total = weights.sum(1)
    first, second = weights @ one, weights @ other
    variances = [weights @ row**2 - mean**2 / total for row, mean in ((one, first), (other, second))]
    # what is left of a sum of squares by rounding is no variance
    varies = (variances[0] > 1e-12 * (weights @ one**2)) & (variances[1] > 1e-12 * (weights @ other**2))
    norm = np.sqrt(np.where(varies, variances[0] * variances[1], 1.0))
    return np.where(varies, (weights @ (one * other) - first * second / total) / norm, np.nan)


def percentiles(replicates: Float[np.ndarray, " replicate"]) -> Float[np.ndarray, "2"]:
    """Return the 2.5% and 97.5% quantiles of replicates; NaN where most of them are not defined."""
    known = replicates[np.isfinite(replicates)]
    return np.quantile(known, [0.025, 0.975]) if len(known) > len(replicates) / 2 else np.full(2, np.nan)
