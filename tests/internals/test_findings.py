"""Each finding has a network that must raise it and one that must not; thresholds come from benchmarks/findings.py."""

import dataclasses
import functools
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from lightning_neuroimp import (
    AblationFaithfulness,
    Attribution,
    KMeansClusters,
    Results,
    ablation_faithfulness,
    neuron_importance,
)
from lightning_neuroimp.display.summary import markdown as write_markdown
from lightning_neuroimp.display.summary import summary
from lightning_neuroimp.importance.attributions.first_order import gradient_x_activation
from lightning_neuroimp.results.findings import diagnosis, evidence
from lightning_neuroimp.study.randomisation import weight_randomisation
from tests.support.digits import digits, train, validation_batches
from tests.support.toys import Function

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

pytestmark = pytest.mark.usefixtures("unchecked")

SETTINGS = AblationFaithfulness(max_samples=1024)


def measured(model, batches=None, settings=SETTINGS, **options):
    batches = validation_batches() if batches is None else batches
    found = neuron_importance(model, batches, **({"layers": "1"} | options))
    return found if settings is None else ablation_faithfulness(model, batches, found, settings)


def ids(results, attribution=None):
    return {one.id for one in results.findings if attribution in (None, one.attribution)}


def finding(results, name):
    return next(one for one in results.findings if one.id == name)


def abs_gradient(batch):
    return batch.sum_positions(batch.gradient).abs()


@pytest.fixture(scope="module")
def relu():
    return train(nn.ReLU, seed=11, width=128, depth=2)


@pytest.fixture(scope="module")
def tanh():
    return train(nn.Tanh, seed=11, width=128, depth=2)


@pytest.fixture(scope="module")
def breast_cancer():
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], torch.tensor(y)[order]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:300]), y[:300]).backward()
        optimizer.step()
    return model.eval(), [(x[300:], y[300:])]


@pytest.mark.parametrize("clusters", ["labels", KMeansClusters(8)])
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_nothing_speaks_against_the_default_where_it_is_right(name, clusters, request):
    results = measured(request.getfixturevalue(name), clusters=clusters, layers=["1", "3"])
    assert results.findings == ()
    assert all(one.faithfulness.verdict[-1] == "faithful" for one in results.importances)
    assert "Findings: none of those that are looked for (examples/findings.md)." in summary(results)


def test_few_samples(relu):
    results = measured(relu, max_samples=100)
    found = finding(results, "few-samples")
    assert "10 of 10 clusters have fewer than 16 samples in a half" in found.text
    assert found.clusters == tuple(f"label {number}" for number in range(10))
    assert found.figures["samples"] == 100
    assert "max_samples" in found.remedy
    assert results.findings[0] is found  # nothing else can be believed
    assert "few-samples" not in ids(measured(relu, None))
    assert "few-samples" in ids(measured(relu, max_samples=100, settings=None))


def test_near_chance(relu):
    untrained = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    found = finding(measured(untrained, settings=None), "near-chance")
    assert re.match(
        r"the model is right for \d+% of the samples \(\d+% averaged over classes\); always naming one", found.text
    )
    assert "would give 10%" in found.text
    assert "near-chance" not in ids(measured(relu, settings=None))
    # one class, or next to none of another
    assert "near-chance" not in ids(measured(relu, settings=None, classes=[0]))
    x, y = (torch.cat(part) for part in zip(*validation_batches(), strict=True))
    rare = torch.cat([(y == 0).nonzero()[:, 0], (y == 1).nonzero()[:4, 0]])
    assert "near-chance" not in ids(measured(relu, [(x[rare], y[rare])], settings=None))
    # what the model names is right by definition
    assert "near-chance" not in ids(
        measured(untrained, settings=None, target_class="predicted", clusters="predictions")
    )


def test_mixed_clusters(relu):
    found = finding(measured(relu, settings=None, clusters=KMeansClusters(3)), "mixed-clusters")
    assert re.search(r"the most common class makes up [23]\d% of a cluster", found.text)
    assert len(found.clusters) == 3
    assert "mixed-clusters" not in ids(measured(relu, settings=None, clusters=KMeansClusters(10)))


def test_halves_disagree(tanh):
    options = {"clusters": KMeansClusters(3), "settings": None, "target": "probability"}
    few = measured(tanh, max_samples=150, **options)
    found = finding(few, "halves-disagree")
    assert re.search(r"\(reliability -?0\.[0-6]\d\)", found.text)
    assert "halves-disagree" not in ids(measured(tanh, settings=None))


