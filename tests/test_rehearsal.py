"""Mistakes that one batch can show are shown before the first epoch is paid for, and leave no trace."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, NeuronImportance, Site
from lightning_neuroimp.errors import MeasurementFailed
from tests.support.lightning_modules import Classifier, loaders, trainer

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]

CHECK = AblationFaithfulness(max_overhead=None, fractions=(0.1, 0.5))
STEPS = []


class Counting(Classifier):
    """Has layers about which there is something to say."""

    def __init__(self, width=16):
        super().__init__(width)
        self.unused, self.pair, self.windows = nn.Linear(4, 4), Pair(), Windows()
        self.exit = nn.Linear(width, width)

    def forward(self, x):
        h = self.encoder(x)
        self.windows(self.pair(h)[0])
        self.exit(h)
        return self.head(h)

    def training_step(self, batch, batch_idx):
        STEPS.append(1)
        return super().training_step(batch, batch_idx)


class Pair(nn.Module):
    def forward(self, x):
        return x.tanh(), x.sigmoid()


class Windows(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 4)


class Prepared(Counting):
    """Prepares its inputs in the steps."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0].flatten(1), batch[1]), batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return super().validation_step((batch[0].flatten(1), batch[1]), batch_idx)


def as_images(loader):
    x, y = loader.dataset.tensors
    return DataLoader(TensorDataset(x.reshape(-1, 8, 8), y), 64)


def hundred_classes(model=None):
    """Return loaders whose labels go up to 99."""
    x = torch.randn(256, 64)
    data = DataLoader(TensorDataset(x, torch.arange(256) % 100), 64)
    return data, data


def ours(**options):
    return NeuronImportance(**({"layers": "encoder.2", "faithfulness": CHECK, "max_samples": 128} | options))


def wide(classes=100):
    model = Counting()
    model.head = nn.Linear(16, classes)
    return model


