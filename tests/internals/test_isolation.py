"""undisturbed(): what is put back."""

import random
import sys
import warnings
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import neuron_importance, undisturbed
from lightning_neuroimp.capture.module_state import module_state


class Model(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.site, self.head, self.act = nn.Linear(5, 8), nn.Linear(8, 4), forward

    def forward(self, x):
        return self.head(self.act(self, self.site(x)))


def run(model):
    with undisturbed(model), torch.no_grad():
        model(torch.randn(3, 5))


BUFFERS = {
    "sparse": lambda: torch.eye(8).to_sparse(),
    "sparse rows": lambda: torch.eye(8).to_sparse_csr(),
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
    "NaN": lambda: torch.tensor([torch.nan, 1.0]),
    "transposed": lambda: torch.zeros(2, 3).T,
    "expanded": lambda: torch.zeros(1, 3).expand(4, 3),
    "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    "bool": lambda: torch.zeros(2, dtype=torch.bool),
    "meta": lambda: torch.zeros(2, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
    "lazy": lambda: torch.nn.parameter.UninitializedBuffer(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_of_all_kinds(kind):
    buffer = BUFFERS[kind]()
    model = Model(lambda module, h: h)
    model.register_buffer("before", torch.zeros(1))
    model.register_buffer("odd", buffer)
    model.register_buffer("after", torch.zeros(1))

    def counting(module, h):
        module.before += 1
        module.after += 1
        return h + torch.rand(8)

    model.act = counting
    state = torch.get_rng_state()
    with undisturbed(model), torch.no_grad():
        model(torch.ones(3, 5))
    assert (model.before, model.after) == (0, 0)
    assert model.odd is buffer
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sparse_adjacency():
    model = Model(lambda module, h: torch.sparse.mm(module.adjacency, h.T).T)
    model.register_buffer("adjacency", torch.eye(8).to_sparse())
    batches = [(torch.randn(40, 5), torch.arange(40) % 4)]
    found = neuron_importance(model, batches, layers="site", attribution=["gradient_x_activation", "leave_one_out"])
    assert found["site"].mean.shape == (4, 8)


def test_hidden_states_and_stashed_features_are_put_back():
    def act(module, h):
        module.hidden = (h, [h])
        module.fresh = h
        return h

    model = Model(act)
    model.hidden = hidden = (torch.zeros(1), None)
    run(model)
    assert model.hidden is hidden
    assert not hasattr(model, "fresh")


class Metric(nn.Module):
    """As torchmetrics keep their state."""

    def __init__(self):
        super().__init__()
        self.total, self.n, self.kept = torch.zeros(()), 0, []


STATEFUL = {
    "a counter": (lambda m: vars(m).update(n=0), lambda m, h: vars(m).update(n=m.n + 1) or h * (1 + 0.1 * m.n)),
    "a deque": (lambda m: vars(m).update(q=deque(maxlen=2)), lambda m, h: m.q.append(h.mean()) or h + sum(m.q)),
    "a list": (lambda m: vars(m).update(q=[[]]), lambda m, h: m.q[0].append(1) or h + len(m.q[0])),
    "a cache": (lambda m: vars(m).update(c={}), lambda m, h: h + m.c.setdefault(len(m.c), torch.ones(8) * len(m.c))),
    "a set": (lambda m: vars(m).update(c=set()), lambda m, h: m.c.add(len(m.c)) or h + len(m.c)),
    "a tensor in place": (lambda m: vars(m).update(e=torch.zeros(8)), lambda m, h: h + m.e.add_(1)),
    "an array in place": (
        lambda m: vars(m).update(e=np.zeros(8)),
        lambda m, h: h + torch.tensor(np.add(m.e, 1, out=m.e)).float(),
    ),
    "a tensor and a counter": (
        lambda m: vars(m).update(n=0, e=torch.zeros(8)),
        lambda m, h: vars(m).update(n=m.n + 1, e=m.e + 1) or h + m.e,
    ),
    "a list ten levels down": (
        lambda m: vars(m).update(q=[[[[[[[[[[[]]]]]]]]]]]),
        lambda m, h: m.q[0][0][0][0][0][0][0][0][0][0].append(1) or h + len(m.q[0][0][0][0][0][0][0][0][0][0]),
    ),
    "a list that holds itself": (
        lambda m: vars(m).update(q=(q := [])) or q.append(q),
        lambda m, h: m.q.append(1) or h + len(m.q),
    ),
    "a tuple of tensors in place": (
        lambda m: vars(m).update(state=(torch.zeros(8), (torch.zeros(8),))),
        lambda m, h: h + m.state[0].add_(1) + m.state[1][0].sub_(2),
    ),
    "a list in a tuple": (
        lambda m: vars(m).update(state=([], None)),
        lambda m, h: m.state[0].append(1) or h + len(m.state[0]),
    ),
    "the order of a dictionary": (
        lambda m: vars(m).update(c=OrderedDict(a=1.0, b=2.0)),
        lambda m, h: m.c.move_to_end(next(iter(m.c))) or h + next(iter(m.c.values())),
    ),
    "a default dictionary": (
        lambda m: vars(m).update(c=defaultdict(int)),
        lambda m, h: m.c.update({len(h): m.c[len(h)] + 1}) or h + m.c[len(h)],
    ),
    "a dictionary that counts": (
        lambda m: vars(m).update(c=Counter(a=3)),
        lambda m, h: m.c.update("ab") or h + m.c["a"] + 10 * m.c["b"],
    ),
    "an array of objects": (
        lambda m: vars(m).update(e=np.array([1.0, None], dtype=object)),
        lambda m, h: m.e.put(0, m.e[0] + 1) or h + m.e[0],
    ),
    "a counter with hook in its name": (
        lambda m: vars(m).update(webhook_calls=0),
        lambda m, h: vars(m).update(webhook_calls=m.webhook_calls + 1) or h + m.webhook_calls,
    ),
    "a list with hook in its name": (
        lambda m: vars(m).update(_hook_outputs=[]),
        lambda m, h: m._hook_outputs.append(h) or h + len(m._hook_outputs),
    ),
    "an attribute with hook in its name, made late": (
        lambda m: None,
        lambda m, h: h + vars(m).setdefault(f"hooked_{len(h)}", 1),
    ),
    "a generator of torch": (
        lambda m: vars(m).update(g=torch.Generator().manual_seed(0)),
        lambda m, h: h + torch.rand(8, generator=m.g),
    ),
    "a generator of NumPy": (
        lambda m: vars(m).update(g=np.random.default_rng(0)),
        lambda m, h: h + torch.tensor(m.g.random(8)).float(),
    ),
    "a random state of NumPy": (
        lambda m: vars(m).update(g=np.random.RandomState(0)),
        lambda m, h: h + torch.tensor(m.g.random(8)).float(),
    ),
    "a generator of Python": (lambda m: vars(m).update(g=random.Random(0)), lambda m, h: h + m.g.random()),
    "a metric": (
        lambda m: setattr(m, "metric", Metric()),
        lambda m, h: (
            vars(m.metric).update(total=m.metric.total + 1, n=m.metric.n + 1)
            or m.metric.kept.append(h)
            or h + m.metric.total * m.metric.n + len(m.metric.kept)
        ),
    ),
    "a buffer that was none": (
        lambda m: m.register_buffer("c", None),
        lambda m, h: h + (m.c if m.c is not None else setattr(m, "c", torch.ones(8)) or 0),
    ),
    "a buffer for each length": (
        lambda m: None,
        lambda m, h: hasattr(m, f"mask{len(h)}") or m.register_buffer(f"mask{len(h)}", torch.ones(8)) or h,
    ),
    "a layer made late": (
        lambda m: vars(m).update(built=False),
        lambda m, h: h if m.built else setattr(m, "extra", nn.Linear(8, 8)) or vars(m).update(built=True) or m.extra(h),
    ),
    "an embedding with a norm": (
        lambda m: setattr(m, "e", nn.Embedding(4, 8, max_norm=0.1)),
        lambda m, h: h + m.e(torch.arange(len(h)) % 4),
    ),
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_state_of_all_kinds_is_put_back(kind):
    """A pass in between changes nothing of what the passes after it give."""
    prepare, forward = STATEFUL[kind]
    outcomes = []
    for between in (False, True):
        torch.manual_seed(0)
        model = Model(lambda module, h: h if isinstance(out := forward(module, h), bool) else out)
        prepare(model)
        x = torch.ones(3, 5)
        with torch.no_grad():
            first = model(x)
            if between:
                before = sorted(model.state_dict()), sorted(vars(model))
                run(model)
                with undisturbed(model):
                    model(torch.ones(4, 5))
                assert (sorted(model.state_dict()), sorted(vars(model))) == before
            outcomes.append([first, model(x), model(x), *model.state_dict().values()])
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)


def test_large_data_is_not_copied(monkeypatch):
    """What a module holds in addition to its buffers may be a data set."""
    monkeypatch.setattr("lightning_neuroimp.capture.module_state._MOST_BYTES", 16)
    model = Model(lambda module, h: module.data.add_(1) is None or module.small.add_(1) is None or h)
    model.data, model.small = torch.zeros(8), torch.zeros(4)
    run(model)
    assert model.data.eq(1).all()
    assert model.small.eq(0).all()


def test_containers_of_many_members_are_data(monkeypatch):
    monkeypatch.setattr("lightning_neuroimp.capture.module_state._MOST_MEMBERS", 8)

    def act(module, h):
        for held in (module.few, module.many, module.nested[0], module.nested):
            held.append(1)
        module.held["n"].append(1)
        module.held["data"].append(1)
        return h

    model = Model(act)
    model.few, model.many, model.nested = [0] * 8, [0] * 9, [[0] * 4, [0] * 4]
    model.held = {"n": [], "data": [0] * 9}
    run(model)
    assert (len(model.few), len(model.many)) == (8, 10)
    # the outer list is put back, the ten members in all are too many
    assert (len(model.nested), len(model.nested[0])) == (2, 5)
    assert (len(model.held["n"]), len(model.held["data"])) == (0, 10)


@pytest.mark.parametrize(("bound", "value"), [("_MOST_COPIES", 3), ("_MOST_BYTES_TOGETHER", 3 * 8)])
def test_many_tensors_in_one_container_are_data(bound, value, monkeypatch):
    monkeypatch.setattr(f"lightning_neuroimp.capture.module_state.{bound}", value)

    def act(module, h):
        for held in (module.few, module.many):
            [tensor.add_(1) for tensor in held]
            held.append(h)
        return h

    model = Model(act)
    model.few, model.many = ([torch.zeros(2) for _ in range(count)] for count in (3, 4))
    run(model)
    assert (len(model.few), len(model.many)) == (3, 4)
    assert sum(model.few).eq(0).all()
    assert sum(model.many).eq(4).all()


LONG = {
    "list": lambda count: list(range(count)),
    "deque": lambda count: deque(range(count)),
    "set": lambda count: set(range(count)),
    "dictionary": lambda count: {str(number): number for number in range(count)},
    "strings": lambda count: [str(number) for number in range(count)],
    "tuples": lambda count: [(number, "a", None) for number in range(count)],
    "dictionary of tuples": lambda count: {number: (number, "a", None) for number in range(count)},
    "ten lists": lambda count: [list(range(count // 10)) for _ in range(10)],
    "one tensor": lambda count: [torch.zeros(1)] * count,
    "one list": lambda count: [[]] * count,
}


def calls_to_isolate(value):
    """Count the Python functions that run while a model that holds the value is entered and left."""
    model = nn.Linear(2, 2)
    model.held = value
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        with undisturbed(model):
            pass
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("kind", LONG)
def test_long_containers_take_no_loop_in_python(kind, unchecked):
    calls_to_isolate([])  # the first call imports
    assert abs(calls_to_isolate(LONG[kind](20_000)) - calls_to_isolate(LONG[kind](20))) < 10


def test_what_modules_share_is_looked_at_once(unchecked):
    shared = [[number] for number in range(1000)]

    def holding(count):
        model = nn.Sequential(*[nn.Identity() for _ in range(50)])
        for module in list(model)[:count]:
            module.held = shared
        return model

    once, often = calls_to_isolate(holding(1)), calls_to_isolate(holding(50))
    assert often < once + 2000


def test_parameters_in_lists_are_not_copied():
    """Recurrent layers list their weights."""
    model = nn.LSTM(3, 4)
    assert model._flat_weights
    found = module_state([model])
    assert not any(id(parameter) in found for parameter in model.parameters())


def test_hooks_stay():
    model = Model(lambda module, h: h)
    with undisturbed(model):
        handle = model.site.register_forward_hook(lambda *args: None)
    assert len(model.site._forward_hooks) == 1
    handle.remove()
    assert not model.site._forward_hooks


class Named(nn.Module):
    """Has attributes with names that torch uses for something else."""

    def __init__(self):
        super().__init__()
        self._orig_mod = nn.Linear(8, 8)
        self.dynamo_ctx = self.max_norm = 3.0
        self.forward = self.doubled

    def doubled(self, h):
        return 2 * self._orig_mod(h)


def test_names_that_torch_uses_too():
    model = Model(lambda module, h: module.named(h))
    model.named = Named()
    expected = model(x := torch.ones(3, 5))
    with undisturbed(model), torch.no_grad():
        assert torch.equal(model(x), expected)
    assert model.named.forward == model.named.doubled


def test_a_generator_without_a_state():
    model = Model(lambda module, h: h)
    model.secret = random.SystemRandom()
    run(model)


def test_a_parameter_that_is_written_into_is_told():
    def writing(module, h):
        with torch.no_grad():
            module.head.weight.mul_(0.5)
        return h

    with pytest.warns(
        UserWarning, match="writes into the parameter 'weight' of a Linear: what a measurement wrote there"
    ):
        run(Model(writing))


def test_lazy_and_scripted_modules():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()))
    model = Model(lambda module, h: module.rest(h))
    model.rest = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), frozen).train()
    run(model)
    assert model.rest[0].in_features == 8
    assert model.rest[1].training
    model(torch.randn(3, 5))
    assert isinstance(model.rest[1], nn.BatchNorm1d)


@pytest.mark.parametrize(
    ("lazy", "shape"),
    [(nn.LazyBatchNorm1d(affine=False), (3, 8)), (nn.LazyInstanceNorm1d(track_running_stats=True), (3, 8, 5))],
)
def test_lazy_buffers(lazy, shape):
    """What a layer without lazy parameters becomes, it becomes in all its attributes."""
    with undisturbed(lazy), torch.no_grad():
        lazy(torch.randn(shape))
    assert lazy.num_features == 8
    assert lazy.running_mean.shape == (8,)
    assert lazy.training
    lazy(torch.randn(shape))


def test_a_scripted_embedding_with_a_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.script(nn.Embedding(4, 8, max_norm=0.1))
    before = model.weight.detach().clone()
    with undisturbed(model), torch.no_grad():
        model(torch.arange(4))
    assert torch.equal(model.weight, before)
