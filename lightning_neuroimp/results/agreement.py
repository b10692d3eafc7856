"""Agreement of scores: between halves of a cluster, between epochs, and with randomised weights."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lightning_neuroimp.results.record import Record


@dataclass(frozen=True, eq=False, repr=False)
class Randomisation(Record):
    """Hold how far importances follow the model's weights: they should change when the weights are shuffled.

    Attributes:
        site: the site in words.
        attribution: name of the score.
        stages: name of the module that each stage shuffles in addition to those before it, from the output towards the
            input.
        rank_correlation: Spearman correlation of the importances with shuffled weights and those of the model as it is,
            -1 to 1, for each stage and cluster; near 0 is as it should be.

    >>> found = Randomisation("encoder.1", "activation", ("head", "encoder.2"), np.array([[1.0, 1.0], [0.9, 0.7]]))
    >>> found.stages[-1], float(found.rank_correlation[-1].mean())
    ('encoder.2', 0.8)
    """

    site: str
    attribution: str
    stages: tuple[str, ...]
    rank_correlation: Float[np.ndarray, "stage cluster"]


@dataclass(frozen=True, eq=False, repr=False)
class Reliability(Record):
    """Hold how well the two halves of each cluster agree on its neurons.

    Attributes:
        split_half: Spearman correlation of the halves' importances, -1 to 1, corrected to the length of the whole
            cluster (Spearman-Brown); NaN where it is not defined.
        k: number of top neurons that are compared: a tenth of the neurons, rounded up.
        top_overlap: Jaccard overlap of the halves' top k neurons, 0 to 1.
        top_chance: overlap that is expected by chance, 0 to 1.
        samples_needed: number of samples in the cluster at which `split_half` would be .9.

    >>> halves = Reliability(np.array([0.95, 0.6]), 2, np.array([1.0, 0.3]), 0.05, np.array([30.0, 240.0]))
    >>> halves.split_half > 0.9
    array([ True, False])
    """

    split_half: Float[np.ndarray, " cluster"]
    k: int
    top_overlap: Float[np.ndarray, " cluster"]
    top_chance: float
    samples_needed: Float[np.ndarray, " cluster"]


@dataclass(frozen=True, eq=False, repr=False)
class Drift(Record):
    """Hold how importances have changed since the last measured epoch; clusters are matched by identity.

    Attributes:
        epoch: number of that epoch.
        rank_correlation: Spearman correlation of each cluster's importances then and now, -1 to 1; NaN for clusters
            that did not exist then.
        top_overlap: Jaccard overlap of the top tenth of the neurons then and now, 0 to 1; NaN likewise.

    >>> Drift(4, np.array([0.98, np.nan]), np.array([0.8, np.nan])).epoch
    4
    """

    epoch: int
    rank_correlation: Float[np.ndarray, " cluster"]
    top_overlap: Float[np.ndarray, " cluster"]
