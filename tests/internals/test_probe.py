import dataclasses
import gc
import weakref
from collections import UserDict

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_neuroimp import (
    AblationFaithfulness,
    KMeansClusters,
    ProbeSet,
    ablation_faithfulness,
    list_sites,
    neuron_importance,
)
from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.batches.probe import ProbeSampler
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.batches.structure import fingerprint
from lightning_neuroimp.errors import InvalidArgument
from tests.support.toys import in_lockstep


def stream(n, size=10, width=2):
    """Sample i holds its own number."""
    x = torch.arange(n, dtype=torch.float32)[:, None].expand(n, width)
    return list(zip(x.split(size), torch.arange(n).split(size), strict=True))


def numbers(probe):
    return np.concatenate([batch[1].numpy() for batch, _ in probe.batches()])


def test_a_small_stream_is_kept_whole():
    probe = ProbeSet.from_batches(stream(37), max_samples=100)
    assert sorted(numbers(probe)) == list(range(37))
    assert (len(probe), probe.seen, probe.batch_size) == (37, 37, 10)


def test_numbers_belong_to_their_samples():
    probe = ProbeSet.from_batches(stream(500), max_samples=64)
    for batch, index in probe.batches(13):
        assert batch[1].tolist() == index.tolist()
        assert len(index) <= 13
    assert probe.count_batches(13) == 5
    assert sorted(numbers(probe)) == sorted(probe.index)
    chosen = probe.select(probe.index[::2])
    assert numbers(chosen).tolist() == probe.index[::2].tolist()


