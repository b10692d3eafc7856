"""What users pass as `baseline`: vectors, mappings, reference inputs, an optimum; and what another one would change."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_neuroimp import (
    AblationFaithfulness,
    NeuronImportance,
    ProbeSet,
    ReferenceInput,
    Results,
    Site,
    ablate,
    ablation_faithfulness,
    deletion_curve,
    neuron_importance,
    statistics,
)
from lightning_neuroimp.display.summary import summary
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.study import optimal_baseline
from tests.support.digits import train, validation_batches
from tests.support.toys import Function, in_lockstep

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

SETTINGS = AblationFaithfulness(n_random=19, max_samples=100)


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def loader(*shape, n=60, classes=3, size=16, dtype=torch.float64):
    x, y = torch.randn(n, *shape, dtype=dtype), torch.arange(n) % classes
    return list(zip(x.split(size), y.split(size), strict=True))


def values(results, site):
    return results[site].removal.baseline_value


# --- vectors


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, lambda v: torch.tensor(v, requires_grad=True)])
def test_a_vector_has_one_value_for_each_channel(form):
    model, data, vector = mlp(), loader(4), [0.5, -1.0, 0.0, 2.0, 0.25, -0.125]  # exact in float32
    results = neuron_importance(model, data, layers="1", baseline=form(vector))
    found = results["1"]
    assert (found.removal.baseline, found.removal.baseline_value.tolist()) == ("vector", vector)
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    h = model[:2](x).detach().requires_grad_()
    logits = model[2:](h)
    others = logits.scatter(1, y[:, None], float("-inf")).logsumexp(1)
    (slope,) = torch.autograd.grad((logits.gather(1, y[:, None])[:, 0] - others).sum(), h)
    expected = ((h - torch.tensor(vector)) * slope).detach()
    for row in range(3):
        np.testing.assert_allclose(found.mean[row], expected[y == row].mean(0), atol=1e-12)


def test_checks_and_curves_remove_to_the_vector():
    model, data, vector = mlp(), loader(4), np.linspace(-1, 1, 6)
    results = neuron_importance(model, data, layers="1", baseline=vector)
    curve = deletion_curve(model, data, range(6), layer="1", baseline=vector, fractions=[0.5, 1.0])
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    for row, gone in enumerate((range(3), range(6))):
        for removal, baseline in ((results["1"].removal, None), ("1", vector)):
            with ablate(model, removal, gone, baseline=baseline), torch.no_grad():
                logits = model(x)
            margin = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], float("-inf")).logsumexp(1)
            assert curve.margin[row] == pytest.approx(float(margin.mean()), abs=1e-12)
    judged = ablation_faithfulness(model, data, results, SETTINGS)
    everything = judged["1"].faithfulness.margin[-1]  # all clusters; half of the neurons removed
    assert np.isfinite(everything).all()
    exact = neuron_importance(model, data, layers="1", baseline=vector, attribution="leave_one_out")["1"].mean
    with ablate(model, "1", [2], baseline=vector), torch.no_grad():
        drop = model(x)
    whole = model(x).detach()
    margins = [
        each.gather(1, y[:, None])[:, 0] - each.scatter(1, y[:, None], float("-inf")).logsumexp(1)
        for each in (whole, drop)
    ]
    assert exact[0, 2] == pytest.approx(float((margins[0] - margins[1])[y == 0].mean()), abs=1e-12)


def test_channels_of_convolutions_and_heads_have_their_values():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)).double()
    data, vector = loader(1, 5, 5), [0.1, 0.2, 0.3, 0.4]
    found = neuron_importance(model, data, layers=Site("1", group=2), baseline=vector)["1 (groups of 2)"]
    assert found.mean.shape == (3, 2)
    single = neuron_importance(model, data, layers="1", baseline=vector)["1"]
    np.testing.assert_allclose(found.mean, single.mean.reshape(3, 2, 2).sum(2), atol=1e-12)


def test_vectors_are_kept_in_files(tmp_path):
    results = neuron_importance(mlp(), loader(4), layers="1", baseline=[1, 2, 3, 4, 5, 6])
    results.save(tmp_path / "results.npz")
    assert Results.load(tmp_path / "results.npz") == results
    assert values(results, "1").tolist() == [1, 2, 3, 4, 5, 6]
    assert "baseline: one value per channel" in summary(results)


# --- mappings


def test_each_layer_of_a_mapping_has_its_own_baseline():
    model, data = mlp(), loader(4)
    together = neuron_importance(model, data, layers=["1", "3"], baseline={"3": [1.0, 2, 3, 4, 5], "1": "mean"})
    alone = [
        neuron_importance(model, data, layers=layer, baseline=baseline)
        for layer, baseline in (("1", "mean"), ("3", [1.0, 2, 3, 4, 5]))
    ]
    assert [one.removal.baseline for one in together.importances] == ["mean", "vector"]
    for layer, one in zip(("1", "3"), alone, strict=True):
        np.testing.assert_array_equal(together[layer].mean, one[layer].mean)
        np.testing.assert_array_equal(values(together, layer), values(one, layer))
    numbers = neuron_importance(model, data, layers=["1", "3"], baseline={"1": 0, "3": -0.5})
    assert [one.removal.baseline for one in numbers.importances] == ["zero", "constant"]
    checked = ablation_faithfulness(model, data, together, SETTINGS)
    assert [one.faithfulness is not None for one in checked.importances] == [True, True]


def test_keys_are_names_texts_of_sites_or_sites():
    model, data = mlp(), loader(4)
    site = Site("1", group=2)
    for key in ("1", "1 (groups of 2)", site):
        assert values(neuron_importance(model, data, layers=site, baseline={key: 0.5}), str(site)).tolist() == [0.5] * 6
    # the text is more exact than the name
    both = neuron_importance(model, data, layers=["1", site], baseline={"1": 1.0, str(site): 2.0})
    assert (values(both, "1")[0], values(both, str(site))[0]) == (1.0, 2.0)
    curve = deletion_curve(model, data, range(6), layer="1", baseline={"1": "mean"})
    np.testing.assert_array_equal(
        curve.margin, deletion_curve(model, data, range(6), layer="1", baseline="mean").margin
    )


def test_a_glob_needs_values_only_for_the_layers_that_it_finds_in_use():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"used": nn.Linear(4, 3), "spare": nn.Linear(4, 3)})

        def forward(self, x):
            return self.parts["used"](x)

    model, data = Spare().double(), loader(4)
    found = neuron_importance(model, data, layers="parts.*", baseline={"parts.used": 0.5})
    assert found.sites == ("parts.used",)
    with pytest.raises(
        InvalidArgument, match=r"baseline has no value for layer 'parts.used', only for \['parts.spare'\]"
    ):
        neuron_importance(model, data, layers="parts.*", baseline={"parts.spare": 0.5})
    with pytest.raises(InvalidArgument, match=r"baseline names layer 'parts.use', which is not among.*'parts.used'"):
        neuron_importance(model, data, layers="parts.*", baseline={"parts.use": 0.5})


# --- what is refused, and how


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("maen", r"baseline must be 'zero', 'mean', .* or ReferenceInput\(\.\.\.\), got 'maen'; did you mean 'mean'\?"),
        (None, "baseline must be 'zero', .* got None"),
        (True, "baseline must be 'zero', .* got True"),
        ({1.0, 2.0}, "baseline must be 'zero', .* a list with one number per channel, a mapping from layers to these"),
        ([], "baseline must be a number or a list with one number per channel, got an empty list"),
        ([1.0, float("nan")], "list with one number per channel, all of them finite, got nan for channel 1"),
        (np.array([np.inf, 1.0]), "all of them finite, got inf for channel 0"),
        ([0.0, "1"], "all of them finite, got '1' for channel 1"),
        ([0.0, True], "all of them finite, got True for channel 1"),
        ([[0.0], [1.0]], r"all of them finite, got \[0.0\] for channel 0"),
        (torch.zeros(2, 3), r"a number or a list with one number per channel, got float32 of shape \(2, 3\)"),
        (np.array([True, False]), r"one number per channel, got bool of shape \(2,\)"),
        (torch.zeros(2, dtype=torch.complex64), r"one number per channel, got complex64 of shape \(2,\)"),
        ({}, r"baseline is an empty mapping: name each layer, such as baseline=\{'encoder.1': 'mean'\}"),
        ({1: 0.5}, "mapping from names of layers to numbers or vectors, got the key 1; names are strings, such as '1'"),
        ({"1": "resample"}, "baseline of layer '1' must be 'zero', 'mean', .* got 'resample', which is for all layers"),
        ({"1": "optimal"}, "got 'optimal', which is for all layers together: pass it as baseline= without a mapping"),
        ({"1": ReferenceInput(torch.zeros(1))}, "got ReferenceInput.* which is for all layers together"),
        (
            {"1": {"1": 0.5}},
            "baseline of layer '1' must be 'zero', 'mean', a finite number or a list .* got {'1': 0.5}",
        ),
        ({"1": float("inf")}, "baseline of layer '1' must be a number, got inf"),
        ({"1": [1.0, None]}, "baseline of layer '1' must be a list .* got None for channel 1"),
        ({"1": 0.5, Site("1"): 1.0}, "baseline names layer '1' twice: pass one of them"),
        ({"1": 0.5, "3": "mean", "encoder": 1.0}, "baseline names layer 'encoder', which is not among layers="),
        ({"1": 0.5, "l3": "mean"}, "baseline names layer 'l3', which is not among layers=: did you mean '3'"),
        ({"1": 0.5}, r"baseline has no value for layer '3', only for \['1'\]: add one, such as baseline=\{'3': 'mean'"),
    ],
)
def test_what_is_no_baseline(unchecked, baseline, message):
    def never(model, batch):
        raise AssertionError("the model was run")

    for refuse in (
        lambda: neuron_importance(mlp(), loader(4), layers=["1", "3"], baseline=baseline, forward_fn=never),
        lambda: NeuronImportance(["1", "3"], baseline=baseline),
    ):
        with pytest.raises((InvalidArgument, MisconfigurationException), match=message) as caught:
            refuse()
        assert len(str(caught.value)) < 300
    with pytest.raises(InvalidArgument):  # a layer that it has no value for, and names that are not asked for
        deletion_curve(mlp(), loader(4), range(5), layer="3", baseline=baseline)


def test_vectors_of_the_wrong_length_are_refused_with_the_mapping():
    model, data = mlp(), loader(4)
    with pytest.raises(InvalidArgument, match=r"baseline holds 6 numbers, and layer '3' has 5 channels: .*") as caught:
        neuron_importance(model, data, layers=["1", "3"], baseline=[0.0] * 6)
    assert "baseline={'3': [0.0, ...], ...}" in str(caught.value)
    with pytest.raises(InvalidArgument, match="baseline holds 2 numbers for layer '1', which has 6 channels: pass one"):
        neuron_importance(model, data, layers="1", baseline={"1": [0.0, 1.0]})
    with pytest.raises(InvalidArgument, match="baseline holds 3 numbers, and layer '1' has 6 channels"):
        deletion_curve(model, data, range(6), layer="1", baseline=[0.0] * 3)
    # channels, not neurons
    with pytest.raises(InvalidArgument, match="baseline holds 3 numbers, and layer '1 .groups of 2.' has 6 channels"):
        neuron_importance(model, data, layers=Site("1", group=2), baseline=[0.0] * 3)


# --- the command line


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's use of jsonargparse
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("mean", "mean"),
        ("-0.5", -0.5),
        ("[0.5, 1, -2]", [0.5, 1, -2]),
        ("{encoder.1: [0.5, 1], encoder.2: mean}", {"encoder.1": [0.5, 1], "encoder.2": "mean"}),
        ("{encoder.1: 0.25, encoder.2: zero}", {"encoder.1": 0.25, "encoder.2": "zero"}),
        (
            "\n        encoder.1: -1\n        encoder.2:\n        - 1.5\n        - 2",
            {"encoder.1": -1, "encoder.2": [1.5, 2]},
        ),
    ],
)
def test_yaml_can_say_it(tmp_path, monkeypatch, written, expected):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    from tests.test_callback import Classifier

    (tmp_path / "config.yaml").write_text(
        "trainer:\n  logger: false\n  callbacks:\n  - class_path: lightning_neuroimp.NeuronImportance\n"
        f"    init_args:\n      layers: [encoder.1, encoder.2]\n      baseline: {written}\n"
    )
    monkeypatch.setattr("sys.argv", ["program"])
    options = {"run": False, "save_config_callback": None, "seed_everything_default": False}
    cli = LightningCLI(Classifier, args=["--config", str(tmp_path / "config.yaml")], **options)
    (ours,) = [one for one in cli.trainer.callbacks if isinstance(one, NeuronImportance)]
    assert ours.baseline == expected
    if isinstance(expected, str | float):
        arguments = ["--trainer.callbacks+=lightning_neuroimp.NeuronImportance", "--trainer.callbacks.layers=encoder.2"]
        cli = LightningCLI(Classifier, args=[*arguments, f"--trainer.callbacks.baseline={written}"], **options)
        assert cli.trainer.callbacks[0].baseline == expected


# --- reference inputs


def test_a_reference_is_the_activations_on_it():
    model, data = mlp(), loader(4)
    black = torch.zeros(3, 4, dtype=torch.float64)
    found = neuron_importance(model, data, layers=["1", "3"], baseline=ReferenceInput(black))
    assert [one.removal.baseline for one in found.importances] == ["reference"] * 2
    for layer, end in (("1", 2), ("3", 4)):
        np.testing.assert_allclose(values(found, layer), model[:end](black)[0].detach(), atol=1e-15)
    same = neuron_importance(model, data, layers="3", baseline=values(found, "3"))
    np.testing.assert_array_equal(found["3"].mean, same["3"].mean)
    assert "baseline: a reference input" in summary(found)
    curves = [
        deletion_curve(model, data, range(5), layer="3", baseline=baseline).margin
        for baseline in (ReferenceInput(black), values(found, "3"))
    ]
    np.testing.assert_array_equal(*curves)


def test_a_reference_is_averaged_over_samples_and_positions_of_any_size():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    noise = torch.rand(5, 1, 9, 7, dtype=torch.float64)  # other images than the samples
    found = neuron_importance(model, loader(1, 6, 6), layers="1", baseline=ReferenceInput(noise))
    np.testing.assert_allclose(values(found, "1"), model[:2](noise).mean((0, 2, 3)).detach(), atol=1e-14)


class Tokens(nn.Module):
    """Has tokens, a mask, and a branch that short inputs do not take."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu", dropout=0.0)
        self.embed, self.layer, self.head = nn.Embedding(11, 8), layer, nn.Linear(8, 3)
        self.long = nn.Linear(8, 8)

    def forward(self, tokens, attention_mask):
        h = self.layer(self.embed(tokens), src_key_padding_mask=attention_mask == 0)
        if tokens.shape[1] > 3:
            h = h + self.long(h)
        real = attention_mask[..., None].to(h.dtype)
        return self.head((h * real).sum(1) / real.sum(1))


