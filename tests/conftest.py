import os
from pathlib import Path

# shapes in annotations are checked under pytest only, before anything imports the package
import jaxtyping

import tests.support.tower  # noqa: F401 (the hook finds it as an attribute)

PER_SAMPLE = ("layout", "stacks", "structure", "draw")  # of batches/: called for each sample, few shapes in them
PACKAGE = Path(__file__).parent.parent / "lightning_neuroimp"
rooms = [path.stem for path in PACKAGE.iterdir() if path.stem not in ("__init__", "__pycache__", "batches", "py")]
batches = [f"batches.{path.stem}" for path in (PACKAGE / "batches").glob("*.py") if path.stem not in PER_SAMPLE]
_hook = jaxtyping.install_import_hook(
    [f"lightning_neuroimp.{name}" for name in (*rooms, *batches)], "tests.support.tower.checked"
)
_hook.__enter__()

import numpy as np
import pytest
import torch

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
n_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, 2 // n_workers))))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def unchecked():
    """For hundreds of repeats of what other tests run with checked shapes: the checks take two thirds of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def double():
    """float64 for closed forms."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
