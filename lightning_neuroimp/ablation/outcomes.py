"""Remove neurons in given orders, and record what becomes of each sample. Knows cells, but no clusters."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.batches.structure import to_numpy
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.suffix.suffix import Suffix
from lightning_neuroimp.capture.targets import margin
from lightning_neuroimp.errors import InvalidArgument

MAX_LOGITS = 2**20
"""Upper bound on the number of logits that are kept before they are counted: one count for many passes is faster."""

CellBatch = tuple[Any, Int[np.ndarray, " sample"], Int[np.ndarray, " sample"]]
"""A batch on the host, the number of each of its samples, and the cell of each (-1: run, but not counted)."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Hold what became of each sample when neurons were removed.

    Attributes:
        sample: number of each sample, ascending.
        cell: cell of each sample.
        correct: whether the prediction is right, for each order and number of removed neurons.
        margin: margin in logits; NaN where it is not finite.
        predicted: predicted class; -1 where a logit is NaN.
        intact_correct: whether the prediction is right with all neurons.
        intact_margin: margin in logits with all neurons.
        intact_predicted: predicted class with all neurons.
    """

    sample: Int[np.ndarray, " sample"]
    cell: Int[np.ndarray, " sample"]
    correct: Bool[np.ndarray, "order point sample"]
    margin: Float[np.ndarray, "order point sample"]
    predicted: Int[np.ndarray, "order point sample"]
    intact_correct: Bool[np.ndarray, " sample"]
    intact_margin: Float[np.ndarray, " sample"]
    intact_predicted: Int[np.ndarray, " sample"]

    def joined(self, more: "Outcomes") -> "Outcomes":
        """Append the orders of other outcomes of the same samples."""
        assert np.array_equal(self.sample, more.sample)
        return replace(
            self,
            correct=np.concatenate([self.correct, more.correct]),
            margin=np.concatenate([self.margin, more.margin]),
            predicted=np.concatenate([self.predicted, more.predicted]),
        )


def ablate_orders(
    recorder: SuffixRecorder,
    batches: Iterable[CellBatch],
    orders: Sequence[Int[np.ndarray, "_ neuron"]],
    removed: Int[np.ndarray, " point"],
    *,
    processes: Processes = Processes(),  # noqa: B008 (frozen)
    tick: Callable[[], None] = lambda: None,
) -> Outcomes:
    """Remove neurons in given orders, those of each cell from its own samples, with all cells in one pass.

    Each batch is run once in full, and then from the site on for every set of neurons; sets that several orders share
    in a cell are run once.

    Args:
        recorder: of the model and the removal.
        batches: of this process.
        orders: neurons to remove, first to last; each order has one row per cell, or one row for all cells.
        removed: number of removed neurons at each point.
        processes: those that share the samples.
        tick: called for every order and point of every batch, and once more for the intact one.

    Raises:
        InvalidArgument: if the logits of one batch have several shapes.
    """
    packed = PackedMasks(orders, removed)
    mine: list[tuple[Shaped[np.ndarray, "..."], ...]] = []
    with torch.no_grad():
        for batch, numbers, cells in batches:
            suffix = recorder.record(batch, numbers)
            table = tabulate(run_masks(suffix, packed, cells, packed.uses(), tick))
            counted = cells >= 0
            rows = packed.rows(cells[counted])
            parts = (np.take_along_axis(part[:, counted], rows, 0) for part in table)
            mine.append((numbers[counted], cells[counted], *parts))
            del suffix  # before the next batch is recorded
    shares = processes.chain(mine)
    if not shares:
        no_samples, no_values = np.zeros(0, np.int64), np.zeros((len(orders), len(removed), 0))
        empty = no_values.astype(bool), no_values, no_values.astype(np.int64)
        return Outcomes(no_samples, no_samples, *empty, *(part[0, 0] for part in empty))
    order = np.argsort(np.concatenate([share[0] for share in shares]), kind="stable")
    sample, cell = (np.concatenate([share[part] for share in shares])[order] for part in range(2))
    correct, margins, predicted = (
        np.concatenate([share[part] for share in shares], axis=1)[:, order] for part in range(2, 5)
    )
    shape = (len(orders), len(removed), -1)
    correct_at, margin_at, predicted_at = (part[1:].reshape(shape) for part in (correct, margins, predicted))
    return Outcomes(sample, cell, correct_at, margin_at, predicted_at, correct[0], margins[0], predicted[0])


class PackedMasks:
    """Hold the sets of neurons that orders remove, for as few passes as the cells allow.

    Each cell has its own list of distinct sets, and pass number i removes the i-th set of every cell: there are as many
    passes as the cell with most sets needs. One bit is kept for each pass, cell and neuron.

    Args:
        orders: neurons to remove, first to last; each order has one row per cell, or one row for all cells.
        removed: number of removed neurons at each point, ascending.

    >>> packed = PackedMasks([np.array([[0, 1, 2]]), np.array([[1, 0, 2]])], np.array([1, 2]))
    >>> [np.flatnonzero(mask).tolist() for mask in packed]
    [[1], [0], [0, 1]]
    >>> packed.rows(np.array([0]))[:, 0].tolist()  # intact, then 0; 0 and 1; 1; 1 and 0
    [0, 2, 3, 1, 3]
    """

    def __init__(self, orders: Sequence[Int[np.ndarray, "_ neuron"]], removed: Int[np.ndarray, " point"]) -> None:
        self._n_neurons, n_rows = orders[0].shape[1], max(len(order) for order in orders)
        bits = np.empty((len(orders), len(removed), n_rows, -(-self._n_neurons // 8)), np.uint8)
        for order, sets in zip(orders, bits, strict=True):
            mask, before = np.zeros(order.shape, bool), 0
            for count, at_point in zip(removed.tolist(), sets, strict=True):
                np.put_along_axis(mask, order[:, before:count], True, axis=1)
                at_point[:], before = np.packbits(mask, axis=1), count
        bits = bits.reshape(-1, n_rows, bits.shape[-1])
        firsts, numbers = [], []
        for row in range(n_rows):
            whole = np.ascontiguousarray(bits[:, row]).view(f"V{bits.shape[2]}")[:, 0]
            _, first, number = np.unique(whole, return_index=True, return_inverse=True)
            firsts.append(first)
            numbers.append(number)
        n_passes = max(map(len, firsts))
        # a cell that needs no more sets has its first ones again
        self._passes = np.stack([bits[np.resize(first, n_passes), row] for row, first in enumerate(firsts)], 1)
        self._numbers = np.stack(numbers, 1)  # of the pass, (pair of order and point, row)

    def __len__(self) -> int:
        return len(self._passes)

    def __iter__(self) -> Iterator[Bool[np.ndarray, "_ neuron"]]:
        for bits in self._passes:
            yield np.unpackbits(bits, axis=1, count=self._n_neurons).astype(bool)

    def uses(self) -> Int[np.ndarray, " pass"]:
        """Share the pairs of order and point among the passes."""
        return np.diff(np.arange(len(self) + 1) * len(self._numbers) // len(self))

    def rows(self, cells: Int[np.ndarray, " sample"]) -> Int[np.ndarray, "pair sample"]:
        """Return the rows of a table of outcomes that hold each sample's: intact first, then for each order and point.

        Args:
            cells: cell of each sample. The table's first row is the intact one, the others are the passes.
        """
        numbers = self._numbers[:, cells if self._numbers.shape[1] > 1 else np.zeros_like(cells)]
        return np.concatenate([np.zeros((1, len(cells)), np.int64), 1 + numbers])


def run_masks(
    suffix: Suffix,
    masks: Collection[Bool[np.ndarray, "_ neuron"]] | PackedMasks,
    cells: Int[np.ndarray, " sample"],
    uses: Int[np.ndarray, " mask"] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and explained classes of a batch, intact first, then without the neurons of each mask.

    Args:
        suffix: of the batch.
        masks: True where a neuron is removed; one row per cell, or one row for all cells.
        cells: cell of each sample.
        uses: number of ticks for each mask; None: one each.
        tick: called so often for each mask, and once for the intact batch.
    """
    yield suffix.logits, suffix.classes
    tick()
    device = suffix.logits.device
    rows = torch.from_numpy(np.maximum(cells, 0)).to(device)
    times = [1] * len(masks) if uses is None else uses.tolist()
    for mask, n_ticks in zip(masks, times, strict=True):
        removed = torch.from_numpy(mask).to(device)
        yield suffix.ablated(removed if len(mask) == 1 else removed[rows])
        for _ in range(n_ticks):
            tick()


