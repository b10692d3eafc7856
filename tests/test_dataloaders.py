"""Several validation loaders: which are drawn from, a note where they are pooled, and a cluster of each."""

import json
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neuroimp import AblationFaithfulness, NeuronImportance, Results, neuron_importance
from lightning_neuroimp.batches.numbers import LOADER
from tests.support.digits import digits
from tests.support.forked import run_script
from tests.support.lightning_modules import Classifier, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]


class Lenient(Classifier):
    """Validates on whatever comes."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass


def loader(start, size, labels=None, width=64, batch_size=32):
    x, y = digits()
    x, y = x[start : start + size, :width], y[start : start + size]
    return DataLoader(TensorDataset(x, y if labels is None else labels(y)), batch_size)


def three():
    return [loader(1000, 200), loader(1200, 100), loader(1300, 50)]


def callback(**options):
    defaults = {"layers": "encoder.2", "faithfulness": None}
    return NeuronImportance(**(defaults | options))


def fit(tmp_path, ours, val, model=None, **options):
    defaults = {"max_epochs": 1, "num_sanity_val_steps": 0}
    run = trainer(tmp_path, [ours], **(defaults | options))
    run.fit(Lenient() if model is None else model, loader(0, 256, batch_size=64), val)
    return ours.results


def drawn(results):
    """Return how many samples there are of each loader."""
    numbers, counts = np.unique(results.sample_index // LOADER, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def pooling(results):
    return [note for note in results.notes if "validation loaders" in note]


def test_all_are_drawn_from_with_a_note_of_their_sizes(tmp_path):
    results = fit(tmp_path, callback(), three())
    assert drawn(results) == {0: 200, 1: 100, 2: 50}
    (note,) = pooling(results)
    for phrase in (
        "samples are drawn from 3 validation loaders",
        "of 200, 100 and 50 samples",
        "dataloaders=0 takes the first only",
        "clusters='dataloaders' makes a cluster of each",
    ):
        assert phrase in note


def test_one_loader_has_no_note(tmp_path):
    assert not pooling(fit(tmp_path, callback(), loader(1000, 200)))
    assert not pooling(fit(tmp_path, callback(), [loader(1000, 200)]))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [(0, {0: 200}), (2, {2: 50}), ([0, 2], {0: 200, 2: 50}), ((2, 1, 1), {1: 100, 2: 50})],
)
def test_chosen_loaders_alone_are_drawn_from(tmp_path, chosen, expected):
    results = fit(tmp_path, callback(dataloaders=chosen), three(), max_epochs=2)
    assert drawn(results) == expected
    assert not pooling(results)


def test_one_of_several_gives_what_it_gives_alone(tmp_path):
    """The model as it is: the same samples, scores and accuracies as from the loader itself."""
    torch.manual_seed(3)
    model = Lenient()
    ours = callback(dataloaders=1, results_dir=tmp_path / "results", attribution="gradient_x_activation")
    trainer(tmp_path, [ours]).validate(model, three(), verbose=False)
    alone = neuron_importance(model, loader(1200, 100), layers="encoder.2", attribution="gradient_x_activation")
    assert sorted(ours.results.sample_fingerprint.tolist()) == sorted(alone.sample_fingerprint.tolist())
    np.testing.assert_allclose(ours.results["encoder.2"].mean, alone["encoder.2"].mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours.results.clusters.accuracy, alone.clusters.accuracy)


BAD = {
    "unlabelled": lambda: loader(1200, 64, labels=lambda y: torch.full_like(y, -1)),
    "wide": lambda: DataLoader(TensorDataset(torch.zeros(64, 3, 8, 8), torch.zeros(64).long()), 32),
    "regression": lambda: loader(1200, 64, labels=lambda y: y * 0.37),
    "no tensors": lambda: DataLoader([{"text": "a", "n": 1}] * 8, 4, collate_fn=lambda items: items),
    "many classes": lambda: loader(1200, 64, labels=lambda y: y + 90),
}


@pytest.mark.parametrize("first", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_batch_of_another_loader_does_not_matter(tmp_path, kind, first):
    val = [BAD[kind](), loader(1000, 200)] if first else [loader(1000, 200), BAD[kind]()]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message="The number of training batches")
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        warnings.filterwarnings("ignore", message=".*extract the batch size|.*infer the `batch_size`")
        results = fit(tmp_path, callback(dataloaders=int(first)), val, num_sanity_val_steps=2)
    assert drawn(results) == {int(first): 200}
    assert not results.notes


def test_a_bad_second_loader_is_named_where_all_are_drawn_from(tmp_path):
    ours = callback(on_error="raise")
    with pytest.raises(MisconfigurationException) as caught:
        fit(tmp_path, ours, [loader(1000, 200), BAD["many classes"]()])
    for phrase in ("targets must", "samples come from 2 validation loaders", "dataloaders=0 takes the first only"):
        assert phrase in str(caught.value)


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_loader_that_does_not_exist_is_refused_at_the_first_validation(tmp_path, sanity):
    for val, there in (
        (three(), "there are 3 validation loaders, numbers 0 to 2"),
        (three()[0], "there is one validation"),
    ):
        with pytest.raises(MisconfigurationException) as caught:
            fit(tmp_path, callback(dataloaders=[0, 3]), val, num_sanity_val_steps=sanity)
        for phrase in ("'neuroimp'", "dataloaders=[0, 3] asks for loader 3", there):
            assert phrase in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "phrase"),
    [
        ("0", "dataloaders must be an integer at least 0, got '0'"),
        (-1, "dataloaders must be at least 0, got -1"),
        ([0, 1.5], "each of dataloaders must be an integer at least 0, got 1.5"),
        ([], "dataloaders is empty: name at least one validation loader, such as dataloaders=0"),
        (True, "dataloaders must be an integer at least 0, got True"),
    ],
)
@pytest.mark.usefixtures("unchecked")  # the type checker would refuse them first
def test_numbers_are_validated(wrong, phrase):
    with pytest.raises(MisconfigurationException) as caught:
        callback(dataloaders=wrong)
    assert phrase in str(caught.value)


def test_an_empty_loader_is_refused_if_it_is_chosen(tmp_path):
    ours = callback(dataloaders=1, on_error="raise")
    joined = CombinedLoader([loader(1000, 64), loader(1200, 64)], "min_size")

    class Pairs(Lenient):
        def validation_step(self, batch, batch_idx):
            pass

    with pytest.raises(MisconfigurationException) as caught:
        fit(tmp_path, ours, joined, Pairs())
    for phrase in ("no batch came from validation loader 1", "only from [0]", "CombinedLoader", "mode='sequential'"):
        assert phrase in str(caught.value)


def test_a_cluster_of_each_loader(tmp_path):
    ours = callback(clusters="dataloaders", faithfulness=AblationFaithfulness(n_random=20), results_dir=tmp_path / "r")
    results = fit(tmp_path, ours, three(), max_epochs=2)
    table = results.clusters
    assert table.names == ("loader 0", "loader 1", "loader 2")
    assert (table.kind, table.source, table.ids.tolist()) == ("dataloaders", "dataloaders", [0, 1, 2])
    assert table.size.tolist() == [200, 100, 50]
    assert not pooling(results)
    assert "mixed-clusters" not in {finding.id for finding in results.findings}
    assert "loader 2" in ours.summary()
    for number in range(3):
        inside = results.sample_index // LOADER == number
        assert table.accuracy[number] == pytest.approx(results.sample_correct[inside].mean())
        assert set(results.sample_cluster[inside].tolist()) == {number}
    path = next((tmp_path / "r").rglob("*.npz"))
    assert Results.load(path).clusters.kind == "dataloaders"


def test_clusters_of_chosen_loaders(tmp_path):
    results = fit(tmp_path, callback(clusters="dataloaders", dataloaders=[0, 2]), three())
    assert results.clusters.names == ("loader 0", "loader 2")


def test_each_loaders_scores_are_those_of_the_loader_alone(tmp_path):
    model = Lenient().eval()
    ours = callback(clusters="dataloaders", attribution="gradient_x_activation")
    trainer(tmp_path, [ours]).validate(model, three(), verbose=False)
    for number, (start, size) in enumerate([(1000, 200), (1200, 100), (1300, 50)]):
        alone = neuron_importance(
            model,
            loader(start, size),
            layers="encoder.2",
            clusters=lambda batch: [0] * len(batch[1]),
            attribution="gradient_x_activation",
        )
        found = ours.results["encoder.2"].mean[number]
        np.testing.assert_allclose(found, alone["encoder.2"].mean[0], rtol=1e-4, atol=1e-7)


def test_without_a_trainer_there_is_one_loader():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    results = neuron_importance(model, loader(1000, 64), layers="1", clusters="dataloaders")
    assert results.clusters.names == ("loader 0",)


def test_no_agreement_of_clusters_that_cannot_change_is_logged(tmp_path):
    ours = callback(clusters="dataloaders")
    run = trainer(tmp_path, [ours], max_epochs=2)
    run.fit(Lenient(), loader(0, 128), three())
    assert "neuroimp/measured_epoch" in run.callback_metrics
    assert "neuroimp/adjusted_rand_index" not in run.callback_metrics


def test_a_resumed_run_keeps_to_its_loaders(tmp_path):
    saved = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, save_last=True)
    first = callback(dataloaders=[2, 0])
    run = trainer(tmp_path, [first, saved], max_epochs=1, enable_checkpointing=True)
    run.fit(Lenient(), loader(0, 128), three())
    again, options = callback(dataloaders=(0, 2)), {"max_epochs": 2, "enable_checkpointing": True}
    run = trainer(tmp_path, [again, saved], **options)
    checkpoint = tmp_path / "first.ckpt"
    (tmp_path / "last.ckpt").rename(checkpoint)
    run.fit(Lenient(), loader(0, 128), three(), ckpt_path=checkpoint)
    assert drawn(again.results) == {0: 200, 2: 50}
    assert again.results.importances[0].drift is not None
    other = callback(dataloaders=1)
    run = trainer(tmp_path, [other, saved], **options)
    with pytest.warns(UserWarning, match=r"does not fit: dataloaders was \[0, 2\] and is \[1\]"):
        run.fit(Lenient(), loader(0, 128), three(), ckpt_path=checkpoint)


def test_more_loaders_than_clusters(tmp_path):
    ours = callback(clusters="dataloaders", on_error="raise")
    with pytest.raises(MisconfigurationException) as caught:
        fit(tmp_path, ours, [loader(1000 + 8 * number, 8) for number in range(21)])
    for phrase in ("from 21 validation loaders", "more than 20 clusters", "dataloaders=[0, 1, 2]"):
        assert phrase in str(caught.value)


SCRIPT = """
import json, sys, warnings
from datetime import timedelta
from pathlib import Path
sys.path.insert(0, {tests!r})
import lightning.pytorch as pl, torch
from lightning.pytorch.strategies import DDPStrategy
from tests.support.lightning_modules import trainer
from tests.test_dataloaders import callback, drawn, loader
from tests.test_logged_accuracy import Embedding

