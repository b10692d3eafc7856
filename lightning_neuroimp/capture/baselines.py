"""Validate what removed neurons are set to: a name, a number, a vector, a mapping from layers to these, or an input.

What can be told without the model is validated when the argument is read; `Baseline.require_sites` validates the names
of a mapping once the layers are known, and `Baseline.channels` the lengths of vectors once their channels are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.layout import HOST
from lightning_neuroimp.batches.structure import fingerprint, parts_of, to_device
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Site

IN_MAPPINGS = ("zero", "mean")
FOR_ALL_LAYERS = ("resample", "optimal")
BASELINES = IN_MAPPINGS + FOR_ALL_LAYERS
"""Names of baselines: the first may be values in a mapping, the others hold for all layers of a measurement."""

COMPUTED = ("mean", "optimal", "reference")
"""Kinds whose values are computed from samples."""

_VECTOR = "a list with one number per channel"


@dataclass(frozen=True, eq=False)
class ReferenceInput:
    """Set removed neurons to what the model has at a layer on a reference input, such as black images or padding.

    `baseline=ReferenceInput(inputs)` makes one more forward pass, over the reference alone. At each layer, every
    channel is set to its mean over the reference's samples and positions: one vector for a layer, the same at all
    positions. That is so because a neuron is one channel, whose removal puts one value in place of all of its values;
    and because samples may have other positions than the reference, such as other numbers of tokens.

    Attributes:
        inputs: what the model is called with (a tensor, a tuple of arguments, or a dictionary of keywords), in any
            number of samples; with a `forward_fn`, a whole batch as that takes it, targets included. It has tensors,
            so that it cannot be written in YAML: pass it in Python.

    Raises:
        InvalidArgument: if there is no tensor in it.

    >>> import torch
    >>> from lightning_neuroimp import neuron_importance
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> loader = [(torch.randn(8, 2), torch.arange(8) % 2)]
    >>> results = neuron_importance(model, loader, layers="1", baseline=ReferenceInput(torch.zeros(1, 2)))
    >>> bool((results["1"].removal.baseline_value == model[:2](torch.zeros(2)).detach().numpy()).all())
    True
    """

    inputs: Any

    def __post_init__(self) -> None:
        if not _has_tensor(self.inputs):
            raise InvalidArgument(
                "ReferenceInput must hold what the model is called with, such as ReferenceInput(torch.zeros(1, 3, 32, "
                f"32)), got {_validate.shown(self.inputs)}, which has no tensor in it"
            )


_Numbers = float | Sequence[float] | np.ndarray | Tensor
BaselineLike = _Numbers | str | Mapping[Any, _Numbers | str] | ReferenceInput
"""What the argument `baseline` may be; numbers come first, as command lines give text that may be either."""


@dataclass(frozen=True)
class Baseline:
    """Hold what removed neurons are set to.

    Attributes:
        kind: "zero", "mean" over the probe set, "resample" (what another sample has), "constant", "vector",
            "reference", "optimal" (what keeps the loss least), or "by_layer" where each layer has its own baseline.
        value: of a constant.
        vector: value of each channel, for "vector".
        layers: name of a layer or text of a site, and its baseline, for "by_layer".
        reference: the input, for "reference".
    """

    kind: str
    value: float = 0.0
    vector: tuple[float, ...] = ()
    layers: "tuple[tuple[str, Baseline], ...]" = ()
    reference: ReferenceInput | None = None

    @classmethod
    def of(cls, baseline: Any) -> "Baseline":
        """Return the baseline that an argument stands for.

        Raises:
            InvalidArgument: if it is no known name, finite number, vector of finite numbers, `ReferenceInput`, or
                mapping from layers to some of these.
        """
        if isinstance(baseline, ReferenceInput):
            return cls("reference", reference=baseline)
        if isinstance(baseline, Mapping):
            return cls("by_layer", layers=_by_layer(baseline))
        more = ["a finite number", _VECTOR, "a mapping from layers to these", "ReferenceInput(...)"]
        return _single("baseline", baseline, BASELINES, more)

    def at(self, site: str) -> "Baseline":
        """Return the baseline at one site.

        Args:
            site: the site in words.

        Raises:
            InvalidArgument: if a mapping has none for it.
        """
        if self.kind != "by_layer":
            return self
        found = dict(self.layers)
        name = site.partition(" (")[0]
        if site not in found and name not in found:
            raise InvalidArgument(_missing(site, list(found)))
        return found.get(site) or found[name]

    @property
    def kinds(self) -> frozenset[str]:
        """Return the kinds of all layers' baselines."""
        return frozenset({self.kind, *(each.kind for _, each in self.layers)} - {"by_layer"})

    @property
    def identity(self) -> str:
        """Return a text that is the same for equal baselines, in every process.

        >>> Baseline.of({"fc1": 0.5, "fc2": "mean"}).identity
        'fc1: constant 0.5, fc2: mean'
        """
        if self.kind == "by_layer":
            return ", ".join(f"{name}: {each.identity}" for name, each in sorted(self.layers))
        if self.kind == "constant":
            return f"constant {self.value:g}"
        if self.kind == "vector":
            return f"vector {crc32(np.array(self.vector).tobytes()):08x}"
        return (
            self.kind
            if self.reference is None
            else f"reference {fingerprint(to_device(self.reference.inputs, HOST)):08x}"
        )

    def require_sites(self, sites: Iterable[Site]) -> None:
        """Refuse a mapping that names layers which are not explained, or has no baseline for one that is.

        Args:
            sites: all that are explained; for optional ones, which may be skipped, none is needed yet.

        Raises:
            InvalidArgument: if a name is wrong or missing.
        """
        if self.kind != "by_layer":
            return
        known = {str(site): site for site in sites}
        names = [*known, *(site.name for site in known.values())]
        given = [name for name, _ in self.layers]
        for name in given:
            if name not in names:
                raise InvalidArgument(
                    f"baseline names layer {_validate.shown(name, 60)}, which is not among layers=: "
                    f"{_validate.closest(name, list(dict.fromkeys(names)), 'layers')[:150]}"
                )
        for text, site in known.items():
            if text not in given and site.name not in given and not site.optional:
                raise InvalidArgument(_missing(text, given))

    def channels(self, site: str, n_channels: int, known: Mapping[str, np.ndarray]) -> Float[np.ndarray, " channel"]:
        """Return the value of each channel of a site; NaN for "resample".

        Args:
            site: the site in words.
            n_channels: number of its channels.
            known: values per site for the kinds that are computed. Empty where none is computed yet, as in a
                rehearsal: then these values are 0.

        Raises:
            InvalidArgument: if a vector has another number of channels.
        """
        one = self.at(site)
        if one.kind == "vector":
            if len(one.vector) != n_channels:
                raise InvalidArgument(self._wrong_length(site, len(one.vector), n_channels))
            return np.array(one.vector)
        if one.kind in COMPUTED:
            return known[site] if known else np.zeros(n_channels)
        return np.full(n_channels, np.nan if one.kind == "resample" else one.value)

    def _wrong_length(self, site: str, length: int, n_channels: int) -> str:
        """Say that a vector has another number of channels than a site."""
        where = _validate.shown(site, 60)
        if self.kind == "by_layer":
            return (
                f"baseline holds {length} numbers for layer {where}, which has {n_channels} channels: pass one number "
                f"for each of them, or one for all, baseline={{{where}: 0.0, ...}}"
            )
        return (
            f"baseline holds {length} numbers, and layer {where} has {n_channels} channels: where layers differ, pass "
            f"a mapping with one vector, number, 'zero' or 'mean' for each, baseline={{{where}: [0.0, ...], ...}}"
        )


