"""Leave-one-out and path scores: closed forms, Captum, slow twins, how they are batched, what they cost."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import Attribution, IntegratedGradients, MaskedGradient, SiteBatch, neuron_importance
from tests.support.digits import batches, digits
from tests.support.toys import Function, class_zero

pytestmark = pytest.mark.usefixtures("double")
PATHS = ["integrated_gradients", "masked_gradient", "blockwise_gradient", "leave_one_out"]


def scores(model, data, attribution, layer="site", baseline="zero", target="logit"):
    results = neuron_importance(model, data, layers=layer, attribution=attribution, baseline=baseline, target=target)
    return results[results.sites[0]].mean


LINEAR = torch.tensor([2.0, -1.0, 0.5, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("outcome", "point", "left_out", "integrated"),
    [
        (lambda h: h @ LINEAR + 0.3, [1, 3, 4, 5], [2, -3, 2, 0], [2, -3, 2, 0]),  # T1
        (lambda h: h[:, 0] * h[:, 1], [2, 3], [6, 6], [3, 3]),  # T2
        (lambda h: h[:, 0] + h[:, 1] - 2 * h[:, 0] * h[:, 1], [1, 1], [-1, -1], [0, 0]),  # T3
        (lambda h: h[:, 0] + h[:, 1] - 2 * h[:, 0] * h[:, 1], [1, 0], [1, 0], [1, 0]),
        (lambda h: (h[:, 0] + h[:, 1]).clamp(max=1), [1, 1], [0, 0], [0.5, 0.5]),  # T4
        (lambda h: 1 - torch.relu(1 - h[:, 0]), [2], [1], [1]),  # T5
        (  # T7
            lambda h: h[:, 0] + 2 * h[:, 1] + 3 * h[:, 2] + h[:, 0] * h[:, 1] - 2 * h[:, 0] * h[:, 2],
            [1, 2, 0.5],
            [2, 6, 0.5],
            [1.5, 5, 1],
        ),
    ],
)
def test_scores_of_functions_in_closed_form(outcome, point, left_out, integrated):
    model, data = Function(outcome), class_zero([point])
    np.testing.assert_allclose(scores(model, data, "leave_one_out")[0], left_out, atol=1e-12)
    np.testing.assert_allclose(scores(model, data, "integrated_gradients")[0], integrated, atol=1e-12)


def test_a_sigmoid_that_first_order_scores_do_not_see():  # T5b
    model, data = Function(lambda h: torch.sigmoid(h.sum(1)) + 1), class_zero([[6, 4]])
    np.testing.assert_allclose(scores(model, data, "leave_one_out")[0], [0.0179, 0.0024], atol=5e-5)
    np.testing.assert_allclose(scores(model, data, "gradient_x_activation")[0], [0.0003, 0.0002], atol=5e-5)
    np.testing.assert_allclose(
        scores(model, data, Attribution("ig", IntegratedGradients(steps=64)))[0], [0.3, 0.2], atol=5e-4
    )


def test_one_removal_at_a_time_sees_past_a_saturating_unit():  # T6
    class Saturating(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.Identity(), nn.Tanh()

        def forward(self, inputs):
            value = (inputs[:, :1] * self.after(3 * self.before(inputs[:, 1:])))[:, 0]
            return torch.stack([value, torch.zeros_like(value)], 1)

    data = class_zero([[1.0, 1.0], [-1.0, -1.0]] * 4)
    for layer in ("before", "after"):
        assert scores(Saturating(), data, "leave_one_out", layer)[0, 0] == pytest.approx(np.tanh(3), rel=1e-12)


def test_integrated_gradients_are_complete():  # T13
    model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 6), nn.Softplus(), nn.Linear(6, 4))
    x, y = torch.randn(5, 7), torch.tensor([0, 1, 2, 3, 0])
    attribution = Attribution("ig", IntegratedGradients(steps=64))
    found = neuron_importance(model, [(x, y)], layers="1", attribution=attribution)["1"].mean.sum(1)

    def margin(h):
        logits = model[2:](h)
        rest = logits.clone()
        rest[torch.arange(5), y] = -torch.inf
        return (logits[torch.arange(5), y] - rest.logsumexp(1)).detach()

    whole = margin(model[:2](x)) - margin(torch.zeros(5, 9))
    for label in range(4):
        assert found[label] == pytest.approx(float(whole[y == label].mean()), rel=1e-3)


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(48, 3),
    )


def test_scores_equal_captums():
    captum = pytest.importorskip("captum.attr")
    model = conv()
    x, y = torch.randn(7, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    names = ["integrated_gradients", "leave_one_out"]
    found = neuron_importance(model, [(x, y)], layers="0", attribution=names, target="logit")
    model[1].inplace = False  # Captum's hooks hand out the layer's own memory
    # Captum's path begins at the layer's output for a baseline input: zero, as the layer has no bias
    path = captum.LayerIntegratedGradients(model, model[0]).attribute(
        x, torch.zeros_like(x), target=y, n_steps=8, method="riemann_middle"
    )
    channels = torch.arange(4)[None, :, None, None].expand(1, 4, 6, 6)
    ablated = captum.LayerFeatureAblation(model, model[0]).attribute(x, target=y, layer_mask=channels)
    theirs = {"integrated_gradients": path.sum((2, 3)), "leave_one_out": ablated[:, :, 0, 0]}
    for name in names:
        for label in range(3):
            expected = theirs[name][y == label].mean(0).detach().numpy()
            np.testing.assert_allclose(found["0", name].mean[label], expected, atol=1e-12)


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_leave_one_out_equals_editing_the_weights(baseline):
    x, y = (part[:40] for part in digits(torch.float64))
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    found = neuron_importance(model, [(x, y)], layers="1", attribution="leave_one_out", baseline=baseline)["1"]
    h = model[:2](x).detach()
    value = h.mean(0) if baseline == "mean" else torch.zeros(6)

    def margin(logits):
        rest = logits.scatter(1, y[:, None], -torch.inf)
        return (logits.gather(1, y[:, None])[:, 0] - rest.logsumexp(1)).detach()

    for neuron in range(6):
        weight, bias = model[2].weight.clone(), model[2].bias + model[2].weight[:, neuron] * value[neuron]
        weight[:, neuron] = 0
        effect = margin(model(x)) - margin(h @ weight.T + bias)
        for row, label in enumerate(found.cluster_ids):
            assert found.mean[row, neuron] == pytest.approx(float(effect[y == label].mean()), abs=1e-12)


def test_masked_gradients_average_over_removals():
    linear = Function(lambda h: h @ LINEAR)
    np.testing.assert_allclose(
        scores(linear, class_zero([[1, 3, 4, 5]]), "masked_gradient")[0], [2, -3, 2, 0], atol=1e-12
    )
    # of a product each score is 6 where the other neuron is left: in 1 - q of the points, q up to 1/2 or 1
    both = Function(lambda h: h[:, 0] * h[:, 1])
    many = class_zero([[2, 3]] * 20000)
    whole = Attribution("shapley", MaskedGradient(points=64, q_max=1.0, intact=False))
    results = neuron_importance(
        both, many, layers="site", attribution=["masked_gradient", whole], target="logit", max_samples=20000
    )
    np.testing.assert_allclose(results["site", "masked_gradient"].mean[0], 6 * 0.75, atol=0.3)
    np.testing.assert_allclose(results["site", "shapley"].mean[0], 3.0, atol=0.1)
    assert abs(results["site", "masked_gradient"].mean[0, 0] - results["site", "masked_gradient"].mean[0, 1]) > 1e-6


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_batch_size_and_order_do_not_change_scores(baseline):  # T14
    x, y = (part[:90] for part in digits(torch.float64))
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    found = [
        neuron_importance(model, batches(x, y, size), layers=["0", "1"], attribution=PATHS, baseline=baseline)
        for size in (90, 7)
    ]
    for site in ("0", "1"):
        for name in PATHS:
            np.testing.assert_allclose(found[1][site, name].mean, found[0][site, name].mean, atol=1e-12)
            np.testing.assert_allclose(found[1][site, name].std, found[0][site, name].std, atol=1e-9)


def test_tokens_and_channels_are_summed_over_positions():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Flatten(), nn.Linear(18, 2))
    x, y = torch.randn(5, 3, 4), torch.tensor([0, 1, 0, 1, 0])
    found = neuron_importance(model, [(x, y)], layers="1", attribution="leave_one_out", target="logit")["1"].mean
    h = model[:2](x)
    for neuron in range(6):
        without = h.clone()
        without[:, :, neuron] = 0
        effect = (model[2:](h) - model[2:](without)).gather(1, y[:, None])[:, 0].detach()
        assert found[0, neuron] == pytest.approx(float(effect[y == 0].mean()), abs=1e-12)


def test_what_they_cost():
    class Counting(nn.Sequential):
        passes = 0

        def forward(self, x):
            Counting.passes += 1
            return super().forward(x)

    x, y = (part[:60] for part in digits(torch.float64))
    model = Counting(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    for names, expected in (("leave_one_out", 2), (["leave_one_out", "activation"], 2), (PATHS, 2)):
        Counting.passes = 0
        neuron_importance(model, batches(x, y, 20), layers="1", attribution=names)
        # the pass that all scores share, the one that is recorded; on the first batch, trials of what was recorded, and
        # before it five passes over a few samples, which settle the axes
        trials = 7 if names is PATHS else 6
        assert Counting.passes == expected * 3 + trials


def test_a_score_of_the_users_own_may_ask_for_removals():
    def pairs(batch: SiteBatch):
        """Each neuron together with the first one."""
        masks = torch.eye(batch.n_neurons, dtype=torch.bool)
        masks[:, 0] = True
        return batch.suffix.effects(masks).T

    model = Function(lambda h: h[:, 0] * h[:, 1] + h[:, 2])
    np.testing.assert_allclose(scores(model, class_zero([[2, 3, 1]]), pairs)[0], [6, 6, 7], atol=1e-12)
    slope = Function(lambda h: h[:, 0] ** 2)

    def end(batch: SiteBatch):
        return batch.suffix.target(batch.activation * 2)[:, None].expand(-1, len(batch.baseline))

    assert scores(slope, class_zero([[3.0]]), end)[0, 0] == 36
