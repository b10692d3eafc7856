"""NeuronImportance through a real Trainer."""

import json
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, NeuronImportance, Results, Site
from lightning_neuroimp.callbacks.processes import (
    PeerFailedError,
    PeerMistakenError,
    PeerOutOfMemoryError,
    _Failure,
    _worst,
    out_of_memory,
)
from lightning_neuroimp.errors import MeasurementFailed
from tests.support.lightning_modules import Classifier, loaders, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]

ALWAYS = AblationFaithfulness(max_overhead=None)


def callback(**options):
    return NeuronImportance(**({"layers": ["encoder.2"], "faithfulness": ALWAYS} | options))


KEYS = ("gap", "lds", "p_value", "relative_gap", "reliability", "stability")


def test_keys_are_fixed_sorted_and_few(tmp_path):
    seen = []

    class Spy(Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                seen.append([key for key in trainer.callback_metrics if key != "val_loss"])

    plain = callback(name="labels")
    two = callback(name="kmeans", clusters=KMeansClusters(3), attribution=["gradient_x_activation", "gradient"])
    fit = trainer(tmp_path, [Spy(), plain, two])
    fit.fit(Classifier(), *loaders())
    expected = [
        "labels/checked_epoch",
        *(f"labels/encoder.2/{key}" for key in KEYS),
    ]
    expected += ["labels/measured_epoch", "kmeans/adjusted_rand_index", "kmeans/checked_epoch"]
    for attribution in ("gradient", "gradient_x_activation"):
        expected += [f"kmeans/encoder.2/{attribution}/{key}" for key in KEYS]
    expected += ["kmeans/measured_epoch"]
    assert seen == [expected] * 2
    judged = plain.results["encoder.2"].faithfulness
    assert float(fit.callback_metrics["labels/encoder.2/gap"]) == pytest.approx(judged.gap[-1], rel=1e-6)
    assert float(fit.callback_metrics["labels/measured_epoch"]) == 1


def test_results_are_those_of_the_core_on_the_same_data(tmp_path):
    from lightning_neuroimp import ablation_faithfulness, neuron_importance

    model, (train, val) = Classifier(), loaders()
    ours = callback()
    trainer(tmp_path, [ours]).fit(model, train, val)
    expected = ablation_faithfulness(model, val, neuron_importance(model, val, layers="encoder.2"), ALWAYS)
    np.testing.assert_array_equal(ours.results["encoder.2"].mean, expected["encoder.2"].mean)
    np.testing.assert_array_equal(
        ours.results["encoder.2"].faithfulness.accuracy, expected["encoder.2"].faithfulness.accuracy
    )


def test_the_sanity_check_leaves_nothing(tmp_path):
    ours = callback()
    logger = CSVLogger(tmp_path)
    fit = trainer(tmp_path, [ours], logger=logger, max_epochs=0, num_sanity_val_steps=2)
    fit.fit(Classifier(), *loaders())
    assert logger.experiment.metrics == []
    assert ours.summary() == "neuroimp: nothing measured yet"
    with pytest.raises(RuntimeError, match="has measured nothing yet: run trainer.fit"):
        _ = ours.results
    assert not list(tmp_path.rglob("*.npz"))


def test_validate_alone(tmp_path):
    model, (_, val) = Classifier(), loaders()
    ours = callback(clusters=KMeansClusters(3), baseline="mean")
    run = trainer(tmp_path, [ours])
    metrics = run.validate(model, val, verbose=False)[0]
    assert metrics["neuroimp/encoder.2/gap"] == pytest.approx(ours.results["encoder.2"].faithfulness.gap[-1])
    run.fit(model, *loaders())  # what was kept from inference mode can be gone on with
    assert ours.results.epoch == 1
    assert not any(value.is_inference() for value in model.state_dict().values())


def test_schedules(tmp_path):
    epochs = []

    class Spy(Callback):
        def on_validation_end(self, trainer, pl_module):
            keys = ("neuroimp/measured_epoch", "neuroimp/checked_epoch", "neuroimp/encoder.2/gap")
            epochs.append(tuple(float(trainer.callback_metrics[key]) for key in keys))

    settings = AblationFaithfulness(max_overhead=None, every_n_epochs=2)
    ours = callback(every_n_epochs=2, faithfulness=settings)
    trainer(tmp_path, [ours, Spy()], max_epochs=6, num_sanity_val_steps=0).fit(Classifier(), *loaders())
    assert [epoch[0] for epoch in epochs] == [0, 0, 2, 2, 4, 4]
    assert [epoch[1] for epoch in epochs] == [0, 0, 0, 0, 4, 4]
    assert len({epoch[2] for epoch in epochs[:4]}) == 1
    assert ours.results.has_faithfulness
    assert "epoch 4" in ours.summary()


def test_validation_several_times_an_epoch(tmp_path):
    ours = callback()
    steps = []

    class Spy(Callback):
        def on_validation_end(self, trainer, pl_module):
            steps.append(ours.results.step)

    options = {"val_check_interval": 0.5, "max_epochs": 1, "num_sanity_val_steps": 0}
    trainer(tmp_path, [ours, Spy()], **options).fit(Classifier(), *loaders())
    assert len(set(steps)) == 2


def test_a_check_that_is_too_dear_is_skipped_and_says_so(tmp_path, caplog):
    ours = callback(faithfulness=AblationFaithfulness(max_overhead=1e-6))
    metrics = []

    class Spy(Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                keys = ("neuroimp/measured_epoch", "neuroimp/checked_epoch")
                metrics.append([float(trainer.callback_metrics[key]) for key in keys])
                summaries.append(ours.summary())

    summaries = []
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit = trainer(tmp_path, [ours, Spy()], max_epochs=4)
        fit.fit(Classifier(), *loaders())
    said = [message for message in caplog.messages if "skipped: it takes" in message]
    assert len(said) == 1
    assert "max_overhead=0% of the" in said[0]
    assert "AblationFaithfulness(max_overhead=None) never skips" in said[0]
    # the first and the last one are always made
    assert metrics == [[0, 0], [1, 0], [2, 0], [3, 3]]
    assert summaries[2].startswith("Note: this is the last check, of epoch 0. Epoch 2 was measured without one")
    assert "AblationFaithfulness(max_overhead=None) checks whatever it costs" in summaries[2]
    assert summaries[3] == ours.summary()
    assert ours.summary().startswith("neuroimp | epoch 3")


def test_the_cost_is_printed(tmp_path, caplog):
    ours = callback(clusters=KMeansClusters(3), faithfulness=AblationFaithfulness())
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer(tmp_path, [ours]).fit(Classifier(), *loaders())
    text = "\n".join(caplog.messages)
    assert (
        "NeuronImportance 'neuroimp', each validation run: 2 forward and 1 backward passes over at most 1024 samples; "
        "blockwise_gradient, at each layer: 1 forward pass, and 2 forward and backward passes of what follows the "
        "layer; "
        "ablation: at the layer 1 forward pass over at most 512 of them, and at most 138 of what follows the layer, "
        "skipped where that takes over 10% of the time since the last"
    ) in text
    assert "estimated from the sanity check: at most about" in text
    assert "first measurement took: survey" in text


def test_no_ablation(tmp_path):
    ours = callback(faithfulness=None, attribution="activation")
    fit = trainer(tmp_path, [ours])
    fit.fit(Classifier(), *loaders())
    keys = ["neuroimp/encoder.2/reliability", "neuroimp/encoder.2/stability", "neuroimp/measured_epoch"]
    assert [key for key in fit.callback_metrics if key != "val_loss"] == keys
    assert "  verdict" not in ours.summary()
    assert "top neurons" in ours.summary()


def test_metrics_can_be_monitored(tmp_path):
    settings = AblationFaithfulness(max_overhead=None, every_n_epochs=3)
    stop = EarlyStopping("neuroimp/encoder.2/gap", mode="max", patience=50)
    best = ModelCheckpoint(tmp_path, monitor="neuroimp/encoder.2/gap", mode="max")
    run = trainer(tmp_path, [stop, best, callback(faithfulness=settings)], max_epochs=4, enable_checkpointing=True)
    run.fit(Classifier(), *loaders())
    assert run.current_epoch == 4
    assert best.best_model_score is not None


def test_tensorboard_shows_every_epoch(tmp_path):
    ours = callback(name="labels", attribution=["gradient_x_activation", "gradient"])
    logger = TensorBoardLogger(tmp_path, name="run")
    trainer(tmp_path, [ours], logger=logger, max_epochs=3).fit(Classifier(), *loaders())
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0, "images": 0, "histograms": 0}).Reload()
    assert len(list(tmp_path.rglob("events.out*"))) == 1
    tags = events.Tags()
    steps = [3, 7, 11]
    histograms = [
        f"labels/encoder.2/{name}/importance/label_{label}" for name in ours.results.attributions for label in range(10)
    ]
    assert sorted(tags["histograms"]) == sorted(histograms)
    assert sorted(tags["images"]) == ["labels/encoder.2/agreement", "labels/encoder.2/deletion_curves"]
    assert [event.step for event in events.Images("labels/encoder.2/agreement")] == steps[1:]  # one epoch is no history
    for tag in histograms:
        assert [event.step for event in events.Histograms(tag)] == steps
    last = events.Histograms(histograms[0])[-1].histogram_value
    mean = ours.results["encoder.2"].mean[0]
    assert last.num == 16
    assert (last.min, last.max) == (pytest.approx(mean.min()), pytest.approx(mean.max()))
    assert [event.step for event in events.Images("labels/encoder.2/deletion_curves")] == steps
    texts = events.Tensors("labels/summary/text_summary")
    assert [event.step for event in texts] == steps
    assert "| label 3" in texts[-1].tensor_proto.string_val[0].decode()
    for tag in ("labels/encoder.2/gradient/gap", "labels_clusters/encoder.2/gradient/gap/label_3", "val_loss"):
        assert [event.step for event in events.Scalars(tag)] == steps, tag


