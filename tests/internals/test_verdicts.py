"""Verdicts where they once misled: each case is a small network, built or trained, whose right verdict is known."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from torch import nn

from lightning_neuroimp import (
    AblationFaithfulness,
    KMeansClusters,
    ProbeSet,
    Site,
    ablation_faithfulness,
    neuron_importance,
)
from lightning_neuroimp.ablation.control import RandomControl
from lightning_neuroimp.ablation.judge import counted_clusters
from lightning_neuroimp.ablation.orders import choose_samples, share_out
from lightning_neuroimp.display.summary import summary
from lightning_neuroimp.results.verdict import FLOOR, GapTest, Verdict, verdict
from tests.support.digits import digits, train, validation_batches
from tests.support.toys import Function

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

pytestmark = pytest.mark.usefixtures("unchecked")


def checked(model, batches, settings=None, **options):
    results = neuron_importance(model, batches, **({"layers": "1"} | options))
    return ablation_faithfulness(model, batches, results, settings)


def fitted(model, x, y, epochs=60, lr=3e-3, loss=nn.functional.cross_entropy):
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model.eval()


def table(loader, seed=0):
    x, y = loader(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    return x[order], torch.tensor(y)[order]


# the rule itself

RIGHT, NONE, BACKWARDS = GapTest(0.2, 0.05, 1.0), GapTest(0.0, 0.5, 0.5), GapTest(-0.2, 1.0, 0.05)
UNKNOWN = GapTest(np.nan, np.nan, np.nan)


@pytest.mark.parametrize(
    ("accuracy", "margin", "others", "expected"),
    [
        (RIGHT, RIGHT, {}, "faithful"),
        (RIGHT, RIGHT, {"relative_gap": 0.049}, "weak"),
        (RIGHT, RIGHT, {"relative_gap": np.nan}, "weak"),
        (RIGHT, RIGHT, {"first_order_gap": 0.41}, "weak"),
        (RIGHT, RIGHT, {"first_order_gap": 0.4}, "faithful"),
        (RIGHT, RIGHT, {"first_order_gap": np.nan}, "faithful"),
        (RIGHT._replace(gap=0.0049), RIGHT, {}, "better in margin only"),
        (NONE, RIGHT, {}, "better in margin only"),
        (BACKWARDS, RIGHT, {}, "no better than random"),  # margins fall more, accuracy less
        (RIGHT, NONE, {}, "no better than random"),
        (NONE, NONE, {}, "no better than random"),
        (NONE, BACKWARDS, {}, "no better than random"),
        (BACKWARDS._replace(gap=-0.001), BACKWARDS, {}, "no better than random"),
        (BACKWARDS, NONE, {}, "no better than random"),
        (BACKWARDS, BACKWARDS, {}, "worse than random"),
        (RIGHT, RIGHT, {"smallest_half": 15}, "too few samples to say"),
        (RIGHT, RIGHT, {"smallest_p_value": 1 / 12}, "too few neurons to say"),
        (NONE, NONE, {"smallest_p_value": 1 / 12}, "too few neurons to say"),
        (RIGHT, RIGHT, {"smallest_half": 15, "smallest_p_value": 1 / 2}, "too few samples to say"),
        # margins that are not finite: accuracy decides alone
        (RIGHT, UNKNOWN, {}, "faithful"),
        (NONE, UNKNOWN, {}, "no better than random"),
        (RIGHT._replace(gap=0.001), UNKNOWN, {}, "no better than random"),
        (BACKWARDS, UNKNOWN, {}, "worse than random"),
    ],
)
def test_the_rule(accuracy, margin, others, expected):
    usual = {"relative_gap": 0.3, "first_order_gap": 0.3, "smallest_half": 50, "smallest_p_value": 0.0}
    assert verdict(accuracy, margin, **(usual | others)) == expected


def test_half_a_sample_of_512_makes_no_verdict():
    assert FLOOR > 2 / 512


# accuracy that does not move


@pytest.fixture(scope="module")
def breast_cancer():
    x, y = table(load_breast_cancer)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 64), nn.Tanh(), nn.Linear(64, 2))
    return fitted(model, x[:300], y[:300]), [(x[300:], y[300:])]


def test_a_right_ranking_where_accuracy_is_saturated(breast_cancer):
    results = checked(*breast_cancer, clusters=KMeansClusters(2), attribution=["gradient_x_activation", "random"])
    right, random = (results["1", name].faithfulness for name in results.attributions)
    assert right.lds[-1] > 0.9
    assert right.margin_p_value[-1] == 0.05
    assert right.verdict[-1] in ("better in margin only", "weak")
    assert random.verdict[-1] == "no better than random"
    assert "p(m)" in summary(results)


def test_two_more_networks_whose_accuracy_is_saturated():
    """Iris with two classes that a line divides, and a readout with a bias far from the decision."""
    x, y = table(load_iris)
    two = y < 2
    torch.manual_seed(1)
    model = fitted(nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2)), x[two], y[two], epochs=150)
    judged = checked(model, [(x[two], y[two])], AblationFaithfulness(fractions=(0.05, 0.1)))["1"].faithfulness
    assert (judged.accuracy == 1).all()
    assert judged.p_value[-1] == 1.0
    assert judged.verdict == ("better in margin only",) * 3
    weight = torch.linspace(-0.3, 1, 24)
    far = Function(lambda h: h @ weight + 40)
    h = torch.rand(200, 24, generator=torch.Generator().manual_seed(0))
    judged = checked(far, [(h, torch.zeros(200, dtype=torch.int64))], layers="site")["site"].faithfulness
    assert judged.lds[-1] > 0.95
    assert judged.verdict[-1] == "better in margin only"


def test_margins_decide_with_the_samples_that_have_them_in_all_orders():
    """Removing one neuron makes the margin of one sample infinite: the others decide, and equal a slow loop."""

    def logits(h):
        value = h @ torch.linspace(-0.5, 1, 12) * 10
        return torch.where((h[:, 3] == 0) & (h[:, 11] > 0.999), torch.inf, value)

    h = torch.rand(120, 12, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.01
    h[7, 11] = 1.0
    batches = [(h, torch.zeros(120, dtype=torch.int64))]
    model = Function(logits)
    settings = AblationFaithfulness(fractions=(0.1, 0.3))
    plain = Function(lambda h: h @ torch.linspace(-0.5, 1, 12) * 10)
    found = checked(model, batches, settings, layers="site", attribution="activation")["site"].faithfulness
    without = torch.arange(120) != 7
    assert np.isnan(found.random_margin[:, -1]).any()
    assert np.isfinite(found.margin_gap[-1])
    assert np.isfinite(found.margin_p_value[-1])
    expected = checked(plain, batches, settings, layers="site", attribution="activation")["site"].faithfulness
    removed, n = found.removed, int(without.sum())
    assert found.margin_gap[-1] == pytest.approx(float(expected.margin_gap[-1]), abs=2 * removed.max() * 10 / n)


# few neurons


class Heads(nn.Module):
    """Neurons of a site in groups, of which one decides."""

    def __init__(self, n_groups, size=3):
        super().__init__()
        self.site, self.size = nn.Identity(), size
        self.register_buffer("weight", torch.tensor([0.2, 0.1, 3.0, 0.3, 0.15][:n_groups]))

    def forward(self, x):
        h = self.site(x).unflatten(1, (-1, self.size)).mean(2)
        value = h @ self.weight - 0.5 * self.weight[min(2, len(self.weight) - 1)]
        return torch.stack([value, -value], 1)


def heads(n_groups, settings=None, size=3):
    x = torch.rand(160, size * n_groups, generator=torch.Generator().manual_seed(n_groups))
    model = Heads(n_groups, size).eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    return checked(model, [(x, y)], settings, layers=Site("site", group=size), clusters=lambda batch: batch[1] * 0)


@pytest.mark.parametrize(("n_groups", "draws", "smallest"), [(2, 1, 1 / 2), (3, 5, 1 / 6), (4, 23, 1 / 12)])
def test_heads_are_too_few_to_say(n_groups, draws, smallest):
    results = heads(n_groups)
    (one,) = results.importances
    judged = one.faithfulness
    assert judged.n_draws == len(judged.random_accuracy) == draws
    assert judged.p_value[-1] >= smallest - 1e-9
    assert judged.margin_p_value[-1] == pytest.approx(smallest)
    assert set(judged.verdict) == {"too few neurons to say"}
    text = " ".join(summary(results).split())
    assert "So few neurons have few orders: all of them were tried." in text
    assert "n_random=99" not in text
    # more random orders would not help
    more = heads(n_groups, AblationFaithfulness(n_random=99))["site"] if n_groups < 4 else one
    assert set(more.faithfulness.verdict) == {"too few neurons to say"}


def test_four_heads_can_be_told_apart_at_other_fractions():
    judged = heads(4, AblationFaithfulness(fractions=(0.25, 0.5, 0.75)))
    judged = judged.importances[0].faithfulness
    assert judged.removed.tolist() == [1, 2, 3]
    assert judged.margin_p_value[-1] == pytest.approx(1 / 24)
    assert judged.p_value[-1] >= 1 / 24
    assert judged.verdict[-1] not in (Verdict.TOO_FEW_NEURONS, Verdict.NO_BETTER)


def test_five_heads_are_enough_and_all_orders_are_tried_where_asked_for():
    judged = heads(5).importances[0].faithfulness
    assert judged.n_draws == 19
    assert judged.verdict[-1] != "too few neurons to say"
    judged = heads(5, AblationFaithfulness(n_random=119, fractions=(0.2, 0.4, 0.6, 0.8))).importances[0].faithfulness
    assert judged.n_draws == len(judged.random_accuracy) == 119
    assert judged.margin_p_value[-1] == pytest.approx(1 / 120)


def test_one_unit_is_too_few():
    model = nn.Sequential(nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 2)).eval()
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    judged = checked(model, [(x, torch.arange(100) % 2)])["1"].faithfulness
    assert set(judged.verdict) == {"too few neurons to say"}


@pytest.mark.parametrize("n_neurons", [2, 3, 4, 5])
def test_tie_probabilities_equal_a_count_of_all_permutations(n_neurons):
    generator = np.random.default_rng(n_neurons)
    for n_cells, removed in itertools.product((1, 2, 3), ([1], [1, 2], [2])):
        if max(removed) > n_neurons:
            continue
        ranking = np.stack([generator.permutation(n_neurons) for _ in range(n_cells)])
        control = RandomControl([ranking], np.array(removed), 19, (0,))

        def sets(order, removed=removed):
            return [frozenset(row[:count].tolist()) for row in order for count in removed]

        ties = [sets(np.array(names)[ranking]) == sets(ranking) for names in itertools.permutations(range(n_neurons))]
        assert control.tie_probability(0, range(n_cells)) == pytest.approx(np.mean(ties))
        assert control.tie_probability(0, [0]) >= control.tie_probability(0, range(n_cells)) - 1e-12


@pytest.mark.parametrize("n_neurons", [2, 3, 4])
def test_all_orders_but_the_own_one_are_tried_once_for_every_score(n_neurons):
    generator = np.random.default_rng(0)
    rankings = [np.stack([generator.permutation(n_neurons) for _ in range(4)]) for _ in range(2)]
    control = RandomControl(rankings, np.array([1]), 19, (0,))
    every = math.factorial(n_neurons) - 1
    orders = control.extend([0, 1], control.n_draws, 0)
    assert len(orders) == 2 * every
    for ranking, own in zip(rankings, (orders[:every], orders[every:]), strict=True):
        found = {order.tobytes() for order in own}
        assert len(found) == every
        assert ranking.astype(own[0].dtype).tobytes() not in found


# clusters with few samples


class Two(nn.Module):
    """Two classes: the sign of a weighted sum."""

    def __init__(self, weight):
        super().__init__()
        self.site = nn.Identity()
        self.register_buffer("weight", weight)

    def forward(self, x):
        value = self.site(x) @ self.weight
        return torch.stack([value, -value], 1)


def test_two_samples_do_not_make_the_headline_of_400():
    """The large cluster's ranking is found by nothing; in the small one it decides everything."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(402, 32, generator=generator)
    model = Two(torch.cat([torch.full((4,), 30.0), torch.full((28,), 0.001)])).eval()
    y = torch.zeros(402, dtype=torch.int64)
    y[400:] = 1
    results = checked(model, [(x, y)], layers="site", attribution="random")
    judged = results["site"].faithfulness
    assert judged.verdict[1] == "too few samples to say"
    assert judged.samples[:, -1].tolist() == judged.samples[:, 0].tolist()
    for name in ("accuracy", "gap", "p_value", "margin_gap", "margin_p_value", "lds", "lds_ceiling", "gap_interval"):
        np.testing.assert_array_equal(getattr(judged, name)[-1], getattr(judged, name)[0])
    assert "leaves out 1 cluster with too few samples for a verdict of its own." in summary(results)


