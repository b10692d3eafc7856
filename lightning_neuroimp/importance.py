"""Streams attributions into moments per cluster and half."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_neuroimp.probe import Gather
from lightning_neuroimp.rows import to_numpy


class Halves:
    """Deals samples to two halves of each cluster, stratified by correctness, in the order in which they come.

    Where they come in the order of fixed pseudo-random keys, as a probe set of one shape does, the half that a sample
    falls into depends on nothing but its cluster, its correctness and those keys.
    """

    def __init__(self) -> None:
        self._dealt: dict[tuple[int, bool], int] = {}

    def deal(self, cluster: Int[np.ndarray, " sample"], correct: np.ndarray) -> Int[np.ndarray, " sample"]:
        """The half of each sample; -1 for samples in no cluster."""
        half = np.full(len(cluster), -1, np.int64)
        for row, (key, right) in enumerate(zip(cluster.tolist(), correct.tolist(), strict=True)):
            if key >= 0:
                # the two strata start in different halves, so that both rest samples do not fall into the same one
                dealt = self._dealt.setdefault((key, right), 0 if right else 1)
                half[row] = dealt % 2
                self._dealt[key, right] = dealt + 1
        return half


class Groups:
    """Numbers the pairs of half and cluster in the order in which they appear."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], int] = {}

    def of(self, cluster: Int[np.ndarray, " sample"], half: Int[np.ndarray, " sample"]) -> Int[Tensor, " sample"]:
        """Each sample's row; -1 for samples in no cluster (those below 0)."""
        pairs = zip(half.tolist(), cluster.tolist(), strict=True)
        return torch.tensor([-1 if pair[1] < 0 else self.rows.setdefault(pair, len(self.rows)) for pair in pairs])


class ClusterMoments:
    """Sums of per-sample values, of their absolute values and squares, per half and cluster, in float64.

    Its size depends on clusters and neurons, not on samples.

    Args:
        groups: the rows, shared by the moments of all sites and scores.
    """

    def __init__(self, groups: Groups) -> None:
        self.non_finite = 0
        self._groups = groups
        self._sums = np.zeros((0, 4, 0))  # (half and cluster, moment, neuron)
        self._count = np.zeros(0, np.int64)

    def add(
        self,
        values: Float[Tensor, "sample neuron"],
        deviation: Float[Tensor, "sample neuron"],
        rows: Int[Tensor, " sample"],
    ) -> None:
        """Add a batch; samples with a value that is not finite are counted and left out.

        Args:
            values: attribution of each neuron.
            deviation: |activation - baseline| of each neuron.
            rows: from `Groups.of`, for this batch.
        """
        if not self._groups.rows:
            return
        sums = self._batch_sums(values, deviation, rows)
        if not np.isfinite(sums).all():
            finite = (values.isfinite().all(1) & deviation.isfinite().all(1)).cpu()
            self.non_finite += int(((rows >= 0) & ~finite).sum())
            rows = rows.where(finite, -1)
            keep = finite.to(values.device)[:, None]
            # zeroed as well as left out: zero times NaN is NaN in the product
            sums = self._batch_sums(values.where(keep, 0), deviation.where(keep, 0), rows)
        if len(self._count) < len(sums):
            grown = np.zeros_like(sums)
            grown[: len(self._count)] = self._sums if len(self._count) else 0.0
            self._sums = grown
            self._count = np.concatenate([self._count, np.zeros(len(sums) - len(self._count), np.int64)])
        self._sums += sums
        self._count += torch.bincount(rows[rows >= 0], minlength=len(sums)).numpy()

    def _batch_sums(self, values: Tensor, deviation: Tensor, rows: Tensor) -> Float[np.ndarray, "group 4 neuron"]:
        # summed where they are, and by torch: NumPy's BLAS has threads of its own, and they would fight with torch's.
        # Apple's GPUs have no float64: there a batch is summed in float32, and the batches on the host
        dtype = torch.float32 if values.device.type == "mps" else torch.float64
        weights = (torch.arange(len(self._groups.rows))[:, None] == rows).to(values.device, dtype)
        values = values.to(dtype)
        moments = torch.stack([values, values.abs(), values.square(), deviation.to(dtype)])
        return to_numpy(weights @ moments).swapaxes(0, 1).astype(np.float64, copy=False)

    def means(
        self, ids: Int[np.ndarray, " cluster"], n_neurons: int, gather: Gather
    ) -> tuple[Int[np.ndarray, "half cluster"], Float[np.ndarray, "4 half cluster neuron"], int]:
        """Counts, the four means (value, absolute value, square, deviation) and how many samples were left out.

        Args:
            ids: clusters of the rows.
            n_neurons: of the site (a process without samples does not know).
            gather: sums over processes.
        """
        count = np.zeros((2, len(ids)), np.int64)
        sums = np.zeros((4, 2, len(ids), n_neurons))
        place = {int(cluster): row for row, cluster in enumerate(ids)}
        left_out = 0
        for rows, counts, moments, non_finite in gather((self._groups.rows, self._count, self._sums, self.non_finite)):
            left_out += non_finite
            for (half, cluster), row in rows.items():
                if row >= len(counts):
                    continue  # in batches that did not reach this site
                count[half, place[cluster]] += counts[row]
                sums[:, half, place[cluster]] += moments[row]
        filled = count[None, :, :, None]
        means = np.divide(sums, filled, out=np.full_like(sums, np.nan), where=filled > 0)
        return count, means, left_out
