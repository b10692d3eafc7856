import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from lightning_neuroimp.diagnosis import verdict
from lightning_neuroimp.statistics import (
    gap,
    gap_p_values,
    linear_datamodeling_score,
    points,
    randomisation_p_value,
    relative_gap,
    weighted_mean,
)


@given(st.integers(1, 5000))
def test_points_equal_exact_arithmetic(n):
    percents = (1, 2, 5, 10, 20, 50)
    expected = sorted({-(-percent * n // 100) for percent in percents})
    assert points(tuple(percent / 100 for percent in percents), n).tolist() == expected


def test_gap_equals_a_slow_loop():
    generator = np.random.default_rng(0)
    curve, control = generator.random((4, 6)), generator.random((9, 4, 6))
    for cluster in range(4):
        parts = [np.mean([control[r, cluster, k] for r in range(9)]) - curve[cluster, k] for k in range(6)]
        assert gap(curve, control)[cluster] == pytest.approx(np.mean(parts))
        level = np.mean(control[:, cluster])
        assert relative_gap(curve, control)[cluster] == pytest.approx(np.mean(parts) / level)
    assert np.isnan(relative_gap(np.zeros(3), np.zeros((5, 3))))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 5))
def test_p_value_equals_a_count(null, statistic):
    expected = (1 + sum(value >= statistic for value in null)) / (1 + len(null))
    # thirds: sums that differ by rounding only are equal
    found = randomisation_p_value(np.array(statistic / 3 * 3.0), np.array(null, float))
    assert float(found) == pytest.approx(expected)


def test_gap_p_values_compare_gaps():
    generator = np.random.default_rng(1)
    curve, control = generator.integers(0, 9, (3, 4)) / 9, generator.integers(0, 9, (19, 3, 4)) / 9
    better, worse = gap_p_values(curve, control)
    own = gap(curve, control)
    for cluster in range(3):
        gaps = [gap(control[r, cluster], control[:, cluster]) for r in range(19)]
        assert better[cluster] == pytest.approx((1 + sum(g >= own[cluster] - 1e-9 for g in gaps)) / 20)
        assert worse[cluster] == pytest.approx((1 + sum(g <= own[cluster] + 1e-9 for g in gaps)) / 20)


def test_removal_without_any_effect_is_no_evidence():
    better, worse = gap_p_values(np.ones((2, 3)), np.ones((19, 2, 3)))
    assert better.tolist() == worse.tolist() == [1, 1]
    assert verdict(1.0, 1.0, 0.0, 100) == "no better than random"


def test_lds_equals_scipy():
    generator = np.random.default_rng(2)
    scores, masks, effects = generator.normal(size=20), generator.random((50, 20)) < 0.2, generator.normal(size=50)
    sums = [scores[mask].sum() for mask in masks]
    assert linear_datamodeling_score(scores, masks, effects) == pytest.approx(pearsonr(sums, effects)[0])
    assert np.isnan(linear_datamodeling_score(np.zeros(20), masks, effects))
    assert np.isnan(linear_datamodeling_score(scores, masks, np.full(50, 0.3)))
    assert np.isnan(linear_datamodeling_score(scores, masks, np.where(np.arange(50) == 3, np.nan, effects)))


def test_weighted_mean_leaves_out_what_is_missing():
    assert weighted_mean(np.array([1.0, np.nan, 3.0]), np.array([1, 5, 3])) == pytest.approx(2.5)
    assert np.isnan(weighted_mean(np.array([np.nan]), np.array([1])))
    assert weighted_mean(np.array([[1.0, 3.0], [5.0, 5.0]]), np.array([1.0, 1.0])).tolist() == [2, 5]


@pytest.mark.parametrize(
    ("p", "worse", "relative", "half", "expected"),
    [
        (0.05, 1.0, 0.05, 16, "faithful"),
        (0.05, 1.0, 0.049, 16, "weak"),
        (0.06, 0.9, 0.5, 16, "no better than random"),
        (1.0, 0.05, -0.1, 16, "worse than random"),
        (0.05, 1.0, 0.5, 15, "too few samples to say"),
        (0.05, 1.0, float("nan"), 16, "weak"),
    ],
)
def test_verdicts(p, worse, relative, half, expected):
    assert verdict(p, worse, relative, half) == expected
