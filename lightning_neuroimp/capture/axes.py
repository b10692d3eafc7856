"""Tell along which axis of a tensor the neurons are counted."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
