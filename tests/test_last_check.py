"""The check that max_overhead skipped is made at the end, however the training run ends."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, Timer
from lightning.pytorch.loggers import CSVLogger

from lightning_neuroimp import AblationFaithfulness, NeuronImportance
from lightning_neuroimp.callbacks.schedule import Schedule
from tests.support.lightning_modules import Classifier, loaders, trainer

pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def always_too_long(monkeypatch):
    """After the first one, no check is affordable."""
    monkeypatch.setattr(Schedule, "may_check", lambda schedule: schedule._took is None)


def ours(**options):
    settings = AblationFaithfulness(fractions=(0.1, 0.5))
    return NeuronImportance("encoder.2", faithfulness=settings, max_samples=128, **options)


def fitted(tmp_path, callbacks, model=None, **options):
    pl.seed_everything(0, verbose=False)
    callback = ours()
    run = trainer(tmp_path, [callback, *callbacks], **({"max_epochs": -1, "logger": CSVLogger(tmp_path)} | options))
    run.fit(Classifier() if model is None else model, *loaders())
    return run, callback


@pytest.mark.parametrize(
    ("callbacks", "options"),
    [
        (lambda: [], {"max_epochs": 3}),
        (lambda: [], {"max_steps": 12}),
        (lambda: [EarlyStopping("val_loss", patience=0, min_delta=99)], {}),
        (lambda: [Timer(interval="step", duration={"seconds": 1.5})], {}),
        (lambda: [EMAWeightAveraging(decay=0.9)], {"max_steps": 12}),
    ],
    ids=["max_epochs", "max_steps", "EarlyStopping", "max_time", "averaged weights"],
)
def test_the_last_measurement_is_checked(tmp_path, callbacks, options):
    run, callback = fitted(tmp_path, callbacks(), **options)
    assert callback.results.has_faithfulness
    assert callback.results.epoch > 0
    assert "this is the last check" not in callback.summary()
    checked = float(run.callback_metrics["neuroimp/checked_epoch"])
    assert checked == float(run.callback_metrics["neuroimp/measured_epoch"]) == callback.results.epoch
    gap = float(run.callback_metrics["neuroimp/encoder.2/gap"])
    assert gap == pytest.approx(callback.results["encoder.2"].faithfulness.gap[-1], rel=1e-6)
    files = sorted(tmp_path.rglob("*.npz"))
    assert len(files) >= 2


def test_steps_after_the_last_validation_are_measured_anew(tmp_path):
    """With max_steps in the middle of an epoch the weights are not those that were validated."""
    run, callback = fitted(tmp_path, [], max_steps=10)  # four steps an epoch
    assert run.global_step == 10
    assert callback.results.has_faithfulness
    assert callback.results.step == 10
    assert callback.results.clusters.accuracy.shape == (10,)


def test_a_failed_last_check_ends_nothing(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("injected")

    class Breaking(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            monkeypatch.setattr("lightning_neuroimp.callbacks.measuring.measure_faithfulness", fail)

    with pytest.warns(UserWarning, match="has no check of epoch 2; training goes on. RuntimeError: injected"):
        _, callback = fitted(tmp_path, [Breaking()], max_steps=12)
    assert not callback.results.has_faithfulness
    assert callback._run.checked.epoch == 0


def test_training_is_the_same_with_and_without_it(tmp_path):
    class Weights(pl.Callback):
        def on_fit_end(self, trainer, pl_module):
            self.weights = [weight.clone() for weight in pl_module.state_dict().values()]
            self.random = torch.random.get_rng_state(), np.random.get_state()[1]

    fitted(tmp_path / "a", [one := Weights()], max_steps=10)
    pl.seed_everything(0, verbose=False)
    run = trainer(tmp_path / "b", [other := Weights()], max_steps=10, max_epochs=-1)
    run.fit(Classifier(), *loaders())
    for first, second in zip(one.weights, other.weights, strict=True):
        assert torch.equal(first, second)
    assert torch.equal(one.random[0], other.random[0])
    assert (one.random[1] == other.random[1]).all()