def sentences(n=48):
    tokens, lengths = torch.randint(1, 11, (n, 6)), torch.randint(2, 7, (n,))
    mask = (torch.arange(6) < lengths[:, None]).long()
    labels = torch.arange(n) % 3
    whole = {"tokens": tokens * mask, "attention_mask": mask, "labels": labels}
    return [{key: value[rows] for key, value in whole.items()} for rows in torch.arange(n).split(12)]


def test_a_reference_of_tokens_counts_those_of_its_mask():
    model, data = Tokens().double().eval(), sentences()
    tokens, mask = torch.full((2, 5), 7), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    reference = {"tokens": tokens, "attention_mask": mask}
    found = neuron_importance(model, data, layers="layer", baseline=ReferenceInput(reference))
    with torch.no_grad():
        h = model.layer(model.embed(tokens), src_key_padding_mask=mask == 0)
    np.testing.assert_allclose(values(found, "layer"), h[mask == 1].mean(0), atol=1e-12)
    first = neuron_importance(model, data, layers=Site("layer", position=0), baseline=ReferenceInput(reference))
    np.testing.assert_allclose(values(first, "layer (position 0)"), h[:, 0].mean(0), atol=1e-12)
    nothing = ReferenceInput({"tokens": tokens, "attention_mask": torch.zeros_like(mask)})
    with pytest.raises(InvalidArgument, match="all of its positions at layer 'embed' are padding, by its mask; pass a"):
        neuron_importance(model, data, layers=["embed", "layer"], baseline=nothing)


