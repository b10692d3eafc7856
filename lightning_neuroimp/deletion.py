"""Deletion curves and their random control, from per-sample group numbers; knows no clusters."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_neuroimp.batches import model_device, to_device, to_numpy
from lightning_neuroimp.probe import Gather, alone
from lightning_neuroimp.removal import margin
from lightning_neuroimp.replay import Ablation
from lightning_neuroimp.results import Removal


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What became of each group of samples, summed over its samples.

    Attributes:
        samples: group sizes.
        correct: right predictions for each order, number of removed neurons and group.
        margin: sum of the margins; NaN where one is not finite.
        intact_correct, intact_margin: the same with all neurons.
    """

    samples: Int[np.ndarray, " group"]
    correct: Float[np.ndarray, "order point group"]
    margin: Float[np.ndarray, "order point group"]
    intact_correct: Float[np.ndarray, " group"]
    intact_margin: Float[np.ndarray, " group"]


def ablate_orders(
    model: nn.Module,
    forward: Callable[[Any], tuple[Tensor, Tensor]],
    batches: Iterable[tuple[Any, Int[np.ndarray, " sample"]]],
    removal: Removal,
    orders: Sequence[Int[np.ndarray, "_ neuron"]],
    removed: Int[np.ndarray, " point"],
    n_groups: int,
    *,
    gather: Gather = alone,
    tick: Callable[[], None] = lambda: None,
) -> Outcomes:
    """Remove neurons in given orders, each group of samples in its own, all groups in one mixed pass.

    Args:
        model: holds the removal's site.
        forward: batch on the model's device -> logits (sample, class) and targets (sample,).
        batches: batches with the group number of each sample; samples in group -1 are run but not counted.
        removal: the site and the baseline.
        orders: each is a row of neurons to remove, first to last, per group, or one row for all groups.
        removed: how many neurons to remove.
        n_groups: number of groups.
        gather: sums over processes.
        tick: called after every forward pass over a batch.
    """
    device = model_device(model)
    ranks = [torch.from_numpy(np.argsort(order, axis=1)).to(device) for order in orders]
    samples = np.zeros(n_groups, np.int64)
    outcome = np.zeros((2, len(orders), len(removed), n_groups))
    intact = np.zeros((2, n_groups))
    with torch.no_grad(), Ablation(removal).attach(model) as ablation:
        for host_batch, groups in batches:
            batch = to_device(host_batch, device)  # once; then each pass gets a copy of its own
            rows = torch.from_numpy(np.maximum(groups, 0)).to(device)
            samples += np.bincount(groups[groups >= 0], minlength=n_groups)
            ablation.mask = None
            intact += _sum_groups(*forward(to_device(batch, device)), groups, n_groups)
            tick()
            for number, rank in enumerate(ranks):
                position = rank if len(rank) == 1 else rank[rows]
                for point, count in enumerate(removed.tolist()):
                    ablation.mask = position < count
                    outcome[:, number, point] += _sum_groups(*forward(to_device(batch, device)), groups, n_groups)
                    tick()
    shares = gather((samples, outcome, intact))
    samples, outcome, intact = (np.sum([share[part] for share in shares], axis=0) for part in range(3))
    outcome[1][~np.isfinite(outcome[1])] = np.nan
    return Outcomes(samples, outcome[0], outcome[1], intact[0], intact[1])


def _sum_groups(
    logits: Float[Tensor, "sample class"],
    classes: Int[Tensor, " sample"],
    groups: Int[np.ndarray, " sample"],
    n_groups: int,
) -> Float[np.ndarray, "2 group"]:
    """Right predictions and margins, summed over each group."""
    # argmax names the first NaN, which must not count as a right prediction
    correct = (logits.argmax(1) == classes) & ~logits.isnan().any(1)
    table = to_numpy(torch.stack([correct.to(logits.dtype), margin(logits, classes)])).astype(np.float64)
    counted = groups >= 0
    return np.stack([np.bincount(groups[counted], row[counted], n_groups) for row in table])