def tabulate(
    outcomes: Iterator[tuple[Float[Tensor, "sample class"], Int[Tensor, " sample"]]],
) -> tuple[Bool[np.ndarray, "mask sample"], Float[np.ndarray, "mask sample"], Int[np.ndarray, "mask sample"]]:
    """Turn logits into tables of predictions, one row per mask.

    Args:
        outcomes: logits and explained classes, from `run_masks`.

    Returns:
        Whether each sample is predicted right; its margin in logits, NaN where it is not finite; its predicted class,
        -1 where a logit is NaN.

    Raises:
        InvalidArgument: if the logits of one batch have several shapes.
    """
    tables: list[list[Shaped[np.ndarray, "mask sample"]]] = []
    waiting: list[tuple[Tensor, Tensor]] = []

    def count() -> None:
        """Tabulate the waiting logits and let go of them."""
        shapes = sorted({tuple(logits.shape) for logits, _ in waiting})
        if len(shapes) > 1:
            raise InvalidArgument(
                f"the model's logits must have the same shape each time that it runs on a batch, got "
                f"{' and '.join(map(str, shapes[:4]))}; let forward_fn return logits of one shape"
            )
        logits = torch.cat([logits for logits, _ in waiting])
        classes = torch.cat([classes for _, classes in waiting])
        # argmax names the first NaN, which must not count as a prediction
        predicted = logits.argmax(1).where(~logits.isnan().any(1), -1)
        parts = to_numpy(predicted == classes), to_numpy(margin(logits, classes)), to_numpy(predicted)
        tables.append([part.reshape(len(waiting), -1) for part in parts])
        waiting.clear()

    for outcome in outcomes:
        waiting.append(outcome)
        if len(waiting) * outcome[0].numel() >= MAX_LOGITS:
            count()
    if waiting:
        count()
    correct, margins, predicted = (np.concatenate([table[part] for table in tables]) for part in range(3))
    # NaN for infinite margins too, as these would spoil differences with warnings
    return correct, np.where(np.isfinite(margins), margins, np.nan).astype(np.float64), predicted