def test_a_reference_that_does_not_reach_a_layer():
    model, data = Tokens().double().eval(), sentences()
    short = ReferenceInput({"tokens": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 3).long()})
    assert neuron_importance(model, data, layers="layer", baseline=short).sites == ("layer",)
    with pytest.raises(
        InvalidArgument, match=r"ReferenceInput\(\.\.\.\) does not work: .*'long'.*pass what the model is"
    ):
        neuron_importance(model, data, layers="long", baseline=short)
    with pytest.raises(
        InvalidArgument, match="the model does not come to layer 'long' on this input, only on the sampl"
    ):
        neuron_importance(model, data, layers="lon*", baseline=short)


def test_a_reference_goes_through_forward_fn():
    model, seen = mlp(), []

    def forward(model, batch):
        seen.append(batch["pixels"])
        return model(batch["pixels"] * 2), batch["truth"]

    x, y = (torch.cat(part) for part in zip(*loader(4), strict=True))
    data = [{"pixels": x, "truth": y}]
    grey = torch.full((2, 4), 0.5, dtype=torch.float64)
    reference = ReferenceInput({"pixels": grey, "truth": torch.zeros(2).long()})
    found = neuron_importance(model, data, layers="1", baseline=reference, forward_fn=forward)
    np.testing.assert_allclose(values(found, "1"), model[:2](grey * 2)[0].detach(), atol=1e-15)
    assert sum(len(each) == 2 and torch.equal(each, grey) for each in seen) == 1  # one pass
    with pytest.raises(
        InvalidArgument, match=r"does not work: forward_fn failed .*; pass a whole batch, as forward_fn tak"
    ):
        neuron_importance(model, data, layers="1", baseline=ReferenceInput(grey), forward_fn=forward)


