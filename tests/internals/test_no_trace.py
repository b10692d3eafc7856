"""A training with the callback is bit for bit the training without it: of every kind, and whatever fails."""

import errno
import functools
import os
import re
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, NeuronImportance, Results
from tests.support.training_variants import FIT, fitted, monitors

pytestmark = [
    # the type checker draws from Python's random generator
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*overfit_batches"),
    pytest.mark.filterwarnings("ignore:You requested to overfit"),
    pytest.mark.filterwarnings("ignore:Swapping scheduler"),
    pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU"),
    pytest.mark.filterwarnings("ignore:.*each ablation runs the whole network"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__`"),
]

CHECK = AblationFaithfulness(max_overhead=None, fractions=(0.1, 0.5))


def ours(**options):
    defaults = {"layers": ["encoder.0", "encoder.2"], "faithfulness": CHECK, "max_samples": 128}
    return NeuronImportance(**(defaults | {"name": "ours"} | options))


def pair():
    """All passes that there are."""
    scores = ["gradient_x_activation", "activation", "random"]
    return [ours(attribution=scores), ours(name="ours2", clusters=KMeansClusters(3), baseline="mean")]


@functools.lru_cache
def without(variant, folder, stage="fit"):
    return fitted(variant, [], folder, stage)[2]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("without")


def same(found, expected):
    for part, value in expected.items():
        assert found[part] == value, part


@pytest.mark.parametrize("variant", FIT)
def test_training_is_identical(variant, folder, tmp_path):
    layers = ["encoder._orig_mod.2"] if variant == "compiled layers" else ["encoder.0", "encoder.2"]
    callbacks = pair()
    for one in callbacks:
        one.layers = layers
    run, _, found = fitted(variant, callbacks, tmp_path)
    same(found, without(variant, folder))
    assert float(run.callback_metrics["ours/measured_epoch"]) >= 0
    for one in callbacks:
        assert one.results.has_faithfulness
        assert all(np.isfinite(each.mean).all() for each in one.results.importances)


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize(
    "variant", ["plain", "a norm in evaluation mode", "a hidden state", "dropout on in validation"]
)
def test_other_stages_are_identical(variant, stage, folder, tmp_path):
    callbacks = pair()
    same(fitted(variant, callbacks, tmp_path, stage)[2], without(variant, folder, stage))
    assert (callbacks[0]._run.results is None) == (stage == "test")


def test_the_comparison_can_fail(folder, tmp_path):
    assert (
        without("plain", folder)["weights and buffers"] != without("gradient clipping", folder)["weights and buffers"]
    )
    noisy = ours(attribution=lambda batch: batch.activation * torch.rand(1))
    assert fitted("plain", [noisy], tmp_path)[2]["random states"] == without("plain", folder)["random states"]

    class Careless(NeuronImportance):
        def on_validation_epoch_end(self, trainer, pl_module):
            torch.rand(1)

    found = fitted("plain", [Careless("encoder.2")], tmp_path)[2]
    assert found["random states"] != without("plain", folder)["random states"]
    assert found["weights and buffers"] != without("plain", folder)["weights and buffers"]


def logged(path):
    return [TensorBoardLogger(path, name="tb"), CSVLogger(path, name="csv")]


FAULTS = {
    **{f"call {number} of the model": ("forward", number) for number in (1, 3, 4, 5, 8)},
    "the probe set": "lightning_neuroimp.batches.probe.ProbeSampler.add",
    "KMeans": "sklearn.cluster.KMeans.fit",
    "identities of clusters": "lightning_neuroimp.study.importance.keep_identities",
    "scores": "lightning_neuroimp.importance.scoring.ImportancePass.run",
    "moments": "lightning_neuroimp.importance.moments.CellMoments.means",
    "the judge": "lightning_neuroimp.ablation.judge.Judge.faithfulness",
    "intervals": "lightning_neuroimp.statistics.bootstrap_interval",
    "false discoveries": "lightning_neuroimp.study.ablation.false_discovery",
    "findings": "lightning_neuroimp.callbacks.measuring.diagnose",
    "the folder": "lightning_neuroimp.callbacks.publishing.log_folder",
    "the results file": "lightning_neuroimp.results.files._content",
    "the file's name": "lightning_neuroimp.results.files._claim",
    "scalars": "lightning_neuroimp.callbacks.publishing.cluster_scalars",
    "histograms": "torch.utils.tensorboard.SummaryWriter.add_histogram",
    "text": "torch.utils.tensorboard.SummaryWriter.add_text",
    "pictures": "torch.utils.tensorboard.SummaryWriter.add_image",
    "a figure": "lightning_neuroimp.display.tensorboard.summaries.deletion_figure",
    "drawing": "lightning_neuroimp.display.tensorboard.summaries.to_image",
    "samples": "lightning_neuroimp.callbacks.publishing.describe_samples",
}
AFTER_THE_MEASUREMENT = list(FAULTS)[list(FAULTS).index("the folder") :]


class Calls:
    """A forward_fn that fails from one of its calls on."""

    def __init__(self, number, error):
        self.left, self.error = number, error

    def __call__(self, module, batch):
        self.left -= 1
        if self.left <= 0:
            raise self.error
        return module(batch[0]), batch[1]


def broken(fault, error, monkeypatch, tmp_path, **options):
    """A run with a fault in it, in each measurement or once."""
    where = FAULTS[fault]
    if isinstance(where, tuple):
        options["forward_fn"] = Calls(where[1], error)
    else:

        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(where, fail)
    clusters = {"clusters": KMeansClusters(3)} if fault in ("KMeans", "identities of clusters") else {}
    callback = ours(**(clusters | options))
    # loggers where they are what fails: pictures take time
    loggers = logged(tmp_path) if fault in AFTER_THE_MEASUREMENT else False
    return callback, lambda: fitted("plain", [callback], tmp_path, logger=loggers, max_epochs=2)


def no_half_files(path):
    for root, _, names in os.walk(path):
        for name in names:
            assert not name.startswith("."), name
            if name.endswith(".npz"):
                Results.load(os.path.join(root, name))


@pytest.fixture(scope="session")
def with_loggers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loggers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fitted("plain", [], folder, logger=logged(folder), max_epochs=2)[2]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        *((fault, RuntimeError("injected")) for fault in FAULTS),
        *(
            (fault, OSError(errno.ENOSPC, "No space left on device"))
            for fault in ("the folder", "the file's name", "text")
        ),
    ],
)
def test_training_goes_on_whatever_fails(fault, error, monkeypatch, with_loggers, tmp_path):
    callback, fit = broken(fault, error, monkeypatch, tmp_path)
    with pytest.warns(UserWarning) as said:
        run, _, found = fit()
    said = [str(one.message) for one in said if "training goes on" in str(one.message)]
    assert said
    assert all(f"{type(error).__name__}: {error}" in text for text in said)
    same(found, with_loggers)
    no_half_files(tmp_path)
    if fault in AFTER_THE_MEASUREMENT:
        assert callback.results.has_faithfulness
        assert float(run.callback_metrics["ours/measured_epoch"]) == 1
    else:
        assert callback.summary() == "ours: nothing measured yet"
        ours = {key: float(value) for key, value in run.callback_metrics.items() if key.startswith("ours/")}
        assert ours["ours/measured_epoch"] == ours["ours/checked_epoch"] == -1
        assert ours["ours/encoder.2/gap"] == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_on_request_it_stops_and_is_clean(fault, monkeypatch, tmp_path):
    _, fit = broken(fault, RuntimeError("injected"), monkeypatch, tmp_path, on_error="raise")
    kept = spied(monkeypatch)
    with pytest.raises(RuntimeError, match="injected"):
        fit()
    clean(kept, tmp_path)


@pytest.mark.parametrize("fault", ["call 3 of the model", "KMeans", "the judge", "the file's name", "drawing"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_nothing(fault, error, monkeypatch, tmp_path):
    _, fit = broken(fault, error(), monkeypatch, tmp_path)
    kept = spied(monkeypatch)
    with pytest.raises(BaseException) as stopped:
        fit()
    assert stopped.type in (KeyboardInterrupt, SystemExit)
    clean(kept, tmp_path)


def spied(monkeypatch):
    """The model as it was when the measurement, or its rehearsal, began."""
    from tests.support.training_variants import left_behind

    kept = []

    def spied_on(begin):
        def spy(self, trainer, pl_module):
            kept[:] = [trainer, pl_module, left_behind(trainer, pl_module)]
            return begin(self, trainer, pl_module)

        return spy

    for name in ("on_sanity_check_end", "on_validation_epoch_end"):
        monkeypatch.setattr(NeuronImportance, name, spied_on(getattr(NeuronImportance, name)))
    return kept


def clean(kept, path):
    """The model is as it was, but for what Lightning itself does when a run ends."""
    from tests.support.training_variants import left_behind

    run, model, before = kept
    after = left_behind(run, model)
    for part in (
        "weights and buffers",
        "gradients",
        "frozen",
        "hooks",
        "attributes",
        "metric of the module",
        "random states",
    ):
        assert after[part] == before[part], part
    assert after["modes of torch"][2:] == before["modes of torch"][2:]
    no_half_files(path)


def test_a_replay_that_fails_is_a_full_pass(monkeypatch, with_loggers, tmp_path):
    def fail(*args):
        raise RuntimeError("injected")

    monkeypatch.setattr("lightning_neuroimp.capture.suffix.tape.Tape.run", fail)
    _, _, found = fitted("plain", [callback := ours()], tmp_path, logger=logged(tmp_path))
    same(found, with_loggers)
    assert callback.results.has_faithfulness
    assert any("each ablation ran the whole network, because" in note for note in callback.results.notes)


def test_a_full_disk_says_so(monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(UserWarning) as said:
        fitted("plain", [callback := ours()], tmp_path, logger=logged(tmp_path)[1:])
    said = [str(one.message) for one in said if "could not write" in str(one.message)]
    assert [f"epoch {epoch}; training goes on. OSError: [Errno 28]" in text for epoch, text in enumerate(said)] == [
        True
    ] * 2
    assert callback.results.has_faithfulness
    assert not list(tmp_path.rglob("*.npz"))
    no_half_files(tmp_path)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_monitors_of_our_keys_go_on_between_measurements(every, tmp_path):
    run, _, _ = fitted(
        "plain", [ours(every_n_epochs=every), *monitors()], tmp_path, max_epochs=4, enable_checkpointing=True
    )
    assert run.current_epoch == 4
    assert float(run.callback_metrics["ours/measured_epoch"]) == {1: 3, 2: 2, 3: 3}[every]


def test_monitors_of_our_keys_survive_a_failure(monkeypatch, tmp_path):
    """The keys of a first measurement that failed are those of one that did not."""
    failing = Calls(1, RuntimeError("injected"))
    with pytest.warns(UserWarning, match="RuntimeError: injected") as said:
        run, _, _ = fitted(
            "plain", [ours(forward_fn=failing), *monitors()], tmp_path, max_epochs=3, enable_checkpointing=True
        )
    assert sum("training goes on. RuntimeError: injected" in str(one.message) for one in said) == 3
    assert run.current_epoch == 3
    good, _, _ = fitted("plain", [ours()], tmp_path)
    names = [sorted(key for key in one.callback_metrics if key.startswith("ours")) for one in (run, good)]
    assert names[0] == names[1]


def test_two_runs_in_one_folder_keep_both(tmp_path):
    for _ in range(2):
        fitted("plain", [ours(results_dir=tmp_path / "results")], tmp_path)
    names = sorted(path.name for path in (tmp_path / "results" / "ours").iterdir())
    assert len(names) == 4
    assert [bool(re.search(r"-v1\.npz$", name)) for name in names] == [True, False, True, False]
    no_half_files(tmp_path)
