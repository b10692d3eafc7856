"""Targets, baselines, and what removal does to tensors."""

import numpy as np
import pytest
import torch

from lightning_neuroimp import Removal, Site
from lightning_neuroimp.capture.baselines import Baseline
from lightning_neuroimp.capture.removal import remove
from lightning_neuroimp.capture.targets import Target
from lightning_neuroimp.errors import InvalidArgument

LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
CLASSES = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("margin", lambda f, y: f[y] - np.log(np.exp(np.delete(f, y)).sum())),
        ("logit", lambda f, y: f[y]),
        ("log_probability", lambda f, y: f[y] - np.log(np.exp(f).sum())),
        ("probability", lambda f, y: np.exp(f[y]) / np.exp(f).sum()),
    ],
)
def test_targets_equal_slow_twins(name, twin):
    found = Target.of(name).values(LOGITS, CLASSES)
    expected = [twin(row, y) for row, y in zip(LOGITS.numpy(), CLASSES.tolist(), strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_the_margin_is_the_log_odds_of_the_probability():
    p = Target.of("probability").values(LOGITS, CLASSES)
    margin = Target.of("margin").values(LOGITS, CLASSES)
    torch.testing.assert_close(margin, (p / (1 - p)).log())


def test_targets_of_the_users_own():
    def mine(logits, classes):
        return logits.sum(1)

    assert Target.of(mine) == Target("mine", "own", mine)
    with pytest.raises(InvalidArgument, match=r"one scalar per sample, shape \(2,\), got shape \(2, 3\)"):
        Target.of(lambda logits, classes: logits).values(LOGITS, CLASSES)
    with pytest.raises(InvalidArgument, match=r"target must be 'margin', .* or a callable .*got 'loss'"):
        Target.of("loss")


def test_a_target_named_like_one_of_ours_is_still_the_users():
    def margin(logits, classes):
        return logits.sum(1)

    target = Target.of(margin)
    assert (target.name, target.kind) == ("margin", "own")
    assert target.margin_slope(LOGITS, CLASSES) is None
    assert target.values(LOGITS, CLASSES).tolist() == [2, 3]


def test_what_is_no_baseline():
    with pytest.raises(
        InvalidArgument,
        match=r"baseline must be 'zero', 'mean', 'resample', 'optimal', a finite number, a list .*, got 'median'",
    ):
        Baseline.of("median")
    assert Baseline.of(0) == Baseline("zero")
    assert Baseline.of(-1) == Baseline("constant", -1.0)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("baseline", [0.0, -0.75])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_removal_chooses_like_where_and_keeps_the_layout(kind, baseline, layout):
    h = torch.randn(4, 3, 5, 6)
    h[0, 0, 0, 0], h[1, 1, 1, 1], h[2, 2, 2, 2] = torch.nan, torch.inf, -0.0
    h = h.to(kind).contiguous(memory_format=layout)
    removal = Removal(Site("site"), 1, "mean", np.full(3, baseline), "margin")
    for rows in (1, 4):
        mask = torch.rand(rows, 3) < 0.5
        expected = torch.where(mask[:, :, None, None], torch.tensor(baseline).to(kind), h)
        found = remove(h, removal, mask)
        assert found.dtype == kind
        assert found.stride() == h.stride()
        assert torch.equal(found.double().nan_to_num(), expected.double().nan_to_num())
    kept = remove(h, removal, torch.zeros(1, 3, dtype=torch.bool))
    assert torch.equal(kept.contiguous().view(torch.uint8), h.contiguous().view(torch.uint8))


@pytest.mark.parametrize("axis", [1, 3])
def test_removal_sets_masked_neurons_at_all_positions(axis):
    h = torch.randn(2, 3, 4, 3)
    removal = Removal(Site("site"), axis, "mean", np.array([5.0, 6.0, 7.0]), "margin")
    mask = torch.tensor([[True, False, True], [False, False, True]])
    out = remove(h, removal, mask)
    moved, before = out.movedim(axis, 1), h.movedim(axis, 1)
    assert (moved[0, 0] == 5).all()
    assert (moved[:, 2] == 7).all()
    assert torch.equal(moved[:, 1], before[:, 1])
    assert torch.equal(moved[1, 0], before[1, 0])
    for_all = remove(h, removal, torch.tensor([[False, True, False]])).movedim(axis, 1)
    assert (for_all[:, 1] == 6).all()
