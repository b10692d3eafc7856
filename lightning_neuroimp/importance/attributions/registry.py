"""Resolve attributions: names, callables and `Attribution`s to validated scores.

To add one, write a function `SiteBatch -> (sample, neuron) scores`, or a `BuiltInScore` if it has options, in the file
of its family in this folder, and add it to `ATTRIBUTIONS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.blockwise import BlockwiseGradient
from lightning_neuroimp.importance.attributions.built_in import BuiltInScore, options_in
from lightning_neuroimp.importance.attributions.captum import PREFIX, CaptumAttribution
from lightning_neuroimp.importance.attributions.control import random
from lightning_neuroimp.importance.attributions.first_order import (
    activation,
    gradient,
    gradient_x_activation,
    taylor,
)
from lightning_neuroimp.importance.attributions.input_path import Conductance, InternalInfluence
from lightning_neuroimp.importance.attributions.layer_norm import layer_norm_rule
from lightning_neuroimp.importance.attributions.leave_one_out import leave_one_out
from lightning_neuroimp.importance.attributions.path import IntegratedGradients, MaskedGradient
from lightning_neuroimp.importance.attributions.progressive import ProgressiveGradient
from lightning_neuroimp.importance.attributions.regression import Regression
from lightning_neuroimp.importance.attributions.shapley import Shapley
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch
from lightning_neuroimp.site import OWN


@runtime_checkable
class AttributionFn(Protocol):
    """Score the neurons of one site for each sample of a batch."""

    def __call__(self, site_batch: SiteBatch, /) -> Tensor:
        """Return scores of shape (sample, neuron)."""


@dataclass(frozen=True)
class Attribution:
    """Give a score a name.

    Attributes:
        name: name in results, tags and tables.
        score: gives the score of each neuron for each sample.
        needs_gradient: whether it reads `SiteBatch.gradient`.
        cost: passes that it takes at each layer in addition to those that all scores share, in words.
        kind: key of a built-in score; "own" for a user's function, whatever its name is.

    >>> Attribution("size", lambda batch: batch.sum_positions(batch.deviation.abs()), needs_gradient=False).kind
    'own'
    """

    name: str
    score: AttributionFn
    needs_gradient: bool = True
    cost: str = ""
    kind: str = OWN

    def __post_init__(self) -> None:
        if isinstance(self.score, BuiltInScore):  # under another name it is still what it is
            for name in ("kind", "needs_gradient", "cost"):
                object.__setattr__(self, name, getattr(self.score, name))

    def __call__(self, site_batch: SiteBatch) -> Float[Tensor, "sample neuron"]:
        """Compute the scores of one site on one batch.

        Args:
            site_batch: activations and gradients of the site.

        Raises:
            InvalidArgument: if a user's function fails, or does not return one score per sample and neuron.
        """
        with _validate.users_function(f"attribution {self.name!r}"):
            scores = self.score(site_batch)
        expected = (len(site_batch.activation), site_batch.n_neurons)
        if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
            got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise InvalidArgument(
                f"attribution {self.name!r} must return a tensor of one score per sample and neuron, shape "
                f"{expected}, at {site_batch.site!r}; got {got}. SiteBatch.sum_positions sums over space"
            )
        return scores


def _built_in(score: AttributionFn, *, needs_gradient: bool = False, cost: str = "") -> Attribution:
    """Make an attribution of a built-in score, under the function's name."""
    name = score.__name__  # type: ignore[attr-defined]
    return Attribution(name, score, needs_gradient, cost, kind=name)


def _with_options(score: BuiltInScore) -> Attribution:
    """Make an attribution of a built-in score that has options."""
    return Attribution(score.name, score, score.needs_gradient, score.cost, kind=score.kind)


_WHOLE_MODEL = "1 forward and backward pass of the whole model, for all layers together"

_EVERY_NEURON = "1 forward pass, and 1 of what follows the layer for each neuron"

ATTRIBUTIONS = {
    attribution.name: attribution
    for attribution in (
        _built_in(gradient, needs_gradient=True),
        _built_in(activation),
        _built_in(gradient_x_activation, needs_gradient=True),
        _built_in(layer_norm_rule, needs_gradient=True, cost=_WHOLE_MODEL),
        _built_in(taylor, needs_gradient=True),
        _with_options(IntegratedGradients()),
        _with_options(MaskedGradient()),
        _with_options(BlockwiseGradient()),
        _with_options(ProgressiveGradient()),
        _with_options(Conductance()),
        _with_options(InternalInfluence()),
        _built_in(leave_one_out, cost=_EVERY_NEURON),
        _with_options(Shapley()),
        _with_options(Regression()),
        _built_in(random),
    )
}


def resolve_attributions(attribution: Any) -> tuple[Attribution, ...]:
    """Return the attributions that names, callables or `Attribution`s stand for.

    Args:
        attribution: one of these, or a sequence of them.

    Raises:
        InvalidArgument: if a name is unknown or occurs twice, or the sequence is empty.
    """
    single = isinstance(attribution, str) or callable(attribution) or not isinstance(attribution, Sequence)
    found = tuple(_resolved(value) for value in ([attribution] if single else attribution))
    names = [resolved.name for resolved in found]
    if not names:
        raise InvalidArgument("attribution is empty: name at least one, such as 'blockwise_gradient'")
    if len(set(names)) < len(names):
        raise InvalidArgument(
            f"attributions must have different names, got {_validate.shown(names)}; wrap one as "
            "Attribution(name, score)"
        )
    return found


def _resolved(value: Any) -> Attribution:
    """Return the attribution that one name, callable or `Attribution` stands for."""
    if isinstance(value, Attribution):
        return value
    if isinstance(value, str) and value in ATTRIBUTIONS:
        return ATTRIBUTIONS[value]
    if isinstance(value, BuiltInScore):
        return _with_options(value)
    if isinstance(value, str) and value.startswith(PREFIX):
        return _with_options(CaptumAttribution.named(value))
    if isinstance(value, str) and value.partition("(")[0] in ATTRIBUTIONS:
        return _named_with_options(value)
    if callable(value) and not isinstance(value, type):
        return Attribution(getattr(value, "__name__", type(value).__name__), value)
    close = f"; {_validate.closest(value, ATTRIBUTIONS, 'attributions')}" if isinstance(value, str) else ""
    raise InvalidArgument(
        f"attribution must be among {sorted(ATTRIBUTIONS)}, or a callable (SiteBatch) -> scores of shape "
        f"(sample, neuron), got {_validate.shown(value, 60)}{close}"
    )


def _named_with_options(text: str) -> Attribution:
    """Return the score that a name with options stands for, such as "masked_gradient(points=2)".

    Raises:
        InvalidArgument: if the score has no such option, or the text is no name with options.
    """
    kind, score = text.partition("(")[0], ATTRIBUTIONS[text.partition("(")[0]].score
    if not isinstance(score, BuiltInScore):
        raise InvalidArgument(f"attribution {kind!r} has no options, got {_validate.shown(text, 60)}; pass {kind!r}")
    options = [each.name for each in fields(score)]
    example = f"{kind}({options[0]}={getattr(score, options[0])!r})"
    try:
        values = options_in(text)
    except ValueError:
        raise InvalidArgument(
            f"options of an attribution are written as in {example!r}, got {_validate.shown(text, 60)}"
        ) from None
    unknown = [name for name in values if name not in options]
    if unknown:
        raise InvalidArgument(f"attribution {kind!r} has the options {options}, got {unknown[0]!r}")
    return _with_options(type(score)(**values))
