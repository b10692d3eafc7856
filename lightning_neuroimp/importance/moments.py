"""Stream per-sample scores into moments per cell (one half of one cluster) and neuron."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from lightning_neuroimp import statistics
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.batches.structure import to_numpy


class Cells:
    """Number the cells (pairs of half and cluster) in the order in which they appear.

    Attributes:
        rows: row of each (half, cluster).
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], int] = {}

    def of(self, cluster: Int[np.ndarray, " sample"], half: Int[np.ndarray, " sample"]) -> Int[Tensor, " sample"]:
        """Return the row of each sample's cell; new cells get new rows.

        Args:
            cluster: cluster of each sample; below 0: in none.
            half: half of each sample.

        Returns:
            Rows; -1 for samples in no cluster.
        """
        pairs = zip(half.tolist(), cluster.tolist(), strict=True)
        return torch.tensor([-1 if pair[1] < 0 else self.rows.setdefault(pair, len(self.rows)) for pair in pairs])


@dataclass(frozen=True)
class CellMeans:
    """Hold the moments of each cell, over all processes; NaN for empty cells.

    Attributes:
        count: number of samples.
        mean: mean score.
        abs_mean: mean absolute score.
        square_mean: mean squared score.
        deviation: mean |activation - baseline|.
        first_order: mean effect of removal to first order; None where it was not added.
        effective_samples: (sum of s)^2 / sum of s^2 over a cluster's samples, where s is a sample's sum of |score|: the
            number of samples of equal weight that would carry as much (Kish's effective sample size).
        left_out: number of samples that were left out because a score was not finite.
    """

    count: Int[np.ndarray, "half cluster"]
    mean: Float[np.ndarray, "half cluster neuron"]
    abs_mean: Float[np.ndarray, "half cluster neuron"]
    square_mean: Float[np.ndarray, "half cluster neuron"]
    deviation: Float[np.ndarray, "half cluster neuron"]
    first_order: Float[np.ndarray, "half cluster neuron"] | None
    effective_samples: Float[np.ndarray, " cluster"]
    left_out: int


