"""How a model runs: without a gradient, with samples that see each other, with random numbers, never on one sample."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_neuroimp import (
    AblationFaithfulness,
    Attribution,
    IntegratedGradients,
    KMeansClusters,
    Results,
    ablation_faithfulness,
    neuron_importance,
)
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.results.conditions import Conditions

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

N = 40


def data(n=N, batch=20, seed=0):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    y = (x[:, 0] + x[:, 1] > 0).long()
    return [(x[start : start + batch], y[start : start + batch]) for start in range(0, n, batch)]


class Net(nn.Module):
    """Is `head(between(encoder(x)))`."""

    def __init__(self, between=lambda h: h, width=5):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head, self.between = nn.Linear(6, width), nn.Linear(width, 2), between

    def forward(self, x):
        return self.head(self.between(self.encoder(x)))


class Quantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, gradient):
        return None


class Untracked(nn.Module):
    """Computes its logits outside of autograd, from NumPy."""

    def __init__(self):
        super().__init__()
        self.encoder, self.other, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = self.encoder(x)
        return self.head(torch.from_numpy(h.detach().numpy()) + self.other(x))


class EarlyExit(nn.Module):
    """Decides on an exit before the layer, whose own logits are not read."""

    def __init__(self):
        super().__init__()
        self.stem, self.encoder, self.exit, self.late = (
            nn.Linear(6, 5),
            nn.Linear(5, 5),
            nn.Linear(5, 2),
            nn.Linear(5, 2),
        )

    def forward(self, x):
        h = self.stem(x)
        self.late(self.encoder(h))
        return self.exit(h)


NO_PATH = {
    "detach": lambda: Net(lambda h: h.detach()),
    "no_grad": lambda: Net(torch.no_grad()(lambda h: h.tanh())),
    "argmax": lambda: Net(lambda h: F.one_hot(h.argmax(1), 5).float()),
    "comparison": lambda: Net(lambda h: (h > 0).float()),
    "numpy": Untracked,
    "exit": EarlyExit,
}


@pytest.mark.parametrize("case", NO_PATH)
@pytest.mark.parametrize("attribution", ["gradient_x_activation", "integrated_gradients", "masked_gradient"])
@pytest.mark.filterwarnings("ignore:layer 'encoder'. each :UserWarning")
def test_a_layer_without_a_gradient_is_refused(case, attribution):
    with pytest.raises(ValueError, match="encoder") as error:
        neuron_importance(NO_PATH[case](), data(), layers=["encoder", "*"], attribution=attribution)
    for phrase in ("layer 'encoder' has no gradient", "in no batch", "attribution='leave_one_out'", "a detach()"):
        assert phrase in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("case", NO_PATH)
@pytest.mark.filterwarnings("ignore:layer 'encoder'. each ablation runs the whole network:UserWarning")
def test_leave_one_out_and_ablation_need_none(case):
    model, batches = NO_PATH[case](), data()
    results = neuron_importance(model, batches, layers="encoder", attribution="leave_one_out")
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = []
    with torch.no_grad():
        for neuron in range(5):
            mask = torch.ones(5)
            mask[neuron] = 0
            handle = model.encoder.register_forward_hook(lambda module, args, out, mask=mask: out * mask)
            gone = model(x)
            handle.remove()
            rows = torch.arange(len(x))
            logits = model(x)
            expected.append((logits[rows, y] - logits[rows, 1 - y]) - (gone[rows, y] - gone[rows, 1 - y]))
    expected = torch.stack(expected, 1)
    means = torch.stack([expected[y == label].mean(0) for label in (0, 1)])
    np.testing.assert_allclose(results["encoder"].mean, means.numpy(), atol=1e-5)
    assert ablation_faithfulness(model, batches, results).has_faithfulness


def test_a_glob_skips_layers_without_a_gradient():
    results = neuron_importance(EarlyExit(), data(), layers="*")
    assert results.sites == ("stem", "exit")
    assert [note.split(":")[0] for note in results.notes] == ["encoder", "late"]
    assert "late: skipped, layer 'late' has no gradient" in results.notes[1]
    with pytest.raises(ValueError, match="none of the layers can be explained; for instance, layer 'encoder' has no"):
        neuron_importance(EarlyExit(), data(), layers="enco*")


FLAT = {
    "round": torch.round,
    "sign": torch.sign,
    "floor": lambda h: torch.floor(4 * h),
    "step": lambda h: h * 0 + h.sign(),
}


def test_an_own_function_without_a_gradient():
    """What follows the layer is run again by what torch dispatches: there the own function's gradient is not known."""
    with pytest.raises(ValueError, match="layer 'encoder' has no gradient"):
        neuron_importance(Net(Quantised.apply), data(), layers="encoder")
    path = Attribution("path", lambda batch: IntegratedGradients()(batch), needs_gradient=False)
    results = neuron_importance(Net(Quantised.apply), data(), layers="encoder", attribution=path)
    assert "flat-gradient" in {finding.id for finding in results.findings}


