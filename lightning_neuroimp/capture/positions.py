"""Positions: the axes of a tensor that count neither samples nor neurons."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lightning_neuroimp.site import Site


def token_axis(ndim: int, axis: int) -> int | None:
    """The axis of positions, where there is one; samples are on axis 0, neurons on `axis`."""
    others = [other for other in range(1, ndim) if other != axis]
    return others[0] if len(others) == 1 else None


def chosen_positions(
    site: Site, activation: Float[Tensor, "sample ..."], axis: int, tokens: Bool[Tensor, "sample token"] | None
) -> Bool[Tensor, "sample token"] | None:
    """Which positions of each sample count: the unpadded ones, or the one that the site names. None: all.

    Args:
        site: names one position, or none.
        activation: samples first.
        axis: of its neurons.
        tokens: True where a token is no padding; ignored where the activations have other positions.

    Raises:
        ValueError: if a position is named and the activations have no one axis of positions, not so many positions,
            or padding that the mask does not tell.
    """
    where = token_axis(activation.ndim, axis)
    length = None if where is None else activation.shape[where]
    fitting = tokens is not None and tokens.shape[1:] == (length,)
    if site.position is None:
        return tokens if fitting else None
    if length is None:
        raise ValueError(
            f"position={site.position} of layer {site.name!r} needs one axis of positions beside samples and neurons, "
            f"but its {site.side} has shape {tuple(activation.shape)}"
        )
    if not fitting and not -length <= site.position < length:
        raise ValueError(f"position={site.position} of layer {site.name!r}: it has {length} positions")
    if tokens is not None and not fitting and site.position < 0 and not bool(tokens.all()):
        raise ValueError(
            f"position={site.position} of layer {site.name!r} counts from the last unpadded position, but the mask has "
            f"{tokens.shape[1]} tokens and the layer {length} positions; let forward_fn return (logits, targets, "
            "tokens) with a mask of the layer's length"
        )
    if tokens is None or not fitting:
        tokens = torch.ones(len(activation), length, dtype=torch.bool, device=activation.device)
    number = tokens.cumsum(1)  # of each token, from 1, padding not counted
    asked = site.position + 1 if site.position >= 0 else number[:, -1:] + site.position + 1
    return tokens & (number == asked)


def sum_positions(
    values: Float[Tensor, "sample ..."], axis: int, positions: Bool[Tensor, "sample token"] | None = None
) -> Float[Tensor, "sample channel"]:
    """Sum over all axes but the samples and the neurons: space, for a convolution.

    Args:
        values: samples first.
        axis: of the neurons.
        positions: True for those that count; None: all.
    """
    others = [other for other in range(1, values.ndim) if other != axis]
    if positions is not None:
        values = values.where(along_positions(positions, axis), 0)
    return values.sum(others) if others else values


def sum_groups(values: Float[Tensor, "sample channel"], group: int) -> Float[Tensor, "sample neuron"]:
    """Sum over each group of channels, which is one neuron."""
    return values if group == 1 else values.unflatten(1, (-1, group)).sum(2)


def along_axis(values: Shaped[Tensor, "*sample channel"], axis: int, ndim: int) -> Tensor:
    """Values per channel, (channel,) or (sample, channel), shaped to broadcast against a tensor of `ndim` axes."""
    lead = 1 if values.ndim == 1 else values.shape[0]
    shape = [lead] + [1] * (ndim - 1)
    shape[axis] = values.shape[-1]
    return values.reshape(shape)


def along_positions(values: Shaped[Tensor, "sample token"], axis: int) -> Shaped[Tensor, "sample _ _"]:
    """Values per position, shaped to broadcast against a tensor of samples, positions and, on `axis`, neurons."""
    return values.unsqueeze(axis)


def count_positions(activation: Tensor, axis: int, positions: Bool[Tensor, "sample token"] | None) -> Tensor:
    """How many positions of each sample count."""
    if positions is not None:
        return positions.sum(1)
    count = activation[0].numel() // activation.shape[axis] if len(activation) else 1
    return torch.full((len(activation),), count, device=activation.device)
