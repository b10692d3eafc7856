"""What importing costs, and that every public name is there."""

import subprocess
import sys

import pytest

import lightning_neuroimp


def imported_by(statement):
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"torch", "lightning", "tensorboard", "matplotlib", "sklearn", "scipy", "numpy"}
    assert not imported_by("import lightning_neuroimp") & heavy


def test_the_core_does_without_lightning_and_tensorboard():
    names = imported_by("from lightning_neuroimp import neuron_importance, ablation_faithfulness")
    assert not names & {"lightning", "pytorch_lightning", "tensorboard"}


def test_results_can_be_read_without_torch():
    assert "torch" not in imported_by("from lightning_neuroimp import Results")


def test_public_names():
    for name in lightning_neuroimp.__all__:
        assert getattr(lightning_neuroimp, name).__doc__
        assert name in dir(lightning_neuroimp)
    with pytest.raises(AttributeError, match="module 'lightning_neuroimp' has no attribute 'nothing'"):
        _ = lightning_neuroimp.nothing
