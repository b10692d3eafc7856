"""What a check measures beyond gaps: intervals, comparisons, specificity, orders, what is kept, early stopping."""

import collections
import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import (
    AblationFaithfulness,
    Attribution,
    ProbeSet,
    Results,
    ablation_faithfulness,
    deletion_curve,
    neuron_importance,
    symmetric_relevance_gain,
)
from lightning_neuroimp.capture.suffix.tape import Tape
from lightning_neuroimp.capture.targets import MARGIN
from tests.support.digits import batches, digits, train, validation_batches
from tests.support.toys import Function


@pytest.fixture(scope="module")
def small():
    return train(nn.Tanh, width=24, depth=2, epochs=4), validation_batches()


def check(small, names, **settings):
    model, data = small
    results = neuron_importance(model, data, layers="1", attribution=names)
    return ablation_faithfulness(model, data, results, AblationFaithfulness(**settings))


@pytest.fixture(scope="module")
def everything(small):
    names = ["gradient_x_activation", "gradient", "random"]
    return check(small, names, least_first=True, best_order=True, specificity=True)


def test_intervals_hold_their_values(everything):
    for one in everything.importances:
        judged = one.faithfulness
        for value, interval in [
            (judged.gap, judged.gap_interval),
            (judged.lds, judged.lds_interval),
            (judged.srg, judged.srg_interval),
        ]:
            assert (interval[:, 0] <= value).all()
            assert (value <= interval[:, 1]).all()
        assert judged.gap_interval[-1, 0] < judged.gap[-1] < judged.gap_interval[-1, 1]
        assert judged.lds_interval[-1, 0] < judged.lds[-1] < judged.lds_interval[-1, 1]
        # ten clusters together are known better than each of them
        width = judged.gap_interval[:, 1] - judged.gap_interval[:, 0]
        assert width[-1] < np.median(width[:-1])


def test_least_first_curves_are_those_of_reversed_rankings(small, everything):
    judged = everything["1"].faithfulness
    np.testing.assert_allclose(judged.srg, symmetric_relevance_gain(judged.accuracy, judged.least_accuracy))
    assert judged.srg[-1] == pytest.approx(
        float(symmetric_relevance_gain(judged.accuracy[-1], judged.least_accuracy[-1]))
    )
    upside_down = Attribution("reversed", lambda batch: -(batch.activation * batch.gradient))
    other = check(small, [upside_down])["1"].faithfulness
    np.testing.assert_allclose(other.accuracy, judged.least_accuracy)
    assert everything["1", "random"].faithfulness.srg[-1] == pytest.approx(0, abs=0.15)


def test_comparisons_pair_the_samples(everything):
    pairs = list(itertools.combinations(["gradient_x_activation", "gradient", "random"], 2))
    assert [(one.first, one.second) for one in everything.comparisons] == pairs
    for one in everything.comparisons:
        first, second = (everything["1", name].faithfulness for name in (one.first, one.second))
        # each score has a control of its own, which has no part in the difference
        expected = (second.accuracy - first.accuracy).mean(1)
        assert one.difference == pytest.approx(expected[-1])
        np.testing.assert_allclose(one.cluster_difference, expected[:-1])
        assert one.interval[0] < one.difference < one.interval[1]
    assert everything.comparisons[0].better == "gradient_x_activation"
    same = Attribution("same", lambda batch: batch.activation * batch.gradient)
    tie = check((train(nn.Tanh, width=8, depth=1, epochs=2), validation_batches()), ["gradient_x_activation", same])
    assert tie.comparisons[0].better is None
    assert tie.comparisons[0].difference == 0


def test_discoveries_are_counted_over_clusters_sites_and_scores(small):
    model, data = small
    results = neuron_importance(model, data, layers=["1", "3"], attribution=["gradient", "random"])
    found = ablation_faithfulness(model, data, results)
    p_values = np.concatenate([one.faithfulness.p_value[:-1] for one in found.importances])
    q_values = np.concatenate([one.faithfulness.q_value[:-1] for one in found.importances])
    order = np.argsort(p_values)
    expected = np.minimum.accumulate((p_values[order] * 40 / np.arange(1, 41))[::-1])[::-1]
    np.testing.assert_allclose(q_values[order], np.minimum(expected, 1))


def test_discoveries_under_any_dependence_are_fewer(small):
    model, data = small
    results = neuron_importance(model, data, layers=["1", "3"], attribution=["gradient", "random"])
    usual, by = (
        ablation_faithfulness(model, data, results, AblationFaithfulness(false_discovery=method))
        for method in ("bh", "by")
    )
    harmonic = sum(1 / k for k in range(1, 41))
    for one, other in zip(usual.importances, by.importances, strict=True):
        np.testing.assert_array_equal(one.faithfulness.p_value, other.faithfulness.p_value)
        expected = np.minimum(one.faithfulness.q_value * harmonic, 1)
        known = one.faithfulness.q_value[:-1] * harmonic < 1
        np.testing.assert_allclose(other.faithfulness.q_value[:-1][known], expected[:-1][known])
        assert (other.faithfulness.q_value[:-1] >= one.faithfulness.q_value[:-1]).all()
    assert by.notes[-1] == "q-values are Benjamini and Yekutieli's, which hold however the tests depend on one another"
    assert by.notes[-1] not in usual.notes