def test_small_clusters_that_are_all_there_is_count():
    """Twenty clusters of 12 samples: none has a verdict, the layer has."""
    x, y = digits()
    model = train(nn.ReLU, width=32, depth=1, epochs=6)
    rows = torch.cat([(y == label).nonzero()[-24:, 0] for label in range(10)])
    halves_of_labels = lambda batch: batch[1] * 2 + (torch.arange(len(batch[1])) % 2)  # noqa: E731
    judged = checked(model, [(x[rows], y[rows])], clusters=halves_of_labels)["1"].faithfulness
    assert set(judged.verdict[:-1]) == {"too few samples to say"}
    assert judged.verdict[-1] == "faithful"
    assert judged.samples[:, -1].sum() == 240


def test_which_clusters_count():
    sizes = np.array([[100, 100], [1, 1], [15, 40], [0, 0]])
    assert counted_clusters(sizes, sizes.sum(1)).tolist() == [True, False, False, False]
    # the only one with a verdict has less than half of the samples
    assert counted_clusters(sizes, np.array([100, 300, 300, 500])).tolist() == [True, True, True, False]
    assert counted_clusters(sizes[1:3], np.array([2, 55])).tolist() == [True, True]
    assert counted_clusters(sizes[3:], np.array([7])).tolist() == [False]


