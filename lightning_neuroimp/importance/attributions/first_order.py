"""Score neurons by one forward and one backward pass: how far removal moves a neuron, the gradient, their product.

The effect of removing neuron j is, to first order, (h_j - b_j) dm/dh_j: the product. Neither factor alone is
invariant when a neuron is rescaled without changing the function, so that neither can measure removal.
"""

from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


def activation(batch: SiteBatch) -> Float[Tensor, "sample neuron"]:
    """Return activation - baseline, h - b, summed over positions, in units of the activation."""
    return batch.sum_positions(batch.deviation)


def gradient(batch: SiteBatch) -> Float[Tensor, "sample neuron"]:
    """Return the target's gradient dm/dh, summed over positions, in units of the target per unit of activation."""
    assert batch.gradient is not None
    return batch.sum_positions(batch.gradient)


def gradient_x_activation(batch: SiteBatch) -> Float[Tensor, "sample neuron"]:
    """Return (h - b) dm/dh, summed over positions: the effect of removal to first order, in units of the target.

    References:
        Molchanov et al., "Pruning convolutional neural networks for resource efficient inference", 2017, without
        their absolute value.
    """
    assert batch.gradient is not None
    return batch.sum_positions(batch.deviation * batch.gradient)


def taylor(batch: SiteBatch) -> Float[Tensor, "sample neuron"]:
    """Return the square of (h - b) dm/dh, summed over positions first: how much a neuron moves the target at all.

    For pruning, where no neuron may matter to any sample. It has no sign, so that neurons whose removal helps rank as
    high as those whose removal hurts: as all absolute values, it is a poor guide to what removal takes away. Squares
    are taken per sample and averaged over the cluster, where the authors square the sum over a batch, which would
    depend on how samples are batched. In units of the target squared.

    References:
        Molchanov et al., "Importance estimation for neural network pruning", 2019, with the target in place of the
        loss.
    """
    return gradient_x_activation(batch).square()
