"""Hold the activations and gradients of one site on one batch: the argument of every attribution."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.capture.positions import along_positions, sum_groups, sum_positions
from lightning_neuroimp.importance.attributions.batch_passes import BatchPasses
from lightning_neuroimp.importance.attributions.suffix_target import SuffixTarget
from lightning_neuroimp.site import Site


@dataclass(frozen=True)
class SiteBatch:
    """Hold what an attribution sees of one site and one batch.

    A callable attribution takes one of these and returns scores of shape (sample, neuron):

    >>> def size(batch: SiteBatch):
    ...     return batch.sum_positions(batch.deviation.abs())

    Attributes:
        where: the site.
        axis: axis of the channels in `activation`; a neuron is one channel, or a group of neighbours.
        activation: activations at the site, samples first.
        gradient: gradient of each sample's own target with respect to them, same shape; zero where the target does not
            depend on them, and at positions that do not count. None if no attribution needs it.
        baseline: what removal puts in their place, shaped to broadcast against them.
        seed: seed for scores that draw random numbers.
        index: number of each sample in the stream, for draws that must not depend on how samples are batched.
        suffix: the target as a function of the site's activations: `suffix.target(activation)`, also for gradients,
            and `suffix.effects(masks)`.
        positions: True at positions that count: unpadded tokens, or the one that the site names; None: all.
        passes: makes further passes of the whole model over the batch; None outside an importance pass.
    """

    where: Site
    axis: int
    activation: Float[Tensor, " sample *rest"]
    gradient: Float[Tensor, " sample *rest"] | None
    baseline: Float[Tensor, " _ *_rest"]
    seed: int
    index: Int[np.ndarray, " sample"]
    suffix: SuffixTarget
    positions: Bool[Tensor, " sample *position"] | None = None
    passes: BatchPasses | None = None

    @property
    def site(self) -> str:
        """Return the site in words."""
        return str(self.where)

    @property
    def group(self) -> int:
        """Return the number of channels that are one neuron."""
        return self.where.group

    @property
    def n_neurons(self) -> int:
        """Return the number of neurons at the site."""
        return self.activation.shape[self.axis] // self.group

    @property
    def deviation(self) -> Float[Tensor, " sample *rest"]:
        """Return activation - baseline: how far removal moves each channel; 0 at positions that do not count."""
        moved = self.activation - self.baseline if self.baseline.any() else self.activation
        if self.positions is None:
            return moved
        return moved.where(along_positions(self.positions, self.axis), 0)

    def sum_positions(self, values: Float[Tensor, " sample *rest"]) -> Float[Tensor, "sample neuron"]:
        """Sum over all axes but samples and neurons: over space for a convolution, over unpadded tokens.

        Args:
            values: one value per activation.
        """
        return sum_groups(sum_positions(values, self.axis, self.positions), self.group)

    def game(self, sample: int) -> Callable[[Bool[np.ndarray, "coalition neuron"]], Float[np.ndarray, " coalition"]]:
        """Return the game whose players are the neurons and whose value is the target of one sample without the others.

        It is what libraries for games take, such as shapiq: `shapiq.ExactComputer(game=batch.game(0), n_players=d)`
        gives interactions of neurons. The players of several coalitions at once are True; the others are removed.

        Args:
            sample: row in the batch.

        Returns:
            Function of which neurons stay, in rows, to m(h with all others at the baseline). Each row is a pass over
            the whole batch.
        """
        whole = self.suffix.target(self.activation).detach()[sample]

        def value(stays: Bool[np.ndarray, "coalition neuron"]) -> Float[np.ndarray, " coalition"]:
            removed = ~torch.as_tensor(np.atleast_2d(stays), dtype=torch.bool, device=self.activation.device)
            return (whole - self.suffix.effects(removed)[:, sample]).cpu().numpy()

        return value
