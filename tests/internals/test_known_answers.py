"""Networks whose scores are known in closed form (float64), through the public functions."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import Site, neuron_importance
from lightning_neuroimp.ablation.outcomes import ablate_orders
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from tests.support.toys import Function, class_zero

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
    names = ["gradient_x_activation", "gradient", "activation"]
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
    np.testing.assert_allclose(after["1", names[0]].mean, before["1", names[0]].mean, atol=1e-12)
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


def test_captums_example_network():  # T10, the part that a first-order score answers
    pytest.importorskip("captum.attr")

    class MultiLayer(nn.Module):
        """The weights of Captum's BasicModel_MultiLayer."""

        def __init__(self):
            super().__init__()
            self.linear0 = nn.Linear(3, 3, bias=False)
            self.linear1 = nn.Linear(3, 4)
            self.linear2 = nn.Linear(4, 2)
            with torch.no_grad():
                self.linear0.weight.copy_(torch.eye(3))
                self.linear1.weight.fill_(1.0)
                self.linear1.bias.copy_(torch.tensor([-10.0, 1.0, 1.0, 1.0]))
                self.linear2.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1.0, 1, 1, 1]]))
                self.linear2.bias.copy_(torch.tensor([0.0, 1.0]))

        def forward(self, x):
            return self.linear2(torch.relu(self.linear1(self.linear0(x))))

    result = scores(MultiLayer(), class_zero([[0.0, 100.0, 0.0]]), "gradient_x_activation", "linear1")
    np.testing.assert_allclose(result[0], [90.0, 101.0, 101.0, 101.0])
