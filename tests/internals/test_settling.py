"""Which axis holds the neurons, and which the samples, where sizes agree by coincidence: right, or refused in words."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_neuroimp import Site, list_sites, neuron_importance, weight_randomisation
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.trial import try_out

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

N = 12


def twin_scores(model, name, x, y, axis, sample_axis=0):
    """Return h dm/dh of each sample and neuron, summed over positions: own hook, autograd, one sample at a time."""
    scores = []
    for sample in range(len(x)):
        seen = []

        def keep(module, args, output, seen=seen):
            output = output[0] if isinstance(output, tuple) else output
            seen.append(output if output.requires_grad else output.requires_grad_())
            return None

        handle = model.get_submodule(name).register_forward_hook(keep)
        logits = model(x[sample : sample + 1])[0]
        handle.remove()
        others = torch.cat([logits[: y[sample]], logits[y[sample] + 1 :]])
        (slope,) = torch.autograd.grad(logits[y[sample]] - others.logsumexp(0), seen[0])
        product = (slope * seen[0]).detach().movedim(sample_axis, 0)[0]
        place = axis - 1 if axis > sample_axis else axis
        scores.append(product.movedim(place, 0).flatten(1).sum(1))
    return torch.stack(scores)


def assert_right(model, name, x, axis, sample_axis=0):
    """The product's scores are the twin's, with the axis given to the twin by hand."""
    torch.manual_seed(1)
    model, x = model.double().eval(), x.double()
    y = torch.arange(len(x)) % 2
    found = neuron_importance(model, [(x, y)], layers=name)[name]
    expected = twin_scores(model, name, x, y, axis, sample_axis)
    torch.testing.assert_close(
        torch.from_numpy(found.mean), torch.stack([expected[y == label].mean(0) for label in (0, 1)]), rtol=1e-9, atol=0
    )


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelsLast(nn.Module):
    """Counts channels last inside, as ConvNeXt's blocks do."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.LayerNorm(channels)
        self.wide, self.act, self.narrow = nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)

    def forward(self, x):
        h = self.narrow(self.act(self.wide(self.norm(self.conv(x).permute(0, 2, 3, 1)))))
        return x + h.permute(0, 3, 1, 2)


