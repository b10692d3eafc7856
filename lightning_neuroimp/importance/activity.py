"""Summarize the activations of a site, batch by batch, and find the samples that drive each neuron most."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.batches.structure import to_numpy
from lightning_neuroimp.capture.nonlinearity import Nonlinearity
from lightning_neuroimp.capture.positions import along_positions
from lightning_neuroimp.results.activity import SiteActivity

N_TOP = 5
"""Number of samples that are listed for each neuron."""

_GRADIENT_SAMPLES = 64
"""Number of samples from which the share that the gradient misses is estimated: more would not make it clearer."""

_WAITING = 1024
"""Number of samples that wait until they are summed up: one sum over many is faster than many small ones."""


@dataclass(frozen=True)
class _Rows:
    """Hold samples that wait to be summed up, each summarized over its positions.

    Attributes:
        index: sample numbers.
        mean: mean activation of each channel.
        count: number of positions; None: one each, and `square`, `low` and `high` are None as well.
        square: mean squared distance from the mean.
        low: smallest activation of each channel.
        high: largest activation of each channel.
        drive: how much each neuron is driven; None: `high`.
    """

    index: Int[np.ndarray, " sample"]
    mean: Float[Tensor, "sample channel"]
    count: Float[Tensor, " sample"] | None = None
    square: Float[Tensor, "sample channel"] | None = None
    low: Float[Tensor, "sample channel"] | None = None
    high: Float[Tensor, "sample channel"] | None = None
    drive: Float[Tensor, "sample neuron"] | None = None


class ActivityMoments:
    """Stream activations into moments per channel and the top samples per neuron.

    Its size does not depend on the number of samples.

    Args:
        axis: axis of the channels.
        group: number of channels that are one neuron.
        nonlinearity: the function that takes the activations next; None: none is known.
    """

    def __init__(self, axis: int, group: int, nonlinearity: Nonlinearity | None = None) -> None:
        self._axis, self._group, self._nonlinearity = axis, group, nonlinearity
        self._n_compared = 0
        self._error = np.zeros(2)  # what the gradient misses of the nonlinearity's change, and that change
        self._count = 0.0
        self._mean = self._square = np.zeros(0)  # mean, and sum of squared distances from it
        self._ends = np.zeros((2, 0))
        self._waiting: list[_Rows] = []
        self._top: tuple[np.ndarray, np.ndarray] | None = None  # values and samples, (neuron, top)

    def add(
        self,
        activation: Float[Tensor, "sample ..."],
        positions: Bool[Tensor, " sample *position"] | None,
        index: Int[np.ndarray, " sample"],
        deviation: Float[Tensor, "sample ..."] | None = None,
    ) -> None:
        """Add a batch; samples that are not finite are left out.

        Args:
            activation: at the site, samples first.
            positions: True at positions that count, such as unpadded tokens; None: all.
            index: sample numbers.
            deviation: activation - baseline, same shape; needed if a nonlinearity follows.
        """
        activation = activation.detach()
        left = _GRADIENT_SAMPLES - self._n_compared
        if self._nonlinearity is not None and deviation is not None and left > 0:
            self._error += self._nonlinearity.derivative_error(activation[:left], deviation[:left])
            self._n_compared += len(activation[:left])
        if activation.ndim == 2:
            norms = None if self._group == 1 else activation.unflatten(1, (-1, self._group)).norm(dim=2)
            rows = _Rows(index, activation, drive=norms)
        else:
            counted = None if positions is None else positions.flatten(1)
            rows = self._rows(activation.movedim(self._axis, 1).flatten(2), counted, index)
        self._waiting.append(rows)
        if sum(len(part.index) for part in self._waiting) >= _WAITING:
            self._sum_up()

    def _rows(self, values: Float[Tensor, "sample channel position"], positions: Tensor | None, index: Any) -> _Rows:
        """Summarize each sample over its positions."""
        norms = None if self._group == 1 else values.unflatten(1, (-1, self._group)).norm(dim=2)
        if positions is None:
            # these are much faster than var_mean and aminmax
            n_positions = values.shape[2]
            mean, low, high = values.mean(2), values.amin(2), values.amax(2)
            square = (values - mean[..., None]).norm(dim=2).square() / n_positions
            square = square.where(low != high, 0)  # rounding would give constant channels a spread
            count = torch.full_like(mean[:, 0], n_positions)
            return _Rows(index, mean, count, square, low, high, None if norms is None else norms.amax(2))
        counted = along_positions(positions, 1)
        count = positions.sum(1).to(values)
        kept, each = values.where(counted, 0), count.clamp_min(1)[:, None]
        mean = kept.sum(2) / each
        square = (kept - mean[..., None]).where(counted, 0).square().sum(2) / each
        low, high = values.where(counted, torch.inf).amin(2), values.where(counted, -torch.inf).amax(2)
        drive = None if norms is None else norms.where(counted, -torch.inf).amax(2)
        return _Rows(index, mean, count, square, low, high, drive)

    def _sum_up(self) -> None:
        """Add the waiting samples to the moments and the top samples."""
        if not self._waiting:
            return
        index = np.concatenate([rows.index for rows in self._waiting])
        mean, count, square, low, high, drive = (
            None
            if getattr(self._waiting[0], name) is None
            else torch.cat([getattr(rows, name) for rows in self._waiting])
            for name in ("mean", "count", "square", "low", "high", "drive")
        )
        self._waiting = []
        assert mean is not None
        if count is None:
            count = torch.ones_like(mean[:, 0])
        if not bool(mean.sum().isfinite()) or not bool(count.all()):
            finite = mean.isfinite().all(1) if square is None else (mean + square).isfinite().all(1)
            some = finite & (count > 0)
            index = index[to_numpy(some)]
            mean, count = mean[some], count[some]
            square, low, high, drive = (None if part is None else part[some] for part in (square, low, high, drive))
        if not len(index):
            return
        weight = count / count.sum()
        middle = weight @ mean
        spread = weight @ (mean - middle).square()
        if square is not None:
            spread = spread + weight @ square
        low, high = mean if low is None else low, mean if high is None else high
        total, ends = float(count.sum()), torch.stack([low.amin(0), high.amax(0)])
        self._merge(total, *(to_numpy(part).astype(np.float64) for part in (middle, spread * total, ends)))
        drive, order = high if drive is None else drive, np.argsort(index)
        new = _largest(to_numpy(drive[torch.from_numpy(order).to(drive.device)].T.contiguous()), index[order])
        self._top = new if self._top is None else _best(new, self._top)

    def _merge(self, count: float, mean: np.ndarray, square: np.ndarray, ends: np.ndarray) -> None:
        """Merge the moments of other samples into these.

        Args:
            count: number of positions.
            mean: mean of each channel.
            square: sum of squared distances from the mean.
            ends: smallest and largest value of each channel, (end, channel).

        References:
            Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
        """
        if not self._count:
            self._count, self._mean, self._square, self._ends = count, mean, square, ends
            return
        total = self._count + count
        away = mean - self._mean
        self._square = self._square + square + away**2 * (self._count * count / total)
        self._mean = self._mean + away * (count / total)
        self._ends = np.stack([np.minimum(self._ends[0], ends[0]), np.maximum(self._ends[1], ends[1])])
        self._count = total

    def activity(self, site: str, processes: Processes) -> SiteActivity | None:
        """Merge the activations of all processes; return None if none of them were finite.

        Args:
            site: the site in words.
            processes: those that have added batches.
        """
        self._sum_up()
        name = "" if self._nonlinearity is None else self._nonlinearity.name
        mine = (self._count, self._mean, self._square, self._ends, self._top, self._error, name)
        shares = [share for share in processes.gather(mine) if share[0]]
        if not shares:
            return None
        whole = ActivityMoments(self._axis, self._group)
        for count, mean, square, ends, *_ in shares:
            whole._merge(count, mean, square, ends)
        values, samples = _best(*(share[4] for share in shares))
        deviation = np.sqrt(np.maximum(whole._square / whole._count, 0.0))
        low, high = whole._ends
        missed, change = np.sum([share[5] for share in shares], axis=0)
        return SiteActivity(
            site,
            round(whole._count),
            whole._mean,
            deviation,
            low,
            high,
            samples,
            values,
            nonlinearity=next((share[6] for share in shares if share[6]), ""),
            derivative_error=float(missed / change) if change > 0 else float("nan"),
        )


def _largest(
    values: Float[np.ndarray, "neuron sample"], numbers: Int[np.ndarray, " sample"]
) -> tuple[Float[np.ndarray, "neuron top"], Int[np.ndarray, "neuron top"]]:
    """Find the largest values of each neuron, and their samples; among equal ones those with the smaller numbers.

    Args:
        values: one per neuron and sample.
        numbers: of the samples, ascending.

    Returns:
        Values, largest first, and sample numbers; -inf and -1 where there are fewer samples.
    """
    left = values.copy()
    rows = np.arange(len(left))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(min(N_TOP, len(numbers))):  # a few searches are faster than sorting all samples
        place = left.argmax(1)  # the first of equal values
        value = left[rows, place]
        found.append((value.astype(np.float64), np.where(np.isneginf(value), -1, numbers[place])))
        left[rows, place] = -np.inf
    missing = [(np.full(len(left), -np.inf), np.full(len(left), -1))] * (N_TOP - len(found))
    top, samples = (np.stack(parts, 1) for parts in zip(*found, *missing, strict=True))
    return top, samples


def _best(
    *parts: tuple[Float[np.ndarray, "neuron _"], Int[np.ndarray, "neuron _"]],
) -> tuple[Float[np.ndarray, "neuron top"], Int[np.ndarray, "neuron top"]]:
    """Merge several outcomes of `_largest`: return the largest values among them, and their samples."""
    values, samples = (np.concatenate([part[which] for part in parts], axis=1) for which in range(2))
    order = np.lexsort((samples, -values), axis=1)[:, :N_TOP]
    return np.take_along_axis(values, order, 1), np.take_along_axis(samples, order, 1)
