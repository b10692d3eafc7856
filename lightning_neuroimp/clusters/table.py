"""Summarize clusters in a table: sizes, classes, accuracy, exemplars."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lightning_neuroimp.capture.sample_table import SampleTable
from lightning_neuroimp.clusters.identities import agreement
from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement

N_EXEMPLARS = 5
"""Number of samples that are listed for each cluster."""


@dataclass(frozen=True, eq=False)
class ClusterNaming:
    """Hold what is known of clusters in addition to their members.

    Attributes:
        kind: "labels", "predictions", "groups", "kmeans", or "own".
        source: where they come from, in words.
        names: names by id; others are called "cluster <id>".
        history: rows (id, sample number) of each cluster ever seen, with its last members; None: the present ones.
        class_names: names of all classes; may be empty.
    """

    kind: str
    source: str
    names: dict[int, str]
    history: Int[np.ndarray, "entry 2"] | None
    class_names: Sequence[str]

    def name(self, key: int) -> str:
        """Return the name of a cluster."""
        return self.names.get(key, f"cluster {key}")


def cluster_table(
    samples: SampleTable,
    ids: Int[np.ndarray, " cluster"],
    naming: ClusterNaming,
    previous: PreviousMeasurement | None,
) -> ClusterTable:
    """Summarize clusters: sizes, classes, accuracy, and the samples nearest to the centre of each.

    Args:
        samples: of all processes, with clusters.
        ids: of the clusters, in the order of the rows.
        naming: what else is known of them.
        previous: the measurement before, on the same samples; None: there was none.
    """
    assert samples.cluster is not None
    member_of = samples.cluster[None] == ids[:, None]
    counts = [np.bincount(samples.label[member], minlength=samples.n_classes) for member in member_of]
    history = naming.history
    if history is None:
        history = np.stack([samples.cluster, samples.index], 1)[samples.cluster >= 0]
    return ClusterTable(
        kind=naming.kind,
        source=naming.source,
        ids=ids,
        names=tuple(naming.name(key) for key in ids.tolist()),
        size=member_of.sum(1),
        accuracy=np.array([samples.correct[member].mean() for member in member_of]),
        class_counts=np.array(counts, np.int64).reshape(len(ids), samples.n_classes),
        exemplars=_exemplars(samples, ids),
        adjusted_rand_index=agreement(samples.cluster, samples.index, previous),
        history=history,
        class_names=tuple(map(str, naming.class_names)),
    )


def _exemplars(samples: SampleTable, ids: Int[np.ndarray, " cluster"]) -> Int[np.ndarray, "cluster exemplar"]:
    """Return the numbers of the samples nearest to each cluster's centre, nearest first; -1 where there are fewer."""
    found = np.full((len(ids), N_EXEMPLARS), -1, np.int64)
    if samples.embedding is None:
        return found
    finite = np.isfinite(samples.embedding).all(1)
    for row, key in enumerate(ids):
        member = np.flatnonzero((samples.cluster == key) & finite)
        if not len(member):
            continue
        points = samples.embedding[member].astype(np.float64)
        distance = np.linalg.norm(points - points.mean(0), axis=1)
        nearest = samples.index[member[np.lexsort((samples.index[member], distance))[:N_EXEMPLARS]]]
        found[row, : len(nearest)] = nearest
    return found
