"""Compare suffixes with hooks and full passes: bit for bit on float32."""

import copy
import gc
import os
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lightning_neuroimp import Removal, Site, undisturbed
from lightning_neuroimp.capture.removal import remove
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.suffix.tracing import TapeRecorder
from tests.support.zoo import CASES

SITES = [(name, site) for name, case in CASES.items() for site in case.sites]


def build(case):
    torch.manual_seed(0)
    model = case.make().eval()
    args, kwargs = case.inputs()
    classes = torch.arange(6) % 4

    def forward(batch):
        return model(*batch[0], **batch[1]).float(), batch[2]

    return model, forward, (list(args), kwargs, classes)


def removal_at(model, site, forward, batch, baseline=0.3):
    """Return a removal along the axis with the most entries, samples excluded."""
    shape = []
    handle = model.get_submodule(site).register_forward_hook(lambda module, args, out: shape.extend(out.shape))
    with torch.no_grad():
        forward(batch)
    handle.remove()
    axis = 1 if len(shape) in (2, 4) else 2
    return Removal(Site(site), axis, "mean", torch.full((shape[axis],), baseline).double().numpy(), "margin")


def copies(batch):
    return torch.utils._pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, batch)


def hooked(model, forward, batch, removal, mask):
    """The plain way."""
    module = model.get_submodule(removal.site)
    handle = module.register_forward_hook(lambda module, args, out: remove(out, removal, mask))
    try:
        return forward(copies(batch))[0]
    finally:
        handle.remove()


@pytest.mark.parametrize(("name", "site"), SITES)
def test_suffixes_equal_hooked_full_passes_bit_for_bit(name, site):
    model, forward, batch = build(CASES[name])
    with undisturbed(model), torch.no_grad():
        removal = removal_at(model, site, forward, copies(batch))
        recorder = SuffixRecorder(model, forward, removal)
        suffix = recorder.record(batch)
        assert recorder.reason is None
        changed = 0
        for seed in range(4):
            shape = (6 if seed else 1, removal.n_neurons)
            mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
            expected = hooked(model, forward, batch, removal, mask)
            found, _ = suffix.ablated(mask)
            assert torch.equal(found, expected)
            changed += not torch.equal(found, suffix.logits)
        assert changed == 4  # the masks do something
        nothing = torch.zeros(1, removal.n_neurons, dtype=torch.bool)
        assert torch.equal(suffix.logits, hooked(model, forward, batch, removal, nothing))


class Own(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = torch.utils._pytree.tree_map(lambda one: one.inner if isinstance(one, Own) else one, (args, kwargs))
        out = func(*plain[0], **(plain[1] or {}))
        return Own.wrap(out) if isinstance(out, torch.Tensor) else out

    @staticmethod
    def wrap(inner):
        outer = torch.Tensor._make_wrapper_subclass(Own, inner.size(), strides=inner.stride(), dtype=inner.dtype)
        outer.inner = inner
        return outer


def own_kind(h):
    return (Own.wrap(torch.ones(8)) * h).inner


class SiteThen(nn.Module):
    """A function of the site's activations, then a linear layer."""

    def __init__(self, act):
        super().__init__()
        self.site, self.head, self.act = nn.Linear(5, 8), nn.Linear(8, 4), act

    def forward(self, x):
        return self.head(self.act(self.site(x)))


def numpy(h):
    return torch.from_numpy(np.tanh(h.numpy()))


def tolist(h):
    return torch.tensor(h.tolist())


def as_array(h):
    return h + float(np.asarray(h).max())


def copied(h):
    return copy.deepcopy(h)


def branch(h):
    return -h if (h == 0).any() else h


def integers(h):
    return h * (1 + int((h == 0).sum()))


def selected(h):
    return h * h[h > 0].mean() if (h > 0).any() else h


def noise(h):
    return h + 1e-9 * torch.randn(8)


def numpy_noise(h):
    return h + 1e-9 * torch.from_numpy(np.random.rand(8)).float()


def sparse(h):
    return h.to_sparse().to_dense()


def nested(h):
    return torch.nested.to_padded_tensor(torch.nested.nested_tensor([h[0], h[1, :4]]), 0.0)[:1] + h


def listed(h):
    return h + torch.tensor([(h == 0).sum(), 1]).sum()


def listed_anew(h):
    return h + h.new_tensor([(h == 0).sum()])


def split_at(h):
    one, other = torch.tensor_split(h, (1 + (h == 0).any().long())[None], dim=1)
    return h + one.sum() - other.shape[1]


class InAMode(nn.Module):
    """Its site is called inside a mode that ends before the pass does."""

    def __init__(self):
        super().__init__()
        self.site, self.head = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x):
        with torch.device("cpu"):
            h = self.site(x)
        return self.head(torch.tanh(h))


