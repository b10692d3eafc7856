"""A resumed run goes on as an uninterrupted one would."""

import copy
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, NeuronImportance
from tests.support.lightning_modules import Classifier, loaders, trainer

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


def callback(**options):
    defaults = {
        "layers": "encoder.2",
        "clusters": KMeansClusters(4),
        "faithfulness": AblationFaithfulness(max_overhead=None, every_n_epochs=2),
    }
    return NeuronImportance(**(defaults | options))


def deterministic():
    """Nothing that a checkpoint does not carry: no dropout, no shuffling."""
    torch.manual_seed(0)
    model, (train, val) = Classifier(), loaders()
    model.encoder[3].p = 0.0
    return model, DataLoader(train.dataset, 64), val


def fit(tmp_path, ours, epochs, checkpoint=None, callbacks=(), **options):
    model, train, val = deterministic()
    run = trainer(
        tmp_path, [ours, *callbacks], max_epochs=epochs, enable_checkpointing=True,
        logger=TensorBoardLogger(tmp_path, "logs"), **options,
    )  # fmt: skip
    run.fit(model, train, val, ckpt_path=checkpoint)
    return run


def test_a_resumed_run_measures_what_an_uninterrupted_one_does(tmp_path):
    whole, first, second = callback(), callback(), callback()
    reference = fit(tmp_path / "whole", whole, 4)
    fit(tmp_path / "part", first, 2).save_checkpoint(tmp_path / "half.ckpt")
    # other clusters than a fresh start would give, so that their identities must be carried on
    resumed = fit(tmp_path / "part", second, 4, tmp_path / "half.ckpt")
    torch.testing.assert_close(resumed.model.state_dict(), reference.model.state_dict(), rtol=0, atol=0)
    one, other = whole.results, second.results
    np.testing.assert_array_equal(other.clusters.ids, one.clusters.ids)
    np.testing.assert_array_equal(other.clusters.history, one.clusters.history)
    np.testing.assert_array_equal(other.sample_cluster, one.sample_cluster)
    assert other.clusters.adjusted_rand_index == one.clusters.adjusted_rand_index
    np.testing.assert_array_equal(other["encoder.2"].mean, one["encoder.2"].mean)
    np.testing.assert_array_equal(other["encoder.2"].drift.rank_correlation, one["encoder.2"].drift.rank_correlation)
    assert other["encoder.2"].drift.epoch == 2
    assert repr(second._run.state.history) == repr(whole._run.state.history)  # with NaN in the first epoch
    keys = [key for key in reference.callback_metrics if key.startswith("neuroimp/")]
    assert keys == [key for key in resumed.callback_metrics if key.startswith("neuroimp/")]
    for key in keys:
        assert float(resumed.callback_metrics[key]) == float(reference.callback_metrics[key]), key
    assert float(resumed.callback_metrics["neuroimp/checked_epoch"]) == 2  # every second one, counted on


def test_values_are_logged_again_before_the_next_measurement(tmp_path):
    ours = callback(every_n_epochs=2)
    before = fit(tmp_path, ours, 1)
    before.save_checkpoint(tmp_path / "one.ckpt")
    after = fit(tmp_path, callback(every_n_epochs=2), 2, tmp_path / "one.ckpt")
    for key in ("neuroimp/encoder.2/gap", "neuroimp/measured_epoch", "neuroimp/checked_epoch"):
        assert float(after.callback_metrics[key]) == float(before.callback_metrics[key])


def test_a_monitor_of_our_keys_survives(tmp_path):
    stop = EarlyStopping("neuroimp/encoder.2/gap", mode="max", patience=50)
    best = ModelCheckpoint(tmp_path / "best", monitor="neuroimp/encoder.2/reliability", mode="max")
    fit(tmp_path, callback(every_n_epochs=2), 1, callbacks=[stop, best]).save_checkpoint(tmp_path / "one.ckpt")
    fit(tmp_path, callback(every_n_epochs=2), 3, tmp_path / "one.ckpt", callbacks=[copy.deepcopy(stop), best])
    assert best.best_model_path


