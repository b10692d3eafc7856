import os
import threading

# shapes in annotations are checked under pytest only, before anything imports the package
import jaxtyping

_hook = jaxtyping.install_import_hook("lightning_neuroimp", "tower.checked")
_hook.__enter__()

import numpy as np
import pytest
import torch
from torch import Tensor, nn

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


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


class Function(nn.Module):
    """A site followed by any function of it: `outcome(site(x))`, as the logit of class 0 against 0."""

    def __init__(self, outcome, site=None):
        super().__init__()
        self.site = nn.Identity() if site is None else site
        self.outcome = outcome

    def forward(self, x: Tensor) -> Tensor:
        value = self.outcome(self.site(x))
        return torch.stack([value, torch.zeros_like(value)], 1)


def class_zero(x) -> list:
    """One batch of samples of class 0."""
    x = torch.as_tensor(x, dtype=torch.get_default_dtype())
    return [(x, torch.zeros(len(x), dtype=torch.int64))]


def in_lockstep(world: int, process) -> None:
    """Run `process(rank, gather)` in as many threads, whose `gather` waits for all of them as real processes do."""
    box, barrier = [None] * world, threading.Barrier(world)

    def gather_as(rank):
        def gather(value):
            box[rank] = value
            barrier.wait(60)
            everybody = list(box)
            barrier.wait(60)
            return everybody

        return gather

    fast_attention = torch.backends.mha.get_fastpath_enabled()  # processes have one each, threads one together
    threads = [threading.Thread(target=process, args=(rank, gather_as(rank))) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    torch.backends.mha.set_fastpath_enabled(fast_attention)
