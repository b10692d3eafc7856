"""What targets may be: class numbers in several forms, and a tried remedy for all else."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import ProbeSet, neuron_importance
from lightning_neuroimp.batches.fields import labels_of
from lightning_neuroimp.batches.probe import ProbeSampler
from lightning_neuroimp.capture.cache import ActivationCache
from lightning_neuroimp.capture.forward import forward_logits
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.targets import explained_classes
from lightning_neuroimp.capture.walk import walk
from lightning_neuroimp.clusters.assignment import counted
from lightning_neuroimp.errors import InvalidArgument

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

X3, X1 = torch.randn(6, 3), torch.randn(6, 1)
CLASSES = [0, 1, 2, 1, 2, 0]
Y = torch.tensor(CLASSES)
ONE_HOT = torch.eye(3)[Y]
NAMES = ["cat", "dog", "owl"]
LEVELS = (torch.arange(3) < torch.tensor([0, 1, 3, 2, 3, 1])[:, None]).long()


def labels(targets, logits=X3, **kwargs):
    return forward_logits(nn.Identity(), (logits, targets), None, **kwargs).labels.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool])
def test_one_hot_rows_are_classes(dtype):
    assert labels(ONE_HOT.to(dtype)) == CLASSES
    assert labels(ONE_HOT.to(dtype), validate=False) == CLASSES
    assert labels(torch.eye(2)[Y % 2].to(dtype), X3[:, :2]) == [one % 2 for one in CLASSES]
    assert labels(torch.eye(2)[Y % 2].to(dtype), X1) == [one % 2 for one in CLASSES]
    assert labels_of((X3, ONE_HOT.to(dtype))).tolist() == CLASSES


@pytest.mark.parametrize(
    "targets",
    [
        Y.float(),
        Y.double()[:, None],
        Y.half(),
        Y[:, None],
        Y.to(torch.uint8),
        Y.numpy(),
        Y.numpy().astype(np.float32),
        CLASSES,
        [float(one) for one in CLASSES],
        tuple(torch.tensor(one) for one in CLASSES),
        [np.int64(one) for one in CLASSES],
    ],
)
def test_whole_numbers_are_classes(targets):
    assert labels(targets) == CLASSES
    assert labels(targets, validate=False) == CLASSES


REFUSED = {
    "complex": (Y.to(torch.complex64), X3, ["torch.complex64", "if their real parts are"], CLASSES),
    "names": ([NAMES[one] for one in CLASSES], X3, ["the names ['cat', 'dog', 'owl']", "in the order of"], CLASSES),
    "names in an array": (np.array(NAMES)[CLASSES], X3, ["got the names", "the list of classes"], CLASSES),
    "from 1": (Y + 1, X3, ["0..2 for 3 logits", "1, 2, 3 up to 3", "numbered from 1?"], CLASSES),
    "from 1, as floats": ((Y + 1).float(), X3, ["numbered from 1?", "batch[1] - 1"], CLASSES),
    "1 and 2": (Y % 2 + 1, X1, ["0..1 for one logit per sample", "numbered from 1?"], [k % 2 for k in CLASSES]),
    "smoothed": (0.9 * ONE_HOT + 0.1 / 3, X3, ["rows sum to 1", "smoothed or soft labels"], CLASSES),
    "mixed": (0.7 * ONE_HOT + 0.3 * ONE_HOT.flip(0), X3, ["smoothed or soft", "the largest share"], CLASSES),
    "signs": (torch.where(Y > 0, 1, -1), X1, ["0 or 1 for one logit", "if they are -1 and 1"], [0, 1, 1, 1, 1, 0]),
    "float signs": (torch.where(Y > 0, 1.0, -1.0), X3[:, :2], ["0 or 1 for 2 logits", "-1 and 1"], [0, 1, 1, 1, 1, 0]),
    "signs in rows": (2 * ONE_HOT - 1, X3, ["one 1 and else -1", "argmax(1)"], CLASSES),
    "multi-label": (torch.tensor([[0, 1, 0], [1, 0, 1]] * 3), X3, ["multi-label data", "for the first"], None),
    "levels": (LEVELS, X3, ["ones first: ordinal levels?", "argmax would be wrong"], [0, 1, 3, 2, 3, 1]),
    "levels, as floats": (LEVELS.float(), X3, ["ones first: ordinal levels?"], [0, 1, 3, 2, 3, 1]),
    "levels from the end": (1 - LEVELS, X3, ["ones last: ordinal levels?"], [0, 1, 3, 2, 3, 1]),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_each_other_form_has_a_remedy_that_works(kind):
    targets, logits, phrases, classes = REFUSED[kind]
    with pytest.raises(InvalidArgument) as error:
        labels(targets, logits)
    for phrase in (*phrases, "targets must", "pass forward_fn=lambda model, batch: ("):
        assert phrase in str(error.value)
    assert len(str(error.value)) < 300
    forward_fn = eval(line_in(str(error.value)), {"torch": torch, "names": NAMES})
    found = forward_logits(nn.Identity(), (logits, targets), forward_fn)
    if classes is None:
        assert found.labels.tolist() == targets[:, 0].tolist()
        assert torch.equal(found.logits[:, 1], logits[:, 0])
    else:
        assert found.labels.tolist() == classes
        assert found.logits.shape[1] > max(classes)


def line_in(message):
    """Return the function in a message, up to where its brackets are closed."""
    text = message.split("forward_fn=", 1)[1]
    start = text.index("(")
    depths = np.cumsum([(one == "(") - (one == ")") for one in text[start:]])
    return text[: start + int(np.argmin(depths != 0)) + 1]


def test_the_levels_remedy_predicts_as_many_levels_as_are_more_likely_than_not():
    levels = torch.tensor([0, 1, 2, 3])
    f = 4.0 * ((torch.arange(3) < levels[:, None]).float() - 0.5) - torch.arange(3) / 10
    with pytest.raises(InvalidArgument) as error:
        labels((f > 0).long(), f)
    found = forward_logits(nn.Identity(), (f, (f > 0).long()), eval(line_in(str(error.value))))
    assert found.logits.argmax(1).tolist() == levels.tolist() == found.labels.tolist()
    with pytest.raises(InvalidArgument) as error:
        labels((f <= 0).long(), -f)
    found = forward_logits(nn.Identity(), (-f, (f <= 0).long()), eval(line_in(str(error.value))))
    assert found.logits.argmax(1).tolist() == levels.tolist() == found.labels.tolist()


def test_regression_targets_and_missing_ones():
    with pytest.raises(InvalidArgument) as error:
        labels(Y + 0.5)
    for phrase in ("integer class numbers", "such as 0.5, 1.5, 2.5", "a regression target"):
        assert phrase in str(error.value)
    missing = Y.float().masked_fill(Y == 1, torch.nan)
    with pytest.raises(InvalidArgument) as error:
        labels(missing)
    for phrase in ("NaN for 2 of 6 samples", "nan_to_num(nan=-1)", "and ignore_index=-1"):
        assert phrase in str(error.value)
    forward_fn = eval(line_in(str(error.value)))
    found = forward_logits(nn.Identity(), (X3, missing), forward_fn, ignore_index=-1)
    assert found.labels.tolist() == [0, -1, 2, -1, 2, 0]
    with pytest.raises(InvalidArgument, match=r"neither one-hot rows nor soft labels; pass forward_fn="):
        labels(3 * ONE_HOT)


@pytest.mark.parametrize("marker", [-1, 255, -100])
@pytest.mark.parametrize("binary", [False, True])
def test_unlabelled_samples_are_named_and_ignored(marker, binary):
    y = (Y > 0).long() if binary else Y
    targets, logits = torch.where(torch.arange(6) == 2, marker, y), X1 if binary else X3
    expected = [-1 if place == 2 else one for place, one in enumerate(y.tolist())]
    with pytest.raises(InvalidArgument) as error:
        labels(targets, logits)
    for phrase in (
        f"got values from {min(marker, 0)}",
        f"if {marker} marks samples without a label",
        f"pass ignore_index={marker}",
    ):
        assert phrase in str(error.value)
    for form in (targets, targets.float(), targets[:, None], targets.numpy(), targets.tolist()):
        assert labels(form, logits, ignore_index=marker) == expected
    assert labels(targets, logits, ignore_index=marker, validate=False) == expected
    with pytest.raises(InvalidArgument, match="targets"):
        labels(targets.clamp_max(400) + 300 * (torch.arange(6) == 0), logits, ignore_index=marker)


def test_labels_from_1_with_unlabelled_ones_keep_their_mark():
    targets = torch.where(Y == 0, -1, Y + 1)
    with pytest.raises(InvalidArgument, match=r"if -1 marks .* pass ignore_index=-1"):
        labels(targets)
    with pytest.raises(InvalidArgument, match=r"from 1\? If so, pass .*batch\[1\] - 1\) and ignore_index=-2") as error:
        labels(targets, ignore_index=-1)
    forward_fn = eval(line_in(str(error.value)))
    found = forward_logits(nn.Identity(), (X3, targets), forward_fn, ignore_index=-2)
    assert found.labels.tolist() == [-1, 1, 2, 1, 2, -1]


def batches(marker=-1):
    return [
        (torch.randn(10, 4), torch.where(torch.arange(10) % 5 == 0, marker, torch.arange(10) % 3)) for _ in range(3)
    ]


def test_samples_without_a_label_are_not_drawn_where_batches_show_it(unchecked):
    sampler = ProbeSampler(ignore_index=-1)
    for batch in batches():
        sampler.add(batch)
    probe = sampler.close()
    assert len(probe) == 24
    assert all((y >= 0).all() for (_, y), _ in probe.batches())
    for wrong in ("a", 1.5):
        with pytest.raises(InvalidArgument, match="ignore_index must be an integer"):
            ProbeSampler(ignore_index=wrong)
    empty = ProbeSampler(ignore_index=7)
    empty.add((torch.zeros(3, 4), torch.full((3,), 7)))
    with pytest.raises(InvalidArgument, match="samples with label 7 were ignored"):
        empty.close()


def test_samples_without_a_label_count_for_nothing():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    probe = ProbeSet.from_batches(batches(255))
    subject = Subject(model, probe, ignore_index=255)
    for walked in walk(subject, "test", ActivationCache([], gradients=False), "label"):
        y = walked.batch[1].numpy()
        np.testing.assert_array_equal(walked.samples.label, np.where(y == 255, -1, y))
        np.testing.assert_array_equal(walked.samples.target, np.where(y == 255, 0, y))
        assert not walked.samples.correct[y == 255].any()
        assert not counted(walked.samples, None)[y == 255].any()
        assert counted(walked.samples, None)[y != 255].all()
        assert not counted(walked.samples, [-1, 0])[y == 255].any()
    assert explained_classes(torch.zeros(2, 3), torch.tensor([-1, 2]), "label").tolist() == [0, 2]
    assert explained_classes(torch.zeros(2, 3), torch.tensor([-1, 2]), 1).tolist() == [1, 1]


def test_one_hot_targets_give_the_scores_of_class_numbers():
    model, x, y = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(30, 4), torch.arange(30) % 3
    forms = (y, torch.eye(3)[y], y.float(), y.float()[:, None])
    found = [neuron_importance(model, [(x, form)], layers="1") for form in forms]
    twin = []
    for one, label in zip(x, y.tolist(), strict=True):
        h = model[:2](one).detach().requires_grad_()
        z = model[2](h)
        margin = z[label] - torch.cat([z[:label], z[label + 1 :]]).logsumexp(0)
        twin.append(h.detach() * torch.autograd.grad(margin, h)[0])
    for results in found:
        for row, label in enumerate(results["1"].cluster_ids):
            np.testing.assert_allclose(results["1"].mean[row], torch.stack(twin)[y == label].mean(0), atol=1e-6)
