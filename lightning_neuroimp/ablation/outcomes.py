"""Deletion curves and their random control, from per-sample group numbers; knows no clusters."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lightning_neuroimp.batches.processes import Gather, alone
from lightning_neuroimp.batches.structure import to_numpy
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.suffix.suffix import Suffix, ablate
from lightning_neuroimp.capture.targets import margin
from lightning_neuroimp.site import Removal

MAX_LOGITS = 2**20
"""So many logits are kept before they are counted: one count for many passes is faster than one for each."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What became of each sample.

    Attributes:
        sample: number of each sample, ascending.
        group: its group.
        correct: whether it is predicted right, for each order and number of removed neurons.
        margin: its margin, in logits; NaN where it is not finite.
        predicted: its predicted class; -1 where its logits are NaN.
        intact_correct, intact_margin, intact_predicted: the same with all neurons.
    """

    sample: Int[np.ndarray, " sample"]
    group: Int[np.ndarray, " sample"]
    correct: Bool[np.ndarray, "order point sample"]
    margin: Float[np.ndarray, "order point sample"]
    predicted: Int[np.ndarray, "order point sample"]
    intact_correct: Bool[np.ndarray, " sample"]
    intact_margin: Float[np.ndarray, " sample"]
    intact_predicted: Int[np.ndarray, " sample"]

    def joined(self, more: "Outcomes") -> "Outcomes":
        """With the orders of other outcomes of the same samples behind these."""
        assert np.array_equal(self.sample, more.sample)
        return replace(
            self,
            correct=np.concatenate([self.correct, more.correct]),
            margin=np.concatenate([self.margin, more.margin]),
            predicted=np.concatenate([self.predicted, more.predicted]),
        )


def ablate_orders(
    replayer: SuffixRecorder,
    batches: Iterable[tuple[Any, Int[np.ndarray, " sample"], Int[np.ndarray, " sample"]]],
    orders: Sequence[Int[np.ndarray, "_ neuron"]],
    removed: Int[np.ndarray, " point"],
    *,
    gather: Gather = alone,
    tick: Callable[[], None] = lambda: None,
) -> Outcomes:
    """Remove neurons in given orders, each group of samples in its own, all groups in one mixed pass.

    Each batch is run once, and replayed from the site on for every set of neurons; sets that several orders share
    are replayed once.

    Args:
        replayer: of the model and the removal.
        batches: batches with the number and the group of each sample; samples in group -1 are run but not counted.
        orders: each is a row of neurons to remove, first to last, per group, or one row for all groups.
        removed: how many neurons to remove.
        gather: collects from processes.
        tick: called for every order and point of every batch, and once more for the intact one.
    """
    masks, which = distinct_masks(orders, removed)
    uses = np.bincount(which, minlength=len(masks))
    mine: list[tuple[Shaped[np.ndarray, "..."], ...]] = []
    with torch.no_grad():
        for batch, numbers, groups in batches:
            replay = replayer.record(batch, numbers)
            table = tabulate_outcomes(run_masks(replay, replayer.removal, masks, groups, uses, tick))
            counted = groups >= 0
            mine.append((numbers[counted], groups[counted], *(part[:, counted] for part in table)))
            del replay  # before the next batch is recorded
    shares = [one for share in gather(mine) for one in share]
    if not shares:
        nobody, nothing = np.zeros(0, np.int64), np.zeros((len(orders), len(removed), 0))
        empty = nothing.astype(bool), nothing, nothing.astype(np.int64)
        return Outcomes(nobody, nobody, *empty, *(part[0, 0] for part in empty))
    order = np.argsort(np.concatenate([share[0] for share in shares]), kind="stable")
    sample, group = (np.concatenate([share[part] for share in shares])[order] for part in range(2))
    correct, margins, predicted = (
        np.concatenate([share[part] for share in shares], axis=1)[:, order] for part in range(2, 5)
    )
    shape = (len(orders), len(removed), -1)
    correct_at, margin_at, predicted_at = (part[1:][which].reshape(shape) for part in (correct, margins, predicted))
    return Outcomes(sample, group, correct_at, margin_at, predicted_at, correct[0], margins[0], predicted[0])


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


def run_masks(
    replay: Suffix,
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


def tabulate_outcomes(
    replays: Iterator[tuple[Float[Tensor, "sample class"], Int[Tensor, " sample"]]],
) -> tuple[Bool[np.ndarray, "mask sample"], Float[np.ndarray, "mask sample"], Int[np.ndarray, "mask sample"]]:
    """Right or wrong, margin and predicted class of each sample in each replay."""
    tables: list[list[Shaped[np.ndarray, "mask sample"]]] = []
    waiting: list[tuple[Tensor, Tensor]] = []

    def count() -> None:
        shapes = sorted({tuple(one.shape) for one, _ in waiting})
        if len(shapes) > 1:
            raise ValueError(
                f"the model's logits had shapes {' and '.join(map(str, shapes))} for one batch: they must have the "
                "same shape each time that it is called"
            )
        logits = torch.cat([one for one, _ in waiting])
        classes = torch.cat([one for _, one in waiting])
        # argmax names the first NaN, which must not count as a prediction
        predicted = logits.argmax(1).where(~logits.isnan().any(1), -1)
        parts = to_numpy(predicted == classes), to_numpy(margin(logits, classes)), to_numpy(predicted)
        tables.append([part.reshape(len(waiting), -1) for part in parts])
        waiting.clear()

    for outcome in replays:
        waiting.append(outcome)
        if len(waiting) * outcome[0].numel() >= MAX_LOGITS:
            count()
    if waiting:
        count()
    correct, margins, predicted = (np.concatenate([table[part] for table in tables]) for part in range(3))
    # an infinite one would spoil differences with warnings; none is told from the other
    return correct, np.where(np.isfinite(margins), margins, np.nan).astype(np.float64), predicted