MISTAKES = {
    "never called": (Counting, {"layers": "unused"}, None, ["layer 'unused' was not called", "list_sites"]),
    "several outputs": (Counting, {"layers": "pair"}, None, ["several tensors as its output", "Site('pair', item=0)"]),
    "windows": (Counting, {"layers": "windows"}, None, ["'windows' (Windows)", "first axis must be the samples"]),
    "no gradient": (Counting, {"layers": "exit"}, None, ["layer 'exit' has no gradient", "leave_one_out"]),
    "a wrong axis": (Counting, {"layers": Site("encoder.0", axis=0)}, None, ["axis=0 is not a neuron axis"]),
    "groups that do not divide": (
        Counting,
        {"layers": Site("encoder.0", group=3)},
        None,
        ["groups of 3 do not divide"],
    ),
    "clusters of the wrong length": (
        Counting,
        {"clusters": lambda batch: [0, 1]},
        None,
        ["clusters callable must return one integer or string for each of the 64 samples"],
    ),
    "clusters that fail": (Counting, {"clusters": lambda batch: batch["y"]}, None, ["clusters callable failed"]),
    "groups that fail": (Counting, {"groups": lambda batch: batch["y"]}, None, ["groups callable failed"]),
    "strata that fail": (Counting, {"stratify": lambda batch: batch["y"]}, None, ["stratify callable failed"]),
    "a score of the wrong shape": (
        Counting,
        {"attribution": lambda batch: batch.activation.sum()},
        None,
        ["must return a tensor of one score per sample and neuron"],
    ),
    "a target of the wrong shape": (
        Counting,
        {"target": lambda logits, classes: logits.sum()},
        None,
        ["target must return one scalar per sample"],
    ),
    "forward_fn that fails": (
        Counting,
        {"forward_fn": lambda model, batch: (model(batch[0][:, :8]), batch[1])},
        None,
        ["forward_fn failed", "mat1 and mat2"],
    ),
    "inputs that the step prepares": (
        Prepared,
        {},
        lambda: tuple(map(as_images, loaders())),
        ["if validation_step prepares the inputs, do the same in forward_fn"],
    ),
    "a hundred classes": (wide, {}, hundred_classes, ["clusters, more than 20", "classes=[0, 1, 2]"]),
    "a class that is not there": (Counting, {"classes": [3, 12]}, None, ["asks for class 12", "10 logits"]),
    "an explained class that is not there": (Counting, {"target_class": 12}, None, ["target_class=12 is not among"]),
    "an embedding that is not there": (
        Counting,
        {"clusters": KMeansClusters(2, embedding="nowhere")},
        None,
        ["there is no layer 'nowhere'"],
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_shown_before_the_first_step(tmp_path, case):
    make, options, data, phrases = MISTAKES[case]
    STEPS.clear()
    run = trainer(tmp_path, [ours(**options)])
    with pytest.raises(MisconfigurationException, match="NeuronImportance 'neuroimp': ") as error:
        run.fit(make(), *(loaders if data is None else data)())
    for phrase in phrases:
        assert phrase in str(error.value)
    assert not STEPS


def test_without_a_sanity_check_the_checkpoint_is_written_first(tmp_path):
    STEPS.clear()
    keep = ModelCheckpoint(tmp_path / "kept", monitor="val_loss")
    run = trainer(tmp_path, [ours(layers="unused"), keep], num_sanity_val_steps=0, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="'unused' was not called.*stops before its next epoch; this one is kept"):
        with pytest.raises(MisconfigurationException, match="layer 'unused' was not called"):
            run.fit(Counting(), *loaders())
    assert len(STEPS) == 4  # one epoch
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert Counting.load_from_checkpoint(keep.best_model_path)


def test_in_the_last_epoch_a_warning_takes_the_errors_place(tmp_path):
    callback = ours(layers="unused")
    run = trainer(tmp_path, [callback], num_sanity_val_steps=0, max_epochs=1)
    with pytest.warns(UserWarning, match="'unused' was not called"):
        run.fit(Counting(), *loaders())
    assert run.state.finished
    with pytest.raises(MeasurementFailed, match="'unused' was not called"):
        _ = callback.results


def test_validation_alone_raises_at_once(tmp_path):
    with pytest.raises(MisconfigurationException, match="layer 'unused' was not called"):
        trainer(tmp_path, [ours(layers="unused")]).validate(Counting(), loaders()[1], verbose=False)


def test_what_depends_on_the_number_of_samples_is_no_mistake(tmp_path):
    """The first batch has fewer samples than KMeans has clusters, and none of a class."""
    x, y = loaders()[1].dataset.tensors
    first = torch.cat([(y == 0).nonzero()[:8, 0], (y != 0).nonzero()[:, 0]])
    data = DataLoader(TensorDataset(x[first], y[first]), 8)
    options = {"clusters": KMeansClusters(12), "baseline": "resample", "stratify": True}
    for each in (options, {"classes": [3, 4]}, {"baseline": "mean"}):
        run = trainer(tmp_path, [callback := ours(**each)], max_epochs=1)
        run.fit(Classifier(), loaders()[0], data)
        assert callback.results.has_faithfulness


def test_a_first_batch_without_labels_is_no_mistake(tmp_path):
    class Ignoring(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            x, y = batch
            self.log("val_loss", nn.functional.cross_entropy(self(x), y.clamp_min(0)))

    x, y = loaders()[1].dataset.tensors
    data = DataLoader(TensorDataset(x, torch.where(torch.arange(len(y)) < 64, -1, y)), 64)
    run = trainer(tmp_path, [callback := ours(ignore_index=-1)], max_epochs=1)
    run.fit(Ignoring(), loaders()[0], data)
    assert callback.results.has_faithfulness


def test_a_doubt_is_a_warning(tmp_path):
    data = DataLoader(TensorDataset(torch.randn(64, 64), torch.arange(64) % 10), 16)
    with pytest.warns(UserWarning, match="tried out on the first batch: the model has 100 classes.*KMeansClusters"):
        trainer(tmp_path, [callback := ours()], max_epochs=1).fit(wide(), data, data)
    assert len(callback.results.clusters.ids) == 10


def test_what_is_no_mistake_does_not_stop_a_run(tmp_path):
    class Unlucky(Classifier):
        """Fails in the first of our passes."""

        failed = False

        def forward(self, x):
            if not self.training and not Unlucky.failed and len(x) < 64:
                Unlucky.failed = True
                raise OSError("a file is gone")
            return super().forward(x)

    with pytest.warns(UserWarning, match="tried out on the first batch: OSError: a file is gone"):
        trainer(tmp_path, [callback := ours()], max_epochs=1).fit(Unlucky(), *loaders())
    assert callback.results.has_faithfulness


def test_the_rehearsal_leaves_no_trace(tmp_path):
    """Weights, metrics, random numbers and buffers are those of a run without the callback, bit by bit."""

    def run_with(callbacks):
        torch.manual_seed(0)
        model = Classifier()
        run = trainer(tmp_path, callbacks, max_steps=3, limit_val_batches=1.0, check_val_every_n_epoch=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.fit(model, *loaders())
        return [tensor.clone() for tensor in model.state_dict().values()], torch.random.get_rng_state(), run

    plain, state, _ = run_with([])
    seen, other, run = run_with([callback := ours()])
    assert all(map(torch.equal, plain, seen))
    assert torch.equal(state, other)
    assert "nothing measured yet" in callback.summary() or callback.results.epoch == 0
    assert not any("neuroimp" in key for key in run.logged_metrics)


def test_the_axes_are_settled_once_in_a_run(tmp_path, monkeypatch):
    from lightning_neuroimp.study import trial

    calls = []
    original = trial.try_out
    monkeypatch.setattr(trial, "try_out", lambda *args: calls.append(1) or original(*args))
    trainer(tmp_path, [ours()], max_epochs=3).fit(Classifier(), *loaders())
    assert len(calls) == 1