def in_a_mode(h):
    raise AssertionError("its model is InAMode")


def of_higher_order(h):
    return torch.cond(torch.tensor(True), torch.sin, torch.cos, (h,))


def resized(h):
    return h.clone().resize_(3, 8)[:1] + h


def two_types(h):
    memory = torch.zeros(6, 8)
    bits = memory.view(torch.int32)
    memory.copy_(h)
    return (bits + 1).view(torch.float32)


def in_a_thread(h):
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.tanh(h)))
    thread.start()
    thread.join()
    return found[0]


def collective(h):
    h = h.clone()
    torch.distributed.all_reduce(h)
    return h


def gathered_weights(h):
    weight = torch.eye(8)
    torch.distributed.all_reduce(weight)
    return h @ weight


FALLBACKS = {
    numpy: "Python reads values that depend on it .Tensor.numpy.",
    tolist: "Python reads values that depend on it .Tensor.tolist.",
    as_array: "Python reads values that depend on it .Tensor.__array__.",
    copied: "Python reads values that depend on it .Tensor.__deepcopy__.",
    branch: "Python reads values that depend on it .aten::_local_scalar_dense.",
    integers: "Python reads values that depend on it .aten::_local_scalar_dense.",
    selected: "the shape of a result depends on its values .aten::index.",
    noise: "the forward pass draws random numbers",
    numpy_noise: "the forward pass draws random numbers",
    sparse: "results that depend on it are sparse_coo tensors",
    nested: "results that depend on it are nested tensors",
    listed: "Python reads values that depend on it .torch.tensor.",
    listed_anew: "Python reads values that depend on it .Tensor.new_tensor.",
    split_at: "Python reads values that depend on it .torch.tensor_split.",
    in_a_mode: "the forward pass reaches it inside a mode for torch's functions or operations",
    of_higher_order: "an operation of a higher order follows it .cond.",
    resized: "memory changes its size or owner after it .aten::resize_.",
    two_types: "memory is read as of two types after it",
    in_a_thread: "a random ablation by it differs from the same in a full pass",
    gathered_weights: "processes exchange data after it .c10d::allreduce_.",
    collective: "processes exchange data after it .c10d::allreduce_.",
}


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("act", FALLBACKS, ids=lambda act: act.__name__)
def test_what_cannot_be_recorded_runs_in_full_passes_and_says_why(act):
    torch.manual_seed(0)
    model = (InAMode() if act is in_a_mode else SiteThen(act)).eval()
    batch = torch.randn(6, 5)
    forwards = []

    def forward(batch):
        forwards.append(None)
        return model(batch), torch.arange(6) % 4

    removal = Removal(Site("site"), 1, "zero", np.zeros(8), "margin")
    recorder = SuffixRecorder(model, forward, removal)
    with undisturbed(model), torch.no_grad():
        given = "all passes of a batch draw the same ones" if act in (noise, numpy_noise) else "gives the same"
        match = rf"layer 'site': each ablation runs the whole network .*slower.* {given}: {FALLBACKS[act]}"
        with pytest.warns(UserWarning, match=match):
            suffix = recorder.record(batch)
        for seed in range(3):
            mask = torch.rand(6, 8, generator=torch.Generator().manual_seed(seed)) < 0.4
            forwards.clear()
            found, classes = suffix.ablated(mask)
            assert len(forwards) == 1
            torch.testing.assert_close(found, hooked(model, lambda batch: (model(batch), 0), batch, removal, mask))
            assert torch.equal(classes, torch.arange(6) % 4)
        recorder.record(batch)  # warns once: warnings are errors here
        assert not model.site._forward_hooks