def test_the_sample_depends_on_the_stream_and_the_seed_only():
    first = numbers(ProbeSet.from_batches(stream(500), max_samples=40))
    # Python's own generator: test_no_trace.py, as beartype draws from it under pytest
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert np.array_equal(first, numbers(ProbeSet.from_batches(iter(stream(500, size=7)), max_samples=40)))
    assert np.array_equal(np.random.get_state()[1], states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    torch.rand(5)
    assert np.array_equal(first, numbers(ProbeSet.from_batches(stream(500), max_samples=40)))
    assert not np.array_equal(first, numbers(ProbeSet.from_batches(stream(500), max_samples=40, seed=1)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bound", [{"max_samples": 20}, {"max_bytes": 20 * 16}])
def test_every_place_in_the_stream_is_drawn_equally_often(bound):
    """Also at the end of a stream that is sorted by class, and under either bound."""
    n, repeats = 100, 200
    drawn = np.zeros(n)
    for seed in range(repeats):
        probe = ProbeSet.from_batches(stream(n, size=30), seed=seed, **bound)
        assert len(probe) == 20
        drawn[probe.index] += 1
    low, high = binom.ppf([0.00001, 0.99999], repeats, 0.2)
    assert (drawn >= low).all()
    assert (drawn <= high).all()
    # hypergeometric in each draw: the statistic is a little smaller than chi-square, which is the safe side
    assert ((drawn - repeats * 0.2) ** 2 / (repeats * 0.2 * 0.8)).sum() < chi2.ppf(0.9999, n - 1)


def test_neighbouring_seeds_draw_unrelated_samples():
    keys = np.stack([sample_keys(np.arange(2000), seed) for seed in range(20)])
    low = keys < np.uint64(2**63)
    agreement = np.array([(low[a] == low[b]).mean() for a in range(20) for b in range(a)])
    assert np.abs(agreement - 0.5).max() < 0.06
    assert len(np.unique(keys)) == keys.size
    shifted = [np.corrcoef(low[0][lag:], low[1][: 2000 - lag])[0, 1] for lag in range(1, 20)]
    assert np.abs(shifted).max() < 0.1


def test_streams_without_a_length():
    class Endless(IterableDataset):
        def __iter__(self):
            yield from ((torch.tensor([float(i)]), i) for i in range(300))

    probe = ProbeSet.from_batches(DataLoader(Endless(), batch_size=16), max_samples=30)
    assert (len(probe), probe.seen) == (30, 300)


def test_bytes_are_bounded_while_the_stream_runs():
    sampler = ProbeSampler(max_samples=10**6, max_bytes=1600)
    for batch in stream(1000):
        sampler.add(batch)
        assert sampler._draw.n_bytes <= 1600
        assert sampler._draw.count <= 100
    assert len(sampler.close()) == 100


def test_samples_of_several_shapes_keep_apart():
    data = [(torch.full((4, length), float(length)), torch.zeros(4)) for length in (3, 5, 3)]
    probe = ProbeSet.from_batches(data)
    shapes = sorted(tuple(batch[0].shape) for batch, _ in probe.batches())
    assert shapes == [(4, 3), (4, 3), (4, 5)]
    assert sorted(probe.index) == list(range(12))


def test_many_shapes_do_not_hold_more_than_the_bound():
    sampler = ProbeSampler(max_bytes=4 * 2000)
    for length in range(1, 200):
        sampler.add((torch.zeros(3, length),))
        assert sampler._draw.n_bytes <= 8000
        assert len(sampler._rooms.of) <= sampler._draw.count
        assert sum(4 * room.leaves[0].numel() for room in sampler._rooms.of.values()) <= 2 * 8000
    probe = sampler.close()
    assert sum(batch[0].numel() for batch, _ in probe.batches()) <= 2000


def test_a_list_per_batch_is_no_column():
    """Also where it happens to be as long as the room in which samples are kept."""
    names = [f"class {number}" for number in range(16)]
    data = [
        {"x": torch.arange(8.0) + 8 * start, "files": [f"{start} {i}" for i in range(8)], "names": names}
        for start in range(4)
    ]
    probe = ProbeSet.from_batches(data, max_samples=13)
    for batch, index in probe.batches(5):
        assert batch["names"] == names
        assert batch["x"].tolist() == index.tolist()
        assert batch["files"] == [f"{number // 8} {number % 8}" for number in index]


def test_mappings_of_the_users_own_kind_keep_it():
    class Encoding(UserDict):
        def __getattr__(self, name):
            return self.data[name]

    data = [Encoding(x=torch.arange(4.0), y=torch.arange(4)) for _ in range(3)]
    for batch, _ in ProbeSet.from_batches(data).batches():
        assert isinstance(batch, Encoding)
        assert batch.x.tolist() == batch["y"].tolist()


def test_several_processes_hold_together_what_one_would():
    whole = ProbeSet.from_batches(stream(200), max_samples=50)
    world = 3
    shares = [None] * world

    def process(rank, gather):
        sampler = ProbeSampler(max_samples=50)
        mine = torch.arange(rank, 200, world)
        # the last process repeats a sample, as a distributed sampler does to pad
        index = mine.numpy().copy()
        if rank == 2:
            mine, index = torch.cat([mine, torch.tensor([0])]), np.append(index, -1)
        sampler.add((mine[:, None].float(), mine), index)
        shares[rank] = sampler.close(Processes(gather))

    in_lockstep(world, process)
    assert sorted(np.concatenate([share.index for share in shares])) == sorted(whole.index)
    assert {share.seen for share in shares} == {200}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"max_samples": 0}, "max_samples must be at least 1, got 0"),
        ({"max_bytes": -5}, "max_bytes must be at least 1, got -5"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be from 0 to 4294967295, got 4294967296"),
        ({"seed": 0.5}, r"seed must be an integer from 0 to 4294967295, got 0\.5"),
        ({"seed": True}, "seed must be an integer from 0 to 4294967295, got True"),
        ({"max_samples": 10.5}, r"max_samples must be an integer at least 1, got 10\.5"),
        ({"max_samples": 20.0}, r"max_samples must be an integer at least 1, got 20\.0"),
        ({"max_samples": True}, "max_samples must be an integer at least 1, got True"),
        ({"max_bytes": "1GB"}, "max_bytes must be an integer at least 1, got '1GB'"),
        ({"stratify": 3}, r"stratify must be True, False or a callable \(batch\) -> one value per sample, got 3"),
        ({"stratify": list}, "stratify must be .*, got <class 'list'>"),
        ({"classes": 3}, "classes must be a list of class numbers, got 3"),
        ({"classes": "12"}, "classes must be a list of class numbers, got '12'"),
        ({"classes": [1, 0.5]}, r"each of classes must be an integer, got 0\.5"),
        ({"max_bytes": 8}, "one sample takes 16 bytes, more than max_bytes=8; raise max_bytes"),
    ],
)
def test_bounds_that_cannot_hold(options, phrase):
    with pytest.raises(InvalidArgument, match=phrase):
        ProbeSet.from_batches(stream(20), **options)