def test_saturated_targets(tanh):
    options = {"clusters": KMeansClusters(3)}
    for settings in (SETTINGS, None):
        found = finding(measured(tanh, target="probability", settings=settings, **options), "saturated-target")
        assert re.search(
            r"target='probability' is flat where the model is confident: .* carried by \d+% of the s", found.text
        )
        assert ("LDS" in found.text) == (settings is not None)
        assert found.remedy == "target='margin'"
        assert found.figures["carried_by"] < 0.3
    assert "saturated-target" not in ids(measured(tanh, **options))


def test_effects_to_first_order_are_of_the_margin_for_saturating_targets(tanh):
    margin, *others = (
        measured(tanh, settings=None, target=target)["1"] for target in ("margin", "probability", "log_probability")
    )
    np.testing.assert_array_equal(margin.half_first_order, margin.half_mean)
    for other in others:
        np.testing.assert_array_equal(other.half_first_order, margin.half_first_order)
        assert not np.allclose(other.half_mean, margin.half_mean)


def test_derivatives_without_distance(relu, tanh):
    for settings, evidence_of in (
        (SETTINGS, r"its gap is \+0\.0\d+, that of the ranking by effects to first order \+0\.2\d+"),
        (None, r"the top neurons account for \d+% of the achievable effect"),
    ):
        found = finding(measured(tanh, attribution="gradient", settings=settings), "derivative-without-distance")
        assert re.search(evidence_of, found.text)
        assert found.remedy == "attribution='gradient_x_activation'"
        assert "derivative-without-distance" not in ids(measured(relu, attribution="gradient", settings=settings))
    results = measured(tanh, attribution=["gradient", "gradient_x_activation"])
    assert finding(results, "derivative-without-distance").figures["captured"] < 0.8
    gaps = [one.faithfulness.gap[-1] for one in results.importances]
    assert gaps[0] < 0.5 * gaps[1]  # as the finding says
    assert ids(results, "gradient_x_activation") == set()


def test_captured_effects_against_a_slow_twin(tanh):
    one = measured(tanh, attribution="gradient", settings=None)["1"]
    carried = {"own": 0.0, "best": 0.0}
    for cluster in range(10):
        for half in (0, 1):
            effects = one.half_first_order[1 - half, cluster]
            for kind, scores in (("own", one.half_mean), ("best", one.half_first_order)):
                order = sorted(range(128), key=lambda neuron: -scores[half, cluster, neuron])
                for k in (2, 3, 7, 13, 26, 64):
                    carried[kind] += sum(effects[neuron] for neuron in order[:k]) * one.count[:, cluster].sum()
    assert evidence.captured_effect(one) == pytest.approx(carried["own"] / carried["best"])


def test_activations_without_derivatives(tanh):
    with_gradient = measured(tanh, attribution=["gradient_x_activation", "activation"])
    assert "activation-without-derivative" in ids(with_gradient, "activation")
    # where all derivatives are the same, the activation says all
    model = Function(lambda h: h.sum(1) - 2.0, nn.Sequential(nn.Linear(8, 8), nn.ReLU())).eval()
    x = torch.randn(400, 8)
    with torch.no_grad():
        batches = [(x, (model(x)[:, 0] <= 0).long())]
    results = measured(
        model, batches, layers="site.1", attribution=["gradient", "activation"], target="logit", target_class=0
    )
    assert "activation-without-derivative" not in ids(results)


def test_absolute_values(relu):
    scores = ["gradient_x_activation", abs_gradient]
    found = finding(measured(relu, attribution=scores), "absolute-values")
    assert found.attribution == "abs_gradient"
    assert re.search(r"\d+% of the effects to first order are negative", found.text)
    assert "keep the sign" in found.remedy
    # where no neuron inhibits, absolute values hide nothing
    model = Function(lambda h: (h * torch.arange(1.0, 9)).sum(1), nn.Sequential(nn.Linear(8, 8), nn.ReLU())).eval()
    results = measured(
        model,
        [(torch.randn(400, 8), torch.zeros(400, dtype=torch.int64))],
        layers="site.1",
        attribution=["gradient_x_activation", Attribution("abs", lambda batch: gradient_x_activation(batch).abs())],
    )
    assert "absolute-values" not in ids(results)


