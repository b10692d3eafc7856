"""Validate what was passed as `clusters=`: a name, a mapping, KMeans, or a callable, which is called here as well."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.numbers import LOADER
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.clusters.classes import MAX_CLUSTERS, validate_count
from lightning_neuroimp.clusters.kmeans import KMeansClusters
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import OWN


@runtime_checkable
class BatchFn(Protocol):
    """Give one integer or string for each sample of a batch, such as its cluster, its group or its stratum."""

    def __call__(self, batch: Any, /) -> Any:
        """Return a tensor, an array or a list with one value per sample."""


Clusters = str | Mapping[Any, Any] | KMeansClusters | BatchFn
"""`"labels"`, `"predictions"`, `"dataloaders"`, a mapping from classes to groups, `KMeansClusters(...)`, or a callable
`batch -> one integer or string per sample`."""

NAMES = ("labels", "predictions", "dataloaders")

FIXED = ("labels", "dataloaders")
"""Kinds of clusters that hold the same samples in all measurements."""


def validate_clusters(clusters: Any) -> None:
    """Refuse values of `clusters=` that cannot give samples their clusters.

    Args:
        clusters: what was passed.

    Raises:
        InvalidArgument: if it is none of the kinds in `Clusters`.
    """
    if isinstance(clusters, Mapping):
        if not clusters or not all(isinstance(value, Integral | str) for pair in clusters.items() for value in pair):
            raise InvalidArgument(
                "clusters as a mapping must go from classes (numbers, or names in class_names) to groups (integers or "
                f"strings), got {_validate.shown(dict(clusters))}"
            )
        return
    if isinstance(clusters, KMeansClusters):
        return
    if isinstance(clusters, str) or not callable(clusters) or isinstance(clusters, type):
        function = "a callable (batch) -> one integer or string per sample"
        more = ["a mapping from classes to groups", "KMeansClusters(8)", function]
        _validate.choice("clusters", clusters, NAMES, more)


def kind_of(clusters: Clusters) -> str:
    """Return the kind of clusters: "labels", "predictions", "dataloaders", "groups" of labels, "kmeans", or "own"."""
    if isinstance(clusters, str):
        return clusters
    if isinstance(clusters, Mapping):
        return "groups"
    return "kmeans" if isinstance(clusters, KMeansClusters) else OWN


def describe_source(clusters: Clusters) -> str:
    """Say in words where clusters come from, for tables."""
    if isinstance(clusters, str | KMeansClusters):
        return str(clusters)
    if isinstance(clusters, Mapping):
        return f"groups of {len(clusters)} labels"
    return getattr(clusters, "__name__", type(clusters).__name__)


def assign_by_loader(subject: Subject) -> tuple[Int[np.ndarray, " local"], dict[int, str]]:
    """Return the number of the validation loader of each sample of this process, and the clusters' names by it.

    Args:
        subject: the samples of this process.

    Raises:
        InvalidArgument: if there are more than 20 loaders.
    """
    loader = subject.probe.index // LOADER
    found = sorted(set(subject.processes.chain(np.unique(loader).tolist())))
    if len(found) > MAX_CLUSTERS:
        raise InvalidArgument(
            f"the samples are from {len(found)} validation loaders, more than {MAX_CLUSTERS} clusters: choose some of "
            f"them, such as dataloaders={found[:3]}"
        )
    return loader, {number: f"loader {number}" for number in found}


def assign_by_callable(function: BatchFn, subject: Subject) -> tuple[Int[np.ndarray, " local"], dict[int, str]]:
    """Ask a callable for the cluster of each sample of each batch.

    Args:
        function: `batch -> one integer or string per sample`.
        subject: the samples of this process.

    Returns:
        The cluster id of each sample of this process, and the clusters' names by id. Non-negative integers are their
        own ids; where there are other values, all are numbered in the order of their texts.

    Raises:
        InvalidArgument: if the callable fails, returns anything else, or more than 20 different values.
    """
    values: list[Any] = []
    for batch, index in subject.batches():
        with _validate.users_function("the clusters callable"):
            found = function(batch)
        values += _validate.one_per_sample(found, len(index), "the clusters callable")
    distinct = sorted(set(subject.processes.chain(sorted(set(values), key=str))), key=str)
    validate_count(len(distinct))
    if all(isinstance(value, int) and value >= 0 for value in distinct):
        ids = {value: int(value) for value in distinct}
    else:
        ids = {value: number for number, value in enumerate(distinct)}
    return np.array([ids[value] for value in values], np.int64), {key: str(value) for value, key in ids.items()}
