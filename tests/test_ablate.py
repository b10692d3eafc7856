"""`with ablate(...)` and `list_sites`."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import Site, ablate, list_sites, neuron_importance
from lightning_neuroimp.errors import InvalidArgument
from tests.support.families import Attention, Encoder, Residual

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

X, Y = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])


def network():
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()


def edited(model, neurons, value=0.0):
    """Logits by hand."""
    h = model[1](model[0](X)).clone()
    h[:, neurons] = torch.as_tensor(value, dtype=h.dtype)
    return model[2](h)


@pytest.mark.parametrize(
    "neurons", [[0, 3], (0, 3), np.array([0, 3]), torch.tensor([3, 0]), [True, False, False, True], range(0, 4, 3)]
)
def test_neurons_are_removed_inside_only(neurons):
    model = network()
    before = model(X)
    with ablate(model, "1", neurons):
        inside = model(X)
    assert torch.equal(inside, edited(model, [0, 3]))
    assert torch.equal(model(X), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_baselines_of_the_users_own():
    model = network()
    with ablate(model, "1", [1], baseline=0.7):
        assert torch.equal(model(X), edited(model, [1], 0.7))
    with ablate(model, "1", [1, 2], baseline=[9, 0.5, -1, 9]):
        assert torch.equal(model(X), edited(model, [1, 2], [0.5, -1]))
    with ablate(model, "1", []):
        assert torch.equal(model(X), model(X))


def test_the_removal_of_results_brings_its_baseline():
    model = network()
    removal = neuron_importance(model, [(X, Y)], layers="1", baseline="mean")["1"].removal
    with ablate(model, removal, [2]):
        expected = edited(model, [2], model[1](model[0](X))[:, 2].double().mean().item())
        torch.testing.assert_close(model(X), expected)
    with ablate(model, removal, [2], baseline=0):
        assert torch.equal(model(X), edited(model, [2]))


def test_gradients_flow_through_the_others():
    model = network()
    with ablate(model, "1", [0]):
        model(X).sum().backward()
    assert model[0].weight.grad[0].abs().sum() == 0
    assert model[0].weight.grad[1:].abs().sum() > 0


def test_nested_and_after_an_exception():
    model = network()
    with ablate(model, "1", [0]), ablate(model, "1", [1]):
        assert torch.equal(model(X), edited(model, [0, 1]))
    with pytest.raises(RuntimeError, match="stop"), ablate(model, "1", [0]):
        raise RuntimeError("stop")
    assert torch.equal(model(X), edited(model, []))
    assert torch.backends.mha.get_fastpath_enabled()


def test_calls_positions_and_heads():
    model, images = Residual().eval(), torch.randn(2, 1, 5, 5)
    with ablate(model, Site("relu", call=1), range(4)):
        first = model(images)
        assert torch.equal(model(images), first)  # calls are counted anew in each pass
    torch.testing.assert_close(first, model.head.bias.expand(2, -1))
    attention, tokens, mask = Attention().eval(), torch.randn(3, 5, 8), torch.ones(3, 5)
    with ablate(attention, Site("out", side="input", group=4), [1]):
        logits = attention(tokens, mask)[0]
    weight = attention.out.weight.detach().clone()
    with torch.no_grad():
        attention.out.weight[:, 4:] = 0
    torch.testing.assert_close(logits, attention(tokens, mask)[0])
    with torch.no_grad():
        attention.out.weight.copy_(weight)
        with ablate(attention, Site("out", position=0), range(8)):
            class_only = attention(tokens, mask)[0]
        attention.out.weight.zero_(), attention.out.bias.zero_()
        torch.testing.assert_close(class_only, attention(tokens, mask)[0])  # only the class token is read


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_fused_path_of_attention_is_not_taken():
    model, x, padding = Encoder().eval(), torch.randn(2, 4, 8), torch.zeros(2, 4).bool()
    with torch.no_grad():
        whole = model(x, padding)["logits"]
        with ablate(model, "encoder.layers.1.linear1", range(12)):
            assert not torch.allclose(model(x, padding)["logits"], whole)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("1", np.array(["a"])), {}, r"neurons must be numbers, or one boolean for each, got array\(\['a'\]"),
        (
            ("1", [0]),
            {"baseline": np.array(["a"])},
            r"baseline must be one number, or one for each channel of the layer, got array\(\['a'\]",
        ),
        (("7", [0]), {}, "there is no layer '7' in Sequential"),
        (
            ("1", [4]),
            {},
            r"neurons of layer '1' are numbered from 0 to 3, got \[4\]; pass their numbers, or one boolean",
        ),
        (("1", [-1]), {}, r"from 0 to 3, got \[-1\]"),
        (("1", np.array([0.5])), {}, r"from 0 to 3, got \[0.5\]"),
        (("1", [True]), {}, "one value for each of the 4 neurons of layer '1', got 1"),
        (("1", [0]), {"baseline": [1.0, 2.0]}, r"one for each of the 4 channels of layer '1', got shape \(2,\)"),
        (
            ("1", [0]),
            {"baseline": "mean"},
            r"baseline='mean' depends on data: pass numbers, or results\[layer\].removal",
        ),
    ],
)
def test_what_cannot_be_removed(arguments, options, message):
    model = network()
    with pytest.raises(InvalidArgument, match=message), ablate(model, *arguments, **options):
        model(X)
    assert not model[1]._forward_hooks


def test_resampled_removals_need_a_number():
    model = network()
    removal = neuron_importance(model, [(X, Y)], layers="1", baseline="resample")["1"].removal
    with pytest.raises(ValueError, match=r"baseline is 'resample', another value for each sample: pass baseline="):
        ablate(model, removal, [0]).__enter__()


def test_a_layer_that_was_not_called_is_told():
    model = network()
    with (
        pytest.warns(UserWarning, match=r"no neurons were removed: '1' was not called inside"),
        ablate(model, "1", [0]),
    ):
        model[0](X)


def test_the_table_of_sites():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.index, self.rnn = nn.Embedding(9, 4), nn.GRU(4, 3, batch_first=True)
            self.both, self.twice, self.unused = Both(), nn.Tanh(), nn.ReLU()
            self.head = nn.Linear(3, 3)

        def forward(self, ids):
            last = self.rnn(self.index(ids))[1]
            return self.head(self.twice(self.twice(self.both(last[0])[0])))

    class Both(nn.Module):
        def forward(self, x):
            return x, x * 2

    model, ids = Odd(), torch.randint(9, (6, 7))
    table = list_sites(model, {"ids": ids, "label": Y})
    rows = {row.name: row for row in table}
    assert rows["rnn"].shape == "(Tensor 6 x 7 x 3, Tensor 1 x 6 x 3)"
    assert (rows["index"].neurons, rows["rnn"].neurons, rows["head"].neurons) == (4, 3, 3)
    assert rows["twice"].note == "Site('twice', call=0) to call=1"
    assert rows["both"].neurons is None
    assert "say which: Site('both', item=0), or 1" in rows["both"].note
    assert rows["unused"].note == "not called"
    text = str(table)
    assert text.splitlines()[0].split() == ["name", "kind", "output", "neurons", "calls", "note"]
    assert "GRU" in text
    # what it says can be passed
    for row in table:
        if row.neurons is not None:
            # the model reads the last states of its recurrent layer only
            own = {"rnn": Site("rnn", item=1), "twice": Site("twice", call=0)}
            layer = own.get(row.name, row.name)
            found = neuron_importance(model, [{"ids": ids, "label": Y}], layers=[layer])
            assert found[layer].removal.n_neurons == row.neurons
    with pytest.raises(ValueError, match="cannot tell inputs from targets"):
        list_sites(model, ids)


class Tokens(nn.Module):
    """Read the last token that is no padding."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, ids, attention_mask):
        z = torch.tanh(self.layer(self.embed(ids)))
        return self.head(z[torch.arange(len(z)), attention_mask.sum(1) - 1])


