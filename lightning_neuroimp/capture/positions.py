"""Choose, sum and count positions: the axes of a tensor that count neither samples nor neurons.

Tensors have the samples on axis 0 and the neurons on `axis`; the others are positions, such as tokens or pixels. A mask
of tokens has shape (sample, token); a mask of positions has the shape of the tensor without the axis of the neurons.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Site


def token_axis(ndim: int, axis: int) -> int | None:
    """Return the axis of positions of a tensor; None if there is none, or more than one.

    Args:
        ndim: number of the tensor's axes.
        axis: axis of its neurons; the samples are on axis 0.

    >>> token_axis(3, 2), token_axis(4, 1)
    (1, None)
    """
    others = [other for other in range(1, ndim) if other != axis]
    return others[0] if len(others) == 1 else None


def axes_of_length(shape: Sequence[int], axis: int, length: int) -> list[int]:
    """Return the axes of positions that have a length.

    Args:
        shape: of a tensor; the samples are on axis 0.
        axis: axis of its neurons.
        length: number of tokens in a mask.

    >>> axes_of_length((8, 7, 4, 5), 3, 7), axes_of_length((8, 7, 7), 2, 7), axes_of_length((8, 7, 7, 7), 3, 7)
    ([1], [1], [1, 2])
    """
    return [other for other in range(1, len(shape)) if other != axis and shape[other] == length]


def chosen_positions(
    site: Site, activation: Float[Tensor, "sample ..."], axis: int, tokens: Bool[Tensor, "sample token"] | None
) -> Bool[Tensor, " sample *position"] | None:
    """Return which positions of each sample count: the unpadded ones, or the one that the site names.

    Args:
        site: names one position, or none.
        activation: samples first.
        axis: axis of its neurons.
        tokens: True for non-padding tokens; ignored where not exactly one axis of positions has as many entries.

    Returns:
        True for each position that counts, of the activations' shape without the axis of neurons; None if all do.

    Raises:
        InvalidArgument: if a position is named and the activations have not exactly one axis of positions, have fewer
            positions, or have padding that the mask does not tell.
    """
    where = token_axis(activation.ndim, axis)
    length = None if where is None else activation.shape[where]
    fits = tokens is not None and tokens.shape[1:] == (length,)
    position = site.position
    if position is None:
        return None if tokens is None else _along_token_axis(tokens, activation.shape, axis)
    if length is None:
        raise InvalidArgument(
            f"position={position} of layer {site.name!r} needs one axis of positions in addition to samples and "
            f"neurons, but its {site.side} has shape {tuple(activation.shape)}"
        )
    if not fits and not -length <= position < length:
        raise InvalidArgument(f"position={position} of layer {site.name!r}: it has {length} positions")
    if tokens is not None and not fits and position < 0 and not bool(tokens.all()):
        raise InvalidArgument(
            f"position={position} of layer {site.name!r} counts from the last unpadded position, but the mask has "
            f"{tokens.shape[1]} tokens and the layer {length} positions; let forward_fn return (logits, targets, "
            "tokens) with a mask of the layer's length"
        )
    if tokens is None or not fits:
        tokens = torch.ones(len(activation), length, dtype=torch.bool, device=activation.device)
    number = tokens.cumsum(1)  # of each token, from 1, padding not counted
    wanted = position + 1 if position >= 0 else number[:, -1:] + position + 1
    return tokens & (number == wanted)


def _along_token_axis(
    tokens: Bool[Tensor, "sample token"], shape: Sequence[int], axis: int
) -> Bool[Tensor, " sample *position"] | None:
    """Return a mask of tokens as one of positions; None where not exactly one axis of positions has its length."""
    axes = axes_of_length(shape, axis, tokens.shape[1])
    if len(axes) != 1:
        return None
    lengths = [size if other in (0, axes[0]) else 1 for other, size in enumerate(shape) if other != axis]
    return tokens.reshape(lengths).expand([size for other, size in enumerate(shape) if other != axis])


def padding_note(output: Tensor, axis: int, tokens: Bool[Tensor, "sample token"] | None, doubt: str) -> str:
    """Say what a reader should know about padding at a site; empty if there is nothing.

    Args:
        output: activations, samples first.
        axis: axis of their neurons.
        tokens: True for non-padding tokens, some of which are padding; None if no mask is known.
        doubt: why a field of the batch that may be a mask is not used.
    """
    sizes = [size for other, size in enumerate(output.shape) if other not in (0, axis)]
    if tokens is None:
        remedy = "let forward_fn return (logits, targets, tokens), tokens True for tokens, or None without padding"
        return f"{doubt}, so that padding may count here; {remedy}" if doubt and sizes else ""
    n_tokens = tokens.shape[1]
    if len(sizes) == 1 and sizes[0] != n_tokens:
        return (
            f"if its positions are tokens, padding counts there: the mask has {n_tokens} tokens and the layer "
            f"{sizes[0]} positions; forward_fn may return (logits, targets, tokens) with a mask of the layer's length"
        )
    axes = axes_of_length(output.shape, axis, n_tokens)
    if len(sizes) == 1 or not axes:
        return ""
    shape, settled = tuple(output.shape), "forward_fn may return None in place of tokens where the layer has none"
    if len(axes) > 1:
        return (
            f"if its positions are tokens, padding counts there: the mask has {n_tokens} tokens, as axes {axes} of its "
            f"shape {shape} do, so that neither is taken for tokens; {settled}"
        )
    return f"axis {axes[0]} of its shape {shape} is taken for the mask's {n_tokens} tokens, by its length; {settled}"


def sum_positions(
    values: Float[Tensor, "sample ..."], axis: int, positions: Bool[Tensor, " sample *position"] | None = None
) -> Float[Tensor, "sample channel"]:
    """Return the sum over all axes except samples and neurons: over space for a convolution, over tokens.

    Args:
        values: samples first.
        axis: axis of the neurons.
        positions: True for those that count; None if all do.
    """
    others = [other for other in range(1, values.ndim) if other != axis]
    if positions is not None:
        values = values.where(along_positions(positions, axis), 0)
    return values.sum(others) if others else values


def sum_groups(values: Float[Tensor, "sample channel"], group: int) -> Float[Tensor, "sample neuron"]:
    """Return the sum over each group of neighbouring channels, which is one neuron.

    Args:
        values: per channel.
        group: number of channels in a group.
    """
    return values if group == 1 else values.unflatten(1, (-1, group)).sum(2)


def along_axis(values: Shaped[Tensor, "*sample channel"], axis: int, ndim: int) -> Tensor:
    """Return values per channel in a shape that broadcasts against a tensor.

    Args:
        values: (channel,) or (sample, channel).
        axis: axis of the tensor's channels.
        ndim: number of the tensor's axes.
    """
    lead = 1 if values.ndim == 1 else values.shape[0]
    shape = [lead] + [1] * (ndim - 1)
    shape[axis] = values.shape[-1]
    return values.reshape(shape)


def along_positions(values: Shaped[Tensor, " sample *position"], axis: int) -> Shaped[Tensor, "sample ..."]:
    """Return values per position in a shape that broadcasts against a tensor of samples, positions and neurons.

    Args:
        values: of the tensor's shape without the axis of its neurons.
        axis: axis of the tensor's neurons.
    """
    return values.unsqueeze(axis)


def count_positions(activation: Tensor, axis: int, positions: Bool[Tensor, " sample *position"] | None) -> Tensor:
    """Return the number of positions of each sample that count.

    Args:
        activation: samples first.
        axis: axis of its neurons.
        positions: True for those that count; None if all do.
    """
    if positions is not None:
        return positions.flatten(1).sum(1)
    count = activation[0].numel() // activation.shape[axis] if len(activation) else 1
    return torch.full((len(activation),), count, device=activation.device)