def test_signed_activations(relu, tanh):
    found = finding(measured(tanh, attribution=["gradient", "activation"]), "signed-activations")
    assert re.match(r"(9\d% of the|all) neurons take values on both sides of the baseline", found.text)
    assert "signed-activations" not in ids(measured(relu, attribution=["gradient", "activation"]))


class Cancelling(nn.Module):
    """Margin x0 tanh(3 h0) + .5 h1 with x0 = h0 = +-1: the derivative's sign follows the sample's (T6 of the tests)."""

    def __init__(self):
        super().__init__()
        self.site = nn.Identity()

    def forward(self, x):
        h = self.site(x)
        value = (x[:, :4] * torch.tanh(3 * h[:, :4]) * torch.tensor([4.0, 3.0, 2.0, 1.0])).sum(1) + 0.01 * h[:, 4:].sum(
            1
        )
        return torch.stack([value, torch.zeros_like(value)], 1)


def test_cancelling_signs(relu):
    signs = torch.randn(400, 4).sign()
    x = torch.cat([signs, torch.ones(400, 12)], 1)
    results = measured(
        Cancelling().eval(), [(x, torch.zeros(400, dtype=torch.int64))], layers="site", attribution=["gradient"]
    )
    found = finding(results, "cancelling-signs")
    assert re.search(r"[1-9]\d% of the scores' magnitude cancels within the clusters", found.text)
    assert "cancelling-signs" not in ids(measured(relu, attribution="gradient"))


def test_saturated_activations(relu):
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    model.load_state_dict(train(nn.Tanh, seed=1, width=64, depth=1).state_dict())
    for gain, expected in ((1.0, False), (15.0, True)):
        with torch.no_grad():
            model[0].weight.mul_(gain)
            model[0].bias.mul_(gain)
        results = measured(model.eval(), layers=["0", "1"], settings=None)
        assert results.activity("0").nonlinearity == "tanh"
        assert results.activity("1").nonlinearity == ""
        assert ("saturated-activation" in ids(results)) == expected
    found = finding(results, "saturated-activation")
    assert found.site == "0"
    assert re.match(r"these values are the input of a saturated tanh: its gradient misses (8|9)\d%", found.text)
    # a baseline that is saturated is not what the derivative is taken at
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
        model[0].bias.mul_(1e-3)
    assert measured(model, layers="0", settings=None, baseline=3.0).activity("0").derivative_error == 0
    # a rectifier is straight on each side of zero
    assert measured(relu, layers="0", settings=None).activity("0").derivative_error == 0


class Planted(nn.Module):
    """Network T11: two neurons copy each class, four are constant, four are dead, four are zero."""

    def __init__(self, weight=2.0):
        super().__init__()
        self.site = nn.Identity()
        readout = torch.zeros(2, 16)
        readout[0, 0:2] = readout[1, 2:4] = weight
        readout[:, 8:12] = 30.0
        readout[0, 8:12] += 5.0
        self.register_buffer("readout", readout)

    def forward(self, x):
        one_hot = x[:, :2]
        constant, zero = x.new_full((len(x), 4), 50.0), x.new_zeros(len(x), 8)
        h = self.site(torch.cat([one_hot[:, [0, 0]], one_hot[:, [1, 1]], constant, zero], 1))
        return h @ self.readout.T + torch.tensor([0.0, 1.0])


def test_constant_neurons():
    y = torch.arange(200) % 2
    batches = [(nn.functional.one_hot(y, 2).float(), y)]
    for score in ("activation", "gradient"):
        found = finding(measured(Planted(), batches, layers="site", attribution=[score, "random"]), "constant-neurons")
        assert "12 of 16 neurons are constant on all samples" in found.text
        assert found.attribution == score
    # the default ranks none of them, but there are many
    found = finding(measured(Planted(), batches, layers="site"), "constant-neurons")
    assert found.attribution == ""
    assert "gaps look larger than they are" in found.text


def test_no_constant_neurons(tanh):
    assert "constant-neurons" not in ids(measured(tanh, attribution=["gradient", "activation"]))


class Changed(nn.Module):
    """A trained network, changed at its first layer without a change of what it computes."""

    def __init__(self, model, shift=0.0, copies=1):
        super().__init__()
        self.front, self.rest, self.shift, self.copies = model[:2], model[2:], shift, copies
        self.site = nn.Identity()

    def forward(self, x):
        h = self.site(self.front(x).repeat(1, self.copies) + self.shift) - self.shift
        return self.rest(h.unflatten(1, (self.copies, -1)).amax(1))