def test_another_way_through_the_model_is_tried_too():
    """Short batches are computed in sight, long ones in a thread."""
    torch.manual_seed(0)
    model = SiteThen(lambda h: in_a_thread(h) if len(h) > 6 else torch.tanh(h)).eval()
    removal = Removal(Site("site"), 1, "zero", np.zeros(8), "margin")
    recorder = SuffixRecorder(model, lambda batch: (model(batch), torch.zeros(len(batch), dtype=torch.long)), removal)
    mask = torch.arange(8)[None] < 3
    with undisturbed(model), torch.no_grad():
        for size in (6, 4, 6):
            recorder.record(torch.randn(size, 5))
        assert recorder.reason is None
        batch = torch.randn(9, 5)
        with pytest.warns(UserWarning, match="differs from the same in a full pass"):
            suffix = recorder.record(batch)
        expected = hooked(model, lambda batch: (model(batch), 0), batch, removal, mask)
        assert torch.equal(suffix.ablated(mask)[0], expected)


@pytest.mark.parametrize("kind", ["dead", "large logits", "bf16", "one neuron, one sample"])
def test_a_trial_that_proves_nothing_is_made_again(kind):
    torch.manual_seed(0)
    alone = kind == "one neuron, one sample"
    site = nn.Linear(5, 1 if alone else 8)
    head = nn.Linear(site.out_features, 4)
    model = nn.Sequential(site, nn.ReLU(), Thread(), head).eval()
    first, second = (torch.randn(1 if alone else 6, 5) for _ in range(2))
    with torch.no_grad():
        if kind == "dead":
            site.bias.zero_()
            first.zero_()
        elif kind == "large logits":
            head.bias.fill_(1e5)
        elif kind == "bf16":
            head.bias.fill_(30)
    if kind == "bf16":
        model, first, second = model.bfloat16(), first.bfloat16(), second.bfloat16()
    removal = Removal(Site("1"), 1, "zero", np.zeros(site.out_features), "margin")
    recorder = SuffixRecorder(model, lambda batch: (model(batch), torch.zeros(len(batch), dtype=torch.long)), removal)
    with undisturbed(model), torch.no_grad():
        with pytest.warns(UserWarning, match="differs from the same in a full pass"):
            assert [recorder.record(batch) is not None for batch in (first, second)]


class Thread(nn.Module):
    def forward(self, h):
        return in_a_thread(h)


def test_a_trial_that_the_model_refuses():
    def picky(h):
        if ((h == 0).sum(1) > 1).any():
            raise ValueError("too many zeros")
        return h

    model, batch = SiteThen(picky).eval(), torch.randn(6, 5)
    removal = Removal(Site("site"), 1, "zero", np.zeros(8), "margin")
    recorder = SuffixRecorder(model, lambda batch: (model(batch), torch.zeros(6, dtype=torch.long)), removal)
    with undisturbed(model), torch.no_grad():
        with pytest.warns(UserWarning, match="a random ablation fails in a full pass .ValueError: too many zeros"):
            suffix = recorder.record(batch)
        assert len(suffix.ablated(torch.eye(8)[:1] > 0)[0]) == 6


@torch.library.custom_op("neuroimp_tests::kept", mutates_args=())
def kept(h: torch.Tensor) -> torch.Tensor:
    """Like suppression of boxes: how many rows come back depends on their values."""
    return (h.abs().sum(1) > 0).nonzero()[:, 0]


def swapping(weight, other):
    def act(h):
        h = h @ weight
        weight.data = other
        h = torch.tanh(h @ weight)
        weight.data = torch.eye(8)
        return h

    return act


@pytest.mark.parametrize("kind", ["own kind", "sparse constant", "swapped weight", "dead branch", "rows kept"])
def test_more_that_can_be_recorded(kind):
    torch.manual_seed(0)
    adjacency = (torch.rand(8, 8) < 0.3).float().to_sparse()
    dead = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)) for _ in range(6)])
    acts = {
        "own kind": lambda h: (Own.wrap(torch.ones(8)) * h).inner.sin(),
        "sparse constant": lambda h: torch.sparse.mm(adjacency, h.T).T,
        "swapped weight": swapping(nn.Parameter(torch.eye(8)), torch.eye(8) * 2),
        "dead branch": lambda h: (dead(h), torch.tanh(h))[1],
        "rows kept": lambda h: h + len(kept(h)),
    }
    model, batch = SiteThen(acts[kind]).eval(), torch.randn(6, 5)
    removal = Removal(Site("site"), 1, "zero", np.zeros(8), "margin")
    recorder = SuffixRecorder(model, lambda batch: (model(batch), torch.zeros(6, dtype=torch.long)), removal)
    with undisturbed(model), torch.no_grad():
        suffix = recorder.record(batch)
        assert recorder.reason is None
        for mask in (torch.arange(8)[None] < 3, torch.rand(6, 8) < 0.5):
            expected = hooked(model, lambda batch: (model(batch), 0), batch, removal, mask)
            assert torch.equal(suffix.ablated(mask)[0], expected)
        if kind == "dead branch":
            assert len(suffix.tape) == 2  # tanh and addmm
        if kind == "rows kept":
            mask = torch.ones(1, 8) > 0
            with pytest.warns(UserWarning, match="the shape of a result depends on its values .neuroimp_tests::kept"):
                found = suffix.ablated(mask)[0]
            assert torch.equal(found, hooked(model, lambda batch: (model(batch), 0), batch, removal, mask))


