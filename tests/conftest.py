import os
from pathlib import Path

# in workers, before libraries of NumPy and scikit-learn are loaded, and for the processes that tests start: threads
# that wait for a processor take more time than they save
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, 2 // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))

# shapes in annotations are checked under pytest only, before anything imports the package
import jaxtyping

import tests.support.tower  # the hook finds it as an attribute

PER_SAMPLE = ("layout", "stacks", "structure", "draw")  # of batches/: called for each sample, few shapes in them
PACKAGE = Path(__file__).parent.parent / "lightning_neuroimp"
rooms = [path.stem for path in PACKAGE.iterdir() if path.stem not in ("__init__", "__pycache__", "batches", "py")]
batches = [f"batches.{path.stem}" for path in (PACKAGE / "batches").glob("*.py") if path.stem not in PER_SAMPLE]
jaxtyping.jaxtyped = tests.support.tower.jaxtyped
_hook = jaxtyping.install_import_hook(
    [f"lightning_neuroimp.{name}" for name in (*rooms, *batches)], "tests.support.tower.checked"
)
_hook.__enter__()

import numpy as np
import pytest
import torch

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

# files that take more than ten seconds, longest first: a worker that begins one at the end leaves the others idle
LONG = [
    *("no_trace", "families", "callback", "digits", "findings", "fuzz", "null", "logged_accuracy", "examples", "ddp"),
    *("dataloaders", "zoo", "resume", "study", "around", "display", "judge", "conditions", "model_forms", "browser"),
]


def pytest_configure(config):
    config.option.loadscopereorder = False  # by the number of tests, whatever they take


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


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
