"""Networks whose scores are known in closed form (float64), through the public functions.

T1 to T10 and T13 are here; T11 is in test_planted.py, T12 in test_null.py, T14 in test_attributions.py,
test_field_scores.py and test_ddp.py, T15 in test_digits.py.
"""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import (
    Conductance,
    IntegratedGradients,
    InternalInfluence,
    Regression,
    Shapley,
    Site,
    ablate,
    neuron_importance,
)
from lightning_neuroimp.ablation.outcomes import ablate_orders
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from tests.support.toys import Function, class_zero

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

pytestmark = pytest.mark.usefixtures("double")


def scores(model, batches, attribution, layer="site", baseline="zero", target="logit"):
    results = neuron_importance(model, batches, layers=layer, attribution=attribution, baseline=baseline, target=target)
    return results[results.sites[0]].mean


def leave_one_out(outcome, h, baseline):
    """The slow twin: m(h) - m(h with h_j at its baseline)."""
    h = torch.as_tensor(h, dtype=torch.float64)[None]
    drops = []
    for j in range(h.shape[1]):
        ablated = h.clone()
        ablated[:, j] = baseline
        drops.append(float(outcome(h) - outcome(ablated)))
    return drops


def linear(h):
    return h @ torch.tensor([2.0, -1.0, 0.5, 0.0]) + 0.3


def product(h):
    return h[:, 0] * h[:, 1]


def quadratic(h):
    return h @ torch.tensor([1.0, 2.0, 3.0]) + h[:, 0] * h[:, 1] - 2 * h[:, 0] * h[:, 2]


@pytest.mark.parametrize(
    ("outcome", "point", "gradient", "product_score"),
    [
        (linear, [1.0, 3.0, 4.0, 5.0], [2.0, -1.0, 0.5, 0.0], [2.0, -3.0, 2.0, 0.0]),  # T1
        (product, [2.0, 3.0], [3.0, 2.0], [6.0, 6.0]),  # T2
        (quadratic, [1.0, 2.0, 0.5], [1.0 + 2 - 1, 3.0, 1.0], [2.0, 6.0, 0.5]),  # T7
    ],
)
def test_first_order_scores_of_polynomials(outcome, point, gradient, product_score):
    model, batches = Function(outcome), class_zero([point])
    np.testing.assert_allclose(scores(model, batches, "gradient")[0], gradient, atol=1e-12)
    np.testing.assert_allclose(scores(model, batches, "gradient_x_activation")[0], product_score, atol=1e-12)
    np.testing.assert_allclose(scores(model, batches, "activation")[0], point, atol=1e-12)
    np.testing.assert_allclose(product_score, leave_one_out(outcome, point, 0.0), atol=1e-12)


def xor(h):
    return h[:, 0] + h[:, 1] - 2 * h[:, 0] * h[:, 1]


def redundant(h):
    return (h[:, 0] + h[:, 1]).clamp(max=1)


def saturated(h):
    return 1 - torch.relu(1 - h[:, 0])


GXA, IG, LOO = "gradient_x_activation", "integrated_gradients", "leave_one_out"


@pytest.mark.parametrize(
    ("outcome", "point", "expected"),
    [
        (linear, [1, 3, 4, 5], {name: [2, -3, 2, 0] for name in (GXA, IG, LOO, "shapley", "masked_gradient")}),  # T1
        (product, [2, 3], {"gradient": [3, 2], GXA: [6, 6], LOO: [6, 6], IG: [3, 3], "shapley": [3, 3]}),  # T2
        (xor, [1, 1], {"gradient": [-1, -1], GXA: [-1, -1], LOO: [-1, -1], IG: [0, 0], "shapley": [0, 0]}),  # T3
        (xor, [1, 0], {name: [1, 0] for name in (GXA, LOO, IG, "shapley")}),
        (redundant, [1, 1], {GXA: [0, 0], LOO: [0, 0], IG: [0.5, 0.5], "shapley": [0.5, 0.5]}),  # T4
        (saturated, [2], {"gradient": [0], IG: [1], LOO: [1], "shapley": [1]}),  # T5
        (quadratic, [1, 2, 0.5], {GXA: [2, 6, 0.5], LOO: [2, 6, 0.5], IG: [1.5, 5, 1], "shapley": [1.5, 5, 1]}),  # T7
    ],
)
def test_scores_of_functions_in_closed_form(outcome, point, expected):
    results = neuron_importance(
        Function(outcome), class_zero([point]), layers="site", attribution=list(expected), target="logit"
    )
    for name, values in expected.items():
        np.testing.assert_allclose(results["site", name].mean[0], values, atol=1e-12, err_msg=name)