def _single(name: str, value: Any, names: tuple[str, ...], more: list[str]) -> Baseline:
    """Return the baseline that a name, a number or a vector stands for.

    Args:
        name: of the argument, for messages.
        value: what was received.
        names: the valid names.
        more: what else is valid, in words.

    Raises:
        InvalidArgument: if it is something else.
    """
    if isinstance(value, np.ndarray | Tensor):
        value = _plain(name, value)
    if isinstance(value, Real) and not isinstance(value, bool):
        constant = _validate.number(name, value)
        return Baseline("constant", constant) if constant else Baseline("zero")
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return Baseline("vector", vector=_vector(name, value))
    return Baseline(_validate.choice(name, value, names, more))


def _plain(name: str, value: np.ndarray | Tensor) -> Any:
    """Return an array or tensor as a number or a list of numbers.

    Raises:
        InvalidArgument: if it holds no real numbers, or has several axes.
    """
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) and value.dtype.itemsize > 2 else value
    if isinstance(array, Tensor):  # halves, some of which NumPy does not have
        array = array.detach().cpu().double().numpy() if array.is_floating_point() else array.detach().cpu().numpy()
    if array.dtype.kind not in "iuf" or array.ndim > 1:
        raise InvalidArgument(f"{name} must be a number or {_VECTOR}, got {array.dtype} of shape {tuple(array.shape)}")
    return array.tolist()


