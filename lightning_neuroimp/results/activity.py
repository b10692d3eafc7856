"""SiteActivity: what the activations of a site are like."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.results.record import Record


@dataclass(frozen=True, eq=False, repr=False)
class SiteActivity(Record):
    """What the activations of a site are like on the probe set, over all (unpadded) positions.

    Attributes:
        site: in words.
        count: values per channel.
        mean, std, minimum, maximum: of each channel; a neuron is one channel, or a group of them.
        top_samples: numbers of the samples that drive each neuron most, most first: those of the largest activation at
            any position (for groups of channels, the largest Euclidean norm); -1 where there are fewer.
        top_values: those activations.
        nonlinearity: the function that follows elementwise, such as "tanh", where the site is what it is given; "" for
            none, or where no gradients were computed.
        derivative_error: what the derivative does not see of removal's effect on the outcome of that function: the sum
            of |f(h) - f(b)| - |(h - b) f'(h)|, where that is positive, over that of |f(h) - f(b)|, for all neurons of
            the first 64 samples of each process; NaN where none follows.
    """

    site: str
    count: int
    mean: Float[np.ndarray, " channel"]
    std: Float[np.ndarray, " channel"]
    minimum: Float[np.ndarray, " channel"]
    maximum: Float[np.ndarray, " channel"]
    top_samples: Int[np.ndarray, "neuron top"]
    top_values: Float[np.ndarray, "neuron top"]
    nonlinearity: str = ""
    derivative_error: float = float("nan")

    def distance(self, baseline: Float[np.ndarray, " channel"]) -> Float[np.ndarray, " channel"]:
        """How many standard deviations a baseline lies from each channel's mean; NaN for constant channels.

        Args:
            baseline: of each channel.
        """
        away = np.abs(baseline - self.mean)
        return np.divide(away, self.std, out=np.full_like(away, np.nan), where=self.std > 0)
