"""README's code runs, and its first screen is what it promises."""

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from tests.support.digits import train, validation_batches
from tests.support.lightning_modules import Classifier, loaders

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.filterwarnings("ignore")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.S)


def test_the_first_two_commands():
    first, second = blocks("bash")[:2]
    assert first.strip() == "python -m pip install -e . -c constraints.txt && python examples/digits.py"
    assert second.strip() == "python -m pip install -e '.[test]' -c constraints.txt && python -m pytest"


def test_the_first_screen():
    text = README.read_text()
    assert text.splitlines()[2].count(". ") == 0
    assert text.index("<img") < text.index("```python") < text.index("```bash")
    picture = re.search(r'<img src="([^"]+)"', text).group(1)
    assert (README.parent / picture).stat().st_size < 1_000_000
    code = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(code) <= 10


def test_the_callback_of_the_first_screen(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    real = L.Trainer
    monkeypatch.setattr(L, "Trainer", lambda **options: real(**options, max_epochs=1, accelerator="cpu"))

    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return loaders()[0]

        def val_dataloader(self):
            return loaders()[1]

    exec(blocks("python")[0], {"model": Classifier(), "data": Data()})
    assert "encoder.1, 16 neurons, blockwise_gradient" in capsys.readouterr().out


def test_the_code_without_a_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(blocks("python")[1], {"model": train(nn.ReLU, width=16, depth=2, epochs=1), "loader": validation_batches()})
    assert (tmp_path / "results.npz").exists()
