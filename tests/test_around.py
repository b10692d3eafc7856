"""The callback among all that Lightning offers around it."""

import copy
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, EMAWeightAveraging, LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_neuroimp import (
    AblationFaithfulness,
    KMeansClusters,
    NeuronImportance,
    ablate,
    ablation_faithfulness,
    neuron_importance,
)
from tests.support.lightning_modules import Classifier, loaders, trainer

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]

CHECK = AblationFaithfulness(max_overhead=None, fractions=(0.1, 0.5))


def ours(**options):
    return NeuronImportance(**({"layers": "encoder.2", "faithfulness": CHECK, "max_samples": 128} | options))


def test_fast_dev_run_measures_once_and_writes_nothing(tmp_path):
    run = trainer(tmp_path, [callback := ours()], fast_dev_run=True, logger=True)
    run.fit(Classifier(), *loaders())
    assert callback.results.has_faithfulness
    assert not list(tmp_path.rglob("*"))


def test_barebones(tmp_path):
    """No logger, no bar, no metrics: the results are there all the same."""
    run = pl.Trainer(
        callbacks=[callback := ours()], barebones=True, max_epochs=1, accelerator="cpu", default_root_dir=tmp_path
    )
    with pytest.warns(UserWarning, match="barebones"):
        run.fit(Classifier(), *loaders())
    assert callback.results.has_faithfulness


def test_weight_averaging_is_explained_as_it_was_validated(tmp_path):
    """Lightning validates the average, and puts the raw weights back in its own hook, which runs after ours."""
    validated = []

    class Spy(pl.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            validated[:] = [copy.deepcopy(pl_module.state_dict())]

    pl.seed_everything(0, verbose=False)
    model, callback = Classifier(), ours(max_samples=320)
    trainer(tmp_path, [EMAWeightAveraging(decay=0.9), Spy(), callback], num_sanity_val_steps=0).fit(model, *loaders())
    averaged = Classifier()
    averaged.load_state_dict(validated[0])
    expected = neuron_importance(averaged, loaders()[1], layers="encoder.2")["encoder.2"].mean
    np.testing.assert_allclose(callback.results["encoder.2"].mean, expected, rtol=1e-4, atol=1e-6)


class Tunable(Classifier):
    def __init__(self, learning_rate=3e-3, batch_size=16):
        super().__init__()
        self.learning_rate, self.batch_size = learning_rate, batch_size

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.learning_rate)

    def train_dataloader(self):
        return DataLoader(loaders()[0].dataset, self.batch_size)

    def val_dataloader(self):
        return loaders()[1]