def test_what_no_single_removal_shows():  # T4
    model, (batch,) = Function(redundant), class_zero([[1.0, 1.0]])
    fallen = []
    for neurons in ([0], [1], [0, 1]):
        with ablate(model, "site", neurons):
            fallen.append(float(1 - model(batch[0])[0, 0]))
    assert fallen == [0, 0, 1]
    # two removals of ten masks tell, and what is left over is shared
    found = scores(model, [batch], Regression(masks=400, share=0.5, ridge=1e-6))[0]
    assert found.sum() == pytest.approx(2 / 3, abs=0.1)  # least squares on {0, 0, 1} for {a}, {b} and {a, b}


def test_a_sigmoid_of_a_sum():  # T5b
    model, data = Function(lambda h: torch.sigmoid(h.sum(1)) + 1), class_zero([[6.0, 4.0]])
    expected = {
        GXA: [0.0003, 0.0002],
        IntegratedGradients(steps=64).name: [0.3, 0.2],
        LOO: [0.0179, 0.0024],
        "shapley": [0.2577, 0.2422],
    }
    results = neuron_importance(model, data, layers="site", attribution=list(expected), target="logit")
    for name, values in expected.items():
        np.testing.assert_allclose(results["site", name].mean[0], values, atol=5e-4 if "steps" in name else 5e-5)


def test_integrated_gradients_are_complete():  # T13
    model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 6), nn.Softplus(), nn.Linear(6, 4))
    x, y = torch.randn(5, 7), torch.tensor([0, 1, 2, 3, 0])
    names = ["integrated_gradients(steps=64)", "shapley", "captum.attr.DeepLift"]
    for baseline in ("zero", 0.5):
        results = neuron_importance(model, [(x, y)], layers="1", attribution=names, target="logit", baseline=baseline)
        with torch.no_grad():
            whole = model(x) - model[2:](torch.full((5, 9), 0.0 if baseline == "zero" else baseline))
        whole = whole.gather(1, y[:, None])[:, 0]
        expected = [float(whole[y == label].mean()) for label in range(4)]
        np.testing.assert_allclose(results["1", names[0]].mean.sum(1), expected, rtol=1e-3)
        for name in names[1:]:
            np.testing.assert_allclose(results["1", name].mean.sum(1), expected, rtol=1e-8)


def test_two_class_margin_is_the_logit_difference():
    batches = class_zero([[1.0, 3.0, 4.0, 5.0]])
    np.testing.assert_allclose(
        scores(Function(linear), batches, "gradient_x_activation", target="margin")[0], [2.0, -3.0, 2.0, 0.0]
    )


class Saturating(nn.Module):
    """x * tanh(3 z) with z and x in the columns of the input (T6)."""

    def __init__(self):
        super().__init__()
        self.before = nn.Identity()
        self.after = nn.Tanh()

    def forward(self, inputs):
        x, z = inputs[:, :1], inputs[:, 1:]
        value = (x * self.after(3 * self.before(z)))[:, 0]
        return torch.stack([value, torch.zeros_like(value)], 1)