def test_a_suffix_is_freed_with_its_last_name():
    """No cycle that keeps a batch's tensors until Python looks for cycles."""
    model = SiteThen(torch.tanh).eval()
    removal = Removal(Site("site"), 1, "zero", np.zeros(8), "margin")
    recorder = SuffixRecorder(model, lambda batch: (model(batch), torch.zeros(6, dtype=torch.long)), removal)
    gc.collect()
    gc.disable()
    try:
        with undisturbed(model):
            suffix = recorder.record(torch.randn(6, 5))
            seen = weakref.ref(suffix.tape), weakref.ref(suffix)
            del suffix
            assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()


def test_unchanged_activations_would_prove_nothing():
    """The tape of a model whose work is done in a thread: right for what was recorded, blind for anything else."""
    torch.manual_seed(0)
    model, batch = SiteThen(in_a_thread).eval(), torch.randn(6, 5)
    recorder = TapeRecorder()
    with torch.no_grad(), recorder.watch():
        activation = model.site(batch)
        recorder.start(activation)
        logits = model.head(in_a_thread(activation))
    tape = recorder.finish((logits,))
    assert tape is not None
    assert torch.equal(tape.run(activation)[0], logits)
    assert torch.equal(tape.run(torch.zeros_like(activation))[0], logits)  # and that is wrong


def test_values_that_change_later_are_noticed():
    """A branch that the first trial takes as recorded, and a later ablation does not."""
    torch.manual_seed(0)
    model = SiteThen(lambda h: h if h.abs().sum() > 0 else h + 1).eval()
    batch = torch.randn(6, 5)
    removal = Removal(Site("site"), 1, "zero", np.zeros(8), "margin")
    recorder = SuffixRecorder(model, lambda batch: (model(batch), torch.zeros(6, dtype=torch.long)), removal)
    with undisturbed(model), torch.no_grad():
        suffix = recorder.record(batch)
        assert recorder.reason is None
        some, everything = torch.eye(8)[:1] > 0, torch.ones(1, 8) > 0
        found = suffix.ablated(some)[0]
        assert torch.equal(found, hooked(model, lambda batch: (model(batch), 0), batch, removal, some))
        with pytest.warns(UserWarning, match="Python reads values that depend on it .aten::_local_scalar_dense."):
            found = suffix.ablated(everything)[0]
        assert torch.equal(found, hooked(model, lambda batch: (model(batch), 0), batch, removal, everything))


def test_a_batch_that_does_not_reach_the_site():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.site, self.head = nn.Linear(5, 5), nn.Linear(5, 4)

        def forward(self, x):
            return self.head(self.site(x) if len(x) > 3 else x)

    model = Sometimes().eval()
    removal = Removal(Site("site"), 1, "zero", np.zeros(5), "margin")
    recorder = SuffixRecorder(model, lambda batch: (model(batch), torch.zeros(len(batch), dtype=torch.long)), removal)
    mask = torch.ones(1, 5) > 0
    with undisturbed(model), torch.no_grad():
        short = torch.randn(2, 5)
        assert torch.equal(recorder.record(short).ablated(mask)[0], model(short))
        found = recorder.record(torch.randn(6, 5)).ablated(mask)[0]
        assert torch.equal(found, model.head(torch.zeros(6, 5)))
        assert recorder.reason is None


def test_targets_that_depend_on_the_site_are_those_of_the_whole_model():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    removal = Removal(Site("0"), 1, "zero", np.zeros(8), "margin")

    def forward(batch):
        logits = model(batch)
        return logits, logits.argmax(1)

    with undisturbed(model), torch.no_grad():
        suffix = SuffixRecorder(model, forward, removal).record(torch.randn(6, 5))
        logits, classes = suffix.ablated(torch.arange(8)[None] < 5)
        assert torch.equal(classes, suffix.logits.argmax(1))
        assert not torch.equal(classes, logits.argmax(1))


