"""undisturbed(): what is put back, and what is left alone because putting back half of it would do harm."""

import warnings

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


def test_tensors_that_go_with_other_changes_are_left_alone():
    def counting(module, h):
        module.seen.append(1)
        module.n += 1
        module.last = h
        return h

    model = Model(counting)
    model.seen, model.n, model.last = [], 0, None
    run(model)
    assert (len(model.seen), model.n) == (1, 1)
    assert model.last is not None

    def lazy(module, h):
        if not module.built:
            module.table, module.built = torch.ones(8), True
            module.extra = nn.Linear(8, 8)
        return module.extra(h * module.table)

    model = Model(lazy)
    model.built, model.table = False, None
    run(model)
    model(torch.randn(3, 5))
    assert model.built
    assert model.table is not None


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
