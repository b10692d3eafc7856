"""Orders found round by round, and neurons of all layers removed together: slow twins, closed forms, options, costs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_neuroimp import (
    AblationFaithfulness,
    Attribution,
    BlockwiseGradient,
    MaskedGradient,
    ProbeSet,
    ProgressiveGradient,
    ablation_faithfulness,
    deletion_curve,
    neuron_importance,
    weight_randomisation,
)
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.capture.positions import sum_groups
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.targets import MARGIN
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.masks import random_blocks, random_removal
from lightning_neuroimp.importance.attributions.registry import ATTRIBUTIONS, resolve_attributions
from lightning_neuroimp.importance.progressive import progressive_orders
from lightning_neuroimp.statistics import points
from tests.support.digits import batches, digits
from tests.support.families import FAMILIES, N
from tests.support.toys import Function, class_zero, in_lockstep
from tests.support.twin import rows, sample_pass, twin_baselines, twin_margin

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor"),
    pytest.mark.filterwarnings("ignore:.*each (ablation|gradient) runs the whole network"),
]


def twin_scores_without(family, baseline, sample, gone):
    """Gradient x activation of one sample with some neurons at their baseline, by hand."""
    width = family.site.group
    intact = sample_pass(family, sample)[1].detach()
    point, picked = intact.clone(), list(rows(family, intact))
    for place, position in enumerate(picked):
        for neuron in gone:
            channels = slice(neuron * width, (neuron + 1) * width)
            point[position, channels] = baseline[place, channels]
    point.requires_grad_()
    logits, _ = sample_pass(family, sample, point)
    (slope,) = torch.autograd.grad(twin_margin(logits, int(family.labels[sample])), point)
    score = ((intact[picked] - baseline) * slope[picked]).sum(0)
    return score.reshape(-1, width).sum(1).numpy()


def twin_order(family, baselines, members, removed):
    """An order of all neurons: score, remove the top ones, score the rest, on the samples of one cell."""
    order = []
    for count in [*removed[:-1], None]:
        total = sum(twin_scores_without(family, baselines[sample], sample, order) for sample in members)
        left = [neuron for neuron in np.argsort(-total, kind="stable").tolist() if neuron not in order]
        order += left if count is None else left[: count - len(order)]
    return order


@pytest.mark.parametrize("baseline", ["zero", "mean", "resample"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "class_token", "bert_heads"])
def test_orders_equal_a_slow_twin(name, baseline):
    torch.manual_seed(3)
    family = FAMILIES[name]()
    family.model.eval()
    probe = ProbeSet.from_batches(family.batches, seed=5)
    fractions = (0.2, 0.4, 0.7)
    score = ProgressiveGradient(fractions=fractions)
    results = neuron_importance(family.model, probe, layers=family.site, attribution=score, baseline=baseline, seed=5)
    one = results.importances[0]
    n_neurons = one.removal.n_neurons
    donors = Subject(family.model, probe).donors(one.removal.baseline, 5)
    donor_of = None if donors is None else dict(zip(range(N), donors.of(np.arange(N)).tolist(), strict=True))
    baselines = twin_baselines(family, baseline, donor_of)
    removed = points(fractions, n_neurons).tolist()
    for row, label in enumerate(one.cluster_ids.tolist()):
        for half in range(2):
            mine = (results.sample_cluster == label) & (results.sample_half == half)
            expected = twin_order(family, baselines, results.sample_index[mine].tolist(), removed)
            assert np.argsort(-one.half_mean[half, row], kind="stable").tolist() == expected
            assert sorted(one.half_mean[half, row]) == pytest.approx((1 + np.arange(n_neurons)) / n_neurons)


def test_neurons_that_stand_in_for_one_another_come_one_after_the_other():
    """min(1, a + b + c) + .4 d: alone none of a, b, c matters, and with two of them gone the third one does."""
    model = Function(lambda h: (h[:, :3].sum(1)).clamp(max=1) + 0.4 * h[:, 3])
    data = class_zero(torch.ones(60, 4))
    first = neuron_importance(model, data, layers="site", target="logit")
    assert np.argsort(-first["site"].mean[0], kind="stable")[0] == 3
    score = ProgressiveGradient(fractions=[0.25, 0.5, 0.75, 1])
    order = neuron_importance(model, data, layers="site", attribution=score, target="logit")
    assert order["site"].top(0, 4)[0] == 3
    assert order["site"].mean[0].tolist() == pytest.approx([0.75, 0.5, 0.25, 1.0])


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 10)).double()
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimiser.zero_grad()
        F.cross_entropy(model(x[:800].double()), y[:800]).backward()
        optimiser.step()
    return model, batches(x[800:1500].double(), y[800:1500])


def test_it_finds_better_orders_than_its_first_round():
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 10)).double()
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(x[:800].double()), y[:800]).backward()
        optimiser.step()
    names = ["gradient_x_activation", "progressive_gradient"]
    data = batches(x[800:1500].double(), y[800:1500])
    judged = ablation_faithfulness(model, data, neuron_importance(model, data, layers="1", attribution=names))
    first, order = (judged["1", name].faithfulness for name in names)
    assert order.gap[-1] > first.gap[-1] + 0.02
    assert judged.comparisons[0].better == "progressive_gradient"
    assert np.isnan(order.lds).all()  # an order predicts no effects
    assert first.lds[-1] > 0.5
    assert {finding.id for finding in judged.findings if finding.attribution == "progressive_gradient"} <= {
        "no-better-than-reference"
    }


def test_batches_and_processes_do_not_matter(trained):
    model, data = trained
    probe = ProbeSet.from_batches(data, max_samples=300)
    wanted = neuron_importance(model, probe, layers="3", attribution="progressive_gradient", batch_size=300)
    small = neuron_importance(model, probe, layers="3", attribution="progressive_gradient", batch_size=7)
    np.testing.assert_array_equal(small["3"].half_mean, wanted["3"].half_mean)
    subject = Subject(model, probe)
    removal = wanted["3"].removal
    removed, found = points((0.1, 0.5), 32), {}

    def process(rank, gather):
        mine = Subject(copy.deepcopy(model), probe.select(np.sort(probe.index)[rank::2]), batch_size=50)
        recorder = mine.recorder(removal)
        halves = lambda: ((batch, index, index % 4 // 2) for batch, index in mine.passes())  # noqa: E731
        found[rank] = progressive_orders(recorder, halves, removed, 2, MARGIN, processes=Processes(gather))

    in_lockstep(2, process)
    halves = lambda: ((batch, index, index % 4 // 2) for batch, index in subject.passes())  # noqa: E731
    alone = progressive_orders(subject.recorder(removal), halves, removed, 2, MARGIN)
    np.testing.assert_array_equal(found[0], alone)
    np.testing.assert_array_equal(found[1], alone)


def test_randomised_weights_give_an_order_of_their_own(trained):
    model, data = trained
    results = neuron_importance(model, data, layers="1", attribution="progressive_gradient", max_samples=200)
    found = weight_randomisation(model, ProbeSet.from_batches(data, max_samples=200), results).randomisations[0]
    assert found.attribution == "progressive_gradient"
    assert np.abs(found.rank_correlation[-1]).mean() < 0.4


def test_what_it_costs():
    score = ProgressiveGradient(fractions=[0.1, 0.5])
    assert score.cost == (
        "2 forward passes, and 2 forward and backward passes of what follows the layer, for each way of clustering"
    )
    count = {"forward": 0}
    model, data = Function(lambda h: torch.tanh(h).sum(1)), class_zero(torch.randn(30, 4))
    model.register_forward_hook(lambda *_: count.update(forward=count["forward"] + 1))
    neuron_importance(model, data, layers="site", attribution="gradient_x_activation")
    before, count["forward"] = count["forward"], 0
    neuron_importance(model, data, layers="site", attribution=score)
    # two rounds, and the first one's recording is tried against full passes: one for values, one for gradients
    assert count["forward"] - before == 2 + 2


@pytest.mark.parametrize(("points", "shares"), [(1, [0.5]), (2, [0.25, 0.5])])
def test_masked_gradients_are_those_of_intact_and_of_masked_activations(points, shares):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(60, 5), torch.arange(60) % 3
    seen = []

    def spy(batch):
        order = np.argsort(batch.index)
        seen[:] = [random_removal(batch, point, share)[order] for point, share in enumerate(shares)]
        return batch.sum_positions(batch.deviation)

    score = MaskedGradient(points=points)
    results = neuron_importance(
        model, [(x, y)], layers="1", attribution=[score, Attribution("spy", spy)], baseline="mean"
    )
    h, baseline = model[:2](x).detach(), torch.from_numpy(results["1"].removal.baseline_value)
    total = 0
    for removed in [torch.zeros_like(h), *seen]:
        point = (h - removed * (h - baseline)).requires_grad_()
        total = total + torch.autograd.grad(MARGIN.values(model[2:](point), y).sum(), point)[0] / (points + 1)
    expected = (h - baseline) * total
    for row in range(3):
        np.testing.assert_allclose(results["1"].mean[row], expected[y == row].mean(0).numpy(), atol=1e-12)
    for removed, share in zip(seen, shares, strict=True):
        assert abs(float(removed.mean()) - share) < 0.08


@pytest.mark.parametrize(("blocks", "at"), [(1, 0.6), (2, 0.5), (3, 0.25)])
def test_blockwise_gradients_are_those_of_neurons_on_their_way(blocks, at):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(60, 5), torch.arange(60) % 3
    seen = []

    def spy(batch):
        order = np.argsort(batch.index)
        seen[:] = [inside[order] for inside in random_blocks(batch, blocks)]
        return batch.sum_positions(batch.deviation)

    score = BlockwiseGradient(blocks=blocks, at=at)
    results = neuron_importance(
        model, [(x, y)], layers="1", attribution=[score, Attribution("spy", spy)], baseline="mean"
    )
    h, baseline = model[:2](x).detach(), torch.from_numpy(results["1"].removal.baseline_value)
    assert torch.equal(sum(seen), torch.ones_like(h))  # each neuron of each sample is in one block
    expected = torch.zeros_like(h)
    for inside in seen:
        point = (h - at * inside * (h - baseline)).requires_grad_()
        slope = torch.autograd.grad(MARGIN.values(model[2:](point), y).sum(), point)[0]
        expected += inside * (h - baseline) * slope
    for row in range(3):
        np.testing.assert_allclose(results["1"].mean[row], expected[y == row].mean(0).numpy(), atol=1e-12)
    for inside in seen:
        assert abs(float(inside.mean()) - 1 / blocks) < 0.08


def test_blockwise_gradients_in_closed_form():
    """Of a product, half the samples have both factors in one block: a b, with half of the other factor left."""
    linear = Function(lambda h: h @ torch.tensor([2.0, -1.0, 0.5, 0.0]))
    exact = neuron_importance(
        linear, class_zero([[1, 3, 4, 5]]), layers="site", attribution="blockwise_gradient", target="logit"
    )
    np.testing.assert_allclose(exact["site"].mean[0], [2, -3, 2, 0], atol=1e-12)
    both = Function(lambda h: h[:, 0] * h[:, 1])
    many = class_zero([[2, 3]] * 20000)
    found = neuron_importance(
        both, many, layers="site", attribution="blockwise_gradient", target="logit", max_samples=20000
    )
    np.testing.assert_allclose(found["site"].mean[0], (6 + 0.5 * 6) / 2, atol=0.05)
    # the midpoint rule is exact for squares
    square = Function(lambda h: h[:, 0] ** 2)
    one = neuron_importance(
        square, class_zero([[2.0]]), layers="site", attribution="blockwise_gradient", target="logit"
    )
    np.testing.assert_allclose(one["site"].mean[0], 4.0, atol=1e-12)


@pytest.mark.parametrize("baseline", ["zero", "mean", "resample"])
@pytest.mark.parametrize("name", ["cnn", "class_token", "bert_heads", "gru", "residual"])
def test_blockwise_gradients_at_all_kinds_of_sites(name, baseline):
    """The suffix gives what a slow twin gives, whose blocks are those of the library."""
    torch.manual_seed(3)
    family = FAMILIES[name]()
    family.model.eval()
    probe = ProbeSet.from_batches(family.batches, seed=5)
    blocks = {}

    def spy(batch):
        inside = next(iter(random_blocks(batch, 2)))
        channels = inside.movedim(batch.axis, -1).reshape(len(inside), -1, inside.shape[batch.axis])[:, 0]
        blocks.update(zip(batch.index.tolist(), channels[:, :: batch.group].numpy().astype(bool), strict=True))
        return batch.sum_positions(batch.deviation)

    results = neuron_importance(
        family.model,
        probe,
        layers=family.site,
        attribution=["blockwise_gradient", Attribution("spy", spy)],
        baseline=baseline,
        seed=5,
    )
    one = results.importances[0]
    donors = Subject(family.model, probe).donors(one.removal.baseline, 5)
    donor_of = None if donors is None else dict(zip(range(N), donors.of(np.arange(N)).tolist(), strict=True))
    baselines, scores = twin_baselines(family, baseline, donor_of), []
    for sample in range(N):
        intact, total = sample_pass(family, sample)[1].detach(), 0
        picked = list(rows(family, intact))
        for inside in (blocks[sample], ~blocks[sample]):
            moving = torch.zeros_like(intact)
            width = torch.from_numpy(inside).repeat_interleave(family.site.group)
            moving[picked] = (intact[picked] - baselines[sample]) * width
            point = (intact - 0.5 * moving).requires_grad_()
            logits, _ = sample_pass(family, sample, point)
            (slope,) = torch.autograd.grad(twin_margin(logits, int(family.labels[sample])), point)
            total = total + (moving * slope)[picked].sum(0)
        scores.append(total.reshape(-1, family.site.group).sum(1))
    scores = torch.stack(scores)
    for row, label in enumerate(one.cluster_ids.tolist()):
        np.testing.assert_allclose(one.mean[row], scores[family.labels == label].mean(0), atol=1e-10)


class TestJointly:
    """Neurons of all layers removed together."""

    def test_gradients_equal_plain_torch(self):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3))
        x, y = torch.randn(40, 5), torch.arange(40) % 3
        seen = {}

        def spy(batch):
            order = np.argsort(batch.index)
            seen[batch.site] = [random_removal(batch, point, q)[order] for point, q in enumerate(QS)]
            return batch.sum_positions(batch.deviation)

        score = MaskedGradient(points=2, q_max=0.6, intact=False, jointly=True)
        QS = score._probabilities(0)
        results = neuron_importance(
            model, [(x, y)], layers=["1", "3"], attribution=[score, Attribution("spy", spy)], baseline=0.25
        )
        total = {"1": 0, "3": 0}
        for point in range(2):
            first = model[1](model[0](x))
            masked = (first - seen["1"][point] * (first - 0.25)).detach().requires_grad_()
            second = model[3](model[2](masked))
            again = second - seen["3"][point] * (second - 0.25)
            again.retain_grad()
            MARGIN.values(model[4](again), y).sum().backward()
            total["1"] += masked.grad / 2
            total["3"] += again.grad / 2
        intact = {"1": model[:2](x).detach(), "3": model[:4](x).detach()}
        for site in ("1", "3"):
            expected = (intact[site] - 0.25) * total[site]
            for row in range(3):
                wanted = expected[y == row].mean(0).numpy()
                np.testing.assert_allclose(results[site, score.name].mean[row], wanted, atol=1e-12)

    @pytest.mark.parametrize("name", ["cnn", "encoder", "bert_heads", "gru", "residual"])
    def test_of_one_site_it_is_the_masked_gradient_with_the_same_masks(self, name):
        """With one site all removals are its own: only the strata's draws are seeded otherwise."""
        torch.manual_seed(3)
        family = FAMILIES[name]()
        family.model.eval()
        score = MaskedGradient(points=3, intact=False, jointly=True)

        def alone(batch):
            total = 0
            for point, q in enumerate(score._probabilities(batch.seed)):
                removed = random_removal(batch, point, q)
                total = total + batch.suffix.gradient(batch.activation - removed * batch.deviation)
            return batch.sum_positions(batch.deviation * total / 3)

        results = neuron_importance(
            family.model, family.batches, layers=family.site, attribution=[score, Attribution("alone", alone)]
        )
        site = results.sites[0]
        np.testing.assert_allclose(results[site, score.name].mean, results[site, "alone"].mean, atol=1e-11)

    def test_batches_do_not_matter(self, trained):
        model, data = trained
        probe = ProbeSet.from_batches(data, max_samples=100)
        score = MaskedGradient(points=1, jointly=True)
        one, other = (
            neuron_importance(model, probe, layers=["1", "3"], attribution=score, batch_size=size) for size in (100, 7)
        )
        for site in ("1", "3"):
            np.testing.assert_allclose(one[site].mean, other[site].mean, atol=1e-12)

    def test_one_pass_for_all_layers(self):
        count = {"forward": 0}
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
        data = [(torch.randn(30, 4), torch.arange(30) % 2)]
        model.register_forward_hook(lambda *_: count.update(forward=count["forward"] + 1))
        neuron_importance(model, data, layers=["1", "3"], attribution="gradient_x_activation")
        before, count["forward"] = count["forward"], 0
        neuron_importance(model, data, layers=["1", "3"], attribution=MaskedGradient(points=2, jointly=True))
        assert count["forward"] - before == 2
        assert MaskedGradient(points=1, jointly=True).cost == (
            "1 forward and backward pass of the whole model, for all layers together"
        )

    def test_nothing_is_left_behind(self, trained):
        model, data = trained
        before = {name: value.clone() for name, value in model.state_dict().items()}
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        neuron_importance(model, data, layers=["1", "3"], attribution=MaskedGradient(jointly=True), max_samples=50)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(torch.equal(own.grad, held) for own, held in zip(model.parameters(), gradients, strict=True))


