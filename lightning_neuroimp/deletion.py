"""Deletion curves and their random control, from per-sample group numbers; knows no clusters."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.batches import to_numpy
from lightning_neuroimp.probe import Gather, alone
from lightning_neuroimp.removal import margin
from lightning_neuroimp.replay import Replay, Replayer, ablate
from lightning_neuroimp.results import Removal

MAX_LOGITS = 2**20
"""So many logits are kept before they are counted: one count for many passes is faster than one for each."""


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
    replayer: Replayer,
    batches: Iterable[tuple[Any, Int[np.ndarray, " sample"]]],
    orders: Sequence[Int[np.ndarray, "_ neuron"]],
    removed: Int[np.ndarray, " point"],
    n_groups: int,
    *,
    gather: Gather = alone,
    tick: Callable[[], None] = lambda: None,
) -> Outcomes:
    """Remove neurons in given orders, each group of samples in its own, all groups in one mixed pass.

    Each batch is run once, and replayed from the site on for every set of neurons; sets that several orders share
    are replayed once.

    Args:
        replayer: of the model and the removal.
        batches: batches with the group number of each sample; samples in group -1 are run but not counted.
        orders: each is a row of neurons to remove, first to last, per group, or one row for all groups.
        removed: how many neurons to remove.
        n_groups: number of groups.
        gather: sums over processes.
        tick: called for every order and point of every batch, and once more for the intact one.
    """
    masks, which = distinct_masks(orders, removed)
    samples = np.zeros(n_groups, np.int64)
    sums = np.zeros((1 + len(masks), 2, n_groups))
    with torch.no_grad():
        for batch, groups in batches:
            samples += np.bincount(groups[groups >= 0], minlength=n_groups)
            replay = replayer.record(batch)
            outcomes = _replays(replay, replayer.removal, masks, groups, np.bincount(which, minlength=len(masks)), tick)
            sums += _sum_groups(outcomes, groups, n_groups)
            del replay, outcomes  # before the next batch is recorded
    shares = gather((samples, sums))
    samples, sums = (np.sum([share[part] for share in shares], axis=0) for part in range(2))
    sums[:, 1][~np.isfinite(sums[:, 1])] = np.nan
    tables = sums[1:][which].reshape(len(orders), len(removed), 2, n_groups)
    return Outcomes(samples, tables[:, :, 0], tables[:, :, 1], sums[0, 0], sums[0, 1])


def distinct_masks(
    orders: Sequence[Int[np.ndarray, "_ neuron"]], removed: Int[np.ndarray, " point"]
) -> tuple[list[Bool[np.ndarray, "_ neuron"]], Int[np.ndarray, " pair"]]:
    """The different sets of neurons that the orders remove, and which of them each pair of order and point is.

    >>> masks, which = distinct_masks([np.array([[0, 1, 2]]), np.array([[1, 0, 2]])], np.array([1, 2]))
    >>> len(masks), which.tolist()
    (3, [0, 1, 2, 1])
    """
    masks: list[Bool[np.ndarray, "_ neuron"]] = []
    known: dict[tuple[int, bytes], int] = {}
    which = []
    for order in orders:
        position = np.argsort(order, axis=1)
        for count in removed.tolist():
            mask = position < count
            if (mask == mask[:1]).all():
                mask = mask[:1]
            key = (len(mask), np.packbits(mask).tobytes())
            if key not in known:
                known[key] = len(masks)
                masks.append(mask)
            which.append(known[key])
    return masks, np.array(which)


def _replays(
    replay: Replay,
    removal: Removal,
    masks: Sequence[Bool[np.ndarray, "_ neuron"]],
    groups: Int[np.ndarray, " sample"],
    uses: Int[np.ndarray, " mask"],
    tick: Callable[[], None],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets, intact first, then of each mask."""
    yield replay.logits, replay.classes
    tick()
    device = replay.logits.device
    rows = torch.from_numpy(np.maximum(groups, 0)).to(device)
    for mask, times in zip(masks, uses.tolist(), strict=True):
        removed = torch.from_numpy(mask).to(device)
        yield ablate(replay, removal, removed if len(mask) == 1 else removed[rows])
        for _ in range(times):
            tick()


def _sum_groups(
    outcomes: Iterator[tuple[Float[Tensor, "sample class"], Int[Tensor, " sample"]]],
    groups: Int[np.ndarray, " sample"],
    n_groups: int,
) -> Float[np.ndarray, "outcome 2 group"]:
    """Right predictions and margins of each outcome, summed over each group."""
    tables: list[Float[np.ndarray, "outcome 2 group"]] = []
    waiting: list[tuple[Tensor, Tensor]] = []
    member = torch.from_numpy(np.arange(n_groups)[:, None] == groups).double()

    def count() -> None:
        logits = torch.cat([one for one, _ in waiting])
        classes = torch.cat([one for _, one in waiting])
        # argmax names the first NaN, which must not count as a right prediction
        correct = (logits.argmax(1) == classes) & ~logits.isnan().any(1)
        values = torch.stack([correct.to(logits.dtype), margin(logits, classes)]).cpu().double()
        values = values.reshape(2, len(waiting), -1).transpose(0, 1)
        tables.append(to_numpy(_product(values, member)))
        waiting.clear()

    for outcome in outcomes:
        waiting.append(outcome)
        if len(waiting) * outcome[0].numel() >= MAX_LOGITS:
            count()
    if waiting:
        count()
    return np.concatenate(tables)


def _product(values: Tensor, member: Tensor) -> Tensor:
    """Sums per group; a value that is not finite spoils the sum of its own group only."""
    sums = values.nan_to_num(0.0, 0.0, 0.0) @ member.T
    finite = values.isfinite()
    if not finite.all():
        sums = sums.where((~finite).double() @ member.T == 0, torch.nan)
    return sums
