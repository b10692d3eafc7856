"""Forward passes that draw random numbers, also in evaluation mode: all passes of one batch draw the same ones."""

import os
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import AblationFaithfulness, ProbeSet, ablation_faithfulness, neuron_importance
from lightning_neuroimp.batches.structure import copied_to
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.site import Removal, Site

RANDOM = "the forward pass draws random numbers"
CHANGING = "the forward pass gives other outputs each time"


class Noisy(nn.Module):
    """Its last neuron is never read; `noise` comes before the site, or behind it."""

    def __init__(self, noise, behind=True):
        super().__init__()
        torch.manual_seed(0)
        self.site, self.head = nn.Linear(5, 8), nn.Linear(8, 4)
        self.noise, self.behind = noise, behind
        self.generators = [torch.Generator().manual_seed(1), {"numpy": np.random.default_rng(1)}]
        self.own = random.Random(1)
        with torch.no_grad():
            self.head.weight[:, 7] = 0

    def forward(self, x):
        h = self.site(x if self.behind else self.noise(self, x))
        return self.head(self.noise(self, h) if self.behind else h)


def branch(model, h):
    return torch.tanh(h) if random.random() < 0.5 else torch.relu(h)


def rare_order(model, h):
    order = list(range(5))
    random.shuffle(order)
    return h * (1 + order[0])


def numpy_scale(model, h):
    return h * np.random.rand()


def dropout(model, h):
    return nn.functional.dropout(h, 0.3)


def own_torch(model, h):
    return h + torch.rand(h.shape, generator=model.generators[0])


def own_numpy(model, h):
    return h + float(model.generators[1]["numpy"].normal())


def own_python(model, h):
    return h * model.own.uniform(1, 2)


STATEFUL = [branch, rare_order, numpy_scale, dropout, own_torch, own_numpy, own_python]


def from_the_system(model, h):
    return h * (1 + os.urandom(1)[0])


def from_the_clock(model, h):
    return h * (1 + time.perf_counter_ns() % 1009)


def recorder_of(model):
    def forward(batch):
        return model(batch), torch.arange(len(batch)) % 4

    return SuffixRecorder(model, forward, Removal(Site("site"), 1, "zero", np.zeros(8), "margin"))


