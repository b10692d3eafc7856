"""The same sample several times in a probe set: copies stay in one half, and a finding counts them."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import AblationFaithfulness, ablation_faithfulness, neuron_importance
from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.batches.probe import ProbeSampler
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.clusters.halves import Halves, deal_by_keys
from tests.support.toys import in_lockstep


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).eval()


def samples(n, seed=1):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(n) % 2


def repeated(n, times):
    x, y = samples(n)
    return [(x.repeat(times, 1), y.repeat(times))]


def finding(results):
    return next((each for each in results.findings if each.id == "copies"), None)


def halves_of_contents(results):
    """Return the halves of each content that comes several times, by plain comparison of fingerprints."""
    found = {}
    for content, half in zip(results.sample_fingerprint.tolist(), results.sample_half.tolist(), strict=True):
        found.setdefault(content, []).append(half)
    return [halves for halves in found.values() if len(halves) > 1]


def dealt_one_by_one(results):
    """Return how many samples have a copy in the other half, if each is dealt by its key, in its stratum, in turns."""
    keys = sample_keys(results.sample_index, results.seed)
    turns, half = {}, {}
    for row in np.argsort(keys, kind="stable").tolist():
        stratum = int(results.sample_cluster[row]), bool(results.sample_correct[row])
        turn = turns.get(stratum, 0 if stratum[1] else 1)
        half[row], turns[stratum] = turn % 2, turn + 1
    contents = results.sample_fingerprint.tolist()
    return sum(
        any(contents[other] == content and half[other] != half[row] for other in half)
        for row, content in enumerate(contents)
    )


@pytest.mark.parametrize(("n", "times"), [(80, 2), (30, 5), (160, 3)])
def test_copies_are_in_one_half(n, times):
    results = neuron_importance(network(), repeated(n, times), layers="1")
    of_contents = halves_of_contents(results)
    assert len(of_contents) == n
    assert all(len(set(halves)) == 1 for halves in of_contents)
    assert 0.4 < results.sample_half.mean() < 0.6
    found = finding(results)
    assert found.figures == {
        "copied": n * times,
        "in_both_halves": dealt_one_by_one(results),
        "distinct": n,
    }
    assert found.figures["in_both_halves"] > n * times / 4
    for phrase in (
        f"{n * times} of {n * times} samples have a copy among the others ({n} are distinct)",
        f"dealt one by one, {int(found.figures['in_both_halves'])} of them would be in both halves",
        "copies are kept in one",
        "gaps are too large",
        "p-values and intervals too small",
    ):
        assert phrase in found.text
    for phrase in ("draw each sample once", "DistributedSampler", "duplicates dropped", "groups="):
        assert phrase in found.remedy
    assert 0.5 < found.weight < 1


def test_samples_of_several_shapes():
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.act, self.head = nn.Sequential(nn.Linear(5, 8), nn.Tanh()), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.act(x).mean(1))

    torch.manual_seed(1)
    long, short = torch.randn(20, 4, 5), torch.randn(20, 3, 5)
    y = torch.arange(20) % 2
    results = neuron_importance(Any(), [(long, y), (short, y), (long, y), (short[:4], y[:4])], layers="act")
    assert finding(results).figures["copied"] == 48
    assert all(len(set(halves)) == 1 for halves in halves_of_contents(results))


def test_without_copies_halves_are_as_ever():
    results = neuron_importance(network(), [samples(200)], layers="1")
    assert finding(results) is None
    half = deal_by_keys(
        results.sample_index, results.sample_cluster, results.sample_correct, np.arange(200), results.seed
    )
    assert (half == results.sample_half).all()
    expected = {}
    for row in np.argsort(sample_keys(results.sample_index, 0), kind="stable").tolist():
        stratum = int(results.sample_cluster[row]), bool(results.sample_correct[row])
        turn = expected.setdefault(stratum, [0 if stratum[1] else 1])
        assert half[row] == turn[0] % 2
        turn[0] += 1


def test_a_copy_does_not_use_up_a_turn():
    halves = Halves().deal(np.zeros(6, int), np.ones(6, bool), np.array([7, 7, 8, 9, 7, 8]))
    assert halves.tolist() == [0, 0, 1, 0, 0, 1]


def test_a_few_copies_among_many_are_not_reported():
    x, y = samples(400)
    results = neuron_importance(network(), [(torch.cat([x, x[:1]]), torch.cat([y, y[:1]]))], layers="1")
    assert finding(results) is None
    assert [len(set(halves)) for halves in halves_of_contents(results)] == [1]


def test_equal_inputs_with_other_labels_are_no_copies():
    x, y = samples(40)
    results = neuron_importance(network(), [(torch.cat([x, x]), torch.cat([y, 1 - y]))], layers="1")
    assert finding(results) is None


def test_groups_that_divide_copies_are_reported():
    batch = (*repeated(40, 2)[0], torch.arange(80))
    model = network()
    results = neuron_importance(
        model,
        [batch],
        layers="1",
        forward_fn=lambda model, batch: (model(batch[0]), batch[1]),
        groups=lambda batch: batch[2],
    )
    assert finding(results) is None  # the third field tells them apart
    results = neuron_importance(
        model, repeated(40, 2), layers="1", groups=lambda batch: torch.arange(len(batch[1])) + 1000 * len(batch[1])
    )
    found = finding(results)
    apart = sum(len(halves) for halves in halves_of_contents(results) if len(set(halves)) > 1)
    assert found.figures["in_both_halves"] == apart > 0
    assert "as groups= divides copies" in found.text


@pytest.mark.parametrize("world", [2, 3])
def test_a_loader_that_is_not_sharded_over_processes(world):
    """Each process draws from the same samples, under numbers of its own."""
    x, y = samples(60)
    found = [None] * world

    def process(rank, gather):
        model = network()
        sampler = ProbeSampler()
        sampler.add((x, y), rank + world * np.arange(60))
        results = neuron_importance(model, sampler.close(Processes(gather)), layers="1", gather=gather)
        found[rank] = results

    in_lockstep(world, process)
    for results in found:
        assert len(results.sample_index) == 60 * world
        assert finding(results).figures["copied"] == 60 * world
        assert all(len(set(halves)) == 1 for halves in halves_of_contents(results))
    assert all((results.sample_half == found[0].sample_half).all() for results in found)


def test_halves_of_copies_do_not_agree_by_themselves():
    """Were one copy of each sample in either half, all scores would be reliable, noise too."""

    def noise(batch):
        return torch.sin(1e4 * batch.activation)

    x, y = samples(24)
    results = neuron_importance(network(), [(x.repeat(2, 1), y.repeat(2))], layers="1", attribution=noise)
    assert (results["1"].reliability.split_half < 0.99).all()
    checked = ablation_faithfulness(network(), repeated(24, 2), results, AblationFaithfulness(n_random=20))
    assert finding(checked).figures == finding(results).figures
