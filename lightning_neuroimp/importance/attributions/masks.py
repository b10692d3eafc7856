"""Draw which neurons are removed from which sample, the same ones however samples are batched."""

from collections.abc import Iterator
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.capture.positions import along_axis
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


def neuron_keys(batch: SiteBatch, draw: int) -> UInt64[np.ndarray, "sample neuron"]:
    """Return a pseudo-random key for each neuron of each sample, however samples are batched.

    Args:
        batch: activations of one site.
        draw: number of the draw.
    """
    n_samples, n_neurons = len(batch.activation), batch.n_neurons
    pair = sample_keys(batch.index, batch.seed + crc32(batch.where.key.encode()))[:, None] + np.arange(
        n_neurons, dtype=np.uint64
    )
    return sample_keys(pair.view(np.int64).reshape(-1), draw).reshape(n_samples, n_neurons)


def random_ranks(batch: SiteBatch, draw: int) -> Int[Tensor, "sample neuron"]:
    """Draw an order of the neurons for each sample: the place of each neuron, from 0.

    Args:
        batch: activations of one site.
        draw: number of the draw.
    """
    order = np.argsort(neuron_keys(batch, draw), axis=1, kind="stable")
    return torch.from_numpy(np.argsort(order, axis=1, kind="stable")).to(batch.activation.device)


def random_removal(batch: SiteBatch, draw: int, probability: float) -> Float[Tensor, " sample *_rest"]:
    """Draw for each neuron of each sample whether it is removed.

    Args:
        batch: activations of one site.
        draw: number of the draw.
        probability: of removal.

    Returns:
        1 where a neuron is removed and 0 elsewhere, shaped to broadcast against the activations.
    """
    uniform = neuron_keys(batch, draw) / 2.0**64
    removed = torch.from_numpy(uniform < probability).to(batch.activation).repeat_interleave(batch.group, 1)
    return along_axis(removed, batch.axis, batch.activation.ndim)


def random_blocks(batch: SiteBatch, n_blocks: int) -> Iterator[Float[Tensor, " sample *_rest"]]:
    """Divide the neurons of each sample at random into blocks, each neuron independently.

    Args:
        batch: activations of one site.
        n_blocks: number of blocks.

    Yields:
        For each block 1 where a neuron belongs to it and 0 elsewhere, shaped to broadcast against the activations.
    """
    block = np.minimum(np.floor(neuron_keys(batch, 0) / 2.0**64 * n_blocks), n_blocks - 1)
    for number in range(n_blocks):
        inside = torch.from_numpy(block == number).to(batch.activation).repeat_interleave(batch.group, 1)
        yield along_axis(inside, batch.axis, batch.activation.ndim)