def test_signs_cancel_before_a_saturating_unit_and_not_behind_it():
    batches = class_zero([[1.0, 1.0], [-1.0, -1.0]] * 4)
    model = Saturating()
    before = neuron_importance(model, batches, layers="before", attribution=["gradient", "activation"], target="logit")
    assert before["before", "gradient"].mean[0, 0] == pytest.approx(0.0, abs=1e-12)
    assert before["before", "activation"].mean[0, 0] == pytest.approx(0.0, abs=1e-12)
    assert before["before", "gradient"].abs_mean[0, 0] == pytest.approx(3 / np.cosh(3) ** 2, rel=1e-12)
    assert round(before["before", "gradient"].abs_mean[0, 0], 4) == 0.0296
    assert scores(model, batches, "gradient_x_activation", "before")[0, 0] == pytest.approx(0.0296, abs=5e-5)
    after = scores(model, batches, "gradient_x_activation", "after")[0, 0]
    assert after == pytest.approx(np.tanh(3.0), rel=1e-12)
    assert round(after, 4) == 0.9951


def leave_one_out_by_ablation(model, results, site, batch):
    """m(h) - m(h_j <- b) of every neuron, through the package's own ablation: (cluster, neuron)."""
    clusters = results.sample_cluster
    orders = [
        np.roll(np.arange(results[site].removal.n_neurons), -j)[None] for j in range(results[site].removal.n_neurons)
    ]
    outcome = ablate_orders(
        SuffixRecorder(model, lambda batch: (model(batch[0]), batch[1]), results[site].removal),
        [(batch, np.arange(len(clusters)), clusters)],
        orders,
        np.array([1]),
    )
    fell = outcome.intact_margin - outcome.margin[:, 0]
    return np.stack([fell[:, clusters == cluster].mean(1) for cluster in np.unique(clusters)])


def test_leave_one_out_agrees_where_the_score_must():  # T6
    data = class_zero([[1.0, 1.0], [-1.0, -1.0]] * 4)
    model = Saturating()
    for layer in ("before", "after"):
        results = neuron_importance(model, data, layers=layer)
        np.testing.assert_allclose(leave_one_out_by_ablation(model, results, layer, data[0]), np.tanh(3.0), rtol=1e-12)


@pytest.mark.parametrize(("activation", "changes"), [(nn.ReLU, "rescale"), (nn.Tanh, "flip")])
def test_only_the_product_survives_a_change_that_leaves_the_function(activation, changes):  # T8
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 12), activation(), nn.Linear(12, 3)).double()
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    batches = [(x, torch.randint(3, (40,), generator=generator))]
    factor = torch.rand(12, generator=generator, dtype=torch.float64) * 4 + 0.25
    if changes == "flip":
        factor = torch.where(torch.rand(12, generator=generator) < 0.5, -1.0, 1.0).double()
    unchanged = ["gradient_x_activation", "integrated_gradients", "leave_one_out", "shapley", "conductance", "taylor"]
    names = [*unchanged, "gradient", "activation"]
    before = neuron_importance(model, batches, layers="1", attribution=names)
    left_out = leave_one_out_by_ablation(model, before, "1", batches[0])
    with torch.no_grad():
        logits = model(x)
        model[0].weight *= factor[:, None]
        model[0].bias *= factor
        model[2].weight /= factor
        torch.testing.assert_close(model(x), logits)
    after = neuron_importance(model, batches, layers="1", attribution=names)
    s = factor.numpy()
    np.testing.assert_allclose(leave_one_out_by_ablation(model, after, "1", batches[0]), left_out, atol=1e-12)
    for name in unchanged:
        np.testing.assert_allclose(after["1", name].mean, before["1", name].mean, atol=1e-12)
    np.testing.assert_allclose(after["1", "gradient"].mean, before["1", "gradient"].mean / s, atol=1e-12)
    np.testing.assert_allclose(after["1", "activation"].mean, before["1", "activation"].mean * s, atol=1e-12)
    assert np.abs(after["1", "gradient"].mean - before["1", "gradient"].mean).max() > 0.01