def test_a_reference_that_is_none(unchecked):
    for inputs in (None, 0.5, "black", [0.0, 1.0], {}, np.zeros(3)):
        with pytest.raises(
            InvalidArgument, match=r"such as ReferenceInput\(torch.zeros\(1, 3, 32, 32\)\), got .*no tens"
        ):
            ReferenceInput(inputs)
    wrong = ReferenceInput(torch.zeros(1, 5, dtype=torch.float64))
    with pytest.raises(
        InvalidArgument, match=r"ReferenceInput.* does not work: .*; pass what the model is called with"
    ):
        neuron_importance(mlp(), loader(4), layers="1", baseline=wrong)
    broken = ReferenceInput(torch.full((1, 4), float("nan"), dtype=torch.float64))
    with pytest.raises(
        InvalidArgument, match="the activations of layer '1' are not finite on this input; pass another"
    ):
        neuron_importance(mlp(), loader(4), layers="1", baseline=broken)


def test_a_reference_is_left_as_it_is():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.site, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.site(x.add_(1)))

    model, black = InPlace().double(), torch.zeros(1, 4, dtype=torch.float64)
    reference = ReferenceInput(black)
    twice = [values(neuron_importance(model, loader(4), layers="site", baseline=reference), "site") for _ in range(2)]
    np.testing.assert_array_equal(*twice)
    assert not black.any()