def test_the_model_batch_and_activations_stay_as_they_were():
    model, forward, batch = build(CASES["stashing"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with undisturbed(model), torch.no_grad():
        removal = removal_at(model, "second", forward, copies(batch))
        suffix = SuffixRecorder(model, forward, removal).record(batch)
        after_recording = {name: value.clone() for name, value in model.state_dict().items()}
        activation, features = suffix.activation.clone(), model.features
        kept = features.clone()
        suffix.ablated(torch.arange(8)[None] < 5)
        suffix(suffix.activation)
        assert torch.equal(suffix.activation, activation)
        torch.testing.assert_close(dict(model.state_dict()), after_recording, rtol=0, atol=0)
        assert model.features is features
        assert torch.equal(features, kept)
    assert model.features is None
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_in_place_layers_after_the_site_do_not_overwrite_what_they_are_given():
    model, forward, batch = build(CASES["mlp"])
    with undisturbed(model), torch.no_grad():
        removal = removal_at(model, "0", forward, copies(batch))
        suffix = SuffixRecorder(model, forward, removal).record(batch)
        mine = torch.randn(6, 8)
        before = mine.clone()
        assert torch.equal(suffix(mine)[0], suffix(mine)[0])
        assert torch.equal(mine, before)
        transposed = mine.T.contiguous().T  # laid out otherwise
        assert torch.equal(suffix(transposed)[0], suffix(mine)[0])
        torch.testing.assert_close(suffix(mine.double())[0], suffix(mine)[0])
        with pytest.raises(ValueError, match=r"must have the shape of layer '0''s, \(6, 8\), got \(6, 3\)"):
            suffix(mine[:, :3])


def test_a_site_that_is_called_twice_is_refused():
    model, forward, batch = build(CASES["shared"])
    removal = Removal(Site("again"), 1, "zero", np.zeros(8), "margin")
    with undisturbed(model), pytest.raises(ValueError, match="layer 'again' is called several times"):
        SuffixRecorder(model, forward, removal).record(batch)
    assert not model.again._forward_hooks


def test_errors_of_the_model_are_its_own():
    model = SiteThen(lambda h: h @ torch.ones(3)).eval()
    removal = Removal(Site("site"), 1, "zero", np.zeros(8), "margin")
    recorder = SuffixRecorder(model, lambda batch: (model(batch), None), removal)
    with undisturbed(model), pytest.raises(RuntimeError, match="size mismatch"):
        recorder.record(torch.randn(6, 5))
    assert recorder.reason is None
    assert not model.site._forward_hooks


def slope(run, point):
    leaf = point.clone().requires_grad_()
    logits = run(leaf)
    (found,) = torch.autograd.grad((logits * torch.arange(4.0)).sum(), leaf)
    return found


def hooked_with(model, forward, batch, site, activation):
    handle = model.get_submodule(site).register_forward_hook(lambda module, args, out: activation.clone())
    try:
        return forward(copies(batch))[0]
    finally:
        handle.remove()


@pytest.mark.parametrize(("name", "site"), [one for one in SITES if one[0] != "stashing"])  # torch cannot, either
def test_gradients_through_a_tape_equal_those_of_a_full_pass(name, site):
    model, forward, batch = build(CASES[name])
    with undisturbed(model):
        removal = removal_at(model, site, forward, copies(batch))
        suffix = SuffixRecorder(model, forward, removal).record(batch)
        if name == "gru":  # its first step writes into memory that does not depend on the site
            with pytest.warns(UserWarning, match="each gradient runs the whole network .*modified by an inplace"):
                assert not suffix.differentiable
        else:
            assert suffix.differentiable
        point = suffix.activation * 0.5
        found = slope(lambda leaf: suffix(leaf)[0], point)
        expected = slope(lambda leaf: hooked_with(model, forward, batch, site, leaf), point)
        assert found.abs().sum() > 0
        torch.testing.assert_close(found, expected)
        assert all(parameter.grad is None for parameter in model.parameters())


class Doubled(torch.autograd.Function):
    """Its gradient is not that of what it computes."""

    @staticmethod
    def forward(ctx, h):
        return torch.tanh(h)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def without_gradient(h):
    with torch.no_grad():
        gate = torch.sigmoid(h)
    return gate * h


def straight_through(h):
    return h + (h.round() - h).detach()


def past_autograd(h):
    h = h * 1
    h.data.mul_(0.5)
    return h


@pytest.mark.parametrize("act", [Doubled.apply, without_gradient, past_autograd, straight_through])
def test_gradients_that_a_tape_cannot_give_come_from_full_passes(act):
    torch.manual_seed(0)
    model = SiteThen(act).eval()
    batch, classes = torch.randn(6, 5), torch.zeros(6, dtype=torch.long)
    recorder = SuffixRecorder(
        model, lambda batch: (model(batch), classes), Removal(Site("site"), 1, "zero", np.zeros(8), "margin")
    )
    with undisturbed(model):
        suffix = recorder.record(batch)
        assert recorder.reason is None  # its values are right
        if act in (straight_through, past_autograd):
            assert suffix.differentiable  # what is detached stays so
        else:
            with pytest.warns(UserWarning, match="layer 'site': each gradient runs the whole network .* it differs"):
                assert not suffix.differentiable
        point = torch.randn(6, 8)
        found = slope(lambda leaf: suffix(leaf)[0], point)
        torch.testing.assert_close(found, slope(lambda leaf: model.head(act(leaf)), point))


# random programs: each step reads what is there, before or after the site, and appends or writes in place
STEPS = {
    "add": lambda a, b: a + b,
    "product": lambda a, b: a * torch.sigmoid(b),
    "layer": lambda a, b: F.linear(a, WEIGHT),
    "relu_": lambda a, b: a.relu_(),
    "add_": lambda a, b: a.add_(b, alpha=0.5),
    "slice": lambda a, b: a[:, 2:5].repeat(1, 2),
    "view": lambda a, b: a.view(3, 12).view(6, 6),
    "alias": lambda a, b: a[:],
    "transposed": lambda a, b: a.T,
    "write slice": lambda a, b: a[:, :3].copy_(b[:, 3:]).sum,
    "write data": lambda a, b: a.data.mul_(0.9).sum,
    "into a new one": lambda a, b: torch.zeros(6, 6).index_copy_(1, torch.tensor([1, 4, 5]), a[:, 3:]),
    "out": lambda a, b: torch.sub(b, 0.1 * a, out=torch.empty(6, 6)),
    "stack": lambda a, b: torch.stack([a, b]).amax(0),
    "split": lambda a, b: torch.cat(a.split(2, 1)[::-1], 1),
    "expanded": lambda a, b: a[:1].expand(6, 6) + b,
    "sorted": lambda a, b: a.sort(1).values,
    "picked": lambda a, b: a.gather(1, b.argsort(1)),
    "where": lambda a, b: torch.where(a > b, a, b.T),
    "masked": lambda a, b: a.masked_fill_(b > 0.5, 0.1),
    "swap": lambda a, b: a.copy_(b.clone()).sum,
}
WEIGHT = torch.randn(6, 6, generator=torch.Generator().manual_seed(3)) / 2
step = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 30), st.integers(0, 30))


