"""Intervals of gaps and of differences, against slow twins in plain loops."""

import math
import statistics as plain

import numpy as np
import pytest
from scipy.stats import t

from lightning_neuroimp.ablation.intervals import PSEUDO, gap_interval, mean_interval

RNG = np.random.default_rng(0)


def slow_variance(values, groups):
    """Of the mean, with a pair of pseudo-samples: from what each group adds to the sum, over and above the mean."""
    mean, names = plain.fmean(values), sorted(set(groups))
    size = len(values) / len(names)
    sums = [sum(value - mean for value, group in zip(values, groups, strict=True) if group == name) for name in names]
    each = [one / size for one in sums] + [PSEUDO, -PSEUDO]
    return sum(one**2 for one in each) / (len(each) - 1) / len(names), len(names)


def slow_mean_interval(values, groups):
    variance, n = slow_variance(values, groups)
    half = t.ppf(0.975, n - 1) * math.sqrt(variance)
    mean = plain.fmean(values)
    return max(mean - half, -1), min(mean + half, 1)


def slow_gap_interval(own, control, groups):
    n_draws, n_samples = control.shape
    falls = [plain.fmean(control[draw, i] for draw in range(n_draws)) - own[i] for i in range(n_samples)]
    draws = [plain.fmean(control[draw]) for draw in range(n_draws)]
    one, n = slow_variance(falls, groups)
    two = plain.variance(draws) / n_draws
    freedom = (one + two) ** 2 / (one**2 / (n - 1) + two**2 / (n_draws - 1))
    half = t.ppf(0.975, freedom) * math.sqrt(one + two)
    return max(plain.fmean(falls) - half, -1), min(plain.fmean(falls) + half, 1)


@pytest.mark.parametrize("groups", [None, [0, 0, 0, 5, 5, 2, 2, 9, 9, 9, 9, 1]])
def test_intervals_equal_slow_loops(groups):
    own, control = RNG.random(12) / 3, RNG.random((19, 12)) / 3 + 0.1
    of_each = range(12) if groups is None else groups
    given = None if groups is None else np.array(groups)
    np.testing.assert_allclose(gap_interval(own, control, given), slow_gap_interval(own, control, of_each))
    difference = control[:3] - own
    found = mean_interval(difference, given)
    for row in range(3):
        np.testing.assert_allclose(found[row], slow_mean_interval(difference[row], of_each))
    low, high = gap_interval(own, control, given)
    assert (low + high) / 2 == pytest.approx((control - own).mean())  # the centre is the gap


def test_without_pseudo_samples_the_interval_of_a_mean_is_students(monkeypatch):
    monkeypatch.setattr("lightning_neuroimp.ablation.intervals.PSEUDO", 0.0)
    values = RNG.normal(size=9) / 4
    # the pair is still counted: a variance over n + 1 instead of n - 1
    half = t.ppf(0.975, 8) * values.std(ddof=1) / 3 * math.sqrt(8 / 10)
    np.testing.assert_allclose(mean_interval(values), [values.mean() - half, values.mean() + half])


def test_equal_values_do_not_give_a_point():
    for n in (2, 3, 16, 500):
        low, high = mean_interval(np.zeros(n))
        assert low < 0 < high
        assert high == pytest.approx(min(1, t.ppf(0.975, n - 1) * PSEUDO * math.sqrt(2 / (n + 1) / n)))
        np.testing.assert_allclose(gap_interval(np.zeros(n), np.zeros((19, n))), [low, high])
    assert high < 0.002


def test_what_is_not_defined_is_nan():
    one, control = np.zeros(1), np.zeros((19, 1))
    assert np.isnan(mean_interval(one)).all()
    assert np.isnan(mean_interval(np.zeros((3, 0)))).all()
    assert mean_interval(np.zeros((3, 0))).shape == (3, 2)
    assert np.isnan(gap_interval(one, control)).all()
    assert np.isnan(gap_interval(np.zeros(0), np.zeros((19, 0)))).all()
    assert np.isnan(gap_interval(np.zeros(9), np.zeros((1, 9)))).all()  # one order says nothing of how orders differ
    assert np.isnan(mean_interval(np.zeros(9), np.zeros(9, int))).all()  # one group
    assert np.isnan(mean_interval(np.array([0.1, np.nan, 0.2]))).all()
    # two samples: the whole range, nearly
    low, high = gap_interval(np.array([0.0, 1.0]), np.full((19, 2), 0.5))
    assert (low, high) == (-1, 1)


def test_copies_in_a_group_tell_no_more_than_one_sample():
    own, control = RNG.random(20), RNG.random((9, 20))
    copies = np.repeat(np.arange(20), 4)
    alone = gap_interval(own, control)
    np.testing.assert_allclose(gap_interval(own[copies], control[:, copies], groups=copies * 7), alone)
    ungrouped = gap_interval(own[copies], control[:, copies])
    assert np.diff(ungrouped) < 0.8 * np.diff(alone)


def test_orders_that_differ_widen_the_interval():
    own, control = np.zeros(50), np.repeat(RNG.random((19, 1)), 50, axis=1)
    half = t.ppf(0.975, 18) * control[:, 0].std(ddof=1) / math.sqrt(19)
    low, high = gap_interval(own, control)
    assert high - low == pytest.approx(2 * half, rel=0.1)
