"""Gradients at other activations where a model runs parts of itself again, or overwrites what its backward needs."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lightning_neuroimp import Attribution, neuron_importance
from lightning_neuroimp.capture.targets import MARGIN

pytestmark = pytest.mark.usefixtures("double")
SCORES = [
    "blockwise_gradient",
    "masked_gradient",
    "integrated_gradients",
    "progressive_gradient",
    "gradient_x_activation",
]


class Plain(nn.Module):
    """A site, a part after it, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 6), nn.Sigmoid())
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


class SiteInside(Plain):
    def forward(self, x):
        return self.head(checkpoint(lambda x: self.second(self.first(x)), x, use_reentrant=False))


class SiteBefore(Plain):
    def forward(self, x):
        return self.head(checkpoint(self.second, self.first(x), use_reentrant=False))


class Nested(Plain):
    def forward(self, x):
        def outer(x):
            return checkpoint(self.second, self.first(x), use_reentrant=False)

        return self.head(checkpoint(outer, x, use_reentrant=False))


class Sequential(Plain):
    def forward(self, x):
        return self.head(checkpoint_sequential(nn.Sequential(self.first, *self.second), 3, x, use_reentrant=False))


class Reentrant(Plain):
    def forward(self, x):
        return self.head(checkpoint(lambda x: self.second(self.first(x)), x, use_reentrant=True))


def as_plain(kind):
    torch.manual_seed(0)
    model = kind().eval()
    return model


@pytest.mark.parametrize("kind", [SiteInside, SiteBefore, Nested, Sequential, Reentrant])
def test_checkpoints_make_no_difference(kind):
    """Their parts run again in the backward pass, when the site has its own activations again."""
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    expected = neuron_importance(as_plain(Plain), [(x, y)], layers="first.1", attribution=SCORES)
    found = neuron_importance(as_plain(kind), [(x, y)], layers="first.1", attribution=SCORES)
    for name in SCORES:
        np.testing.assert_allclose(found["first.1", name].mean, expected["first.1", name].mean, atol=1e-12)


def test_checkpoints_work_as_before_afterwards():
    model, calls = as_plain(SiteInside), []
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    neuron_importance(model, [(x, y)], layers="first.1")
    model.first.register_forward_hook(lambda *_: calls.append(None))
    MARGIN.values(model(x), y).sum().backward()
    assert len(calls) == 2  # once forward, once again


class InPlaceAfterDropout(nn.Module):
    """In training dropout makes a copy; in evaluation the addition overwrites what the ReLU keeps."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.drop = nn.Linear(5, 8), nn.ReLU(), nn.Dropout()
        self.middle, self.act, self.head = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x):
        h = self.middle(torch.tanh(self.relu(self.first(x))))
        h = self.drop(self.act(h))
        h += 1
        return self.head(h.mul_(0.5))


class InPlaceSigmoid(InPlaceAfterDropout):
    def forward(self, x):
        h = self.drop(torch.sigmoid(self.middle(self.relu(self.first(x)))))
        h.add_(1).clamp_(max=1.7)
        return self.head(h)


class OutOfPlace(InPlaceAfterDropout):
    def forward(self, x):
        h = self.drop(self.act(self.middle(torch.tanh(self.relu(self.first(x))))))
        return self.head((h + 1) * 0.5)


class OutOfPlaceSigmoid(InPlaceAfterDropout):
    def forward(self, x):
        h = self.drop(torch.sigmoid(self.middle(self.relu(self.first(x)))))
        return self.head((h + 1).clamp(max=1.7))


@pytest.mark.parametrize(("kind", "plain"), [(InPlaceAfterDropout, OutOfPlace), (InPlaceSigmoid, OutOfPlaceSigmoid)])
def test_what_a_backward_pass_needs_may_be_overwritten(kind, plain):
    """The shared pass copies what is at the sites, all others copy what is overwritten."""
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    own = Attribution("own", lambda batch: batch.sum_positions(batch.suffix.gradient(batch.activation * 0.7)), False)
    scores = ["leave_one_out", own]
    found = neuron_importance(as_plain(kind), [(x, y)] * 2, layers="relu", attribution=scores)
    expected = neuron_importance(as_plain(plain), [(x, y)] * 2, layers="relu", attribution=scores)
    for name in ("leave_one_out", "own"):
        np.testing.assert_allclose(found["relu", name].mean, expected["relu", name].mean, atol=1e-12)
    both = [
        neuron_importance(
            as_plain(one),
            [(x, y)] * 2,
            layers=["relu", "act" if kind is InPlaceAfterDropout else "drop"],
            attribution=SCORES,
        )
        for one in (kind, plain)
    ]
    for name in SCORES:
        np.testing.assert_allclose(both[0]["relu", name].mean, both[1]["relu", name].mean, atol=1e-12)


def log_of_the_first(logits, classes):
    """Not defined for negative logits, though its derivative has values there."""
    return torch.log(logits[:, 0])


@pytest.mark.parametrize(
    "name", [*SCORES, "gradient", "conductance", "layer_norm_rule", "masked_gradient(jointly=True)"]
)
def test_samples_whose_target_is_not_finite_are_left_out(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    x, y = torch.randn(80, 5), torch.arange(80) % 2
    known = model(x)[:, 0] > 0
    assert 10 < int(known.sum()) < 70
    found = neuron_importance(model, [(x, y)], layers="1", attribution=name, target=log_of_the_first)["1"]
    # another point may have no target either; conductance reads no gradient at the end of the path
    assert found.non_finite >= (1 if name == "conductance" else int((~known).sum()))
    assert found.count.sum() + found.non_finite == 80
    if name == "gradient_x_activation":
        h = model[:2](x).detach().requires_grad_()
        (slope,) = torch.autograd.grad(torch.log(model[2:](h)[known][:, 0]).sum(), h)
        for row in range(2):
            expected = (h * slope)[known & (y == row)].mean(0).detach()
            np.testing.assert_allclose(found.mean[row], expected, atol=1e-12)
