"""Conductance, Shapley values, regression and the rest of the field: slow twins, Captum, batching, refusals."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F

from lightning_neuroimp import (
    CaptumAttribution,
    Conductance,
    InternalInfluence,
    MaskedGradient,
    ProbeSet,
    Regression,
    Shapley,
    Site,
    neuron_importance,
)
from lightning_neuroimp.capture.suffix.suffix import Suffix
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.registry import resolve_attributions
from tests.support.digits import batches, digits
from tests.support.families import FAMILIES
from tests.support.toys import Function, class_zero

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

pytestmark = pytest.mark.usefixtures("double")


def mlp():
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4))


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)
    )  # fmt: skip


NETWORKS = {"mlp": (mlp, (7,), ("0", "1", "3")), "conv": (conv, (1, 8, 8), ("0", "1", "3"))}


def network(kind, n_samples=9):
    build, shape, layers = NETWORKS[kind]
    return build(), torch.randn(n_samples, *shape), torch.arange(n_samples) % 4, layers


def per_sample(model, x, y, attribution, layer, baseline="zero", target="logit", size=64, **options):
    """Scores of each sample, in order, by clusters of one sample each."""
    keys = {tuple(row.flatten().tolist()): f"{number:03}" for number, row in enumerate(x)}

    def own(batch):
        return [keys[tuple(row.flatten().tolist())] for row in batch[0]]

    results = neuron_importance(
        model, batches(x, y, size), layers=layer, attribution=attribution, baseline=baseline, target=target,
        clusters=own, **options,
    )  # fmt: skip
    return results[results.sites[0]].mean


def summed(values):
    return values.flatten(2).sum(2) if values.ndim > 2 else values


def front(model, layer):
    return model[: int(layer) + 1], model[int(layer) + 1 :]


class Flattening(nn.Module):
    """The modules of a sequence, without one for flattening, for which Captum's LRP has no rule."""

    def __init__(self, sequence):
        super().__init__()
        self.parts = nn.ModuleList(part for part in sequence if not isinstance(part, nn.Flatten))

    def forward(self, h):
        for part in self.parts:
            h = part(h.flatten(1) if isinstance(part, nn.Linear) else h)
        return h


def margin(logits, label):
    return logits[label] - torch.cat([logits[:label], logits[label + 1 :]]).logsumexp(0)


