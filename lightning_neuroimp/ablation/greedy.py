"""Greedy orders of removal."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from lightning_neuroimp.ablation.outcomes import run_masks, tabulate_outcomes
from lightning_neuroimp.batches.processes import Gather, alone
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder


def greedy_orders(
    replayer: SuffixRecorder,
    batches: Iterable[tuple[Any, Int[np.ndarray, " sample"], Int[np.ndarray, " sample"]]],
    removed: Int[np.ndarray, " point"],
    n_groups: int,
    *,
    gather: Gather = alone,
) -> Int[np.ndarray, "group neuron"]:
    """For each group an order of removal found greedily on its own samples.

    At each point it takes those neurons whose removal, together with those before, lowers the margin most. Neurons
    behind the last point come in any order.

    Takes a whole pass and one of what follows the site per neuron, at each point.

    Args:
        replayer: of the model and the removal.
        batches: as in `ablate_orders`.
        removed: the points.
        n_groups: number of groups.
        gather: sums over processes.
    """
    n_neurons, kept = replayer.removal.n_neurons, list(batches)
    order = np.zeros((n_groups, 0), np.int64)
    every = np.eye(n_neurons, dtype=bool)
    for count in removed.tolist():
        gone = np.zeros((n_groups, n_neurons), bool)
        np.put_along_axis(gone, order, True, axis=1)
        left = np.zeros((n_neurons, n_groups))  # sum of the margins without each neuron
        with torch.no_grad():
            for batch, numbers, groups in kept:
                masks = [gone | every[neuron] for neuron in range(n_neurons)]
                replays = run_masks(
                    replayer.record(batch, numbers),
                    replayer.removal,
                    masks,
                    groups,
                    np.ones(n_neurons, np.int64),
                    lambda: None,
                )
                margins = tabulate_outcomes(replays)[1][1:]
                for group in np.unique(groups[groups >= 0]).tolist():
                    left[:, group] += np.nan_to_num(margins[:, groups == group]).sum(1)
        left = np.sum(gather(left), axis=0).T
        left[gone] = np.inf
        best = np.argsort(left, axis=1, kind="stable")[:, : count - order.shape[1]]
        order = np.concatenate([order, best], axis=1)
    rest = np.ones((n_groups, n_neurons), bool)
    np.put_along_axis(rest, order, False, axis=1)
    return np.concatenate([order, np.nonzero(rest)[1].reshape(n_groups, -1)], axis=1)
