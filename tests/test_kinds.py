"""Names are for people: a user's function that is named like one of ours is still the user's."""

import functools

import numpy as np
import pytest
from torch import nn

from lightning_neuroimp import Attribution, Site, ablation_faithfulness, neuron_importance, weight_randomisation
from tests.support.digits import train, validation_batches

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")


@pytest.fixture(scope="module")
def model():
    return train(nn.Tanh, width=24, depth=2, epochs=2)


def labels(batch):
    """Clusters of the user's own, named like the built-in ones."""
    return batch[1] % 3


def gradient(batch):
    """A score of the user's own: the built-in one with its sign turned."""
    return -batch.sum_positions(batch.gradient)


def margin(logits, classes):
    """A target of the user's own."""
    return 3 * logits.gather(1, classes[:, None])[:, 0]


def test_clusters_named_labels_are_the_users(model):
    first = neuron_importance(model, validation_batches(), layers="1", clusters=labels)
    assert first.clusters.kind == "own"
    again = neuron_importance(model, validation_batches(), layers="1", clusters=labels, previous=first)
    assert again.clusters.adjusted_rand_index == 1.0
    text = again.summary()
    assert "classes" in text.splitlines()[2]  # the composition, which clusters of labels do not need
    assert "agreement with the last epoch's clusters: 1.00" in text
    built_in = neuron_importance(model, validation_batches(), layers="1")
    assert built_in.clusters.kind == "labels"
    assert "agreement with the last epoch" not in built_in.summary()


def test_own_functions_are_not_replaced_when_weights_are_randomised(model):
    data = validation_batches()
    results = neuron_importance(model, data, layers="1", attribution=[gradient, "activation"])
    assert [one.attribution_kind for one in results.importances] == ["own", "activation"]
    with pytest.raises(ValueError, match=r"attributions of your own, \['gradient'\].*pass attribution= as to"):
        weight_randomisation(model, data, results)
    with pytest.raises(ValueError, match="attribution 'gradient' of the results is one of your own.* the built-in"):
        weight_randomisation(model, data, results, attribution=["gradient", "activation"])
    randomised = weight_randomisation(model, data, results, attribution=[gradient, "activation"])
    turned = weight_randomisation(
        model, data, neuron_importance(model, data, layers="1", attribution="gradient")
    ).randomisations[0]
    own = next(one for one in randomised.randomisations if one.attribution == "gradient")
    np.testing.assert_allclose(own.rank_correlation, turned.rank_correlation)  # both signs are turned

    results = neuron_importance(model, data, layers="1", target=margin)
    assert results["1"].removal.target_kind == "own"
    with pytest.raises(ValueError, match="a target of your own, 'margin'.*pass target= as to neuron_importance"):
        weight_randomisation(model, data, results)
    with pytest.raises(ValueError, match="the target of the results is one of your own"):
        weight_randomisation(model, data, results, target="margin")
    assert weight_randomisation(model, data, results, target=margin).randomisations


def test_a_built_in_score_under_another_name_is_the_users(model):
    from lightning_neuroimp.importance.attributions.first_order import gradient_x_activation

    wrapped = Attribution("random", gradient_x_activation)
    results = neuron_importance(model, validation_batches(), layers="1", attribution=wrapped)
    assert results["1"].attribution_kind == "own"
    plain = neuron_importance(model, validation_batches(), layers="1")
    np.testing.assert_array_equal(results["1"].mean, plain["1"].mean)


def test_what_is_displayed_moves_no_number(model, monkeypatch):
    """Random draws are seeded by what a site is, not by what it is called."""
    options = {"layers": [Site("1"), Site("3", side="input")], "attribution": ["random", "masked_gradient"]}

    def measure():
        results = neuron_importance(model, validation_batches(), **options)
        return ablation_faithfulness(model, validation_batches(), results).importances

    before = measure()
    names = [importance.site for importance in before]
    monkeypatch.setattr(Site, "__str__", lambda site: f"the {site.side} of layer {site.name}")
    after = measure()
    assert names[0] != after[0].site
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.half_mean, other.half_mean)
        np.testing.assert_array_equal(one.faithfulness.random_accuracy, other.faithfulness.random_accuracy)


def test_sites_that_differ_have_keys_and_texts_that_differ():
    sites = [
        Site("a"), Site("a", axis=1), Site("a", axis=2), Site("a", call=0), Site("a", call=1), Site("a", item=1),
        Site("a", item=(1, 0)), Site("a", position=0), Site("a", group=2), Site("a", side="input"), Site("a (call 1)"),
    ]  # fmt: skip
    assert len({site.key for site in sites}) == len(sites)
    texts = [str(site) for site in sites]
    assert len(set(texts)) == len(texts) - 1  # a module may be named as a site is displayed