def test_a_dead_relu_has_a_slope_behind_it_and_none_before_it():  # T9
    before, after = nn.Identity(), nn.ReLU()

    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = before, after

        def forward(self, z):
            value = 3 * self.after(self.before(z))[:, 0]
            return torch.stack([value, torch.zeros_like(value)], 1)

    batches = class_zero([[-1.0]])
    assert scores(Dead(), batches, "gradient", "before")[0, 0] == 0
    assert scores(Dead(), batches, "gradient", "after")[0, 0] == 3
    assert scores(Dead(), batches, "gradient_x_activation", "after")[0, 0] == 0
    # a second sample with z = 2 makes the mean activation behind the ReLU 1, the dead one's distance -1
    both = [(torch.tensor([[-1.0], [2.0]]), torch.tensor([0, 1]))]
    results = neuron_importance(
        Dead(), both, layers="after", attribution="gradient_x_activation", baseline="mean", target="logit"
    )
    assert results["after"].removal.baseline_value == pytest.approx([1.0])
    assert results["after"].mean[0, 0] == pytest.approx((0 - 1.0) * 3)
    assert leave_one_out(lambda h: 3 * h[:, 0], [0.0], 0.5) == [-1.5]
    # a second one with z = 1 makes the mean .5
    both = [(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]))]
    assert scores(Dead(), both, "leave_one_out", "after", "mean")[0, 0] == -1.5
    assert scores(Dead(), both, "leave_one_out", "after", "zero")[0, 0] == 0


def test_convolutions_sum_over_space_like_a_slow_twin():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 3))
    x, y = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    result = neuron_importance(model, [(x, y)], layers=["0", "1"], target="log_probability", baseline="mean")
    for layer, name in ((0, "0"), (1, "1")):
        h = x
        for number in range(layer + 1):
            h = model[number](h).clone()
        mean = h.mean((0, 2, 3))
        expected = torch.zeros(3, 4)
        for sample in range(6):
            leaf = h[sample : sample + 1].detach().requires_grad_()
            rest = leaf.clone()
            for number in range(layer + 1, 4):
                rest = model[number](rest)
            (slope,) = torch.autograd.grad(rest.log_softmax(1)[0, y[sample]], leaf)
            expected[y[sample]] += ((leaf - mean[:, None, None]) * slope)[0].sum((1, 2)) / 2
        np.testing.assert_allclose(result[name].mean, expected.detach().numpy(), atol=1e-12)
        assert result[name].removal.axis == 1


def test_tokens_and_an_axis_of_the_users_own():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Flatten(), nn.Linear(18, 2))
    batches = [(torch.randn(5, 3, 4), torch.tensor([0, 1, 0, 1, 0]))]
    result = neuron_importance(model, batches, layers=["1", Site("0", axis=1)])
    assert result["1"].removal.axis == 2
    assert result["1"].mean.shape == (2, 6)
    assert result["0"].mean.shape == (2, 3)
    # the same sum over everything, split one way or the other, at the same place
    whole = neuron_importance(model, batches, layers=["0"])["0"].mean
    np.testing.assert_allclose(whole.sum(1), result["0"].mean.sum(1), atol=1e-12)


def test_scores_equal_captums():
    captum = pytest.importorskip("captum.attr")
    model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4))
    x, y = torch.randn(11, 7), torch.randint(4, (11,))
    names = ["gradient_x_activation", "activation"]
    result = neuron_importance(model, [(x, y)], layers="1", attribution=names, target="logit")
    theirs = {
        "gradient_x_activation": captum.LayerGradientXActivation(model, model[1]).attribute(x, target=y),
        "activation": captum.LayerActivation(model, model[1]).attribute(x),
    }
    for name in names:
        for row, label in enumerate(sorted(set(y.tolist()))):
            expected = theirs[name][y == label].mean(0).detach().numpy()
            np.testing.assert_allclose(result["1", name].mean[row], expected, atol=1e-12)


LIKE_THEIRS = "captum.testing.helpers.basic_models"
"""The networks of Captum's own unit tests, whose numbers those below are."""

