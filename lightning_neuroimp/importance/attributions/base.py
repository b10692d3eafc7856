"""Attributions by name, and what a user's function must give.

To add one: write a function `SiteBatch -> (sample, neuron) scores` in a file of its family beside this one, and add it
to `ATTRIBUTIONS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.control import random
from lightning_neuroimp.importance.attributions.first_order import activation, gradient, gradient_x_activation
from lightning_neuroimp.importance.attributions.leave_one_out import leave_one_out
from lightning_neuroimp.importance.attributions.path import STEPS, integrated_gradients, masked_gradient
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
        name: in results, tags and tables.
        score: gives each sample's score of each neuron.
        needs_gradient: whether it reads `SiteBatch.gradient`.
        cost: what it takes at each layer in addition to the passes that all scores share, in words.
        kind: key of a built-in score; "own" for a user's function, whatever its name is.

    >>> Attribution("size", lambda batch: batch.sum_positions(batch.deviation.abs()), needs_gradient=False).kind
    'own'
    """

    name: str
    score: AttributionFn
    needs_gradient: bool = True
    cost: str = ""
    kind: str = OWN

    def __call__(self, site_batch: SiteBatch) -> Float[Tensor, "sample neuron"]:
        """Compute the scores.

        Args:
            site_batch: one site's activations and gradients.

        Raises:
            InvalidArgument: if a user's function fails, or its outcome is not one score per sample and neuron.
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
    name = score.__name__  # type: ignore[attr-defined]
    return Attribution(name, score, needs_gradient, cost, kind=name)


_PATH = f"1 forward pass, and {STEPS} forward and backward passes of what follows the layer"
_EVERY_NEURON = "1 forward pass, and 1 of what follows the layer for each neuron"

ATTRIBUTIONS = {
    attribution.name: attribution
    for attribution in (
        _built_in(gradient, needs_gradient=True),
        _built_in(activation),
        _built_in(gradient_x_activation, needs_gradient=True),
        _built_in(integrated_gradients, cost=_PATH),
        _built_in(masked_gradient, cost=_PATH),
        _built_in(leave_one_out, cost=_EVERY_NEURON),
        _built_in(random),
    )
}


def resolve_attributions(attribution: Any) -> tuple[Attribution, ...]:
    """Return the attributions that names, callables or `Attribution`s stand for.

    Args:
        attribution: one of these, or a sequence of them.

    Raises:
        InvalidArgument: if a name is unknown or comes twice, or nothing was asked for.
    """
    single = isinstance(attribution, str) or callable(attribution) or not isinstance(attribution, Sequence)
    found = tuple(_resolved(one) for one in ([attribution] if single else attribution))
    names = [one.name for one in found]
    if not names:
        raise InvalidArgument("attribution is empty: name at least one")
    if len(set(names)) < len(names):
        raise InvalidArgument(
            f"attributions must have different names, got {names}; wrap one as Attribution(name, score)"
        )
    return found


def _resolved(one: Any) -> Attribution:
    if isinstance(one, Attribution):
        return one
    if isinstance(one, str) and one in ATTRIBUTIONS:
        return ATTRIBUTIONS[one]
    if callable(one) and not isinstance(one, type):
        return Attribution(getattr(one, "__name__", type(one).__name__), one)
    close = f"; {_validate.closest(one, ATTRIBUTIONS, 'attributions')}" if isinstance(one, str) else ""
    raise InvalidArgument(
        f"attribution must be among {sorted(ATTRIBUTIONS)}, or a callable (SiteBatch) -> scores of shape "
        f"(sample, neuron), got {one!r}{close}"
    )