class Standardised(nn.Conv2d):
    """Is a convolution whose `forward` is its own."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class TransposedLinear(nn.Linear):
    """Is a linear layer that counts its neurons on axis 1."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ResponseNorm(nn.Module):
    """Is a norm of the user's, over the whole of each channel."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, channels))

    def forward(self, x):
        size = x.norm(dim=(1, 2), keepdim=True)
        return x * (1 + self.gain * size / (size.mean(-1, keepdim=True) + 1e-6))


class Moved(nn.Module):
    """Applies a module to a tensor whose channels are last, and returns it so."""

    def __init__(self, conv, act, head):
        super().__init__()
        self.conv, self.act, self.head = conv, act, head

    def forward(self, x):
        return self.head(self.act(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


class Own(nn.Module):
    """Multiplies with weights of its own: torch knows nothing of its axes."""

    def __init__(self, channels, first):
        super().__init__()
        self.weight, self.first = nn.Parameter(torch.randn(channels, channels) / 2), first

    def forward(self, x):
        return torch.einsum("nchw,cd->ndhw" if self.first else "ntc,cd->ntd", x, self.weight).tanh()


class Mean(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.mean(self.axes)


class Causal(nn.Module):
    """Lets each token see those before it, and mixes their channels with weights that torch knows nothing of."""

    def __init__(self):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), CausalMix()

    def forward(self, x):
        return x + self.inner(self.norm(x))


class CausalMix(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterDict({"mix": nn.Parameter(torch.randn(8, 8))})

    def forward(self, x):
        steps = torch.arange(1, x.shape[1] + 1).to(x)[:, None]
        return torch.tanh(x.cumsum(1) / steps @ self.weights["mix"])


def image_net(site, channels=8):
    return nn.Sequential(nn.Conv2d(3, channels, 1), site, Mean(2, 3), nn.Linear(channels, 3))


IMAGE, TOKENS = torch.randn(N, 3, 8, 8), torch.randn(N, 8, 8)
CASES = {
    "own norm": (lambda: image_net(LayerNorm2d(8)), "1", IMAGE, 1),
    "own norm, other sizes": (lambda: image_net(LayerNorm2d(7), 7), "1", IMAGE, 1),
    "norm, then an activation": (lambda: image_net(nn.Sequential(LayerNorm2d(8), nn.ReLU())), "1.1", IMAGE, 1),
    "block that transposes inside": (lambda: image_net(ChannelsLast(8)), "1", IMAGE, 1),
    "inside that block": (lambda: image_net(ChannelsLast(8)), "1.act", IMAGE, 3),
    "norm inside that block": (lambda: image_net(ChannelsLast(8)), "1.norm", IMAGE, 3),
    "own convolution": (lambda: image_net(Standardised(8, 8, 3, padding=1)), "1", IMAGE, 1),
    "own product over channels": (lambda: image_net(Own(8, True)), "1", IMAGE, 1),
    "activation of a permuted tensor": (
        lambda: Moved(nn.Conv2d(3, 8, 1), nn.GELU(), nn.Linear(8, 3)),
        "act",
        IMAGE,
        3,
    ),
    "own norm of a permuted tensor": (
        lambda: Moved(nn.Conv2d(3, 8, 1), ResponseNorm(8), nn.Linear(8, 3)),
        "act",
        IMAGE,
        3,
    ),
    "own linear layer": (
        lambda: nn.Sequential(nn.LayerNorm(8), TransposedLinear(8, 8), nn.ReLU(), Mean(2), nn.Linear(8, 3)),
        "1",
        TOKENS,
        1,
    ),
    "own product of tokens": (
        lambda: nn.Sequential(nn.Linear(8, 8), Own(8, False), Mean(1), nn.Linear(8, 3)),
        "1",
        TOKENS,
        2,
    ),
    "causal mixing": (
        lambda: nn.Sequential(nn.Linear(8, 8), Causal(), Mean(1), nn.Linear(8, 3)),
        "1.inner",
        TOKENS[:, :5],
        2,
    ),
    "attention of as many tokens": (
        lambda: nn.Sequential(
            nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.GELU(), Mean(1), nn.Linear(8, 3)
        ),
        "2",
        TOKENS,
        2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_neuron_axis_is_right_where_sizes_agree(case):
    make, name, x, axis = CASES[case]
    torch.manual_seed(0)
    assert_right(make(), name, x, axis)
    rows = {row.name: row for row in list_sites(make(), (x, torch.arange(len(x)) % 2))}
    assert rows[name].neurons in (7, 8)
    assert rows[name].note == ""


class TokenMix(nn.Module):
    """Mixes tokens by a linear layer, whose neurons are tokens."""

    def __init__(self, n_tokens):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(n_tokens, n_tokens)

    def forward(self, x):
        return x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("n_tokens", [8, 5])
def test_a_layer_whose_neurons_are_tokens_does_not_settle_channels(n_tokens):
    """The last layer says tokens, the norm before it says channels: only the user knows."""
    model = nn.Sequential(nn.Linear(8, 8), TokenMix(n_tokens), Mean(1), nn.Linear(8, 3))
    x, y = torch.randn(N, n_tokens, 8), torch.zeros(N, dtype=torch.long)
    with pytest.raises(ValueError, match="cannot tell the neuron axis of layer '1'"):
        neuron_importance(model, [(x, y)], layers="1")
    assert neuron_importance(model, [(x, y)], layers=Site("1", axis=2)).importances[0].removal.n_neurons == 8


def test_randomised_weights_keep_the_axis_that_was_settled():
    torch.manual_seed(0)
    model, data = image_net(LayerNorm2d(8)).eval(), [(IMAGE, torch.arange(N) % 2)]
    results = weight_randomisation(model, data, neuron_importance(model, data, layers="1"))
    assert [each.site for each in results.randomisations] == ["1"]


class Scrambled(nn.Module):
    """Mixes everything with everything: nothing can tell what its axes count."""

    def forward(self, x):
        mixed = x.flatten(1) @ torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        return torch.sin(mixed).reshape(len(x), 8, 8)


class Heads(nn.Module):
    """Splits its channels into heads, two axes of which count neurons."""

    def forward(self, x):
        return x.unflatten(2, (2, 4)).transpose(1, 2)


@pytest.mark.parametrize(
    ("model", "phrases"),
    [
        (
            nn.Sequential(nn.Linear(8, 8), Scrambled(), nn.Flatten(), nn.Linear(64, 3)),
            ["neuron axis of layer '1' (Scrambled)", "8, 8)", "axis=1 (8 neurons) or axis=2 (8 neurons)"],
        ),
        (
            nn.Sequential(nn.Linear(8, 8), Heads(), nn.Flatten(), nn.Linear(64, 3)),
            ["neuron axis of layer '1' (Heads)", "2, 8, 4)", "pass Site('1', axis=...)", "axis=3 (4 neurons)"],
        ),
        (
            nn.Sequential(nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
            ["neuron axis of layer '1' (ReLU)", "no layer of torch before it settles it", "axis=1 (8 neurons)"],
        ),
    ],
)
def test_what_nothing_settles_is_refused(model, phrases):
    batch = (TOKENS, torch.zeros(N, dtype=torch.long))
    with pytest.raises(ValueError, match=".") as error:
        neuron_importance(model, [batch], layers="1")
    for phrase in phrases:
        assert phrase in str(error.value)
    assert len(str(error.value)) < 300
    note = next(row.note for row in list_sites(model, batch) if row.name == "1")
    assert "pass Site('1', axis=...)" in note
    for axis in (1, 2):
        assert neuron_importance(model, [batch], layers=Site("1", axis=axis)).importances[0].removal.axis == axis
    results = neuron_importance(model, [batch], layers="*")  # a glob skips it, and says so
    assert "1" not in results.sites
    assert any(note.startswith("1: skipped, cannot tell the neuron axis") for note in results.notes)


class TimeFirst(nn.Module):
    """Has (time, sample, channel) inside."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(5, 3)

    def forward(self, x):
        h = self.body(x.transpose(0, 1))
        return self.head((h[0] if isinstance(h, tuple) else h).mean(0))