# --- the optimum


@pytest.fixture
def few_steps(monkeypatch):
    """Where it does not matter how good it is."""
    monkeypatch.setattr(optimal_baseline, "STEPS", 6)


def masked_loss(model, site, baseline, x, y, repeats=30):
    """Mean cross entropy with random neurons of each sample at the baseline, at uniform rates; an independent twin."""
    generator, total = torch.Generator().manual_seed(11), 0.0
    baseline = torch.as_tensor(baseline, dtype=x.dtype)

    def remove(module, inputs, output):
        gone = torch.rand(output.shape[:2], generator=generator) < torch.rand(len(output), 1, generator=generator)
        shape = (*output.shape[:2], *(1,) * (output.ndim - 2))
        return torch.where(gone.reshape(shape), baseline.reshape(1, -1, *shape[2:]), output)

    hook = model.get_submodule(site).register_forward_hook(remove)
    with torch.no_grad():
        for _ in range(repeats):
            total += float(nn.functional.cross_entropy(model(x), y))
    hook.remove()
    return total / repeats


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_the_optimum_loses_least_on_samples_that_it_has_not_seen(activation):
    model, data = train(activation, width=32, depth=2, epochs=25), validation_batches()
    seen, held_out = data[:3], [torch.cat(part) for part in zip(*data[3:], strict=True)]
    results = {
        name: neuron_importance(model, seen, layers=["1", "3"], baseline=name) for name in ("zero", "mean", "optimal")
    }
    for site in ("1", "3"):
        loss = {name: masked_loss(model, site, values(found, site), *held_out) for name, found in results.items()}
        assert loss["optimal"] < 0.9 * min(loss["zero"], loss["mean"]), loss
    assert {one.removal.baseline for one in results["optimal"].importances} == {"optimal"}
    assert "baseline: optimal" in summary(results["optimal"])
    assert "optimal baseline" in results["optimal"].seconds


def test_the_optimum_of_two_neurons_is_that_of_a_grid(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 2, generator=generator, dtype=torch.float64) + torch.tensor([4.0, -3.0])  # zero is far away
    model = Function(lambda h: 2 * torch.tanh(h[:, 0] - 4) + (h[:, 1] + 3) * (h[:, 0] - 3.5))
    y = (model(x)[:, 0] < 0.3).long()

    def loss(one, other):
        """Expectation over rates that are uniform: no neuron or both with probability 1/3, either with 1/6."""
        total = 0.0
        for gone, probability in ((set(), 1 / 3), ({0}, 1 / 6), ({1}, 1 / 6), ({0, 1}, 1 / 3)):
            h = x.clone()
            for neuron in gone:
                h[:, neuron] = (one, other)[neuron]
            total += probability * float(nn.functional.cross_entropy(model(h), y))
        return total

    # eight copies of each sample, whose random removals differ: the expectation over these, all but exactly
    data = [(x, y)] * 8
    found = values(neuron_importance(model, data, layers="site", baseline="optimal", max_samples=3200), "site")
    grid = [(loss(a, b), a, b) for a in np.linspace(1.5, 6.5, 26) for b in np.linspace(-5.5, -0.5, 26)]
    least, *best = min(grid)
    mean = x.mean(0).tolist()
    assert loss(*mean) > least + 0.01  # there is something to find
    assert loss(*found) < least + 0.1 * (loss(*mean) - least)
    # and near where the grid's is: the spacing is .2
    np.testing.assert_allclose(found, best, atol=0.35)