def test_baselines_outside_of_the_activations(tanh):
    found = finding(measured(Changed(tanh, shift=20.0).eval(), layers="site", settings=None), "baseline-outside")
    assert re.match(
        r"the baseline \(zero\) lies more than 2 standard deviations from the mean of 128 of 128", found.text
    )
    assert found.remedy == "baseline='mean'"
    assert "baseline-outside" not in ids(measured(Changed(tanh).eval(), layers="site", settings=None))
    mean = measured(Changed(tanh, shift=20.0).eval(), layers="site", settings=None, baseline="mean")
    assert "baseline-outside" not in ids(mean)


def test_redundancy(relu):
    found = finding(measured(Changed(relu, copies=5).eval(), layers="site"), "redundancy")
    assert "neurons stand in for one another" in found.text
    assert found.figures["joint_over_single"] > 2.5
    assert "redundancy" not in ids(measured(Changed(relu).eval(), layers="site"))


def test_accuracy_that_hardly_falls(breast_cancer):
    model, batches = breast_cancer
    results = measured(model, batches)
    assert results["1"].faithfulness.verdict[-1] == "weak"
    found = finding(results, "hardly-any-fall")
    assert re.search(
        r"LDS (0\.9\d|1\.00)\), but no decision hangs on it: without the top 32 of 64 neurons, 9\d% of the accuracy is "
        r"left, under random removal (9\d|100)%",
        found.text,
    )
    more = measured(model, batches, AblationFaithfulness(fractions=(0.5, 0.7, 0.8, 0.9, 0.95)))
    assert more["1"].faithfulness.verdict[-1] == "faithful"
    assert "hardly-any-fall" not in ids(more)


def test_rankings_that_are_no_better_than_simple_ones(relu):
    model = Function(lambda h: h.sum(1) - 2.0, nn.Sequential(nn.Linear(8, 8), nn.ReLU())).eval()
    x = torch.randn(400, 8)
    with torch.no_grad():
        y = (model(x)[:, 0] <= 0).long()
    every = {"ranking by mean |activation - baseline|", "one ranking for all clusters"}
    for clusters, expected in (
        (lambda batch: (batch[0][:, 0] > 0).long(), {"ranking by mean |activation - baseline|"}),
        (lambda batch: torch.arange(len(batch[0])) % 2, every),  # clusters that are alike
    ):
        two = measured(model, [(x, y)], layers="site.1", clusters=clusters, target_class=0)
        said = {one.text for one in two.findings if one.id == "no-better-than-reference"}
        assert {text.partition(" is as good")[0] for text in said} == expected
    assert "no-better-than-reference" not in ids(measured(relu))
    # which is the reference itself
    assert "no-better-than-reference" not in {
        one.id for one in measured(relu, attribution="activation").findings if "mean |activation" in one.text
    }


def test_single_clusters_that_are_not_borne_out(relu):
    """Two labels have clusters of their own; the third cluster is of all others, whose votes cancel."""

    def clusters(batch):
        return torch.where(batch[1] < 7, batch[1], 7)

    def score(batch):
        # nothing is known of the last cluster
        known = (labels_of[torch.from_numpy(batch.index)] < 7).to(batch.activation)[:, None]
        return gradient_x_activation(batch) * known

    labels_of = torch.cat([y for _, y in validation_batches()])
    results = measured(relu, clusters=clusters, attribution=score)
    assert results["1"].faithfulness.verdict[-1] == "faithful"
    found = finding(results, "clusters-not-borne-out")
    assert found.clusters == ("7",)
    assert re.search(r"but not that of 1 of 8 clusters \(whose most common class makes up 3\d%\)", found.text)
    assert "clusters-not-borne-out" not in ids(measured(relu, clusters=clusters))


def test_methods_that_agree(relu, tanh):
    results = measured(relu, layers="3", attribution=["gradient_x_activation", "leave_one_out"])
    found = finding(results, "methods-agree")
    assert re.match(r"all 2 scores do equally well here \(gaps \+0\.\d+ to \+0\.\d+\)", found.text)
    assert results.findings[-1] is found
    assert "methods-agree" not in ids(measured(tanh, attribution=["gradient_x_activation", "gradient"]))
    assert "methods-agree" not in ids(measured(relu, layers="3"))