def plain(model, x, mask, states):
    """Return the logits of a plain pass from given random states, with neurons set to zero by a hook."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    model.own.setstate(states[3])
    model.generators[0].set_state(states[4])
    model.generators[1]["numpy"].bit_generator.state = states[5]
    handle = model.site.register_forward_hook(lambda module, args, out: out.masked_fill(mask, 0.0))
    try:
        return model(copied_to(x, "cpu"))
    finally:
        handle.remove()


def states_of(model):
    return (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
        model.own.getstate(),
        model.generators[0].get_state(),
        model.generators[1]["numpy"].bit_generator.state,
    )


@pytest.mark.parametrize("behind", [True, False], ids=["behind the site", "before it"])
@pytest.mark.parametrize("noise", STATEFUL, ids=lambda noise: noise.__name__)
def test_all_passes_of_a_batch_draw_the_same_numbers(noise, behind):
    for seed in range(6):
        random.seed(seed)
        model = Noisy(noise, behind).eval()
        recorder = recorder_of(model)
        with undisturbed(model), torch.no_grad():
            batch = torch.randn(6, 5)
            before = states_of(model)
            with pytest.warns(UserWarning, match=RANDOM) as caught:
                suffix = recorder.record(batch)
            assert recorder.draws_random
            assert "gives the same" not in str(caught[0].message)
            assert "all passes of a batch draw the same ones" in str(caught[0].message)
            unread = torch.arange(8)[None] == 7
            assert torch.equal(suffix.ablated(unread)[0], suffix.logits)
            for number in range(3):
                mask = torch.rand(1, 8, generator=torch.Generator().manual_seed(number)) < 0.5
                found = suffix.ablated(mask)[0]
                torch.testing.assert_close(found, plain(model, batch, mask, before))
                after = states_of(model)
                torch.testing.assert_close(suffix.ablated(mask)[0], found, rtol=0, atol=0)
                assert random.getstate() == after[0]


def test_another_batch_draws_other_numbers():
    model = Noisy(dropout).eval()
    recorder, batch = recorder_of(model), torch.randn(6, 5)
    with undisturbed(model), torch.no_grad():
        with pytest.warns(UserWarning, match=RANDOM):
            first = recorder.record(batch)
        first.ablated(torch.arange(8)[None] < 3)
        second = recorder.record(batch)
        assert not torch.equal(first.logits, second.logits)


def test_a_recording_can_begin_from_given_states():
    model = Noisy(dropout).eval()
    recorder, batch = recorder_of(model), torch.randn(6, 5)
    with undisturbed(model), torch.no_grad():
        states = recorder.random.states()
        expected = model(batch)
        torch.rand(7)
        with pytest.warns(UserWarning, match=RANDOM):
            suffix = recorder.record(batch, states=states)
        assert torch.equal(suffix.logits, expected)


@pytest.mark.parametrize("noise", [from_the_system, from_the_clock], ids=lambda noise: noise.__name__)
def test_what_no_state_can_repeat_is_noticed(noise):
    model = Noisy(noise).eval()
    recorder = recorder_of(model)
    with undisturbed(model), torch.no_grad():
        with pytest.warns(UserWarning, match=CHANGING) as caught:
            recorder.record(torch.randn(6, 5))
        assert recorder.draws_random
        assert "gives the same" not in str(caught[0].message)


def watched(model, h):
    """Look at a random item, as a type checker does."""
    assert h[random.randrange(len(h))].ndim == 1
    return torch.tanh(h)


def test_numbers_that_change_nothing_do_not_slow_ablations_down():
    model, forwards = Noisy(watched).eval(), []
    model.register_forward_hook(lambda *args: forwards.append(None))
    recorder = recorder_of(model)
    with undisturbed(model), torch.no_grad():
        for _ in range(20):
            suffix = recorder.record(torch.randn(6, 5))
        assert recorder.reason is None
        assert not recorder.draws_random
        assert len(forwards) <= 20 + 1 + 12  # the recordings, the trial of the tape, those of Python's numbers
        forwards.clear()
        suffix.ablated(torch.arange(8)[None] < 3)
        assert not forwards


def test_a_model_that_draws_nothing_is_left_alone():
    model, forwards = Noisy(lambda model, h: torch.tanh(h)).eval(), []
    model.register_forward_hook(lambda *args: forwards.append(None))
    recorder = recorder_of(model)
    with undisturbed(model), torch.no_grad():
        recorder.record(torch.randn(6, 5))
    assert (len(forwards), recorder.draws_random) == (2, False)


@pytest.mark.filterwarnings(f"ignore:.*{RANDOM}")
@pytest.mark.parametrize("noise", [dropout, branch, numpy_scale, own_torch], ids=lambda noise: noise.__name__)
def test_a_neuron_that_is_never_read_has_no_effect(noise):
    """Today's twin drew anew for each pass: noise of .08 of .26."""
    model = Noisy(noise).eval()
    probe = ProbeSet.from_batches([(torch.randn(80, 5), torch.arange(80) % 2)])
    results = neuron_importance(model, probe, layers="site", attribution=["leave_one_out", "activation"])
    assert not results["site", "leave_one_out"].mean[:, 7].any()
    assert results["site", "leave_one_out"].mean[:, :7].all()
    checked = ablation_faithfulness(model, probe, results, AblationFaithfulness(n_random=20))
    assert checked["site"].faithfulness is not None


@pytest.mark.filterwarnings(f"ignore:.*{RANDOM}")
def test_random_states_are_put_back_afterwards():
    model = Noisy(branch).eval()
    probe = ProbeSet.from_batches([(torch.randn(40, 5), torch.arange(40) % 2)])
    before = states_of(model)
    neuron_importance(model, probe, layers="site", attribution="leave_one_out")
    after = states_of(model)
    assert random.getstate() == before[0] == after[0]
    assert torch.equal(before[2], after[2])
    assert np.array_equal(before[1][1], after[1][1])
    assert torch.equal(before[4], after[4])
    assert before[5] == after[5]


def test_draws_behind_the_site_are_noticed_where_each_pass_begins_anew():
    """As where the caller puts random states back before each pass: those at the ends of two passes are the same."""
    model, batch = Noisy(dropout).eval(), torch.randn(6, 5)
    start = torch.get_rng_state()

    def forward(batch):
        torch.set_rng_state(start)
        return model(batch), torch.arange(len(batch)) % 4

    recorder = SuffixRecorder(model, forward, Removal(Site("site"), 1, "zero", np.zeros(8), "margin"))
    with undisturbed(model), torch.no_grad():
        forward(batch)
        with pytest.warns(UserWarning, match=RANDOM):
            suffix = recorder.record(batch)
        assert recorder.draws_random
        assert torch.equal(suffix.ablated(torch.arange(8)[None] == 7)[0], suffix.logits)