def test_any_other_logger_gets_the_scalars(tmp_path):
    ours = callback()
    logger = CSVLogger(tmp_path, name="csv")
    trainer(tmp_path, [ours], logger=[logger]).fit(Classifier(), *loaders())
    content = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    for key in (
        "neuroimp/encoder.2/gap",
        "neuroimp_clusters/encoder.2/gap/label_0",
        "neuroimp_clusters/size/label_0",
    ):
        assert key in content.splitlines()[0]


def test_one_results_file_a_measured_epoch(tmp_path):
    ours = callback(name="mine")
    logger = CSVLogger(tmp_path, name="csv")
    trainer(tmp_path, [ours], logger=logger).fit(Classifier(), *loaders())
    files = sorted((tmp_path / "csv" / "version_0" / "neuroimp" / "mine").iterdir())
    assert [file.name for file in files] == ["epoch=0000-step=0000003.npz", "epoch=0001-step=0000007.npz"]
    loaded = Results.load(files[-1])
    np.testing.assert_array_equal(loaded["encoder.2"].mean, ours.results["encoder.2"].mean)


def test_files_only_where_they_are_wanted(tmp_path):
    quiet = trainer(tmp_path, [callback()])
    quiet.fit(Classifier(), *loaders())
    assert not list(tmp_path.rglob("*.npz"))
    trainer(tmp_path, [callback(results_dir=tmp_path / "kept")]).fit(Classifier(), *loaders())
    assert len(list((tmp_path / "kept" / "neuroimp").iterdir())) == 2
    fast = trainer(tmp_path / "fast", [ours := callback()], fast_dev_run=True, logger=True)
    fast.fit(Classifier(), *loaders())
    assert ours.results.epoch == 0
    assert not list(tmp_path.glob("fast/**/*.npz"))


