"""ClusterTable: what the clusters are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.results.record import Record


@dataclass(frozen=True, eq=False, repr=False)
class ClusterTable(Record):
    """What the clusters are, on the probe set.

    Attributes:
        source: where they come from, in words.
        ids: kept from epoch to epoch.
        names: for people.
        size: probe samples.
        accuracy: share of samples whose prediction is their target class.
        class_counts: samples per cluster and target class.
        exemplars: numbers (in the stream of validation samples) of the samples nearest to each cluster's centre,
            nearest first; -1 where a cluster has fewer.
        adjusted_rand_index: agreement with the last epoch's clusters (1: the same; 0: as by chance); NaN without one.
        history: rows (id, sample number) of each cluster ever seen, with its last members.
        class_names: of the classes, where they were given.
    """

    source: str
    ids: Int[np.ndarray, " cluster"]
    names: tuple[str, ...]
    size: Int[np.ndarray, " cluster"]
    accuracy: Float[np.ndarray, " cluster"]
    class_counts: Int[np.ndarray, "cluster class"]
    exemplars: Int[np.ndarray, "cluster exemplar"]
    adjusted_rand_index: float
    history: Int[np.ndarray, "entry 2"]
    class_names: tuple[str, ...] = ()
