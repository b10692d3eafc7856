"""The accuracy on the probe set against what the validation steps log: are these the logits that training uses?"""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neuroimp import AblationFaithfulness, NeuronImportance, neuron_importance
from lightning_neuroimp.callbacks.logged_accuracy import is_accuracy
from lightning_neuroimp.display.summary import summary
from lightning_neuroimp.results.findings.diagnosis import diagnose, with_other_logits
from tests.support.digits import digits
from tests.support.lightning_modules import Classifier, loaders, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]
WARNING = "these are not the logits that validation_step uses"


class Right(Classifier):
    """Logs accuracies under keys of one's choice, of the logits that its steps use."""

    def __init__(self, key="val_acc", scale=1.0):
        super().__init__()
        self.key, self.scale = key, scale

    def logits(self, x):
        return self(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.logits(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        self.log(self.key, self.scale * (self.logits(x).argmax(1) == y).float().mean())


class Embedding(Right):
    """Its forward gives features, to which the steps add the head."""

    def forward(self, x):
        return self.encoder(x)

    def logits(self, x):
        return self.head(self(x))


class Normalizing(Right):
    """Its steps normalise the inputs first."""

    def logits(self, x):
        return self((x.mean(1, keepdim=True) - x) / x.std(1, keepdim=True))


class Permuting(Right):
    """Its steps permute the inputs' features first."""

    def logits(self, x):
        return self(x.flip(1))


class OtherHead(Right):
    """Its forward gives the logits of a second head, of another task."""

    def __init__(self, *args):
        super().__init__(*args)
        self.other = nn.Linear(16, 10)

    def forward(self, x):
        return self.other(self.encoder(x))

    def logits(self, x):
        return self.head(self.encoder(x))


WRONG = {"embedding": Embedding, "normalised": Normalizing, "permuted": Permuting, "other head": OtherHead}


def callback(**options):
    return NeuronImportance(**({"layers": "encoder.2", "faithfulness": None} | options))


def other(results):
    return next((finding for finding in results.findings if finding.id == "other-logits"), None)


def fit(tmp_path, model, ours, epochs=8, **options):
    run = trainer(tmp_path, [ours], max_epochs=epochs, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(model, *loaders(n_train=1000))
    return run, [str(warning.message) for warning in caught if WARNING in str(warning.message)]


@pytest.mark.parametrize("kind", WRONG)
def test_other_logits_are_found(tmp_path, kind):
    ours = callback(results_dir=tmp_path / "results")
    run, said = fit(tmp_path, WRONG[kind](), ours)
    logged = float(run.callback_metrics["val_acc"])
    assert logged > 0.8
    found, results = other(ours.results), ours.results
    assert results.findings[0] is found
    assert found.weight > 1.5
    assert "near-chance" not in {finding.id for finding in results.findings}
    accuracy = results.sample_correct.mean()
    assert found.figures == {"accuracy": pytest.approx(accuracy), "logged": pytest.approx(logged), "samples": 320}
    for phrase in (WARNING, f"right for {accuracy:.0%} of the samples", "'val_acc'", f"is {logged:.0%}"):
        assert phrase in found.text
    for phrase in ("pass forward_fn", "prepares the inputs", "calls the model as validation_step does"):
        assert phrase in found.remedy
    assert len(said) == 1, "once in a run"
    assert "'neuroimp'" in said[0]
    assert found.remedy in said[0]
    assert len(said[0]) < 400
    assert WARNING in summary(results, "neuroimp")
    files = sorted((tmp_path / "results").rglob("*.npz"))
    assert len(files) == 8
    assert other(type(results).load(files[-1])) is not None, "later measurements are published with it"


@pytest.mark.parametrize("kind", WRONG)
def test_forward_fn_mends_it(tmp_path, kind):
    def forward_fn(module, batch):
        return module.logits(batch[0]), batch[1]

    model, ours = WRONG[kind](), callback(forward_fn=forward_fn)
    run, said = fit(tmp_path, model, ours)
    assert (other(ours.results), said) == (None, [])
    assert ours.results.sample_correct.mean() == pytest.approx(float(run.callback_metrics["val_acc"]), abs=0.05)


@pytest.mark.parametrize(
    ("key", "scale"),
    [
        ("acc", 1),
        ("val/accuracy", 1),
        ("val_acc_top1", 100),
        ("MulticlassAccuracy", 1),
        ("valid.Acc@1", 100),
        ("valAcc", 1),
    ],
)
def test_accuracies_of_many_names(tmp_path, key, scale):
    ours = callback()
    _, said = fit(tmp_path, Embedding(key, scale), ours)
    assert len(said) == 1
    assert repr(key) in said[0]
    _, said = fit(tmp_path, Right(key, scale), callback())
    assert not said


@pytest.mark.parametrize(
    "key",
    ["val_acc5", "top5_acc", "val_acc_top_3", "val_top10_accuracy", "vacc", "accumulated", "train_acc", "val_loss"],
)
def test_other_values_are_no_accuracies_of_the_first_guess(tmp_path, key):
    assert not is_accuracy(key)
    assert not fit(tmp_path, Embedding(key), callback(), epochs=4)[1]


def test_what_the_training_logs_does_not_count(tmp_path):
    class Overfitted(Right):
        def training_step(self, batch, batch_idx):
            self.log("acc", 1.0, on_step=True, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val_loss", 1.0)

        def logits(self, x):
            return self(x) * 0 + self(x).mean()

    ours = callback()
    run, said = fit(tmp_path, Overfitted(), ours, epochs=2)
    assert float(run.callback_metrics["acc"]) == 1
    assert not said
    assert "near-chance" in {finding.id for finding in ours.results.findings}


def test_one_of_several_heads_that_agrees_is_enough(tmp_path):
    class TwoTasks(Right):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)
            self.log("val_acc_binary", 1.0)

    assert not fit(tmp_path, TwoTasks(), callback(), epochs=2)[1]


@pytest.mark.parametrize("options", [{"classes": [0, 1]}, {"target_class": "predicted"}, {"target_class": 3}])
def test_other_accuracies_cannot_be_compared(tmp_path, options):
    ours = callback(**options)
    assert not fit(tmp_path, Embedding(), ours, epochs=4)[1]


@pytest.mark.parametrize("model", [Right, Embedding])
def test_strata_are_compared_by_a_bound(tmp_path, model):
    said = fit(tmp_path, model(), callback(stratify=True, max_samples=200))[1]
    assert bool(said) == (model is Embedding)


def test_in_a_validation_alone(tmp_path):
    model = Embedding()
    fit(tmp_path, model, callback())
    ours = callback(faithfulness=AblationFaithfulness(n_random=19))
    with pytest.warns(UserWarning, match=WARNING):
        trainer(tmp_path, [ours]).validate(model, loaders()[1], verbose=False)
    assert other(ours.results) is not None
    assert WARNING in ours.summary(), "the checked results are the same ones"


def test_later_checks_keep_it(tmp_path):
    ours = callback(faithfulness=AblationFaithfulness(n_random=19, every_n_epochs=3))
    fit(tmp_path, Embedding(), ours)
    assert other(ours.results) is not None


def test_a_fall_in_one_epoch_is_not_taken_for_other_logits(tmp_path):
    """What was logged last is of the epoch before: by itself it says nothing about a model that has just broken."""

    class Breaking(Right):
        def on_validation_start(self):
            if self.current_epoch == 7 and not self.trainer.sanity_checking:
                with torch.no_grad():
                    self.head.weight.mul_(-1)

    ours = callback(results_dir=tmp_path / "results")
    _, said = fit(tmp_path, Breaking(), ours)
    assert not said
    files = sorted((tmp_path / "results").rglob("*.npz"))
    assert other(type(ours.results).load(files[-1])) is None


def test_several_loaders_that_are_pooled(tmp_path):
    """One loader's accuracy is 1, the other's hardly above chance: that of both together is in between."""
    x, y = digits()
    easy, hard = TensorDataset(x[1000:1200], y[1000:1200]), TensorDataset(x[1200:1400], (y[1200:1400] + 1) % 10)
    val = [DataLoader(easy, 64), DataLoader(hard, 64)]

    def said_by(model, ours):
        run = trainer(tmp_path, [ours], max_epochs=8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.fit(model, loaders(n_train=1000)[0], val)
        return [str(warning.message) for warning in caught if WARNING in str(warning.message)]

    assert not said_by(Right(), callback())
    assert not said_by(Right(), callback(dataloaders=1))
    assert said_by(Embedding(), callback(dataloaders=0))

    class Pooling(Right):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pass

        def on_validation_epoch_end(self):
            self.log("val_acc", 0.9)

    assert not said_by(Pooling(), callback(dataloaders=1)), "of both loaders, and one is drawn from"


def untrained(n_logits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, n_logits))
    x, y = digits()
    return model, [(x[:200], y[:200])]


@pytest.mark.parametrize("n_logits", [64, 512])
def test_outputs_that_may_be_features(n_logits):
    results = neuron_importance(*untrained(n_logits), layers="1")
    found = next(finding for finding in results.findings if finding.id == "near-chance")
    for phrase in (f"gives {n_logits} numbers per sample", "labels go up to 9", "may be features rather than logits"):
        assert phrase in found.text
    assert "forward_fn" in found.remedy
    assert "train longer" not in found.remedy


@pytest.mark.parametrize("n_logits", [10, 17, 39])
def test_outputs_with_a_few_classes_more_are_logits(n_logits):
    results = neuron_importance(*untrained(n_logits), layers="1")
    found = next(finding for finding in results.findings if finding.id == "near-chance")
    assert "features" not in found.text
    assert "train longer" in found.remedy


@pytest.mark.parametrize(
    ("logged", "n", "raised"),
    [(0.97, 200, True), (0.97, 24, True), (0.30, 200, False), (0.36, 200, True), (0.36, 40, False), (0.11, 200, False)],
)
def test_how_far_below_is_far(logged, n, raised):
    """By .2 and by four standard errors of an accuracy of so many samples, which are at most 2 / sqrt(n)."""
    results = neuron_importance(*untrained(10), layers="1")
    chosen = np.arange(200) < n
    correct = np.arange(n) % 10 == 0
    fields = {
        name: value[chosen] for name, value in vars(results).items() if name.startswith("sample_") and value is not None
    }
    results = results.replace(**{**fields, "sample_correct": correct, "sample_label": np.arange(n) % 2})
    found = with_other_logits(results, {"val_acc": logged})
    assert (other(found) is not None) == raised
    again = with_other_logits(found, {})
    assert other(again) is None
    assert other(results.replace(findings=diagnose(results))) is None