def test_99_to_1_and_half_a_sample(breast_cancer):
    """A ranking whose gap is a thousandth is not worse than random, whatever its p-value is."""
    x, y = digits()
    model = train(nn.ReLU, width=24, depth=2, epochs=8)
    rare = torch.cat([(y[1200:] == 0).nonzero()[:, 0], (y[1200:] == 1).nonzero()[:2, 0]]) + 1200
    for clusters in (KMeansClusters(2), "labels"):
        for name in ("random", "activation", "gradient"):
            options = {"clusters": clusters, "attribution": name, "layers": "3"}
            judged = checked(model, [(x[rare], y[rare])], **options)["3"].faithfulness
            for row, said in enumerate(judged.verdict):
                if abs(judged.gap[row]) < FLOOR:
                    assert said in {Verdict.MARGIN_ONLY, Verdict.NO_BETTER, Verdict.TOO_FEW}


def test_rare_classes_have_samples_to_ablate():
    """One positive in a hundred, drawn as often as others: the check keeps enough of them."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(8000) % 100 == 0).long()
    x = torch.randn(8000, 8, generator=generator) + 2 * y[:, None]
    torch.manual_seed(0)
    model = fitted(nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 2)), x, y, epochs=40)
    batches = list(zip(x.split(500), y.split(500), strict=True))
    for stratify, n_samples in ((True, 1024), (False, 8000)):
        probe = ProbeSet.from_batches(batches, max_samples=n_samples, stratify=stratify)
        results = checked(model, probe)
        judged = results["1"].faithfulness
        assert judged.samples[:, 1].min() >= 16
        assert judged.verdict[1] != "too few samples to say"
        assert judged.samples[:, :-1].sum() == 512
        # the layer is still that of the probe set, in which rare ones are rare
        share = results.clusters.size / results.clusters.size.sum()
        np.testing.assert_allclose(judged.accuracy[-1], share @ judged.accuracy[:-1])
        assert judged.gap[-1] == pytest.approx(share @ judged.gap[:-1])
        low, high = judged.gap_interval[-1]
        assert low < judged.gap[-1] < high
        assert (low + high) / 2 == pytest.approx(judged.gap[-1])


def test_remedies_fit_the_cause():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=generator)
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 3)).eval()

    def remedy(y, settings=None):
        return next(one.remedy for one in checked(model, [(x, y)], settings).findings if one.id == "few-samples")

    half, rare = torch.arange(600) % 2, (torch.arange(600) % 100 == 0).long()
    assert remedy(half, AblationFaithfulness(max_samples=40)) == "AblationFaithfulness(max_samples=64) or more"
    assert remedy(rare).startswith("more samples in the probe set (a larger max_samples of the measurement, stratify=")
    both = torch.where(torch.arange(600) % 3 == 0, 0, half)
    both[:6] = 2
    asked = remedy(both, AblationFaithfulness(max_samples=40))
    assert asked.startswith("AblationFaithfulness(max_samples=")
    assert "; more samples in the probe set for the others (" in asked


@pytest.mark.parametrize("total", [1, 7, 64, 100, 511])
def test_samples_are_shared_out(total):
    size = np.array([400, 100, 30, 5, 1])
    found = share_out(size, total, 24)
    assert found.sum() == total
    assert (found <= size).all()
    # nobody has less than the floor that the total allows
    floor = max(floor for floor in range(25) if np.minimum(size, floor).sum() <= total)
    assert (found >= np.minimum(size, floor)).all()
    if total == 511:  # in proportion, but for the smallest ones
        assert found[0] / found[1] == pytest.approx(4, abs=0.1)


def test_all_samples_are_ablated_where_the_bound_allows(breast_cancer):
    model, batches = breast_cancer
    results = neuron_importance(model, batches, layers="1")
    every = choose_samples(results, 512)
    assert sorted(every.tolist()) == list(range(len(results.sample_index)))
    chosen = choose_samples(results, 100)
    assert len(chosen) == len(set(chosen.tolist())) == 100
    # the first of each cell in the order of the keys
    cell = [(results.sample_cluster[row], results.sample_half[row]) for row in every]
    taken = set(chosen.tolist())
    for one in set(cell):
        inside = [row in taken for row, other in zip(every.tolist(), cell, strict=True) if other == one]
        assert inside == sorted(inside, reverse=True)


def test_weighted_intervals_equal_those_of_a_sample_in_proportion():
    """What few samples of a large cluster say counts for all of it; the interval is as wide as these few make it."""
    generator = torch.Generator().manual_seed(5)
    y = (torch.arange(3000) % 10 == 0).long()
    x = torch.rand(3000, 20, generator=generator)
    model = Two(torch.linspace(-1, 2, 20)).eval()
    results = neuron_importance(model, [(x, y)], layers="site", max_samples=3000)
    widths, gaps = [], []
    for n_samples in (100, 3000):
        judged = ablation_faithfulness(model, [(x, y)], results, AblationFaithfulness(max_samples=n_samples))
        judged = judged["site"].faithfulness
        gaps.append(judged.gap[-1])
        widths.append(float(np.diff(judged.gap_interval[-1])[0]))
        np.testing.assert_allclose(judged.gap[-1], np.array([0.9, 0.1]) @ judged.gap[:-1], atol=1e-9)
    assert gaps[0] == pytest.approx(gaps[1], abs=widths[0])
    assert widths[0] > widths[1]


# scores that predict less than could be predicted


def behind(norm, activation=nn.ReLU, seed=0, width=48, depth=3):
    """A perceptron on digits, with a norm behind each activation."""
    x, y = digits()
    torch.manual_seed(seed)
    layers = []
    for n_inputs in (64, *[width] * (depth - 1)):
        layers += [nn.Linear(n_inputs, width), activation(), norm(width)]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(10):
        for rows in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


BOTH = ["gradient_x_activation", "masked_gradient", "leave_one_out"]


def against(results, site, name="gradient_x_activation"):
    """What is said against a score: findings that name another score, or another ranking."""
    return {
        one.id for one in results.findings if (one.site, one.attribution) == (site, name) and one.id != "methods-agree"
    }


@pytest.mark.parametrize(
    ("norm", "activation", "site"),
    [
        (nn.LayerNorm, nn.ReLU, "7"),
        (nn.LayerNorm, nn.GELU, "7"),
        (lambda width: nn.GroupNorm(4, width), nn.ReLU, "7"),
    ],
)
def test_a_norm_behind_the_site(norm, activation, site):
    """First order is below what masks and leave-one-out find; the LDS, over its ceiling, says so without them."""
    model = behind(norm, activation)
    both = checked(model, validation_batches(), AblationFaithfulness(max_samples=1024), layers=site, attribution=BOTH)
    first, masked, one_by_one = (both[site, name].faithfulness for name in BOTH)
    assert first.gap[-1] < 0.8 * max(masked.gap[-1], one_by_one.gap[-1])
    assert first.lds[-1] < 0.8 * first.lds_ceiling[-1]
    assert masked.lds[-1] > first.lds[-1] + 0.1
    assert "first-order-fails" in against(both, site)
    assert "no-better-than-reference" not in against(both, site, "masked_gradient")
    alone = checked(model, validation_batches(), AblationFaithfulness(max_samples=1024), layers=site)
    assert "first-order-fails" in against(alone, site)


def before_batch_norm(seed):
    model = nn.Sequential(
        *(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU()),
        *(nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU()),
        nn.Linear(48, 10),
    )
    x, y = digits()
    torch.manual_seed(seed)
    for layer in model:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(10):
        for rows in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("seed", "clusters"), [(0, "labels"), (1, "labels"), (0, KMeansClusters(5))])
def test_zero_before_batch_norm(seed, clusters):
    """Activation size and leave-one-out are far better there: evidence says so, whatever module follows."""
    options = {"layers": "3", "clusters": clusters}
    settings = AblationFaithfulness(max_samples=1024)
    model = before_batch_norm(seed)
    results = checked(model, validation_batches(), settings, attribution=BOTH, **options)
    first, _, one_by_one = (results["3", name].faithfulness for name in BOTH)
    assert first.gap[-1] < 0.8 * one_by_one.gap[-1]
    alone = checked(model, validation_batches(), settings, **options)
    raised = against(alone, "3")
    assert raised & {"first-order-fails", "no-better-than-reference"}


def abs_gradient(batch):
    return batch.sum_positions(batch.gradient).abs()


@pytest.mark.parametrize(
    ("activation", "baseline", "depth"), [(nn.ReLU, "zero", 3), (nn.GELU, "mean", 2), (nn.ELU, "zero", 2)]
)
def test_a_ranking_with_less_than_half_of_the_gap_is_weak(activation, baseline, depth):
    """Gradients and activations on digits: clearly better than random, and far from what first order finds."""
    model = train(activation, seed=11, width=64, depth=depth)
    results = checked(
        model, validation_batches(), AblationFaithfulness(max_samples=1024), layers=["1", "3"], baseline=baseline,
        attribution=["gradient_x_activation", "gradient", "activation", abs_gradient],
    )  # fmt: skip
    seen = 0
    for one in results.importances:
        judged = one.faithfulness
        assert judged.references == ("activation_size", "shared_ranking", "first_order")
        first = judged.reference_gap[2, -1]
        if one.attribution == "gradient_x_activation":
            np.testing.assert_array_equal(judged.reference_accuracy[2], judged.accuracy)
            assert judged.verdict[-1] == "faithful"
        elif judged.p_value[-1] <= 0.05 and judged.margin_p_value[-1] <= 0.05 and judged.gap[-1] < 0.5 * first:
            seen += judged.relative_gap[-1] >= 0.05
            assert judged.verdict[-1] == "weak"
            # and the loss is stated as it was measured
            about = [
                each.text for each in results.findings if (each.site, each.attribution) == (one.site, one.attribution)
            ]
            told = f"its gap is {judged.gap[-1]:+.3f}, that of the ranking by effects to first order {first:+.3f}"
            assert any(told in text for text in about)
    assert seen  # which would have been "faithful"


def test_references_that_are_not_known_are_nan():
    results = checked(
        train(nn.ReLU, width=16, depth=1, epochs=2), validation_batches(), attribution=["activation", "leave_one_out"]
    )
    for one in results.importances:
        judged = one.faithfulness
        assert one.half_first_order is None
        assert np.isnan(judged.reference_accuracy[2]).all()
        assert np.isnan(judged.reference_gap[2]).all()
        assert np.isnan(judged.reference_interval[2]).all()
        assert np.isfinite(judged.reference_gap[:2]).all()
    assert "effects to first order" not in summary(results).partition("gap: ")[0]


# the ceiling of the LDS


class Noisy(nn.Module):
    """Effects that differ from sample to sample: each has weights of its own around common ones."""

    def __init__(self, spread):
        super().__init__()
        self.site, self.spread = nn.Identity(), spread

    def forward(self, x):
        h, own = self.site(x[:, :40]), x[:, 40:]
        common = torch.linspace(-1, 1, 40)
        value = (h * (common + self.spread * own)).sum(1)
        return torch.stack([value, torch.zeros_like(value)], 1)


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0, 15.0])
def test_the_ceiling_is_the_correlation_with_independent_samples(spread):
    """Against what it stands for: effects of the same masks on other samples, hundreds of times."""
    from lightning_neuroimp.ablation.predictions import reliability_of_means

    generator = np.random.default_rng(0)
    common, n, n_masks = np.linspace(-1, 1, 40), 30, 99
    estimated, measured = [], []
    for _ in range(300):
        masks = generator.random((n_masks, 40)) < 0.1
        effects = [masks @ (common[:, None] + spread * generator.normal(size=(40, n))) for _ in range(2)]
        estimated.append(reliability_of_means(effects[0]))
        measured.append(np.corrcoef(effects[0].mean(1), effects[1].mean(1))[0, 1])
    # four standard errors of both means, and alpha's bias of about 2 / masks where little can be predicted
    error = 4 * np.hypot(np.std(estimated), np.std(measured)) / np.sqrt(300)
    assert np.mean(estimated) == pytest.approx(np.mean(measured), abs=error + 2 / n_masks * (1 - np.mean(measured)))


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_the_ceiling_through_the_api_is_that_of_really_independent_samples(spread):
    model = Noisy(spread).eval()
    ceilings, lds_of_effects = [], []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        x = torch.cat([torch.ones(120, 40), torch.randn(120, 40, generator=generator)], 1)
        y = torch.zeros(120, dtype=torch.int64)
        probe = ProbeSet.from_batches([(x, y)], seed=seed)
        settings = AblationFaithfulness(n_random=99)
        results = checked(model, probe, settings, layers="site", seed=seed)
        judged = results["site"].faithfulness
        ceilings.append(judged.lds_ceiling[-1])
        # in this network gradient x activation is the effect itself, measured on the other half
        lds_of_effects.append(judged.lds[-1])
    error = 4 * np.hypot(np.std(ceilings), np.std(lds_of_effects)) / np.sqrt(12)
    assert np.mean(ceilings) == pytest.approx(np.mean(lds_of_effects), abs=error)
    assert error < 0.1


def test_cronbachs_alpha_is_the_mean_of_all_splits():
    from lightning_neuroimp.ablation.predictions import reliability_of_means

    generator = np.random.default_rng(1)
    values = generator.normal(size=(25, 1)) + generator.normal(size=(25, 6))
    splits = []
    for half in itertools.combinations(range(6), 3):
        rest = [number for number in range(6) if number not in half]
        one, other = values[:, half].sum(1), values[:, rest].sum(1)
        splits.append(2 * (1 - (one.var() + other.var()) / (one + other).var()))  # Flanagan and Rulon
    assert reliability_of_means(values) == pytest.approx(np.mean(splits))
    assert np.isnan(reliability_of_means(values[:, :1]))
    assert np.isnan(reliability_of_means(np.ones((25, 6))))
    with_nan = np.concatenate([values, np.full((25, 1), np.nan)], 1)
    assert reliability_of_means(with_nan) == reliability_of_means(values)


# judged sensibly all along


def test_very_many_neurons():
    x, y = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 10))
    fitted(model, x[:600], y[:600], epochs=25, lr=1e-3)
    results = checked(model, [(x[1200:1440], y[1200:1440])], attribution=["gradient_x_activation", "random"],
                      clusters=lambda batch: batch[1] // 5)  # fmt: skip
    right, random = (results["1", name].faithfulness for name in results.attributions)
    assert right.verdict[-1] == "faithful"
    assert random.verdict[-1] in ("no better than random", "worse than random")


def test_dropout_and_label_noise():
    x, y = digits()
    noisy = torch.where(
        torch.rand(1200, generator=torch.Generator().manual_seed(0)) < 0.3, (y[:1200] + 3) % 10, y[:1200]
    )
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 48), nn.ReLU(), nn.Dropout(0.5), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)
    )
    model = fitted(model.train(), x[:1200], noisy, epochs=150)
    results = checked(model, validation_batches(), layers=["1", "4"], attribution=["gradient_x_activation", "random"])
    for site in results.sites:
        assert results[site].faithfulness.verdict[-1] == "faithful"
        assert results[site, "random"].faithfulness.verdict[-1] not in ("faithful", "weak")


def test_untrained_networks():
    """What a network computes has causes, also if it has learnt nothing; a finding says that it has not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)).eval()
    results = checked(model, validation_batches(), attribution=["gradient_x_activation", "random"])
    assert results["1"].faithfulness.margin_p_value[-1] == 0.05
    assert "near-chance" in {one.id for one in results.findings}
    assert results["1", "random"].faithfulness.verdict[-1] not in ("faithful", "weak")


