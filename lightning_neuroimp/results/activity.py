"""SiteActivity: what the activations of a site are like."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.results.record import Record


@dataclass(frozen=True, eq=False, repr=False)
class SiteActivity(Record):
    """Hold what the activations of a site are like on the probe set, over all (unpadded) positions.

    A neuron is one channel, or a group of them. Statistics are in the unit of the activations.

    Attributes:
        site: the site in words.
        count: number of values per channel.
        mean: mean of each channel.
        std: standard deviation of each channel.
        minimum: smallest value of each channel.
        maximum: largest value of each channel.
        top_samples: numbers of the samples that drive each neuron most, in decreasing order: those of the largest
            activation at any position (for groups of channels, the largest Euclidean norm); -1 where there are fewer.
        top_values: their activations (for groups of channels, norms).
        nonlinearity: elementwise function that takes the site's values next, such as "tanh"; "" for none, or where no
            gradients were computed.
        derivative_error: share of removal's effect on the output of that function that its derivative misses: the sum
            of the positive parts of |f(h) - f(b)| - |(h - b) f'(h)|, over the sum of |f(h) - f(b)|, for all neurons of
            the first 64 samples of each process; NaN without such a function.
        other_baseline: the baseline with which scores are compared: "mean", or "zero" where the baseline is the mean;
            "" where nothing was compared.
        baseline_agreement: rank correlation of the effects of removal to first order with those that the other baseline
            would give, over a cluster's neurons, averaged over clusters by size; NaN where no gradients were computed,
            for resampled baselines, and where effects do not vary.

    >>> import torch
    >>> from lightning_neuroimp import neuron_importance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> results = neuron_importance(model, [(torch.randn(8, 4), torch.arange(8) % 2)], layers="0")
    >>> results.activity("0").nonlinearity, results.activity("0").mean.shape
    ('relu', (3,))
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
    other_baseline: str = ""
    baseline_agreement: float = float("nan")

    def distance(self, baseline: Float[np.ndarray, " channel"]) -> Float[np.ndarray, " channel"]:
        """Return the distance of a baseline from each channel's mean, in standard deviations.

        Args:
            baseline: value that each channel is set to.

        Returns:
            The distances; NaN for constant channels.
        """
        away = np.abs(baseline - self.mean)
        return np.divide(away, self.std, out=np.full_like(away, np.nan), where=self.std > 0)
