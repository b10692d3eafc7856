"""Models in other forms: recurrent on CUDA, checkpointed, scripted, traced, exported, reparametrised, wrapped."""

import functools
import io
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint, checkpoint_sequential

from lightning_neuroimp import (
    AblationFaithfulness,
    ProbeSet,
    ablate,
    ablation_faithfulness,
    list_sites,
    neuron_importance,
    weight_randomisation,
)
from lightning_neuroimp.capture import gradient_support
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.errors import InvalidArgument

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")


class CudnnRule(torch.autograd.Function):
    """Stand in for cuDNN's recurrent operation, whose backward pass needs training mode."""

    @staticmethod
    def forward(ctx, output, training):
        ctx.refused = torch.backends.cudnn.enabled and not training
        return output.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.refused:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        return gradient, None


def on_cudnn(kind):
    class OnCudnn(kind):
        def forward(self, *args):
            seen.append(torch.backends.cudnn.enabled)
            output, state = super().forward(*args)
            return CudnnRule.apply(output, self.training), state

    return OnCudnn


seen = []


class Recurrent(nn.Module):
    """The layer comes before the recurrent one."""

    def __init__(self, kind, nested=False):
        super().__init__()
        torch.manual_seed(0)
        self.act = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        rnn = on_cudnn(kind)(6, 7, batch_first=True)
        self.rnn = nn.ModuleDict({"inner": rnn}) if nested else rnn
        self.look = nn.Identity()
        self.look.register_forward_hook(lambda *args: looked.append(torch.backends.cudnn.enabled))
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        rnn = self.rnn["inner"] if isinstance(self.rnn, nn.ModuleDict) else self.rnn
        return self.head(self.look(rnn(self.act(x))[0][:, -1]))


looked = []


@pytest.fixture
def as_on_cuda(monkeypatch):
    monkeypatch.setattr(gradient_support, "on_cuda", lambda module: True)
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = True
    seen.clear()
    looked.clear()
    yield
    torch.backends.cudnn.enabled = before


def slow_scores(model, site, x, y):
    """Return gradient x activation of the margin, one sample at a time, summed over positions."""
    scores = []
    for one, label in zip(x, y, strict=True):
        found = []
        handle = model.get_submodule(site).register_forward_hook(
            lambda module, args, out, found=found: found.append(out.detach().requires_grad_()) or found[0]
        )
        logits = model(one[None])[0]
        handle.remove()
        others = torch.cat([logits[:label], logits[label + 1 :]])
        (gradient,) = torch.autograd.grad(logits[label] - others.logsumexp(0), found[0])
        scores.append((gradient * found[0]).detach().reshape(-1, gradient.shape[-1]).sum(0))
    return torch.stack(scores)


def slow_means(model, site, x, y):
    scores = slow_scores(model, site, x, y)
    return torch.stack([scores[y == label].mean(0) for label in range(3)]).double()


