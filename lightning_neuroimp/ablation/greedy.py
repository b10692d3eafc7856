"""Find greedy orders of removal: at each point those neurons whose removal lowers the margin most."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int

from lightning_neuroimp.ablation.outcomes import CellBatch, run_masks, tabulate
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder


def greedy_orders(
    recorder: SuffixRecorder,
    batches: Iterable[CellBatch],
    removed: Int[np.ndarray, " point"],
    n_cells: int,
    *,
    processes: Processes = Processes(),  # noqa: B008 (frozen)
) -> Int[np.ndarray, "cell neuron"]:
    """Find an order of removal for each cell, greedily on its own samples.

    At each point those neurons are taken whose removal, in addition to those before, lowers the margin most. Neurons
    after the last point come in any order. Each point takes a full forward pass, and one pass of what follows the site
    for every neuron.

    Args:
        recorder: of the model and the removal.
        batches: of this process.
        removed: number of removed neurons at each point.
        n_cells: number of cells.
        processes: those that share the samples.

    Returns:
        All neurons of the site in each cell, first removed first.
    """
    n_neurons, kept = recorder.removal.n_neurons, list(batches)
    order = np.zeros((n_cells, 0), np.int64)
    for count in removed.tolist():
        gone = np.zeros((n_cells, n_neurons), bool)
        np.put_along_axis(gone, order, True, axis=1)
        left = np.sum(processes.gather(_margins_without_each(recorder, kept, gone)), axis=0).T
        left[gone] = np.inf
        best = np.argsort(left, axis=1, kind="stable")[:, : count - order.shape[1]]
        order = np.concatenate([order, best], axis=1)
    rest = np.ones((n_cells, n_neurons), bool)
    np.put_along_axis(rest, order, False, axis=1)
    return np.concatenate([order, np.nonzero(rest)[1].reshape(n_cells, -1)], axis=1)


def _margins_without_each(
    recorder: SuffixRecorder, batches: Iterable[CellBatch], gone: np.ndarray
) -> Float[np.ndarray, "neuron cell"]:
    """Sum the margins of each cell's samples without each neuron, in addition to those that are gone.

    Args:
        recorder: of the model and the removal.
        batches: of this process.
        gone: True where a neuron is removed already, (cell, neuron).
    """
    n_cells, n_neurons = gone.shape
    left = np.zeros((n_neurons, n_cells))
    every = np.eye(n_neurons, dtype=bool)
    with torch.no_grad():
        for batch, numbers, cells in batches:
            masks = [gone | every[neuron] for neuron in range(n_neurons)]
            margins = tabulate(run_masks(recorder.record(batch, numbers), masks, cells))[1][1:]
            for cell in np.unique(cells[cells >= 0]).tolist():
                left[:, cell] += np.nan_to_num(margins[:, cells == cell]).sum(1)
    return left
