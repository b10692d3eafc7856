"""The question that this package answers, on real data: five seeds, fixed beforehand."""

import numpy as np
import pytest
from torch import nn

from lightning_neuroimp import AblationFaithfulness, ablation_faithfulness, neuron_importance
from tests.support.digits import train, validation_batches

SEEDS = range(5)
pytestmark = pytest.mark.usefixtures("unchecked")


def judged(activation, seed):
    """The published score (mean derivative of the correct logit) and the default, first hidden activations."""
    model, batches = train(activation, seed), validation_batches()
    found = []
    for options in ({"attribution": "gradient", "target": "logit"}, {}):
        results = neuron_importance(model, batches, layers="1", **options)
        results = ablation_faithfulness(model, batches, results, AblationFaithfulness(n_random=99))
        found.append(results["1"].faithfulness)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_with_tanh_the_published_score_says_nothing_and_the_default_does(seed):
    published, default = judged(nn.Tanh, seed)
    print(f"tanh seed {seed}: published {published}, default {default}")
    assert default.verdict[-1] == "faithful"
    assert published.verdict[-1] != "faithful"
    assert published.gap[-1] <= default.gap[-1] / 5
    assert abs(published.lds[-1]) <= 0.15
    assert default.lds[-1] >= 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_with_relu_both_are_faithful(seed):
    published, default = judged(nn.ReLU, seed)
    print(f"ReLU seed {seed}: published {published}, default {default}")
    assert default.verdict[-1] == published.verdict[-1] == "faithful"
    assert np.isfinite([default.gap[-1], published.gap[-1]]).all()
