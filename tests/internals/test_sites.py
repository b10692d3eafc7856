import pytest
import torch
from torch import nn

from lightning_neuroimp import Site, neuron_importance
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.errors import InvalidArgument
from tests.support.toys import class_zero


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.encoder(x))


def names(layers, model=None):
    return [site.name for site in find_sites(model or Deep(), layers)]


def test_names_and_globs():
    assert names("head") == ["head"]
    assert names(["head", "encoder.1"]) == ["head", "encoder.1"]
    assert names("encoder.*") == ["encoder.0", "encoder.1", "encoder.2"]
    assert names("encoder.**") == ["encoder.0", "encoder.1", "encoder.2", "encoder.2.0", "encoder.2.1"]
    assert names("**.0") == ["encoder.0", "encoder.2.0"]
    assert names("*") == ["encoder", "head", "unused"]
    assert names(["encoder.1", "encoder.*"]) == ["encoder.1", "encoder.0", "encoder.2"]
    assert find_sites(Deep(), [Site("head", axis=1)])[0].axis == 1


@pytest.mark.parametrize(
    ("layers", "phrases"),
    [
        ("encoder.11", ["no layer 'encoder.11' in Deep", "did you mean 'encoder.1'", "model.named_modules()"]),
        (["xyz"], ["no layer 'xyz'", "the layers are 'encoder'"]),
        ("decoder.*", ["no layer in Deep matches 'decoder.*'", "did you mean 'encoder"]),
        ([], ["layers is empty", "name at least one"]),
        ([3], ["must be names, globs or sites, got 3"]),
        (None, ["must be names, globs or sites, got None"]),
        (nn.ReLU(), ["got a module, ReLU: pass the name of a layer in model.named_modules()"]),
    ],
)
def test_layers_that_are_not_there(layers, phrases):
    with pytest.raises(ValueError, match=".") as error:
        find_sites(Deep(), layers)
    for phrase in phrases:
        assert phrase in str(error.value)


def test_a_module_in_place_of_its_name():
    model = Deep()
    with pytest.raises(ValueError, match=r"got a module, ReLU: pass its name, 'encoder.1'"):
        find_sites(model, [model.encoder[1]])


def test_globs_stop_at_sixteen():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(17)])
    with pytest.raises(ValueError, match=r"'\*' matches 17 layers, more than the 16 .* name those that you want"):
        find_sites(model, "*")
    assert len(find_sites(model, [str(number) for number in range(17)])) == 17


class Odd(nn.Module):
    """Modules that cannot be explained, each for its own reason."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(2, 2)
        self.pair = Both()
        self.number = nn.Embedding(3, 2)
        self.index = Index()
        self.total = Total()
        self.unused = nn.Linear(2, 2)
        self.reshaped = Rearranged()
        self.frozen = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        h = self.twice(self.twice(x))
        h = self.pair(h)[0] + self.number(self.index(x))
        self.total(h), self.reshaped(h)
        with torch.no_grad():
            self.frozen(h)
        return self.head(h)


class Both(nn.Module):
    def forward(self, x):
        return x.tanh(), x.sigmoid()


class Index(nn.Module):
    def forward(self, x):
        return (x[:, 0] > 0).long()


class Total(nn.Module):
    def forward(self, x):
        return x.sum(1)


class Rearranged(nn.Module):
    def forward(self, x):
        return x.T


REASONS = {
    "twice": ["'twice' is called several times in one forward pass", "or choose a layer that is called once"],
    "pair": ["'pair' (Both) has several tensors as its output, (Tensor 3 x 2, Tensor 3 x 2)", "item=0), or 1"],
    "index": ["'index' (Index) has an output of torch.int64", "choose a later layer"],
    "total": ["'total' has an output of shape (3,)", "no axis of neurons"],
    "unused": ["'unused' was not called in the model's forward pass"],
    "reshaped": ["'reshaped' has no gradient: in no batch", "attribution='leave_one_out'"],
    "frozen": ["'frozen' runs under torch.no_grad()", "attribution='activation'"],
}


@pytest.mark.parametrize("layer", REASONS)
def test_layers_that_cannot_be_explained(layer):
    with pytest.raises(ValueError, match=".") as error:
        neuron_importance(Odd(), class_zero(torch.randn(3, 2)), layers=layer)
    for phrase in REASONS[layer]:
        assert phrase in str(error.value)


def test_a_glob_skips_what_cannot_be_explained_and_says_so():
    results = neuron_importance(Odd(), class_zero(torch.randn(3, 2)), layers="*")
    assert results.sites == ("number", "head")
    assert len(results.notes) == len(REASONS)
    for layer, reason in REASONS.items():
        assert any(note.startswith(f"{layer}: skipped, layer {reason[0]}"[:40]) for note in results.notes)


def test_a_glob_of_nothing_but_such_layers():
    with pytest.raises(ValueError, match=r"none of the layers can be explained; for instance, layer 'unused' was not"):
        neuron_importance(Odd(), class_zero(torch.randn(3, 2)), layers="un*")


def test_a_layer_under_no_grad_still_has_activations():
    results = neuron_importance(Odd(), class_zero(torch.randn(3, 2)), layers="frozen", attribution="activation")
    assert results["frozen"].mean.shape == (1, 2)


@pytest.mark.parametrize(
    ("model", "layer", "shape", "axis"),
    [
        (nn.Sequential(nn.Conv1d(3, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2)), "1", (4, 3, 4), 1),
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2)), "1", (4, 3, 4), 2),
        (nn.Sequential(nn.Conv2d(3, 5, 2), nn.Dropout2d(), nn.Flatten(), nn.Linear(45, 2)), "1", (4, 3, 4, 4), 1),
        (nn.Sequential(nn.Conv2d(3, 5, 2), nn.Flatten(), nn.Linear(45, 2)), "1", (4, 3, 4, 4), 1),
        (nn.Sequential(nn.InstanceNorm1d(3), nn.Flatten(), nn.Linear(12, 2)), "0", (4, 3, 4), 1),
    ],
)
def test_activations_count_neurons_as_the_layer_before_them(model, layer, shape, axis):
    results = neuron_importance(model, class_zero(torch.randn(shape)), layers=layer)
    assert results[layer].removal.axis == axis


def test_an_axis_that_nothing_tells():
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    data = class_zero(torch.randn(4, 3, 4))
    with pytest.raises(ValueError, match=r"cannot tell the neuron axis of layer '0' \(ReLU\).*Site\('0', axis=...\)"):
        neuron_importance(model, data, layers="0", clusters=lambda batch: [0] * 4)
    assert neuron_importance(model, data, layers=[Site("0", axis=-1)])["0"].removal.axis == 2
    with pytest.raises(ValueError, match=r"axis=0 is not a neuron axis of layer '0'.*choose from 1, 2"):
        neuron_importance(model, data, layers=[Site("0", axis=0)])


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Patches(nn.Module):
    """Convolution to tokens, as vision transformers do."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 2, stride=2), ChannelsFirstNorm(width)
        self.tokens, self.space = Whole(), nn.LayerNorm([width, 3, 3])
        self.mix, self.act, self.head = Product(width, 7), nn.GELU(), nn.Linear(7, 3)

    def forward(self, x):
        x = self.space(self.norm(self.conv(x)))
        return self.head(self.act(self.mix(self.tokens(x))).mean(1))


