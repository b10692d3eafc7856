"""Assign samples to clusters and halves: as found beforehand, or while the batches come."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Int

from lightning_neuroimp.capture.sample_table import SampleTable
from lightning_neuroimp.clusters.classes import ClassClusters, validate_count
from lightning_neuroimp.clusters.halves import Halves


@dataclass
class Assignment:
    """Assign samples to clusters and halves, batch by batch.

    Attributes:
        clusters: cluster of each of this process's samples, or how it follows from the class.
        half: half of each of this process's samples; None: dealt as the samples come.
        classes: labels of the samples that may be in clusters; None: all.
        halves: deals samples to halves where they are dealt as they come.
    """

    clusters: Int[np.ndarray, " local"] | ClassClusters
    half: Int[np.ndarray, " local"] | None = None
    classes: Collection[int] | None = None
    halves: Halves = field(default_factory=Halves)
    _found: set[int] = field(default_factory=set)

    def assign(self, samples: SampleTable, rows: slice) -> SampleTable:
        """Return a batch's table with clusters and halves.

        Args:
            samples: the batch.
            rows: places of the batch's samples among this process's samples.

        Raises:
            InvalidArgument: if there are more than 20 clusters.
        """
        cluster = self.cluster_of(samples, rows)
        if isinstance(self.clusters, ClassClusters):
            self._found.update(np.unique(cluster[cluster >= 0]).tolist())
            validate_count(len(self._found), so_far=True)
        if self.half is None:
            half = self.halves.deal(cluster, samples.correct, samples.fingerprint)
        else:
            half = np.where(cluster < 0, -1, np.maximum(self.half[rows], 0))
        return replace(samples, cluster=cluster, half=half)

    def cluster_of(self, samples: SampleTable, rows: slice) -> Int[np.ndarray, " sample"]:
        """Return the cluster of each sample; -1 for samples in none, such as those without finite logits.

        Args:
            samples: the batch.
            rows: places of the batch's samples among this process's samples.
        """
        if isinstance(self.clusters, ClassClusters):
            cluster = self.clusters.of(samples.label, samples.predicted)
        else:
            cluster = self.clusters[rows]
        return np.where(counted(samples, self.classes), cluster, -1)


def counted(samples: SampleTable, classes: Collection[int] | None) -> Bool[np.ndarray, " sample"]:
    """Tell which samples may be in clusters: those with finite logits, and with a label among the classes.

    Args:
        samples: the samples.
        classes: labels of the samples that may be in clusters; None: all.
    """
    known = samples.finite & (samples.label >= 0)
    return known if classes is None else known & np.isin(samples.label, list(classes))
