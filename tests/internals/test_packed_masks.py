"""Sets of neurons that orders share in a cell are run once, and the outcomes are those of one pass for each."""

import collections

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import neuron_importance
from lightning_neuroimp.ablation.outcomes import PackedMasks, ablate_orders, run_masks, tabulate
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.suffix.tape import Tape
from tests.support.digits import batches, digits

RNG = np.random.default_rng(0)
REMOVED = np.array([1, 2, 5])


def some_orders(n_cells, n_neurons, n_orders=9):
    """Of all cells together, of each by itself, and some that begin alike in some of the cells."""
    orders = [np.stack([RNG.permutation(n_neurons) for _ in range(n_cells)]) for _ in range(n_orders)]
    orders += [np.repeat(RNG.permutation(n_neurons)[None], n_cells, axis=0), RNG.permutation(n_neurons)[None]]
    for order in orders[: n_orders // 2]:
        similar = order.copy()
        similar[::2, :2] = order[::2, 1::-1]
        similar[1::2] = RNG.permuted(order[1::2], axis=1)
        orders.append(similar)
    return orders


def needed(orders, removed, n_cells):
    """Number of sets in the cell that needs most."""
    sets = [
        {frozenset(order[cell if len(order) > 1 else 0, :count]) for order in orders for count in removed}
        for cell in range(n_cells)
    ]
    return max(map(len, sets))


@pytest.mark.parametrize("n_cells", [1, 2, 7])
@pytest.mark.parametrize("n_neurons", [8, 13])
def test_each_set_has_one_pass(n_cells, n_neurons):
    orders = some_orders(n_cells, n_neurons)
    packed = PackedMasks(orders, REMOVED)
    assert len(packed) == needed(orders, REMOVED, n_cells) < len(orders) * len(REMOVED)
    masks = [np.zeros((n_cells, n_neurons), bool), *packed]
    cells = np.arange(n_cells)
    rows = packed.rows(cells)
    assert rows.shape == (1 + len(orders) * len(REMOVED), n_cells)
    assert (rows[0] == 0).all()
    for cell in cells:
        pairs = iter(rows[1:, cell])
        for order in orders:
            for count in REMOVED:
                mask = masks[next(pairs)][cell]
                assert set(np.flatnonzero(mask)) == set(order[cell if len(order) > 1 else 0, :count])
    assert packed.uses().sum() == len(orders) * len(REMOVED)
    assert packed.uses().min() >= 1


@pytest.mark.parametrize("size", [50, 7])
def test_outcomes_equal_those_of_one_pass_for_each_set(size, monkeypatch):
    torch.manual_seed(0)
    x, y = (part[:100] for part in digits())
    model = nn.Sequential(nn.Linear(64, 13), nn.Tanh(), nn.Linear(13, 10))
    results = neuron_importance(model, [(x, y)], layers="1", baseline="mean")
    cell = np.where(np.arange(100) % 11 == 3, -1, y.numpy() % 5)
    runs = collections.Counter()
    run = Tape.run

    def counted(tape, activation):
        runs["all"] += 1
        return run(tape, activation)

    monkeypatch.setattr(Tape, "run", counted)
    data, start = [], 0
    for batch in batches(x, y, size):
        numbers = np.arange(start, start + len(batch[1]))
        data.append((batch, numbers, cell[numbers]))
        start += len(numbers)

    def recorder():
        return SuffixRecorder(model, lambda batch: (model(batch[0]), batch[1]), results["1"].removal)

    orders = some_orders(5, 13)
    found = ablate_orders(recorder(), iter(data), orders, REMOVED)
    n_passes = len(data) * needed(orders, REMOVED, 5)
    assert runs["all"] == n_passes + 1  # one trial, on the first batch
    assert found.sample.tolist() == np.flatnonzero(cell >= 0).tolist()
    one = recorder()
    for batch, numbers, cells in data:
        suffix, counted_here = one.record(batch, numbers), cells >= 0
        places = np.searchsorted(found.sample, numbers[counted_here])
        for number, order in enumerate(orders):
            for point, count in enumerate(REMOVED):
                mask = np.argsort(order, axis=1) < count
                with torch.no_grad():
                    correct, margin, predicted = tabulate(run_masks(suffix, [mask], cells))
                np.testing.assert_array_equal(found.correct[number, point, places], correct[1, counted_here])
                np.testing.assert_array_equal(found.margin[number, point, places], margin[1, counted_here])
                np.testing.assert_array_equal(found.predicted[number, point, places], predicted[1, counted_here])
        np.testing.assert_array_equal(found.intact_margin[places], margin[0, counted_here])


def test_a_batch_of_which_no_sample_counts_is_no_obstacle():
    torch.manual_seed(0)
    x, y = (part[:40] for part in digits())
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    results = neuron_importance(model, [(x, y)], layers="1")
    recorder = SuffixRecorder(model, lambda batch: (model(batch[0]), batch[1]), results["1"].removal)
    cells = np.repeat([-1, 3], 20)
    data = [((x[rows], y[rows]), rows.numpy(), cells[rows.numpy()]) for rows in torch.arange(40).split(20)]
    found = ablate_orders(recorder, iter(data), some_orders(4, 8), REMOVED)
    assert found.sample.tolist() == list(range(20, 40))
    assert ablate_orders(recorder, iter(data[:1]), some_orders(4, 8), REMOVED).correct.shape[2] == 0
