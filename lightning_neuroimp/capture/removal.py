"""Remove neurons from activations: set them to their baseline.

`baselines.Baseline` is what was asked for; `site.Removal` is the one object that scores and ablations share; here is
what it does to tensors.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_neuroimp.capture.positions import along_axis, along_positions
from lightning_neuroimp.site import Removal

_SAME_SIZE = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


@dataclass(frozen=True, eq=False)
class BatchRemoval:
    """Hold what a removal is in one batch.

    Attributes:
        positions: True where neurons are removed; None: at all positions.
        donated: activations of other samples at the site, for the baseline "resample".
    """

    positions: Bool[Tensor, " sample *position"] | None = None
    donated: Float[Tensor, "sample ..."] | None = None


EVERYWHERE = BatchRemoval()


def baseline_of(removal: Removal, activation: Tensor, batch_removal: BatchRemoval) -> Tensor:
    """Return the baseline, shaped to broadcast against activations."""
    if batch_removal.donated is not None:
        return batch_removal.donated
    value = torch.as_tensor(removal.baseline_value, dtype=activation.dtype, device=activation.device)
    return along_axis(value, removal.axis, activation.ndim)


def remove(
    activation: Float[Tensor, "sample ..."],
    removal: Removal,
    mask: Bool[Tensor, "_ neuron"],
    batch_removal: BatchRemoval = EVERYWHERE,
) -> Float[Tensor, "sample ..."]:
    """Return activations with the masked neurons set to their baseline; no gradient flows through.

    Args:
        activation: of the removal's site, samples first.
        removal: which axis, which baseline.
        mask: True where a neuron is removed; one row per sample, or one for all.
        batch_removal: at which positions, and what other samples donate.
    """
    activation = activation.detach()
    value = baseline_of(removal, activation, batch_removal)
    group, positions = removal.where.group, batch_removal.positions
    channels = mask if group == 1 else mask.repeat_interleave(group, 1)
    # laid out in memory as the activations are, whatever the mask is: later layers may compute differently otherwise
    result = torch.empty_like(activation)
    whole = _SAME_SIZE.get(activation.dtype)
    if whole is None:
        gone = along_axis(channels, removal.axis, activation.ndim)
        if positions is not None:
            gone = gone & along_positions(positions, removal.axis)
        return torch.where(gone, value, activation, out=result)
    # choosing by bits is as exact, and on a CPU five times faster
    keep = along_axis(channels.to(whole).sub_(1), removal.axis, activation.ndim)  # all bits set where a neuron stays
    if positions is not None:
        keep = keep | along_positions(positions.to(whole).sub_(1), removal.axis)
    chosen = result.view(whole)
    torch.bitwise_and(activation.view(whole), keep, out=chosen)
    if batch_removal.donated is not None or removal.baseline_value.any():
        chosen.bitwise_or_(value.view(whole) & ~keep)
    return result
