"""Sites beyond a layer's one output tensor."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import Site, neuron_importance
from lightning_neuroimp.capture.positions import chosen_positions
from lightning_neuroimp.capture.site_tensor import Inputs, describe_shapes, read_activation, write_activation
from lightning_neuroimp.capture.sites import find_sites
from tests.support.toys import class_zero

Pair = namedtuple("Pair", "first second")


@dataclass(frozen=True)
class Record:
    hidden: torch.Tensor
    extra: int = 3


class Fields(OrderedDict):
    """As Hugging Face's outputs are."""


VALUE = torch.randn(4, 3)
OTHER = torch.randn(4, 3)
CONTAINERS = [
    (Site("m"), VALUE),
    (Site("m", item=0), (VALUE, OTHER)),
    (Site("m", item=1), [OTHER, VALUE]),
    (Site("m", item=-1), (OTHER, VALUE)),
    (Site("m", item=(1, 0)), (OTHER, (VALUE, OTHER))),
    (Site("m", item="first"), Pair(VALUE, OTHER)),
    (Site("m", item=1), Pair(OTHER, VALUE)),
    (Site("m", item="a"), {"b": OTHER, "a": VALUE}),
    (Site("m", item="a"), Fields(b=OTHER, a=VALUE)),
    (Site("m", item="hidden"), Record(VALUE)),
    (Site("m"), (VALUE, None, 3, torch.arange(4))),  # the only tensor with a gradient
    (Site("m"), Record(VALUE)),
    (Site("m", side="input"), Inputs((VALUE,), {"mask": torch.arange(4)})),
    (Site("m", side="input", item=1), Inputs((OTHER, VALUE), {})),
    (Site("m", side="input", item="x"), Inputs((OTHER,), {"x": VALUE})),
]


@pytest.mark.parametrize(("site", "container"), CONTAINERS)
def test_a_tensor_is_found_and_replaced_and_nothing_else_changes(site, container):
    module, before = nn.ReLU(), describe_shapes(container)
    assert read_activation(site, module, container) is VALUE
    new = torch.randn(4, 3)
    written = write_activation(site, module, container, new)
    again = Inputs(*written) if site.side == "input" else written
    assert type(again) is type(container)
    assert read_activation(site, module, again) is new
    assert read_activation(site, module, container) is VALUE  # containers are copied
    assert describe_shapes(container) == before == describe_shapes(again)
    others = [id(part) for part in _leaves(container) if part is not VALUE]
    assert others == [id(part) for part in _leaves(again) if part is not new]


def _leaves(value):
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    if isinstance(value, tuple | list):
        return [leaf for part in value for leaf in _leaves(part)]
    return list(vars(value).values()) if isinstance(value, Record) else [value]


def test_samples_on_another_axis_come_first():
    site, module, value = Site("m", sample_axis=1), nn.ReLU(), torch.randn(5, 4, 3)
    assert torch.equal(read_activation(site, module, value, 4), value.transpose(0, 1))
    assert torch.equal(write_activation(site, module, value, read_activation(site, module, value)), value)


@pytest.mark.parametrize(
    ("site", "value", "phrases"),
    [
        (Site("m"), (VALUE, OTHER), ["several tensors as its output, (Tensor 4 x 3, Tensor 4 x 3)", "item=0), or 1"]),
        (Site("m"), {"a": VALUE, "b": OTHER}, ["{a: Tensor 4 x 3, b: Tensor 4 x 3}", "Site('m', item='a'), or 'b'"]),
        (Site("m"), ("a", 1), ["an output that is a str, not a tensor", "choose an item of it"]),
        (Site("m"), 3.0, ["has as its output a float, not a tensor"]),
        (Site("m", item=2), (VALUE, OTHER), ["no item 2 in its output, which is (Tensor 4 x 3, Tensor 4 x 3)"]),
        (Site("m", item="c"), {"a": VALUE}, ["no item 'c' in its output, which is {a: Tensor 4 x 3}"]),
        (Site("m", side="input"), Inputs((VALUE, OTHER), {}), ["several tensors as its input", "side='input', item=0"]),
        (Site("m", side="input"), Inputs((), {}), ["has as its input none"]),
        (Site("m"), torch.arange(4), ["an output of torch.int64", "choose a later layer"]),
        (
            Site("m"),
            torch.zeros(7, 4, 3),
            ["(7, 4, 3) for a batch of 4 samples; its first axis", "axis 1, pass Site('m', sample_axis=1)"],
        ),
        (Site("m"), torch.zeros(7, 3), ["Windows, or tokens and nodes in one row, cannot be explained"]),
        (Site("m", sample_axis=1), torch.zeros(4, 3), ["its axis 1 must be the samples", "sample_axis=0"]),
    ],
)
def test_what_cannot_be_read_says_what_would_do(site, value, phrases):
    with pytest.raises(ValueError, match=r"^layer 'm' \(ReLU\) ") as error:
        read_activation(site, nn.ReLU(), value, 4)
    for phrase in phrases:
        assert phrase in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": "both"}, "side of a site must be 'output' or 'input', got 'both'"),
        ({"call": -1}, "call of a site must be at least 0, got -1; 0 is the first call"),
        ({"group": 0}, "group of a site must be at least 1, got 0"),
    ],
)
def test_sites_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Site("layer", **options)