@pytest.mark.parametrize("case", FLAT)
def test_gradients_that_are_zero_everywhere_are_a_finding(case):
    results = neuron_importance(Net(FLAT[case]), data(), layers=["encoder", "head"])
    assert results.conditions.flat_sites == ("encoder",)
    (finding,) = [finding for finding in results.findings if finding.id == "flat-gradient"]
    assert finding.site == "encoder"
    for phrase in ("every gradient here is exactly zero", "removing all neurons changes the logits"):
        assert phrase in finding.text
    assert "leave_one_out" in finding.remedy


def test_a_layer_that_matters_nowhere_is_not_flat():
    results = neuron_importance(Net(lambda h: h * 0), data(), layers=["encoder", "head"])
    assert np.abs(results["encoder"].mean).max() == 0
    assert results.conditions.flat_sites == ()


class BatchNormOfBatch(nn.BatchNorm1d):
    def __init__(self, width):
        super().__init__(width, track_running_stats=False)


DEPENDENT = {
    "batch norm without statistics": lambda: Net(BatchNormOfBatch(5)),
    "centred by the batch": lambda: Net(lambda h: h - h.mean(0)),
    "scaled by the batch": lambda: Net(lambda h: h / h.abs().amax()),
    "attention over samples": lambda: Net(lambda h: torch.softmax(h @ h.T, 1) @ h),
    "the sample before": lambda: Net(lambda h: h + h.roll(1, 0)),
    "a running sum": lambda: Net(lambda h: h.cumsum(0)),
    "the first sample": lambda: Net(lambda h: h - h[:1]),
    "the last sample": lambda: Net(lambda h: h - h[-1:]),
    "the largest value": lambda: Net(lambda h: 5 * h / h.amax()),
}


@pytest.mark.parametrize("case", DEPENDENT)
def test_samples_that_see_each_other_are_a_finding(case):
    results = neuron_importance(DEPENDENT[case](), data(), layers="encoder")
    (finding,) = [finding for finding in results.findings if finding.id == "batch-dependent"]
    assert finding is results.findings[0]
    assert f"by up to {results.conditions.batch_dependence:.0%}" in finding.text
    assert "depend on the other samples in its batch" in finding.text
    assert "track_running_stats=True" in finding.remedy


INDEPENDENT = {
    "nothing": lambda: Net(),
    "batch norm": lambda: Net(nn.BatchNorm1d(5)),
    "layer norm": lambda: Net(nn.LayerNorm(5)),
    "attention over tokens": lambda: Net(
        lambda h: (torch.softmax(h[:, :, None] * h[:, None], 1) @ h[:, :, None])[..., 0]
    ),
}


@pytest.mark.parametrize("case", INDEPENDENT)
def test_samples_that_do_not_see_each_other(case):
    for batches in (data(), data(batch=1), data(batch=2), data(n=3, batch=3), [data(1, 1)[0]]):
        results = neuron_importance(INDEPENDENT[case](), batches, layers="encoder")
        assert results.conditions.batch_dependence == 0 or np.isnan(results.conditions.batch_dependence)
        assert results.conditions.random_spread == 0
        assert not {"batch-dependent", "random-forward"} & {finding.id for finding in results.findings}
    half = neuron_importance(
        INDEPENDENT["nothing"]().bfloat16(), [(x.bfloat16(), y) for x, y in data()], layers="encoder"
    )
    assert half.conditions.batch_dependence == 0