class TestInputPath:
    """What the inputs' way from a baseline does."""

    @pytest.mark.parametrize("kind", NETWORKS)
    @pytest.mark.parametrize("steps", [5, 16])
    def test_equal_captums(self, kind, steps):
        captum = pytest.importorskip("captum.attr")
        model, x, y, layers = network(kind)
        for layer in layers:
            module = model[int(layer)]
            theirs = {
                "conductance": captum.LayerConductance(model, module).attribute(
                    x, target=y, n_steps=steps, method="riemann_trapezoid"
                ),
                "internal_influence": captum.InternalInfluence(model, module).attribute(
                    x, target=y, n_steps=steps, method="riemann_middle"
                ),
            }
            for name, expected in theirs.items():
                found = per_sample(model, x, y, f"{name}(steps={steps})", layer, size=4)
                np.testing.assert_allclose(found, summed(expected).detach().numpy(), atol=1e-12)

    def test_from_another_input_baseline_like_a_slow_twin(self):
        model, x, y, _ = network("mlp")
        conductance, influence = np.zeros((9, 9)), np.zeros((9, 9))
        first, rest = front(model, "1")
        for sample in range(9):

            def at(share, sample=sample):
                h = first(0.3 + share * (x[sample] - 0.3)).detach().requires_grad_()
                (slope,) = torch.autograd.grad(margin(rest(h), int(y[sample])), h)
                return h.detach(), slope

            for step in range(6):
                (h, slope), (after, _) = at(step / 6), at((step + 1) / 6)
                conductance[sample] += (slope * (after - h)).numpy()
                influence[sample] += (at((step + 0.5) / 6)[1] / 6).numpy()
        options = {"target": "margin", "baseline": "mean"}  # the removal's baseline does not enter
        found = per_sample(model, x, y, Conductance(steps=6, input_baseline=0.3), "1", **options)
        np.testing.assert_allclose(found, conductance, atol=1e-12)
        found = per_sample(model, x, y, InternalInfluence(steps=6, input_baseline=0.3), "1", **options)
        np.testing.assert_allclose(found, influence, atol=1e-12)

    def test_all_layers_share_the_passes(self):
        class Counting(nn.Sequential):
            passes = 0

            def forward(self, x):
                Counting.passes += 1
                return super().forward(x)

        model, data = Counting(*mlp()), [(torch.randn(12, 7), torch.arange(12) % 4)]
        counts = []
        for names in ("gradient", Conductance(steps=5), InternalInfluence(steps=5)):
            for layers in (["1"], ["0", "1", "3"]):
                Counting.passes = 0
                neuron_importance(model, data, layers=layers, attribution=names)
                counts.append(Counting.passes)
        assert counts[0] == counts[1]
        assert [count - counts[0] for count in counts[2:]] == [5, 5, 5, 5]

    def test_a_mask_stays_and_padding_counts_for_nothing(self):
        class Tokens(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.head = nn.Sequential(nn.Linear(3, 5), nn.Tanh()), nn.Linear(5, 2)

            def forward(self, x, attention_mask):
                return self.head((self.layer(x) * attention_mask[:, :, None]).sum(1).tanh())

        model, x, y = Tokens(), torch.randn(6, 4, 3), torch.arange(6) % 2
        mask = torch.arange(4)[None] < torch.tensor([4, 2, 3, 1, 4, 2])[:, None]
        expected = torch.zeros(2, 5)
        for sample in range(6):
            tokens = x[sample : sample + 1, mask[sample]]
            before = None
            for step in range(5):
                h = model.layer(tokens * step / 4).detach().requires_grad_()
                (slope,) = torch.autograd.grad(model.head(h.sum(1).tanh())[0, y[sample]], h)
                if before is not None:
                    expected[y[sample]] += (before[1] * (h - before[0])).detach().sum((0, 1)) / 3
                before = h.detach(), slope
        for form in (mask.long(), mask):
            data = [{"x": x, "attention_mask": form, "label": y}]
            found = neuron_importance(model, data, layers="layer.1", attribution=Conductance(steps=4), target="logit")
            np.testing.assert_allclose(found["layer.1"].mean, expected.numpy(), atol=1e-12)

    @pytest.mark.parametrize("attribution", ["conductance", "internal_influence"])
    def test_refused_where_inputs_are_not_known(self, attribution):
        y = torch.arange(6) % 2
        embedded = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2))
        ids = [(torch.randint(9, (6, 3)), y)]
        plain = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
        floats = [(torch.randn(6, 3), y)]

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

            def forward(self, x, other):
                return self.head(self.layer(x).tanh() + other[:, :1])

        other = {"x": torch.randn(6, 3), "other": torch.randint(5, (6, 2)), "label": y}
        cases = [
            (
                embedded,
                ids,
                "2",
                None,
                "holds a Tensor of shape .* torch.int64; use attribution='integrated_gradients'",
            ),
            (
                plain,
                floats,
                "0",
                lambda model, batch: (model(batch[0]), batch[1]),
                "with forward_fn= it cannot be known",
            ),
            (Two(), [other], "layer", None, "holds a Tensor of shape .* torch.int64"),
        ]
        for model, data, layer, forward_fn, words in cases:
            with pytest.raises(InvalidArgument, match=words) as error:
                neuron_importance(model, data, layers=layer, attribution=attribution, forward_fn=forward_fn)
            assert len(str(error.value)) < 300
            neuron_importance(model, data, layers=layer, attribution="integrated_gradients", forward_fn=forward_fn)

    def test_inputs_stay_as_they_are(self):
        x, y = torch.randn(6, 7), torch.arange(6) % 4
        kept = x.clone()
        neuron_importance(mlp(), [(x, y)], layers="1", attribution="conductance")
        assert torch.equal(x, kept)


def exact_shapley(value, n_players):
    """By enumeration of all coalitions of the others."""
    scores = np.zeros(n_players)
    for player in range(n_players):
        others = [other for other in range(n_players) if other != player]
        for size in range(n_players):
            weight = math.factorial(size) * math.factorial(n_players - size - 1) / math.factorial(n_players)
            for coalition in itertools.combinations(others, size):
                scores[player] += weight * (value({*coalition, player}) - value(set(coalition)))
    return scores


def slow_shapley(model, layer, x, y, baseline):
    """Exact values of each sample, one pass for each coalition."""
    first, rest = front(model, layer)
    scores = []
    for sample in range(len(x)):
        h = first(x[sample : sample + 1]).detach()

        def value(stays, h=h, sample=sample):
            at = torch.as_tensor(baseline).reshape(1, -1, *[1] * (h.ndim - 2)).expand_as(h).clone()
            at[:, sorted(stays)] = h[:, sorted(stays)]
            with torch.no_grad():
                return float(margin(rest(at)[0], int(y[sample])))

        scores.append(exact_shapley(value, h.shape[1]))
    return np.array(scores)