def test_scores_that_are_blind_to_the_weights(relu):
    model = nn.Sequential(nn.Identity(), *relu)
    scores = ["activation", "gradient_x_activation", "random"]
    results = measured(model, layers="0", attribution=scores, settings=None)
    results = weight_randomisation(model, validation_batches(), results, attribution=scores)
    assert [one.attribution for one in results.findings if one.id == "blind-to-weights"] == ["activation"]


def test_a_better_score_at_hand(tanh):
    def cubed(batch):
        return batch.sum_positions(batch.gradient**3)

    assert "better-score-at-hand" in ids(measured(tanh, attribution=cubed))
    assert ids(measured(tanh, attribution=Attribution("mine", gradient_x_activation))) == set()


def test_first_order_that_fails(tanh):
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    model.load_state_dict(train(nn.Tanh, seed=1, width=64, depth=1).state_dict())
    with torch.no_grad():
        model[0].weight.mul_(6)
        model[0].bias.mul_(6)
    both = measured(model.eval(), layers="0", attribution=["gradient_x_activation", "leave_one_out"])
    found = finding(both, "first-order-fails")
    assert re.search(
        r"not enough here: leave_one_out has a gap of \+0\.\d+, this score \+0\.\d+ \(LDS 0\.\d+", found.text
    )
    assert found.remedy == "attribution='leave_one_out'"
    alone = finding(measured(model, layers="0"), "first-order-fails")
    assert re.search(
        r"predict removal poorly here \(LDS 0\.\d+, where 0\.9\d could be reached, reliability 0\.\d+\)", alone.text
    )
    assert "first-order-fails" not in ids(measured(tanh, attribution=["gradient_x_activation", "leave_one_out"]))


def test_what_was_measured_is_believed(relu):
    """A score that another one beats for certain is poor, whatever first order says of both."""
    results = measured(relu, attribution=["gradient_x_activation", "gradient"])
    assert evidence.captured_effect(results["1", "gradient"]) > 0.8
    assert "derivative-without-distance" not in ids(results)
    (comparison,) = results.comparisons
    assert comparison.better == "gradient_x_activation"
    reachable, one = results["1"].faithfulness.gap[-1], results["1", "gradient"]

    def with_gap(gap, captured=True):
        gaps = np.append(one.faithfulness.gap[:-1], gap)
        changed = dataclasses.replace(one, faithfulness=dataclasses.replace(one.faithfulness, gap=gaps))
        if not captured:
            changed = dataclasses.replace(changed, half_first_order=np.full_like(one.half_first_order, np.nan))
        return diagnosis.diagnose(results.replace(importances=(results["1"], changed)))

    assert "derivative-without-distance" not in {each.id for each in with_gap(0.85 * reachable)}
    for captured in (True, False):
        found = next(each for each in with_gap(0.7 * reachable, captured) if each.id == "derivative-without-distance")
        assert np.isfinite(found.weight)
        assert "nan" not in found.text.partition("; LDS")[0]


def test_random_scores_are_not_diagnosed(tanh):
    assert measured(tanh, attribution="random").findings == ()


@pytest.mark.parametrize(
    ("activation", "clusters"),
    [(nn.ReLU, "labels"), (nn.Tanh, "labels"), (nn.GELU, "labels"), (nn.ReLU, KMeansClusters(3))],
)
def test_the_table_of_the_question(activation, clusters):
    """What is raised about a ranking agrees with what removal measures, cell by cell."""
    scores = ["gradient_x_activation", "gradient", abs_gradient, "activation", "integrated_gradients", "leave_one_out"]
    results = measured(train(activation, seed=5), clusters=clusters, attribution=scores)
    reachable = results["1", "leave_one_out"].faithfulness.gap[-1]
    for one in results.importances:
        good = one.faithfulness.gap[-1] > 0.8 * reachable
        raised = ids(results, one.attribution) - {"methods-agree", "no-better-than-reference"}
        assert bool(raised) == (not good), (one.attribution, one.faithfulness.gap[-1], reachable, raised)


