"""How scores agree: between halves, between epochs, and with randomised weights."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lightning_neuroimp.results.record import Record


@dataclass(frozen=True, eq=False, repr=False)
class Randomisation(Record):
    """How far importances follow the model's weights.

    Attributes:
        site: name of the module.
        attribution: name of the score.
        stages: the modules whose weights each stage shuffles, from the output towards the input; earlier ones stay so.
        rank_correlation: of the importances then with those of the model as it is.
    """

    site: str
    attribution: str
    stages: tuple[str, ...]
    rank_correlation: Float[np.ndarray, "stage cluster"]


@dataclass(frozen=True, eq=False, repr=False)
class Reliability(Record):
    """How well the two halves of each cluster agree on its neurons.

    Attributes:
        split_half: rank correlation of the halves' importances, corrected to the whole cluster's length.
        k: a tenth of the neurons, rounded up.
        top_overlap: Jaccard overlap of the halves' k top neurons.
        top_chance: the overlap by chance.
        samples_needed: how many samples of the cluster would make `split_half` .9.
    """

    split_half: Float[np.ndarray, " cluster"]
    k: int
    top_overlap: Float[np.ndarray, " cluster"]
    top_chance: float
    samples_needed: Float[np.ndarray, " cluster"]


@dataclass(frozen=True, eq=False, repr=False)
class Drift(Record):
    """How importances have changed since the last measured epoch, cluster by identity.

    Attributes:
        epoch: that epoch.
        rank_correlation: of then and now; NaN for clusters that were not there.
        top_overlap: Jaccard overlap of the top tenth of the neurons.
    """

    epoch: int
    rank_correlation: Float[np.ndarray, " cluster"]
    top_overlap: Float[np.ndarray, " cluster"]
