import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from lightning_neuroimp import statistics
from lightning_neuroimp.ablation.early_stopping import sequential_gap_p_values, sequential_p_value
from lightning_neuroimp.statistics import (
    gap,
    gap_p_values,
    linear_datamodeling_score,
    points,
    randomisation_p_value,
    relative_gap,
    weighted_mean,
)

RNG = np.random.default_rng(0)


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


# intervals, agreement, discoveries, stopping: each against a slow twin


def test_srg_equals_a_loop():
    most, least = RNG.random((2, 3, 4))
    expected = [np.mean([least[row, point] - most[row, point] for point in range(4)]) for row in range(3)]
    np.testing.assert_allclose(statistics.symmetric_relevance_gain(most, least), expected)
    np.testing.assert_allclose(statistics.symmetric_relevance_gain(least, most), np.negative(expected))
    with pytest.raises(ValueError, match=r"must have the same shape, one value at each point, got \(3, 4\) and \(4,\)"):
        statistics.symmetric_relevance_gain(most, least[0])


def slow_specificity(damage, columns):
    n = len(damage)
    own = [damage[row, column] for row, column in enumerate(columns)]
    rest = [damage[row, other] for row, column in enumerate(columns) for other in range(n) if other != column]
    return np.mean(own) - np.mean(rest)


@pytest.mark.parametrize("n", [4, 5])
def test_specificity_equals_all_permutations(n):
    damage = RNG.random((n, n)) + np.eye(n) * 0.2
    value, p_value = statistics.specificity(damage)
    everything = [slow_specificity(damage, columns) for columns in itertools.permutations(range(n))]
    assert value == pytest.approx(everything[0])
    assert p_value == pytest.approx(np.mean(np.array(everything) >= everything[0] - 1e-12))


def test_specificity_of_many_few_and_missing_clusters():
    value, p_value = statistics.specificity(np.eye(9))
    assert (value, p_value) == (1.0, 1 / 1000)
    assert np.isnan(statistics.specificity(np.eye(3))).all()
    damage = np.full((6, 6), np.nan)
    damage[:5, :5] = np.eye(5)
    assert statistics.specificity(damage) == statistics.specificity(np.eye(5))


def test_the_interval_of_a_mean_is_students():
    values = RNG.normal(size=12)
    replicates = values[np.random.default_rng(0).integers(12, size=(200_000, 12))].mean(1)
    found = statistics.bootstrap_interval(replicates, 12)
    # the bootstrap's spread is that of the population: expanded, it is Student's interval but for skewness
    half = scipy.stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    np.testing.assert_allclose(found, [values.mean() - half, values.mean() + half], atol=0.06 * half)
    assert np.isnan(statistics.bootstrap_interval(replicates, 1)).all()
    assert np.isnan(statistics.bootstrap_interval(np.array([1.0, np.nan]), 5)).all()


def test_the_interval_of_a_correlation_is_about_fishers():
    generator = np.random.default_rng(0)
    one = generator.normal(size=400)
    other = one + generator.normal(size=400)
    value = np.corrcoef(one, other)[0, 1]
    weights = generator.multinomial(400, np.full(400, 1 / 400), size=4000)
    replicates = statistics.weighted_correlations(weights, one, other)
    found = statistics.correlation_interval(replicates, np.array(value), 400)
    expected = np.tanh(np.arctanh(value) + np.array([-1.96, 1.96]) / np.sqrt(397))
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_weighted_correlations_are_those_of_repeated_values():
    one, other = RNG.normal(size=(2, 8))
    one[:3] = 0.1
    weights = RNG.integers(0, 4, size=(6, 8))
    weights[3] = [2, 1, 3, 0, 0, 0, 0, 0]  # three equal values: nothing that varies
    found = statistics.weighted_correlations(weights, one, other)
    for row in (0, 1, 2, 4, 5):
        expected = np.corrcoef(np.repeat(one, weights[row]), np.repeat(other, weights[row]))[0, 1]
        assert found[row] == pytest.approx(expected)
    assert np.isnan(found[3])
    np.testing.assert_allclose(statistics.weighted_correlations(weights * 2.5, one, other), found)


def test_reliability_is_spearmans_with_browns_correction():
    one = RNG.normal(size=200)
    other = one + RNG.normal(size=200)
    r = scipy.stats.pearsonr(scipy.stats.rankdata(one), scipy.stats.rankdata(other)).statistic
    assert statistics.rank_correlation(one, other) == pytest.approx(r)
    assert statistics.split_half_reliability(one, other) == pytest.approx(2 * r / (1 + r))
    assert statistics.split_half_reliability(one, -other) == pytest.approx(-r)
    assert np.isnan(statistics.split_half_reliability(one, np.zeros(200)))
    assert np.isnan(statistics.split_half_reliability(one, np.full(200, np.nan)))


