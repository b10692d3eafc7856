"""Names of layers: globs that match nothing, lists of layers, several names of a module, layers that are not called."""

import pytest
import torch
from torch import nn

from lightning_neuroimp import Site, list_sites, neuron_importance
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import SIDES


def data(n=12, width=5):
    torch.manual_seed(1)
    return [(torch.randn(n, width), torch.arange(n) % 2)]


class Block(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 7), nn.Linear(7, width)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(self.norm(x))))


class Blocks(nn.Module):
    """Its list of blocks is called one by one."""

    def __init__(self, n_blocks=3, forward=None):
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([Block() for _ in range(n_blocks)])})
        self.classifier = nn.Linear(5, 2)

    def forward(self, x):
        for block in self.encoder["layers"]:
            x = block(x)
        return self.classifier(x)


def message(call, *args, **kwargs):
    with pytest.raises(InvalidArgument) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert len(text) < 300, text
    return text


@pytest.mark.parametrize(
    ("glob", "suggested"),
    [
        ("enc.*.fc", ["'encoder.layers.*.fc1'", "'encoder.layers.*.fc2'"]),
        ("encoder.*.fc1", ["'encoder.layers.*.fc1'"]),
        ("encoder.layer.*.norm", ["'encoder.layers.*.norm'"]),
        ("*.layernorm", ["'encoder.layers.*.norm'"]),
        ("classifer*.0", ["'classifier'"]),
    ],
)
def test_globs_that_match_nothing_are_answered_with_globs_that_match(glob, suggested):
    text = message(find_sites, Blocks(), glob)
    assert f"no layer in Blocks matches {glob!r}" in text
    close = text.partition("did you mean ")[2].partition("?")[0]
    assert set(close.split(" or ")) >= set(suggested)
    for found in close.split(" or "):
        assert find_sites(Blocks(), found.strip("'"))


def test_a_glob_like_nothing_is_answered_with_layers():
    text = message(find_sites, Blocks(), "zzz.*.qqq")
    assert "the layers are 'encoder', 'encoder.layers'" in text


@pytest.mark.parametrize(
    ("name", "kind", "parts"),
    [
        ("encoder", "ModuleDict", ["'encoder.layers.0', 'encoder.layers.1', ..."]),
        ("encoder.layers", "ModuleList", ["'encoder.layers.0', 'encoder.layers.1', ...", "or 'encoder.layers.*'"]),
        ("encoder.lay*", "ModuleList", ["'encoder.layers.0'"]),
    ],
)
def test_lists_of_layers_are_refused_with_their_layers(name, kind, parts):
    text = message(find_sites, Blocks(), name)
    for phrase in (f"is a {kind}", "defines no forward() and is never called", "name the layers in it", *parts):
        assert phrase in text


def test_globs_leave_lists_of_layers_out():
    names = [site.name for site in find_sites(Blocks(1), "**")]
    assert names[0] == "encoder.layers.0"
    assert "classifier" in names
    assert [row.name for row in list_sites(Blocks(1), data()[0])][:2] == ["encoder", "encoder.layers"]


def test_a_list_with_a_forward_of_its_own_is_a_layer():
    class Chain(nn.ModuleList):
        def forward(self, x):
            for module in self:
                x = module(x)
            return x

    model = nn.Sequential(Chain([nn.Linear(5, 4), nn.ReLU()]), nn.Linear(4, 2))
    assert neuron_importance(model, data(), layers="0")["0"].mean.shape == (2, 4)


class Shared(nn.Module):
    """One module under two names, called once or twice."""

    def __init__(self, twice=False):
        super().__init__()
        torch.manual_seed(0)
        self.enc = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.dec = nn.ModuleList([self.enc])
        self.also = self.enc[0]
        self.head, self.twice = nn.Linear(5, 2), twice

    def forward(self, x):
        h = self.dec[0](x)
        return self.head(self.enc(h) if self.twice else h)


@pytest.mark.parametrize(("first", "second"), [("enc", "dec.0"), ("enc.0", "also"), ("dec.0.0", "also")])
def test_either_name_of_a_module_works(first, second):
    model = Shared().eval()
    one, other = (neuron_importance(model, data(), layers=name)[name].mean for name in (first, second))
    assert (one == other).all()
    text = message(find_sites, model, [first, second])
    for phrase in (f"{first!r} and {second!r}", "are one module under two names", "pass one of them"):
        assert phrase in text


def test_globs_give_a_module_with_two_names_once():
    names = [site.name for site in find_sites(Shared(), "**")]
    assert names == ["enc", "enc.0", "enc.1", "head"]
    assert [site.name for site in find_sites(Shared(), ["dec.*", "enc*", "also"])] == ["dec.0", "also"]


def test_a_module_that_is_called_by_both_names_says_so():
    text = message(neuron_importance, Shared(twice=True), data(), layers="enc")
    for phrase in ("called several times", "it has the names 'enc' and 'dec.0'", "call=0"):
        assert phrase in text
    first = neuron_importance(Shared(twice=True), data(), layers=Site("dec.0", call=0))
    assert len(first.importances) == 1


def test_a_module_in_place_of_its_name_is_answered_with_its_names():
    model = Shared()
    text = message(find_sites, model, model.enc)
    assert "pass its name, 'enc' or 'dec.0'" in text


class ByHand(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
        self.blocks = Blocks(1)
        self.head, self.how = nn.Linear(6, 2), how

    def forward(self, x):
        if self.how == "forward":
            h = self.body.forward(self.blocks.forward(x).repeat(1, 3)[:, :5])
        elif self.how == "one by one":
            h = self.body[1](self.body[0](x))
        else:
            h = torch.relu(nn.functional.linear(x, self.body[0].weight, self.body[0].bias))
        return self.head(h)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("how", "layer"), [("forward", "body"), ("one by one", "body"), ("forward", "blocks")])
def test_layers_whose_parts_alone_are_called(how, layer, side):
    text = message(neuron_importance, ByHand(how), data(), layers=Site(layer, side=side))
    part = "body.1" if layer == "body" else "blocks.classifier"
    for phrase in (
        f"layer {layer!r} was not called in the model's forward pass",
        "though its parts were",
        "calls .forward(...) by hand",
        "hooks do not run",
        f"Name a part, such as {part!r}",
        "layer(x)",
    ):
        assert phrase in text


def test_layers_of_which_only_the_weights_are_used():
    text = message(neuron_importance, ByHand("weights"), data(), layers="body.0")
    for phrase in (
        "'body.0' was not called",
        "list_sites(model, batch) shows them",
        "its weights in a function, is no call",
    ):
        assert phrase in text


class Wide(nn.Module):
    """Returns many tensors of many names, as some layers of transformers do."""

    def __init__(self):
        super().__init__()
        self.the_layer_with_a_rather_long_name = Many()
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.the_layer_with_a_rather_long_name(x)["hidden_states_0"])


class Many(nn.Module):
    def forward(self, x):
        return {f"hidden_states_{number}": x * number + x for number in range(80)}


def test_listings_stay_readable():
    table = list_sites(Wide(), data()[0])
    long = table[0]
    assert len(long.shape) + len(long.note) > 400
    lines = repr(table).splitlines()
    assert max(map(len, lines)) <= 160
    assert long.note[:20] in lines[2]
    assert long.shape[:20] in lines[2]
    assert "..." in lines[2]
    assert list_sites(Wide(), data()[0])[0].note == long.note


def test_listings_without_long_texts_are_not_cut():
    text = repr(list_sites(Blocks(), data()[0]))
    assert "..." not in text
    assert repr(list_sites(nn.Linear(5, 2), data()[0])).startswith("name")
