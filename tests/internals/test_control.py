"""The random control: rankings of all cells, with the names of the neurons permuted."""

import collections
import itertools

import numpy as np
import pytest

from lightning_neuroimp.ablation.control import RandomControl
from lightning_neuroimp.ablation.outcomes import PackedMasks
from lightning_neuroimp.statistics import randomisation_p_value

RNG = np.random.default_rng(0)


def control_of(rankings, removed=(1, 2), n_draws=19, seed=(0, 1)):
    return RandomControl(rankings, np.array(removed), n_draws, seed)


def random_ranking(cells, neurons):
    return np.stack([RNG.permutation(neurons) for _ in range(cells)])


def as_key(order):
    return tuple(order.ravel().tolist())


def all_draws(ranking, neurons):
    """The ranking with its names permuted in every possible way."""
    return [np.array(names)[ranking] for names in itertools.permutations(range(neurons))]


@pytest.mark.parametrize("ranking", [[[0, 1, 2, 3]] * 3, [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]]])
def test_p_values_of_all_namings_are_uniform(ranking):
    """Whatever removal does, and whatever clusters have in common: each naming has one of the ranks of the p-value."""
    ranking = np.array(ranking)
    # what removal of a set takes from each cell; what it takes from one cell it gives to the next
    effect = [collections.defaultdict(lambda: float(RNG.normal())) for _ in range(2)]

    def gap(order):
        sets = [frozenset(row[:count].tolist()) for row in order[:2] for count in (1, 2)]
        first, second = sum(effect[0][one] for one in sets[:2]), sum(effect[0][one] for one in sets[2:])
        return first - second + sum(effect[1][frozenset(row[:2].tolist())] for row in order[2:])

    orbit = all_draws(ranking, 4)
    values = np.array([gap(order) for order in orbit])
    p_values = [
        float(randomisation_p_value(np.asarray(values[place]), np.delete(values, place))) for place in range(len(orbit))
    ]
    for level in np.arange(1, 25) / 24:
        # ties share the larger rank, so that small p-values are never more frequent than their size
        assert np.mean(np.array(p_values) <= level + 1e-9) <= level + 1e-9
    if len(np.unique(values)) == 24:
        np.testing.assert_allclose(sorted(p_values), np.arange(1, 25) / 24)


def test_draws_are_uniform_over_the_namings():
    ranking = np.array([[0, 1, 2, 3, 4], [2, 0, 1, 4, 3]])
    # with more draws than there are namings, each would come once
    orders = [
        order for seed in range(1200) for order in control_of([ranking], n_draws=100, seed=(seed,)).extend([0], 100, 0)
    ]
    found = collections.Counter(as_key(order) for order in orders)
    assert set(found) == {as_key(order) for order in all_draws(ranking, 5)}
    assert min(found.values()) > 850
    assert max(found.values()) < 1150


def test_a_shared_order_is_not_exchangeable_where_rankings_differ():
    """The case that must fail: what one cell loses the other gains, and one order for all cells hides it."""
    weight = RNG.normal(size=6)
    value = lambda order: weight[order[0, :2]].sum() - weight[order[1, :2]].sum()  # noqa: E731
    small = {"own": 0, "shared": 0}
    for seed in range(400):
        generator = np.random.default_rng(seed)
        ranking = np.stack([generator.permutation(6) for _ in range(2)])
        own = np.array([value(order) for order in control_of([ranking], seed=(seed,)).extend([0], 19, 0)])
        shared = np.array([value(np.stack([generator.permutation(6)] * 2)) for _ in range(19)])
        for name, null in (("own", own), ("shared", shared)):
            small[name] += float(randomisation_p_value(np.array(value(ranking)), null)) <= 0.05
    assert small["own"] <= 34  # 99.9% of the time, at a rate of .05
    assert small["shared"] > 120


def test_the_structure_of_the_rankings_is_kept():
    rankings = [random_ranking(6, 30), random_ranking(6, 30)]
    control = control_of(rankings)
    orders = control.extend([0, 1], 19, 4)
    assert control.runs(0) == list(range(4, 23))
    assert control.runs(1) == list(range(23, 42))
    for score, ranking in enumerate(rankings):
        for place in control.runs(score):
            order = orders[place - 4]
            assert (np.sort(order, axis=1) == np.arange(30)).all()
            for one, other, count in itertools.product(range(6), range(6), (1, 5, 15)):
                shared = set(ranking[one, :count]) & set(ranking[other, :count])
                assert len(set(order[one, :count]) & set(order[other, :count])) == len(shared)


