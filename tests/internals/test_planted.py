"""T11: planted neurons, known scores, known removal, an exhaustive null."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import AblationFaithfulness, ablation_faithfulness, neuron_importance
from lightning_neuroimp.ablation.outcomes import ablate_orders
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.statistics import randomisation_p_value

pytestmark = pytest.mark.usefixtures("double")


class Planted(nn.Module):
    """16 neurons: 0-1 copy class 0, 2-3 class 1, 4-7 constant without effect, 8-11 dead with weight, 12-15 nothing."""

    def __init__(self):
        super().__init__()
        self.site = nn.Identity()
        weight = torch.zeros(2, 16)
        weight[0, 0:2] = weight[1, 2:4] = 2.0
        weight[:, 8:12] = 30.0
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.tensor([0.0, 1.0]))

    def forward(self, one_hot):
        n = len(one_hot)
        h = torch.cat(
            [
                one_hot[:, :1].expand(n, 2),
                one_hot[:, 1:2].expand(n, 2),
                torch.full((n, 4), 50.0),
                torch.zeros(n, 8),
            ],
            1,
        )
        return nn.functional.linear(self.site(h), self.weight, self.bias)


def data(n=100):
    labels = torch.arange(n) % 2
    # the last column has no effect, but makes samples differ: copies would all be in one half
    columns = torch.stack([labels == 0, labels == 1, torch.arange(n)], 1)
    return [(columns.to(torch.get_default_dtype()), labels)]


def forward(model):
    return lambda batch: (model(batch[0]), batch[1])


def test_scores_find_what_each_of_them_measures():
    names = ["gradient_x_activation", "activation", "gradient"]
    result = neuron_importance(Planted(), data(), layers="site", attribution=names, target="logit")
    expected = np.zeros((2, 16))
    expected[0, 0:2] = expected[1, 2:4] = 2.0
    np.testing.assert_allclose(result["site"].mean, expected)
    assert set(result["site", "activation"].top(0, 4)) == {4, 5, 6, 7}
    assert set(result["site", "gradient"].top(0, 4)) == {8, 9, 10, 11}


def test_removing_the_planted_neurons_takes_the_class_and_only_the_class():
    model, batches = Planted(), data()
    result = neuron_importance(model, batches, layers="site", target="logit")
    order = result["site"].top(0, 16)
    groups = batches[0][1].numpy()
    outcome = ablate_orders(
        SuffixRecorder(model, forward(model), result["site"].removal),
        [(batches[0], np.arange(100), groups)],
        [order[None]],
        np.array([2]),
    )
    assert outcome.intact_correct.all()
    np.testing.assert_array_equal(outcome.correct[0, 0], groups == 1)
    np.testing.assert_array_equal(outcome.cell, groups)


def test_the_exhaustive_null_gives_the_exact_p_value():
    model, batches = Planted(), data()
    result = neuron_importance(model, batches, layers="site", target="logit")
    subsets = [[*pair, *(set(range(16)) - set(pair))] for pair in combinations(range(16), 2)]
    assert len(subsets) == 120
    outcome = ablate_orders(
        SuffixRecorder(model, forward(model), result["site"].removal),
        [(batches[0], np.arange(100), batches[0][1].numpy())],
        [np.array(subset)[None] for subset in subsets],
        np.array([2]),
    )
    accuracy = outcome.correct[:, 0, outcome.cell == 0].mean(1)
    assert accuracy.mean() == pytest.approx(119 / 120)
    own = subsets.index([0, 1, *range(2, 16)])
    others = np.delete(accuracy, own)
    assert float(randomisation_p_value(np.array(-accuracy[own]), -others)) == pytest.approx(1 / 120)


def test_faithfulness_of_each_score():
    settings = AblationFaithfulness(n_random=99)
    model, batches = Planted(), data()
    names = ["gradient_x_activation", "activation", "gradient"]
    result = neuron_importance(model, batches, layers="site", attribution=names, target="logit")
    result = ablation_faithfulness(model, batches, result, settings)
    found = {name: result["site", name].faithfulness for name in names}
    assert found["gradient_x_activation"].verdict[0] == "faithful"
    # class 1 wins ties through its bias: removal takes margin away, and no decision
    assert found["gradient_x_activation"].verdict[1] == "better in margin only"
    assert found["gradient_x_activation"].verdict[-1] == "faithful"
    np.testing.assert_allclose(found["gradient_x_activation"].lds, 1.0)
    # removing 1, 2, 4, 8 neurons: both planted ones fall from the second point on, or behind four that do nothing
    np.testing.assert_allclose(found["gradient_x_activation"].accuracy[0], [1, 0, 0, 0])
    np.testing.assert_allclose(found["activation"].accuracy[0], [1, 1, 1, 0])
    np.testing.assert_allclose(found["gradient"].accuracy[0], [1, 1, 1, 0])
    for name in ("activation", "gradient"):
        assert found[name].gap[-1] < found["gradient_x_activation"].gap[-1] / 2
        assert abs(found[name].lds[-1]) < 0.5


def test_reversing_the_order_flips_the_sign_of_the_gap():
    def reversed_score(batch):
        return -batch.sum_positions(batch.deviation * batch.gradient)

    names = ["gradient_x_activation", reversed_score]
    model, batches = Planted(), data()
    result = neuron_importance(model, batches, layers="site", attribution=names, target="logit")
    settings = AblationFaithfulness(n_random=99)
    result = ablation_faithfulness(model, batches, result, settings)
    right, wrong = (result["site", name].faithfulness for name in ("gradient_x_activation", "reversed_score"))
    assert right.gap[0] > 0.2
    assert wrong.gap[0] < -0.02  # -.073 with all orders
    assert right.gap[-1] > 0 > wrong.gap[-1]
    np.testing.assert_allclose(right.lds, -wrong.lds)