def _vector(name: str, values: Sequence[Any]) -> tuple[float, ...]:
    """Return a vector of finite numbers.

    Raises:
        InvalidArgument: if it is empty, or holds something else.
    """
    if not len(values):
        raise InvalidArgument(f"{name} must be a number or {_VECTOR}, got an empty list")
    found = []
    for channel, value in enumerate(values):
        single = isinstance(value, np.ndarray | Tensor) and value.ndim == 0
        number = _plain(name, value) if single else value
        if not isinstance(number, Real) or isinstance(number, bool) or not np.isfinite(float(number)):
            raise InvalidArgument(
                f"{name} must be {_VECTOR}, all of them finite, got {_validate.shown(number)} for channel {channel}"
            )
        found.append(float(number))
    return tuple(found)


def _by_layer(baseline: Mapping[Any, Any]) -> tuple[tuple[str, Baseline], ...]:
    """Return the baselines of a mapping from layers.

    Raises:
        InvalidArgument: if it is empty, or a key or value is of another kind.
    """
    if not baseline:
        raise InvalidArgument("baseline is an empty mapping: name each layer, such as baseline={'encoder.1': 'mean'}")
    found: dict[str, Baseline] = {}
    for layer, value in baseline.items():
        if not isinstance(layer, str | Site):
            raise InvalidArgument(
                f"baseline must be a mapping from names of layers to numbers or vectors, got the key "
                f"{_validate.shown(layer)}; names are strings, such as '1'"
            )
        name = f"baseline of layer {_validate.shown(str(layer), 60)}"
        if isinstance(value, ReferenceInput) or (isinstance(value, str) and value in FOR_ALL_LAYERS):
            raise InvalidArgument(
                f"{name} must be 'zero', 'mean', a number or a vector, got {_validate.shown(value, 60)}, which is "
                "for all layers together: pass it as baseline= without a mapping"
            )
        if str(layer) in found:
            raise InvalidArgument(f"baseline names layer {_validate.shown(str(layer), 60)} twice: pass one of them")
        found[str(layer)] = _single(name, value, IN_MAPPINGS, ["a finite number", _VECTOR])
    return tuple(found.items())


def _missing(site: str, given: Sequence[str]) -> str:
    """Say that a mapping has no baseline for a site."""
    where = _validate.shown(site, 60)
    return (
        f"baseline has no value for layer {where}, only for {_validate.shown(list(given), 100)}: add one, such as "
        f"baseline={{{where}: 'mean', ...}}"
    )


def _has_tensor(value: Any, depth: int = 0) -> bool:
    """Tell whether there is a tensor in nested containers or objects."""
    if isinstance(value, Tensor):
        return True
    parts = parts_of(value)
    if parts is None:
        parts = list(getattr(value, "__dict__", {}).values())
    return depth < 6 and any(_has_tensor(part, depth + 1) for part in parts)