def test_sites_in_words():
    assert str(Site("encoder.1")) == "encoder.1"
    assert str(Site("relu", call=1)) == "relu (call 1)"
    assert str(Site("rnn", item=(1, 0))) == "rnn (item 1.0)"
    assert str(Site("a.out", side="input", group=8, position=-1)) == "a.out (input, position -1, groups of 8)"


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


def test_several_sites_of_one_module_side_by_side():
    layers = [Site("layer", call=0), Site("layer", call=1), Site("layer", side="input", call=1)]
    results = neuron_importance(Twice(), class_zero(torch.randn(5, 4)), layers=layers)
    assert results.sites == ("layer (call 0)", "layer (call 1)", "layer (input, call 1)")
    assert results[layers[1]] is results["layer (call 1)"]
    assert layers[1] in results
    assert "layer" not in results
    with pytest.raises(ValueError, match=r"several times in one forward.*pass Site\('layer', call=0\) for the first"):
        neuron_importance(Twice(), class_zero(torch.randn(5, 4)), layers="layer")
    with pytest.raises(ValueError, match=r"'layer' was called 2 times .* there is no call=2; the first one is call=0"):
        neuron_importance(Twice(), class_zero(torch.randn(5, 4)), layers=[Site("layer", call=2)])


def test_the_projection_of_torchs_attention_is_not_called():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0].mean(1))

    data = class_zero(torch.randn(5, 3, 4))
    with pytest.raises(ValueError, match=r"was not called.*nn.MultiheadAttention does not call its out_proj"):
        neuron_importance(Model(), data, layers=[Site("attention.out_proj", side="input", group=2)])
    assert neuron_importance(Model(), data, layers="attention")["attention"].removal.n_neurons == 4


def test_globs_of_sites():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    found = find_sites(model, Site("*", side="input"))
    assert [str(site) for site in found] == ["0 (input)", "1 (input)", "2 (input)"]
    assert all(site.optional for site in found)


def test_torch_says_where_its_samples_are():
    model = nn.ModuleDict({
        "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 1, 4), 1, enable_nested_tensor=False),
        "first": nn.TransformerEncoderLayer(4, 1, 4, batch_first=True),
        "decoder": nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 1, 4), 1),
        "gru": nn.GRU(2, 2),
        "lstm": nn.LSTM(2, 2, batch_first=True),
        "mha": nn.MultiheadAttention(4, 1),
        "linear": nn.Linear(2, 2),
    })  # fmt: skip
    expected = {
        "encoder": 1, "encoder.layers.0.linear1": 1, "first": 0, "first.linear1": 0, "decoder": 1,
        "decoder.layers.0.norm1": 1, "gru": 1, "lstm": 0, "mha": 1, "linear": 0,
    }  # fmt: skip
    assert {name: find_sites(model, name)[0].sample_axis for name in expected} == expected
    assert find_sites(model, Site("lstm", item=(1, 0)))[0].sample_axis == 1
    assert find_sites(model, Site("gru", sample_axis=0))[0].sample_axis == 0


H = torch.zeros(3, 5, 2)
TOKENS = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]]).bool()


@pytest.mark.parametrize(
    ("position", "tokens", "expected"),
    [
        (None, TOKENS, TOKENS.tolist()),
        (None, None, None),
        (None, TOKENS[:, :4], None),  # another number of positions: not its padding
        (0, TOKENS, [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]),
        (-1, TOKENS, [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]),
        (4, TOKENS, [[0] * 5] * 3),
        (7, TOKENS, [[0] * 5] * 3),  # all are shorter, however they are padded
        (1, None, [[0, 1, 0, 0, 0]] * 3),
    ],
)
def test_positions_that_count(position, tokens, expected):
    found = chosen_positions(Site("m", position=position), H, 2, tokens)
    assert (found is None and expected is None) or found.int().tolist() == [[int(v) for v in row] for row in expected]


