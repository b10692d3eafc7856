"""Find clusters by KMeans on embeddings of the samples."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler, normalize

from lightning_neuroimp import _validate
from lightning_neuroimp.clusters.classes import MAX_CLUSTERS
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement
from lightning_neuroimp.site import Site

MINI_BATCH_FROM = 10**5
"""With more samples than this KMeans works on mini-batches."""

SILHOUETTE_SAMPLES = 1000
"""Upper bound on the number of samples in a silhouette, which takes a distance between every two of them."""


@dataclass(frozen=True)
class KMeansClusters:
    """Find clusters by scikit-learn's KMeans (MiniBatchKMeans above 100,000 samples) on embeddings of the samples.

    Attributes:
        n_clusters: number of clusters; or a pair (least, most), from which the number with the best mean silhouette is
            chosen in the first measurement, and kept.
        embedding: layer whose output is the embedding (a name or a `Site`; averaged over unpadded positions); by
            default the input of the last linear layer that the model calls.
        scale: "standard": each feature to mean 0 and standard deviation 1; "l2": each embedding to length 1, so that
            angles count; None: as they are.
        n_components: number of principal components, after scaling, that are clustered; None: all features.

    Raises:
        InvalidArgument: if a setting has no valid value.

    >>> print(KMeansClusters(8, scale="l2"))
    KMeans(8) on the input of the last linear layer, scaled to length 1
    """

    n_clusters: int | tuple[int, int] = 8
    embedding: str | Site | None = None
    scale: str | None = None
    n_components: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.n_clusters, Sequence) and not isinstance(self.n_clusters, str):  # a list is what YAML gives
            ends = tuple(_validate.integer("each end of n_clusters", end) for end in self.n_clusters)
            if len(ends) != 2 or not 2 <= ends[0] <= ends[1] <= MAX_CLUSTERS:
                raise InvalidArgument(
                    f"n_clusters must be a number, or a pair (least, most) from 2 to {MAX_CLUSTERS}, got "
                    f"{_validate.shown(self.n_clusters)}"
                )
            object.__setattr__(self, "n_clusters", (ends[0], ends[1]))
        else:
            remedy = "a pair (least, most) lets the silhouette choose"
            object.__setattr__(
                self, "n_clusters", _validate.integer("n_clusters", self.n_clusters, least=2, remedy=remedy)
            )
        if self.scale is not None:
            _validate.choice("scale", self.scale, ("standard", "l2"), ["None"])
        if self.n_components is not None:
            object.__setattr__(self, "n_components", _validate.integer("n_components", self.n_components, least=1))

    def assign(
        self,
        embeddings: Float[np.ndarray, "sample feature"],
        index: Int[np.ndarray, " sample"],
        previous: ClusterTable | PreviousMeasurement | None,
        seed: int,
    ) -> Int[np.ndarray, " sample"]:
        """Assign every sample to a cluster.

        If the same number of clusters was found before, KMeans starts from the present means of their previous
        members: started from the old centres it would lose them when the embedding rotates in training.

        Args:
            embeddings: of the samples; those that are not finite are left out.
            index: sample numbers.
            previous: the clusters of the measurement before; None: there was none.
            seed: of KMeans, PCA and the silhouette.

        Returns:
            A cluster number for each sample; -1 where the embedding is not finite.

        Raises:
            InvalidArgument: if there are more clusters than samples with finite embeddings.
        """
        finite = np.isfinite(embeddings).all(1)
        least = self.n_clusters if isinstance(self.n_clusters, int) else self.n_clusters[0]
        if finite.sum() < least:
            raise InvalidArgument(
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
        """Scale embeddings, and reduce them to principal components, as set."""
        if self.scale == "standard":
            points = StandardScaler().fit_transform(points)
        elif self.scale == "l2":
            points = normalize(points)
        if self.n_components is None or self.n_components >= min(points.shape):
            return points
        return PCA(self.n_components, random_state=seed).fit_transform(points)

    def _means_of_members(
        self, points: np.ndarray, index: np.ndarray, previous: ClusterTable | PreviousMeasurement | None
    ) -> np.ndarray | None:
        """Average the previous members of each cluster; None if the number of clusters differs or one has none left."""
        if previous is None or not self._could_find(len(previous.ids)):
            return None
        members = [np.isin(index, previous.history[previous.history[:, 0] == key, 1]) for key in previous.ids]
        if not all(member.any() for member in members):
            return None
        return np.stack([points[member].mean(0) for member in members])

    def _could_find(self, number: int) -> bool:
        """Tell whether a number of clusters is among those that were asked for."""
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
    """Run KMeans, from given centres or the best of ten random starts; return each sample's cluster."""
    kind = MiniBatchKMeans if len(points) > MINI_BATCH_FROM else KMeans
    with warnings.catch_warnings():
        # raised for fewer clusters than were asked for, where samples repeat: the table shows how many there are
        warnings.simplefilter("ignore", ConvergenceWarning)
        if start is None:
            return kind(number, n_init=10, random_state=seed).fit_predict(points)
        return kind(number, init=start, n_init=1, random_state=seed).fit_predict(points)


def _best_by_silhouette(points: np.ndarray, ends: tuple[int, int], seed: int) -> np.ndarray:
    """Run KMeans with each number of clusters; return the clusters with the highest mean silhouette.

    References:
        Rousseeuw, "Silhouettes", Journal of Computational and Applied Mathematics 20 (1987).
    """
    best, highest = None, -np.inf
    for number in range(ends[0], min(ends[1], len(points) - 1) + 1):
        found = _kmeans(points, number, seed)
        if 2 <= len(np.unique(found)) < len(points):
            size = SILHOUETTE_SAMPLES if len(points) > SILHOUETTE_SAMPLES else None
            value = silhouette_score(points, found, sample_size=size, random_state=seed)
            if value > highest:
                best, highest = found, value
    return _kmeans(points, ends[0], seed) if best is None else best