def dropped(h):
    return F.dropout(h, 0.5)  # in evaluation, too


class Noisy(nn.Module):
    """Has neurons that are never read, and dropout that is always on."""

    def __init__(self, noise=dropped):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.middle, self.head, self.noise = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2), noise
        with torch.no_grad():
            self.middle.weight[:, 3:] = 0

    def forward(self, x):
        return self.head(torch.tanh(self.middle(self.noise(self.encoder(x)))))


NOISE = {
    "dropout": dropped,
    "noise": lambda h: h + torch.randn_like(h),
    "numpy": lambda h: h * torch.from_numpy(np.random.rand(*h.shape)).float(),
}


@pytest.mark.parametrize("case", NOISE)
@pytest.mark.filterwarnings("ignore:layer 'encoder'. each ablation runs the whole network:UserWarning")
def test_noise_is_the_same_in_all_passes_and_a_finding(case):
    """A neuron that is never read has an effect of exactly zero, whatever is drawn."""
    results = neuron_importance(
        Noisy(NOISE[case]), data(), layers="encoder", attribution=["leave_one_out", "gradient_x_activation"]
    )
    for score in ("leave_one_out", "gradient_x_activation"):
        assert np.abs(results["encoder", score].mean[:, 3:]).max() == 0
        assert np.abs(results["encoder", score].mean[:, :3]).min() > 0
    (finding,) = [finding for finding in results.findings if finding.id == "random-forward"]
    assert "draws random numbers in evaluation mode too" in finding.text
    assert f"by up to {results.conditions.random_spread:.0%}" in finding.text
    assert "self.training" in finding.remedy