def test_samples_needed_reach_the_goal():
    """Means of n noisy scores: what n gives, and what the formula then asks for."""
    generator = np.random.default_rng(0)
    truth = generator.normal(size=4000)

    def halves(n):
        return (truth + generator.normal(size=4000) * np.sqrt(8 / (n / 2)) for _ in range(2))

    at = statistics.split_half_reliability(*halves(16))
    needed = statistics.samples_needed(at, 16)
    assert 0.4 < at < 0.75
    assert statistics.split_half_reliability(*halves(needed)) == pytest.approx(0.9, abs=0.01)
    assert statistics.samples_needed(-0.1, 16) == np.inf
    assert statistics.samples_needed(1.0, 16) == 0
    assert np.isnan(statistics.samples_needed(np.nan, 16))


def test_top_overlap_and_its_chance():
    generator = np.random.default_rng(0)
    found = []
    for _ in range(3000):
        one, other = generator.normal(size=(2, 30))
        overlap, chance = statistics.top_overlap(one, other, 6)
        top = [set(sorted(range(30), key=lambda j: -scores[j])[:6]) for scores in (one, other)]
        assert overlap == len(top[0] & top[1]) / len(top[0] | top[1])
        found.append(overlap)
    assert chance == 6 / 54
    # the ratio's mean is near the ratio of the means
    assert np.mean(found) == pytest.approx(chance, abs=0.015)
    assert np.isnan(statistics.top_overlap(np.full(30, np.nan), other, 6)[0])


def test_false_discovery_equals_the_step_up_procedure():
    p_values = np.array([0.01, 0.02, np.nan, 0.03, 0.5, 0.04, 0.9])
    found = statistics.false_discovery(p_values)
    assert np.isnan(found[2])
    known = np.delete(p_values, 2)
    for level in (0.01, 0.03, 0.05, 0.06, 0.1, 0.7, 1.0):
        passed = [k for k, p in enumerate(np.sort(known), 1) if p <= k / len(known) * level + 1e-12]
        threshold = np.sort(known)[max(passed) - 1] if passed else -1
        np.testing.assert_array_equal(np.delete(found, 2) <= level + 1e-12, known <= threshold)
    assert np.isnan(statistics.false_discovery(np.array([np.nan]))).all()


def test_benjamini_and_yekutieli_equal_the_step_up_procedure():
    p_values = np.array([0.001, 0.004, np.nan, 0.03, 0.5, 0.012, 0.9])
    found = np.delete(statistics.false_discovery(p_values, "by"), 2)
    known = np.delete(p_values, 2)
    harmonic = sum(1 / k for k in range(1, 7))
    for level in (0.01, 0.03, 0.05, 0.1, 0.3, 0.9):
        passed = [k for k, p in enumerate(np.sort(known), 1) if p <= k / 6 / harmonic * level + 1e-12]
        threshold = np.sort(known)[max(passed) - 1] if passed else -1
        np.testing.assert_array_equal(found <= level + 1e-12, known <= threshold)
    assert (found >= np.delete(statistics.false_discovery(p_values), 2)).all()


@given(st.lists(st.booleans(), min_size=99, max_size=99), st.sampled_from([19, 39, 79]))
def test_stopping_early_decides_as_all_draws_do(exceeded, so_far):
    exceeded = np.array(exceeded)
    early = sequential_p_value(exceeded[:so_far], 99)
    whole = (1 + exceeded.sum()) / 100
    if early is not None:
        assert early > 0.05
        assert whole > 0.05
    # and once all draws are made, everything above the level has been decided
    assert (sequential_p_value(exceeded, 99) is None) == (whole <= 0.05)


def test_besag_and_cliffords_p_value():
    exceeded = np.zeros(30, bool)
    exceeded[[3, 7, 11, 12, 20]] = True
    assert sequential_p_value(exceeded, 99) == 5 / 21
    assert sequential_p_value(exceeded[:20], 99) is None
    curve, control = np.array([0.5, 0.5]), np.array([[0.4, 0.4], [0.6, 0.6], [0.5, 0.5]])
    assert sequential_gap_p_values(curve, control, 19) == (1 / 1, 1 / 2)


def test_values_that_differ_by_rounding_only_are_equal():
    null = np.array([1.0, 1.0 + 1e-7, 1.0 - 1e-7, 2.0])
    assert randomisation_p_value(np.array(1.0), null) == 4 / 5  # all but the one that is a little less
    assert randomisation_p_value(np.array(1.0), null, 1e-6) == 1.0
    better, worse = gap_p_values(np.array([1.0]), null[:, None], 1e-6)
    assert (float(better), float(worse)) == (0.8, 1.0)
    assert sequential_gap_p_values(np.array([1.0]), null[:, None], 19, 1e-6) == (1.0, 1.0)
