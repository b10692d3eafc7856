"""Score neurons by any of Captum's input attributions, applied to what follows a site."""

import importlib
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.capture.forward import is_mistake
from lightning_neuroimp.capture.positions import along_axis, sum_groups, sum_positions
from lightning_neuroimp.capture.random_states import random_states, restore
from lightning_neuroimp.errors import InvalidArgument, NeuroimpError
from lightning_neuroimp.importance.attributions.built_in import BuiltInScore, options_in
from lightning_neuroimp.importance.attributions.row_passes import RowPasses
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch

PREFIX = "captum."
"""What the name of a method of Captum begins with."""

_OURS = ("inputs", "baselines", "target", "additional_forward_args", "feature_mask", "return_convergence_delta")
"""Arguments of Captum's methods that follow from the site and the removal."""

_INSTALL = "attribution by Captum needs the package captum: python -m pip install captum"


class CaptumAttribution(BuiltInScore):
    """Score neurons by an input attribution of Captum, with the activations of the site as the inputs.

    What is explained is the function from a site's activations to the target of each sample; the removal's baseline is
    Captum's `baselines`, and where a method takes a `feature_mask`, each neuron is one feature, at all positions that
    count. Attributions are summed over positions. Methods that hook modules (DeepLift, LRP, GuidedBackprop) see those
    that are called after the site.

    A method without baselines has that of zero: it is refused for any other one if it multiplies by activations. LRP
    explains a logit, and needs a rule of Captum's for each module. DeepLift's rules hold for modules; in between, and
    in the target, it uses plain gradients, so that its scores add up to m(h) - m(b) for target="logit" only. Where a
    method draws random numbers, samples are explained one by one, from random states of their own, so that it does not
    matter how they are batched.

    Attributes:
        method: the class, or its path as text, such as "captum.attr.DeepLift".
        options: of its constructor and of its `attribute`.

    Args:
        method: as above.
        options: as above, by keyword.

    Raises:
        InvalidArgument: if Captum is missing, or the method is no input attribution or has no such option.

    References:
        Kokhlikyan et al., "Captum: a unified and generic model interpretability library for PyTorch", 2020.

    >>> CaptumAttribution("captum.attr.IntegratedGradients", n_steps=8).name
    'captum.attr.IntegratedGradients(n_steps=8)'
    """

    kind: ClassVar[str] = "captum"

    def __init__(self, method: Any, /, **options: Any) -> None:
        found = _method(method) if isinstance(method, str) else method
        constructor, attribute = _arguments(found)
        unknown = [name for name in options if name not in {*constructor, *attribute} or name in _OURS]
        name = _path(found)
        if unknown:
            known = [option for option in (*constructor, *attribute) if option not in _OURS]
            raise InvalidArgument(f"{name} takes the options {known}, got {unknown[0]!r}")
        self.method: Any = found
        self.options: dict[str, Any] = options

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CaptumAttribution) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return self.name

    @classmethod
    def named(cls, text: str) -> "CaptumAttribution":
        """Return the attribution that a path with or without options stands for.

        Raises:
            InvalidArgument: if there is no such method, or the options are no plain values.

        >>> CaptumAttribution.named("captum.attr.Saliency(abs=False)").options
        {'abs': False}
        """
        path, opened, _ = text.partition("(")
        if not opened:
            return cls(path)
        try:
            values = options_in(text)
        except ValueError:
            raise InvalidArgument(
                "options of a method of Captum are written as in 'captum.attr.IntegratedGradients(n_steps=8)', got "
                f"{_validate.shown(text, 80)}"
            ) from None
        return cls(path, **values)

    @property
    def name(self) -> str:
        """Return the name in results, tags and tables: the method's path, and the options."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return _path(self.method) + (f"({options})" if options else "")

    @property
    def cost(self) -> str:
        """Return the passes that it takes at each layer in addition to those that all scores share, in words."""
        return "the passes of Captum's method, each of the whole model"

    def __call__(self, batch: SiteBatch, /) -> Float[Tensor, "sample neuron"]:
        """Compute the scores of one site on one batch.

        Args:
            batch: activations of the site.

        Raises:
            InvalidArgument: if the method cannot be applied to what follows the site.
        """
        if batch.passes is None:
            raise InvalidArgument("a method of Captum runs the whole model, and works in an importance pass only")
        rows, before = np.arange(len(batch.activation)), random_states()
        with _in_words(self.name, batch.site):
            found = self._attribute(batch, rows)
            states = random_states()
            if any(before[key][0] != state[0] for key, state in states.items() if key in before):
                found = torch.cat([self._alone(batch, row) for row in range(len(rows))])
                restore(before)
        return found

    def _alone(self, batch: SiteBatch, row: int) -> Float[Tensor, "1 neuron"]:
        """Explain one sample, with random numbers that follow from its own."""
        seed = int(np.random.SeedSequence([batch.seed, int(batch.index[row])]).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (Captum draws from it)
        return self._attribute(batch, np.array([row]))

    def _attribute(self, batch: SiteBatch, rows: Int[np.ndarray, " row"]) -> Float[Tensor, "row neuron"]:
        """Return the attributions of some samples of a batch, summed over the positions of each neuron."""
        assert batch.passes is not None
        chosen = torch.from_numpy(rows).to(batch.activation.device)
        activation = batch.activation[chosen]
        baselines = activation - batch.deviation[chosen]
        constructor, attribute = _arguments(self.method)
        given = {name: value for name, value in self.options.items() if name in attribute}
        if "internal_batch_size" in attribute:
            given.setdefault("internal_batch_size", len(rows))
        by_feature = "feature_mask" in attribute
        if by_feature:
            given["feature_mask"] = _features(batch)
        if "baselines" in attribute:
            given["baselines"] = baselines
        with RowPasses(batch.passes, batch.site).attach() as passes:
            explainer = self.method(
                passes, **{name: self.options[name] for name in constructor if name in self.options}
            )
            self._refuse(batch, explainer, attribute)
            if "additional_forward_args" in attribute:
                given["additional_forward_args"] = (chosen,)
            else:
                passes.rows = chosen
            found = explainer.attribute(activation.clone(), **given)
        found = found.detach().to(batch.activation.dtype)
        if by_feature:
            return _of_features(batch, found)
        positions = None if batch.positions is None else batch.positions[chosen]
        return sum_groups(sum_positions(found, batch.axis, positions), batch.group)

    def _refuse(self, batch: SiteBatch, explainer: Any, attribute: list[str]) -> None:
        """Refuse methods that would explain something else than what is asked for."""
        assert batch.passes is not None
        kinds = {each.__name__ for each in type(explainer).__mro__}
        target = batch.passes.target
        if "LRP" in kinds and target.kind != "logit":
            raise InvalidArgument(
                f"{self.name} passes the value of a logit backwards, and {target.name!r} is computed from several; "
                "pass target='logit'"
            )
        if "FeaturePermutation" in kinds:
            raise InvalidArgument(
                f"{self.name} exchanges activations between the samples of a batch, so that scores depend on how they "
                "are batched; use attribution='leave_one_out' with baseline='resample'"
            )
        if "DeepLiftShap" in kinds:
            raise InvalidArgument(
                f"{self.name} averages over several baselines, and a removal has one; use attribution="
                "'captum.attr.DeepLift', or 'captum.attr.GradientShap'"
            )
        multiplies = getattr(explainer, "multiplies_by_inputs", False)
        if "baselines" not in attribute and multiplies and bool(batch.baseline.any()):
            raise InvalidArgument(
                f"{self.name} multiplies by activations and knows no baseline other than zero; pass baseline='zero', "
                "or use attribution='gradient_x_activation'"
            )


def _features(batch: SiteBatch) -> Int[Tensor, " _ *rest"]:
    """Return the number of the neuron that each activation belongs to."""
    neurons = torch.arange(batch.n_neurons, device=batch.activation.device).repeat_interleave(batch.group)
    return along_axis(neurons, batch.axis, batch.activation.ndim).expand(1, *batch.activation.shape[1:]).contiguous()


def _of_features(batch: SiteBatch, found: Tensor) -> Float[Tensor, "row neuron"]:
    """Return the attribution of each neuron, which every one of its activations has."""
    moved = found.movedim(batch.axis, 1).flatten(2) if found.ndim > 2 else found[:, :, None]
    return moved[:, :: batch.group, 0]


def _method(path: str) -> Any:
    """Return the class that a path names.

    Raises:
        InvalidArgument: if Captum is missing, or there is no such class.
    """
    _require_captum()
    home, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(home)
    except (ImportError, ValueError) as error:
        raise InvalidArgument(f"cannot import {home!r} of the attribution {path!r}: {error}") from error
    if not hasattr(module, name):
        raise InvalidArgument(f"{home} has no {name!r}; {_validate.closest(name, dir(module), 'names there')}")
    return getattr(module, name)


def _require_captum() -> None:
    """Refuse where Captum is not installed.

    Raises:
        InvalidArgument: if it cannot be imported.
    """
    try:
        importlib.import_module("captum")
    except ImportError as error:
        raise InvalidArgument(_INSTALL) from error


def _path(method: Any) -> str:
    """Return the shortest path of a class: that in captum.attr, if it is there."""
    name, public = method.__name__, importlib.import_module("captum.attr")
    home = "captum.attr" if getattr(public, name, None) is method else method.__module__
    return f"{home}.{name}"


def _arguments(method: Any) -> tuple[list[str], list[str]]:
    """Return the arguments of a method's constructor after the model, and of its `attribute`.

    Raises:
        InvalidArgument: if it is no input attribution of Captum.
    """
    _require_captum()
    base: type = importlib.import_module("captum.attr").Attribution
    if not isinstance(method, type) or not issubclass(method, base):
        raise InvalidArgument(
            "method of CaptumAttribution must be a class of input attributions, or its path, such as "
            f"'captum.attr.DeepLift', got {_validate.shown(method, 80)}"
        )
    first, *constructor = list(inspect.signature(method).parameters)
    explain: Any = method.attribute  # type: ignore[attr-defined]
    attribute = [name for name in inspect.signature(explain).parameters if name != "self"]
    if first not in ("forward_func", "model") or "layer" in constructor or "inputs" not in attribute:
        own = method.__name__.removeprefix("Layer").removeprefix("Neuron")
        raise InvalidArgument(
            f"{method.__name__} is no method that explains a function by its inputs; the layer is that of layers=, so "
            f"pass the input method, such as 'captum.attr.{own if own != method.__name__ else 'DeepLift'}'"
        )
    return constructor, attribute


@contextmanager
def _in_words(name: str, site: str) -> Iterator[None]:
    """Turn what Captum refuses into `InvalidArgument`, and its warnings about hooks into nothing.

    Raises:
        InvalidArgument: for mistakes and failed assertions; other errors pass through.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"captum\.")
        warnings.filterwarnings("ignore", message="(?s).*hooks and attributes.*")
        warnings.filterwarnings("ignore", message="(?s).*multiple inputs for Lime.*")
        try:
            yield
        except NeuroimpError:
            raise
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            own = isinstance(error, RuntimeError) and "detected that does not contain" in str(error)
            if not (isinstance(error, AssertionError) or own or is_mistake(error)):
                raise
            raise InvalidArgument(
                f"{name} cannot explain what follows layer {site!r} ({type(error).__name__}: {str(error)[:130]}); see "
                "Captum's page on it, or use attribution='masked_gradient'"
            ) from error
