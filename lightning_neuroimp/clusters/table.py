"""The table of clusters: sizes, classes, accuracy, exemplars."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lightning_neuroimp.clusters.identities import agreement
from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.previous import PreviousMeasurement

N_EXEMPLARS = 5


def describe(
    source: str,
    names: dict[int, str],
    ids: Int[np.ndarray, " cluster"],
    cluster: Int[np.ndarray, " sample"],
    index: Int[np.ndarray, " sample"],
    classes: Int[np.ndarray, " sample"],
    correct: Bool[np.ndarray, " sample"],
    embeddings: Float[np.ndarray, "sample feature"],
    n_classes: int,
    previous: ClusterTable | PreviousMeasurement | None,
    history: Int[np.ndarray, "entry 2"],
    class_names: Sequence[str],
) -> ClusterTable:
    """The table of clusters: sizes, classes, accuracy, and the samples nearest to the centre of each."""
    exemplars = np.full((len(ids), N_EXEMPLARS), -1, np.int64)
    placed = np.isfinite(embeddings).all(1)
    for row, key in enumerate(ids):
        member = np.flatnonzero((cluster == key) & placed)
        if not len(member):
            continue
        points = embeddings[member].astype(np.float64)
        distance = np.linalg.norm(points - points.mean(0), axis=1)
        nearest = index[member[np.lexsort((index[member], distance))[:N_EXEMPLARS]]]
        exemplars[row, : len(nearest)] = nearest
    member_of = cluster[None] == ids[:, None]
    size = member_of.sum(1)
    counts = [np.bincount(classes[member], minlength=n_classes) for member in member_of]
    return ClusterTable(
        source=source,
        ids=ids,
        names=tuple(names.get(int(key), f"cluster {key}") for key in ids),
        size=size,
        accuracy=np.array([correct[member].mean() for member in member_of]),
        class_counts=np.array(counts, np.int64).reshape(len(ids), n_classes),
        exemplars=exemplars,
        adjusted_rand_index=agreement(cluster, index, previous),
        history=history,
        class_names=tuple(map(str, class_names)),
    )
