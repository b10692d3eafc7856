"""Give an uninformative score: the null control."""

from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


def random(batch: SiteBatch) -> Float[Tensor, "sample neuron"]:
    """Draw one standard normal score per neuron, the same for all samples, clusters and halves.

    Independent scores per half would give another null distribution than the random control, whose orders the halves
    share.
    """
    generator = np.random.default_rng([batch.seed, crc32(batch.where.key.encode()), 1])
    scores = torch.from_numpy(generator.standard_normal(batch.n_neurons))
    return scores.to(batch.activation).expand(len(batch.activation), -1)
