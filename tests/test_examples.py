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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_mean_baseline_names_the_middle_tower_in_every_class(n_classes):
    """Five of the hundred seeds of the table in README."""
    towers = runpy.run_path(str(EXAMPLES / "towers.py"))
    for seed in range(5):
        model, x, y = towers["train"](n_classes, seed, 1000, 10)
        scores = towers["tower_scores"](model, [(x, y)], towers["POST"], baseline="mean")
        assert (scores.argmax(0) == towers["RIGHT"]).all()


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    text = capsys.readouterr().out
    assert "--epochs" in text
    assert "(default: " in text


@pytest.mark.parametrize(
    ("name", "options", "phrases"),
    [
        ("convnet.py", [], ["features.6, 32 neurons", "By hand: without channels", "principal components"]),
        ("transformer.py", [], ["blocks.1.attention.out (input, groups of 8), 4 neurons", "blocks.0 (position 0), 32"]),
        ("mapping.py", [], ["model.hidden.1, 64 neurons, masked_gradient", "clusters: predictions"]),
        ("mapping.py", ["--bert"], ["model.bert.encoder.layer.1.intermediate, 64 neurons"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("unchecked")
def test_the_others_run(name, options, phrases, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--epochs", "2", "--folder", str(tmp_path), *options])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    text = capsys.readouterr().out
    for phrase in phrases:
        assert phrase in text
    assert list(tmp_path.rglob("events.*"))
