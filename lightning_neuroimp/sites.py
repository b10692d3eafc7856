"""From names and globs to sites; along which axes of their tensors samples, neurons and positions are counted."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from lightning_neuroimp.results import Site

MAX_GLOB_SITES = 16
"""Globs that match more modules than this are refused: name them one by one to have them all."""

_LAST = (
    nn.Linear,
    nn.Bilinear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.MultiheadAttention,
)
_SECOND = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,  # also instance norm
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.PixelShuffle,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


def check_layers(layers: Any) -> list[Any]:
    """What was asked for, one by one, before there is a model.

    Raises:
        ValueError: if it is neither a name, glob or site (or a module, of which the model will tell the name) nor
            several of them.
    """
    single = isinstance(layers, str | Site | nn.Module) or not isinstance(layers, Iterable)
    asked = [layers] if single else list(layers)
    for layer in asked:
        if not isinstance(layer, str | Site | nn.Module):
            raise ValueError(f"layers must be names, globs or sites, got {layer!r}")
    if not asked:
        raise ValueError("layers is empty: name at least one layer, as in model.named_modules()")
    return asked


def find_sites(model: nn.Module, layers: Any) -> tuple[Site, ...]:
    """Resolve names and globs.

    Args:
        model: its `named_modules()` are searched.
        layers: names, globs (`*` stands for one level of a name, `**` for any number) or sites.

    Returns:
        Sites with their sample axis, in the order asked for, globs in the model's order.

    Raises:
        ValueError: if a name is not there, a glob matches nothing or more than 16 modules, or nothing was asked for.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [site.name for site in find_sites(model, "*")]
    ['0', '1', '2']
    """
    asked = check_layers(layers)
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, Site] = {}
    for layer in asked:
        if isinstance(layer, nn.Module):
            known = [name for name, module in model.named_modules() if module is layer and name]
            remedy = f"pass its name, {known[0]!r}" if known else "pass the name of a layer in model.named_modules()"
            raise ValueError(f"layers must be names, globs or sites, got a module, {type(layer).__name__}: {remedy}")
        site = Site(layer) if isinstance(layer, str) else layer
        if "*" in site.name:
            matches = [name for name in names if _glob(site.name).fullmatch(name)]
            if not matches:
                raise ValueError(f"no layer matches {site.name!r}: {_closest(site.name.replace('*', ''), names)}")
            if len(matches) > MAX_GLOB_SITES:
                raise ValueError(
                    f"{site.name!r} matches {len(matches)} layers, more than the {MAX_GLOB_SITES} that a glob may "
                    f"stand for; name those that you want, for instance {matches[:3]}"
                )
            for name in matches:
                one = _with_sample_axis(model, replace(site, name=name, optional=True))
                found.setdefault(str(one), one)
        elif site.name in names:
            found[str(site)] = _with_sample_axis(model, site)
        else:
            raise ValueError(f"there is no layer {site.name!r} in {type(model).__name__}: {_closest(site.name, names)}")
    return tuple(found.values())


def _with_sample_axis(model: nn.Module, site: Site) -> Site:
    """With the sample axis that torch's own recurrent layers, attention and encoders say that they have."""
    if site.sample_axis is not None:
        return site
    module = model.get_submodule(site.name)
    if isinstance(module, nn.RNNBase) and site.side == "output" and site.path[:1] == (1,):
        return replace(site, sample_axis=1)  # of the last states, whatever batch_first is
    parts = site.name.split(".")
    around = [model.get_submodule(".".join(parts[:level])) for level in range(len(parts) + 1)]
    return replace(site, sample_axis=0 if all(map(_batch_first, around)) else 1)


def _batch_first(module: nn.Module) -> bool:
    """False where everything inside has the samples on axis 1."""
    if isinstance(module, nn.Transformer):
        return bool(module.batch_first)
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        module = module.layers[0]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return bool(module.batch_first)
    return True


def _glob(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.compile("".join({"**": ".*", "*": "[^.]*"}.get(part, re.escape(part)) for part in parts))


def _closest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}? model.named_modules() lists all names"
    return f"its layers are {', '.join(map(repr, names[:8]))}{', ...' if len(names) > 8 else ''}"


