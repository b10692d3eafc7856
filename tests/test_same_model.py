"""A check by ablation is made with the model that the results are of, or refused in words."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import ablation_faithfulness, neuron_importance
from tests.support.digits import train, validation_batches


@pytest.fixture(scope="module")
def model():
    return train(nn.ReLU, width=32, depth=1, epochs=3)


def negated(model, batch):
    return -model(batch[0]), batch[1]


def test_a_forgotten_forward_fn_is_refused(model):
    data = validation_batches()
    results = neuron_importance(model, data, layers="1", forward_fn=negated)
    with pytest.raises(ValueError, match="does not give the predictions that the results are of") as error:
        ablation_faithfulness(model, data, results)
    message = str(error.value)
    assert "of 512 margins differ, by up to" in message
    assert "predicted classes; pass the same model, forward_fn and precision as to neuron_importance" in message
    assert len(message) < 300
    checked = ablation_faithfulness(model, data, results, forward_fn=negated)
    assert checked["1"].faithfulness.intact_accuracy[-1] == pytest.approx(results.sample_correct.mean(), abs=0.05)


def test_another_model_and_later_weights_are_refused(model):
    data = validation_batches()
    results = neuron_importance(model, data, layers="1")
    with pytest.raises(ValueError, match="pass the same model"):
        ablation_faithfulness(train(nn.ReLU, width=32, depth=1, seed=1, epochs=3), data, results)
    later = copy.deepcopy(model)
    with torch.no_grad():
        later[2].weight.mul_(1.01)  # hardly any prediction changes
    with pytest.raises(ValueError, match="margins differ"):
        ablation_faithfulness(later, data, results)


def test_the_same_model_in_other_batches_passes(model):
    data = validation_batches()
    results = neuron_importance(model, data, layers="1", batch_size=50)
    for options in ({"batch_size": 7}, {"batch_size": 512}):
        checked = ablation_faithfulness(model, data, results, **options)
        assert checked["1"].faithfulness.verdict[-1] == "faithful"


@pytest.mark.filterwarnings("ignore:.*each ablation runs the whole network")
def test_a_model_that_draws_random_numbers_passes(model):
    """It says something else each time: there is nothing to compare."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x) + torch.randn(len(x), 10)

    noisy = Noisy()
    results = neuron_importance(noisy, validation_batches(), layers="inner.1")
    assert ablation_faithfulness(noisy, validation_batches(), results).has_faithfulness


def test_predictions_and_margins_are_kept(model):
    results = neuron_importance(model, validation_batches(), layers="1")
    np.testing.assert_array_equal(results.sample_correct, results.sample_predicted == results.sample_label)
    assert ((results.sample_margin > 0) <= results.sample_correct).all()
