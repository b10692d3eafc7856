"""Draw which neurons are removed from which sample, the same ones however samples are batched."""

from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.capture.positions import along_axis
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


def random_removal(batch: SiteBatch, draw: int, probability: float) -> Float[Tensor, " sample *_rest"]:
    """Draw for each neuron of each sample whether it is removed.

    Args:
        batch: activations of one site.
        draw: number of the draw.
        probability: of removal.

    Returns:
        1 where a neuron is removed and 0 elsewhere, shaped to broadcast against the activations.
    """
    n_samples, n_neurons = len(batch.activation), batch.n_neurons
    # one key for each sample and neuron, however samples are batched
    pair = sample_keys(batch.index, batch.seed + crc32(batch.where.key.encode()))[:, None] + np.arange(
        n_neurons, dtype=np.uint64
    )
    uniform = sample_keys(pair.view(np.int64).reshape(-1), draw).reshape(n_samples, n_neurons) / 2.0**64
    removed = torch.from_numpy(uniform < probability).to(batch.activation).repeat_interleave(batch.group, 1)
    return along_axis(removed, batch.axis, batch.activation.ndim)