def test_the_same_probe_samples_in_every_epoch(tmp_path):
    seen = []

    class Spy(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(ours.results.sample_index)

    ours = callback(max_samples=100, clusters=KMeansClusters(4))
    x, y = loaders()[1].dataset.tensors
    shuffled = DataLoader(TensorDataset(x, y), 64, shuffle=True)
    with pytest.warns(UserWarning, match="shuffling enabled"):
        trainer(tmp_path, [ours, Spy()], num_sanity_val_steps=0).fit(Classifier(), loaders()[0], shuffled)
    assert len(seen[0]) == 100
    assert np.array_equal(seen[0], seen[1])
    assert 0 < ours.results.clusters.adjusted_rand_index <= 1


def test_streams_several_loaders_and_limits(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            x, y = loaders()[1].dataset.tensors
            yield from zip(x, y, strict=True)

    ours = callback()
    several = [DataLoader(Stream(), 50), loaders()[1]]

    class Several(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            self(batch[0])

    trainer(tmp_path, [ours], limit_val_batches=3).fit(Several(), loaders()[0], several)
    first, second = ours.results.sample_index < 2**40, ours.results.sample_index >= 2**40
    assert (first.sum(), second.sum()) == (150, 192)


class Mapping(Classifier):
    """Takes its validation batches apart."""

    def __init__(self, key="y"):
        super().__init__()
        self.key = key

    def validation_step(self, batch, batch_idx):
        batch.pop(self.key)
        self(batch["x"])


def mapping_loader(key="y", n_val=320):
    x, y = loaders(n_val=n_val)[1].dataset.tensors
    return DataLoader([{"x": a, key: b, "number": n} for n, (a, b) in enumerate(zip(x, y, strict=True))], 64)


def test_mappings_need_no_forward_fn(tmp_path):
    ours, plain = callback(), callback()
    trainer(tmp_path, [ours]).fit(Mapping(), loaders()[0], mapping_loader())
    torch.manual_seed(0)
    trainer(tmp_path, [plain]).fit(Classifier(), *loaders())
    assert len(ours.results.sample_index) == 320
    np.testing.assert_array_equal(ours.results.sample_index, plain.results.sample_index)


def test_forward_fn_for_other_batches(tmp_path):
    ours = callback(forward_fn=lambda module, batch: (module(batch["x"]), batch["answer"]))
    trainer(tmp_path, [ours]).fit(Mapping("answer"), loaders()[0], mapping_loader("answer"))
    assert len(ours.results.sample_index) == 320
    with pytest.raises(MisconfigurationException, match=r"'neuroimp': cannot tell inputs from targets.*forward_fn="):
        trainer(tmp_path, [callback()]).fit(Mapping("answer"), loaders()[0], mapping_loader("answer"))


def tags(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return accumulator, accumulator.Tags()


def test_all_options_of_samples_and_clusters_reach_the_measurement(tmp_path):
    names = [f"digit {number}" for number in range(10)]
    described = []

    def describe(sample):
        described.append(sample)
        return f"number {sample['number']}"

    ours = callback(
        layers=["encoder.2", Site("head", side="input")],
        clusters={"digit 1": "straight", 4: "straight", 7: "straight", 0: "round"},
        class_names=names,
        classes=[0, 1, 4, 7],
        baseline="resample",
        target_class=4,
        stratify=True,
        groups=lambda batch: batch["number"] // 4,
        max_samples=100,
        describe_sample=describe,
    )
    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, [ours], logger=logger).fit(Mapping(), loaders()[0], mapping_loader())
    results = ours.results
    assert results.sites == ("encoder.2", "head (input)")
    assert results.clusters.names == ("straight", "round")
    labels = np.bincount(results.sample_label, minlength=10)
    assert labels.sum() == 100
    assert set(np.flatnonzero(labels).tolist()) == {0, 1, 4, 7}
    assert labels[[0, 1, 4, 7]].min() >= 24
    assert (results.sample_target == 4).all()
    assert {one.removal.baseline for one in results.importances} == {"resample"}
    halves = {}
    for sample, half in zip(results.sample_index.tolist(), results.sample_half.tolist(), strict=True):
        halves.setdefault(sample // 4, set()).add(half)
    assert max(map(len, halves.values())) == 1
    assert described
    assert all(sample["x"].shape == (64,) for sample in described)
    accumulator, found = tags(logger.log_dir)
    text = accumulator.Tensors("neuroimp/samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "number" in text
    assert "round" in text
    assert "encoder.2: samples that drive top neurons most" in text
    assert not [tag for tag in found["images"] if "exemplars" in tag]


def test_pictures_of_samples_are_logged(tmp_path):
    class Images(Classifier):
        def forward(self, x):
            return super().forward(x.flatten(1))

    train, val = loaders()
    images = [
        DataLoader(TensorDataset(loader.dataset.tensors[0].reshape(-1, 1, 8, 8), loader.dataset.tensors[1]), 64)
        for loader in (train, val)
    ]
    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, [callback(clusters=KMeansClusters(3))], logger=logger).fit(Images(), *images)
    accumulator, found = tags(logger.log_dir)
    for tag in ("neuroimp/exemplars", "neuroimp/encoder.2/top_neurons"):
        assert tag in found["images"]
        assert len(accumulator.Images(tag)) == 2
    assert "neuroimp/samples/text_summary" not in found["tensors"]


def memory_for(most, kind=torch.OutOfMemoryError, message="CUDA out of memory. Tried to allocate 2 GiB."):
    """A forward that runs out of memory with more samples than so many."""
    seen = []

    def forward(module, batch):
        seen.append(len(batch[0]))
        if len(batch[0]) > most:
            raise kind(message)
        return module(batch[0]), batch[1]

    return forward, seen


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB."),
        (RuntimeError, "[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory: you tried"),
        (MemoryError, "Unable to allocate 3 GiB for an array"),
    ],
)
def test_passes_get_smaller_when_memory_runs_out(tmp_path, kind, message):
    forward, seen = memory_for(20, kind, message)
    ours, small = callback(forward_fn=forward), callback(batch_size=16)
    with pytest.warns(UserWarning, match="memory ran out in passes of") as warned:
        trainer(tmp_path, [ours]).fit(Classifier(), *loaders())
    told = [str(one.message) for one in warned if "memory ran out" in str(one.message)]
    assert [line.split("memory ran out ")[1][:45] for line in told] == [
        "in passes of 64 samples; passes take 32 from ",
        "in passes of 32 samples; passes take 16 from ",
    ]  # and not again in the second epoch
    # the rehearsal, and the measurement, each after two passes over few samples
    assert [n_samples for n_samples in seen if n_samples > 6][:4] == [64, 64, 32, 16]
    torch.manual_seed(0)
    trainer(tmp_path, [small], max_epochs=1).fit(Classifier(), *loaders())
    assert ours.results["encoder.2"].faithfulness is not None
    assert ours.results["encoder.2"].mean.shape == small.results["encoder.2"].mean.shape


def test_memory_that_runs_out_for_one_sample_leaves_training_alone(tmp_path):
    forward, seen = memory_for(0)
    model = Classifier()
    with pytest.warns(UserWarning, match="memory ran out") as warned:
        trainer(tmp_path, [callback(forward_fn=forward, name="one")], max_epochs=1).fit(model, *loaders())
    last = str(warned[-1].message)
    assert (
        "has no measurement of epoch 0; training goes on. MeasurementFailed: memory ran out with 2 samples in" in last
    )
    assert "explain fewer layers in one callback" in last
    assert seen == [6, 6, 6, 6, 6, 4, 2]  # the rehearsal, and passes of 64 to 2: the loader had no batch of one
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_sharded_weights_are_refused(tmp_path, kind, monkeypatch):
    run = trainer(tmp_path, [callback()])
    strategy = type(kind, (type(run.strategy),), {"zero_stage_3": True})
    monkeypatch.setattr(run.strategy, "__class__", strategy)
    with pytest.raises(MisconfigurationException, match=rf"does not work with {kind}, .*whole weights.*strategy='ddp'"):
        run.fit(Classifier(), *loaders())


def test_a_failing_describe_sample_loses_the_pictures_only(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    ours = callback(describe_sample=lambda sample: 3)
    with pytest.warns(UserWarning, match=r"could not write .*describe_sample must return text, or a picture"):
        trainer(tmp_path, [ours], logger=logger).fit(Classifier(), *loaders())
    assert ours.results.epoch == 1
    assert len(list(tmp_path.rglob("*.npz"))) == 2
    _, found = tags(logger.log_dir)
    assert "neuroimp/summary/text_summary" in found["tensors"]
    assert "neuroimp/encoder.2/deletion_curves" in found["images"]


def test_names_are_no_formulas_and_describing_does_not_draw(tmp_path):
    names = ["$_$", "a$b", "<b>", "|", "*x*", "\\frac", "7", "8", "9", "10"]
    logger = TensorBoardLogger(tmp_path)

    def describe(sample):
        torch.rand(3), np.random.rand(3)
        return torch.rand(4, 4)

    def drawing(batch):
        torch.rand(3)
        return batch[1]

    states = []
    for options in ({}, {"describe_sample": describe, "class_names": names, "stratify": drawing}):
        torch.manual_seed(5)
        trainer(tmp_path, [callback(**options)], logger=logger).fit(Classifier(), *loaders())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert "neuroimp/exemplars" in tags(logger.log_dir)[1]["images"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([_Failure("a", False, True), 1, _Failure("b", False, True)], PeerOutOfMemoryError),
        ([_Failure("a", False, True), _Failure("b", False, False)], PeerFailedError),
        ([_Failure("a", True, False), _Failure("b", False, False)], PeerFailedError),
        ([_Failure("a", True, False), _Failure("b", False, True)], PeerOutOfMemoryError),
        ([1, _Failure("a", True, False)], PeerMistakenError),
    ],
)
def test_processes_that_fail_in_different_ways_agree(values, kind):
    found = _worst(values)
    assert type(found) is kind
    assert out_of_memory(found) == (kind is PeerOutOfMemoryError)
    assert _worst([1, 2]) is None


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA out of memory."), True),
        (PeerFailedError("on process 1: OSError: CUDA out of memory"), False),
        (OSError("CUDA out of memory"), False),
        (RuntimeError(3), False),
    ],
)
def test_what_is_running_out_of_memory(error, memory):
    assert out_of_memory(error) is memory


