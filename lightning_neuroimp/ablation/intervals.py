"""Compute intervals of gaps and of differences of accuracies, which hold with few samples too."""

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

PSEUDO = 0.2
"""Distance from the mean, in accuracy, of the two pseudo-samples from which intervals never shrink to a point."""


def mean_interval(
    values: Float[np.ndarray, "*rest sample"], groups: Int[np.ndarray, " sample"] | None = None
) -> Float[np.ndarray, "*rest 2"]:
    """Compute Student's 95% interval of a mean of values from -1 to 1, after adding one pair of pseudo-samples.

    Few samples of a rare effect often do not differ at all: the pair, `PSEUDO` above and below the mean, keeps the
    variance from being taken for zero, and is soon outweighed. The interval's centre is the mean.

    Args:
        values: one per sample.
        groups: group of each sample; groups are the units then, which may differ in size. None: samples are.

    Returns:
        Lower and upper ends, within -1 and 1; NaN with fewer than two units.

    >>> mean_interval(np.zeros(20)).round(3)  # not [0, 0]
    array([-0.029,  0.029])
    """
    n, variance = _variance(values, groups)
    if n < 2:
        return np.full((*values.shape[:-1], 2), np.nan)
    return _around(np.asarray(values.mean(-1)), np.asarray(stats.t.ppf(0.975, n - 1) * np.sqrt(variance)))


def gap_interval(
    own: Float[np.ndarray, " sample"],
    control: Float[np.ndarray, "draw sample"],
    groups: Int[np.ndarray, " sample"] | None = None,
) -> Float[np.ndarray, "2"]:
    """Compute the 95% interval of a gap over samples and random orders, two crossed factors.

    The variances of the samples' and of the orders' means are added, with Satterthwaite's degrees of freedom.

    Args:
        own: mean correctness of each sample over the points of the deletion curve.
        control: mean correctness of each sample in each random order.
        groups: as in `mean_interval`.

    Returns:
        Lower and upper ends, within -1 and 1; NaN with fewer than two units or orders.

    References:
        Owen, "The pigeonhole bootstrap", 2007, for the variance; Satterthwaite, Biometrics Bulletin 2 (1946).

    >>> gap_interval(np.zeros(30), np.full((19, 30), 0.5)).round(3)
    array([0.481, 0.519])
    """
    value, draws = control.mean(0) - own, len(control)
    n, of_samples = _variance(value, groups)
    if n < 2 or draws < 2:
        return np.full(2, np.nan)
    of_draws = control.mean(1).var(ddof=1) / draws
    variance = of_samples + of_draws
    freedom = variance**2 / (of_samples**2 / (n - 1) + of_draws**2 / (draws - 1))
    return _around(np.asarray(value.mean()), np.asarray(stats.t.ppf(0.975, freedom) * np.sqrt(variance)))


def _variance(
    values: Float[np.ndarray, "*rest sample"], groups: Int[np.ndarray, " sample"] | None
) -> tuple[int, Float[np.ndarray, "*rest"]]:
    """Return the number of units, and the variance of the mean with one pair of pseudo-samples."""
    n = n_samples = values.shape[-1]
    if n == 0:
        return 0, np.full(values.shape[:-1], np.nan)
    units = values - values.mean(-1, keepdims=True)
    if groups is not None:
        order = np.argsort(groups, kind="stable")
        first = np.flatnonzero(np.diff(groups[order], prepend=groups.min() - 1))
        n = len(first)
        # what each group contributes to the mean of all samples, in units of a group of average size
        units = np.add.reduceat(units[..., order], first, axis=-1) * n / n_samples
    return n, np.asarray(((units**2).sum(-1) + 2 * PSEUDO**2) / (n + 1) / n)


def _around(value: Float[np.ndarray, "*rest"], half: Float[np.ndarray, "*rest"]) -> Float[np.ndarray, "*rest 2"]:
    """Return the ends of intervals of values from -1 to 1."""
    return np.clip(np.stack([value - half, value + half], -1), -1, 1)
