"""What several processes must agree on: objects gathered from all of them, and who holds which sample."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch.distributed
from jaxtyping import Int
from torch.utils.data import DistributedSampler

_LOADER = 2**40  # sample numbers of different validation loaders must differ


def gather_objects(value: Any) -> list[Any]:
    """Everybody's value, in rank order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def sample_numbers(trainer: "pl.Trainer", dataloader_idx: int, start: int, size: int) -> Int[np.ndarray, " sample"]:
    """Numbers, in the whole stream, of `size` samples that this process sees after `start` others.

    Args:
        trainer: running a validation.
        dataloader_idx: which of its loaders.
        start: samples of this loader that this process has seen.
        size: samples of the batch.

    Returns:
        Numbers as one process with the same loader would count them; -1 for the samples that a distributed sampler
        repeats to give every process the same number.
    """
    local = np.arange(start, start + size, dtype=np.int64)
    loaders = trainer.val_dataloaders
    loader = loaders[dataloader_idx] if isinstance(loaders, list | tuple) else loaders
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        number = sampler.rank + sampler.num_replicas * local
        number[number >= len(sampler.dataset)] = -1  # type: ignore[arg-type]
    else:
        number = trainer.global_rank + trainer.world_size * local
    return np.where(number < 0, -1, number + dataloader_idx * _LOADER)
