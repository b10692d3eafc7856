"""Baselines and explained classes beyond zero, mean and labels."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import (
    AblationFaithfulness,
    ProbeSet,
    ablation_faithfulness,
    deletion_curve,
    neuron_importance,
)
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.capture.baselines import Baseline, ReferenceInput
from lightning_neuroimp.capture.donors import Donors, donate
from lightning_neuroimp.display.summary import summary
from lightning_neuroimp.results.verdict import Verdict
from tests.support.digits import train, validation_batches
from tests.support.toys import class_zero

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

SETTINGS = AblationFaithfulness(max_samples=300)


@pytest.fixture(scope="module")
def net():
    return train(nn.ReLU, width=32, depth=2, epochs=8)


def test_donors_are_a_derangement_that_does_not_depend_on_the_batches():
    stream = [(torch.randn(5, 3), torch.zeros(5).long()) for _ in range(9)]
    probe = ProbeSet.from_batches(stream, max_samples=31, seed=3)
    donors = Donors(probe, 3).of(probe.index)
    assert sorted(donors) == sorted(probe.index)
    assert (donors != probe.index).all()
    assert np.array_equal(Donors(probe, 3).of(probe.index[::-1]), donors[::-1])
    assert not np.array_equal(Donors(probe, 4).of(probe.index), donors)
    donated = {}
    for _, index in probe.batches(7):
        for batch, places in Donors(probe, 3).batches(index):
            assert len(batch[0]) == len(places)
            donated |= {int(index[place]): batch[0][row] for row, place in enumerate(places)}
    rows = {int(number): batch[0][row] for batch, index in probe.batches() for row, number in enumerate(index)}
    pairs = zip(probe.index.tolist(), donors.tolist(), strict=True)
    assert all(torch.equal(donated[sample], rows[donor]) for sample, donor in pairs)


def test_one_sample_has_no_donor():
    with pytest.raises(ValueError, match=r"baseline='resample' takes another sample's activations.*holds only one"):
        neuron_importance(nn.Sequential(nn.Linear(2, 2)), class_zero([[1.0, 2.0]]), layers="0", baseline="resample")


def test_images_of_several_sizes_have_no_common_donors():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    data = [(torch.randn(4, 1, size, size), torch.zeros(4).long()) for size in (5, 6)]
    with pytest.raises(ValueError, match=r"activations of one size, got .*; use baseline='mean', or inputs of one"):
        neuron_importance(model, data, layers="0", baseline="resample")
    assert neuron_importance(model, data, layers="2", baseline="resample")["2"].count.sum() == 8


def test_tokens_of_a_shorter_donor_come_round_again():
    activation, donated = torch.zeros(1, 5, 1), torch.arange(1.0, 4).reshape(1, 3, 1)
    counted = torch.tensor([[True, True, True, True, False]])
    donors = [(donated, torch.tensor([[True, True, False]]), np.array([0]))]
    assert donate(activation, 2, counted, donors)[0, :, 0].tolist() == [1, 2, 1, 2, 0]


@pytest.mark.parametrize("axis", [1, 2])
def test_donated_tokens_equal_a_slow_twin(axis):
    generator = np.random.default_rng(0)
    for _ in range(50):
        n, n_tokens, n_donated = generator.integers(1, 6, 3)
        activation = torch.from_numpy(generator.normal(size=(n, n_tokens, 2))).movedim(2, axis)
        donated = torch.from_numpy(generator.normal(size=(n, n_donated, 2))).movedim(2, axis)
        positions, counted = (torch.from_numpy(generator.random((n, size)) < 0.6) for size in (n_tokens, n_donated))
        places = generator.permutation(n)
        expected = activation.clone().movedim(axis, 2)
        for donor, sample in enumerate(places):
            source = donated.movedim(axis, 2)[donor, counted[donor]]
            for number, token in enumerate(positions[sample].nonzero()[:, 0].tolist()):
                if len(source):
                    expected[sample, token] = source[number % len(source)]
        found = donate(activation, axis, positions, [(donated, counted, places)])
        assert torch.equal(found.movedim(axis, 2), expected)


@pytest.mark.parametrize("baseline", ["resample", 0.25, "mean"])
def test_scores_for_a_baseline_are_supported_by_ablation_to_it(net, baseline):
    data = validation_batches()
    results = neuron_importance(net, data, layers="1", baseline=baseline)
    found = ablation_faithfulness(net, data, results, SETTINGS)["1"].faithfulness
    assert found.verdict[-1] is Verdict.FAITHFUL  # the last row holds all clusters
    assert found.lds[-1] > 0.85
    # scored for another baseline than the one that is removed to, they predict less
    other = neuron_importance(net, data, layers="1", baseline=2.0)["1"]
    mixed = results.replace(
        importances=tuple(type(one)(**{**vars(one), "half_mean": other.half_mean}) for one in results.importances)
    )
    assert ablation_faithfulness(net, data, mixed, SETTINGS)["1"].faithfulness.lds[-1] < found.lds[-1] - 0.02


def test_leave_one_out_knows_every_baseline(net):
    data = validation_batches()[:1]
    for baseline in ("resample", 0.25):
        exact, first = (
            neuron_importance(net, data, layers="3", baseline=baseline, attribution=name)["3"].mean
            for name in ("leave_one_out", "gradient_x_activation")
        )
        assert np.corrcoef(exact.reshape(-1), first.reshape(-1))[0, 1] > 0.95


def test_a_number_is_zero_or_a_constant():
    model, data = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), class_zero(torch.randn(6, 3))
    zero, constant = (neuron_importance(model, data, layers="1", baseline=value)["1"].removal for value in (0, -1))
    assert (zero.baseline, constant.baseline) == ("zero", "constant")
    assert constant.baseline_value.tolist() == [-1.0] * 4
    curve = deletion_curve(model, data, range(4), layer="1", baseline=-1.0, fractions=[1.0])
    with torch.no_grad():
        left = model[2](torch.full((1, 4), -1.0))[0]
    assert curve.margin[0] == pytest.approx(float(left[0] - left[1]), abs=1e-6)


def test_equal_baselines_have_one_identity():
    def identity(baseline):
        return Baseline.of(baseline).identity

    assert [identity(each) for each in ("zero", 0, "mean", "resample", 0.5)] == [
        *("zero", "zero", "mean", "resample"),
        "constant 0.5",  # as checkpoints have it
    ]
    assert identity([1.0, 2.0]) == identity(np.array([1, 2])) == identity(torch.tensor([1.0, 2.0])) == "vector 7ba3895f"
    assert identity({"a": 1.0, "b": [2.0]}) == identity({"b": [2.0], "a": 1.0})
    black = ReferenceInput({"x": torch.zeros(2, 3)})
    assert identity(black) == identity(ReferenceInput({"x": torch.zeros(2, 3)}))
    different = ([1.0, 2.0], [2.0, 1.0], {"a": 1.0}, {"b": 1.0}, {"a": 2.0}, black, ReferenceInput(torch.ones(2, 3)))
    assert len({identity(each) for each in different}) == len(different)


def test_predicted_classes_are_those_of_the_whole_model(net):
    data = validation_batches()
    results = neuron_importance(net, data, layers="3", target_class="predicted", clusters="predictions")
    assert results.sample_correct.all()
    assert (results.sample_target == results.sample_cluster).all()
    assert (results.sample_label != results.sample_target).any()
    checked = ablation_faithfulness(net, data, results, SETTINGS)["3"].faithfulness
    assert (checked.intact_accuracy == 1).all()
    assert checked.accuracy[-1, -1] < 0.9  # agreement with the whole model's prediction falls
    assert "target: margin of the predicted class" in summary(results)
    assert results.clusters.names[3] == "predicted 3"


def test_one_class_for_all_samples(net):
    data = validation_batches()
    results = neuron_importance(net, data, layers="3", target_class=3)
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    h = net[:4](x).detach().requires_grad_()
    logits = net[4](h)
    others = torch.cat([logits[:, :3], logits[:, 4:]], 1).logsumexp(1)
    (slope,) = torch.autograd.grad((logits[:, 3] - others).sum(), h)
    for row, label in enumerate(results.clusters.ids.tolist()):
        expected = (h * slope)[y == label].mean(0).detach()
        np.testing.assert_allclose(results["3"].mean[row], expected, atol=1e-5)
    assert (results.sample_target == 3).all()
    assert "target: margin of class 3" in summary(results)
    np.testing.assert_array_equal(results.sample_correct, (logits.argmax(1) == 3).numpy()[results.sample_index])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_class": "truth"},
            "target_class must be 'label', 'predicted' or the number of a class, got 'truth'",
        ),
        ({"target_class": 10}, r"target_class=10 is not among the classes 0..9 of the model"),
        ({"target_class": -1}, "target_class.* must be"),
        ({"target_class": True}, "target_class.* must be"),
        ({"baseline": float("nan")}, "baseline must be a number, got nan"),
        ({"baseline": "noise"}, "baseline must be 'zero', 'mean', 'resample', 'optimal', a finite number, a list with"),
    ],
)
def test_what_is_no_baseline_or_class(net, options, message):
    with pytest.raises(ValueError, match=message):
        neuron_importance(net, validation_batches(), layers="3", **options)


def test_a_zero_outside_of_the_activations_is_told():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    nn.init.constant_(model[0].bias, 5.0)
    data = class_zero(torch.randn(40, 4) * 0.3)
    far = neuron_importance(model, data, layers="0")
    assert (far.activity("0").distance(far["0"].removal.baseline_value) > 2).all()
    assert "(zero) lies more than 2 standard deviations from the mean of 6 of 6 channels" in " ".join(
        summary(far).split()
    )
    near = neuron_importance(model, data, layers="0", baseline="mean")
    assert near.activity("0").distance(near["0"].removal.baseline_value).max() < 1e-4
    assert "lies more than 2 standard deviations" not in summary(near)


def test_activations_are_described_as_numpy_would():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(36, 3))
    x, y = torch.randn(50, 1, 5, 5), torch.randint(3, (50,))
    batches = list(zip(x.split(7), y.split(7), strict=True))
    h = model[0](x).detach().numpy()
    found = neuron_importance(model, batches, layers="0").activity("0")
    assert found.count == 50 * 9
    for name in ("mean", "std"):
        np.testing.assert_allclose(getattr(found, name), getattr(h, name)((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.minimum, h.min((0, 2, 3)))
    np.testing.assert_array_equal(found.maximum, h.max((0, 2, 3)))
    most = h.max((2, 3))
    np.testing.assert_array_equal(found.top_samples, np.argsort(-most, axis=0)[:5].T)
    np.testing.assert_array_equal(found.top_values, -np.sort(-most, axis=0)[:5].T)


def test_activations_of_broken_samples_and_of_many_batches():
    from lightning_neuroimp.importance.activity import ActivityMoments

    generator = np.random.default_rng(0)
    h = generator.normal(3, 2, (3000, 4, 5))
    h[7, 1, 2], h[1500, 0, 0] = np.nan, np.inf
    moments = ActivityMoments(1, 1)
    for rows in np.array_split(generator.permutation(3000), 23):
        moments.add(torch.from_numpy(h[rows]), None, rows)
    found, fine = moments.activity("site", Processes()), np.delete(h, [7, 1500], 0)
    assert found.count == 2998 * 5
    np.testing.assert_allclose(found.mean, fine.mean((0, 2)))
    np.testing.assert_allclose(found.std, fine.std((0, 2)))
    left = h.max(2)
    left[[7, 1500]] = -np.inf
    np.testing.assert_array_equal(found.top_samples, np.argsort(-left, axis=0)[:5].T)
    # of equal ones the smaller numbers, in any order of the batches
    flat = ActivityMoments(1, 2)
    for rows in ([5, 2], [9, 1], [7, 3, 0]):
        flat.add(torch.ones(len(rows), 2), None, np.array(rows))
    same = flat.activity("site", Processes())
    assert same.top_samples.tolist() == [[0, 1, 2, 3, 5]]
    np.testing.assert_allclose(same.top_values, 2**0.5)