class TestOptions:
    """Names bring options back; wrong ones are refused in words."""

    @pytest.mark.parametrize("score", [MaskedGradient(points=2, jointly=True), ProgressiveGradient(fractions=[0.5])])
    def test_names_bring_scores_back(self, score):
        (found,) = resolve_attributions(score.name)
        assert found.score == score
        assert found.name == score.name
        assert found.kind == score.kind

    def test_default_options_have_the_plain_name(self):
        for name, attribution in ATTRIBUTIONS.items():
            assert attribution.name == attribution.kind == name

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ("masked_gradient(steps=2)", [r"options \['points', 'q_max', 'intact', 'jointly'\], got 'steps'"]),
            ("blockwise_gradient(blocks=0)", ["blocks of BlockwiseGradient must be", "got 0"]),
            ("blockwise_gradient(at=2)", ["at of BlockwiseGradient must be", "got 2"]),
            ("masked_gradient(2)", ["options of an attribution are written as in", r"'masked_gradient\(points=\d\)'"]),
            ("masked_gradient(points=", ["are written as in", "got 'masked_gradient"]),
            ("masked_gradient(points=x)", ["are written as in", "got 'masked_gradient"]),
            ("masked_gradient(points=0)", ["points of MaskedGradient must be", "at least 1", "got 0"]),
            ("masked_gradient(q_max=1.5)", ["q_max of MaskedGradient must be", "got 1.5"]),
            ("masked_gradient(intact=0)", ["intact of MaskedGradient must be", "got 0"]),
            ("masked_gradient(jointly='no')", ["jointly of MaskedGradient must be", "got 'no'"]),
            ("integrated_gradients(steps=2.5)", ["steps of IntegratedGradients must be", "got 2.5"]),
            ("progressive_gradient(fractions=[])", ["fractions must be numbers above 0 and up to 1", "got \\[\\]"]),
            ("progressive_gradient(fractions=[0.1, 2])", ["each of fractions must be", "got 2"]),
            ("leave_one_out(steps=2)", ["attribution 'leave_one_out' has no options", "pass 'leave_one_out'"]),
            ("masked_gradients", ["attribution must be among", "did you mean 'masked_gradient'"]),
        ],
    )  # fmt: skip
    def test_refused_in_words(self, value, words, unchecked):
        for phrase in words:
            with pytest.raises(InvalidArgument, match=phrase):
                resolve_attributions(value)

    def test_the_same_score_twice_with_other_options(self):
        found = resolve_attributions([MaskedGradient(points=1), "masked_gradient(points=4)", "gradient"])
        assert len({each.name for each in found}) == 3
        with pytest.raises(InvalidArgument, match="must have different names"):
            resolve_attributions([MaskedGradient(), "masked_gradient"])


