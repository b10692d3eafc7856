"""Tell along which axis of a tensor the neurons are counted.

Layers of torch count them on a fixed axis; whatever else has activations (a function, a user's module) counts
them as the layer before it does, if the sizes agree. What nothing tells is refused.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lightning_neuroimp import _compat
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Site

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
"""Layers whose neurons are on the last axis."""

_SECOND = (*_compat.CONVOLUTIONAL, nn.GroupNorm, nn.LocalResponseNorm, nn.PixelShuffle)
"""Layers whose channels are on axis 1."""

_WIDTHS = {
    "output": ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim"),
    "input": ("in_features", "in_channels", "num_features", "num_channels"),
}
"""Attributes in which layers hold the number of their channels, on either side."""


class AxisTracker:
    """Remember, during a forward pass, along which axis the layer that ran last counts its neurons.

    Example:
        with tracker.watch(model):
            model(x)  # a hook inside may call tracker.axis(site, module, tensor)
    """

    def __init__(self) -> None:
        self._last: tuple[int, torch.Size] | None = None  # axis, shape

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Follow the model's layers inside this context."""
        with ExitStack() as stack:
            for module in model.modules():
                if _own_axis(module) is not None:
                    stack.callback(module.register_forward_hook(self._note).remove)
            yield

    def _note(self, module: nn.Module, args: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        axis = _own_axis(module)
        if axis is not None and isinstance(first, Tensor) and first.ndim > 1:
            found = _axis_of_width(first.shape, axis, _width(module, "output"))
            self._last = None if found is None else (found, first.shape)

    def axis(self, site: Site, module: nn.Module, tensor: Tensor) -> int:
        """Return the neuron axis of a site's tensor.

        Args:
            site: names the axis, or leaves it to be inferred.
            module: was called.
            tensor: of the site, samples first.

        Raises:
            InvalidArgument: if the tensor has no neuron axis, nothing tells which it is, or groups of the site's size
                do not divide it.
        """
        if tensor.ndim < 2:
            raise InvalidArgument(
                f"layer {site.name!r} has an {site.side} of shape {tuple(tensor.shape)}: there is no axis of neurons "
                f"in addition to the samples; choose a layer whose {site.side} is (sample, neuron, ...)"
            )
        axis = self._infer(site, module, tensor) if site.axis is None else _named_axis(site, site.axis, tensor)
        if tensor.shape[axis] % site.group:
            raise InvalidArgument(
                f"layer {site.name!r} has {tensor.shape[axis]} channels, which groups of {site.group} do not divide; "
                "for attention heads pass the width of one head"
            )
        return axis

    def _infer(self, site: Site, module: nn.Module, tensor: Tensor) -> int:
        """Return the axis that the shape, the layer or the layer before it tells."""
        if tensor.ndim == 2:
            return 1
        sample_axis = site.sample_axis or 0
        shape = _own_shape(tensor, sample_axis)
        found = self._guess(module, site.side, shape)
        if found is None or found == sample_axis:
            raise InvalidArgument(
                f"cannot tell the neuron axis of layer {site.name!r} ({type(module).__name__}) with an {site.side} of "
                f"shape {tuple(shape)}: no linear or convolutional layer with as many channels ran before it; "
                f"pass Site({site.name!r}, axis=...) in layers"
            )
        return _samples_first(found, sample_axis)

    def _guess(self, module: nn.Module, side: str, shape: torch.Size) -> int | None:
        """Return the axis of the layer itself, or of the layer that ran last if the sizes agree; else None."""
        own = _own_axis(module)
        if own is not None:
            return _axis_of_width(shape, own, _width(module, side))
        if self._last is None:
            return None
        axis, before = self._last
        if len(shape) == len(before) and all(
            size == previous for place, (size, previous) in enumerate(zip(shape, before, strict=True)) if place != axis
        ):
            return axis
        return _only_axis(shape, before[axis])  # it may have been transposed or flattened since


def _named_axis(site: Site, axis: int, tensor: Tensor) -> int:
    """Return the axis that a site names, with the samples first.

    Raises:
        InvalidArgument: if the tensor has no such axis, or its samples are there.
    """
    sample_axis = site.sample_axis or 0
    own = axis % tensor.ndim if -tensor.ndim <= axis < tensor.ndim else sample_axis
    if own == sample_axis:
        others = [other for other in range(tensor.ndim) if other != sample_axis]
        raise InvalidArgument(
            f"axis={axis} is not a neuron axis of layer {site.name!r}, whose {site.side} has shape "
            f"{tuple(_own_shape(tensor, sample_axis))} with the samples on axis {sample_axis}; choose from "
            f"{', '.join(map(str, others))}"
        )
    return _samples_first(own, sample_axis)


def _own_shape(tensor: Tensor, sample_axis: int) -> torch.Size:
    """Return the shape as the model has it, of a tensor with its samples moved to axis 0."""
    return tensor.movedim(0, sample_axis).shape if sample_axis else tensor.shape


def _samples_first(axis: int, sample_axis: int) -> int:
    """Return where an axis of the model's tensor is once the samples are moved to axis 0."""
    return axis + 1 if axis < sample_axis else axis


def _own_axis(module: nn.Module) -> int | None:
    """Return the axis on which a layer of torch counts its neurons; None for any other module."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return None  # over space too: it counts as the layer before it does
    return -1 if isinstance(module, _LAST) else 1 if isinstance(module, _SECOND) else None


def _width(module: nn.Module, side: str) -> int | None:
    """Return the number of channels that a layer declares; None if it declares none."""
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return None  # its outputs and states are of several widths, and always on the last axis
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple | list | torch.Size) and shape:
        return int(shape[-1])
    found = [getattr(module, name, None) for name in _WIDTHS[side]]
    return next((width for width in found if isinstance(width, int)), None)


def _axis_of_width(shape: torch.Size, axis: int, width: int | None) -> int | None:
    """Return the axis if its size is the width, otherwise the only axis of this size; None if there is no such one."""
    axis %= len(shape)
    return axis if width is None or shape[axis] == width else _only_axis(shape, width)


def _only_axis(shape: torch.Size, width: int) -> int | None:
    """Return the only axis after the samples that has this size; None if there are several or none."""
    found = [axis for axis in range(1, len(shape)) if shape[axis] == width]
    return found[0] if len(found) == 1 else None