class Named(nn.Module):
    """Keeps the time first, and calls torch's recurrent layer itself."""

    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(4, 5)

    def forward(self, x):
        h, steps = x.new_zeros(x.shape[1], 5), []
        for step in x:
            steps.append(h := self.cell(step, h))
        return torch.stack(steps)


@pytest.mark.parametrize("n_steps", [N, 6, 7])
@pytest.mark.parametrize("body", ["linear", "own cell", "sequence", "gru"])
def test_the_samples_axis_is_right_where_time_is_as_long(body, n_steps):
    torch.manual_seed(0)
    bodies = {
        "linear": (lambda: nn.Linear(4, 5), "body"),
        "own cell": (Named, "body"),
        "sequence": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh()), "body.1"),
        "gru": (lambda: nn.GRU(4, 5), "body"),
    }
    make, name = bodies[body]
    model = TimeFirst(make())
    assert_right(model, name, torch.randn(N, n_steps, 4), axis=2, sample_axis=1)


def test_a_wrong_sample_axis_is_refused():
    model, x = TimeFirst(nn.Linear(4, 5)), torch.randn(N, N, 4)
    with pytest.raises(ValueError, match="not on sample_axis=0") as error:
        neuron_importance(model, [(x, torch.zeros(N, dtype=torch.long))], layers=Site("body", sample_axis=0))
    assert "changes along axis 1; pass Site('body', sample_axis=1)" in str(error.value)