class TestShapley:
    """Exact where it must be, unbiased elsewhere."""

    def test_orders_and_their_reverses_are_exact_without_interactions_of_three(self):
        torch.manual_seed(0)
        matrix, linear = torch.randn(6, 6), torch.randn(6)
        model = Function(lambda h: ((h @ matrix) * h).sum(1) + h @ linear)
        x = torch.randn(5, 6)
        expected = x * (x @ (matrix + matrix.T) / 2) + x * linear
        found = per_sample(model, x, torch.zeros(5, dtype=torch.int64), Shapley(permutations=2), "site")
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)

    @pytest.mark.parametrize("baseline", ["zero", "mean"])
    @pytest.mark.parametrize("score", [Shapley(), Shapley(subsets=8), Shapley(subsets=8, surrogate=False)])
    def test_values_add_up(self, score, baseline):
        model, x, y, _ = network("conv")
        found = per_sample(model, x, y, score, "1", baseline, "margin")
        first, rest = front(model, "1")
        h = first(x).detach()
        empty = h.mean((0, 2, 3))[None, :, None, None].expand_as(h) if baseline == "mean" else torch.zeros_like(h)
        for sample in range(9):
            whole = margin(rest(h)[sample], int(y[sample])) - margin(rest(empty)[sample], int(y[sample]))
            assert found[sample].sum() == pytest.approx(float(whole.detach()), abs=1e-12)

    def test_unbiased_and_less_noisy_with_a_surrogate(self):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 2))
        x, y = torch.randn(2, 3), torch.tensor([0, 1])
        exact = slow_shapley(model, "1", x, y, torch.zeros(6))
        spread = {}
        copies = x.repeat(600, 1)  # each has draws of its own
        for name, score in {
            "orders": Shapley(permutations=2),
            "subsets": Shapley(subsets=12, surrogate=False),
            "surrogate": Shapley(subsets=12),
            "few": Shapley(subsets=4),
        }.items():
            found = neuron_importance(
                model, [(copies, y.repeat(600))], layers="1", attribution=score, max_samples=1200
            )["1"]  # fmt: skip
            error = found.std / np.sqrt(600)
            assert (np.abs(found.mean - exact) < 4.5 * error + 1e-12).all(), name
            assert (error > 0).all()
            spread[name] = found.std.mean()
        assert spread["surrogate"] < 0.7 * spread["subsets"]
        assert spread["few"] < spread["subsets"]

    def test_one_neuron(self):
        model = Function(lambda h: h[:, 0] ** 2)
        for score in ("shapley", Shapley(subsets=4)):
            assert per_sample(model, torch.tensor([[3.0]]), torch.tensor([0]), score, "site")[0, 0] == 9

    def test_what_it_costs(self, monkeypatch):
        ran, run = [], Suffix._run
        monkeypatch.setattr(Suffix, "_run", lambda self, *args: ran.append(1) or run(self, *args))
        model = Function(lambda h: torch.tanh(h.sum(1)))
        for score, expected in (
            ("gradient", 0),
            (Shapley(permutations=4), 4 * 4 + 1),
            (Shapley(subsets=6, surrogate=False), 6 + 1),
            (Shapley(subsets=6), 6 + 1 + 4),
            (Regression(masks=7), 7),
        ):
            ran.clear()
            neuron_importance(model, class_zero(torch.randn(8, 5)), layers="site", attribution=score)
            assert len(ran) == expected

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"permutations": 3}, "permutations of Shapley must be even, as they come in pairs, got 3; use 4"),
            ({"permutations": 0}, "permutations of Shapley must be at least 2"),
            ({"subsets": 5}, "use 6"),
        ],
    )
    def test_refused_in_words(self, options, words):
        with pytest.raises(InvalidArgument, match=words):
            Shapley(**options)


