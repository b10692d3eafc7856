"""Streams attributions into moments per cluster and half."""

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.probe import Gather


class Halves:
    """Deals samples to two halves of each cluster, stratified by correctness, in the order in which they come.

    The probe set comes in the order of fixed pseudo-random keys, so which half a sample falls into depends on nothing
    but its cluster, its correctness and those keys (and, among several processes, on which one holds it).

    Args:
        process: number of this process; every other one begins with the other half, so that rests do not add up.
    """

    def __init__(self, process: int = 0) -> None:
        self._process = process
        self._dealt: dict[tuple[int, bool], int] = {}

    def deal(self, cluster: Int[np.ndarray, " sample"], correct: np.ndarray) -> Int[np.ndarray, " sample"]:
        """The half of each sample; -1 for samples in no cluster."""
        half = np.full(len(cluster), -1, np.int64)
        for row, (key, right) in enumerate(zip(cluster.tolist(), correct.tolist(), strict=True)):
            if key >= 0:
                # the two strata start in different halves, so that both rest samples do not fall into the same one
                dealt = self._dealt.setdefault((key, right), self._process + (0 if right else 1))
                half[row] = dealt % 2
                self._dealt[key, right] = dealt + 1
        return half


class ClusterMoments:
    """Sums of per-sample values, of their absolute values and squares, per half and cluster, in float64.

    Its size depends on clusters and neurons, not on samples.
    """

    def __init__(self) -> None:
        self.non_finite = 0
        self._rows: dict[tuple[int, int], int] = {}
        self._sums = np.zeros((0, 4, 0))  # (half and cluster, moment, neuron)
        self._count = np.zeros(0, np.int64)

    def add(
        self,
        values: Float[np.ndarray, "sample neuron"],
        deviation: Float[np.ndarray, "sample neuron"],
        cluster: Int[np.ndarray, " sample"],
        half: Int[np.ndarray, " sample"],
    ) -> None:
        """Add a batch; samples with a value that is not finite are counted and left out.

        Args:
            values: attribution of each neuron.
            deviation: |activation - baseline| of each neuron.
            cluster: id of each sample's cluster; those below 0 are passed over.
            half: 0 or 1.
        """
        values, deviation = values.astype(np.float64), deviation.astype(np.float64)
        member = cluster >= 0
        if not (np.isfinite(values).all() and np.isfinite(deviation).all()):
            finite = np.isfinite(values).all(1) & np.isfinite(deviation).all(1)
            self.non_finite += int((member & ~finite).sum())
            # zeroed as well as left out: zero times NaN is NaN in the product below
            values, deviation = np.where(finite[:, None], values, 0.0), np.where(finite[:, None], deviation, 0.0)
            member &= finite
        if not member.any():
            return
        rows = self._rows_of(cluster[member], half[member], values.shape[1])
        weights = np.zeros((len(self._count), len(values)))
        weights[rows, np.flatnonzero(member)] = 1.0
        for moment, value in enumerate((values, np.abs(values), values**2, deviation)):
            self._sums[:, moment] += weights @ value
        self._count += np.bincount(rows, minlength=len(self._count))

    def _rows_of(self, cluster: np.ndarray, half: np.ndarray, n_neurons: int) -> np.ndarray:
        keys = list(zip(half.tolist(), cluster.tolist(), strict=True))
        for key in keys:
            self._rows.setdefault(key, len(self._rows))
        grown = np.zeros((len(self._rows), 4, n_neurons))
        if len(self._count) < len(self._rows):
            grown[: len(self._count)] = self._sums if len(self._count) else 0.0
            self._sums = grown
            self._count = np.concatenate([self._count, np.zeros(len(self._rows) - len(self._count), np.int64)])
        return np.array([self._rows[key] for key in keys], np.int64)

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
        for rows, counts, moments, non_finite in gather((self._rows, self._count, self._sums, self.non_finite)):
            left_out += non_finite
            for (half, cluster), row in rows.items():
                count[half, place[cluster]] += counts[row]
                sums[:, half, place[cluster]] += moments[row]
        filled = count[None, :, :, None]
        means = np.divide(sums, filled, out=np.full_like(sums, np.nan), where=filled > 0)
        return count, means, left_out