def test_the_optimum_does_not_depend_on_batches_and_processes(few_steps):
    model, data = mlp(), loader(4, n=90, size=32)
    probe = ProbeSet.from_batches(data, max_samples=80)
    whole = neuron_importance(model, probe, layers=["1", Site("3", group=5)], baseline="optimal", seed=4)
    again = neuron_importance(model, probe, layers=["1", Site("3", group=5)], baseline="optimal", seed=4, batch_size=7)
    other = neuron_importance(model, probe, layers="1", baseline="optimal", seed=5)
    found = {}

    def process(rank, gather):
        mine = probe.select(np.sort(probe.index)[rank::3] if rank < 2 else np.array([], np.int64))  # one has no sample
        found[rank] = neuron_importance(
            copy.deepcopy(model), mine, layers=["1", Site("3", group=5)], baseline="optimal", seed=4, gather=gather
        )

    in_lockstep(2, process)
    assert not np.array_equal(values(other, "1"), values(whole, "1"))
    for site in whole.sites:
        np.testing.assert_allclose(values(again, site), values(whole, site), atol=1e-9)
    kept = np.concatenate([np.sort(probe.index)[rank::3] for rank in range(2)])
    alone = neuron_importance(model, probe.select(kept), layers=["1", Site("3", group=5)], baseline="optimal", seed=4)
    for site in whole.sites:
        np.testing.assert_array_equal(values(found[0], site), values(found[1], site))
        np.testing.assert_allclose(values(found[0], site), values(alone, site), atol=1e-9)


def test_the_optimum_of_tokens_and_images_and_constant_channels(few_steps):
    model, data = Tokens().double().eval(), sentences()
    found = neuron_importance(model, data, layers=["layer", Site("long", position=0)], baseline="optimal")
    mean = neuron_importance(model, data, layers=["layer", Site("long", position=0)], baseline="mean")
    for site in found.sites:
        assert np.isfinite(values(found, site)).all()
        assert (np.abs(values(found, site) - values(mean, site)) > 1e-6).all()
    images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()
    with torch.no_grad():
        images[0].bias[1] = -100.0  # never active
    data = loader(1, 5, 5)
    vector = values(neuron_importance(images, data, layers="1", baseline="optimal"), "1")
    assert vector[1] == 0
    assert (
        vector[[0, 2, 3]] != values(neuron_importance(images, data, layers="1", baseline="mean"), "1")[[0, 2, 3]]
    ).all()


def test_the_optimum_has_the_unit_of_each_channel(few_steps):
    model, data = mlp(), loader(4)
    scaled, factor = copy.deepcopy(model), torch.tensor([1e-3, 1.0, 1e3, 10.0, 0.1, 1.0], dtype=torch.float64)
    with torch.no_grad():  # ReLU: the same function, other units
        scaled[0].weight *= factor[:, None]
        scaled[0].bias *= factor
        scaled[2].weight /= factor
    one, other = (values(neuron_importance(net, data, layers="1", baseline="optimal"), "1") for net in (model, scaled))
    np.testing.assert_allclose(other, one * factor.numpy(), rtol=1e-6)


def test_the_optimum_leaves_no_trace(few_steps):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3)).double()
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    data = loader(4)
    state = torch.get_rng_state()
    neuron_importance(model, data, layers=["1", "3"], baseline="optimal")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_samples_that_are_broken_or_unlabelled_do_not_count_for_the_optimum(few_steps):
    model = mlp()
    x, y = (torch.cat(part) for part in zip(*loader(4), strict=True))
    probe = ProbeSet.from_batches([(x, y)])
    wanted = values(neuron_importance(model, probe.select(np.arange(40)), layers="1", baseline="optimal"), "1")
    broken = x.clone()
    broken[40:] = float("nan")
    spoilt = neuron_importance(model, ProbeSet.from_batches([(broken, y)]), layers="1", baseline="optimal")
    np.testing.assert_allclose(values(spoilt, "1"), wanted, atol=1e-9)
    # copies without a label, which only forward_fn can tell: the mean and spread from which it starts stay the same
    forward = lambda model, batch: (model(batch[0]), batch[1] - 1)  # noqa: E731
    twice = torch.cat([x[:40], x[:40]]), torch.cat([y[:40] + 1, torch.full((40,), -6)])
    options = {"layers": "1", "baseline": "optimal", "forward_fn": forward, "ignore_index": -7}
    np.testing.assert_allclose(values(neuron_importance(model, [twice], **options), "1"), wanted, atol=1e-9)