class NoForward(pl.LightningModule):
    """Calls its network in its steps only."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.encoder(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.encoder(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_the_remedy_for_a_module_without_forward(tmp_path):
    ours = callback(layers="encoder.1", forward_fn=lambda module, batch: (module.encoder(batch[0]), batch[1]))
    trainer(tmp_path, [ours]).fit(NoForward(), *loaders())
    assert ours.results.has_faithfulness


class Broken(Classifier):
    """A model that something is wrong with."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        logits = super().forward(x)
        if self.how == "probabilities" and not self.training:
            return logits.softmax(1)
        if self.how == "nan" and not self.training:
            return logits * torch.nan
        if self.how == "regression" and not self.training:
            return logits[:, :1]
        return logits

    def validation_step(self, batch, batch_idx):
        self(batch[0])


@pytest.mark.parametrize(
    ("model", "options", "phrase"),
    [
        (Broken("probabilities"), {}, "look like probabilities"),
        (Broken("regression"), {}, "one number per sample.*regression output has no classes"),
        (Classifier(), {"clusters": lambda batch: batch[1] / 3}, "one integer or string for each"),
        (Classifier(), {"layers": ["head", "encoder"], "target": lambda f, y: f}, "one scalar per sample"),
        (Classifier(), {"max_bytes": 10}, "more than max_bytes=10"),
        (
            NoForward(),
            {"layers": "encoder.1"},
            r"NoForward defines no forward\(\).*pass forward_fn=lambda module, batch",
        ),
        (Classifier(), {"forward_fn": lambda batch: batch}, "TypeError: .*positional argument"),
        (Classifier(), {"forward_fn": lambda module, batch: batch["x"]}, "TypeError: "),
        (Classifier(), {"attribution": lambda batch: batch.nothing}, "AttributeError: .*nothing"),
        (Classifier(), {"attribution": lambda batch: batch.activation[:1]}, "must return a tensor of one score per"),
    ],
)
def test_mistakes_stop_at_the_first_measurement(tmp_path, model, options, phrase):
    with pytest.raises(MisconfigurationException, match=phrase) as error:
        trainer(tmp_path, [callback(**options)]).fit(model, *loaders())
    assert "NeuronImportance 'neuroimp': " in str(error.value)