@pytest.mark.usefixtures("unchecked")
def test_other_rates_of_false_discoveries_are_refused():
    with pytest.raises(ValueError, match=r"false_discovery must be 'bh' or 'by', got 'bonferroni'"):
        AblationFaithfulness(false_discovery="bonferroni")


def test_another_score_leaves_the_control_of_the_first_one_as_it_is(small):
    one, two = (check(small, names) for names in (["gradient"], ["gradient", "activation"]))
    alone, beside = one["1"].faithfulness, two["1", "gradient"].faithfulness
    np.testing.assert_array_equal(alone.random_accuracy, beside.random_accuracy)
    np.testing.assert_array_equal(alone.p_value, beside.p_value)
    np.testing.assert_allclose(alone.gap_interval, beside.gap_interval)


class Blocks(nn.Module):
    """Five classes with two units each, and ten units of no use."""

    def __init__(self):
        super().__init__()
        self.site = nn.Identity()

    def forward(self, x):
        h = self.site(x)
        return h[:, :10].reshape(-1, 5, 2).sum(2) + torch.linspace(0, 0.1, 5)


def test_specificity_of_planted_blocks():
    y = torch.arange(200) % 5
    x = torch.cat([nn.functional.one_hot(y, 5).repeat_interleave(2, 1), torch.rand(200, 10)], 1).float()
    results = neuron_importance(Blocks(), [(x, y)], layers="site")
    settings = AblationFaithfulness(specificity=True)
    found = ablation_faithfulness(Blocks(), [(x, y)], results, settings)["site"].faithfulness.specificity
    assert found.removed == 2
    # without its two units a class is taken for the last one, which the bias prefers; that one stays right
    np.testing.assert_allclose(found.accuracy_drop, np.diag([1.0, 1, 1, 1, 0]))
    assert found.value == pytest.approx(0.8)
    assert found.p_value == pytest.approx(1 / 120)
    np.testing.assert_allclose(found.balanced_accuracy[0], 1.0)
    # its samples are all missed, and no other sample is taken for it; of the last class all are still found
    np.testing.assert_allclose(found.balanced_accuracy[1], [0.5, 0.5, 0.5, 0.5, 1.0])


def test_specificity_follows_clusters_of_mixed_classes(small):
    model, data = small
    results = neuron_importance(model, data, layers="1", clusters=lambda batch: batch[1] % 4)
    found = ablation_faithfulness(model, data, results, AblationFaithfulness(specificity=True))
    specificity = found["1"].faithfulness.specificity
    assert np.isnan(specificity.balanced_accuracy).all()
    assert specificity.accuracy_drop.shape == (4, 4)
    assert specificity.value > 0


def test_the_diagonal_of_the_specificity_is_a_point_of_the_curve(everything):
    judged = everything["1"].faithfulness
    point = judged.removed.tolist().index(judged.specificity.removed)
    np.testing.assert_allclose(
        np.diag(judged.specificity.accuracy_drop), (judged.intact_accuracy - judged.accuracy[:, point])[:-1]
    )


@pytest.fixture(scope="module")
def tiny():
    """A small net with all that removal needs by hand: activations, halves and clusters of its samples."""
    torch.manual_seed(0)
    x, y = (part[:80] for part in digits())
    model = nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 10))
    data = batches(x, y, 80)
    results = neuron_importance(
        model, data, layers="1", clusters=lambda batch: batch[1] % 2, attribution="gradient_x_activation"
    )
    settings = AblationFaithfulness(fractions=(0.3, 0.6), best_order=True, keep_only=True)
    found = ablation_faithfulness(model, data, results, settings)
    place = np.argsort(results.sample_index)
    return model, x, y, found, results.sample_half[place], results.sample_cluster[place]


def right_without(tiny, gone):
    """Which samples are right with their own neurons removed: gone[sample] are these."""
    model, x, y, *_ = tiny
    kept = model[:2](x).detach()
    for sample, neurons in enumerate(gone):
        kept[sample, list(neurons)] = 0
    return (model[2:](kept).argmax(1) == y).numpy()