class Positions(nn.Module):
    """Adds an embedding of positions, and looks up a bank: tensors without samples."""

    def __init__(self, n):
        super().__init__()
        self.wpe, self.bank, self.head = nn.Embedding(n, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("stored", torch.randn(n, 4))

    def forward(self, x):
        h = x + self.wpe(torch.arange(x.shape[1]))
        return self.head((h @ self.bank(self.stored).T).softmax(-1).mean(1) @ self.stored)


@pytest.mark.parametrize("layer", ["wpe", "bank"])
@pytest.mark.parametrize("n", [N, 6, 5, 7])
def test_rows_that_are_no_samples_are_refused(layer, n):
    """Also where there are as many of them as samples in a batch."""
    data = [(torch.randn(N, n, 4), torch.arange(N) % 3)]
    with pytest.raises(ValueError, match=f"layer '{layer}' has an output of shape .* that stays the same") as error:
        neuron_importance(Positions(n), data, layers=layer)
    assert "it holds none of them (positions, or weights)" in str(error.value)
    with pytest.raises(ValueError, match="stays the same"):
        neuron_importance(Positions(n), data, layers=Site(layer, sample_axis=0))
    for baseline in ("zero", "mean"):  # a glob skips them, and says so
        results = neuron_importance(Positions(n), data, layers="*", baseline=baseline)
        assert results.sites == ("head",)
        assert any(note.startswith(f"{layer}: skipped, layer '{layer}' has an output") for note in results.notes)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.rand(1, 10, 1))

    def forward(self, x):
        return x * self.gate


class Queries(nn.Module):
    """Pools tokens by learned queries, as set transformers do."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        return (self.queries @ x.transpose(1, 2)).softmax(-1) @ x


class Map(nn.Module):
    """Returns a map of attention."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)


@pytest.mark.parametrize("module", [Gate, Queries, Map])
def test_positions_are_not_taken_for_neurons(module):
    model = nn.Sequential(nn.Linear(5, 8), module(), nn.Flatten(), nn.LazyLinear(3))
    x, y = torch.randn(N, 10, 5), torch.zeros(N, dtype=torch.long)
    model(x)
    with pytest.raises(ValueError, match="cannot tell the neuron axis of layer '1'"):
        neuron_importance(model, [(x, y)], layers="1")


HANDED_ON = {
    "time shift": (nn.ZeroPad2d((0, 0, 1, -1)), 8),
    "maxout": (nn.MaxPool1d(2), 4),
    "pooled tokens": (nn.AvgPool2d((2, 1)), 8),
    "more tokens": (nn.ConstantPad2d((0, 0, 0, 2), 0.5), 8),
}


@pytest.mark.parametrize("case", HANDED_ON)
def test_layers_without_neurons_count_as_the_layer_before_them(case):
    layer, n_neurons = HANDED_ON[case]
    model = nn.Sequential(nn.Linear(5, 8), layer, nn.Tanh(), Mean(1), nn.Linear(n_neurons, 3))
    for name in ("1", "2"):
        assert_right(model, name, torch.randn(N, 10, 5), 2)
        model.float()


def test_a_norm_over_positions_counts_as_the_layer_before_it():
    model = nn.Sequential(nn.Conv1d(5, 8, 1), nn.LayerNorm(10), nn.ReLU(), Mean(2), nn.Linear(8, 3))
    for name in ("1", "2"):
        assert_right(model, name, torch.randn(N, 5, 10), 1)
        model.float()


class Fixed(nn.Module):
    """Takes batches of one size only, so that nothing tells samples from steps."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x.reshape(N, N, 4).transpose(0, 1)).mean(0))


def test_a_model_that_takes_one_size_of_batches_must_be_told():
    x, y = torch.randn(N, N, 4), torch.zeros(N, dtype=torch.long)
    with pytest.raises(ValueError, match="takes no other number of samples") as error:
        neuron_importance(Fixed(), [(x, y)], layers="body")
    assert "sample_axis=0) or sample_axis=1" in str(error.value)
    found = neuron_importance(Fixed(), [(x, y)], layers=Site("body", sample_axis=1)).importances[0]
    assert (found.removal.where.sample_axis, found.removal.axis) == (1, 2)
    assert neuron_importance(Fixed(), [(x, y)], layers="head").sites == ("head",)


def test_the_trial_of_a_resnet_takes_five_passes():
    """Torch's own layers, and what hands their outputs on, need no further passes."""
    from tests.support.zoo import ResNet

    calls = []
    model = ResNet().eval()
    model.register_forward_hook(lambda *args: calls.append(1))
    probe = ProbeSet.from_batches([(torch.randn(N, 1, 8, 8), torch.arange(N) % 4)])
    with undisturbed(model):
        trial = try_out(Subject(model, probe), ["stem.*", "blocks.*", "head"])
    assert len(calls) == 5  # two that differ in size, one again, and two halves
    assert set(trial.axes.values()) == {1}
    assert not trial.unsettled