def test_a_mistake_that_only_the_whole_probe_set_shows_stops_after_the_epoch(tmp_path):
    run = trainer(tmp_path, [callback(clusters=KMeansClusters(900))])
    with pytest.warns(UserWarning, match="n_clusters=900 is more than the 320 probe samples.*stops before its next"):
        with pytest.raises(MisconfigurationException, match="n_clusters=900 is more than the 320 probe samples"):
            run.fit(Classifier(), *loaders())
    assert run.current_epoch == 1


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"clusters": "kmeans"}, "clusters must be 'labels', 'predictions', .*, KMeansClusters"),
        ({"clusters": KMeansClusters}, "clusters must be 'labels', 'predictions', .*, KMeansClusters"),
        ({"attribution": "saliency"}, r"attribution must be among \['activation', .*got 'saliency'"),
        ({"attribution": []}, "attribution is empty"),
        ({"attribution": ["gradient", "gradient"]}, "attributions must have different names"),
        ({"target": "loss"}, "target must be 'margin', 'logit', .* or a callable"),
        (
            {"baseline": "median"},
            "baseline must be 'zero', 'mean', 'resample', 'optimal', .*got 'median'; did you mean",
        ),
        ({"max_samples": 0}, "max_samples must be at least 1, got 0"),
        ({"max_bytes": 0}, "max_bytes must be at least 1, got 0"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"name": "a/b"}, "name must be of letters, digits"),
        ({"on_error": "ignore"}, "on_error must be 'warn' or 'raise', got 'ignore'"),
    ],
)
def test_arguments_are_checked_at_once(options, phrase):
    with pytest.raises(MisconfigurationException, match=phrase):
        callback(**options)


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"n_random": 9}, "n_random must be at least 19, got 9"),
        ({"fractions": (0.0, 0.5)}, "each of fractions must be a number above 0 and up to 1, got 0.0"),
        ({"fractions": ()}, "fractions must be numbers"),
        ({"max_samples": 0}, "max_samples must be at least 1"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1"),
        ({"max_overhead": 0.0}, "max_overhead, where it is not None, must be a number above 0, got 0.0"),
    ],
)
def test_settings_are_checked_at_once(options, phrase):
    with pytest.raises(ValueError, match=phrase):
        AblationFaithfulness(**options)


