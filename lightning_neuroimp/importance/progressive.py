"""Rank the neurons of each cell progressively: score all, remove the top ones, score the rest without them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.batches.numbers import rows_of
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.batches.structure import to_numpy
from lightning_neuroimp.capture.gradients import despite_changes, differentiate
from lightning_neuroimp.capture.positions import along_positions, sum_groups, sum_positions
from lightning_neuroimp.capture.removal import baseline_of
from lightning_neuroimp.capture.sample_table import SampleTable
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.suffix.suffix import Suffix
from lightning_neuroimp.capture.targets import Target
from lightning_neuroimp.importance.moments import CellMeans
from lightning_neuroimp.statistics import points

Batches = Callable[[], Iterable[tuple[Any, Int[np.ndarray, " sample"], Int[np.ndarray, " sample"]]]]
"""Gives, each time that it is called, batches on the host, the numbers and the cells of their samples (-1: none)."""


def progressive_orders(
    recorder: SuffixRecorder,
    batches: Batches,
    removed: Int[np.ndarray, " point"],
    n_cells: int,
    target: Target,
    *,
    processes: Processes = Processes(),  # noqa: B008 (frozen)
) -> Int[np.ndarray, "cell neuron"]:
    """Find an order of removal for each cell, on its own samples.

    Each round scores the neurons by gradient x activation, with those of the rounds before at their baseline, and takes
    the best ones up to the next point; the last round ranks all that are left. A round takes a forward pass, and a
    forward and backward pass of what follows the site.

    Args:
        recorder: of the model and the removal.
        batches: of this process.
        removed: number of removed neurons after each round, ascending.
        n_cells: number of cells.
        target: the scalar that is explained per sample.
        processes: those that share the samples.

    Returns:
        All neurons of the site in each cell, first removed first.
    """
    n_neurons = recorder.removal.n_neurons
    order = np.zeros((n_cells, 0), np.int64)
    for count in [*removed.tolist()[:-1], n_neurons]:
        gone = np.zeros((n_cells, n_neurons), bool)
        np.put_along_axis(gone, order, True, axis=1)
        sums = np.zeros((n_cells, n_neurons))
        for batch, numbers, cells in batches():
            if (cells >= 0).any():
                scores = _scores_without(recorder.record(batch, numbers), recorder, gone[np.maximum(cells, 0)], target)
                known = (cells >= 0) & np.isfinite(scores).all(1)
                np.add.at(sums, cells[known], scores[known])
        left = np.sum(processes.gather(sums), axis=0)
        left[gone] = -np.inf
        best = np.argsort(-left, axis=1, kind="stable")[:, : count - order.shape[1]]
        order = np.concatenate([order, best], axis=1)
    return order


def _scores_without(
    suffix: Suffix, recorder: SuffixRecorder, gone: Bool[np.ndarray, "sample neuron"], target: Target
) -> Float[np.ndarray, "sample neuron"]:
    """Compute gradient x activation of each neuron, with others removed from each sample.

    Args:
        suffix: of the batch.
        recorder: that has recorded it.
        gone: True where a neuron is removed.
        target: the scalar that is explained per sample.
    """
    removal, activation = recorder.removal, suffix.activation
    if activation is None:  # this batch does not reach the site
        return np.zeros(gone.shape)
    point = suffix.removed(torch.from_numpy(gone).to(activation.device)).requires_grad_()

    def compute() -> Tensor | None:
        with torch.enable_grad():
            total = target.values(*suffix(point)).sum()
            return differentiate(total, [point])[0] if total.requires_grad else None

    gradient = despite_changes(compute, recorder.changed)
    if gradient is None:
        return np.zeros(gone.shape)
    dtype = torch.promote_types(activation.dtype, torch.float32)  # products in half precision would lose digits
    moved = activation.to(dtype) - baseline_of(removal, activation.to(dtype), suffix.batch_removal).to(dtype)
    positions = suffix.batch_removal.positions
    if positions is not None:
        moved = moved.where(along_positions(positions, removal.axis), 0)
    summed = sum_positions(moved * gradient.to(dtype), removal.axis, positions)
    return to_numpy(sum_groups(summed, removal.where.group)).astype(np.float64)


def ranked_means(
    means: CellMeans,
    subject: Subject,
    recorder: SuffixRecorder,
    samples: SampleTable,
    ids: Int[np.ndarray, " cluster"],
    fractions: Iterable[float],
    target: Target,
) -> CellMeans:
    """Replace the mean scores of each cell by its progressive order, as shares of the neurons that come later.

    Args:
        means: of the first round, which tell the numbers of samples.
        subject: model and samples.
        recorder: of the model and the removal.
        samples: of all processes, with clusters and halves.
        ids: clusters of the rows.
        fractions: shares of the neurons that are removed after each round.
        target: the scalar that is explained per sample.
    """
    assert samples.cluster is not None
    assert samples.half is not None
    removed = points(tuple(fractions), recorder.removal.n_neurons)
    counted = (samples.cluster >= 0) & samples.finite
    cell = np.where(counted, 2 * rows_of(ids, np.where(counted, samples.cluster, ids[0])) + samples.half, -1)

    def batches() -> Iterable[tuple[Any, Int[np.ndarray, " sample"], Int[np.ndarray, " sample"]]]:
        for batch, numbers in subject.passes():
            yield batch, numbers, cell[rows_of(samples.index, numbers)]

    with subject.timed("importance"):
        order = progressive_orders(recorder, batches, removed, 2 * len(ids), target, processes=subject.processes)
    place = np.argsort(order, axis=1).reshape(len(ids), 2, -1).swapaxes(0, 1)  # (half, cluster, neuron)
    share = np.where(means.count[..., None] > 0, 1 - place / order.shape[1], np.nan)
    # a place has no spread over the samples
    return replace(means, mean=share, abs_mean=share, square_mean=np.full(share.shape, np.nan))
