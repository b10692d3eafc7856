"""undisturbed() in several threads at once: whoever leaves last, everything is as it was before the first."""

import copy
import itertools
import random
import threading
import time
from contextlib import ExitStack, suppress

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import undisturbed
from lightning_neuroimp.capture import isolation

pytestmark = pytest.mark.usefixtures("unchecked")  # the type checker draws from Python's random generator


class Counting(nn.Module):
    """Has state of many kinds, all of which a forward pass changes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.calls, self.seen, self.generator = 0, [], torch.Generator().manual_seed(0)
        self.register_buffer("total", torch.zeros(2))
        self.state = [torch.zeros(2), {}]

    def forward(self, x):
        self.calls += 1
        self.seen.append(self.calls)
        self.total += torch.rand(2, generator=self.generator)
        self.state[0].add_(1)
        self.state[1][self.calls] = x
        self.latest = x
        return self.layer(x) + self.total


class Failure(Exception):
    pass


def process_state():
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch._dynamo.eval_frame._stance.stance,
        random.getstate(),
        repr(np.random.get_state()),
        torch.get_rng_state().tolist(),
    )


def model_state(model):
    attributes = {name: value for name, value in vars(model).items() if name not in vars(nn.Module())}
    return (
        [module.training for module in model.modules()],
        {name: buffer.tolist() for name, buffer in model.named_buffers()},
        sorted(attributes),
        [id(value) for value in attributes.values()],
        repr([getattr(model, name, None) for name in ("calls", "seen", "state")]),
        model.generator.get_state().tolist() if hasattr(model, "generator") else None,
    )


def disturb(model):
    """Draw from all random generators, and run the model."""
    random.random(), np.random.rand(), torch.rand(1)
    with torch.no_grad():
        model(torch.ones(1, 2))


class Visitor(threading.Thread):
    """Enters undisturbed(model) and leaves it when it is told to, with an exception or without."""

    def __init__(self, model, fails=False):
        super().__init__(daemon=True)
        self.model, self.fails, self.inside, self.error = model, fails, False, None
        self.told, self.done = threading.Event(), threading.Event()
        self.start()

    def run(self):
        try:
            self.wait()
            with suppress(Failure), undisturbed(self.model):
                disturb(self.model)
                self.inside = True
                self.done.set()
                self.wait()
                disturb(self.model)
                self.inside = False
                if self.fails:
                    raise Failure
        except BaseException as error:
            self.error = error
        self.done.set()

    def wait(self):
        assert self.told.wait(30)
        self.told.clear()

    def step(self):
        self.told.set()
        assert self.done.wait(30)
        self.done.clear()
        assert self.error is None, self.error


def interleavings(count):
    """List all orders in which visitors enter and leave: each number once to enter, once to leave."""
    return sorted(set(itertools.permutations([*range(count)] * 2)))


def visit(order, visitors):
    """Let visitors enter and leave; what each needs must hold for as long as it is inside."""
    for number in order:
        visitors[number].step()
        if inside := [visitor for visitor in visitors if visitor.inside]:
            assert process_state()[:2] == (False, "force_eager")
        for visitor in inside:
            assert not any(module.training for module in visitor.model.modules())
    assert not isolation._INSIDE


def models(shared, count):
    whole = Counting()
    return {
        "nothing": lambda: [Counting() for _ in range(count)],
        "the model": lambda: [whole] * count,
        "a layer": lambda: [whole, *[whole.layer] * (count - 1)],
        "the model of a layer": lambda: [whole.layer, *[whole] * (count - 1)],
    }[shared]()


SHARED = ["nothing", "the model", "a layer", "the model of a layer"]


@pytest.mark.parametrize("fails", [None, 0, 1])
@pytest.mark.parametrize("shared", SHARED)
def test_two_threads_in_any_order(shared, fails):
    orders = interleavings(2)
    assert len(orders) == 6
    for order in orders:
        found = models(shared, 2)
        before = [process_state(), *map(model_state, found)]
        visit(order, [Visitor(model, number == fails) for number, model in enumerate(found)])
        assert [process_state(), *map(model_state, found)] == before, order


@pytest.mark.parametrize("shared", SHARED)
def test_three_threads_in_any_order(shared):
    orders = interleavings(3)
    assert len(orders) == 90
    for order in orders:
        found = models(shared, 3)
        before = [process_state(), *map(model_state, found)]
        visit(order, [Visitor(model, number == 1) for number, model in enumerate(found)])
        assert [process_state(), *map(model_state, found)] == before, order


def test_what_was_set_before_is_set_again():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("eager_on_recompile"):
            for order in interleavings(2):
                found = models("nothing", 2)
                before = process_state()
                visit(order, [Visitor(model) for model in found])
                assert process_state() == before, order
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("other", ["nobody", "entered before", "enters in between", "leaves in between"])
def test_each_level_of_one_thread_is_put_back(other):
    model, visitor = Counting(), Visitor(Counting())
    before = process_state(), model_state(model)
    if other in ("entered before", "leaves in between"):
        visitor.step()
    with undisturbed(model):
        disturb(model)
        if other == "enters in between":
            visitor.step()
        inner = copy.deepcopy(model)
        levels = [(process_state(), model_state(model), model_state(inner))]
        with undisturbed(inner):
            disturb(inner)
            with undisturbed(model):
                disturb(model)
            disturb(inner)
        levels.append((process_state(), model_state(model), model_state(inner)))
        assert levels[0] == levels[1]
        if other == "leaves in between":
            visitor.step()
        disturb(model)
    if other in ("entered before", "enters in between"):
        visitor.step()
    assert (process_state(), model_state(model)) == before


@pytest.mark.parametrize("shared", SHARED)
def test_one_thread_that_leaves_in_the_order_of_entering(shared):
    """As generators do that are advanced in turns."""
    found = models(shared, 2)
    before = [process_state(), *map(model_state, found)]
    stacks = ExitStack(), ExitStack()
    for stack, model in zip(stacks, found, strict=True):
        stack.enter_context(undisturbed(model))
        disturb(model)
    for stack in stacks:
        stack.close()
    assert [process_state(), *map(model_state, found)] == before


class Device:
    """Stands for a CUDA device: whether it is in use, and its random state."""

    def __init__(self, monkeypatch):
        self.used, self.state = True, 10
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: self.used)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [self.state])
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: setattr(self, "state", states[0]))


def test_random_states_of_devices(monkeypatch):
    device = Device(monkeypatch)
    for order in interleavings(2):
        visitors = [Visitor(Counting()) for _ in range(2)]
        for number in order:
            visitors[number].step()
            device.state += any(visitor.inside for visitor in visitors)
        assert device.state == 10, order


@pytest.mark.parametrize("order", [(0, 1, 0, 1), (0, 1, 1, 0)])
def test_a_device_that_is_used_for_the_first_time_while_one_is_inside(order, monkeypatch):
    device = Device(monkeypatch)
    device.used = False
    visitors = [Visitor(Counting()) for _ in range(2)]
    visitors[order[0]].step()
    device.used = True
    visitors[order[1]].step()
    device.state += 1
    visitors[order[2]].step()
    visitors[order[3]].step()
    assert device.state == 10


@pytest.mark.parametrize("how", ["torch.compile(layer)", "layer.compile()"])
def test_compiled_layers_that_threads_share(how):
    model = nn.Sequential(Counting(), nn.Linear(2, 2))
    if how == "layer.compile()":
        model[0].compile(backend="eager")
    else:
        model[0] = torch.compile(model[0], backend="eager")
    name = {"torch.compile(layer)": "forward", "layer.compile()": "_compiled_call_impl"}[how]
    compiled = vars(model[0])[name]
    for order in interleavings(2):
        visitors = [Visitor(model), Visitor(model)]
        for number in order:
            visitors[number].step()
            inside = any(visitor.inside for visitor in visitors)
            assert (vars(model[0])[name] is compiled) == (not inside), order


def test_many_threads():
    shared, own = Counting(), [Counting() for _ in range(8)]
    before = process_state(), model_state(shared), *map(model_state, own)
    errors = []

    def work(seed):
        pauses = random.Random(seed)
        try:
            for _ in range(20):
                with undisturbed(pauses.choice([shared.layer, own[seed]])):
                    assert process_state()[:2] == (False, "force_eager")
                    time.sleep(pauses.random() / 1000)
                    assert process_state()[:2] == (False, "force_eager")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not isolation._INSIDE
    assert (process_state(), model_state(shared), *map(model_state, own)) == before


def test_everything_else_is_put_back_where_one_thing_cannot_be():
    class Stubborn(list):
        def clear(self):
            raise Failure

    model = Counting()
    model.stubborn = Stubborn()
    before = process_state()
    with pytest.raises(Failure), undisturbed(model):
        disturb(model) or model.stubborn.append(1)
    assert process_state() == before
    assert model.training
    assert (model.calls, model.seen, model.total.tolist()) == (0, [], [0, 0])
    assert not isolation._INSIDE


def test_a_model_that_cannot_be_remembered_is_left_as_it_is():
    model = Counting()
    model.broken = Broken()
    before = process_state()
    with pytest.raises(Failure), undisturbed(model):
        pass
    assert (process_state(), model.training) == (before, True)
    assert not isolation._INSIDE


class Broken(random.Random):
    def getstate(self):
        raise Failure