def test_settings_from_lists_as_files_give_them():
    assert AblationFaithfulness(fractions=[0.1, 0.5]).fractions == (0.1, 0.5)


def test_mistakes_that_setup_finds(tmp_path):
    with pytest.raises(MisconfigurationException, match="no layer 'encoder.9' in Classifier: did you mean"):
        trainer(tmp_path, [callback(layers="encoder.9")]).fit(Classifier(), *loaders())
    with pytest.raises(RuntimeError, match=r"Found more than one stateful callback of type `NeuronImportance`"):
        trainer(tmp_path, [callback(), callback()])  # Lightning's own check

    class Bringing(Classifier):
        def configure_callbacks(self):
            return [callback(), callback()]

    with pytest.raises(MisconfigurationException, match="two NeuronImportance callbacks are named 'neuroimp'"):
        trainer(tmp_path, []).fit(Bringing(), *loaders())
    with (
        pytest.warns(UserWarning, match="have no `val_dataloader`"),
        pytest.raises(MisconfigurationException, match="there is no validation loader .* pass val_dataloaders"),
    ):
        trainer(tmp_path, [callback()]).fit(Classifier(), loaders()[0])
    with pytest.warns(UserWarning, match="does nothing: limit_val_batches=0 turns validation off"):
        trainer(tmp_path, [callback()], limit_val_batches=0).fit(Classifier(), *loaders())


def test_a_model_that_diverged_does_not_stop_the_training(tmp_path):
    model = Broken("nan")
    ours = callback()
    run = trainer(tmp_path, [ours])
    with pytest.warns(UserWarning) as warnings:
        run.fit(model, *loaders())
    said = [str(warning.message) for warning in warnings if "no measurement" in str(warning.message)]
    for epoch, message in enumerate(said):
        assert f"no measurement of epoch {epoch}; training goes on. NonFiniteOutputs: the model's" in message
    assert len(said) == 2
    assert run.current_epoch == 2
    assert ours.summary() == "neuroimp: nothing measured yet"
    with pytest.raises(MeasurementFailed) as caught:
        _ = ours.results
    assert "'neuroimp' has measured nothing yet: the measurement of epoch 1 failed with NonFinite" in str(caught.value)
    assert "run trainer.fit() first" not in str(caught.value)


def test_results_name_the_mistake_that_stopped_the_run(tmp_path):
    ours = callback(clusters=lambda batch: [0])
    with pytest.raises(MeasurementFailed, match=r"measured nothing yet: run trainer.fit\(\) first"):
        _ = ours.results
    for sanity, how in ((2, "the run was ended by Misconf"), (0, "the measurement of epoch 0 failed with Invalid")):
        with pytest.raises(MisconfigurationException), warnings.catch_warnings(action="ignore"):
            trainer(tmp_path, [ours], num_sanity_val_steps=sanity).fit(Classifier(), *loaders())
        with pytest.raises(MeasurementFailed) as caught:
            _ = ours.results
        for phrase in ("'neuroimp' has measured nothing yet", how, "the clusters callable must return"):
            assert phrase in str(caught.value)
    ours.clusters = "labels"
    trainer(tmp_path, [ours], max_epochs=1).fit(Classifier(), *loaders())
    assert ours.results.epoch == 0