def test_saved_shown_and_ranked(tanh, tmp_path):
    results = measured(
        tanh, attribution=["gradient", "activation", abs_gradient], clusters=KMeansClusters(3), max_samples=90
    )
    weights = [one.weight for one in results.findings]
    assert weights == sorted(weights, reverse=True)
    results.save(tmp_path / "results.npz")
    for one, loaded in zip(results.findings, Results.load(tmp_path / "results.npz").findings, strict=True):
        assert dataclasses.asdict(one) == dataclasses.asdict(loaded)
    kinds = list(dict.fromkeys(one.id for one in results.findings))
    assert len(kinds) > 5
    text = summary(results)
    assert all(f"{number}. {name} (" in text for number, name in enumerate(kinds[:5], 1))
    assert f"6. {kinds[5]}" not in text
    assert f"{len(kinds) - 5} more kinds: summary(all_findings=True)" in text
    everything = summary(results, all_findings=True)
    assert all(f"{number}. {name} (" in everything for number, name in enumerate(kinds, 1))
    markdown = write_markdown(results)
    assert markdown.index(kinds[0]) < markdown.index("| cluster ")
    assert text.count("To do: ") == 5


def test_all_findings_are_explained():
    page = (Path(__file__).parents[2] / "examples" / "findings.md").read_text()
    assert re.findall(r"^### `([\w-]+)`$", page, re.MULTILINE) == list(diagnosis.IDS)
    rules = (
        Path(diagnosis.__file__).parent / f"{name}.py"
        for name in ("samples", "conditions", "layers", "scores", "removal")
    )
    source = "".join(path.read_text() for path in rules)
    assert sorted(set(re.findall(r'"([a-z]+(?:-[a-z]+)+|redundancy|copies)"', source))) == sorted(diagnosis.IDS)


class Relu(torch.autograd.Function):
    """Has the name of torch's own, and nothing else of it."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, slope):
        return slope


class Gelu(Relu):
    pass


class Behind(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(64, 16), function, nn.Linear(16, 10)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.tanh, "tanh"),
        (torch.Tensor.tanh_, "tanh"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.GELU(approximate="tanh"), "gelu"),
        (nn.ReLU6(), "hardtanh"),
        (nn.LeakyReLU(0.2), "leakyrelu"),
        (lambda h: torch.sigmoid(h.view(-1, 4, 4).transpose(1, 2)).flatten(1), "sigmoid"),
        (lambda h: h + torch.tanh(h), ""),
        (lambda h: torch.relu(2 * h), ""),
        (nn.BatchNorm1d(16), ""),
        (Relu.apply, ""),
        (Gelu.apply, ""),
    ],
)
def test_what_follows_a_layer(function, name):
    model = Behind(function).eval()
    results = measured(model, layers="first", settings=None, baseline="mean", max_samples=64)
    activity = results.activity("first")
    assert activity.nonlinearity == name
    assert np.isnan(activity.derivative_error) == (name == "")
    if name and not isinstance(function, nn.LeakyReLU):
        h = model.first(torch.cat([x for x, _ in validation_batches()])[results.sample_index]).detach()
        here = h.clone().requires_grad_()
        outcome = function(here.clone())
        (slope,) = torch.autograd.grad(outcome.sum(), here)
        base = torch.from_numpy(activity.mean).float().expand_as(h)
        change = (outcome.detach() - function(base.clone())).abs()
        if outcome.shape == h.shape and name != "sigmoid":
            missed = (change - ((h - base) * slope).abs()).clamp_min(0).sum() / change.sum()
            assert activity.derivative_error == pytest.approx(float(missed), abs=1e-5)


def test_a_pass_holds_on_to_nothing_of_the_batches_before():
    live = []

    def pack(tensor):
        live.append(weakref.ref(tensor))
        return tensor

    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 10)).eval()
    held = []
    model.register_forward_pre_hook(lambda *_: held.append(sum(one() is not None for one in live)))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        measured(model, layers="2", settings=None)
    # weights are saved, too, and stay
    assert held[-1] == held[7]  # after five passes that settle the axes, and the first batch


def test_effects_do_not_decide_which_samples_count():
    """The derivative of a root is infinite at zero; activations are not."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.site, self.last = nn.Identity(), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(self.site(x).clamp_min(0).sqrt())

    x = torch.rand(200, 8)
    x[:50, 0] = 0
    batches = [(x, torch.arange(200) % 2)]
    alone = measured(Root().eval(), batches, settings=None, layers="site", attribution="activation")
    both = measured(Root().eval(), batches, settings=None, layers="site", attribution=["activation", "gradient"])
    assert both["site", "activation"].count.sum() == alone["site"].count.sum() == 200
    assert both["site", "activation"].non_finite == 0
    assert both["site", "gradient"].non_finite == 50
    np.testing.assert_array_equal(both["site", "activation"].mean, alone["site"].mean)
    assert np.isnan(both["site", "activation"].half_first_order).all()
    assert np.isnan(evidence.captured_effect(both["site", "activation"]))