def test_an_optimum_needs_a_gradient():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.site, self.head = nn.Linear(4, 5), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x) + (self.site(x).argmax(1) % 3)[:, None]

    for attribution in ("gradient_x_activation", "activation"):
        with pytest.raises(InvalidArgument, match=r"baseline='optimal' needs a gradient: layer 'site' has no gradient"):
            neuron_importance(Cut().double(), loader(4), layers="site", baseline="optimal", attribution=attribution)


def test_curves_can_remove_to_the_optimum(few_steps):
    model, data = mlp(), loader(4)
    best = values(neuron_importance(model, data, layers="3", baseline="optimal"), "3")
    curves = [
        deletion_curve(model, data, range(5), layer="3", baseline=baseline).margin for baseline in ("optimal", best)
    ]
    np.testing.assert_allclose(*curves, atol=1e-12)


def test_passes_that_the_optimum_takes():
    model, count = mlp(), {"whole": 0}
    model[0].register_forward_hook(lambda *_: count.update(whole=count["whole"] + 1))
    data = loader(4, n=64, size=16)
    neuron_importance(model, data, layers="1", baseline="mean")
    before, count["whole"] = count["whole"], 0
    neuron_importance(model, data, layers="1", baseline="optimal")
    # one forward pass a step and batch, and a few to see that the tape can be trusted
    assert 4 * optimal_baseline.STEPS <= count["whole"] - before <= 4 * optimal_baseline.STEPS + 12


# --- in a Trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")
@pytest.mark.parametrize("baseline", ["mapping", "reference", "optimal"])
def test_the_callback_takes_them_all(tmp_path, baseline):
    from tests.support.lightning_modules import Classifier, loaders, trainer

    module = Classifier()
    first = next(iter(loaders()[1]))[0]
    kinds = {
        "mapping": {"encoder.1": "mean", "encoder.2": np.linspace(0, 1, 16)},
        "reference": ReferenceInput(torch.zeros_like(first[:1])),
        "optimal": "optimal",
    }
    ours = NeuronImportance(
        ["encoder.1", "encoder.2"], baseline=kinds[baseline], on_error="raise", faithfulness=SETTINGS
    )
    trainer(tmp_path, [ours], max_epochs=1, num_sanity_val_steps=1).fit(module, *loaders())  # rehearsed first
    assert [one.removal.baseline for one in ours.results.importances] == {
        "mapping": ["mean", "vector"],
        "reference": ["reference"] * 2,
        "optimal": ["optimal"] * 2,
    }[baseline]


# --- what another baseline would change


def family(name):
    if name == "mlp":
        return mlp(), loader(4), ["1", "3"]
    if name == "cnn":
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 3),
        )
        return model.double().eval(), loader(1, 7, 7), ["1", "2", Site("2", group=3), Site("4", group=2)]
    return Tokens().double().eval(), sentences(), ["embed", "layer", Site("layer", group=4), Site("long", position=-1)]


def ranked_alike(one, other, site):
    """Rank correlation of the scores to first order, averaged over clusters by size."""
    pairs = zip(one[site].first_order, other[site].first_order, strict=True)
    return statistics.weighted_mean(np.array([statistics.rank_correlation(*pair) for pair in pairs]), one.clusters.size)


@pytest.mark.parametrize("target", ["margin", "log_probability", "logit"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "tokens"])
def test_agreement_with_the_other_baseline_is_that_of_two_measurements(name, target):
    model, data, layers = family(name)
    options = {"layers": layers, "target": target, "batch_size": 7}
    zero, mean, constant = (
        neuron_importance(model, data, baseline=baseline, **options) for baseline in ("zero", "mean", -0.75)
    )
    seen = []
    for site in zero.sites:
        wanted = ranked_alike(zero, mean, site)
        assert (zero.activity(site).other_baseline, mean.activity(site).other_baseline) == ("mean", "zero")
        assert zero.activity(site).baseline_agreement == pytest.approx(wanted, abs=1e-9)
        assert mean.activity(site).baseline_agreement == pytest.approx(wanted, abs=1e-9)
        assert constant.activity(site).other_baseline == "mean"
        assert constant.activity(site).baseline_agreement == pytest.approx(ranked_alike(constant, mean, site), abs=1e-9)
        seen.append(wanted)
    assert min(seen) < 0.95  # the question has an answer