def test_draws_of_further_scores_are_uniform_too():
    """Although they are made to remove the first score's sets in one cell or the other."""
    rankings = [np.array([[0, 1, 2, 3, 4], [2, 0, 1, 3, 4]]), np.array([[1, 0, 2, 4, 3], [0, 1, 2, 4, 3]])]
    first, second = [], []
    for seed in range(1200):
        control = control_of(rankings, n_draws=100, seed=(seed,))
        orders = control.extend([0, 1], 100, 0)
        for score, found in enumerate((first, second)):
            found += [orders[run] for run in control.runs(score)]
    found = collections.Counter(as_key(order) for order in second)
    assert set(found) == {as_key(order) for order in all_draws(rankings[1], 5)}
    assert min(found.values()) > 850
    assert max(found.values()) < 1150
    # one after the other as well: what a draw is says nothing of the next
    pairs = collections.Counter((one[0, 0], two[0, 0]) for one, two in itertools.pairwise(second))
    assert len(pairs) == 25
    assert max(pairs.values()) < 5200  # 4800 each
    # in each draw one of the two cells is that of the first score
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one[0], two[0]) or np.array_equal(one[1], two[1])


@pytest.mark.parametrize("n_cells", [2, 4, 20])
def test_further_scores_need_fewer_sets(n_cells):
    one = random_ranking(n_cells, 40)
    similar = one.copy()
    similar[:, [0, 1]] = one[:, [1, 0]]  # the same two on top
    for other, expected in ((random_ranking(n_cells, 40), {2: 30, 4: 34, 20: 38}[n_cells] * 3), (similar, None)):
        control = control_of([one, other], removed=(2, 8, 20))
        packed = PackedMasks(control.extend([0, 1], 19, 0), np.array([2, 8, 20]))
        if expected is not None:
            assert len(packed) <= expected
        else:
            assert len(packed) <= 19 * 3 + 19  # only one neuron at the first point differs


def test_scores_with_equal_rankings_share_draws():
    one, other = random_ranking(4, 9), random_ranking(4, 9)
    control = control_of([one, other, one.copy()])
    orders = control.extend([0, 1, 2], 19, 10)
    assert len(orders) == 2 * 19
    assert control.runs(0) == control.runs(2) != control.runs(1)
    assert control.every_run == list(range(10, 48))
    assert control.made == 19
    assert control.draw_of_run == [*range(19), *range(19)]
    assert control.extend([0, 2], 19, 48) == []


def test_further_rounds_go_on_with_the_same_draws():
    rankings = [random_ranking(4, 9), random_ranking(4, 9)]
    whole, steps = control_of(rankings, n_draws=39), control_of(rankings, n_draws=39)
    at_once = whole.extend([0, 1], 39, 5)
    in_rounds = [None] * 5 + steps.extend([0, 1], 19, 5)
    in_rounds += steps.extend([1], 39, len(in_rounds))
    in_rounds += steps.extend([0], 39, len(in_rounds))
    for score in range(2):
        for one, other in zip(whole.runs(score), steps.runs(score), strict=True):
            np.testing.assert_array_equal(at_once[one - 5], in_rounds[other])
    assert sorted(steps.every_run) == list(range(5, 83))
    assert steps.made == 39


def test_masks_are_those_of_the_runs():
    control = control_of([random_ranking(4, 9), random_ranking(4, 9)], n_draws=39)
    orders = dict(enumerate(control.extend([0, 1], 19, 3), 3))
    orders |= dict(enumerate(control.extend([1], 39, 41), 41))
    for cell, count in itertools.product(range(4), (1, 4, 9)):
        masks = control.masks(cell, count)
        assert masks.shape == (58, 9)
        for mask, run in zip(masks, control.every_run, strict=True):
            assert set(np.flatnonzero(mask)) == set(orders[run][cell, :count].tolist())


def test_the_same_seed_gives_the_same_orders():
    ranking = random_ranking(2, 12)
    one, other, third = (control_of([ranking], seed=seed).extend([0], 19, 0) for seed in ((3, 4), (3, 4), (3, 5)))
    np.testing.assert_array_equal(one, other)
    assert (np.array(one) != np.array(third)).any()