class TestRegression:
    """Ridge of measured effects on which neurons were removed."""

    @pytest.mark.parametrize("residual", [False, True])
    @pytest.mark.parametrize("baseline", ["zero", "mean"])
    def test_equals_scikit_learns(self, residual, baseline):
        model, x, y, _ = network("mlp")
        seen = []

        def spy(batch):
            seen.append(batch)
            return batch.sum_positions(batch.activation)

        score = Regression(masks=40, ridge=0.7, share=0.3, residual=residual)
        found = per_sample(model, x, y, score, "1", baseline, "margin")
        per_sample(model, x, y, [spy], "1", baseline, "margin")
        (seen,) = seen
        design = score._removed(seen).numpy().astype(float)
        assert 0.2 < design.mean() < 0.4
        first, rest = front(model, "1")
        h = first(x).detach()
        rest.requires_grad_(False)
        value = h.mean(0) if baseline == "mean" else torch.zeros(9)
        for row, number in enumerate(seen.index):
            label, effects = int(y[number]), []
            leaf = h[number].clone().requires_grad_()
            (slope,) = torch.autograd.grad(margin(rest(leaf), label), leaf)
            product = ((h[number] - value) * slope).numpy()
            for mask in design:
                without = torch.where(torch.from_numpy(mask > 0), value, h[number])
                effects.append(float(margin(rest(h[number]), label) - margin(rest(without), label)))
            wanted = np.array(effects) - (design @ product if residual else 0)
            fitted = Ridge(alpha=0.7, fit_intercept=False).fit(design, wanted).coef_
            np.testing.assert_allclose(found[number], fitted + (product if residual else 0), atol=1e-9)
            assert row < 9

    def test_finds_a_linear_function(self):
        model = Function(lambda h: h @ torch.tensor([2.0, -1.0, 0.5, 0.0]))
        x, y = torch.tensor([[1.0, 3.0, 4.0, 5.0]]), torch.tensor([0])
        found = per_sample(model, x, y, Regression(ridge=1e-9), "site")
        np.testing.assert_allclose(found[0], [2, -3, 2, 0], atol=1e-6)
        found = per_sample(model, x, y, Regression(masks=2, residual=True), "site")
        np.testing.assert_allclose(found[0], [2, -3, 2, 0], atol=1e-12)

    def test_needs_enough_masks(self):
        model, x, y, _ = network("mlp")
        with pytest.raises(InvalidArgument, match=r"masks=8 for the 9 neurons .* pass Regression\(masks=90\), or") as e:
            per_sample(model, x, y, Regression(masks=8), "1")
        assert len(str(e.value)) < 300
        per_sample(model, x, y, Regression(masks=8, residual=True), "1")
        for options in ({"masks": 0}, {"share": 0}, {"share": 0.95}, {"ridge": 0}):
            with pytest.raises(InvalidArgument, match=f"{next(iter(options))} of Regression"):
                Regression(**options)


def test_taylor_is_the_square_of_the_product():
    model, x, y, _ = network("conv")
    for baseline in ("zero", "mean", 0.5):
        product = per_sample(model, x, y, "gradient_x_activation", "1", baseline)
        np.testing.assert_allclose(per_sample(model, x, y, "taylor", "1", baseline), product**2, atol=1e-12)
    # squares first, then the mean over a cluster
    by_label = neuron_importance(model, [(x, y)], layers="1", attribution="taylor", target="logit")["1"].mean
    product = per_sample(model, x, y, "gradient_x_activation", "1")
    expected = np.stack([(product[y == label] ** 2).mean(0) for label in range(4)])
    np.testing.assert_allclose(by_label, expected, atol=1e-12)