def data(*shape, n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=generator), torch.arange(n) % 3


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("nested", [False, True], ids=["own", "in a submodule"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda kind: kind.__name__)
def test_recurrent_layers_on_cuda(kind, nested):
    model, (x, y) = Recurrent(kind, nested).eval(), data(4, 5)
    with torch.backends.cudnn.flags(enabled=False):
        expected = slow_means(model, "act", x, y)
    seen.clear()
    looked.clear()
    results = neuron_importance(model, ProbeSet.from_batches([(x, y)]), layers="act")
    torch.testing.assert_close(torch.tensor(results["act"].mean), expected, rtol=1e-4, atol=1e-6)
    assert seen[-1] is False
    assert all(looked), "cuDNN stays on for everything else"
    assert torch.backends.cudnn.enabled
    seen.clear()
    neuron_importance(model, [(x, y)], layers="act", attribution="activation")
    assert all(seen), "and where no gradients are computed"


@pytest.mark.usefixtures("as_on_cuda")
def test_without_the_measurement_the_rule_holds():
    model, (x, y) = Recurrent(nn.LSTM).eval(), data(4, 5)
    with pytest.raises(RuntimeError, match="cudnn RNN backward can only be called in training mode"):
        slow_means(model, "act", x, y)


@pytest.mark.usefixtures("as_on_cuda")
def test_cudnn_is_on_again_after_an_exception():
    model = Recurrent(nn.LSTM).eval()
    with pytest.raises(ValueError, match="5D"), undisturbed(model):
        model.rnn(torch.zeros(2, 3, 4, 5, 6))
    assert torch.backends.cudnn.enabled
    assert not model.rnn._forward_hooks
    assert not model.rnn._forward_pre_hooks
    with undisturbed(model):
        with pytest.raises(ValueError, match="5D"):
            model.rnn(torch.zeros(2, 3, 4, 5, 6))
        assert torch.backends.cudnn.enabled


@pytest.mark.usefixtures("as_on_cuda")
def test_cudnn_that_was_off_stays_off():
    torch.backends.cudnn.enabled = False
    model, (x, y) = Recurrent(nn.GRU).eval(), data(4, 5)
    neuron_importance(model, [(x, y)], layers="act")
    assert not torch.backends.cudnn.enabled


class LastOf(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 7, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.act = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.rnn = torch.jit.script(LastOf())
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.rnn(self.act(x)))


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is")
def test_scripted_recurrent_layers_on_cuda():
    model, (x, _) = Scripted().eval(), data(4, 5)
    with undisturbed(model):
        nn.Module.register_forward_pre_hook(model.rnn, lambda *args: seen.append(torch.backends.cudnn.enabled))
        model(x)
        assert seen == [False]
        with torch.no_grad():
            model(x)
        assert seen == [False, True]
    assert torch.backends.cudnn.enabled


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.b = nn.Sequential(nn.Linear(8, 8), nn.GELU())

    def forward(self, x):
        return self.b(self.a(x))


class Headed(nn.Module):
    """A backbone in any form, with a head of one's own."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        torch.manual_seed(2)
        self.act = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.act(self.backbone(x)))


class Checkpointed(Backbone):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        if self.how == "before":
            return self.b(checkpoint(self.a, x.requires_grad_(), use_reentrant=True))
        if self.how == "behind":
            return checkpoint(self.b, self.a(x), use_reentrant=True)
        if self.how == "both":
            return checkpoint(self.b, checkpoint(self.a, x, use_reentrant=True), use_reentrant=True)
        if self.how == "in parts":
            return checkpoint_sequential(self.b, 2, self.a(x), use_reentrant=True)
        return checkpoint(self.b, self.a(x), use_reentrant=False)


def assert_right(model, layer, plain, plain_layer):
    """Compare scores with slow ones, and leave-one-out with a hook that removes one neuron at a time."""
    x, y = data(5)
    names = ["gradient_x_activation", "leave_one_out", "integrated_gradients"]
    results = neuron_importance(model, ProbeSet.from_batches([(x, y)]), layers=layer, attribution=names)
    expected = slow_means(plain, plain_layer, x, y)
    torch.testing.assert_close(torch.tensor(results[layer].mean), expected, rtol=1e-4, atol=1e-6)
    module = plain.get_submodule(plain_layer)
    effects = []
    for neuron in range(expected.shape[1]):
        falls = []
        for one, label in zip(x, y, strict=True):
            intact, removed = (margin(plain(one[None])[0], label), removing(plain, module, neuron, one, label))
            falls.append(float((intact - removed).detach()))
        effects.append([sum(falls[label::3]) / len(falls[label::3]) for label in range(3)])
    found = torch.tensor(results[layer, "leave_one_out"].mean)
    torch.testing.assert_close(found, torch.tensor(effects).double().T, rtol=1e-4, atol=1e-5)
    checked = ablation_faithfulness(model, [(x, y)], results, AblationFaithfulness(n_random=20))
    assert checked[layer].faithfulness is not None
    return results


def margin(logits, label):
    return logits[label] - torch.cat([logits[:label], logits[label + 1 :]]).logsumexp(0)


def removing(model, module, neuron, one, label):
    def zero(module, args, out):
        out = out.clone()
        out[..., neuron] = 0
        return out

    handle = module.register_forward_hook(zero)
    try:
        return margin(model(one[None])[0], label)
    finally:
        handle.remove()


@pytest.mark.parametrize("layer", ["backbone.a", "backbone.b.1", "act"])
@pytest.mark.parametrize("how", ["before", "behind", "both", "in parts", "not reentrant"])
def test_activation_checkpoints(how, layer):
    torch_own = CheckpointFunction.apply
    model = Headed(Checkpointed(how)).eval()
    assert_right(model, layer, Headed(Backbone()).eval(), layer)
    assert "apply" not in vars(CheckpointFunction)
    assert CheckpointFunction.apply == torch_own


def test_checkpoints_of_other_threads_are_left_alone():
    """Such as those of a training that goes on meanwhile: they save memory, and are differentiated by backward()."""
    calls = []

    def act(h):
        calls.append(torch.is_grad_enabled())
        return torch.tanh(h)

    def train():
        checkpoint(act, torch.ones(2, requires_grad=True), use_reentrant=True).sum().backward()

    with undisturbed(nn.Linear(2, 2)):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        assert calls == [False, True]
        calls.clear()
        with undisturbed(nn.Linear(2, 2)):
            pass
        checkpoint(act, torch.ones(2, requires_grad=True), use_reentrant=True)
        assert calls == [True]
    calls.clear()
    train()
    assert calls == [False, True]


def saved_and_loaded(backbone):
    memory = io.BytesIO()
    torch.jit.save(torch.jit.script(backbone), memory)
    memory.seek(0)
    return torch.jit.load(memory)


FORMS = {
    "scripted": torch.jit.script,
    "traced": lambda backbone: torch.jit.trace(backbone, torch.randn(2, 5)),
    "frozen": lambda backbone: torch.jit.freeze(torch.jit.script(backbone.eval())),
    "loaded": saved_and_loaded,
    "graph": torch.fx.symbolic_trace,
    "compiled": lambda backbone: torch.compile(backbone, backend="eager"),
    "parallel": nn.DataParallel,
}
WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* has been deprecated"),
]


def with_warnings(test):
    for mark in WARNINGS:
        test = mark(test)
    return test


@with_warnings
@pytest.mark.parametrize("layer", ["act", "backbone"])
@pytest.mark.parametrize("form", FORMS)
def test_a_backbone_in_another_form(form, layer):
    model = Headed(FORMS[form](Backbone())).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = data(5)
    results = assert_right(model, layer, Headed(Backbone()).eval(), layer)
    assert weight_randomisation(model, [(x, y)], results).randomisations
    rows = {row.name: row for row in list_sites(model, (x, y))}
    assert (rows["act"].neurons, rows["head"].neurons) == (6, 3)
    with ablate(model, layer, [0, 1]), torch.no_grad():
        removed = model(x)
    assert not torch.equal(removed, model(x))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


@with_warnings
@pytest.mark.parametrize("form", ["scripted", "traced", "loaded"])
def test_parts_of_scripted_modules_are_refused_in_words(form):
    model, (x, y) = Headed(FORMS[form](Backbone())).eval(), data(5)
    with pytest.raises(InvalidArgument) as caught:
        neuron_importance(model, [(x, y)], layers="backbone.a")
    for phrase in ("'backbone.a' is inside 'backbone'", "scripted or traced module", "name 'backbone' itself"):
        assert phrase in str(caught.value)
    results = neuron_importance(model, [(x, y)], layers="**")
    assert results.sites == ("backbone", "act", "act.0", "act.1", "head")
    whole = FORMS[form](Headed(Backbone()).eval())
    with pytest.raises(InvalidArgument) as caught:
        neuron_importance(whole, [(x, y)], layers="act")
    for phrase in ("'act' is inside a scripted or traced module", "whose parts run without hooks", "before torch.jit"):
        assert phrase in str(caught.value)


@with_warnings
def test_whole_models_without_layers_are_refused_in_words():
    x, y = data(5)
    frozen = torch.jit.freeze(torch.jit.script(Headed(Backbone()).eval()))
    with pytest.raises(
        InvalidArgument, match=r"no layer 'act'.*no named layers.*scripted and frozen.*as it was before"
    ):
        neuron_importance(frozen, [(x, y)], layers="act")
    batch = torch.export.Dim("batch")
    exported = torch.export.export(Headed(Backbone()).eval(), (x,), dynamic_shapes=({0: batch},)).module()
    with pytest.raises(InvalidArgument, match=r"never called: torch.export keeps operations.*as it was before"):
        neuron_importance(exported, [(x, y)], layers="act")


def test_graphs_of_fx():
    plain, x_y = Headed(Backbone()).eval(), data(5)
    model = torch.fx.symbolic_trace(plain)
    assert_right(model, "act.1", plain, "act")
    with pytest.raises(
        InvalidArgument, match="defines no forward.* never called: name the layers in it, 'act.0', 'act.1'"
    ):
        neuron_importance(model, [x_y], layers="act")
