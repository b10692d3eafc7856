"""Scores with randomised weights."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import (
    AblationFaithfulness,
    Attribution,
    NeuronImportance,
    neuron_importance,
    weight_randomisation,
)
from lightning_neuroimp.display.summary import summary
from tests.support.digits import train, validation_batches
from tests.support.lightning_modules import Classifier, loaders, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


@pytest.fixture(scope="module")
def randomised():
    model, data = train(nn.Tanh, width=48, depth=3, epochs=4), validation_batches()
    names = ["gradient_x_activation", "activation", "random"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = neuron_importance(model, data, layers=["1", "5"], attribution=names)
    found = weight_randomisation(model, data, results)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    return results, found


def correlations(found, site, name):
    (one,) = [one for one in found.randomisations if (one.site, one.attribution) == (site, name)]
    return one


def test_scores_that_follow_the_model_lose_their_ranking(randomised):
    _, found = randomised
    one = correlations(found, "1", "gradient_x_activation")
    assert one.stages == ("6", "4", "2", "0")
    assert one.rank_correlation.shape == (4, 10)
    assert np.abs(one.rank_correlation[-1]).mean() < 0.35
    assert np.abs(one.rank_correlation.mean(1)[-1]) < 0.2


def test_scores_that_do_not_are_found_out(randomised):
    _, found = randomised
    np.testing.assert_allclose(correlations(found, "5", "random").rank_correlation, 1.0)
    # activations do not know what comes behind them
    np.testing.assert_allclose(correlations(found, "1", "activation").rank_correlation[:3], 1.0)
    assert np.abs(correlations(found, "1", "activation").rank_correlation[3]).mean() < 0.5


def test_it_is_told(randomised):
    results, found = randomised
    text = summary(found)
    assert (
        "Rank correlation with randomised weights, from the output to all modules (near 0 is sane): 1.00, 1.00" in text
    )
    assert "randomised" not in summary(results)


def test_clusters_stay_the_same():
    """Groups that only the results know: the copy's own would be others."""
    model, data = train(nn.ReLU, width=16, depth=1, epochs=2), validation_batches(200)
    results = neuron_importance(model, data, layers="1", clusters=lambda batch: batch[1] % 3)
    found = weight_randomisation(model, data, results)
    assert found.randomisations[0].rank_correlation.shape == (2, 3)
    again = weight_randomisation(model, data, results)
    np.testing.assert_array_equal(found.randomisations[0].rank_correlation, again.randomisations[0].rank_correlation)


def test_other_batches_are_refused():
    model, data = train(nn.ReLU, width=16, depth=1, epochs=1), validation_batches(64)
    results = neuron_importance(model, data, layers="1")
    with pytest.raises(ValueError, match="the batches do not give the 597 probe samples that the results are of"):
        weight_randomisation(model, [(x + 1, y) for x, y in data], results)


def test_what_cannot_be_copied_says_so():
    model, data = train(nn.ReLU, width=16, depth=1, epochs=1), validation_batches(64)
    results = neuron_importance(model, data, layers="1")
    model.stashed = model[0](data[0][0])  # part of a graph
    with pytest.raises(ValueError, match="the model cannot be copied, which randomised weights need: RuntimeError"):
        weight_randomisation(model, data, results)
    mine = Attribution("mine", lambda batch: batch.activation)
    results = neuron_importance(nn.Sequential(*list(model)), data, layers="1", attribution=mine)
    with pytest.raises(ValueError, match=r"attributions of your own, \['mine'\]"):
        weight_randomisation(nn.Sequential(*list(model)), data, results)
    found = weight_randomisation(nn.Sequential(*list(model)), data, results, attribution=[mine])
    assert len(found.randomisations) == 1


def test_through_the_callback(tmp_path):
    ours = NeuronImportance("encoder.2", faithfulness=AblationFaithfulness(randomise=True))
    trainer(tmp_path, [ours], max_epochs=1).fit(Classifier(), *loaders())
    assert len(ours.results.randomisations) == 1
    assert "Rank correlation with randomised weights" in ours.summary()
