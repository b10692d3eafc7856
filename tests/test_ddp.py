"""Two real processes (gloo): the same scores as one, the same keys on both, failures together."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.forked import run_script

SCRIPT = """
import json, sys, warnings
import lightning.pytorch as pl, torch
sys.path.insert(0, {tests!r})
from lightning.pytorch.strategies import DDPStrategy
from tests.support.lightning_modules import Classifier, loaders, trainer
from datetime import timedelta
from lightning_neuroimp import AblationFaithfulness, KMeansClusters, NeuronImportance

warnings.simplefilter("ignore")
mode, processes = sys.argv[1], int(sys.argv[2])
MISTAKES = ("mistake", "rehearsed")

def fails_on_one(batch):
    if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
        raise (ValueError if mode in MISTAKES else RuntimeError)("injected")
    return batch.sum_positions(batch.deviation * batch.gradient)

def needs_memory(batch):
    if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1 and len(batch.index) > 20:
        raise torch.OutOfMemoryError("injected")
    return batch.sum_positions(batch.deviation * batch.gradient)

SCORES = {{"fail": fails_on_one, "memory": needs_memory, **dict.fromkeys(MISTAKES, fails_on_one)}}
torch.manual_seed(0)
model = Classifier()
ours = NeuronImportance(
    ["encoder.2"], clusters=KMeansClusters(3), baseline="mean", max_samples=200,
    attribution=SCORES.get(mode, "gradient_x_activation"),
    faithfulness=AblationFaithfulness(max_overhead=None),
    results_dir={{"write": {blocked!r}, "logger": None}}.get(mode, {folder!r} + f"/{{processes}}"),
)

class OnlyTheFirstProcessLogs(pl.Callback):
    def setup(self, trainer, pl_module, stage):
        trainer.loggers = trainer.loggers if trainer.is_global_zero else []

others = [OnlyTheFirstProcessLogs()] if mode == "logger" else []
logger = pl.loggers.TensorBoardLogger({folder!r}, name="2") if mode == "logger" else False
strategy = "auto"
if processes > 1:
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60), start_method="fork")
train, val = loaders(n_val=301)
epochs, sanity = 2 if mode == "mistake" else 1, 2 if mode == "rehearsed" else 0
run = trainer(
    {folder!r}, [*others, ours], max_epochs=epochs, logger=logger, strategy=strategy, devices=processes,
    num_sanity_val_steps=sanity,
)
try:
    run.validate(model, val, verbose=False) if mode == "validate" else run.fit(model, train, val)
except Exception as error:
    print("ENDED", type(error).__name__, error)
    raise SystemExit(3)
metrics = {{key: float(value) for key, value in run.callback_metrics.items()}}
print("METRICS" + json.dumps(metrics))
"""


def run(mode, processes, folder):
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(folder), blocked=__file__)
    done = run_script(script, mode, processes)
    output, errors = done.stdout, done.stderr
    stops = mode in ("mistake", "rehearsed")
    assert done.returncode == (3 if stops else 0), errors[-3000:] + output[-1000:]
    if stops:
        return output, errors
    return [json.loads(line[7:]) for line in output.splitlines() if line.startswith("METRICS")], errors


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_two_processes_give_the_scores_of_one(tmp_path):  # T14
    import numpy as np

    from lightning_neuroimp import Results

    run("validate", 1, tmp_path)
    (metrics,), _ = run("validate", 2, tmp_path)
    one, two = (Results.load(next((tmp_path / str(n) / "neuroimp").iterdir())) for n in (1, 2))
    np.testing.assert_array_equal(two.sample_index, one.sample_index)  # 301 samples: one is padded, and left out
    np.testing.assert_array_equal(two.sample_fingerprint, one.sample_fingerprint)
    np.testing.assert_array_equal(two.sample_cluster, one.sample_cluster)
    np.testing.assert_array_equal(two.clusters.exemplars, one.clusters.exemplars)
    np.testing.assert_allclose(two["encoder.2"].mean, one["encoder.2"].mean, atol=1e-6)
    np.testing.assert_allclose(two["encoder.2"].std, one["encoder.2"].std, atol=1e-5)
    assert two["encoder.2"].faithfulness.samples[:, -1].sum() == 200
    np.testing.assert_array_equal(two.sample_half, one.sample_half)
    np.testing.assert_allclose(two["encoder.2"].faithfulness.gap, one["encoder.2"].faithfulness.gap, atol=1e-6)
    assert metrics["neuroimp/encoder.2/gap"] == pytest.approx(two["encoder.2"].faithfulness.gap[-1], rel=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_failure_on_one_process_is_one_on_all_and_training_goes_on(tmp_path):
    (metrics,), _ = run("fail", 2, tmp_path)
    assert metrics["neuroimp/measured_epoch"] == -1
    assert not (tmp_path / "2").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_memory_that_runs_out_on_one_process_makes_smaller_passes_on_all(tmp_path):
    (metrics,), _errors = run("memory", 2, tmp_path)
    assert "neuroimp/encoder.2/gap" in metrics
    assert (tmp_path / "2").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_logger_on_the_first_process_alone(tmp_path):
    (metrics,), _ = run("logger", 2, tmp_path)
    assert metrics["neuroimp/measured_epoch"] == 0
    assert len(list((tmp_path / "2").glob("version_0/neuroimp/neuroimp/*.npz"))) == 1
    (events,) = (tmp_path / "2").glob("version_0/events*")
    assert b"neuroimp/encoder.2/deletion_curves" in events.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_mistake_on_one_process_stops_all_with_its_reason(tmp_path):
    output, errors = run("rehearsed", 2, tmp_path)
    assert "ValueError: injected" in output + errors


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_failed_write_on_the_first_process_leaves_the_others_going(tmp_path):
    (metrics,), _ = run("write", 2, tmp_path)
    assert "neuroimp/encoder.2/gap" in metrics