def test_checkpoints_hold_tensors_and_builtins_and_are_small(tmp_path):
    one, other = callback(name="one"), callback(name="two", clusters="labels")
    run = trainer(tmp_path, [one, other], max_epochs=1)
    model, train, val = deterministic()
    run.fit(model, train, val)
    run.save_checkpoint(tmp_path / "file.ckpt")
    states = torch.load(tmp_path / "file.ckpt", weights_only=True)["callbacks"]
    mine = [key for key in states if "NeuronImportance" in key]
    assert len(mine) == 2

    def check(value):
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            [check(part) for part in value.values()]
        elif isinstance(value, list):
            [check(part) for part in value]
        else:
            assert type(value) in (torch.Tensor, str, int, float, bool, type(None))

    for key in mine:
        check(states[key])
        assert len(pickle.dumps(states[key])) < 50_000


def test_numpy_arguments_do_not_spoil_a_checkpoint(tmp_path):
    options = {"seed": np.int64(1), "target_class": np.int64(3), "max_samples": np.int64(200)}
    fit(tmp_path, callback(**options), 1).save_checkpoint(tmp_path / "one.ckpt")
    torch.load(tmp_path / "one.ckpt", weights_only=True)
    ours = callback(**options)
    fit(tmp_path, ours, 2, tmp_path / "one.ckpt")
    assert ours.results["encoder.2"].drift is not None


def test_after_a_change_all_starts_anew_at_once(tmp_path):
    stop = EarlyStopping("neuroimp/encoder.2/gap", mode="max", patience=9)
    fit(tmp_path, callback(every_n_epochs=2), 1).save_checkpoint(tmp_path / "one.ckpt")
    changed = callback(every_n_epochs=2, baseline="mean")
    with pytest.warns(UserWarning, match="baseline was 'zero' and is 'mean'"):
        fit(tmp_path, changed, 2, tmp_path / "one.ckpt", callbacks=[stop])  # its monitor finds its value
    assert changed.results.epoch == 1
    # a check that is asked for now, by a checkpoint that knows of none
    fit(tmp_path, callback(faithfulness=None), 1).save_checkpoint(tmp_path / "two.ckpt")
    asked = callback()
    fit(tmp_path, asked, 2, tmp_path / "two.ckpt", callbacks=[copy.deepcopy(stop)])
    assert asked.results.has_faithfulness
    fit(tmp_path, callback(), 1).save_checkpoint(tmp_path / "three.ckpt")
    without = fit(tmp_path, callback(faithfulness=None), 2, tmp_path / "three.ckpt")
    assert "neuroimp/encoder.2/gap" not in without.callback_metrics


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_validation_of_a_checkpoint_measures_whatever_the_schedule_is(tmp_path):
    fit(tmp_path, callback(every_n_epochs=2), 1).save_checkpoint(tmp_path / "one.ckpt")
    ours, (model, _, val) = callback(every_n_epochs=2), deterministic()
    trainer(tmp_path, [ours]).validate(model, val, ckpt_path=tmp_path / "one.ckpt", verbose=False)
    assert ours.results.has_faithfulness
    assert ours.results["encoder.2"].drift is not None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"clusters": KMeansClusters(3)}, r"clusters was 'KMeans\(4\) on .*' and is 'KMeans\(3\)"),
        ({"baseline": "mean"}, "baseline was 'zero' and is 'mean'"),
        ({"class_names": ["a", "b"]}, r"class_names was \[\] and is \['a', 'b'\]"),
        ({"layers": ["encoder.2", "head"]}, r"layers was \['encoder.2'\] and is \['encoder.2', 'head'\]"),
    ],
)
def test_a_checkpoint_of_another_configuration_says_so(tmp_path, options, reason):
    fit(tmp_path, callback(), 1).save_checkpoint(tmp_path / "one.ckpt")
    changed = callback(**options)
    with pytest.warns(UserWarning, match=rf"the checkpoint does not fit: {reason}.*Cluster identities, drift and"):
        fit(tmp_path, changed, 2, tmp_path / "one.ckpt")
    assert changed.results.epoch == 1
    assert changed.results["encoder.2"].drift is None
    assert np.isnan(changed.results.clusters.adjusted_rand_index)


def test_a_state_of_another_version_says_so():
    ours = callback()
    with pytest.warns(UserWarning, match=r"its state is of version 7, and this one reads version 2"):
        ours.load_state_dict({"version": 7})


def test_copies_and_pickles_are_small_after_a_run(tmp_path):
    ours = callback()
    fit(tmp_path, ours, 1)
    size = len(pickle.dumps(ours))
    assert size < 400_000  # the results; not the model that Lightning binds to `log`, nor the probe set
    again = copy.deepcopy(ours)
    assert again.summary() == ours.summary()
    assert again.results.epoch == 0
    fit(tmp_path, again, 1)  # and can be used again
