"""The examples that the two commands of README do not run."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_towers_run_and_count(tmp_path):
    command = [sys.executable, EXAMPLES / "towers.py", "--seeds", "2", "--classes", "3", "--epochs", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "3 classes, 2 seeds, accuracy" in done.stdout
    for line in ("published: one batch", "mean pre-activation", "baseline mean", "verdict on the last ranking"):
        assert line in done.stdout


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_mean_baseline_names_the_middle_tower_in_every_class(n_classes):
    """Five of the hundred seeds of the table in README."""
    towers = runpy.run_path(str(EXAMPLES / "towers.py"))
    for seed in range(5):
        model, x, y = towers["train"](n_classes, seed, 1000, 10)
        scores = towers["tower_scores"](model, [(x, y)], towers["POST"], baseline="mean")
        assert (scores.argmax(0) == towers["RIGHT"]).all()


@pytest.mark.parametrize("name", ["digits.py", "towers.py"])
def test_help(name):
    done = subprocess.run([sys.executable, EXAMPLES / name, "--help"], capture_output=True, text=True, check=True)
    assert "--epochs" in done.stdout
    assert "(default: 10)" in done.stdout
