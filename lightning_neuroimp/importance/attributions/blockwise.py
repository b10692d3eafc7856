"""Score neurons by gradients along the removal of random blocks of them: several at once, each on its own way."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.importance.attributions.built_in import BuiltInScore
from lightning_neuroimp.importance.attributions.masks import random_blocks
from lightning_neuroimp.importance.attributions.path import passes_of
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


@dataclass(frozen=True)
class BlockwiseGradient(BuiltInScore):
    """Score neurons by their gradients where a random block of them, which they belong to, is on its way to removal.

    The neurons of each sample are divided at random into blocks, by default two halves. One block after the other is
    moved towards the baseline, as far as `at` says, while the others stay; a neuron's score is (h - b) times its
    gradient there, summed over positions, in units of the target. So each gradient is taken near the middle of the
    neuron's own way to the baseline, where it stands for the whole way, as in the midpoint rule: saturation and norms
    after the layer, which the gradient at the activations as they are does not see, are in it. And it is taken while a
    part of the other neurons is gone too, as in the removal of many.

    With one block this is integrated gradients with one step; with as many as neurons it would be leave-one-out by the
    midpoint rule. The scores of all neurons add up to no target. The blocks of each sample are the same in every epoch,
    so that scores change with the model alone.

    Attributes:
        blocks: number of blocks, and of passes.
        at: how far the neurons of the block are on their way, from 0 (as they are) to 1 (the baseline).

    Raises:
        InvalidArgument: if an option has no valid value.

    References:
        Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", 2017, for gradients along a path of
        removal. `benchmarks/truth.py` compares it with other scores.

    >>> BlockwiseGradient(blocks=4).name
    'blockwise_gradient(blocks=4)'
    """

    kind: ClassVar[str] = "blockwise_gradient"
    needs_gradient: ClassVar[bool] = True  # for the effects to first order, to compare with
    blocks: int = 2
    at: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", _validate.integer("blocks of BlockwiseGradient", self.blocks, least=1))
        object.__setattr__(self, "at", _validate.number("at of BlockwiseGradient", self.at, least=0, most=1))

    @property
    def cost(self) -> str:
        """Return the passes that it takes at each layer in addition to those that all scores share, in words."""
        return passes_of(self.blocks)

    def __call__(self, batch: SiteBatch, /) -> Float[Tensor, "sample neuron"]:
        """Compute the scores of one site on one batch.

        Args:
            batch: activations of the site.
        """
        deviation, total = batch.deviation, torch.zeros_like(batch.activation)
        for inside in random_blocks(batch, self.blocks):
            moving = inside * deviation
            total += moving * batch.suffix.gradient(batch.activation - self.at * moving)
        return batch.sum_positions(total)
