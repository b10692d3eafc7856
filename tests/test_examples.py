"""The examples that the two commands of README do not run."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_neuroimp import neuron_importance
from tests.support.digits import train, validation_batches
from tests.support.forked import run_file

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_towers_run_and_count(tmp_path):
    options = ("--seeds", "2", "--classes", "3", "--epochs", "3")
    done = run_file(EXAMPLES / "towers.py", *options, folder=tmp_path)
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


def test_the_page_on_gradients_is_written_from_its_example(tmp_path):
    for name in ("why_gradients_fail.py", "why_gradients_fail.md"):
        shutil.copy(EXAMPLES / name, tmp_path)
    options = ("--epochs", "1", "--width", "8", "--page")
    done = run_file(tmp_path / "why_gradients_fail.py", *options, folder=tmp_path)
    assert "Is it a bug? With a cluster for each label" in done.stdout
    ours, here = ((folder / "why_gradients_fail.md").read_text() for folder in (tmp_path, EXAMPLES))
    parts = re.compile(r"<!-- (.*?) -->\n(.*?)<!-- end -->", re.DOTALL)
    written = dict(parts.findall(ours))
    assert len(written) == 9
    assert all(text.strip() for text in written.values())
    # all else is the page as it is kept, and all figures in it are of this example
    assert parts.sub("", ours) == parts.sub("", here)
    assert written.keys() == dict(parts.findall(here)).keys()
    assert all(text in done.stdout for name, text in written.items() if "clusters" in name or "labels" in name)
    for picture in re.findall(r"\]\((\S+\.png)\)", here):
        assert (tmp_path / picture).stat().st_size > 10_000


class GradientAttribution:
    """The recipe of the page, as it is usually written: a hook, and the mean of the label's logit over a batch."""

    def __init__(self, model, data_loader):
        self.model, self.data_loader = model, data_loader

    def attribute(self, layer, latent_class):
        kept = []
        handle = self.model.get_submodule(layer).register_forward_hook(lambda *args: kept.append(args[2]))
        total, count = 0, 0
        for x, y in self.data_loader:
            x, y = x[y == latent_class], y[y == latent_class]
            logits = self.model(x)
            (slopes,) = torch.autograd.grad(logits[torch.arange(len(y)), y].mean(), kept.pop())
            total, count = total + slopes.sum(0) * len(y), count + len(y)
        handle.remove()
        return (total / count).detach().numpy()


def test_the_recipe_in_three_lines_gives_the_same_numbers():
    model, data_loader = train(torch.nn.GELU, width=32, depth=2, epochs=2), validation_batches(64)
    page = (EXAMPLES / "why_gradients_fail.md").read_text()
    theirs, ours = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "latent_class" in block)
    scores = []
    for code in (theirs, ours):
        code = code.replace('"encoder.0"', '"0"')
        known = {"model": model, "data_loader": data_loader, "layer": "0", "latent_class": 7}
        known |= {"GradientAttribution": GradientAttribution, "neuron_importance": neuron_importance}
        exec(code, known)
        scores.append(known["scores"])
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-6)


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
        (
            "convnet.py",
            ["--epochs", "2"],
            ["features.6, 32 neurons", "By hand: without channels", "principal components"],
        ),
        (
            "transformer.py",
            ["--epochs", "1"],
            ["blocks.1.attention.out (input, groups of 8), 4 neurons", "blocks.0 (position 0), 32"],
        ),
        ("mapping.py", ["--epochs", "1"], ["model.hidden.1, 64 neurons, masked_gradient", "clusters: predictions"]),
        ("mapping.py", ["--epochs", "1", "--bert"], ["model.bert.encoder.layer.1.intermediate, 64 neurons"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("unchecked")
def test_the_others_run(name, options, phrases, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--folder", str(tmp_path), *options])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    text = capsys.readouterr().out
    for phrase in phrases:
        assert phrase in text
    assert list(tmp_path.rglob("events.*"))