def test_positions_that_are_not_there():
    with pytest.raises(ValueError, match=r"position=5 of layer 'm': it has 5 positions"):
        chosen_positions(Site("m", position=5), H, 2, None)
    with pytest.raises(ValueError, match=r"position=0 of layer 'm' needs one axis of positions .* \(3, 5\)"):
        chosen_positions(Site("m", position=0), H[..., 0], 1, None)


def test_groups_must_fit():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"'1' has 6 channels, which groups of 4 do not divide; for attention heads"):
        neuron_importance(model, class_zero(torch.randn(5, 4)), layers=[Site("1", group=4)])
    results = neuron_importance(model, class_zero(torch.randn(5, 4)), layers=["1", Site("1", group=3)])
    single, grouped = results["1"].mean, results["1 (groups of 3)"].mean
    np.testing.assert_allclose(grouped, single.reshape(1, 2, 3).sum(2), atol=1e-6)


def test_all_that_a_site_says_survives_a_file(tmp_path):
    site = Site("layer", side="input", call=1, item=0, group=2)
    results = neuron_importance(Twice(), class_zero(torch.randn(5, 4)), layers=[site], baseline=0.5)
    results.save(tmp_path / "results.npz")
    again = type(results).load(tmp_path / "results.npz")
    assert again[site].removal.where == results[site].removal.where
    assert again[site].removal.where.group == 2
    assert again[site].removal.baseline == "constant"
    assert again[site].removal.baseline_value.tolist() == [0.5] * 4
    np.testing.assert_array_equal(again.activity(site).top_samples, results.activity(site).top_samples)


class ClassToken(nn.Module):
    """Puts a token of its own before those of the batch."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Linear(4, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.encoder, self.head = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)

    def forward(self, x, padding_mask):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        mask = torch.cat([torch.zeros(len(x), 1, dtype=torch.bool), padding_mask], 1)
        return self.head(self.encoder(x, src_key_padding_mask=mask)[:, 0])


def test_a_mask_of_another_length_is_told_and_mended():
    torch.manual_seed(0)
    model, x, n = ClassToken(), torch.randn(40, 9, 4), torch.randint(2, 5, (40, 1))
    y = torch.randint(3, (40,))

    def batch(length):
        return {"x": x[:, :length], "padding_mask": torch.arange(length)[None] >= n, "label": y}

    def forward(model, batch):
        kept = torch.cat([torch.ones(len(batch["x"]), 1, dtype=torch.bool), ~batch["padding_mask"]], 1)
        return model(batch["x"], batch["padding_mask"]), batch["label"], kept

    told, other = (
        neuron_importance(model, [batch(size)], layers="encoder.linear1", baseline="mean") for size in (5, 9)
    )
    note = (
        "encoder.linear1: if its positions are tokens, padding counts there: the mask has 5 tokens and the layer 6 "
        "positions; forward_fn may"
    )
    assert any(line.startswith(note) for line in told.notes)
    one, same = (
        neuron_importance(model, [batch(size)], layers="encoder.linear1", baseline="mean", forward_fn=forward)
        for size in (5, 9)
    )
    assert not any("padding counts" in line for line in one.notes)
    np.testing.assert_allclose(one.importances[0].mean, same.importances[0].mean, atol=1e-6)
    assert np.abs(told.importances[0].mean - other.importances[0].mean).max() > 1e-4
    with pytest.raises(
        ValueError, match=r"position=-1 of layer 'encoder' counts from the last unpadded .*5 tokens and"
    ):
        neuron_importance(model, [batch(5)], layers=[Site("encoder", position=-1)])


def test_samples_shorter_than_a_position_are_told():
    model, x = ClassToken(), torch.randn(12, 6, 4)
    mask = torch.arange(6)[None] >= torch.tensor([2] * 6 + [6] * 6)[:, None]
    batch = {"x": x, "padding_mask": mask, "label": torch.zeros(12).long()}
    results = neuron_importance(model, [batch], layers=[Site("embed", position=4)])
    assert "embed (position 4): some samples have no position 4; nothing is scored or removed there" in results.notes


def test_a_tensor_has_no_items():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"layer '0' \(Linear\) has a tensor as its output, .* without items; leave item= out"
    ):
        neuron_importance(model, class_zero(torch.randn(3, 3)), layers=Site("0", item=0))
