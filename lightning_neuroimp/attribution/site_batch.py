"""SiteBatch: one site's activations and gradients for one batch."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from lightning_neuroimp import sites
from lightning_neuroimp.attribution.suffix import Suffix


@dataclass(frozen=True)
class SiteBatch:
    """What an attribution sees of one site and one batch.

    Attributes:
        site: the module's name.
        axis: neuron axis of `activation`.
        activation: output of the site, samples first.
        gradient: derivative of each sample's own target with respect to it, same shape; zero where the target does
            not depend on it.
        baseline: value of a removed neuron.
        seed: for scores that draw random numbers.
        index: number of each sample in the stream, for draws that shall not depend on how samples are batched.
        suffix: the target as a function of the site's activations: `suffix.target(activation)`, also for gradients, and
            `suffix.effects(masks)`.
    """

    site: str
    axis: int
    activation: Float[Tensor, "sample *rest"]
    gradient: Float[Tensor, "sample *rest"] | None
    baseline: Float[Tensor, " neuron"]
    seed: int
    index: Int[np.ndarray, " sample"]
    suffix: Suffix

    @property
    def deviation(self) -> Float[Tensor, "sample *rest"]:
        """Activation - baseline: how far removal moves each neuron."""
        if not self.baseline.any():
            return self.activation
        return self.activation - sites.along_axis(self.baseline, self.axis, self.activation.ndim)

    def sum_positions(self, values: Float[Tensor, "sample *rest"]) -> Float[Tensor, "sample neuron"]:
        """Sum over all axes but samples and neurons: over space, for a convolution."""
        return sites.sum_positions(values, self.axis)
