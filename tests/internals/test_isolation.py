"""undisturbed(): what is put back."""

import random
import warnings
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import neuron_importance, undisturbed


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
    model.register_buffer("behind", torch.zeros(1))

    def counting(module, h):
        module.before += 1
        module.behind += 1
        return h + torch.rand(8)

    model.act = counting
    state = torch.get_rng_state()
    with undisturbed(model), torch.no_grad():
        model(torch.ones(3, 5))
    assert (model.before, model.behind) == (0, 0)
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
    "a generator of torch": (
        lambda m: vars(m).update(g=torch.Generator().manual_seed(0)),
        lambda m, h: h + torch.rand(8, generator=m.g),
    ),
    "a generator of NumPy": (
        lambda m: vars(m).update(g=np.random.default_rng(0)),
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
    """What is kept on a module beside its buffers may be a data set."""
    monkeypatch.setattr("lightning_neuroimp.capture.isolation._LARGE", 16)
    model = Model(lambda module, h: module.data.add_(1) is None or module.small.add_(1) is None or h)
    model.data, model.small = torch.zeros(8), torch.zeros(4)
    run(model)
    assert model.data.eq(1).all()
    assert model.small.eq(0).all()


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
