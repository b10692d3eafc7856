"""Gather objects from all processes of a trainer, make them fail together, and number their samples."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed
from jaxtyping import Int
from lightning.pytorch.utilities.memory import is_cuda_out_of_memory, is_out_of_cpu_memory
from torch.utils.data import DistributedSampler

from lightning_neuroimp.batches.numbers import LOADER
from lightning_neuroimp.errors import InvalidArgument, MeasurementFailed


@dataclass(frozen=True)
class _Failure:
    """Replace the value of a process that has failed.

    Attributes:
        message: type and text of the error.
        mistaken: whether an argument was invalid.
        memory: whether memory ran out.
    """

    message: str
    mistaken: bool
    memory: bool


class PeerFailedError(MeasurementFailed):
    """Say that another process failed."""


class PeerOutOfMemoryError(PeerFailedError):
    """Say that another process ran out of memory."""


class PeerMistakenError(InvalidArgument):
    """Say that another process found a mistake in the arguments or the data."""


def out_of_memory(error: BaseException) -> bool:
    """Tell whether this or another process ran out of memory, on the host or on an accelerator."""
    if isinstance(error, PeerFailedError | PeerMistakenError):
        return isinstance(error, PeerOutOfMemoryError)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError) or len(error.args) != 1 or not isinstance(error.args[0], str):
        return False
    return is_cuda_out_of_memory(error) or is_out_of_cpu_memory(error) or "CUBLAS_STATUS_ALLOC_FAILED" in error.args[0]


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all processes, in rank order.

    Raises:
        PeerMistakenError: if another process found an invalid argument.
        PeerOutOfMemoryError: if another process ran out of memory.
        PeerFailedError: if another process failed for another reason.
    """
    values = _gather(value)
    failed = _worst(values)
    if failed is not None:
        raise failed
    return values


def _worst(values: list[Any]) -> "PeerFailedError | PeerMistakenError | None":
    """Choose the error that all processes raise when some have failed; None if none has."""
    failures = [(rank, value) for rank, value in enumerate(values) if isinstance(value, _Failure)]
    if not failures:
        return None
    # other failures before invalid arguments and lack of memory, as nothing can be done about them
    rank, worst = min(failures, key=lambda pair: (pair[1].memory or pair[1].mistaken, pair[1].mistaken))
    message = f"on process {rank}: {worst.message}"
    if worst.memory:
        return PeerOutOfMemoryError(message)
    return PeerMistakenError(message) if worst.mistaken else PeerFailedError(message)


@contextmanager
def failing_together() -> Iterator[None]:
    """Make work fail on all processes if it fails on one; the others would wait in their next collective in vain.

    The work must not call other collectives than `gather_objects`.

    Raises:
        PeerFailedError: or one of its siblings, on the processes where the work itself succeeded.
    """
    finished = False
    try:
        yield
        finished = True
        gather_objects(None)
    except Exception as error:
        # a failure that was learnt of in a gather is known to all processes already
        if not finished and not isinstance(error, PeerFailedError | PeerMistakenError):
            mine = _Failure(
                f"{type(error).__name__}: {error}", isinstance(error, InvalidArgument), out_of_memory(error)
            )
            worst = _worst(_gather(mine))
            assert worst is not None
            agreed = isinstance(worst, PeerMistakenError), isinstance(worst, PeerOutOfMemoryError)
            if agreed != (mine.mistaken, mine.memory):
                raise worst from error
        raise


def _gather(value: Any) -> list[Any]:
    """Return the values of all processes in rank order, failures among them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def sample_numbers(trainer: "pl.Trainer", dataloader_idx: int, start: int, size: int) -> Int[np.ndarray, " sample"]:
    """Return the numbers, in the whole stream, of `size` samples that this process sees after `start` others.

    Args:
        trainer: running a validation.
        dataloader_idx: number of the validation loader.
        start: number of samples of this loader that this process has seen.
        size: number of samples in the batch.

    Returns:
        Numbers as one process with the same loader would count them; -1 for samples that a distributed sampler repeats
        so that every process gets as many.
    """
    local = np.arange(start, start + size, dtype=np.int64)
    loaders = _flat(trainer.val_dataloaders)
    loader = loaders[dataloader_idx] if dataloader_idx < len(loaders) else None
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler):  # a custom batch sampler may hold it
        sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if isinstance(sampler, DistributedSampler):
        number = sampler.rank + sampler.num_replicas * local
        number[number >= len(sampler.dataset)] = -1  # type: ignore[arg-type]
    else:
        number = trainer.global_rank + trainer.world_size * local
    return np.where(number < 0, -1, number + dataloader_idx * LOADER)


def _flat(loaders: Any) -> list[Any]:
    """List the loaders in nested mappings and sequences, in the order in which Lightning numbers them."""
    if isinstance(loaders, Mapping):
        return [loader for part in loaders.values() for loader in _flat(part)]
    if isinstance(loaders, list | tuple):
        return [loader for part in loaders for loader in _flat(part)]
    return [loaders]
