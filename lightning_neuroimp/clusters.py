"""Clusters: groups of related probe samples, by class, by KMeans on embeddings, or of the user's own."""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler, normalize

from lightning_neuroimp.batches import labels_of
from lightning_neuroimp.earlier import Earlier
from lightning_neuroimp.identities import agreement
from lightning_neuroimp.probe import Gather, ProbeSet
from lightning_neuroimp.results import ClusterTable, Site
from lightning_neuroimp.rows import values_to_ids

MAX_CLUSTERS = 20
"""More groups than this, by labels or by a callable, are refused: nobody reads so many curves."""

N_EXEMPLARS = 5
MINI_BATCH_FROM = 10**5
"""With more samples than this KMeans works on mini-batches."""

SILHOUETTE_SAMPLES = 1000
"""The silhouette takes a distance between every two samples: it is computed on so many at most."""


@dataclass(frozen=True)
class KMeansClusters:
    """Clusters found by KMeans (scikit-learn's; MiniBatchKMeans above 100,000 samples) on embeddings of the samples.

    Attributes:
        n_clusters: how many; or a pair (least, most), from which the number with the best mean silhouette is taken in
            the first measurement, and kept.
        embedding: layer whose output is the embedding (a name or a `Site`; averaged over unpadded positions); by
            default the input of the last linear layer that the model calls.
        scale: "standard": each feature to mean 0 and standard deviation 1; "l2": each embedding to length 1, so that
            angles count; None: as they are.
        n_components: so many principal components, after scaling, are clustered; None: all features.
    """

    n_clusters: int | tuple[int, int] = 8
    embedding: str | Site | None = None
    scale: str | None = None
    n_components: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.n_clusters, tuple | list):
            ends = tuple(self.n_clusters)
            if (
                len(ends) != 2
                or not all(isinstance(end, int) for end in ends)
                or not 2 <= ends[0] <= ends[1] <= MAX_CLUSTERS
            ):
                raise ValueError(
                    f"n_clusters must be a number, or a pair (least, most) from 2 to {MAX_CLUSTERS}, got "
                    f"{self.n_clusters!r}"
                )
            object.__setattr__(self, "n_clusters", ends)
        elif not isinstance(self.n_clusters, int):
            raise ValueError(f"n_clusters must be a number, or a pair (least, most), got {self.n_clusters!r}")
        elif self.n_clusters < 2:
            raise ValueError(f"n_clusters must be at least 2, got {self.n_clusters}")
        if self.scale not in (None, "standard", "l2"):
            raise ValueError(f"scale must be None, 'standard' or 'l2', got {self.scale!r}")
        if self.n_components is not None and self.n_components < 1:
            raise ValueError(f"n_components must be at least 1, got {self.n_components}")

    def assign(
        self,
        embeddings: Float[np.ndarray, "sample feature"],
        index: Int[np.ndarray, " sample"],
        previous: ClusterTable | Earlier | None,
        seed: int,
    ) -> Int[np.ndarray, " sample"]:
        """A cluster number for every sample, -1 where the embedding is not finite.

        Where the same number of clusters was found before, KMeans starts from the present means of their previous
        members: started from the old centres it would lose them when the embedding rotates in training.

        Raises:
            ValueError: if there are more clusters than samples.
        """
        finite = np.isfinite(embeddings).all(1)
        least = self.n_clusters if isinstance(self.n_clusters, int) else self.n_clusters[0]
        if finite.sum() < least:
            raise ValueError(
                f"n_clusters={self.n_clusters} is more than the {finite.sum()} probe samples with finite embeddings; "
                "ask for fewer clusters, or raise max_samples or limit_val_batches"
            )
        points = self._features(embeddings[finite].astype(np.float64), seed)
        start = self._means_of_members(points, index[finite], previous)
        if start is not None:
            found = _kmeans(points, len(start), seed, start)
        elif isinstance(self.n_clusters, int):
            found = _kmeans(points, self.n_clusters, seed)
        else:
            found = _best_by_silhouette(points, self.n_clusters, seed)
        number = np.full(len(embeddings), -1, np.int64)
        number[finite] = found
        return number

    def _features(self, points: np.ndarray, seed: int) -> np.ndarray:
        """What is clustered."""
        if self.scale == "standard":
            points = StandardScaler().fit_transform(points)
        elif self.scale == "l2":
            points = normalize(points)
        if self.n_components is None or self.n_components >= min(points.shape):
            return points
        return PCA(self.n_components, random_state=seed).fit_transform(points)

    def _means_of_members(
        self, points: np.ndarray, index: np.ndarray, previous: ClusterTable | Earlier | None
    ) -> np.ndarray | None:
        if previous is None or not self._could_find(len(previous.ids)):
            return None
        members = [np.isin(index, previous.history[previous.history[:, 0] == key, 1]) for key in previous.ids]
        if not all(member.any() for member in members):
            return None
        return np.stack([points[member].mean(0) for member in members])

    def _could_find(self, number: int) -> bool:
        if isinstance(self.n_clusters, int):
            return number == self.n_clusters
        return self.n_clusters[0] <= number <= self.n_clusters[1]

    def __str__(self) -> str:
        layer = f"the output of {self.embedding}" if self.embedding else "the input of the last linear layer"
        number = self.n_clusters if isinstance(self.n_clusters, int) else "{} to {}".format(*self.n_clusters)
        scaled = {"standard": ", standardised", "l2": ", scaled to length 1"}.get(self.scale or "", "")
        reduced = "" if self.n_components is None else f", {self.n_components} principal components"
        return f"KMeans({number}) on {layer}{scaled}{reduced}"