def test_another_name_makes_no_other_score(trained):
    model, data = trained
    own = Attribution("mine", ProgressiveGradient())
    assert (own.kind, own.needs_gradient) == ("progressive_gradient", True)
    results = neuron_importance(model, data, layers="1", attribution=own, max_samples=200)
    judged = ablation_faithfulness(model, ProbeSet.from_batches(data, max_samples=200), results)
    assert np.isnan(judged["1"].faithfulness.lds).all()
    with pytest.raises(InvalidArgument, match="pass attribution= as to neuron_importance"):
        weight_randomisation(model, ProbeSet.from_batches(data, max_samples=200), results)


def test_settings_of_other_measurements_stay_as_they_are(trained):
    """An order is judged by the same protocol: its deletion curve is that of the order by plain removal."""
    model, data = trained
    together = dict.fromkeys(range(10), "all")
    results = neuron_importance(model, data, layers="1", attribution="progressive_gradient", clusters=together)
    judged = ablation_faithfulness(model, data, results, AblationFaithfulness(max_samples=1024))["1"].faithfulness
    halves = []
    for half in range(2):
        order = np.argsort(-judged_order(results, 1 - half), kind="stable")
        probe = ProbeSet.from_batches(data).select(results.sample_index[results.sample_half == half])
        halves.append(deletion_curve(model, probe, order, layer="1").accuracy)
    sizes = [(results.sample_half == half).sum() for half in range(2)]
    np.testing.assert_allclose(judged.accuracy[0], np.average(halves, axis=0, weights=sizes), atol=1e-12)


def judged_order(results, half):
    return results["1"].half_mean[half, 0]


def test_groups_are_summed():
    assert sum_groups(torch.arange(6.0)[None], 3).tolist() == [[3.0, 12.0]]