CONDUCTANCE, INFLUENCE = Conductance(steps=200), InternalInfluence(steps=20)
"""Their tests take 500 steps, and allow for .1 and .01."""


@pytest.mark.parametrize(
    ("layer", "x", "attribution", "expected", "within"),
    [
        ("linear0", [0, 100, 0], GXA, [0, 400, 0], 1e-9),
        ("linear1", [0, 100, 0], GXA, [90, 101, 101, 101], 1e-9),  # T10
        ("linear2", [0, 100, 0], GXA, [392, 0], 1e-9),
        ("relu", [3, 4, 0], GXA, [0, 8, 8, 8], 1e-9),
        ("linear0", [0, 100, 0], CONDUCTANCE, [0, 390, 0], 0.51),
        ("linear1", [0, 100, 0], CONDUCTANCE, [90, 100, 100, 100], 0.51),  # T10
        ("relu", [0, 100, 0], CONDUCTANCE, [90, 100, 100, 100], 0.51),
        ("linear2", [0, 100, 0], CONDUCTANCE, [390, 0], 1e-9),
        ("linear1", [0, 100, 0], Conductance(steps=1000), [90, 100, 100, 100], 0.11),
        ("linear0", [0, 100, 0], INFLUENCE, [3.9, 3.9, 3.9], 1e-12),
        ("linear1", [0, 100, 0], INFLUENCE, [0.9, 1, 1, 1], 1e-12),  # T10
        ("relu", [3, 4, 0], INFLUENCE, [1, 1, 1, 1], 1e-9),
        ("linear2", [0, 100, 0], INFLUENCE, [1, 0], 1e-9),
    ],
)
def test_captums_numbers_of_a_multilayer(layer, x, attribution, expected, within):
    theirs = pytest.importorskip(LIKE_THEIRS)
    model = theirs.BasicModel_MultiLayer(inplace=True).double()
    found = scores(model, class_zero([x]), attribution, layer)
    np.testing.assert_allclose(found[0], expected, atol=within)


def test_captums_numbers_of_several_inputs():
    theirs = pytest.importorskip(LIKE_THEIRS)

    class Scaled(nn.Module):
        """Their network, whose last argument is a number."""

        def __init__(self, scale):
            super().__init__()
            self.net, self.scale = theirs.BasicModel_MultiLayer_MultiInput().double(), scale

        def forward(self, x1, x2, x3):
            return self.net(x1, x2, x3, self.scale)

    def data(*inputs):
        return [{**{f"x{n}": torch.tensor([row]) for n, row in enumerate(inputs, 1)}, "label": torch.tensor([0])}]

    tens = data([0.0, 10.0, 0.0], [0.0, 10.0, 0.0], [0.0, 5.0, 0.0])
    others = data([0.0, 10.0, 1.0], [0.0, 4.0, 5.0], [0.0, 0.0, 0.0])
    for scale, batch, layer, attribution, expected, within in (
        (4, tens, "net.model.linear2", CONDUCTANCE, [390, 0], 1e-9),
        (4, tens, "net.model.linear2", INFLUENCE, [1, 0], 1e-9),
        (4, tens, "net.model.linear2", GXA, [392, 0], 1e-9),
        (5, others, "net.model.relu", CONDUCTANCE, [90, 100, 100, 100], 0.51),
        (5, others, "net.model.relu", INFLUENCE, [1, 1, 1, 1], 1e-9),
        (5, others, "net.model.relu", GXA, [90, 101, 101, 101], 1e-9),
    ):
        np.testing.assert_allclose(scores(Scaled(scale), batch, attribution, layer)[0], expected, atol=within)
    # ablations to a baseline of its own for each channel
    for inputs, expected in (
        (([23.0, 100.0, 0.0], [20.0, 50.0, 30.0], [0.0, 100.0, 10.0]), [168, 992, 148]),
        (([20.0, 50.0, 30.0], [0.0, 100.0, 0.0], [2.0, 10.0, 3.0]), [84, 632, 120]),
    ):
        for layer in (Site("net.model.linear1", side="input"), "net.model.linear0"):
            for name in (LOO, "captum.attr.FeatureAblation"):
                found = scores(Scaled(1), data(*inputs), name, layer, baseline=[1.0, 2.0, 3.0])
                np.testing.assert_allclose(found[0], expected, atol=1e-9)


