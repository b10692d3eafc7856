"""Clusters: groups of related probe samples, whose identities are kept from epoch to epoch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from lightning_neuroimp.probe import Gather, ProbeSet
from lightning_neuroimp.results import ClusterTable
from lightning_neuroimp.sites import AxisTracker, Site, check_output, find_sites, sum_positions

MAX_CLUSTERS = 20
"""More groups than this, by labels or by a callable, are refused: nobody reads so many curves."""

N_EXEMPLARS = 5
MIN_OVERLAP = 0.5
MAX_RETIRED = 50
"""So many vanished clusters are remembered, the latest ones, so that one of them can revive."""


@dataclass(frozen=True)
class KMeansClusters:
    """Clusters found by KMeans (scikit-learn's) on the embeddings of the probe samples.

    Attributes:
        n_clusters: how many.
        embedding: name of the layer whose output is the embedding (averaged over positions); by default the input of
            the last linear layer that the model calls.
    """

    n_clusters: int = 8
    embedding: str | None = None

    def __post_init__(self) -> None:
        if self.n_clusters < 2:
            raise ValueError(f"n_clusters must be at least 2, got {self.n_clusters}")

    def assign(
        self,
        embeddings: Float[np.ndarray, "sample feature"],
        index: Int[np.ndarray, " sample"],
        previous: ClusterTable | None,
        seed: int,
    ) -> Int[np.ndarray, " sample"]:
        """A cluster number for every sample, -1 where the embedding is not finite.

        Where the same number of clusters was found before, KMeans starts from the present means of their previous
        members: started from the old centres it would lose them when the embedding rotates in training.

        Raises:
            ValueError: if there are more clusters than samples.
        """
        finite = np.isfinite(embeddings).all(1)
        if finite.sum() < self.n_clusters:
            raise ValueError(
                f"n_clusters={self.n_clusters} is more than the {finite.sum()} probe samples with finite embeddings; "
                "ask for fewer clusters, or raise max_samples or limit_val_batches"
            )
        points = embeddings[finite].astype(np.float64)
        start = self._means_of_members(points, index[finite], previous)
        if start is None:
            model = KMeans(self.n_clusters, n_init=10, random_state=seed)
        else:
            model = KMeans(self.n_clusters, init=start, n_init=1, random_state=seed)
        number = np.full(len(embeddings), -1, np.int64)
        number[finite] = model.fit_predict(points)
        return number

    def _means_of_members(
        self, points: np.ndarray, index: np.ndarray, previous: ClusterTable | None
    ) -> np.ndarray | None:
        if previous is None or len(previous.ids) != self.n_clusters:
            return None
        members = [np.isin(index, previous.history[previous.history[:, 0] == key, 1]) for key in previous.ids]
        if not all(member.any() for member in members):
            return None
        return np.stack([points[member].mean(0) for member in members])


Clusters = str | KMeansClusters | Callable[..., Any]
"""`"labels"`, `KMeansClusters(...)`, or a callable `batch -> one integer or string per sample`."""


def check_clusters(clusters: Any) -> None:
    """Refuse what cannot name clusters.

    Raises:
        ValueError: if it is neither "labels", nor `KMeansClusters`, nor a callable.
    """
    known = clusters == "labels" or isinstance(clusters, KMeansClusters)
    if not known and (not callable(clusters) or isinstance(clusters, type)):
        raise ValueError(
            "clusters must be 'labels', KMeansClusters(n_clusters), or a callable (batch) -> one integer or string "
            f"per sample, got {clusters!r}"
        )


def describe_source(clusters: Clusters) -> str:
    """In words, for tables."""
    if isinstance(clusters, KMeansClusters):
        layer = f"the output of {clusters.embedding}" if clusters.embedding else "the input of the last linear layer"
        return f"KMeans({clusters.n_clusters}) on {layer}"
    return clusters if isinstance(clusters, str) else getattr(clusters, "__name__", type(clusters).__name__)


def values_to_ids(values: Any, n_samples: int) -> list[Any]:
    """A clusters callable's outcome for one batch as a list of integers or strings.

    Raises:
        ValueError: if it is not one integer or string per sample.
    """
    plain = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    if (
        isinstance(plain, list | tuple)
        and len(plain) == n_samples
        and all(isinstance(value, Integral | str) for value in plain)
    ):
        return [value if isinstance(value, str) else int(value) for value in plain]
    raise ValueError(
        f"the clusters callable must return one integer or string for each of the {n_samples} samples of a batch, got "
        f"a {type(values).__name__}: {str(values)[:80]}"
    )


def assign_by_callable(
    function: Callable[..., Any], probe: ProbeSet, batch_size: int | None, gather: Gather
) -> tuple[Int[np.ndarray, " sample"], dict[int, str]]:
    """Ids and names from a callable on batches; integers are their own ids, strings are numbered in order.

    Raises:
        ValueError: if it returns anything else, or more than 20 groups.
    """
    values: list[Any] = []
    for batch, index in probe.batches(batch_size):
        values += values_to_ids(function(batch), len(index))
    distinct = sorted({value for share in gather(sorted(set(values), key=str)) for value in share}, key=str)
    check_number(len(distinct))
    if all(isinstance(value, int) and value >= 0 for value in distinct):
        ids = {value: int(value) for value in distinct}
    else:
        ids = {value: number for number, value in enumerate(distinct)}
    return np.array([ids[value] for value in values], np.int64), {key: str(value) for value, key in ids.items()}


def check_number(n_clusters: int, *, so_far: bool = False) -> None:
    """Refuse more clusters than anyone can read.

    Args:
        n_clusters: how many there are.
        so_far: whether there may be more.

    Raises:
        ValueError: if there are more than 20.
    """
    if n_clusters > MAX_CLUSTERS:
        found = f"at least {n_clusters}" if so_far else str(n_clusters)
        raise ValueError(
            f"there are {found} clusters, more than {MAX_CLUSTERS}: group them with a callable, for instance "
            "clusters=lambda batch: batch[1] // 10, or find groups with clusters=KMeansClusters(8)"
        )


class EmbeddingTap:
    """Reads each sample's embedding from a forward pass.

    Args:
        model: whose linear layers are watched.
        layer: name of the layer whose output is the embedding; None: the input of the last linear layer called.

    Raises:
        ValueError: if there is no such layer.
    """

    def __init__(self, model: nn.Module, layer: str | None) -> None:
        self._model = model
        self._site = None if layer is None else find_sites(model, Site(layer))[0]
        self._embedding: Tensor | None = None
        self._tracker = AxisTracker()

    @contextmanager
    def attach(self) -> Iterator["EmbeddingTap"]:
        """Hold the hooks inside this context."""
        handles = []
        try:
            if self._site is not None:
                module = self._model.get_submodule(self._site.name)
                handles.append(module.register_forward_hook(self._keep_output))
                with self._tracker.watch(self._model):
                    yield self
            else:
                for module in self._model.modules():
                    if isinstance(module, nn.Linear):
                        handles.append(module.register_forward_pre_hook(self._keep_input))
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self._embedding = None

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].ndim >= 2:
            value = args[0].detach()
            # a copy, as a layer behind may work in place
            self._embedding = value.clone() if value.ndim == 2 else value.flatten(1, -2).mean(1)

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        assert self._site is not None
        tensor = check_output(self._site, module, output, len(output) if isinstance(output, Tensor) else 0).detach()
        axis = self._tracker.axis(self._site, module, tensor)
        total = sum_positions(tensor, axis)
        self._embedding = total / max(1, tensor[0].numel() // total.shape[1])

    def read(self, logits: Float[Tensor, "sample class"], *, required: bool) -> Float[Tensor, "sample feature"]:
        """The embedding of the forward pass that gave these logits.

        Args:
            logits: they stand in where the model has no linear layer and the embedding is not `required`.
            required: whether clusters depend on it.

        Raises:
            ValueError: if there is none.
        """
        found, self._embedding = self._embedding, None
        if found is not None and len(found) == len(logits):
            return found.float()
        if not required:
            return logits.detach().float()
        raise ValueError(
            "KMeansClusters needs one embedding per sample, but "
            + (
                f"layer {self._site.name!r} gave none"
                if self._site is not None
                else "the model calls no linear layer with one row per sample"
            )
            + "; name a layer: KMeansClusters(n_clusters, embedding='...')"
        )


def keep_identities(
    number: Int[np.ndarray, " sample"], index: Int[np.ndarray, " sample"], previous: ClusterTable | None
) -> tuple[Int[np.ndarray, " sample"], Int[np.ndarray, " cluster"], Int[np.ndarray, "entry 2"]]:
    """Give new clusters the ids of the old ones that they continue.

    A live cluster's id goes on where members overlap at a Jaccard index of at least .5 under the best (Hungarian)
    matching; else the retired cluster that overlaps best, at least as much, revives; else the id is new.

    Args:
        number: each sample's cluster, in any numbering; -1: in none.
        index: each sample's number in the stream.
        previous: the last epoch's clusters.

    Returns:
        Each sample's cluster id, the sorted ids, and the history to hand on.
    """
    new = {key: set(index[number == key].tolist()) for key in np.unique(number[number >= 0]).tolist()}
    old: dict[int, set[int]] = {}
    if previous is not None:
        for key, sample in previous.history.tolist():
            old.setdefault(key, set()).add(sample)
    live = set() if previous is None else set(previous.ids.tolist())
    ids: dict[int, int] = {}
    for candidates in (sorted(live & set(old)), sorted(set(old) - live)):
        open_ = [key for key in new if key not in ids]
        if not open_ or not candidates:
            continue
        overlap = np.array([[_jaccard(new[one], old[other]) for other in candidates] for one in open_])
        overlap[overlap < MIN_OVERLAP] = 0.0  # or two poor pairs could outweigh one good pair
        for row, column in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[row, column]:
                ids[open_[row]] = candidates[column]
    fresh = max(old, default=-1) + 1
    for key in sorted((key for key in new if key not in ids), key=lambda key: (-len(new[key]), key)):
        ids[key] = fresh
        fresh += 1
    named = np.array([ids.get(key, -1) for key in number.tolist()], np.int64)
    retired = sorted(set(old) - set(ids.values()))[-MAX_RETIRED:]
    members = {**{key: old[key] for key in retired}, **{ids[key]: samples for key, samples in new.items()}}
    history = [(key, sample) for key, samples in sorted(members.items()) for sample in sorted(samples)]
    return named, np.array(sorted(ids.values()), np.int64), np.array(history, np.int64).reshape(-1, 2)


def _jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


def agreement(
    cluster: Int[np.ndarray, " sample"], index: Int[np.ndarray, " sample"], previous: ClusterTable | None
) -> float:
    """Adjusted Rand index between these clusters and the last epoch's, on the samples in both; NaN without any."""
    if previous is None:
        return float("nan")
    live = previous.history[np.isin(previous.history[:, 0], previous.ids)]
    before = dict(zip(live[:, 1].tolist(), live[:, 0].tolist(), strict=True))
    pairs = [
        (before[sample], key)
        for sample, key in zip(index.tolist(), cluster.tolist(), strict=True)
        if key >= 0 and sample in before
    ]
    return float(adjusted_rand_score(*zip(*pairs, strict=True))) if pairs else float("nan")


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
    previous: ClusterTable | None,
    history: Int[np.ndarray, "entry 2"],
) -> ClusterTable:
    """The table of clusters: sizes, classes, accuracy, and the samples nearest to the centre of each."""
    exemplars = np.full((len(ids), N_EXEMPLARS), -1, np.int64)
    for row, key in enumerate(ids):
        member = np.flatnonzero(cluster == key)
        points = embeddings[member]
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
    )
