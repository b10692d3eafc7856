"""ClusterTable: what the clusters of a measurement are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.results.record import Record


@dataclass(frozen=True, eq=False, repr=False)
class ClusterTable(Record):
    """Describe the clusters of the probe samples: one entry per cluster, in the order of the rows of all results.

    Attributes:
        kind: "labels", "predictions", "groups" (of labels), "kmeans", or "own" for a user's function.
        source: where the clusters come from, in words.
        ids: id of each cluster, the same from epoch to epoch.
        names: name of each cluster.
        size: number of probe samples in each cluster.
        accuracy: share of each cluster's samples whose prediction is their target class, 0 to 1.
        class_counts: number of samples in each cluster of each target class.
        exemplars: numbers (in the stream of validation samples) of the samples nearest to each cluster's centre,
            nearest first; -1 where a cluster has fewer.
        adjusted_rand_index: agreement with the clusters of the last measured epoch (1: the same clusters, 0: expected
            by chance); NaN without one.
        history: rows (id, sample number) of every cluster ever seen, with its last members.
        class_names: names of the classes, where they were given.

    >>> from lightning_neuroimp import neuron_importance
    >>> from torch import nn, randn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> results = neuron_importance(model, [(randn(6, 4), [0, 0, 0, 0, 1, 1])], layers="1")
    >>> results.clusters.names, results.clusters.size.tolist()
    (('label 0', 'label 1'), [4, 2])
    """

    kind: str
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