@pytest.mark.parametrize(
    "baseline", [[1.0, -1.0, 0.5, 0.0, 2.0, 3.0], "reference", "optimal", {"1": 0.5}, {"1": "mean"}]
)
def test_agreement_for_every_other_kind_of_baseline(baseline):
    model, data = mlp(), loader(4)
    baseline = ReferenceInput(torch.ones(1, 4, dtype=torch.float64)) if baseline == "reference" else baseline
    found = neuron_importance(model, data, layers="1", baseline=baseline)
    other = "zero" if baseline == {"1": "mean"} else "mean"
    assert found.activity("1").other_baseline == other
    wanted = ranked_alike(found, neuron_importance(model, data, layers="1", baseline=other), "1")
    assert found.activity("1").baseline_agreement == pytest.approx(wanted, abs=1e-9)


def test_agreement_is_the_same_for_several_scores_clusters_and_processes():
    model, data = mlp(), loader(4, n=90, size=32)
    probe, found = ProbeSet.from_batches(data, max_samples=80), {}
    options = {"layers": ["1", "3"], "attribution": ["leave_one_out", "gradient"], "clusters": {0: "a", 1: "b", 2: "b"}}

    def process(rank, gather):
        mine = probe.select(np.sort(probe.index)[rank::2])
        found[rank] = neuron_importance(copy.deepcopy(model), mine, gather=gather, **options)

    in_lockstep(2, process)
    alone = neuron_importance(model, probe, **options)
    other = neuron_importance(model, probe, baseline="mean", **options)
    for site in ("1", "3"):
        assert alone.activity(site).baseline_agreement == pytest.approx(ranked_alike(alone, other, site), abs=1e-9)
        for rank in range(2):
            wanted = alone.activity(site).baseline_agreement
            assert found[rank].activity(site).baseline_agreement == pytest.approx(wanted, abs=1e-9)


def test_agreement_is_that_of_the_samples_in_clusters():
    model, data = mlp(), loader(4)
    options = {"layers": ["1", "3"], "clusters": {2: "a", 1: "b"}}  # the first label is in none
    zero, mean = (neuron_importance(model, data, baseline=baseline, **options) for baseline in ("zero", "mean"))
    for site in zero.sites:
        assert zero.activity(site).baseline_agreement == pytest.approx(ranked_alike(zero, mean, site), abs=1e-9)


def test_no_agreement_where_it_cannot_be_known():
    model, data = mlp(), loader(4)
    for options in ({"attribution": "activation"}, {"baseline": "resample"}):
        found = neuron_importance(model, data, layers="1", **options).activity("1")
        assert found.other_baseline == ""
        assert np.isnan(found.baseline_agreement)

    # the mean over the samples that count is not that of all: unknown rather than nearly right
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.site, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.site(x)
            return self.head(h.relu()) + torch.where(x[:, :1] > 2, torch.inf, 0.0)

    torch.manual_seed(0)
    model, data = Breaks().double(), loader(4)
    data[0][0][0, 0] = 3.0
    zero, mean = (neuron_importance(model, data, layers="site", baseline=name) for name in ("zero", "mean"))
    assert np.isnan(zero.activity("site").baseline_agreement)
    assert mean.activity("site").baseline_agreement == pytest.approx(ranked_alike(mean, zero, "site"), abs=1e-9)


def test_the_summary_says_once_per_layer_how_the_ranking_would_change():
    model, data = mlp(), loader(4)
    results = neuron_importance(model, data, layers=["1", "3"], attribution=["gradient_x_activation", "gradient"])
    text = " ".join(summary(results).split())
    for site in ("1", "3"):
        value = results.activity(site).baseline_agreement
        words = "almost alike" if value >= 0.9 else "differently"
        assert (
            text.count(
                f"With baseline='mean' first-order scores would rank neurons {words} (rank correlation {value:.2f})."
            )
            == 1
        )
    assert text.count("first-order scores would rank neurons") == 2
    assert "With baseline='zero'" in summary(neuron_importance(model, data, layers="1", baseline="mean"))
    assert "first-order scores" not in summary(neuron_importance(model, data, layers="1", attribution="activation"))


def test_files_of_version_6_do_not_know_it():
    old = Results.load(Path(__file__).parent / "data" / "results_v6.npz")
    assert old.activities
    assert {one.other_baseline for one in old.activities} == {""}
    assert np.isnan([one.baseline_agreement for one in old.activities]).all()