def test_progressive_orders_equal_a_slow_search(tiny):
    model, x, y, results, half, cluster = tiny
    found, h, order_of = results["1"].faithfulness, model[:2](x).detach(), {}
    assert found.removed.tolist() == [2, 4]
    for group in itertools.product((0, 1), (0, 1)):
        rows = np.flatnonzero((cluster == group[0]) & (half == group[1]))
        order = []
        for count in (2, 4):
            point = h[rows].clone()
            point[:, order] = 0
            point.requires_grad_()
            (slope,) = torch.autograd.grad(MARGIN.values(model[2:](point), y[rows]).sum(), point)
            scores = (h[rows] * slope).sum(0)
            scores[order] = -torch.inf
            order += scores.argsort(descending=True)[: count - len(order)].tolist()
        order_of[group] = order
    for row in (0, 1):
        for point, count in enumerate((2, 4)):
            gone = [order_of[row, 1 - side][:count] for side in half]
            right = right_without(tiny, gone)[cluster == row]
            assert found.best_accuracy[row, point] == pytest.approx(right.mean())
    best = (found.random_accuracy.mean(0) - found.best_accuracy).mean(1)
    for row in (0, 1):
        if best[row] > 0:
            assert found.normalised_gap[row] == pytest.approx(found.gap[row] / best[row])
        else:
            assert np.isnan(found.normalised_gap[row])


def test_only_the_most_important_neurons_are_kept(tiny):
    *_, results, half, cluster = tiny
    one = results["1"]
    found = one.faithfulness
    ranking = np.argsort(-one.half_mean, axis=-1, kind="stable")
    for row in (0, 1):
        for point, count in enumerate((2, 4)):
            gone = [ranking[1 - side, row, count:] for side in half]
            right = right_without(tiny, gone)[cluster == row]
            assert found.kept_accuracy[row, point] == pytest.approx(right.mean())
    assert found.random_kept_accuracy.shape == (19, 3, 2)
    assert found.random_kept_accuracy.std() > 0
    assert "Accuracy with only the most important neurons left (with only random ones): 2: " in results.summary()


def test_keeping_and_removing_share_the_random_orders(tiny):
    """With half of the neurons removed, those that are left are those that the reversed order removes."""
    model, x, y, *_ = tiny
    data = batches(x, y, 80)
    results = neuron_importance(model, data, layers="1", clusters=lambda batch: batch[1] % 2, attribution="random")
    both = AblationFaithfulness(fractions=(0.5,), keep_only=True, least_first=True)
    found = ablation_faithfulness(model, data, results, both)["1"].faithfulness
    np.testing.assert_array_equal(found.kept_accuracy, found.least_accuracy)


def test_the_normalised_gap_of_the_best_ranking_is_one():
    weights = torch.tensor([4.0, 3, 2, 1, 0, 0, 0, 0, 0, 0])
    model = Function(lambda h: h @ weights - 6)
    torch.manual_seed(0)
    x = torch.rand(200, 10) + 0.4
    y = (model(x)[:, 0] <= 0).long()
    data = [(x, y)]
    results = neuron_importance(model, data, layers="site", target="logit", clusters=lambda batch: batch[1] * 0)
    found = ablation_faithfulness(model, data, results, AblationFaithfulness(best_order=True))["site"].faithfulness
    assert 0 < found.normalised_gap[-1] < 1.6


@pytest.mark.parametrize(("attribution", "made"), [("random", 19), ("gradient_x_activation", 99)])
def test_the_control_stops_where_all_is_decided(attribution, made):
    model, data = train(nn.ReLU, width=24, depth=1, epochs=4), validation_batches()
    probe = ProbeSet.from_batches(data, seed=3)
    clusters = "labels" if made == 99 else lambda batch: batch[1] * 0
    results = neuron_importance(model, probe, layers="1", attribution=attribution, clusters=clusters, seed=3)
    found = ablation_faithfulness(model, probe, results, AblationFaithfulness(n_random=99))
    judged = found["1"].faithfulness
    assert judged.n_draws == 99
    if made == 99:
        assert len(judged.random_accuracy) == 99
        assert judged.p_value.min() == 0.01
        assert not found.notes
    else:
        n_made = len(judged.random_accuracy)
        assert n_made < 99
        stopped = f"1: no ranking of random was ahead of the random orders any more after {n_made} of the 99"
        assert stopped in found.notes[-1]
        level = judged.accuracy[0].mean()
        beaten = np.flatnonzero(judged.random_accuracy[:, 0].mean(1) <= level + 1e-9)
        assert judged.p_value[0] == pytest.approx(5 / (beaten[4] + 1))
        assert judged.verdict == ("no better than random",) * 2  # the cluster, and all of them


