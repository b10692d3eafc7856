"""What a checkpoint carries: a bounded history, and callables that are told apart by what they do."""

import functools
import subprocess
import sys

import pytest
from torch import nn

from lightning_neuroimp.callbacks.state import MAX_HISTORY, RunState, configuration_of, identify, pack, unpack
from lightning_neuroimp.results.history import Agreement
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