class Program(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.before, self.after, self.site = before, after, nn.Tanh()

    def forward(self, x):
        pool = [x, x.flip(1)]
        self.steps(self.before, pool)
        pool.append(self.site(pool[-1]))
        self.steps(self.after, pool)
        return sum(pool).sum(0, keepdim=True) + pool[-1]

    @staticmethod
    def steps(steps, pool):
        for name, a, b in steps:
            try:
                out = STEPS[name](pool[-1 - a % len(pool)], pool[-1 - b % len(pool)])
            except RuntimeError:  # a write into expanded memory, a view of what cannot be viewed so
                continue
            if isinstance(out, torch.Tensor):
                pool.append(out)


@settings(max_examples=int(os.environ.get("NEUROIMP_EXAMPLES", "200")), deadline=None)
@given(st.lists(step, max_size=5), st.lists(step, max_size=9), st.integers(0, 5))
def test_random_programs_run_again_bit_for_bit(before, after, seed):
    model = Program(before, after).eval()
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(6, 6, generator=generator)
    removal = Removal(Site("site"), 1, "mean", np.full(6, 0.25), "margin")

    def forward(batch):
        return model(batch), torch.zeros(6, dtype=torch.long)

    with undisturbed(model), torch.no_grad():
        recorder = SuffixRecorder(model, forward, removal)
        suffix = recorder.record(batch)
        assert recorder.reason is None
        for _ in range(2):
            mask = torch.rand(6, 6, generator=generator) < 0.5
            expected = hooked(model, forward, batch, removal, mask)
            assert torch.equal(suffix.ablated(mask)[0].nan_to_num(), expected.nan_to_num())