class Squeezing(nn.Module):
    """Cannot take one sample, as `squeeze()` takes its axis away."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        CALLS.append(len(x))
        return self.head(self.encoder(x[:, None]).squeeze())


CALLS = []  # an attribute of the model would be put back


@pytest.mark.parametrize("n", [41, 21, 3, 2])
@pytest.mark.parametrize("baseline", ["zero", "mean", "resample"])
def test_never_a_pass_of_one_sample(n, baseline):
    """Also where one sample is left over, or has a shape of its own."""
    CALLS.clear()
    model, (batch,) = Squeezing(), data(60, 60)
    batches = [(batch[0][start : start + 20], batch[1][start : start + 20]) for start in range(0, 60, 20)]
    options = {"layers": "encoder", "baseline": baseline, "max_samples": n, "attribution": "gradient_x_activation"}
    results = neuron_importance(model, batches, **options)
    checked = ablation_faithfulness(model, batches, results)
    assert len(results.sample_index) == n
    assert min(CALLS) >= 2
    plain = nn.Sequential()
    plain.encoder, plain.head = model.encoder, model.head
    same = neuron_importance(plain, batches, **options)
    np.testing.assert_allclose(results["encoder"].half_mean, same["encoder"].half_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
        checked["encoder"].faithfulness.accuracy,
        ablation_faithfulness(plain, batches, same)["encoder"].faithfulness.accuracy,
    )
    if n > 3:
        clusters = KMeansClusters(2, embedding="encoder")
        neuron_importance(model, batches, **{**options, "clusters": clusters})
        assert min(CALLS) >= 2


class Lengths(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        CALLS.append(len(x))
        return self.head(self.encoder(x).mean(1))


@pytest.mark.parametrize("attribution", ["gradient_x_activation", "leave_one_out", "integrated_gradients"])
@pytest.mark.parametrize("baseline", ["zero", "resample"])
def test_samples_of_a_shape_of_their_own_are_not_alone(attribution, baseline):
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(2, length, 3, generator=generator), torch.tensor([0, 1])) for length in (4, 5, 6, 7, 4, 5)]
    CALLS.clear()
    model, options = Lengths(), {"attribution": attribution, "baseline": baseline, "max_samples": 7}
    results = neuron_importance(model, batches, layers="encoder", **options)
    results = ablation_faithfulness(model, batches, results, AblationFaithfulness(fractions=(0.3, 0.6)))
    assert min(CALLS) == 2
    model.forward = lambda x: model.head(model.encoder(x).mean(1))
    alone = neuron_importance(model, batches, layers="encoder", batch_size=1, **options)
    np.testing.assert_allclose(results["encoder"].half_mean, alone["encoder"].half_mean, rtol=1e-4, atol=1e-6)
    again = ablation_faithfulness(model, batches, alone, AblationFaithfulness(fractions=(0.3, 0.6)), batch_size=1)
    np.testing.assert_array_equal(results["encoder"].faithfulness.accuracy, again["encoder"].faithfulness.accuracy)


def test_a_loader_with_a_batch_of_one_may_be_run_alone():
    probe = ProbeSet.from_batches(data(41, 20))
    assert (probe.smallest_batch, probe.copied()) == (1, False)
    assert [len(index) for _, index in probe.batches(20)] == [20, 19, 2]
    assert [len(batch[1]) for batch, _ in probe.batches(2, copies=True)][-2:] == [2, 1]
    probe = ProbeSet.from_batches(data(60, 20), max_samples=41)
    assert (probe.smallest_batch, probe.copied(), probe.copied(1)) == (20, True, False)
    assert [len(index) for _, index in probe.batches(20)] == [20, 19, 2]
    assert [len(index) for _, index in probe.batches(2)][-2:] == [2, 1]
    assert [len(batch[1]) for batch, _ in probe.batches(2, copies=True)][-2:] == [2, 2]
    assert sum(len(index) for _, index in probe.batches(20)) == 41
    assert probe.count_batches(20) == 3


MASKED = {
    "a class that is ruled out": ([0.0, 0.0, float("-inf")], True),
    "finite": ([0.0, 0.0, -1e4], True),
    "nan": ([0.0, 0.0, float("nan")], False),
    "plus infinity": ([0.0, 0.0, float("inf")], False),
    "the own class": ([float("-inf"), float("-inf"), 0.0], False),
}


@pytest.mark.parametrize("case", MASKED)
def test_minus_infinity_rules_a_class_out(case):
    added, usable = MASKED[case]
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    masked = Masked(model, torch.tensor(added))
    if not usable:
        with pytest.raises(FloatingPointError, match="not finite for any of the 40 probe samples"):
            neuron_importance(masked, data(), layers="model.1")
        return
    results = ablation_faithfulness(masked, data(), neuron_importance(masked, data(), layers="model.1"))
    two = Masked(model, torch.zeros(2))
    expected = ablation_faithfulness(two, data(), neuron_importance(two, data(), layers="model.1"))
    found, other = results["model.1"], expected["model.1"]
    np.testing.assert_allclose(found.mean, other.mean, rtol=1e-4)
    np.testing.assert_array_equal(found.faithfulness.accuracy, other.faithfulness.accuracy)
    assert not results.notes


class Masked(nn.Module):
    def __init__(self, model, added):
        super().__init__()
        self.model, self.added = model, added

    def forward(self, x):
        return self.model(x)[:, : len(self.added)] + self.added


def test_conditions_survive_a_file(tmp_path):
    results = neuron_importance(Net(torch.round), data(), layers=["encoder", "head"])
    results.save(tmp_path / "results.npz")
    loaded = Results.load(tmp_path / "results.npz")
    assert loaded.conditions == results.conditions != Conditions()


class Bounded(Net):
    def __init__(self, outcome):
        super().__init__(torch.tanh)
        self.outcome = outcome

    def forward(self, x):
        return self.outcome(super().forward(x))


@pytest.mark.parametrize(
    ("outcome", "bounded"),
    [
        (lambda f: 1 - torch.exp(F.logsigmoid(f).clamp_max(-1e-3)), True),
        (lambda f: 0.5 * (torch.tanh(f) + 1), True),
        (lambda f: 1 / (1 + torch.exp(-f)), True),
        (lambda f: f, False),
        (lambda f: f * 10, False),
    ],
)
def test_outputs_between_0_and_1_are_a_finding(outcome, bounded):
    results = neuron_importance(Bounded(outcome), data(), layers="encoder")
    assert results.conditions.bounded_outputs == bounded
    assert ("bounded-outputs" in {finding.id for finding in results.findings}) == bounded
