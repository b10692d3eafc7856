"""What a checkpoint carries: a bounded history, and callables that are told apart by what they do."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp.callbacks.state import MAX_HISTORY, RunState, configuration_of, identify, pack, unpack
from lightning_neuroimp.results.history import Agreement
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement
from lightning_neuroimp.study.settings import ImportanceSettings


def agreements(epoch):
    return [Agreement(epoch, site, "gradient", 0.5, 0.5) for site in ("a", "b")]


def test_the_history_is_bounded_and_keeps_the_whole_course():
    run = RunState()
    for epoch in range(10 * MAX_HISTORY):
        run.remember(agreements(epoch))
        assert len(run.history) <= MAX_HISTORY
        assert run.history[-1] == agreements(epoch)
    epochs = [measurement[0].epoch for measurement in run.history]
    assert epochs == sorted(epochs)
    assert epochs[0] == 0
    assert len(run.history) > MAX_HISTORY / 3
    assert sum(epoch < 9 * MAX_HISTORY for epoch in epochs) >= 5  # not only the latest ones


def test_a_state_of_the_version_before_is_read():
    before = pack(RunState(3, 2, {"a": 1.0}, {"b": 2.0}), {"layers": ["1"]})
    before["version"] = 1
    entries = [vars(one) for epoch in range(3) for one in agreements(epoch)]
    before["history"], before["earlier"] = entries, None
    del before["previous"]
    run, reasons = unpack(before, {"layers": ["1"], "the target callable": "known from version 2 on"})
    assert not reasons
    assert (run.runs, run.measured, run.metrics, run.check_metrics) == (3, 2, {"a": 1.0}, {"b": 2.0})
    assert run.history == [agreements(epoch) for epoch in range(3)]


class Score:
    def __init__(self, power):
        self.power = power

    def __call__(self, batch):
        return batch.activation**self.power


def shifted(by):
    return lambda batch: batch[1] + by


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda batch: batch[1] % 2, lambda batch: batch[1] % 3),
        (lambda batch: batch[0], lambda batch: batch[1]),
        (lambda batch: batch.mean(), lambda batch: batch.sum()),
        (shifted(1), shifted(2)),
        (Score(1), Score(2)),
        (functools.partial(shifted, 1), functools.partial(shifted, 2)),
        (functools.partial(shifted, by=1), functools.partial(shifted, by=2)),
        (lambda batch, k=1: k, lambda batch, k=2: k),
        (lambda batch: [one + 1 for one in batch], lambda batch: [one + 2 for one in batch]),
    ],
)
def test_callables_that_differ_are_told_apart(one, other):
    assert identify(one) == identify(one)
    assert identify(one) != identify(other)


def test_a_callable_is_known_again_in_another_process():
    code = (
        "from lightning_neuroimp.callbacks.state import identify\n"
        "print(identify(lambda batch: batch if batch in {'a', 'b', 'c'} else [print for _ in batch]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_two_lambdas_are_two_configurations():
    def settings(function, **options):
        return configuration_of(ImportanceSettings("1", **{options.pop("what"): function}, **options), 100, False)

    for what in ("clusters", "attribution", "target", "groups"):
        one, other = settings(lambda a, b=1: a, what=what), settings(lambda a, b=2: a, what=what)
        assert not unpack(pack(RunState(), one), one)[1]
        (reason,) = unpack(pack(RunState(), one), other)[1]
        assert "callable" in reason or "attribution <lambda>" in reason

    # a built-in target and one of the same name are two, too
    def margin(logits, classes):
        return logits[:, 0]

    (reason,) = unpack(pack(RunState(), settings("margin", what="target")), settings(margin, what="target"))[1]
    assert reason.startswith("the target callable was None and is ")


def test_a_module_is_identified_by_its_kind():
    assert identify(nn.Linear(2, 2)) == identify(nn.Linear(2, 2))
    assert len(identify(nn.Linear(2000, 2000))) < 100


def whole_state():
    """A state as a checkpoint carries it, after two measurements."""
    previous = PreviousMeasurement(
        1,
        np.arange(6),
        np.arange(6) * 7,
        np.array([0, 2]),
        np.array([[0, 1], [2, 3]]),
        {("a", "gradient"): np.ones((2, 4), np.float32), ("b", "gradient"): np.zeros((2, 3), np.float32)},
    )
    history = [agreements(0), agreements(1)]
    return pack(RunState(3, 2, {"a/gap": 0.5}, {"a/p_value": 0.05}, history, previous), {"layers": ["a", "b"]})


def test_a_state_comes_back_whole():
    state = whole_state()
    run, reasons = unpack(state, {"layers": ["a", "b"]})
    assert not reasons
    assert (run.runs, run.measured, run.metrics) == (3, 2, {"a/gap": 0.5})
    assert run.history == [agreements(0), agreements(1)]
    assert run.previous.means["a", "gradient"].shape == (2, 4)


def damaged(path, value):
    """Return a function that replaces one part of a state, or drops it."""

    def change(state):
        holder = state
        for key in path[:-1]:
            holder = holder[key]
        if value is DROPPED:
            del holder[path[-1]]
        else:
            holder[path[-1]] = value
        return state

    return change


DROPPED = object()
DAMAGE = [
    *(damaged((name,), DROPPED) for name in ("runs", "measured", "metrics", "check_metrics", "history", "previous")),
    *(damaged(("runs",), value) for value in ("3", None, 3.0, [3], True)),
    *(damaged(("measured",), value) for value in ({}, "x", torch.tensor(3))),
    *(damaged(("metrics",), value) for value in ([1], "x", 3, {"a": "b"}, {"a": None}, {3: 0.5}, {"a": [0.5]})),
    *(damaged(("history",), value) for value in (3, [3], [[3]], [[{"epoch": 1}]], [[{"colour": 1}]], None)),
    damaged(("history", 0, 0, "site"), 4),
    damaged(("history", 0, 0, "reliability"), "high"),
    damaged(("history", 1, 0, "epoch"), None),
    *(damaged(("previous",), value) for value in (3, [], {}, "x", {"epoch": 1})),
    *(damaged(("previous", "epoch"), value) for value in ("1", None, 1.5)),
    *(damaged(("previous", "ids"), value) for value in (None, [0, 2], torch.zeros(2, 2).long(), torch.tensor([0, 0]))),
    damaged(("previous", "ids"), torch.tensor([0.0, 2.0])),
    damaged(("previous", "sample_index"), torch.arange(5)),
    damaged(("previous", "sample_index"), torch.zeros(6).long()),
    damaged(("previous", "sample_fingerprint"), torch.arange(6).to(torch.bfloat16)),
    damaged(("previous", "history"), torch.arange(4)),
    damaged(("previous", "means"), [["a", "gradient", torch.ones(3, 4)]]),
    damaged(("previous", "means"), [["a", "gradient"]]),
    damaged(("previous", "means"), [[1, "gradient", torch.ones(2, 4)]]),
    damaged(("previous", "means", 0, 2), torch.ones(2, 4).long()),
    damaged(("previous", "means", 0, 2), torch.tensor(1.0)),
    damaged(("configuration",), DROPPED),
    damaged(("configuration",), [1]),
    damaged(("version",), DROPPED),
    damaged(("version",), [2]),
    lambda state: [state],
    lambda state: None,
    lambda state: "state",
    lambda state: {},
    lambda state: {**state, "version": 1},
]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_state_is_no_reason_not_to_go_on(damage, unchecked):
    run, reasons = unpack(damage(whole_state()), {"layers": ["a", "b"]})
    assert run == RunState()
    assert len(reasons) == 1
    assert reasons[0].startswith(("its state cannot be read (", "its state is of version "))
    assert len(reasons[0]) < 300