class Written(nn.Module):
    """A norm that is written out, with a denominator that is a constant or not."""

    def __init__(self, norm, fixed):
        super().__init__()
        self.norm, self.fixed = norm, fixed

    def forward(self, x):
        norm = self.norm
        if isinstance(norm, nn.GroupNorm):
            grouped = x.unflatten(1, (norm.num_groups, -1))
            axes = list(range(2, grouped.ndim))
            centred = grouped - grouped.mean(axes, keepdim=True)
            scale = (centred.square().mean(axes, keepdim=True) + norm.eps).sqrt()
            shape = (1, -1) + (1,) * (x.ndim - 2)
            out = (centred / (scale.detach() if self.fixed else scale)).reshape(x.shape)
            return out * norm.weight.reshape(shape) + norm.bias.reshape(shape)
        axes = list(range(-len(norm.normalized_shape), 0))
        centred = x - x.mean(axes, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
        scale = (centred.square().mean(axes, keepdim=True) + (norm.eps or torch.finfo(x.dtype).eps)).sqrt()
        out = centred / (scale.detach() if self.fixed else scale)
        out = out if norm.weight is None else out * norm.weight
        return out if getattr(norm, "bias", None) is None else out + norm.bias


def normed(norm, shape):
    torch.manual_seed(3)
    channels = shape[0]
    if len(shape) == 1:
        return nn.Sequential(
            nn.Linear(5, channels), nn.Tanh(), norm, nn.Linear(channels, 6), nn.ReLU(), nn.Linear(6, 4)
        )
    return nn.Sequential(
        nn.Conv2d(1, channels, 3), nn.Tanh(), norm, nn.ReLU(), nn.Flatten(), nn.Linear(channels * 16, 4)
    )


NORMS = {
    "layer": (lambda: nn.LayerNorm(8), (8,)),
    "layer, no bias": (lambda: nn.LayerNorm(8, bias=False), (8,)),
    "layer, not affine": (lambda: nn.LayerNorm(8, elementwise_affine=False, eps=0.1), (8,)),
    "layer, several axes": (lambda: nn.LayerNorm((6, 4, 4)), (6, 4, 4)),
    "rms": (lambda: nn.RMSNorm(8), (8,)),
    "rms, eps": (lambda: nn.RMSNorm(8, eps=0.1), (8,)),
    "group": (lambda: nn.GroupNorm(3, 6), (6, 4, 4)),
    "group, no space": (lambda: nn.GroupNorm(2, 8), (8,)),
}


class TestLayerNormRule:
    """Denominators of norms are constants in the backward pass."""

    @pytest.mark.parametrize("kind", NORMS)
    @pytest.mark.parametrize("baseline", ["zero", "mean"])
    def test_equals_a_norm_that_is_written_out(self, kind, baseline):
        build, shape = NORMS[kind]
        norm = build()
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        model = normed(norm, shape)
        x, y = torch.randn(9, *((5,) if len(shape) == 1 else (1, 6, 6))), torch.arange(9) % 4
        found = per_sample(model, x, y, "layer_norm_rule", "1", baseline, "margin")
        plain = per_sample(model, x, y, "gradient_x_activation", "1", baseline, "margin")
        twins = {}
        for fixed in (False, True):
            twin = normed(Written(norm, fixed), shape)
            twin.load_state_dict({name.replace("2.", "2.norm."): value for name, value in model.state_dict().items()})
            torch.testing.assert_close(twin(x), model(x))
            twins[fixed] = per_sample(twin, x, y, "gradient_x_activation", "1", baseline, "margin")
        np.testing.assert_allclose(plain, twins[False], atol=1e-10)
        np.testing.assert_allclose(found, twins[True], atol=1e-10)
        assert np.abs(found - plain).max() > 1e-3

    def test_transformers_and_functions(self):
        torch.manual_seed(0)

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.into = nn.Linear(3, 8)
                self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
                self.head = nn.Linear(8, 3)

            def forward(self, x):
                return self.head(F.layer_norm(self.block(self.into(x)), (8,)).mean(1))

        model, x, y = Model(), torch.randn(6, 4, 3), torch.arange(6) % 3
        both = ["layer_norm_rule", "gradient_x_activation"]
        found = neuron_importance(model, [(x, y)], layers=["into", "block.linear2"], attribution=both)
        for layer in ("into", "block.linear2"):
            assert np.abs(found[layer, both[0]].mean - found[layer, both[1]].mean).max() > 1e-3
        # behind the last norm there is nothing to differ
        found = neuron_importance(model, [(x, y)], layers="head", attribution=both)
        np.testing.assert_allclose(found["head", both[0]].mean, found["head", both[1]].mean, atol=1e-12)

    def test_refused_without_norms(self):
        model, x, y, _ = network("mlp")
        with pytest.raises(InvalidArgument, match="the model calls none of them") as error:
            per_sample(model, x, y, "layer_norm_rule", "1")
        assert len(str(error.value)) < 300


class TestCaptum:
    """Any input attribution of Captum, on what follows a site."""

    def theirs(self, name, function, h, y, **options):
        captum = pytest.importorskip("captum.attr")
        return getattr(captum, name)(function).attribute(h, target=y, **options).detach()

    @pytest.mark.parametrize("kind", NETWORKS)
    @pytest.mark.parametrize("baseline", ["zero", "mean"])
    def test_equal_captums_on_the_rest_of_the_network(self, kind, baseline):
        model, x, y, layers = network(kind)
        for layer in layers:
            first, rest = front(model, layer)
            h = first(x).detach()
            axes = (0, *range(2, h.ndim))
            value = h.mean(axes, keepdim=True).expand_as(h) if baseline == "mean" else torch.zeros_like(h)
            methods = {
                "DeepLift": {"baselines": value},
                "IntegratedGradients": {"baselines": value, "n_steps": 7},
                "Saliency": {},
                "GuidedBackprop": {},
                "Deconvolution": {},
            }
            if baseline == "zero":
                methods |= {"LRP": {}, "InputXGradient": {}}
            for method, options in methods.items():
                import warnings

                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    expected = summed(self.theirs(method, Flattening(rest), h.clone(), y, **options)).numpy()
                own = {name: option for name, option in options.items() if name != "baselines"}
                found = per_sample(
                    model, x, y, CaptumAttribution(f"captum.attr.{method}", **own), layer, baseline, size=4
                )
                np.testing.assert_allclose(found, expected, atol=1e-10, err_msg=f"{method} {layer}")

    @pytest.mark.parametrize("kind", NETWORKS)
    def test_equal_captums_layer_methods(self, kind):
        """Where the layer's activation for inputs of zeros is zero, Captum's layer methods explain the same."""
        captum = pytest.importorskip("captum.attr")
        model, x, y, _ = network(kind)
        nn.init.zeros_(model[0].bias)
        import warnings

        for layer in ("0", "1"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = {
                    "DeepLift": captum.LayerDeepLift(model, model[int(layer)]).attribute(x, target=y),
                    "IntegratedGradients": captum.LayerIntegratedGradients(model, model[int(layer)]).attribute(
                        x, target=y, n_steps=50
                    ),
                }
            for method, expected in theirs.items():
                found = per_sample(model, x, y, f"captum.attr.{method}", layer)
                np.testing.assert_allclose(found, summed(expected).detach().numpy(), atol=1e-10, err_msg=method)

    def test_equals_captums_layer_lrp(self):
        captum = pytest.importorskip("captum.attr")
        model, x, y, _ = network("mlp")
        for layer in ("0", "2"):
            theirs = captum.LayerLRP(model, model[int(layer)]).attribute(x.clone().requires_grad_(), target=y)
            found = per_sample(model, x, y, "captum.attr.LRP", layer)
            np.testing.assert_allclose(found, theirs.detach().numpy(), atol=1e-10)

    def test_neurons_are_features(self):
        model, x, y, _ = network("conv")
        exact = per_sample(model, x, y, "leave_one_out", "1", "mean", "margin")
        found = per_sample(model, x, y, "captum.attr.FeatureAblation", "1", "mean", "margin")
        np.testing.assert_allclose(found, exact, atol=1e-12)
        pytest.importorskip("captum.attr")
        values = h = model[:2](x).detach()
        shapley = slow_shapley(model, "1", x, y, values.mean((0, 2, 3)))
        found = per_sample(model, x, y, "captum.attr.ShapleyValues", "1", "mean", "margin")
        np.testing.assert_allclose(found, shapley, atol=1e-6)  # Captum adds up in float32
        assert h.shape[1] == 4
        pairs = Site("1", group=2)
        found = neuron_importance(
            model, [(x, y)], layers=pairs, attribution=["captum.attr.FeatureAblation", "leave_one_out"]
        )
        (site,) = found.sites
        np.testing.assert_allclose(
            found[site, "captum.attr.FeatureAblation"].mean, found[site, "leave_one_out"].mean, atol=1e-12
        )

    @pytest.mark.parametrize(
        "name",
        [
            "captum.attr.GradientShap(n_samples=3)",
            "captum.attr.KernelShap(n_samples=20)",
            "captum.attr.Lime(n_samples=20)",
            "captum.attr.ShapleyValueSampling(n_samples=2)",
        ],
    )
    def test_random_methods_do_not_depend_on_batches(self, name):
        pytest.importorskip("captum.attr")
        model, x, y, _ = network("mlp", 6)
        state = torch.random.get_rng_state()
        found = [per_sample(model, x, y, name, "1", "mean", "margin", size=size) for size in (6, 4, 1)]
        assert torch.equal(state, torch.random.get_rng_state())
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], atol=1e-10)
        assert np.abs(found[0]).max() > 0

    @pytest.mark.filterwarnings("ignore:.*")
    def test_models_that_draw_random_numbers_do_not_repeat_the_librarys(self):
        pytest.importorskip("captum.attr")

        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.site, self.head = nn.Identity(), nn.Linear(3, 2)

            def forward(self, x):
                h = self.site(x) + 0.3 * torch.rand(len(x), 1)
                return self.head(h.prod(1, keepdim=True) * 5 + h)

        torch.manual_seed(5)
        model, x, y = Noisy(), torch.randn(1, 3) + 2, torch.tensor([1])  # one sample: what is drawn depends on its row
        exact = per_sample(model, x, y, "captum.attr.ShapleyValues", "site")
        found = per_sample(model, x, y, "captum.attr.ShapleyValueSampling(n_samples=300)", "site")
        np.testing.assert_allclose(found, exact, atol=0.15 * np.abs(exact).max())

    def test_gradient_shap_averages_to_integrated_gradients(self):
        model, x, y, _ = network("mlp", 3)
        found = per_sample(model, x, y, "captum.attr.GradientShap(n_samples=4000)", "1")
        np.testing.assert_allclose(found, per_sample(model, x, y, "integrated_gradients(steps=64)", "1"), atol=0.02)

    def test_sides_calls_and_padding(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.into, self.act, self.head = nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)

            def forward(self, x, mask):
                h = self.act(self.into(x))
                return self.head(self.act((h * mask[:, :, None]).sum(1) - 1))

        model, x, y = Model(), torch.randn(6, 4, 3), torch.arange(6) % 2
        mask = torch.arange(4)[None] < torch.tensor([4, 2, 3, 1, 4, 2])[:, None]
        data = [{"x": x, "mask": mask, "label": y}]
        for site in (Site("act", call=0), Site("act", call=1, side="input"), Site("into"), Site("into", position=-1)):
            for baseline in ("zero", "mean", "resample"):
                options = {"layers": site, "baseline": baseline, "target": "logit"}
                names = ["captum.attr.IntegratedGradients(n_steps=8, method='riemann_middle')", "integrated_gradients"]
                found = neuron_importance(
                    model, data, attribution=[*names, "captum.attr.FeatureAblation", "leave_one_out"], **options
                )
                (at,) = found.sites
                name = resolve_attributions(names[0])[0].name
                np.testing.assert_allclose(found[at, name].mean, found[at, names[1]].mean, atol=1e-10)
                np.testing.assert_allclose(
                    found[at, "captum.attr.FeatureAblation"].mean, found[at, "leave_one_out"].mean, atol=1e-10
                )
        # DeepLift's rule of the ReLU: from its input, the whole change of the output
        site = Site("act", call=1, side="input")
        found = neuron_importance(model, data, layers=site, attribution="captum.attr.DeepLift", target="logit")
        exact = neuron_importance(model, data, layers=site, attribution="leave_one_out", target="logit")
        (at,) = found.sites
        np.testing.assert_allclose(found[at].mean, exact[at].mean, atol=1e-10)

    def test_leaves_no_trace(self):
        pytest.importorskip("captum.attr")
        model, x, y, _ = network("mlp")
        before = {name: set(vars(module)) for name, module in model.named_modules()}
        weights = {name: (value.data_ptr(), value.clone()) for name, value in model.named_parameters()}
        per_sample(model, x, y, ["captum.attr.DeepLift", "captum.attr.LRP", "captum.attr.GuidedBackprop"], "1")
        for name, module in model.named_modules():
            assert set(vars(module)) == before[name]
            hooks = (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
            assert not any(hooks)
        for name, value in model.named_parameters():
            assert value.data_ptr() == weights[name][0]
            assert torch.equal(value, weights[name][1])
            assert value.grad is None

    def test_names_bring_methods_back(self):
        captum = pytest.importorskip("captum.attr")
        score = CaptumAttribution(captum.IntegratedGradients, n_steps=8, multiply_by_inputs=False)
        assert score.name == "captum.attr.IntegratedGradients(n_steps=8, multiply_by_inputs=False)"
        (found,) = resolve_attributions(score.name)
        assert found.score == score
        assert (found.name, found.kind) == (score.name, "captum")

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda c: CaptumAttribution("captum.attr.DeepLiftt"), "did you mean 'DeepLift'"),
            (
                lambda c: CaptumAttribution("captum.attr.LayerDeepLift"),
                "pass the input method, .*'captum.attr.DeepLift'",
            ),
            (lambda c: CaptumAttribution(c.NoiseTunnel), "no method that explains a function by its inputs"),
            (lambda c: CaptumAttribution(len), "must be a class of input attributions"),
            (lambda c: CaptumAttribution("captum.attr.DeepLift", steps=3), r"takes the options \[.*, got 'steps'"),
            (lambda c: CaptumAttribution("captum.attr.DeepLift", baselines=0), "got 'baselines'"),
            (lambda c: resolve_attributions("captum.attr.DeepLift(3)"), "are written as in 'captum.attr"),
            (lambda c: resolve_attributions("captum.atr.DeepLift"), "cannot import 'captum.atr'"),
        ],
    )
    def test_refused_in_words(self, make, words):
        captum = pytest.importorskip("captum.attr")
        with pytest.raises(InvalidArgument, match=words) as error:
            make(captum)
        assert len(str(error.value)) < 300

    def test_refused_where_another_question_would_be_answered(self):
        pytest.importorskip("captum.attr")
        model, x, y, _ = network("mlp")
        cases = [
            ("captum.attr.LRP", "zero", "margin", "pass target='logit'"),
            ("captum.attr.LRP", "mean", "logit", "knows no baseline other than zero"),
            ("captum.attr.InputXGradient", "resample", "margin", "knows no baseline other than zero"),
            ("captum.attr.FeaturePermutation", "zero", "margin", "exchanges activations between the samples"),
            ("captum.attr.DeepLiftShap", "zero", "logit", "averages over several baselines"),
            ("captum.attr.Occlusion(sliding_window_shapes=(1, 2))", "zero", "logit", "cannot explain what follows"),
        ]
        for name, baseline, target, words in cases:
            with pytest.raises(InvalidArgument, match=words) as error:
                per_sample(model, x, y, name, "1", baseline, target)
            assert len(str(error.value)) < 300
        gelu = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.GELU(), nn.Linear(9, 4))
        with pytest.raises(InvalidArgument, match="captum.attr.LRP cannot explain what follows layer '1'.*GELU"):
            per_sample(gelu, x, y, "captum.attr.LRP", "1")

    def test_missing(self, monkeypatch):
        import sys

        for name in [name for name in sys.modules if name == "captum" or name.startswith("captum.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "captum", None)
        with pytest.raises(InvalidArgument, match="needs the package captum: python -m pip install captum"):
            CaptumAttribution("captum.attr.DeepLift")


ALL = [
    Conductance(steps=4),
    InternalInfluence(steps=4),
    Shapley(permutations=2),
    Shapley(subsets=4),
    Regression(masks=30),
    Regression(masks=5, residual=True),
    "taylor",
    "layer_norm_rule",
    MaskedGradient(points=2),
]


@pytest.mark.parametrize("baseline", ["zero", "mean", "resample", 0.5])
def test_batch_size_and_order_do_not_change_scores(baseline):  # T14
    x, y = (part[:60] for part in digits(torch.float64))
    model = nn.Sequential(nn.Linear(64, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 10))
    found = [
        neuron_importance(model, batches(x, y, 60), layers=["0", "2"], attribution=ALL, baseline=baseline, batch_size=n)
        for n in (60, 7)
    ]
    assert len(found[0].attributions) == len(ALL)
    for site in ("0", "2"):
        for name in found[0].attributions:
            np.testing.assert_allclose(found[1][site, name].mean, found[0][site, name].mean, atol=1e-11)
            np.testing.assert_allclose(found[1][site, name].std, found[0][site, name].std, atol=1e-9)


@pytest.mark.parametrize("baseline", ["zero", "mean", "resample"])
def test_groups_positions_and_padding(baseline):
    """Scores of measured removals agree with the exact ones where there are no interactions."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x, mask):
            return self.head((self.into(x) * mask[:, :, None]).sum(1))

    model, x, y = Model(), torch.randn(8, 4, 3), torch.arange(8) % 2
    mask = torch.arange(4)[None] < torch.tensor([4, 2, 3, 1, 4, 2, 3, 4])[:, None]
    data = [{"x": x, "mask": mask, "label": y}]
    names = [Shapley(permutations=2), Shapley(subsets=4), Regression(masks=3, residual=True), Regression(ridge=1e-9)]
    for site in (Site("into"), Site("into", group=2), Site("into", position=-1), Site("into", group=3, position=0)):
        found = neuron_importance(
            model, data, layers=site, attribution=[*names, "leave_one_out"], baseline=baseline, target="logit"
        )
        (at,) = found.sites
        exact = found[at, "leave_one_out"].mean
        for name in names:
            np.testing.assert_allclose(found[at, name.name].mean, exact, atol=1e-6)


def test_a_site_is_a_game():
    model, x, y, _ = network("conv")
    kept = []

    def spy(batch):
        kept.append((batch.game(1), batch.index[1], batch.n_neurons))
        game, number, n_neurons = kept[0]
        every = np.array(list(itertools.product([False, True], repeat=n_neurons)))
        values = dict(zip(map(tuple, every), game(every), strict=True))
        exact = exact_shapley(lambda stays: values[tuple(n in stays for n in range(n_neurons))], n_neurons)
        kept.append((number, exact))
        try:
            import shapiq
        except ImportError:
            pass
        else:
            theirs = shapiq.ExactComputer(game=game, n_players=n_neurons)("SV")
            kept.append(np.array([theirs[(neuron,)] for neuron in range(n_neurons)]))
        return batch.sum_positions(batch.activation)

    per_sample(model, x, y, spy, "1", "mean", "margin")
    number, exact = kept[1]
    twin = slow_shapley(model, "1", x, y, model[:2](x).detach().mean((0, 2, 3)))
    np.testing.assert_allclose(exact, twin[number], atol=1e-12)
    if len(kept) < 3:
        pytest.skip("shapiq is not installed")
    np.testing.assert_allclose(kept[2], exact, atol=1e-10)


@pytest.mark.parametrize("score", ["conductance", "internal_influence", "layer_norm_rule", "shapley(subsets=4)"])
def test_a_layer_without_a_gradient_is_told(score):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm, self.head = nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.norm(self.layer(x).detach()))

    data = [(torch.randn(6, 3), torch.arange(6) % 2)]
    with pytest.raises(InvalidArgument, match="layer 'layer' has no gradient"):
        neuron_importance(Cut(), data, layers=["layer", "norm"], attribution=score)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:.*each (ablation|gradient) runs the whole network")
@pytest.mark.parametrize("name", FAMILIES)
def test_captums_methods_on_every_family(name):
    """Where ours answer the same question, through the suffix, padding, donors and all, they give the same."""
    pytest.importorskip("captum.attr")
    torch.manual_seed(3)
    family = FAMILIES[name]()
    family.model.eval()
    baseline = ["zero", "mean", "resample"][list(FAMILIES).index(name) % 3]
    pairs = {
        "captum.attr.FeatureAblation": "leave_one_out",
        "captum.attr.IntegratedGradients(n_steps=8, method='riemann_middle')": "integrated_gradients",
    }
    probe = ProbeSet.from_batches(family.batches, seed=5, max_samples=16)
    found = neuron_importance(
        family.model, probe, layers=family.site, baseline=baseline, attribution=[*pairs, *pairs.values()], seed=5
    )
    for theirs, ours in pairs.items():
        expected = found[family.site, ours].mean
        np.testing.assert_allclose(found[family.site, theirs].mean, expected, atol=1e-10)