class AxisTracker:
    """Remembers, during a forward pass, along which axis the layer that ran last counts its neurons."""

    def __init__(self) -> None:
        self._last: tuple[int, torch.Size] | None = None  # axis, shape

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Follow the model's layers inside this context."""

        def note(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            axis = _own_axis(module)
            if axis is not None and isinstance(first, Tensor) and first.ndim > 1:
                found = _fitting(first.shape, axis, _width(module, "output"))
                self._last = None if found is None else (found, first.shape)

        handles = []
        try:
            for module in model.modules():
                if _own_axis(module) is not None:
                    handles.append(module.register_forward_hook(note))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def axis(self, site: Site, module: nn.Module, tensor: Tensor) -> int:
        """The neuron axis of a site's tensor, samples first.

        Raises:
            ValueError: if the tensor has no neuron axis, nothing tells which it is, or the groups do not fit into it.
        """
        axis = self._axis(site, module, tensor)
        if tensor.shape[axis] % site.group:
            raise ValueError(
                f"layer {site.name!r} has {tensor.shape[axis]} channels, which groups of {site.group} do not divide; "
                "for attention heads pass the width of one head"
            )
        return axis

    def _axis(self, site: Site, module: nn.Module, tensor: Tensor) -> int:
        if tensor.ndim < 2:
            raise ValueError(
                f"layer {site.name!r} has an {site.side} of shape {tuple(tensor.shape)}: there is no axis of neurons "
                f"beside the samples; choose a layer whose {site.side} is (sample, neuron, ...)"
            )
        axis, sample_axis = site.axis, site.sample_axis or 0
        if axis is not None:
            given = axis % tensor.ndim if -tensor.ndim <= axis < tensor.ndim else sample_axis
            if given == sample_axis:
                others = [other for other in range(tensor.ndim) if other != sample_axis]
                raise ValueError(
                    f"axis={axis} is not a neuron axis of layer {site.name!r}, whose {site.side} has shape "
                    f"{tuple(tensor.movedim(0, sample_axis).shape)} with the samples on axis {sample_axis}; choose "
                    f"from {', '.join(map(str, others))}"
                )
            return given + 1 if given < sample_axis else given
        if tensor.ndim == 2:
            return 1
        shape = tensor.shape if not sample_axis else tensor.movedim(0, sample_axis).shape
        found = self._guess(module, site.side, shape)
        if found is None or found == sample_axis:
            raise ValueError(
                f"cannot tell the neuron axis of layer {site.name!r} ({type(module).__name__}) with an {site.side} of "
                f"shape {tuple(shape)}: no linear or convolutional layer with as many channels ran before it; "
                f"pass Site({site.name!r}, axis=...) in layers"
            )
        return found + 1 if found < sample_axis else found

    def _guess(self, module: nn.Module, side: str, shape: torch.Size) -> int | None:
        """By the layer itself, or as the layer counts that ran last, if the sizes bear it out."""
        own = _own_axis(module)
        if own is not None:
            return _fitting(shape, own, _width(module, side))
        if self._last is None:
            return None
        axis, before = self._last
        if len(shape) == len(before) and all(
            size == then for place, (size, then) in enumerate(zip(shape, before, strict=True)) if place != axis
        ):
            return axis
        return _only(shape, before[axis])  # it may have been transposed or flattened since


def _own_axis(module: nn.Module) -> int | None:
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return None  # over space too: it counts as the layer before it does
    return -1 if isinstance(module, _LAST) else 1 if isinstance(module, _SECOND) else None


_WIDTHS = {
    "output": ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim"),
    "input": ("in_features", "in_channels", "num_features", "num_channels"),
}


def _width(module: nn.Module, side: str) -> int | None:
    """How many channels a layer says that it has; None where it does not say."""
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return None  # its outputs and states are of several widths, and always on the last axis
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple | list | torch.Size) and shape:
        return int(shape[-1])
    found = [getattr(module, name, None) for name in _WIDTHS[side]]
    return next((width for width in found if isinstance(width, int)), None)


def _fitting(shape: torch.Size, axis: int, width: int | None) -> int | None:
    """The axis if its size is the width, else the only one that is of this size."""
    axis %= len(shape)
    return axis if width is None or shape[axis] == width else _only(shape, width)


def _only(shape: torch.Size, width: int) -> int | None:
    found = [axis for axis in range(1, len(shape)) if shape[axis] == width]
    return found[0] if len(found) == 1 else None


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