def _kmeans(points: np.ndarray, number: int, seed: int, start: np.ndarray | None = None) -> np.ndarray:
    kind = MiniBatchKMeans if len(points) > MINI_BATCH_FROM else KMeans
    with warnings.catch_warnings():
        # fewer clusters than were asked for, where samples repeat: the table shows how many there are
        warnings.simplefilter("ignore", ConvergenceWarning)
        if start is None:
            return kind(number, n_init=10, random_state=seed).fit_predict(points)
        return kind(number, init=start, n_init=1, random_state=seed).fit_predict(points)


def _best_by_silhouette(points: np.ndarray, ends: tuple[int, int], seed: int) -> np.ndarray:
    """The clusters whose samples are nearest to their own, next to the nearest other one (Rousseeuw, 1987)."""
    best, highest = None, -np.inf
    for number in range(ends[0], min(ends[1], len(points) - 1) + 1):
        found = _kmeans(points, number, seed)
        if 2 <= len(np.unique(found)) < len(points):
            size = SILHOUETTE_SAMPLES if len(points) > SILHOUETTE_SAMPLES else None
            value = silhouette_score(points, found, sample_size=size, random_state=seed)
            if value > highest:
                best, highest = found, value
    return _kmeans(points, ends[0], seed) if best is None else best


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


def class_numbers(classes: Collection[Any] | None, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """Classes given by numbers or names as numbers.

    Raises:
        ValueError: if a name is not among `class_names`, or there is no class.
    """
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Collection) or len(classes) == 0:
        raise ValueError(f"classes must be a list of class numbers or names, got {classes!r}")
    return tuple(dict.fromkeys(_class_number(one, class_names) for one in classes))


def _class_number(one: Any, class_names: Sequence[str]) -> int:
    if isinstance(one, str):
        if one not in class_names:
            known = ", ".join(map(repr, class_names[:8])) or "none; pass class_names="
            raise ValueError(f"there is no class named {one!r}: the names are {known}")
        return list(class_names).index(one)
    if isinstance(one, Integral) and not isinstance(one, bool) and int(one) >= 0:
        return int(one)
    raise ValueError(f"a class must be a number from 0 on, or a name, got {one!r}")


def check_class_names(class_names: Any) -> tuple[str, ...]:
    """Names of all classes.

    Raises:
        ValueError: if it is no sequence of strings.
    """
    if isinstance(class_names, str) or not isinstance(class_names, Collection):
        raise ValueError(f"class_names must be a list with the name of each class, got {class_names!r}")
    return tuple(map(str, class_names))


def class_name(number: int, class_names: Sequence[str]) -> str | None:
    """The name of a class; None without one."""
    return str(class_names[number]) if number < len(class_names) else None


