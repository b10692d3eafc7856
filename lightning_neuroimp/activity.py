"""What the activations of a site are like, and which samples drive each neuron most, streamed."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.probe import Gather
from lightning_neuroimp.results import SiteActivity
from lightning_neuroimp.rows import to_numpy
from lightning_neuroimp.sites import along_positions

N_TOP = 5
_WAITING = 1024
"""So many samples wait before the top ones are taken out: one choice among many is faster than many small ones."""


class ActivityMoments:
    """Moments per channel and the top samples per neuron; their size does not depend on the number of samples.

    Args:
        axis: of the channels.
        group: so many channels are one neuron.
    """

    def __init__(self, axis: int, group: int) -> None:
        self._axis, self._group = axis, group
        self._count = 0
        self._mean = self._square = np.zeros(0)  # mean, and sum of squared distances from it
        self._ends = np.zeros((2, 0))
        self._waiting: list[tuple[Tensor, np.ndarray]] = []
        self._top: tuple[np.ndarray, np.ndarray] | None = None  # values and samples, (neuron, top)

    def add(
        self,
        activation: Float[Tensor, "sample ..."],
        positions: Bool[Tensor, "sample token"] | None,
        index: Int[np.ndarray, " sample"],
    ) -> None:
        """Add a batch; samples that are not finite are left out.

        Args:
            activation: samples first.
            positions: True for those that count.
            index: numbers of the samples.
        """
        values = activation.movedim(self._axis, 1).flatten(2) if activation.ndim > 2 else activation[..., None]
        if not self._add(values, positions, index):
            finite = values.flatten(1).isfinite().all(1)
            rows = to_numpy(finite)
            if rows.any():
                self._add(values[finite], None if positions is None else positions[finite], index[rows])

    def _add(self, values: Float[Tensor, "sample channel position"], positions: Tensor | None, index: Any) -> bool:
        if positions is None:
            variance, mean = torch.var_mean(values, (0, 2), correction=0)
            count = len(values) * values.shape[2]
            low, high = torch.aminmax(values, dim=2)
            ends = torch.stack([low.amin(0), high.amax(0)])
        else:
            counted = values.movedim(1, 2)[positions]  # (position of any sample, channel)
            count = len(counted)
            if not count:
                return True
            variance, mean = torch.var_mean(counted, 0, correction=0)
            ends = torch.stack(torch.aminmax(counted, dim=0))
            high = values.where(along_positions(positions, 1), -torch.inf).amax(2)
        if not bool(ends.isfinite().all()):
            return False
        if self._group > 1:
            norms = values.unflatten(1, (-1, self._group)).norm(dim=2)
            if positions is not None:
                norms = norms.where(along_positions(positions, 1), -torch.inf)
            high = norms.amax(2)
        self._merge(count, *(to_numpy(part).astype(np.float64) for part in (mean, variance * count, ends)))
        self._waiting.append((high.detach(), index))
        if sum(len(numbers) for _, numbers in self._waiting) >= _WAITING:
            self._choose()
        return True

    def _merge(self, count: int, mean: np.ndarray, square: np.ndarray, ends: np.ndarray) -> None:
        """Moments of two parts together (Chan, Golub and LeVeque, 1979)."""
        if not self._count:
            self._count, self._mean, self._square, self._ends = count, mean, square, ends
            return
        total = self._count + count
        away = mean - self._mean
        self._square = self._square + square + away**2 * (self._count * count / total)
        self._mean = self._mean + away * (count / total)
        self._ends = np.stack([np.minimum(self._ends[0], ends[0]), np.maximum(self._ends[1], ends[1])])
        self._count = total

    def _choose(self) -> None:
        if not self._waiting:
            return
        values = to_numpy(torch.cat([one for one, _ in self._waiting])).T
        samples = np.broadcast_to(np.concatenate([numbers for _, numbers in self._waiting]), values.shape)
        self._waiting = []
        self._top = _best(*(part for part in ((values, samples), self._top) if part is not None))

    def activity(self, site: str, gather: Gather) -> SiteActivity | None:
        """The outcome, of all processes; None where no finite activations were seen.

        Args:
            site: in words.
            gather: collects from processes.
        """
        self._choose()
        mine = (self._count, self._mean, self._square, self._ends, self._top)
        shares = [share for share in gather(mine) if share[0]]
        if not shares:
            return None
        whole = ActivityMoments(self._axis, self._group)
        for count, mean, square, ends, _ in shares:
            whole._merge(count, mean, square, ends)
        values, samples = _best(*(share[4] for share in shares))
        deviation = np.sqrt(np.maximum(whole._square / whole._count, 0.0))
        low, high = whole._ends
        return SiteActivity(site, whole._count, whole._mean, deviation, low, high, samples, values)


def _best(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The largest values of each neuron and whose they are; of equal ones the smaller numbers."""
    values = np.concatenate([part[0] for part in parts], axis=1).astype(np.float64)
    samples = np.where(np.isneginf(values), -1, np.concatenate([part[1] for part in parts], axis=1))
    order = np.lexsort((samples, -values), axis=1)[:, :N_TOP]
    missing = N_TOP - order.shape[1]
    chosen = np.take_along_axis(values, order, 1), np.take_along_axis(samples, order, 1)
    return (
        np.pad(chosen[0], ((0, 0), (0, missing)), constant_values=-np.inf),
        np.pad(chosen[1], ((0, 0), (0, missing)), constant_values=-1),
    )