def test_captums_numbers_of_deeplift():
    theirs = pytest.importorskip(LIKE_THEIRS)
    model = theirs.ReLULinearModel(inplace=True).double()
    data = [
        {"x1": torch.tensor([[-10.0, 1.0, -5.0]]), "x2": torch.tensor([[3.0, 3.0, 1.0]]), "label": torch.tensor([1])}
    ]
    for layer, expected in (
        (Site("relu", side="input"), [0, 15]),
        (Site("l3", side="input"), [0, 15]),
        ("l3", [15]),
    ):
        np.testing.assert_allclose(scores(model, data, "captum.attr.DeepLift", layer)[0], expected, atol=1e-9)
    tripled = neuron_importance(
        model,
        data,
        layers=Site("relu", side="input"),
        attribution="captum.attr.DeepLift",
        target="logit",
        forward_fn=lambda model, batch: (model(batch["x1"], batch["x2"], 3.0), batch["label"]),
    )
    np.testing.assert_allclose(tripled[tripled.sites[0]].mean[0], [0, 45], atol=1e-9)
    pool = theirs.LinearMaxPoolLinearModel().double()
    ones = [(torch.ones(1, 4), torch.tensor([1]))]
    for baseline, expected in ((9.0, -8), (8.0, -7)):
        found = scores(pool, ones, "captum.attr.DeepLift", Site("pool1", axis=1), baseline)
        np.testing.assert_allclose(found[0], [expected], atol=1e-9)


def test_captums_numbers_of_lrp():
    theirs = pytest.importorskip(LIKE_THEIRS)
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    model = theirs.BasicModel_ConvNet_One_Conv().double()
    label = model(picture).argmax(1)
    found = scores(model, [(picture, label)], "captum.attr.LRP", "conv1")
    np.testing.assert_allclose(found[0], [0 + 4 + 31 + 40, 0 + 0 - 6 - 15], atol=1e-4)
    tanh = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()
    for layer in (tanh[0], tanh[2]):
        nn.init.constant_(layer.weight, 0.1)
    data = [(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1]))]
    np.testing.assert_allclose(scores(tanh, data, "captum.attr.LRP", "0")[0], [0.0537] * 3, atol=5e-5)
    simple = theirs.SimpleLRPModel(inplace=True).double()
    np.testing.assert_allclose(scores(simple, data, "captum.attr.LRP", "linear")[0], [36] * 3, atol=1e-4)


def test_captums_numbers_of_gradient_shap():
    theirs = pytest.importorskip(LIKE_THEIRS)
    model = theirs.BasicModel_MultiLayer().double()
    # the layer's activations for an input of zeros are its baseline
    found = scores(
        model,
        class_zero([[0.0, 100.0, 0.0]]),
        "captum.attr.GradientShap(n_samples=5, stdevs=0.0009)",
        "relu",
        baseline=[0.0, 1.0, 1.0, 1.0],
    )
    np.testing.assert_allclose(found[0], [90, 100, 100, 100], atol=0.01)


def test_subsets_of_neurons_estimate_the_same_shapley_values():  # T2, T3, T5b, T7
    for outcome, point, expected in (
        (product, [2.0, 3.0], [3, 3]),
        (xor, [1.0, 1.0], [0, 0]),
        (quadratic, [1.0, 2.0, 0.5], [1.5, 5, 1]),
    ):
        data = class_zero([point] * 400)
        found = neuron_importance(
            Function(outcome), data, layers="site", attribution=Shapley(subsets=4), target="logit"
        )["site"]
        np.testing.assert_allclose(found.mean[0], expected, atol=float(4 * found.std.max() / 20) + 1e-12)