def test_they_take_no_pass(tanh):
    calls = []
    handle = tanh.register_forward_hook(lambda *_: calls.append(1))
    try:
        results = measured(tanh)
    finally:
        handle.remove()
    # five batches: once for importance, once for ablation, the trial of replays, and five that settle the axes
    assert len(calls) == 5 + 5 + 1 + 5
    assert diagnosis.diagnose(results) == results.findings


def test_nothing_to_diagnose():
    """Samples that are not finite, clusters of one, one neuron: no finding is worth an exception."""
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 1), nn.Tanh(), nn.Linear(1, 10)).eval()
    bad = x[:12].clone()
    bad[3] = torch.nan
    results = measured(model, [(bad, y[:12])], attribution=["gradient_x_activation", "gradient", "random"])
    assert "few-samples" in ids(results)
    assert all(np.isfinite(one.weight) for one in results.findings)


def test_what_is_missing_is_no_error(tanh):
    """Parts of a measurement can be taken out: what they are evidence of is not raised, all else is."""
    scores = ["gradient_x_activation", "gradient", "activation"]
    whole = measured(tanh, layers=["1", "3"], attribution=scores, clusters=KMeansClusters(3))
    raised = {(one.id, one.site, one.attribution) for one in whole.findings}
    assert {"derivative-without-distance", "signed-activations"} <= {one[0] for one in raised}

    def without(**parts):
        return {(one.id, one.site, one.attribution) for one in diagnosis.diagnose(whole.replace(**parts))}

    assert {one[0] for one in raised - without(comparisons=())} <= {"first-order-fails"}
    needs_activities = {"signed-activations", "saturated-activation", "constant-neurons", "baseline-outside"}
    assert raised - without(activities=()) == {one for one in raised if one[0] in needs_activities}
    assert without(randomisations=()) == raised
    first = tuple(one for one in whole.importances if one.site == "1")
    assert without(importances=first) == {one for one in raised if one[1] != "3"}
    alone = without(importances=first[1:2])
    assert ("derivative-without-distance", "1", "gradient") in alone
    assert without(importances=()) == set()
    bare = tuple(dataclasses.replace(one, faithfulness=None, half_first_order=None) for one in whole.importances)
    assert {one[0] for one in without(importances=bare, comparisons=(), activities=())} <= {"mixed-clusters"}


def named(name, score):
    return Attribution(name, score)


def test_names_of_scores_are_no_kinds(tanh):
    gradient = named("random", lambda batch: batch.sum_positions(batch.gradient))
    results = measured(tanh, attribution=[gradient, "gradient_x_activation"])
    assert "better-score-at-hand" in ids(results, "random")
    results = measured(tanh, attribution=named("gradient", lambda batch: batch.sum_positions(batch.gradient)))
    assert "better-score-at-hand" in ids(results)
    assert not {"derivative-without-distance", "signed-activations", "saturated-activation"} & ids(results)


def labels(batch):
    return batch[1] % 2


def test_a_function_called_labels_is_not_taken_for_labels(tanh):
    results = measured(tanh, clusters=labels, settings=None)
    assert (results.clusters.source, results.clusters.kind) == ("labels", "own")
    assert "mixed-clusters" in ids(results)
    few = results.replace(importances=tuple(map(unreliable, results.importances)))
    raised = next(one for one in diagnosis.diagnose(few) if one.id == "halves-disagree")
    assert raised.remedy == "more samples (.9 takes about 400 per cluster), fewer or more homogeneous clusters"
    same = dataclasses.replace(results.clusters, kind="labels")
    raised = next(one for one in diagnosis.diagnose(few.replace(clusters=same)) if one.id == "halves-disagree")
    assert raised.remedy == "more samples (.9 takes about 400 per cluster)"


def unreliable(importance):
    poor = dataclasses.replace(
        importance.reliability, split_half=np.full(2, 0.3), samples_needed=np.array([300.0, 500.0])
    )
    return dataclasses.replace(importance, reliability=poor)