class CellMoments:
    """Sum per-sample scores, their absolute values and squares, per cell, in float64.

    Its size depends on the numbers of clusters and neurons, not on that of samples.

    Attributes:
        non_finite: number of samples that were left out because a score was not finite.

    Args:
        cells: rows of the cells, shared by the moments of all sites and scores.
    """

    def __init__(self, cells: Cells) -> None:
        self.non_finite = 0
        self._cells, self._same = cells, False  # whether the values are effects to first order themselves
        self._sums = np.zeros((0, 0, 0))  # (cell, moment, neuron)
        self._sizes = np.zeros((0, 2))  # (cell, moment of a sample's size)
        self._count = np.zeros(0, np.int64)

    def add(
        self,
        values: Float[Tensor, "sample neuron"],
        deviation: Float[Tensor, "sample neuron"],
        rows: Int[Tensor, " sample"],
        first_order: Float[Tensor, "sample neuron"] | None = None,
    ) -> None:
        """Add a batch; samples with a value that is not finite are counted and left out.

        Args:
            values: score of each neuron.
            deviation: |activation - baseline| of each neuron.
            rows: from `Cells.of`, for this batch.
            first_order: effect of removing each neuron to first order, where it is known; may be `values` themselves.
        """
        if not self._cells.rows:
            return
        self._same = first_order is values
        parts = [values, deviation, *([] if first_order is None or self._same else [first_order])]
        sums, sizes = self._batch_sums(parts, rows)
        if not np.isfinite(sums).all():
            # effects that are not finite must not decide which samples count
            finite = (values.isfinite().all(1) & deviation.isfinite().all(1)).cpu()
            unknown = rows[:0] if len(parts) < 3 else rows[(finite & ~parts[2].isfinite().all(1).cpu()) & (rows >= 0)]
            self.non_finite += int(((rows >= 0) & ~finite).sum())
            rows = rows.where(finite, -1)
            keep = finite.to(values.device)[:, None]
            # zeroed as well as left out: zero times NaN is NaN in the product
            parts = [part.where(keep & part.isfinite().all(1)[:, None], 0) for part in parts]
            sums, sizes = self._batch_sums(parts, rows)
            sums[unknown.unique().numpy(), 4:] = np.nan
        self._grow(sums)
        self._sums += sums
        self._sizes += sizes
        self._count += torch.bincount(rows[rows >= 0], minlength=len(sums)).numpy()

    def _grow(self, like: Float[np.ndarray, "cell moment neuron"]) -> None:
        """Make room for cells that have appeared since the last batch."""
        new = len(like) - len(self._count)
        if new > 0:
            self._sums = np.concatenate([self._sums.reshape(-1, *like.shape[1:]), np.zeros((new, *like.shape[1:]))])
            self._sizes = np.concatenate([self._sizes, np.zeros((new, 2))])
            self._count = np.concatenate([self._count, np.zeros(new, np.int64)])

    def _batch_sums(
        self, parts: list[Tensor], rows: Tensor
    ) -> tuple[Float[np.ndarray, "cell moment neuron"], Float[np.ndarray, "cell 2"]]:
        """Sum a batch over the samples of each cell.

        Args:
            parts: scores, deviations and, where they differ from the scores, effects to first order.
            rows: row of each sample's cell; -1: in none.

        Returns:
            Sums of scores, their absolute values, their squares and the other parts; and sums of the samples' sizes and
            of their squares, a sample's size being its sum of |score|.
        """
        # summed on the device by torch: NumPy's BLAS has threads of its own, which would compete with torch's.
        # Apple's GPUs have no float64: there a batch is summed in float32, and the batches are summed on the host
        dtype = torch.float32 if parts[0].device.type == "mps" else torch.float64
        weights = (torch.arange(len(self._cells.rows))[:, None] == rows).to(parts[0].device, dtype)
        values, *others = (part.to(dtype) for part in parts)
        size = values.abs()
        moments = torch.stack([values, size, values.square(), *others])
        whole = size.sum(1)
        sizes = weights @ torch.stack([whole, whole.square()], 1)
        return (
            to_numpy(weights @ moments).swapaxes(0, 1).astype(np.float64, copy=False),
            to_numpy(sizes).astype(np.float64, copy=False),
        )

    def means(self, ids: Int[np.ndarray, " cluster"], n_neurons: int, processes: Processes) -> CellMeans:
        """Return the moments of all that was added, by all processes.

        Args:
            ids: clusters of the rows.
            n_neurons: number of neurons at the site (a process without samples does not know it).
            processes: those that have added batches.
        """
        mine = (self._cells.rows, self._count, self._sums, self._sizes, self.non_finite, self._same)
        shares = processes.gather(mine)
        count, n_moments = np.zeros((2, len(ids)), np.int64), max(share[2].shape[1] for share in shares)
        sums, sizes = np.zeros((max(n_moments, 4), 2, len(ids), n_neurons)), np.zeros((2, len(ids)))
        place = {int(cluster): row for row, cluster in enumerate(ids)}
        left_out = 0
        for rows, counts, moments, squares, non_finite, _ in shares:
            left_out += non_finite
            for (half, cluster), row in rows.items():
                if row >= len(counts):
                    continue  # the cell appeared only in batches that did not reach this site
                count[half, place[cluster]] += counts[row]
                sums[:, half, place[cluster]] += moments[row]
                sizes[:, place[cluster]] += squares[row]
        filled = count[None, :, :, None]
        mean, size, square, deviation, *more = np.divide(sums, filled, out=np.full_like(sums, np.nan), where=filled > 0)
        first_order = mean if any(share[5] for share in shares) else more[0] if more else None
        effective = np.divide(sizes[0] ** 2, sizes[1], out=np.full(len(ids), np.nan), where=sizes[1] > 0)
        return CellMeans(count, mean, size, square, deviation, first_order, effective, left_out)