class Whole(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class Product(nn.Module):
    """A linear layer that torch does not know."""

    def __init__(self, n, m):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, m))

    def forward(self, x):
        return torch.relu(x @ self.weight)


def test_a_guessed_axis_must_have_as_many_channels():
    x = torch.randn(4, 1, 6, 6)
    for width in (5, 9):  # nine tokens of nine channels are no other than those of five
        results = neuron_importance(Patches(width), class_zero(x), layers=["conv", "norm"])
        assert [results[name].removal.axis for name in results] == [1, 1]
        assert [results[name].removal.n_neurons for name in results] == [width] * 2
        # a norm over channels and space mixes them all, so that it may be that nothing tells which is which
        try:
            assert neuron_importance(Patches(width), class_zero(x), layers="tokens")["tokens"].removal.axis == 2
        except InvalidArgument as error:
            assert str(error).startswith("cannot tell the neuron axis of layer 'tokens' (Whole)")  # noqa: PT017

    # another number of channels at the same places
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mix, self.head = nn.LayerNorm(4), Product(4, 7), nn.Linear(7, 3)

        def forward(self, x):
            return self.head(self.mix(self.norm(x)).mean(1))

    found = neuron_importance(Mixing(), class_zero(torch.randn(5, 6, 4)), layers="mix")["mix"]
    assert (found.removal.axis, found.removal.n_neurons) == (2, 7)


def test_packed_sequences_name_the_remedy():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, [5, 4, 4, 2], batch_first=True)
            return self.head(self.rnn(packed)[1][0][-1])

    data = class_zero(torch.randn(4, 5, 3))
    with pytest.raises(ValueError, match=r"packs the tokens of all samples in one row; .*item=\(1, 0\)"):
        neuron_importance(Packed(), data, layers="rnn")
    found = neuron_importance(Packed(), data, layers=Site("rnn", item=(1, 0)))
    assert found.importances[0].removal.n_neurons == 4


def test_one_site_that_is_named_twice():
    model = nn.Sequential(nn.GRU(2, 2), nn.ReLU())
    assert find_sites(model, ["0", Site("0"), "*"]) == (Site("0", sample_axis=1), *find_sites(model, "*")[1:])
    assert [site.optional for site in find_sites(model, ["*", "1"])] == [True, False]
    with pytest.raises(InvalidArgument, match=r"layers name '0' twice, with samples on axis 1 and on axis 0: pass one"):
        find_sites(model, ["0", Site("0", sample_axis=0)])