def test_what_is_not_asked_for_costs_nothing(small, monkeypatch):
    """Replays of a check, by what is asked for."""
    runs = collections.Counter()
    run = Tape.run

    def counted(tape, activation):
        runs["all"] += 1
        return run(tape, activation)

    monkeypatch.setattr(Tape, "run", counted)
    model, data = small
    results = neuron_importance(model, data, layers="1", attribution=["random", "gradient"])
    cost = {}
    for name in ("", "least_first", "specificity", "best_order", "keep_only"):
        runs.clear()
        probe = ProbeSet.from_batches(data)
        settings = AblationFaithfulness(fractions=(0.2, 0.5), **({name: True} if name else {}))
        ablation_faithfulness(model, probe, results, settings)
        # without the one trial of each site
        cost[name] = (runs["all"] - 1) / probe.select(results.sample_index[:512]).count_batches(None)
    orders = 2 * (2 * 19 + 2 * 2 + 1)  # random controls, both scores alone and for all clusters, activation size
    assert cost[""] <= orders
    assert cost["least_first"] - cost[""] == 2 * 2
    # one set of neurons for each cluster; "random" has the same ones for all
    assert cost["specificity"] - cost[""] == 10 + 1
    assert cost["keep_only"] - cost[""] <= 2 * 2 * (19 + 1)
    # two rounds, and the order's own curve; and one trial of gradients at each site
    assert 2 + 2 <= cost["best_order"] - cost[""] < 2 + 2 + 1


def test_all_of_it_is_saved(everything, tmp_path):
    everything.save(tmp_path / "results.npz")
    loaded = Results.load(tmp_path / "results.npz")
    one, other = loaded["1"].faithfulness, everything["1"].faithfulness
    np.testing.assert_array_equal(one.specificity.accuracy_drop, other.specificity.accuracy_drop)
    np.testing.assert_array_equal(one.least_accuracy, other.least_accuracy)
    np.testing.assert_array_equal(loaded["1"].reliability.split_half, everything["1"].reliability.split_half)
    assert loaded.comparisons[0].better == "gradient_x_activation"


def test_a_curve_of_ones_own(small):
    model, data = small
    ranking = np.random.default_rng(0).permutation(24)
    found = deletion_curve(
        model, data, ranking, layer="1", fractions=(0.1, 0.5, 1.0), baseline="mean", max_samples=1000
    )
    x, y = torch.cat([one for one, _ in data]), torch.cat([two for _, two in data])
    h = model[:2](x).detach()
    for point, count in enumerate((3, 12, 24)):
        kept = h.clone()
        kept[:, ranking[:count].copy()] = h.mean(0)[ranking[:count].copy()]
        right = model[2:](kept).argmax(1) == y
        assert found.accuracy[point] == pytest.approx(float(right.float().mean()), abs=1e-6)
    assert found.intact_accuracy == pytest.approx(float((model(x).argmax(1) == y).float().mean()), abs=1e-6)
    assert found.removed.tolist() == [3, 12, 24]
    refused = "number of each of the 24 neurons of layer '1' once, got 2 numbers, 2 different ones from 0 to 1"
    with pytest.raises(ValueError, match=refused):
        deletion_curve(model, data, [0, 1], layer="1")


def test_reliability_and_drift(small):
    model, data = small
    first = neuron_importance(model, data, layers="1", attribution=["gradient", "random"], epoch=3)
    assert first["1"].drift is None
    reliability = first["1", "random"].reliability
    np.testing.assert_allclose(reliability.split_half, 1.0)  # one score per neuron, the same in both halves
    np.testing.assert_allclose(reliability.top_overlap, 1.0)
    assert (reliability.k, reliability.top_chance) == (3, 3 / 45)
    assert (first["1"].reliability.split_half < 1).all()
    torch.manual_seed(1)
    changed = copy.deepcopy(model)
    for layer in changed[::2]:
        layer.reset_parameters()
    again = neuron_importance(model, data, layers="1", attribution=["gradient", "random"], previous=first)
    other = neuron_importance(changed, data, layers="1", attribution=["gradient", "random"], previous=first)
    np.testing.assert_allclose(again["1"].drift.rank_correlation, 1.0)
    np.testing.assert_allclose(again["1"].drift.top_overlap, 1.0)
    assert again["1"].drift.epoch == 3
    assert np.abs(other["1"].drift.rank_correlation).max() < 0.7


def test_logits_that_are_not_finite_without_a_neuron_spoil_nothing_else():
    """Without neuron 0 the logits are infinite: warnings are errors here."""
    y = torch.arange(120) % 2
    x = torch.cat([nn.functional.one_hot(y, 2) * 3.0 + 1, torch.rand(120, 10) + 0.1], 1)
    model = Function(lambda h: (h[:, 0] - h[:, 1]) / (h[:, 0] != 0))
    results = neuron_importance(model, [(x, y)], layers="site")
    found = ablation_faithfulness(model, [(x, y)], results)["site"].faithfulness
    assert np.isnan(found.random_margin).any()
    assert np.isfinite(found.random_accuracy).all()
    assert np.isfinite(found.gap_interval).all()