warnings.simplefilter("ignore")

class Write(pl.Callback):
    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking:
            return
        found = {{
            "findings": [finding.id for finding in ours.results.findings],
            "texts": [finding.text for finding in ours.results.findings if finding.id == "other-logits"],
            "drawn": drawn(ours.results),
            "names": list(ours.results.clusters.names),
            "notes": list(ours.results.notes),
            "halves": ours.results.sample_half.tolist(),
            "copied": [finding.figures["copied"] for finding in ours.results.findings if finding.id == "copies"],
        }}
        Path({folder!r}, f"rank{{trainer.global_rank}}.json").write_text(json.dumps(found))

torch.manual_seed(0)
ours = callback(**{options!r})
strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60), start_method="fork")
more = {{"devices": 2, "strategy": strategy, "num_sanity_val_steps": 0, **{trainer!r}}}
run = trainer({folder!r}, [ours, Write()], max_epochs=6, **more)
run.fit(Embedding(), loader(0, 1000, batch_size=64), [loader(1000, 201), loader(1300, 101)])
"""


def on_two_processes(tmp_path, options, **more):
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path), options=options, trainer=more)
    done = run_script(script)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_two_processes_draw_from_the_chosen_loader(tmp_path):
    found = on_two_processes(tmp_path, {"dataloaders": 1})
    assert found["drawn"] == {"1": 101}
    assert found["findings"][0] == "other-logits"
    assert "val_acc" in found["texts"][0]
    assert "copies" not in found["findings"]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_two_processes_make_a_cluster_of_each_loader(tmp_path):
    found = on_two_processes(tmp_path, {"clusters": "dataloaders"})
    assert found["drawn"] == {"0": 201, "1": 101}
    assert found["names"] == ["loader 0", "loader 1"]
    found = on_two_processes(tmp_path, {})
    assert "from 2 validation loaders, of 201 and 101 samples" in found["notes"][0]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_two_processes_with_loaders_that_are_not_sharded(tmp_path):
    found = on_two_processes(tmp_path, {"dataloaders": 1}, use_distributed_sampler=False)
    assert found["drawn"] == {"1": 202}
    assert found["copied"] == [202]