@pytest.mark.usefixtures("unchecked")
def test_bounds_may_be_integers_of_numpy():
    options = {"max_samples": np.int32(7), "max_bytes": np.int64(10**6), "seed": np.uint8(3)}
    probe = ProbeSet.from_batches(stream(20), **options, classes=np.arange(10))
    same = ProbeSet.from_batches(stream(20), max_samples=7, seed=3, classes=range(10))
    assert probe.index.tolist() == same.index.tolist()
    assert type(ProbeSampler(**options).seed) is int


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("batch_size", [0, 2.0, True])
def test_batch_sizes_that_cannot_be(batch_size):
    probe = ProbeSet.from_batches(stream(20))
    with pytest.raises(InvalidArgument, match="batch_size must be"):
        next(probe.batches(batch_size))
    with pytest.raises(InvalidArgument, match="batch_size must be"):
        probe.count_batches(batch_size)


def test_one_sample_that_is_too_large_among_others():
    data = [(torch.zeros(1, 10),)] * 5 + [(torch.zeros(1, 1000),)]
    with pytest.raises(ValueError, match="one sample takes 4000 bytes, more than max_bytes=400"):
        ProbeSet.from_batches(data, max_bytes=400)


@pytest.mark.parametrize("how", ["dataclasses", "graphs"])
def test_bytes_in_objects_count(how):
    make = HOW[how][0]
    data = [make(torch.zeros(16, 6), torch.zeros(16).long()) for _ in range(3)]
    assert len(ProbeSet.from_batches(data, max_bytes=24 * 20)) == 20
    with pytest.raises(InvalidArgument, match="one sample takes 24 bytes, more than max_bytes=23"):
        ProbeSet.from_batches(data, max_bytes=23)


@pytest.mark.parametrize("how", ["pairs", "named", "dataclasses", "graphs"])
def test_nothing_is_kept_of_a_batch_but_its_samples(how):
    x = torch.randn(16, 6)
    batch = HOW[how][0](x, torch.zeros(16).long())
    memory = weakref.ref((batch.x if how == "graphs" else x).untyped_storage())
    sampler = ProbeSampler(4)
    sampler.add(batch)
    del batch, x
    gc.collect()
    assert memory() is None


def test_memory_is_given_back_at_once():
    sampler = ProbeSampler()
    sampler.add(stream(10)[0])
    rooms = weakref.ref(sampler._rooms)
    gc.disable()
    try:
        del sampler
        assert rooms() is None
    finally:
        gc.enable()


def test_an_empty_stream():
    with pytest.raises(ValueError, match="the stream of batches was empty"):
        ProbeSet.from_batches([])


def labelled(labels, size=16):
    y = torch.tensor(labels)
    x = torch.arange(len(y)).float()[:, None]
    return list(zip(x.split(size), y.split(size), strict=True))


UNEVEN = [0] * 300 + [1] * 40 + [2] * 7
SHUFFLED = np.random.default_rng(0).permutation(UNEVEN).tolist()


def drawn_labels(probe, labels):
    return np.bincount(np.array(labels)[probe.index], minlength=3).tolist()


