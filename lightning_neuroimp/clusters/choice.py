"""What `clusters=` may be: a name, a mapping, KMeans, or a callable."""

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Int

from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Gather
from lightning_neuroimp.batches.structure import values_to_ids
from lightning_neuroimp.clusters.classes import check_number
from lightning_neuroimp.clusters.kmeans import KMeansClusters

Clusters = str | Mapping[Any, Any] | KMeansClusters | Callable[..., Any]
"""`"labels"`, `"predictions"`, a mapping from classes to groups, `KMeansClusters(...)`, or a callable
`batch -> one integer or string per sample`."""


def check_clusters(clusters: Any) -> None:
    """Refuse what cannot name clusters.

    Raises:
        ValueError: if it is none of `Clusters`.
    """
    if isinstance(clusters, Mapping):
        if not clusters or not all(isinstance(value, Integral | str) for pair in clusters.items() for value in pair):
            raise ValueError(
                "clusters as a mapping must go from classes (numbers, or names in class_names) to groups (integers or "
                f"strings), got {dict(clusters)!r}"
            )
        return
    known = clusters in ("labels", "predictions") if isinstance(clusters, str) else isinstance(clusters, KMeansClusters)
    if not known and (not callable(clusters) or isinstance(clusters, type)):
        raise ValueError(
            "clusters must be 'labels', 'predictions', a mapping from classes to groups, KMeansClusters(8), or "
            f"a callable (batch) -> one integer or string per sample, got {clusters!r}"
        )


def describe_source(clusters: Clusters) -> str:
    """In words, for tables."""
    if isinstance(clusters, str | KMeansClusters):
        return str(clusters)
    if isinstance(clusters, Mapping):
        return f"groups of {len(clusters)} labels"
    return getattr(clusters, "__name__", type(clusters).__name__)


def assign_by_callable(
    function: Callable[..., Any], probe: ProbeSet, batch_size: int | None, gather: Gather
) -> tuple[Int[np.ndarray, " sample"], dict[int, str]]:
    """Ids and names from a callable on batches; integers are their own ids, strings are numbered in order.

    Raises:
        ValueError: if it returns anything else, or more than 20 groups.
    """
    values: list[Any] = []
    for batch, index in probe.batches(batch_size):
        values += values_to_ids(function(batch), len(index), "the clusters callable")
    distinct = sorted({value for share in gather(sorted(set(values), key=str)) for value in share}, key=str)
    check_number(len(distinct))
    if all(isinstance(value, int) and value >= 0 for value in distinct):
        ids = {value: int(value) for value in distinct}
    else:
        ids = {value: number for number, value in enumerate(distinct)}
    return np.array([ids[value] for value in values], np.int64), {key: str(value) for value, key in ids.items()}
