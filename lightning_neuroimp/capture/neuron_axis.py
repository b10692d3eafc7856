"""Tell along which axis of a tensor the neurons are counted, as far as one forward pass can tell.

Layers of torch count them on a fixed axis, if their `forward` is torch's own. Whatever else has activations (a
function, a user's module) counts them as the layer before it does, which is known if it hands on that layer's very
tensor. All else is left to `settling.py`, or refused: sizes that agree tell nothing.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_neuroimp import _compat
from lightning_neuroimp.capture.suffix.storage import geometry_of, has_storage, storage_of
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
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
"""Layers whose neurons are on the last axis."""

_SECOND = (
    *_compat.CONVOLUTIONAL,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)
"""Layers whose channels are on axis 1."""

_HANDED_ON = (nn.Upsample,)
_HANDED_ON_IN = ("torch.nn.modules.padding", "torch.nn.modules.pooling")
"""Layers that have no neurons of their own, and their modules: they change positions, whichever axis these are on."""

_ELEMENTWISE_IN = ("torch.nn.modules.activation", "torch.nn.modules.dropout", "torch.nn.modules.linear")
"""Modules of torch's functions of single values; layers with an axis of their own are told apart before."""

_LONG_NAME = 24  # characters: messages hold longer names once

_REMEMBERED = 8  # tensors that are kept alive, so that no other one gets their memory


class Layer(NamedTuple):
    """Hold one call of a layer of torch whose neuron axis is known.

    Attributes:
        module: was called.
        call: number of the call in the forward pass, 0 for the first.
        axis: of its output along which it counts its neurons, as the model has it.
        shape: of its output.
    """

    module: nn.Module
    call: int
    axis: int
    shape: torch.Size


class AxisTracker:
    """Remember, during a forward pass, along which axes the layers that have run count their neurons.

    Attributes:
        layers: the calls of layers so far, in order.

    Example:
        with tracker.watch(model):
            model(x)  # a hook inside may call tracker.axis(site, module, tensor)
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self._calls: dict[int, int] = {}
        self._contradicted: set[int] = set()
        self._known: deque[tuple[Tensor, int]] = deque(maxlen=_REMEMBERED)

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Follow the model's layers inside this context."""
        with ExitStack() as stack:
            for module in model.modules():
                if _is_torchs_own(module) and (layer_axis(module) is not None or _hands_on(module)):
                    # before all other hooks, which may ask for the axis of this output, or replace it
                    stack.callback(module.register_forward_hook(self._note, prepend=True).remove)
            yield

    def _note(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        call = self._calls.get(id(module), 0)
        self._calls[id(module)] = call + 1
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, Tensor) or first.ndim < 2 or not has_storage(first):
            return
        axis = layer_axis(module)
        taken = args[0] if args else None
        found = self._same(taken) if isinstance(taken, Tensor) and taken.ndim == first.ndim else None
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) and found is not None and axis is not None:
            self._contradicted.discard(id(module))
            if found != axis % first.ndim:  # a norm over positions: it counts as the layer before it does
                self._contradicted.add(id(module))
                axis = None
        if axis is None:
            if found is not None:
                self._known.append((first.detach(), found))
            return
        axis %= first.ndim
        self.layers.append(Layer(module, call, axis, first.shape))
        self._known.append((first.detach(), axis))

    def find(self, site: Site, module: nn.Module, tensor: Tensor) -> int | None:
        """Return the neuron axis of a tensor as the model has it; None where that is not known.

        Args:
            site: on which side of the module the tensor is.
            module: was called.
            tensor: as the model has it, whichever axis the samples are on.
        """
        own = layer_axis(module) if _is_torchs_own(module) else None
        if own is not None and id(module) not in self._contradicted:
            return own % tensor.ndim
        return self._same(tensor)

    def _same(self, tensor: Tensor) -> int | None:
        """Return the axis of the layer whose very output a tensor is, through functions of single values."""
        if not has_storage(tensor):
            return None
        storage, geometry = storage_of(tensor), geometry_of(tensor)
        for known, axis in reversed(self._known):
            if storage_of(known) == storage and geometry_of(known) == geometry:
                return axis
        return None

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
        require_neurons(site, tensor)
        if site.axis is not None:
            return require_groups(site, named_axis(site, site.axis, tensor), tensor)
        if tensor.ndim == 2:
            return require_groups(site, 1, tensor)
        sample_axis = site.sample_axis or 0
        own = tensor.movedim(0, sample_axis) if sample_axis else tensor
        found = self.find(site, module, own)
        if found is None or found == sample_axis:
            raise InvalidArgument(unknown_axis(site, module, own.shape))
        return require_groups(site, samples_first(found, sample_axis), tensor)


