"""The arithmetic of benchmarks/truth.py, at a network whose effects add up, and at networks whose neurons are known."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.truth_networks.known import KNOWN, area_under_roc
from benchmarks.truth_networks.measuring import CEILING, Score, Setting, measure, random_masks
from benchmarks.truth_networks.scores import SCORES

PRODUCT = Score("product", "gradient_x_activation", "0")
REVERSED = Score("reversed", lambda batch: -batch.sum_positions(batch.deviation * batch.gradient), "0")
RANDOM = Score("random", "random", "0")


def linear_setting():
    """Two classes, whose margin is linear in the 40 neurons."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = torch.rand(200, 40, generator=generator) + (2.0 * y - 1)[:, None] * torch.linspace(0, 1, 40)
    readout = nn.Linear(40, 2, bias=False)
    readout.weight.data = torch.stack([-torch.ones(40), torch.ones(40)])
    return Setting(nn.Sequential(nn.Identity(), readout), x, y, ["0"], "labels", "zero", 0, n_masks=60)


def test_scores_of_one_half_are_judged_on_the_other_one():
    rows = {row["score"]: row for row in measure(linear_setting(), [PRODUCT, REVERSED, RANDOM])}
    for lds in ("lds10", "lds30"):
        # the product is the exact effect here: as good as the other half's own effects, 1 on its own half only
        assert rows["product"][lds] == pytest.approx(rows[CEILING][lds], abs=1e-3)
        assert 0.9 < rows["product"][lds] < 1.0
        assert rows["reversed"][lds] == pytest.approx(-rows["product"][lds], abs=1e-4)
        assert abs(rows["random"][lds]) < 0.5
    assert rows["product"]["share"] == 1.0
    assert rows["reversed"]["gap"] < 0 < rows["product"]["gap"]


def test_masks_remove_their_share_and_differ():
    masks = random_masks(32, 99, 0)
    assert masks.shape == (2, 99, 32)
    assert (masks.sum(2) == np.array([4, 10])[:, None]).all()
    assert len(np.unique(masks[1], axis=0)) == 99


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_eight_steps_of_integrated_gradients_find_the_known_neurons(known):
    areas = area_under_roc(known, [score for score in SCORES if score.name in ("integrated 8", "random")])
    assert areas["integrated 8"] == 1.0
    assert areas["random"] < 0.8