def test_a_stratified_probe_holds_as_many_of_each_label_as_there_are():
    probe = ProbeSet.from_batches(labelled(SHUFFLED), max_samples=60, stratify=True)
    assert drawn_labels(probe, SHUFFLED) == [27, 26, 7] or drawn_labels(probe, SHUFFLED) == [26, 27, 7]
    assert drawn_labels(ProbeSet.from_batches(labelled(SHUFFLED), max_samples=60), SHUFFLED)[0] > 45
    everything = ProbeSet.from_batches(labelled(SHUFFLED), max_samples=1000, stratify=True)
    assert drawn_labels(everything, SHUFFLED) == [300, 40, 7]


@pytest.mark.parametrize("order", ["shuffled", "sorted", "reversed"])
def test_a_stratified_probe_is_the_smallest_keys_of_each_label(order):
    labels = {"shuffled": SHUFFLED, "sorted": UNEVEN, "reversed": UNEVEN[::-1]}[order]
    probe = ProbeSet.from_batches(labelled(labels), max_samples=60, seed=3, stratify=True)
    keys, chosen = sample_keys(np.arange(len(labels)), 3), []
    for label in range(3):
        member = np.flatnonzero(np.array(labels) == label)
        chosen += [(rank, keys[number], number) for rank, number in enumerate(member[np.argsort(keys[member])])]
    assert sorted(probe.index.tolist()) == sorted(int(number) for _, _, number in sorted(chosen)[:60])


def test_a_stratified_probe_by_a_callable_and_within_bytes():
    parity = lambda batch: [str(int(value) % 2) for value in batch[0][:, 0]]  # noqa: E731
    probe = ProbeSet.from_batches(labelled(SHUFFLED), max_samples=20, stratify=parity)
    assert np.bincount(probe.index % 2).tolist() == [10, 10]
    few = ProbeSet.from_batches(labelled(SHUFFLED), max_bytes=12 * 9, stratify=True)
    assert drawn_labels(few, SHUFFLED) == [3, 3, 3]


def test_strata_of_several_processes():
    shares = [None] * 3

    def process(rank, gather):
        sampler = ProbeSampler(max_samples=60, stratify=True)
        mine = np.arange(rank, len(SHUFFLED), 3)
        y = torch.tensor(SHUFFLED)[mine]
        sampler.add((y[:, None].float(), y), mine)
        shares[rank] = sampler.close(Processes(gather))

    in_lockstep(3, process)
    found = np.concatenate([share.index for share in shares])
    assert len(found) == 60
    counts = np.bincount(np.array(SHUFFLED)[found]).tolist()
    assert counts[2] == 7
    assert min(counts[:2]) >= 26


def test_only_some_classes_are_drawn():
    probe = ProbeSet.from_batches(labelled(SHUFFLED), max_samples=30, classes=[1, 2])
    assert drawn_labels(probe, SHUFFLED)[0] == 0
    assert len(probe) == 30
    with pytest.raises(ValueError, match=r"no sample has a label among classes=\[5\]"):
        ProbeSet.from_batches(labelled(SHUFFLED), classes=[5])


def test_samples_by_their_numbers():
    stream = labelled(SHUFFLED)
    probe = ProbeSet.from_batches(stream, max_samples=60, seed=3, stratify=True)
    again = ProbeSet.of_samples(stream, probe.index, seed=3)
    np.testing.assert_array_equal(again.index, probe.index)
    np.testing.assert_array_equal(again.fingerprint, probe.fingerprint)


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        (
            {"stratify": True},
            (torch.zeros(3, 1),),
            r"stratify=True needs class labels.*'labels'.*one-hot labels, pass a callable",
        ),
        (
            {"stratify": lambda batch: [1]},
            (torch.zeros(3, 1),),
            "one integer or string for each of the 3 samples",
        ),
        (
            {"stratify": lambda batch: batch["label"]},
            (torch.zeros(3, 1),),
            "the stratify callable failed with TypeError: tuple indices",
        ),
    ],
)
def test_strata_that_cannot_be_made(options, batch, message):
    with pytest.raises(InvalidArgument, match=message):
        ProbeSet.from_batches([batch], **options)


