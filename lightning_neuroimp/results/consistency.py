"""Consistency: whether the records of one measurement fit together, each of them being valid by itself."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.importance import Importance


def disagreements(clusters: ClusterTable, importances: Sequence[Importance]) -> Iterator[str]:
    """Say which importances do not fit the clusters, their removal, or each other.

    Args:
        clusters: the clusters of the measurement.
        importances: its importances.
    """
    n_clusters, keys = len(clusters.ids), [(each.site, each.attribution) for each in importances]
    yield from _sizes("clusters", n_clusters, names=len(clusters.names))
    for key, after in pairwise(sorted(keys)):
        if key == after:
            yield f"importances must differ in site or attribution, found {key!r} twice"
    for number, importance in enumerate(importances):
        where = f"importances[{number}]"
        removal, drift, judged = importance.removal, importance.drift, importance.faithfulness
        if not np.array_equal(importance.cluster_ids, clusters.ids):
            yield f"{where}.cluster_ids must be those of the clusters, found {importance.cluster_ids.tolist()[:20]}"
        yield from _sizes(where, 2, half_mean=len(importance.half_mean))
        if importance.cluster_names != clusters.names:
            yield f"{where}.cluster_names must be those of the clusters, found {list(importance.cluster_names[:20])}"
        yield from _sizes(where, removal.n_neurons, half_mean=importance.half_mean.shape[2])
        yield from _sizes(f"{where}.reliability", n_clusters, split_half=len(importance.reliability.split_half))
        if drift is not None:
            yield from _sizes(f"{where}.drift", n_clusters, rank_correlation=len(drift.rank_correlation))
        if judged is not None:
            yield from _of_faithfulness(judged, f"{where}.faithfulness", n_clusters, removal.n_neurons)


def _of_faithfulness(judged: Faithfulness, where: str, n_clusters: int, n_neurons: int) -> Iterator[str]:
    yield from _sizes(where, n_clusters + 1, gap=len(judged.gap), verdict=len(judged.verdict))
    yield from _sizes(where, 2, samples=len(judged.samples))
    yield from _sizes(where, len(judged.references), reference_gap=len(judged.reference_gap))
    yield from _sizes(where, len(judged.alternatives), alternative_lds=len(judged.alternative_lds))
    if not len(judged.removed) or judged.removed.min() < 1 or judged.removed.max() > n_neurons:
        yield f"{where}.removed must be numbers from 1 to {n_neurons}, found {judged.removed.tolist()[:20]}"
    if judged.specificity is not None:
        yield from _sizes(f"{where}.specificity", n_clusters, accuracy_drop=len(judged.specificity.accuracy_drop))


def _sizes(where: str, expected: int, **found: int) -> Iterator[str]:
    for name, size in found.items():
        if size != expected:
            yield f"{where}.{name} must have {expected} entries along an axis, found {size}"