def unknown_axis(site: Site, module: nn.Module, shape: torch.Size) -> str:
    """Say that the neuron axis of a site cannot be told, and what to pass.

    Args:
        site: whose axis is not known.
        module: was called.
        shape: of the tensor as the model has it.
    """
    others = [axis for axis in range(len(shape)) if axis != (site.sample_axis or 0)]
    choice = " or ".join(f"axis={axis} ({shape[axis]} neurons)" for axis in others)
    name = repr(site.name) if len(site.name) < _LONG_NAME else "name"
    return (
        f"cannot tell the neuron axis of layer {site.name!r} ({type(module).__name__}) with an {site.side} of shape "
        f"{tuple(shape)}: no layer of torch before it settles it; pass Site({name}, axis=...), with {choice}"
    )


def require_neurons(site: Site, tensor: Tensor) -> None:
    """Refuse a tensor that has no axis in addition to the samples.

    Raises:
        InvalidArgument: if it has less than two axes.
    """
    if tensor.ndim < 2:
        raise InvalidArgument(
            f"layer {site.name!r} has an {site.side} of shape {tuple(tensor.shape)}: there is no axis of neurons "
            f"in addition to the samples; choose a layer whose {site.side} is (sample, neuron, ...)"
        )


def require_groups(site: Site, axis: int, tensor: Tensor) -> int:
    """Return the neuron axis of a tensor, samples first, if the site's groups divide it.

    Raises:
        InvalidArgument: if they do not.
    """
    if tensor.shape[axis] % site.group:
        raise InvalidArgument(
            f"layer {site.name!r} has {tensor.shape[axis]} channels, which groups of {site.group} do not divide; "
            "for attention heads pass the width of one head"
        )
    return axis


def named_axis(site: Site, axis: int, tensor: Tensor) -> int:
    """Return the axis that a site names, with the samples first.

    Raises:
        InvalidArgument: if the tensor has no such axis, or its samples are there.
    """
    sample_axis = site.sample_axis or 0
    own = axis % tensor.ndim if -tensor.ndim <= axis < tensor.ndim else sample_axis
    if own == sample_axis:
        others = [other for other in range(tensor.ndim) if other != sample_axis]
        shape = tensor.movedim(0, sample_axis).shape if sample_axis else tensor.shape
        raise InvalidArgument(
            f"axis={axis} is not a neuron axis of layer {site.name!r}, whose {site.side} has shape "
            f"{tuple(shape)} with the samples on axis {sample_axis}; choose from {', '.join(map(str, others))}"
        )
    return samples_first(own, sample_axis)


def samples_first(axis: int, sample_axis: int) -> int:
    """Return where an axis of the model's tensor is once the samples are moved to axis 0.

    >>> samples_first(0, 1), samples_first(2, 1)
    (1, 2)
    """
    return axis + 1 if axis < sample_axis else axis


def layer_axis(module: nn.Module) -> int | None:
    """Return the axis on which a layer of torch counts its neurons; None for any other module."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return None  # over space too: it counts as the layer before it does
    if isinstance(module, nn.PReLU):
        return 1 if module.num_parameters > 1 else None
    if isinstance(module, _LAST):
        return -1
    return 1 if isinstance(module, _SECOND) and not _hands_on(module) else None


def declares_neurons(module: nn.Module) -> bool:
    """Tell whether a layer of torch fixes by its definition which axis counts its neurons."""
    return _is_torchs_own(module) and layer_axis(module) is not None


def declares_samples(module: nn.Module) -> bool:
    """Tell whether a layer of torch fixes, by its definition and its `batch_first`, which axis holds the samples."""
    layers = (nn.RNNBase, nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder)
    return _is_torchs_own(module) and (layer_axis(module) == 1 or isinstance(module, layers))


def _is_torchs_own(module: nn.Module) -> bool:
    """Tell whether calling a module runs the `forward` that torch wrote for it, rather than a subclass's or a patch."""
    if isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
        return False
    return (getattr(type(module).forward, "__module__", None) or "").startswith("torch.nn.")


def _hands_on(module: nn.Module) -> bool:
    """Tell whether a layer of torch changes single values, or positions, only: its axes are those of its input."""
    places = (*_ELEMENTWISE_IN, *_HANDED_ON_IN)
    return type(module).__module__ in places or isinstance(module, (*_HANDED_ON, nn.LayerNorm, nn.RMSNorm))
