"""What an attribution is given, and how names are looked up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp.importance.attributions.control import random
from lightning_neuroimp.importance.attributions.first_order import activation, gradient, gradient_x_activation
from lightning_neuroimp.importance.attributions.leave_one_out import leave_one_out
from lightning_neuroimp.importance.attributions.path import STEPS, integrated_gradients, masked_gradient
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch

AttributionFn = Callable[..., Any]
"""`attribution(site_batch) -> scores` of shape (sample, neuron); gets a `SiteBatch`."""


@dataclass(frozen=True)
class Attribution:
    """A named score.

    Attributes:
        name: in results, tags and tables.
        score: gives each sample's score of each neuron.
        needs_gradient: whether it reads `SiteBatch.gradient`.
        cost: what it takes at each layer beside the passes that all scores share, in words.
    """

    name: str
    score: AttributionFn
    needs_gradient: bool = True
    cost: str = ""

    def __call__(self, site_batch: SiteBatch) -> Float[Tensor, "sample neuron"]:
        """The scores.

        Raises:
            ValueError: if the function's outcome is not one score per sample and neuron.
        """
        scores = self.score(site_batch)
        expected = (len(site_batch.activation), site_batch.n_neurons)
        if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
            got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise ValueError(
                f"attribution {self.name!r} must return a tensor of one score per sample and neuron, shape "
                f"{expected}, at {site_batch.site!r}; got {got}. SiteBatch.sum_positions sums over space"
            )
        return scores


_PATH = f"1 forward pass, and {STEPS} forward and backward passes of what follows the layer"


ATTRIBUTIONS = {
    attribution.name: attribution
    for attribution in (
        Attribution("gradient", gradient),
        Attribution("activation", activation, needs_gradient=False),
        Attribution("gradient_x_activation", gradient_x_activation),
        Attribution("integrated_gradients", integrated_gradients, needs_gradient=False, cost=_PATH),
        Attribution("masked_gradient", masked_gradient, needs_gradient=False, cost=_PATH),
        Attribution(
            "leave_one_out",
            leave_one_out,
            needs_gradient=False,
            cost="1 forward pass, and 1 of what follows the layer for each neuron",
        ),
        Attribution("random", random, needs_gradient=False),
    )
}


def resolve_attributions(
    attribution: str | AttributionFn | Attribution | Sequence[str | AttributionFn | Attribution],
) -> tuple[Attribution, ...]:
    """Names and callables to attributions.

    Raises:
        ValueError: if a name is unknown or comes twice, or nothing was asked for.
    """
    single = isinstance(attribution, str) or callable(attribution)
    asked: Sequence[Any] = [attribution] if single else list(attribution)  # type: ignore[arg-type]
    found = []
    for one in asked:
        if isinstance(one, Attribution):
            found.append(one)
        elif isinstance(one, str) and one in ATTRIBUTIONS:
            found.append(ATTRIBUTIONS[one])
        elif callable(one):
            found.append(Attribution(getattr(one, "__name__", type(one).__name__), one))
        else:
            raise ValueError(
                f"attribution must be among {sorted(ATTRIBUTIONS)}, or a callable (SiteBatch) -> scores of shape "
                f"(sample, neuron), got {one!r}"
            )
    names = [one.name for one in found]
    if not names:
        raise ValueError("attribution is empty: name at least one")
    if len(set(names)) < len(names):
        raise ValueError(f"attributions must have different names, got {names}; wrap one as Attribution(name, score)")
    return tuple(found)
