"""Site: from names and globs to the modules whose output neurons are scored and removed."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

MAX_GLOB_SITES = 16
"""Globs that match more modules than this are refused: name them one by one to have them all."""

_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)
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


@dataclass(frozen=True)
class Site:
    """Where neurons are read and removed: the output of a module.

    Attributes:
        name: as in `model.named_modules()`.
        axis: of the output, along which neurons are counted. By default: 1 for (sample, neuron) outputs; else the
            last for linear layers and layer norms, 1 for convolutions, their norms and pooling; for any other module,
            such as an activation, that of the layer that ran last before its output.
        optional: whether a module that is not called, or returns no tensor, is passed over (it came from a glob).
    """

    name: str
    axis: int | None = None
    optional: bool = False


def find_sites(model: nn.Module, layers: Any) -> tuple[Site, ...]:
    """Resolve names and globs.

    Args:
        model: its `named_modules()` are searched.
        layers: names, globs (`*` stands for one level of a name, `**` for any number) or sites.

    Returns:
        One site per module, in the order asked for, globs in the model's order.

    Raises:
        ValueError: if a name is not there, a glob matches nothing or more than 16 modules, or nothing was asked for.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [site.name for site in find_sites(model, "*")]
    ['0', '1', '2']
    """
    asked = [layers] if isinstance(layers, str | Site | nn.Module) or not isinstance(layers, Iterable) else list(layers)
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, Site] = {}
    for layer in asked:
        if isinstance(layer, str) and "*" in layer:
            matches = [name for name in names if _glob(layer).fullmatch(name)]
            if not matches:
                raise ValueError(f"no layer matches {layer!r}: {_closest(layer.replace('*', ''), names)}")
            if len(matches) > MAX_GLOB_SITES:
                raise ValueError(
                    f"{layer!r} matches {len(matches)} layers, more than the {MAX_GLOB_SITES} that a glob may stand "
                    f"for; name those that you want, for instance {matches[:3]}"
                )
            for name in matches:
                found.setdefault(name, Site(name, optional=True))
        elif isinstance(layer, str | Site):
            site = Site(layer) if isinstance(layer, str) else layer
            if site.name not in names:
                raise ValueError(f"no layer {site.name!r} in {type(model).__name__}: {_closest(site.name, names)}")
            found[site.name] = site
        elif isinstance(layer, nn.Module):
            known = [name for name, module in model.named_modules() if module is layer and name]
            remedy = f"pass its name, {known[0]!r}" if known else "pass the name of a layer in model.named_modules()"
            raise ValueError(f"layers must be names, globs or sites, got a module, {type(layer).__name__}: {remedy}")
        else:
            raise ValueError(f"layers must be names, globs or sites, got {layer!r}")
    if not found:
        raise ValueError("layers is empty: name at least one layer, as in model.named_modules()")
    return tuple(found.values())


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
        self._last: int | None = None

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Follow the model's layers inside this context."""

        def note(module: nn.Module, args: object, output: object) -> None:
            self._last = _own_axis(module)

        handles = []
        try:
            for module in model.modules():
                if _own_axis(module) is not None:
                    handles.append(module.register_forward_hook(note))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def axis(self, site: Site, module: nn.Module, output: Tensor) -> int:
        """The neuron axis of the module's output.

        Raises:
            ValueError: if the output has no neuron axis, or nothing tells which it is.
        """
        if site.axis is not None:
            given = site.axis % output.ndim if -output.ndim <= site.axis < output.ndim else 0
            if given == 0:
                raise ValueError(
                    f"axis={site.axis} is not a neuron axis of layer {site.name!r}, whose output has shape "
                    f"{tuple(output.shape)} with the samples on axis 0; choose from 1 to {output.ndim - 1}"
                )
            return given
        if output.ndim < 2:
            raise ValueError(
                f"layer {site.name!r} has an output of shape {tuple(output.shape)}: there is no axis of neurons "
                "beside the samples; choose a layer whose output is (sample, neuron, ...)"
            )
        if output.ndim == 2:
            return 1
        axis = _own_axis(module)
        axis = self._last if axis is None else axis
        if axis is None:
            raise ValueError(
                f"cannot tell the neuron axis of layer {site.name!r} ({type(module).__name__}) with an output of shape "
                f"{tuple(output.shape)}: no linear or convolutional layer ran before it; "
                f"pass Site({site.name!r}, axis=...) in layers"
            )
        return axis % output.ndim


def _own_axis(module: nn.Module) -> int | None:
    return -1 if isinstance(module, _LAST) else 1 if isinstance(module, _SECOND) else None


def check_output(site: Site, module: nn.Module, output: object, n_samples: int) -> Tensor:
    """The output, if neurons can be scored and removed in it.

    Raises:
        ValueError: if it is no floating-point tensor with one entry per sample.
    """
    kind = f"layer {site.name!r} ({type(module).__name__})"
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{kind} returns a {type(output).__name__}, not a tensor; choose a layer inside or behind it that does"
        )
    if not output.is_floating_point():
        raise ValueError(
            f"{kind} returns integers ({output.dtype}), which have no gradient and no removal; choose a layer behind it"
        )
    if not output.ndim or output.shape[0] != n_samples:
        raise ValueError(
            f"{kind} has an output of shape {tuple(output.shape)} for a batch of {n_samples} samples; "
            "its first axis must be the samples"
        )
    return output


def sum_positions(values: Float[Tensor, "sample ..."], axis: int) -> Float[Tensor, "sample neuron"]:
    """Sum over all axes but the samples and the neurons: space, for a convolution."""
    others = [other for other in range(1, values.ndim) if other != axis]
    return values.sum(others) if others else values


def along_axis(values: Shaped[Tensor, "*sample neuron"], axis: int, ndim: int) -> Tensor:
    """Values per neuron, (neuron,) or (sample, neuron), shaped to broadcast against an output of `ndim` axes."""
    lead = 1 if values.ndim == 1 else values.shape[0]
    shape = [lead] + [1] * (ndim - 1)
    shape[axis] = values.shape[-1]
    return values.reshape(shape)


def n_positions(shape: torch.Size, axis: int) -> int:
    """How many positions an output of this shape has per sample and neuron."""
    count = 1
    for other, size in enumerate(shape):
        if other not in (0, axis):
            count *= size
    return count