def test_wine_with_two_heads_of_many_channels_each():
    """Few neurons because channels are grouped, not because the layer is small."""
    x, y = table(load_wine)
    torch.manual_seed(0)
    model = fitted(nn.Sequential(nn.Linear(13, 24), nn.Tanh(), nn.Linear(24, 3)), x, y)
    for group, few in ((12, True), (8, True), (2, False)):
        results = checked(model, [(x, y)], layers=Site("1", group=group))
        (one,) = results.importances
        assert (one.faithfulness.verdict[-1] == "too few neurons to say") == few
        assert ("few-neurons" in {each.id for each in results.findings}) == few


@pytest.mark.parametrize("name", ["gradient_x_activation", "random"])
def test_the_control_goes_on_until_both_tests_are_decided(breast_cancer, name):
    """Accuracy does not move, so that its p-value is decided at once; the margin's takes all orders, or few."""
    model, batches = breast_cancer
    settings = AblationFaithfulness(n_random=99, fractions=(0.02, 0.05))
    results = checked(model, batches, settings, attribution=name, clusters=lambda batch: batch[1] * 0)
    judged = results["1"].faithfulness
    assert judged.p_value[-1] > 0.05
    if name == "random":
        assert len(judged.random_accuracy) < 99
        assert judged.margin_p_value[-1] > 0.05
        # five random orders were ahead: Besag and Clifford's p-value is five over how many that took
        level = judged.margin[-1].mean()
        beaten = np.flatnonzero(judged.random_margin[:, -1].mean(1) <= level + 1e-9)
        assert judged.margin_p_value[-1] == pytest.approx(5 / (beaten[4] + 1))
    else:
        assert len(judged.random_accuracy) == 99
        assert judged.margin_p_value[-1] == 0.01
        assert judged.verdict[-1] == "better in margin only"


def test_margins_that_fall_more_and_accuracy_that_falls_less():
    """A few easy samples carry the margins, and the many others the decisions."""
    torch.manual_seed(0)
    easy = torch.arange(400) % 5 == 0
    x = torch.zeros(400, 10)
    x[easy, :5], x[easy, 5:], x[~easy, 5:] = 20.0, 4.0, 0.5
    x += 0.01 * torch.rand_like(x) * (x > 0)
    y = torch.arange(400) // 5 % 2

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            level = self.relu(x[:, :10]).sum(1) - 1.8
            return torch.stack([x[:, 10] * level, 0 * level], 1)

    model, data = Gated().eval(), [(torch.cat([x, (1 - 2.0 * y)[:, None]], 1), y)]
    results = neuron_importance(model, data, layers="relu", attribution="blockwise_gradient")
    found = ablation_faithfulness(model, data, results, AblationFaithfulness(n_random=99))
    judged = found["relu"].faithfulness
    assert judged.margin_p_value[-1] <= 0.05
    assert judged.gap[-1] < -0.1
    assert judged.verdict[-1] == Verdict.NO_BETTER
    assert "hardly-any-fall" not in {finding.id for finding in found.findings}
    assert "compare with -0.294: ." not in found.summary()