@pytest.mark.parametrize("how", ["positional", "keyword", "given"])
def test_positions_are_counted_without_the_padding_that_the_model_is_told(how):
    model, ids = Tokens().eval(), torch.randint(9, (8, 5))
    mask = (torch.arange(5)[None] < torch.randint(2, 5, (8, 1))).long()
    batch = {"ids": ids, "attention_mask": mask, "labels": torch.randint(3, (8,))}
    removal = neuron_importance(model, [batch], layers=Site("layer", position=-1)).importances[0].removal
    with torch.no_grad():
        with ablate(model, removal, range(6), tokens=mask if how == "given" else None):
            found = model(ids, attention_mask=mask) if how == "keyword" else model(ids, mask)
        torch.testing.assert_close(found, model.head(torch.zeros(8, 6)))


def test_calls_are_counted_in_each_pass_of_a_part():
    model = Residual().eval()
    outer = nn.ModuleDict({"net": model})
    images = torch.randn(2, 1, 5, 5)
    with ablate(outer, Site("net.relu", call=1), range(4)):
        for _ in range(3):  # the outermost module is never called
            torch.testing.assert_close(outer["net"](images), model.head.bias.expand(2, -1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_one_layer_at_a_time():
    with pytest.raises(ValueError, match=r"one layer at a time, got 0, 1, 2: nest `with ablate"):
        ablate(network(), "*", [0]).__enter__()
