"""Score neurons by gradients at several activations between the baseline and those of the site."""

from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.capture.positions import along_axis
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch

STEPS = 8
"""Number of activations at which gradients are computed."""


def integrated_gradients(batch: SiteBatch, steps: int = STEPS) -> Float[Tensor, "sample neuron"]:
    """Return (h - b) times the mean of dm/dh over the straight path from b to h, summed over positions.

    Scores are in units of the target; those of all neurons add up to m(h) - m(b), up to the error of the midpoint rule.

    Args:
        batch: activations of one site.
        steps: number of midpoints of the path.

    References:
        Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", 2017, with the site as the input.
    """
    total = torch.zeros_like(batch.activation)
    for step in range(steps):
        share = (step + 0.5) / steps
        total += batch.suffix.gradient(batch.activation - (1 - share) * batch.deviation)
    return batch.sum_positions(batch.deviation * total / steps)


def masked_gradient(batch: SiteBatch, steps: int = STEPS, q_max: float = 0.5) -> Float[Tensor, "sample neuron"]:
    """Return (h - b) times the mean of dm/dh over points at which random neurons are removed, summed over positions.

    At each point every neuron of a sample is removed independently with one probability, drawn from a stratum of
    [0, q_max]: first-order effects around ablations like those of a deletion curve, in units of the target. If the
    target is multilinear in the neurons, these are gradients of its multilinear extension, and q_max = 1 gives Shapley
    values.

    Args:
        batch: activations of one site.
        steps: number of points, one in each stratum.
        q_max: largest probability of removal.

    References:
        Owen, "Multilinear extensions of games", 1972, for the extension.
    """
    site_seed = batch.seed + crc32(batch.where.key.encode())
    n_samples, n_neurons = len(batch.activation), batch.n_neurons
    probability = (np.arange(steps) + np.random.default_rng(site_seed).random(steps)) / steps * q_max
    # one key for each sample and neuron, however samples are batched
    pair = sample_keys(batch.index, site_seed)[:, None] + np.arange(n_neurons, dtype=np.uint64)
    total = torch.zeros_like(batch.activation)
    for step in range(steps):
        uniform = sample_keys(pair.view(np.int64).reshape(-1), step).reshape(n_samples, n_neurons) / 2.0**64
        removed = torch.from_numpy(uniform < probability[step]).to(batch.activation).repeat_interleave(batch.group, 1)
        shaped = along_axis(removed, batch.axis, batch.activation.ndim)
        total += batch.suffix.gradient(batch.activation - shaped * batch.deviation)
    return batch.sum_positions(batch.deviation * total / steps)