class FirstOrderSums:
    """Sum effects of removal to first order, and gradients, per cell: what the effects would be with other baselines.

    An effect is the sum of (h - b) g over a neuron's channels and positions; with another baseline b' it is larger by
    (b - b') times the sum of g. So one more sum per channel gives it exactly, without another pass. The size depends on
    the numbers of clusters and channels, not on that of samples.

    Args:
        cells: rows of the cells, shared by the moments of all sites and scores.
    """

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._sums = np.zeros((0, 0))  # (cell, neurons and channels)
        self._count = np.zeros(0, np.int64)

    def add(
        self,
        effects: Float[Tensor, "sample neuron"],
        gradient: Float[Tensor, "sample channel"],
        rows: Int[Tensor, " sample"],
    ) -> None:
        """Add a batch; samples with a value that is not finite are left out.

        Args:
            effects: of removing each neuron, to first order.
            gradient: summed over the positions that count.
            rows: from `Cells.of`, for this batch.
        """
        if not self._cells.rows:
            return
        dtype = torch.float32 if effects.device.type == "mps" else torch.float64
        values = torch.cat([effects, gradient], 1).to(dtype)
        sums = self._summed(values, rows)
        if not np.isfinite(sums).all():
            finite = values.isfinite().all(1)
            rows = rows.where(finite.cpu(), -1)
            sums = self._summed(values.where(finite[:, None], 0), rows)
        count = torch.bincount(rows[rows >= 0], minlength=len(sums)).numpy()
        if len(sums) > len(self._sums):  # cells that have appeared since the last batch
            new = len(sums) - len(self._sums)
            self._sums = np.concatenate([self._sums.reshape(-1, sums.shape[1]), np.zeros((new, sums.shape[1]))])
            self._count = np.concatenate([self._count, np.zeros(new, np.int64)])
        self._sums += sums
        self._count += count

    def _summed(self, values: Tensor, rows: Tensor) -> Float[np.ndarray, "cell _"]:
        """Sum values over the samples of each cell."""
        n_cells = len(self._cells.rows)
        if values.device.type == "cpu":  # elsewhere the order of such a sum, and so its rounding, is left to chance
            sums = values.new_zeros(n_cells + 1, values.shape[1])
            return to_numpy(sums.index_add_(0, rows.where(rows >= 0, n_cells), values)[:-1])
        weights = (torch.arange(n_cells)[:, None] == rows).to(values.device, values.dtype)
        return to_numpy(weights @ values).astype(np.float64, copy=False)

    def agreement(self, shift: Float[np.ndarray, " channel"], group: int, processes: Processes) -> float:
        """Return the rank correlation of the effects with those for another baseline, averaged over clusters by size.

        Args:
            shift: the baseline minus the other one.
            group: number of channels that are one neuron.
            processes: those that have added batches.

        Returns:
            Spearman's correlation over neurons, in each cluster; NaN where effects are unknown or do not vary.
        """
        sums: dict[int, np.ndarray] = {}
        counts: dict[int, int] = {}
        for rows, cell_sums, count in processes.gather((dict(self._cells.rows), self._sums, self._count)):
            for (_, cluster), row in rows.items():
                if row < len(count) and count[row]:
                    sums[cluster] = sums.get(cluster, 0) + cell_sums[row]
                    counts[cluster] = counts.get(cluster, 0) + int(count[row])
        if not sums:
            return float("nan")
        totals = np.stack(list(sums.values()))
        effects, gradient = totals[:, : -len(shift)], totals[:, -len(shift) :]
        moved = (shift * gradient).reshape(*effects.shape, group).sum(2)
        size = np.array([counts[cluster] for cluster in sums])
        return float(statistics.weighted_mean(_rank_correlations(effects, effects + moved), size))


def _rank_correlations(
    one: Float[np.ndarray, "cluster neuron"], other: Float[np.ndarray, "cluster neuron"]
) -> Float[np.ndarray, " cluster"]:
    """Compute Spearman's rank correlation in each row: `statistics.rank_correlation` of all clusters at once."""
    away = [ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(part, axis=1) for part in (one, other))]
    product, length = (away[0] * away[1]).sum(1), np.sqrt((away[0] ** 2).sum(1) * (away[1] ** 2).sum(1))
    known = np.isfinite(one).all(1) & np.isfinite(other).all(1) & (length > 0)
    return np.divide(product, length, out=np.full(len(one), np.nan), where=known)
