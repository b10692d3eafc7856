"""Scores with randomised weights."""

from types import SimpleNamespace

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
from lightning_neuroimp.errors import InvalidArgument
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
    model.stashed = SimpleNamespace(found=model[0](data[0][0]))  # part of a graph, in an object
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


def own_symmetric(module):
    symmetric = type("Symmetric", (nn.Module,), {"forward": lambda self, weight: weight.triu() + weight.triu(1).T})
    nn.utils.parametrize.register_parametrization(module, "weight", symmetric())


def pruned_twice(module):
    nn.utils.prune.l1_unstructured(module, "weight", 0.4)
    nn.utils.prune.ln_structured(module, "weight", 0.3, 2, 0)


FORMS = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "weight norm by hooks": nn.utils.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "spectral norm by hooks": nn.utils.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "own": own_symmetric,
    "pruned": lambda module: nn.utils.prune.random_unstructured(module, "weight", 0.5),
    "pruned twice": pruned_twice,
}


def three_layers():
    torch.manual_seed(0)
    layers = nn.Linear(5, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(*layers)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_weights_that_are_computed_from_others_are_shuffled_as_plain_ones(form, frozen):
    """After a backward pass, which leaves a weight with a graph in some of them."""
    model, plain = three_layers(), three_layers()
    x, y = torch.randn(60, 5), torch.arange(60) % 3
    FORMS[form](model[2])
    model(x).sum().backward()
    model.eval()(x)
    plain.eval()
    with torch.no_grad():
        plain[2].weight.copy_(model[2].weight)
    if frozen:
        model.requires_grad_(False)
        plain.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for each in (model, plain):
        options = {"layers": "1"}
        found.append(weight_randomisation(each, [(x, y)], neuron_importance(each, [(x, y)], **options)))
    one, other = (results.randomisations[0] for results in found)
    assert one.stages == other.stages == ("4", "2", "0")
    np.testing.assert_allclose(one.rank_correlation, other.rank_correlation)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_hidden_states_with_a_graph_are_copied():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
            self.last, self.all, self.named = None, [], {}

        def forward(self, x):
            self.last = torch.tanh(self.act(x))
            self.all, self.named = [self.last], {"h": self.last * 2}
            return self.head(self.last)

    model, x, y = Stateful().eval(), torch.randn(60, 5), torch.arange(60) % 3
    model(x)
    results = neuron_importance(model, [(x, y)], layers="act")
    assert weight_randomisation(model, [(x, y)], results).randomisations


def test_weights_that_cannot_be_made_plain_are_refused_in_words():
    class Refusing(nn.Linear):
        def __delattr__(self, name):
            raise RuntimeError("this layer keeps its parametrisations")

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), Refusing(8, 3))
    x, y = torch.randn(60, 5), torch.arange(60) % 3
    results = neuron_importance(model, [(x, y)], layers="1")
    nn.utils.prune.identity(model[2], "weight")
    with pytest.raises(InvalidArgument) as caught:
        weight_randomisation(model, [(x, y)], results)
    message = str(caught.value)
    for phrase in (
        "the weights of layer '2' are computed from others, and cannot be randomised",
        "this layer keeps its parametrisations",
        "leave out the check by randomised weights",
        "remove_parametrizations",
    ):
        assert phrase in message
    assert len(message) < 400