def test_on_error(tmp_path):
    def failing(batch):
        raise RuntimeError("injected")

    run = trainer(tmp_path, [callback(attribution=failing)])
    with pytest.warns(UserWarning) as warnings:
        run.fit(Classifier(), *loaders())
    assert sum("training goes on. RuntimeError: injected" in str(warning.message) for warning in warnings) == 2
    assert run.current_epoch == 2
    with pytest.raises(RuntimeError, match="injected"):
        trainer(tmp_path, [callback(attribution=failing, on_error="raise")]).fit(Classifier(), *loaders())


def test_a_later_failure_keeps_the_last_values(tmp_path):
    calls = []

    def sometimes(batch):
        calls.append(1)
        if len(calls) > 6:  # one batch in the rehearsal, five in a measurement
            raise ValueError("later")
        return batch.sum_positions(batch.deviation * batch.gradient)

    run = trainer(tmp_path, [callback(attribution=sometimes)])
    with pytest.warns(
        UserWarning,
        match="no measurement of epoch 1; training goes on. InvalidArgument: .* failed with ValueError",
    ):
        run.fit(Classifier(), *loaders())
    assert float(run.callback_metrics["neuroimp/measured_epoch"]) == 0
    assert np.isfinite(float(run.callback_metrics["neuroimp/encoder.2/gap"]))


def test_a_failed_write_says_what_failed(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    ours = callback(results_dir=blocked)
    run = trainer(tmp_path, [ours], max_epochs=1)
    with pytest.warns(UserWarning, match="could not write its measurement of epoch 0; training goes on"):
        run.fit(Classifier(), *loaders())
    assert float(run.callback_metrics["neuroimp/measured_epoch"]) == 0
    assert ours.results.has_faithfulness


def test_values_of_an_earlier_run_are_not_logged_again(tmp_path):
    ours = callback()
    trainer(tmp_path, [ours]).fit(Classifier(), *loaders())
    run = trainer(tmp_path, [ours], max_epochs=1)
    with pytest.warns(UserWarning, match="no measurement of epoch 0"):
        run.fit(Broken("nan"), *loaders())
    assert float(run.callback_metrics["neuroimp/measured_epoch"]) == -1
    assert float(run.callback_metrics["neuroimp/encoder.2/gap"]) == 0


def test_cluster_ids_go_on_with_the_same_data_and_only_with_it(tmp_path):
    ours = callback(clusters=KMeansClusters(4))
    model, (train, val) = Classifier(), loaders()
    trainer(tmp_path, [ours]).fit(model, train, val)
    ids = ours.results.clusters.ids.tolist()
    trainer(tmp_path, [ours]).validate(model, val, verbose=False)
    assert ours.results.clusters.ids.tolist() == ids
    assert ours.results.clusters.adjusted_rand_index == 1
    x, y = val.dataset.tensors
    trainer(tmp_path, [ours]).validate(model, DataLoader(TensorDataset(x.flip(0), y.flip(0)), 64), verbose=False)
    assert ours.results.clusters.ids.tolist() == [0, 1, 2, 3]
    assert np.isnan(ours.results.clusters.adjusted_rand_index)


def test_layers_that_the_module_makes_late(tmp_path):
    class Late(Classifier):
        def __init__(self):
            super().__init__()
            self.encoder = None

        def configure_model(self):
            if self.encoder is None:
                self.encoder = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Tanh())

    ours = callback()
    trainer(tmp_path, [ours]).fit(Late(), *loaders())
    assert ours.results["encoder.2"].mean.shape == (10, 16)


