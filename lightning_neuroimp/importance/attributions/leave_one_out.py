"""Score neurons by ablations: the measured effect of removing each of them alone."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


def leave_one_out(batch: SiteBatch) -> Float[Tensor, "sample neuron"]:
    """Return m(h) - m(h with neuron j at its baseline): the exact effect of removing one neuron, in the target's units.

    Takes one pass of what follows the site for each neuron.
    """
    every = torch.eye(batch.n_neurons, dtype=torch.bool, device=batch.activation.device)
    return batch.suffix.effects(every).T
