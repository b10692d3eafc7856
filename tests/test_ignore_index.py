"""Samples without a label are left out, whether the batch or only `forward_fn` tells which they are."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neuroimp import (
    AblationFaithfulness,
    NeuronImportance,
    ablation_faithfulness,
    deletion_curve,
    list_sites,
    neuron_importance,
    weight_randomisation,
)
from tests.support.digits import digits
from tests.support.lightning_modules import Classifier, loaders, trainer

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

CHECK = AblationFaithfulness(fractions=(0.1, 0.5))


def held_out(marker):
    """Return digits of which every third has no label, and the same without those."""
    x, y = (part[1200:1500] for part in digits())
    marked = y.clone()
    marked[::3] = marker
    return x, marked, x[marked != marker], y[marked != marker]


def batches(x, y, size=50):
    return [(x[start : start + size], y[start : start + size]) for start in range(0, len(x), size)]


def assert_same(found, expected):
    np.testing.assert_allclose(found["1"].mean, expected["1"].mean, rtol=1e-4, atol=1e-6)
    assert found.clusters.size.tolist() == expected.clusters.size.tolist()


@pytest.mark.parametrize("marker", [-1, 255, -100])
def test_marked_samples_count_for_nothing(marker):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    x, marked, kept_x, kept_y = held_out(marker)
    expected = neuron_importance(model, batches(kept_x, kept_y), layers="1", max_samples=500)
    with pytest.raises(ValueError, match=f"if {marker} marks samples without a label, pass ignore_index={marker}"):
        neuron_importance(model, batches(x, marked), layers="1")
    shown = neuron_importance(model, batches(x, marked), layers="1", max_samples=500, ignore_index=marker)
    assert len(shown.sample_index) == len(kept_x)
    assert_same(shown, expected)

    def forward_fn(model, batch):
        return model(batch["pixels"]), batch["annotation"]

    hidden = [{"pixels": x, "annotation": y} for x, y in batches(x, marked)]
    told = neuron_importance(
        model, hidden, layers="1", max_samples=500, ignore_index=marker, forward_fn=forward_fn, baseline="zero"
    )
    assert_same(told, expected)
    assert f"{len(x) - len(kept_x)} of {len(x)} samples are in no cluster" in told.notes
    for results, data, options in ((shown, batches(x, marked), {}), (told, hidden, {"forward_fn": forward_fn})):
        checked = ablation_faithfulness(model, data, results, CHECK, **options)
        assert checked["1"].faithfulness.samples.sum() == 2 * len(kept_x)  # clusters, and all of them
        assert weight_randomisation(model, data, results, **options).randomisations
    curve = deletion_curve(model, batches(x, marked), range(12), layer="1", ignore_index=marker)
    assert curve.intact_accuracy == pytest.approx(expected.sample_correct.mean())
    assert [row.neurons for row in list_sites(model, batches(x, marked)[0], ignore_index=marker)] == [12, 12, 10]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")
def test_the_callback_leaves_them_out(tmp_path):
    class Ignoring(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            x, y = batch
            self.log("val_loss", nn.functional.cross_entropy(self(x), y, ignore_index=-1))

    x, marked, kept_x, _ = held_out(-1)
    callback = NeuronImportance(layers="encoder.2", ignore_index=-1, faithfulness=CHECK)
    trainer(tmp_path, [callback], max_epochs=1).fit(Ignoring(), loaders()[0], DataLoader(TensorDataset(x, marked), 50))
    assert len(callback.results.sample_index) == len(kept_x)
    assert callback.results.has_faithfulness


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", [1.0, "none", True])
def test_an_ignore_index_is_an_integer(value):
    with pytest.raises(ValueError, match="ignore_index must be an integer, got"):
        neuron_importance(nn.Linear(2, 2), [], layers="*", ignore_index=value)