class ClassClusters:
    """Clusters of one class each, or of a group of classes.

    Attributes:
        predicted: whether predictions count, rather than labels.

    Args:
        clusters: "labels", "predictions", or a mapping from classes to groups.
        class_names: of the classes.

    Raises:
        ValueError: if a name is unknown, or there are more than 20 groups.
    """

    def __init__(self, clusters: str | Mapping[Any, Any], class_names: Sequence[str]) -> None:
        self.predicted = clusters == "predictions"
        self._class_names = class_names
        self._group: dict[int, int] | None = None
        self._names: dict[int, str] = {}
        if isinstance(clusters, Mapping):
            groups = list(dict.fromkeys(clusters.values()))
            check_number(len(groups))
            self._group = {_class_number(key, class_names): groups.index(group) for key, group in clusters.items()}
            if len(self._group) < len(clusters):
                raise ValueError(f"clusters names a class twice, by number and by name, in {list(clusters)}")
            self._names = {number: str(group) for number, group in enumerate(groups)}

    def of(
        self, labels: Int[np.ndarray, " sample"], predicted: Int[np.ndarray, " sample"]
    ) -> Int[np.ndarray, " sample"]:
        """Each sample's cluster; -1 for classes in no group."""
        classes = predicted if self.predicted else labels
        if self._group is None:
            return classes
        return np.array([self._group.get(one, -1) for one in classes.tolist()], np.int64)

    def names(self, ids: Int[np.ndarray, " cluster"]) -> dict[int, str]:
        """What to call them."""
        if self._group is not None:
            return self._names
        kind = "predicted" if self.predicted else "label"
        named = {key: class_name(key, self._class_names) for key in ids.tolist()}
        return {
            key: f"{kind} {key}" if name is None else f"predicted {name}" if self.predicted else name
            for key, name in named.items()
        }


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
            f"there are {found} clusters, more than {MAX_CLUSTERS}: look at some classes with classes=[0, 1, 2], "
            "group them with a mapping, clusters={0: 'animal', 1: 'vehicle', ...}, or with a callable, clusters=lambda "
            "batch: batch[1] // 10, or find groups with clusters=KMeansClusters(8)"
        )


def assign_groups(
    groups: Callable[..., Any],
    probe: ProbeSet,
    batch_size: int | None,
    gather: Gather,
    cluster: Int[np.ndarray, " local"] | None = None,
) -> tuple[Int[np.ndarray, " local"], dict[int, int]]:
    """A half for each sample of a probe set, the same for all samples of a group; and every sample's group's number.

    Groups go one by one, the largest first, to the half in which their clusters have fewer samples so far.

    Args:
        groups: `batch -> one integer or string per sample`.
        probe: of this process.
        batch_size: of the batches.
        gather: collects from processes.
        cluster: of each sample, as far as it is known; None: by label where the batches show them.

    Raises:
        ValueError: if the callable does not return one integer or string per sample.
    """
    mine: list[Any] = []
    strata: list[int] = []
    numbers: list[int] = []
    for batch, index in probe.batches(batch_size):
        mine += values_to_ids(groups(batch), len(index), "the groups callable")
        numbers += index.tolist()
        labels = labels_of(batch)
        strata += [-1] * len(index) if labels is None or len(labels) != len(index) else labels.tolist()
    if cluster is not None:
        strata = cluster.tolist()
    members: dict[Any, Counter[int]] = {}
    group_of: dict[int, Any] = {}
    for share in gather((mine, strata, numbers)):
        for value, stratum, number in zip(*share, strict=True):
            members.setdefault(value, Counter())[stratum] += 1
            group_of[number] = value
    half: dict[Any, int] = {}
    filled: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for value in sorted(members, key=lambda value: (-members[value].total(), str(value))):
        # how much less even its clusters get by going to the second half rather than to the first one
        tilt = sum(count * (filled[1][stratum] - filled[0][stratum]) for stratum, count in members[value].items())
        half[value] = int(tilt < 0 or (tilt == 0 and filled[1].total() < filled[0].total()))
        filled[half[value]].update(members[value])
    place = {value: number for number, value in enumerate(half)}
    return np.array([half[value] for value in mine], np.int64), {key: place[one] for key, one in group_of.items()}


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
    previous: ClusterTable | Earlier | None,
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