@pytest.mark.parametrize(
    "finder",
    [
        lambda: LearningRateFinder(num_training_steps=5, update_attr=True),
        lambda: BatchSizeFinder(steps_per_trial=1, max_trials=2),
    ],
)
def test_finders_run_before_it(finder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pl.seed_everything(0, verbose=False)
    run = trainer(tmp_path, [finder(), callback := ours()], enable_checkpointing=True, enable_progress_bar=True)
    run.fit(Tunable())
    assert callback.results.epoch == 1
    assert float(run.callback_metrics["neuroimp/measured_epoch"]) == 1


def test_the_tuner_tries_batch_sizes_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pl.seed_everything(0, verbose=False)
    model, callback = Tunable(), ours()
    run = trainer(tmp_path, [callback], enable_checkpointing=True)
    Tuner(run).scale_batch_size(model, max_trials=2, steps_per_trial=1)
    run.fit(model)
    assert callback.results.epoch == 1


def test_the_trainer_of_the_other_package(tmp_path):
    """`pytorch_lightning` is the same code under another name, whose classes are not those of `lightning.pytorch`."""
    import pytorch_lightning as other

    class Module(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = nn.Sequential(nn.Linear(64, 16), nn.ReLU()), nn.Linear(16, 10)

        def forward(self, x):
            return self.head(self.encoder(x))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    callback = ours(layers="encoder.1")
    logger = other.loggers.TensorBoardLogger(tmp_path)
    run = other.Trainer(
        callbacks=[callback], max_epochs=1, logger=logger, enable_progress_bar=False, enable_model_summary=False
    )
    run.fit(Module(), *loaders())
    assert callback.results.has_faithfulness
    assert "neuroimp/encoder.1/gap" in run.callback_metrics
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_a_compiled_model_is_explained_eagerly(tmp_path):
    plain, callback = Classifier(), ours()
    model = torch.compile(copy.deepcopy(plain), backend="eager")
    trainer(tmp_path, [callback], max_epochs=1).validate(model, loaders()[1], verbose=False)
    expected = neuron_importance(plain, loaders()[1], layers="encoder.2", max_samples=128)["encoder.2"].mean
    np.testing.assert_allclose(callback.results["encoder.2"].mean, expected, rtol=1e-5, atol=1e-7)
    assert callback.results.has_faithfulness


@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
def test_compiled_parts_are_replayed_as_written(how, tmp_path):
    plain = Classifier().eval()
    model = copy.deepcopy(plain)
    if how == "torch.compile":
        model.encoder = torch.compile(model.encoder, backend="eager")
        layer = "encoder._orig_mod.2"
    else:
        model.encoder.compile(backend="eager")
        layer = "encoder.2"
    x, y = loaders()[1].dataset.tensors
    before = [sorted(vars(module)) for module in model.modules()]
    for one in (plain, model):
        expected = one(x)
    # warnings are errors here: nothing falls back to full passes
    results = ablation_faithfulness(model, [(x, y)], neuron_importance(model, [(x, y)], layers=layer))
    assert results.notes == ()
    neurons = [0, 3, 5]
    with ablate(model, layer, neurons), ablate(plain, "encoder.2", neurons), torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
    assert [sorted(vars(module)) for module in model.modules()] == before
    torch.testing.assert_close(model(x), expected)


def test_several_instances_and_several_runs(tmp_path):
    callbacks = [
        ours(name=f"n{number}", clusters=clusters) for number, clusters in enumerate(["labels", KMeansClusters(3)])
    ]
    run = trainer(tmp_path, callbacks, logger=CSVLogger(tmp_path))
    run.fit(Classifier(), *loaders())
    run.validate(Classifier(), loaders()[1], verbose=False)
    run.fit(Classifier(), *loaders()) if run.current_epoch < run.max_epochs else None
    assert all(callback.results.has_faithfulness for callback in callbacks)
    assert {key.split("/")[0] for key in run.callback_metrics if "gap" in key} == {"n0", "n1"}


def test_copies_are_small_and_work(tmp_path):
    callback = ours()
    trainer(tmp_path, [callback]).fit(Classifier(), *loaders())
    for other in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert other.summary() == callback.summary()
        trainer(tmp_path, [other], max_epochs=1).fit(Classifier(), *loaders())
    assert len(pickle.dumps(callback)) < 200_000


def test_no_validation_at_all(tmp_path):
    class NoValidation(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(64, 10)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.encoder(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    with pytest.raises(Exception, match="there is no validation loader"):
        trainer(tmp_path, [ours(layers="encoder")]).fit(NoValidation(), loaders()[0])
    trainer(tmp_path, [ours(layers="encoder")], max_epochs=1).predict(
        Classifier(), DataLoader(loaders()[1].dataset.tensors[0])
    )


# bad days


def validated(tmp_path, model=None, data=None, **options):
    callback = ours(**options)
    trainer(tmp_path, [callback]).validate(model or Classifier(), data or loaders()[1], verbose=False)
    return callback


def subset(rows):
    x, y = loaders()[1].dataset.tensors
    return DataLoader(TensorDataset(x[rows], y[rows]), 16)


def test_a_cluster_of_one(tmp_path):
    y = loaders()[1].dataset.tensors[1]
    rows = torch.cat([(y == 3).nonzero()[:40, 0], (y == 5).nonzero()[:1, 0]])
    results = validated(tmp_path, data=subset(rows)).results
    assert results.clusters.size.tolist()[1] == 1
    judged = results["encoder.2"].faithfulness
    assert judged.verdict[1] == "too few samples to say"
    assert np.isnan(judged.gap[1])
    assert np.isfinite(judged.gap[0])
    assert "label 5" in next(one.clusters for one in results.findings if one.id == "few-samples")


def test_clusters_that_run_empty(tmp_path):
    """KMeans with more centres than different samples."""
    x, y = loaders()[1].dataset.tensors
    same = DataLoader(TensorDataset(x[:3].repeat(20, 1), y[:3].repeat(20)), 16)
    results = validated(tmp_path, data=same, clusters=KMeansClusters(5)).results
    assert len(results.clusters.ids) == 3
    assert results.clusters.size.tolist() == [20, 20, 20]


def test_more_clusters_than_samples(tmp_path):
    with pytest.raises(
        Exception, match="n_clusters=5 is more than the 4 probe samples with finite embeddings; ask for fewer"
    ):
        validated(tmp_path, data=subset(torch.arange(4)), clusters=KMeansClusters(5))


def test_constant_activations(tmp_path):
    model = Classifier()
    with torch.no_grad():
        model.encoder[1].weight.zero_()
        model.encoder[1].bias.fill_(0.5)
    callback = validated(tmp_path, model)
    assert "constant" in callback.summary()
    assert np.isfinite(callback.results["encoder.2"].mean).all()


class Gated(Classifier):
    """Reaches its extra layer in some batches only."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(10, 10)
        self.seen = 0

    def forward(self, x):
        logits = super().forward(x)
        return logits + self.extra(logits) if x[:, 20].mean() > x[:, 20].median() else logits


def test_a_layer_that_a_batch_does_not_reach(tmp_path):
    with pytest.raises(Exception, match="layer 'extra' was not called in the model's forward pass"):
        validated(tmp_path, Gated(), layers="extra", data=subset(torch.arange(128)))
    results = validated(tmp_path, Gated(), layers=["encoder.2", "ext*"], data=subset(torch.arange(128))).results
    assert results.sites == ("encoder.2",)
    assert any("extra: skipped" in note for note in results.notes)


def test_one_batch_one_sample_one_class(tmp_path):
    one_batch = validated(tmp_path, data=subset(torch.arange(16)))
    assert "few-samples" in one_batch.summary()
    one_sample = validated(tmp_path, data=subset(torch.arange(1)))
    assert one_sample.results["encoder.2"].faithfulness.verdict == ("too few samples to say",) * 2
    assert "nan" not in one_sample.summary()


class Diverging(Classifier):
    def validation_step(self, batch, batch_idx):
        if self.current_epoch == 1:
            with torch.no_grad():
                self.head.weight.fill_(torch.nan)


def test_a_model_that_turns_to_nan_marks_the_measurement_as_missing(tmp_path):
    callback = ours()
    run = trainer(tmp_path, [callback], max_epochs=3)
    with pytest.warns(UserWarning, match="no measurement of epoch [12]; training goes on. NonFiniteOutputs"):
        run.fit(Diverging(), *loaders())
    assert callback.results.epoch == 0
    assert float(run.callback_metrics["neuroimp/measured_epoch"]) == 0


class Logging(Classifier):
    """Logs, and keeps a metric, in its forward pass."""

    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.mean = MeanMetric()

    def forward(self, x):
        h = self.encoder(x)
        if not self.training:
            self.mean.update(h.mean(1))
            self.log("norm", h.norm(), **self.options)
        return self.head(h)

    def on_validation_epoch_end(self):
        self.log("activity", self.mean.compute())
        self.mean.reset()


@pytest.mark.parametrize("options", [{}, {"on_step": True, "on_epoch": True}])
def test_what_a_forward_pass_logs_is_the_trainings(options, tmp_path):
    values = []
    for callbacks in ([], [callback := ours()]):
        pl.seed_everything(0, verbose=False)
        run = trainer(tmp_path, callbacks)
        model = Logging(**options)
        run.fit(model, *loaders())
        values.append({key: float(value) for key, value in run.callback_metrics.items() if "neuroimp" not in key})
    assert callback.results.has_faithfulness
    assert values[0] == values[1]
    assert "log" not in vars(model)


class Collapsed(Classifier):
    def forward(self, x):
        return super().forward(x) * 0


@pytest.mark.parametrize("key", ["lds", "reliability", "gap", "relative_gap"])
def test_values_that_are_not_defined_do_not_end_a_training(key, tmp_path):
    stop = pl.callbacks.EarlyStopping(f"neuroimp/encoder.2/{key}", mode="max", patience=99)
    run = trainer(tmp_path, [ours(), stop], max_epochs=3)
    run.fit(Collapsed(), *loaders())
    assert run.current_epoch == 3


def test_a_mistake_stops_a_training_only_at_its_beginning(tmp_path):
    class Late:
        calls = 0

        def __call__(self, module, batch):
            self.calls += 1
            if self.calls <= 6:  # two in the rehearsal, and in each of two measurements
                raise RuntimeError("early")
            raise ValueError("late")

    run = trainer(tmp_path, [ours(forward_fn=Late())], max_epochs=4)
    with pytest.warns(UserWarning) as said:
        run.fit(Classifier(), *loaders())
    said = [str(one.message).rpartition("training goes on. ")[2] for one in said if "goes on" in str(one.message)]
    assert said == ["RuntimeError: early"] * 2 + ["InvalidArgument: forward_fn failed with ValueError: late"] * 2
    assert run.current_epoch == 4


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError, AttributeError, RuntimeError])
@pytest.mark.parametrize("place", ["importance.moments.CellMoments.means", "ablation.judge.Judge.faithfulness"])
def test_a_fault_of_our_own_in_the_first_measurement_stops_nothing(place, error, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise error("ours")

    monkeypatch.setattr(f"lightning_neuroimp.{place}", fail)
    run = trainer(tmp_path, [callback := ours()], max_epochs=2)
    with pytest.warns(UserWarning, match=f"training goes on. {error.__name__}: .?ours"):
        run.fit(Classifier(), *loaders())
    assert run.current_epoch == 2
    assert callback.summary() == "neuroimp: nothing measured yet"


def test_a_mistake_after_a_resume_is_a_warning(tmp_path):
    options = {"enable_checkpointing": True}
    first = trainer(tmp_path, [ours()], max_epochs=1, **options)
    first.fit(Classifier(), *loaders())

    def wrong(module, batch):
        raise ValueError("wrong")

    run = trainer(tmp_path, [ours(forward_fn=wrong)], max_epochs=2, **options)
    with pytest.warns(UserWarning, match="training goes on. InvalidArgument: forward_fn failed with ValueError: wrong"):
        run.fit(Classifier(), *loaders(), ckpt_path=first.checkpoint_callback.best_model_path)
    assert run.current_epoch == 2


@pytest.mark.parametrize("odd", [None, [], object()])
def test_an_odd_batch_late_in_the_validation_is_left_out(odd, tmp_path):
    class Tolerant(Classifier):
        def validation_step(self, batch, batch_idx):
            if isinstance(batch, list | tuple) and len(batch) == 2:
                super().validation_step(batch, batch_idx)

    good = list(loaders()[1])
    callback = ours()

    def stream(batches):
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)

    trainer(tmp_path, [callback]).validate(Tolerant(), stream([*good, odd, good[0]]), verbose=False)
    assert callback.results.has_faithfulness
    assert any("batch 5 of the validation was left out: " in note for note in callback.results.notes)
    with pytest.raises(Exception, match="NeuronImportance 'neuroimp': "):
        trainer(tmp_path, [ours()]).validate(Tolerant(), stream([odd, *good]), verbose=False)


def test_a_terminal_that_is_gone_stops_nothing(tmp_path):
    class Bar(pl.callbacks.TQDMProgressBar):
        def print(self, *args, **kwargs):
            raise OSError(5, "Input/output error")

    callback = ours()
    run = trainer(tmp_path, [callback, Bar()], enable_progress_bar=True)
    run.fit(Classifier(), *loaders())
    assert callback.results.has_faithfulness


def test_a_logger_that_fails_does_not_starve_the_next(tmp_path):
    class Failing(CSVLogger):
        def log_metrics(self, metrics, step=None):
            if any("clusters" in key for key in metrics):
                raise RuntimeError("injected")

    good = CSVLogger(tmp_path, name="good")
    run = trainer(tmp_path, [ours()], logger=[Failing(tmp_path, name="bad"), good])
    with pytest.warns(UserWarning) as said:
        run.fit(Classifier(), *loaders())
    assert sum("could not write its measurement" in str(one.message) for one in said) == 2
    text = (tmp_path / "good" / "version_0" / "metrics.csv").read_text()
    assert "neuroimp_clusters/encoder.2/gap/label_0" in text


def test_nothing_is_held_after_a_run_or_an_exception(tmp_path):
    def fails(batch):
        raise RuntimeError("injected")

    done, failed = ours(), ours(on_error="raise", attribution=fails)
    trainer(tmp_path, [done]).fit(Classifier(), *loaders())
    with pytest.raises(RuntimeError, match="injected"):
        trainer(tmp_path, [failed]).fit(Classifier(), *loaders())
    for callback in (done, failed):
        collector = callback._run.collector
        assert collector.probe is None
        assert collector._sampler is None
        assert collector._lost is None
