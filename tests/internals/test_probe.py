from collections import UserDict

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2
from torch.utils.data import DataLoader, IterableDataset

from lightning_neuroimp import ProbeSet
from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.batches.probe import ProbeSampler
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
        assert sampler._bytes <= 1600
        assert sampler._count <= 100
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
        assert sampler._bytes <= 8000
        assert len(sampler._blocks) <= sampler._count
        assert sum(4 * block.rows[0].numel() for block in sampler._blocks.values()) <= 2 * 8000
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
        shares[rank] = sampler.close(gather)

    in_lockstep(world, process)
    assert sorted(np.concatenate([share.index for share in shares])) == sorted(whole.index)
    assert {share.seen for share in shares} == {200}


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"max_samples": 0}, "max_samples must be at least 1, got 0"),
        ({"max_bytes": -5}, "max_bytes must be at least 1, got -5"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*32 - 1, got -1"),
        ({"max_bytes": 8}, "one sample takes 16 bytes, more than max_bytes=8; raise max_bytes"),
    ],
)
def test_bounds_that_cannot_hold(options, phrase):
    with pytest.raises(ValueError, match=phrase):
        ProbeSet.from_batches(stream(20), **options)


def test_one_sample_that_is_too_large_among_others():
    data = [(torch.zeros(1, 10),)] * 5 + [(torch.zeros(1, 1000),)]
    with pytest.raises(ValueError, match="one sample takes 4000 bytes, more than max_bytes=400"):
        ProbeSet.from_batches(data, max_bytes=400)


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
        shares[rank] = sampler.close(gather)

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
    ],
)
def test_strata_that_cannot_be_made(options, batch, message):
    with pytest.raises(ValueError, match=message):
        ProbeSet.from_batches([batch], **options)
