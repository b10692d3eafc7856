"""Score neurons by gradients at several activations between the baseline and those of the site."""

from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.capture.positions import along_positions
from lightning_neuroimp.importance.attributions.built_in import BuiltInScore, gradient_passes
from lightning_neuroimp.importance.attributions.masks import random_removal
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


def passes_of(points: int) -> str:
    """Return in words what it takes to compute gradients at a number of other activations of each layer."""
    return f"1 forward pass, and {gradient_passes(points)} of what follows the layer"


@dataclass(frozen=True)
class IntegratedGradients(BuiltInScore):
    """Score neurons by (h - b) times the mean of dm/dh over the straight path from b to h, summed over positions.

    Scores are in units of the target; those of all neurons add up to m(h) - m(b), up to the error of the midpoint rule,
    typically 1 to 2% with 8 steps.

    Attributes:
        steps: number of midpoints of the path.

    Raises:
        InvalidArgument: if an option has no valid value.

    References:
        Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", 2017, with the site as the input.

    >>> IntegratedGradients(steps=32).name
    'integrated_gradients(steps=32)'
    """

    kind: ClassVar[str] = "integrated_gradients"
    needs_gradient: ClassVar[bool] = True  # for the effects to first order, to compare with
    steps: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _validate.integer("steps of IntegratedGradients", self.steps, least=1))

    @property
    def cost(self) -> str:
        """Return the passes that it takes at each layer in addition to those that all scores share, in words."""
        return passes_of(self.steps)

    def __call__(self, batch: SiteBatch, /) -> Float[Tensor, "sample neuron"]:
        """Compute the scores of one site on one batch.

        Args:
            batch: activations of the site.
        """
        total = torch.zeros_like(batch.activation)
        for step in range(self.steps):
            share = (step + 0.5) / self.steps
            total += batch.suffix.gradient(batch.activation - (1 - share) * batch.deviation)
        return batch.sum_positions(batch.deviation * total / self.steps)


@dataclass(frozen=True)
class MaskedGradient(BuiltInScore):
    """Score neurons by (h - b) times the mean of dm/dh over points at which random neurons are removed.

    These are first-order effects around ablations like those of a deletion curve, summed over positions, in units of
    the target. At each point every neuron of a sample is removed independently with one probability. By default there
    is one such point, beside the activations as they are, whose gradient the shared pass gives: together they are
    about as good as 8 points without it. The same neurons of the same samples are removed in every epoch, so that
    scores change with the model alone.

    Attributes:
        points: number of points at which neurons are removed.
        q_max: largest probability of removal.
        intact: whether the gradient at the activations as they are counts like one of the points; the probabilities
            of the others are then q_max / points, 2 q_max / points, ..., q_max. Otherwise each point draws its own
            from a stratum of [0, q_max]: if the target is multilinear in the neurons, these are gradients of its
            multilinear extension, and q_max = 1 gives Shapley values.
        jointly: whether neurons of all layers are removed together: one pass of the whole model for each point, for
            all layers, in place of one pass of what follows it for each layer. Then .25 is a good `q_max`.

    Raises:
        InvalidArgument: if an option has no valid value.

    References:
        Owen, "Multilinear extensions of games", 1972, for the extension.

    >>> MaskedGradient(points=2, q_max=0.25, jointly=True).name
    'masked_gradient(points=2, q_max=0.25, jointly=True)'
    """

    kind: ClassVar[str] = "masked_gradient"
    needs_gradient: ClassVar[bool] = True
    points: int = 1
    q_max: float = 0.5
    intact: bool = True
    jointly: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _validate.integer("points of MaskedGradient", self.points, least=1))
        q_max = _validate.number("q_max of MaskedGradient", self.q_max, above=0, most=1)
        object.__setattr__(self, "q_max", q_max)
        for name in ("intact", "jointly"):
            object.__setattr__(self, name, _validate.boolean(f"{name} of MaskedGradient", getattr(self, name)))

    @property
    def cost(self) -> str:
        """Return the passes that it takes at each layer in addition to those that all scores share, in words."""
        if not self.jointly:
            return passes_of(self.points)
        return f"{gradient_passes(self.points)} of the whole model, for all layers together"

    def __call__(self, batch: SiteBatch, /) -> Float[Tensor, "sample neuron"]:
        """Compute the scores of one site on one batch.

        Args:
            batch: activations and gradients of the site.
        """
        if self.jointly:
            assert batch.passes is not None
            total = batch.passes.once(self, lambda: self._joint_gradients(batch))[batch.site]
            total = total.to(batch.activation.dtype)
        else:
            total = torch.zeros_like(batch.activation)
            for point, probability in enumerate(self._probabilities(batch.seed + crc32(batch.where.key.encode()))):
                removed = random_removal(batch, point, probability)
                total += batch.suffix.gradient(batch.activation - removed * batch.deviation)
        if not self.intact:
            return batch.sum_positions(batch.deviation * total / self.points)
        assert batch.gradient is not None
        return batch.sum_positions(batch.deviation * (total + batch.gradient) / (self.points + 1))

    def _probabilities(self, seed: int) -> list[float]:
        """Return the probability of removal at each point, see `intact`."""
        if self.intact:
            return ((np.arange(self.points) + 1) / self.points * self.q_max).tolist()
        uniform = np.random.default_rng(seed).random(self.points)
        return ((np.arange(self.points) + uniform) / self.points * self.q_max).tolist()

    def _joint_gradients(self, batch: SiteBatch) -> dict[str, Tensor]:
        """Sum the gradients of all sites over points at which neurons of all of them are removed together."""
        assert batch.passes is not None
        sites, total = batch.passes.site_batches, dict[str, Tensor]()
        for point, probability in enumerate(self._probabilities(batch.seed)):

            def replace(name: str, found: Tensor, point: int = point, probability: float = probability) -> Tensor:
                """Remove random neurons of a site from the activations that the pass has there."""
                removed = random_removal(sites[name], point, probability)
                away = found - sites[name].baseline.to(found.dtype)
                positions = sites[name].positions
                if positions is not None:
                    away = away.where(along_positions(positions, sites[name].axis), 0)
                return found - removed.to(found.dtype) * away

            for name, gradient in batch.passes.gradients(replace).items():
                total[name] = total[name] + gradient if name in total else gradient
        return total