class Shifted(nn.Module):
    """Shifts its inputs, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        self.in_place = in_place

    def shift(self, x):
        return x.sub_(1).mul_(2) if self.in_place else (x - 1) * 2

    def forward(self, x):
        return self.body(self.shift(x))


@dataclasses.dataclass
class Item:
    x: torch.Tensor
    label: int


class Node(Item):
    """As a graph of PyTorch Geometric's: `to` copies only where it must."""

    def to(self, device):
        return Node(self.x.to(device), self.label)

    def clone(self):
        return Node(self.x.clone(), self.label)


class Nodes:
    """As a batch of PyTorch Geometric's: its graphs are views of its memory."""

    def __init__(self, nodes):
        self.x, self.labels = torch.cat([node.x for node in nodes]), [node.label for node in nodes]

    def to_data_list(self):
        return [Node(row, label) for row, label in zip(self.x.split(1), self.labels, strict=True)]

    @classmethod
    def from_data_list(cls, nodes):
        return cls(nodes)


HOW = {
    "pairs": (lambda x, y: (x, y), None),
    "named": (lambda x, y: {"x": x, "label": y}, None),
    "arrays": (
        lambda x, y: [x.numpy(), y.numpy()],
        lambda model, batch: (model(torch.from_numpy(batch[0])), torch.from_numpy(batch[1])),  # shares memory
    ),
    "dataclasses": (
        lambda x, y: [Item(row, label) for row, label in zip(x, y.tolist(), strict=True)],
        lambda model, batch: (
            model.body(torch.stack([model.shift(item.x) for item in batch])),
            torch.tensor([item.label for item in batch]),
        ),
    ),
    "graphs": (
        lambda x, y: Nodes([Node(row[None], label) for row, label in zip(x, y.tolist(), strict=True)]),
        lambda model, batch: (model(batch.x), torch.tensor(batch.labels)),
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("how", "baseline"), [*((how, "mean") for how in HOW), ("pairs", "resample")])
def test_models_that_work_in_place_on_their_inputs_get_the_right_samples_in_every_pass(how, baseline):
    make, forward_fn = HOW[how]
    x, y = torch.randn(32, 6), torch.arange(32) % 3
    found = []
    for in_place in (False, True):
        probe = ProbeSet.from_batches([make(x[:16].clone(), y[:16]), make(x[16:].clone(), y[16:])], max_samples=30)
        before = [fingerprint(batch) for batch, _ in probe.batches()]
        model = Shifted(in_place)
        results = neuron_importance(
            model, probe, layers="body.3", clusters=KMeansClusters(2), baseline=baseline, forward_fn=forward_fn,
            attribution=["gradient_x_activation", "integrated_gradients", "leave_one_out"],
        )  # fmt: skip
        settings = AblationFaithfulness()
        found.append(ablation_faithfulness(model, probe, results, settings, forward_fn=forward_fn))
        assert [fingerprint(batch) for batch, _ in probe.batches()] == before
    for expected, importance in zip(found[0].importances, found[1].importances, strict=True):
        np.testing.assert_array_equal(importance.mean, expected.mean)
        np.testing.assert_array_equal(importance.faithfulness.gap, expected.faithfulness.gap)


def test_the_batch_that_sites_are_listed_with_stays_as_it_is():
    x = torch.randn(4, 6)
    before = x.clone()
    list_sites(Shifted(True), (x, torch.arange(4) % 3))
    assert torch.equal(x, before)


def test_a_step_that_works_in_place_does_not_change_samples_that_are_kept():
    for make, _ in HOW.values():
        x, y = torch.randn(16, 6), torch.arange(16) % 3
        sampler = ProbeSampler(10)
        batch = make(x, y)
        sampler.add(batch)
        before = [fingerprint(one) for one, _ in sampler.close().batches()]
        x.zero_()
        if isinstance(batch, Nodes):
            batch.x.zero_()
        assert [fingerprint(one) for one, _ in sampler.close().batches()] == before
