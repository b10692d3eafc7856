"""Name the score whose importances are an order: `importance.progressive` finds it, cell by cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.importance.attributions.built_in import BuiltInScore
from lightning_neuroimp.importance.attributions.first_order import gradient_x_activation
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch
from lightning_neuroimp.results.importance import ORDER
from lightning_neuroimp.results.verdict import FRACTIONS


@dataclass(frozen=True)
class ProgressiveGradient(BuiltInScore):
    """Rank neurons round by round: score all, remove the top ones, score the rest without them, and so on.

    Scores are gradient x activation, averaged over each half of each cluster. The first round takes the neurons up to
    the first fraction, the next one those up to the second, and so on; what is left after the last fraction is ranked
    by the scores of the last round. So neurons that stand in for one another, and effects that grow when others are
    gone, are seen.

    The result is an order, not an effect: importances are the share of the neurons that come later or are the neuron
    itself, from 1 for the first one down to 1 / number of neurons. They add up to nothing, and predict no effects.

    Attributes:
        fractions: shares of the neurons that are removed after each round, ascending, each rounded up.

    Raises:
        InvalidArgument: if a fraction is no share.

    >>> ProgressiveGradient(fractions=[0.1, 0.5]).name
    'progressive_gradient(fractions=(0.1, 0.5))'
    """

    kind: ClassVar[str] = ORDER
    needs_gradient: ClassVar[bool] = True
    fractions: Sequence[float] = FRACTIONS

    def __post_init__(self) -> None:
        object.__setattr__(self, "fractions", _validate.fractions(self.fractions))

    @property
    def cost(self) -> str:
        """Return the passes that it takes at each layer in addition to those that all scores share, in words."""
        n_rounds = len(self.fractions)
        each = f"{n_rounds} forward passes, and {n_rounds} forward and backward passes of what follows the layer"
        return f"{each}, for each way of clustering"

    def __call__(self, batch: SiteBatch, /) -> Float[Tensor, "sample neuron"]:
        """Compute the scores of the first round.

        Args:
            batch: activations of the site.
        """
        return gradient_x_activation(batch)