def test_a_model_that_works_in_place_on_its_inputs(tmp_path):
    class InPlace(Classifier):
        def forward(self, x):
            return super().forward(x.sub_(0.1))

        def validation_step(self, batch, batch_idx):
            self(batch[0].clone())

    class Spy(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.extend([] if trainer.sanity_checking else [ours._run.collector.probe])

    ours, seen = callback(), []
    model = InPlace()
    run = trainer(tmp_path, [ours, Spy()], max_epochs=2)
    run.fit(model, *loaders())
    assert seen
    for probe in seen:
        batch, index = next(iter(probe.batches(320)))
        x, _ = loaders()[1].dataset.tensors
        assert torch.equal(batch[0], x[index])
    assert ours._run.collector.probe is None  # given back at the end


def test_loggers_without_a_folder_of_the_run(tmp_path):
    class Other(Logger):
        name, version, save_dir = "project", "abc", str(tmp_path)

        def log_metrics(self, metrics, step=None):
            self.last = metrics

        def log_hyperparams(self, params):
            pass

    logger = Other()
    trainer(tmp_path, [callback()], logger=logger, max_epochs=1).fit(Classifier(), *loaders())
    assert len(list((tmp_path / "project" / "abc" / "neuroimp" / "neuroimp").iterdir())) == 1
    assert "neuroimp/encoder.2/gap" in logger.last


def test_weight_averaging_does_not_change_which_weights_are_explained(tmp_path):
    """Another callback that swaps weights in its epoch end comes after ours, wherever it stands in the list."""

    class Swap(Callback):
        def on_validation_epoch_start(self, trainer, pl_module):
            self.kept = pl_module.head.weight.detach().clone()
            with torch.no_grad():
                pl_module.head.weight.zero_()

        def on_validation_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.head.weight.copy_(self.kept)

    ours = callback()
    trainer(tmp_path, [Swap(), ours], num_sanity_val_steps=0).fit(Classifier(), *loaders())
    assert np.abs(ours.results["encoder.2"].mean).max() == 0  # the head that was validated is zero


def test_mixed_precision_explains_the_model_as_it_was_validated(tmp_path):
    dtypes = []

    class Half(Classifier):
        def forward(self, x):
            logits = super().forward(x)
            dtypes.append(logits.dtype)
            return logits

    ours = callback(baseline="mean")
    run = trainer(tmp_path, [ours], precision="bf16-mixed")
    run.fit(Half(), *loaders())
    assert set(dtypes) == {torch.bfloat16}
    assert np.isfinite(ours.results["encoder.2"].mean).all()


def test_a_convolutional_module_with_channels(tmp_path):
    class Conv(Classifier):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Flatten()
            )
            self.head = nn.Linear(6 * 36, 10)

    ours = callback(layers="encoder.*", baseline="mean")
    trainer(tmp_path, [ours]).fit(Conv(), *loaders())
    assert ours.results["encoder.2"].mean.shape == (10, 6)
    assert ours.results["encoder.3"].mean.shape == (10, 216)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's use of jsonargparse
def test_the_command_line_can_set_it(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    arguments = [
        "--trainer.callbacks+=lightning_neuroimp.NeuronImportance",
        "--trainer.callbacks.layers=encoder.2",
        "--trainer.callbacks.clusters=lightning_neuroimp.KMeansClusters",
        "--trainer.callbacks.clusters.n_clusters=5",
        "--trainer.callbacks.faithfulness.n_random=39",
        "--trainer.callbacks.faithfulness.fractions=[0.1,0.5]",
    ]
    monkeypatch.setattr("sys.argv", ["program"])
    cli = LightningCLI(Classifier, run=False, args=arguments, save_config_callback=None, seed_everything_default=False)
    (ours,) = [one for one in cli.trainer.callbacks if type(one).__name__ == "NeuronImportance"]
    assert ours.layers == "encoder.2"
    assert ours.clusters == KMeansClusters(5)
    assert ours.faithfulness == AblationFaithfulness(n_random=39, fractions=(0.1, 0.5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("masked_gradient(points=2)", ["masked_gradient(points=2)"]),
        ("{class_path: lightning_neuroimp.MaskedGradient, init_args: {points: 2}}", ["masked_gradient(points=2)"]),
        (
            "[gradient, {class_path: lightning_neuroimp.BlockwiseGradient, init_args: {blocks: 4}}, "
            "'progressive_gradient(fractions=[.1, .5])']",
            ["gradient", "blockwise_gradient(blocks=4)", "progressive_gradient(fractions=(0.1, 0.5))"],
        ),
        ("[captum.attr.DeepLift, 'shapley(permutations=2)']", ["captum.attr.DeepLift", "shapley(permutations=2)"]),
    ],
)
def test_scores_with_options_in_yaml(tmp_path, monkeypatch, written, names):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n  logger: false\n  callbacks:\n  - class_path: lightning_neuroimp.NeuronImportance\n"
        f"    init_args: {{layers: encoder.2, attribution: {written}}}\n"
    )
    monkeypatch.setattr("sys.argv", ["program"])
    arguments = ["--config", str(config)]
    cli = LightningCLI(Classifier, run=False, args=arguments, save_config_callback=None, seed_everything_default=False)
    (ours,) = [one for one in cli.trainer.callbacks if type(one).__name__ == "NeuronImportance"]
    assert [score.name for score in ours._options.settings.attributions] == names


def test_header_of_the_results_is_plain_json(tmp_path):
    ours = callback(results_dir=tmp_path)
    trainer(tmp_path, [ours], max_epochs=1).fit(Classifier(), *loaders())
    (file,) = (tmp_path / "neuroimp").iterdir()
    with np.load(file, allow_pickle=False) as content:
        tree = json.loads(content["header"].tobytes())
    assert tree["results"]["class"] == "Results"


def test_it_is_a_lightning_callback():
    assert issubclass(NeuronImportance, pl.Callback)


@pytest.mark.parametrize("kind", ["rich", "tqdm"])
def test_progress_beside_the_trainers_bar(tmp_path, kind, capfd):
    from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

    bar = RichProgressBar() if kind == "rich" else TQDMProgressBar()
    trainer(tmp_path, [callback(), bar], enable_progress_bar=True, max_epochs=1).fit(Classifier(), *loaders())
    shown = "".join(capfd.readouterr())
    assert "first measurement took: importance" in shown
    assert "Epoch 0" in shown
    if kind == "tqdm":
        assert "ablation:" in shown
