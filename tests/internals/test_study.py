"""The flow without a Trainer: passes, splits, baselines, undisturbed models, ablation against edited weights."""

import collections
import copy
import dataclasses
import functools
import types

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import (
    AblationFaithfulness,
    Attribution,
    KMeansClusters,
    ProbeSet,
    ablation_faithfulness,
    deletion_curve,
    neuron_importance,
    weight_randomisation,
)
from lightning_neuroimp.ablation.outcomes import ablate_orders
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.suffix.tape import Tape
from lightning_neuroimp.display.summary import summary
from tests.support.digits import batches, digits, train, validation_batches
from tests.support.toys import in_lockstep

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

NAMES = ["gradient_x_activation", "gradient", "activation", "random"]


class Counting(nn.Module):
    """Counts forward and backward passes over itself; in an object of its own, as attributes are put back."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.counted = inner, types.SimpleNamespace(passes=collections.Counter())

    @property
    def passes(self):
        return self.counted.passes

    def forward(self, x):
        self.passes["forward"] += 1
        logits = self.inner(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient):
        self.passes["backward"] += 1


@pytest.mark.parametrize(
    ("options", "forwards", "backwards"),
    [
        ({}, 1, 1),
        ({"attribution": NAMES}, 1, 1),
        ({"attribution": ["activation", "random"]}, 1, 0),
        ({"baseline": "mean", "attribution": NAMES}, 2, 1),
        ({"clusters": KMeansClusters(3)}, 2, 1),
        ({"clusters": KMeansClusters(3), "baseline": "mean", "attribution": NAMES}, 2, 1),
        ({"clusters": lambda batch: batch[1] % 3}, 1, 1),
    ],
)
def test_all_sites_and_scores_share_the_passes(options, forwards, backwards):
    model = Counting(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10)))
    data = validation_batches(200)
    neuron_importance(model, data, layers=["inner.0", "inner.1", "inner.3"], **options)
    trial = 5  # over a few samples, to settle the axes
    assert model.passes["forward"] == forwards * len(data) + trial
    assert model.passes["backward"] == backwards * len(data)


def test_a_check_costs_what_it_says():
    model = Counting(nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)))
    data = validation_batches(200)
    results = neuron_importance(model, data, layers="inner.1", attribution=NAMES[:2])
    settings = AblationFaithfulness(max_samples=600)
    model.passes.clear()
    ablation_faithfulness(model, data, results, settings)
    # each batch once, and the first one again to try its replay
    assert model.passes["forward"] == len(data) + 1


def test_replays_are_of_what_follows_and_none_is_made_twice(monkeypatch):
    replays = collections.Counter()
    run = Tape.run

    def counted(tape, activation):
        replays[len(tape)] += 1
        return run(tape, activation)

    monkeypatch.setattr(Tape, "run", counted)
    model = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 10))
    data = validation_batches(200)
    scores = [Attribution("one", lambda batch: batch.activation), Attribution("same", lambda batch: batch.activation)]
    results = neuron_importance(model, data, layers=["1", "3"], attribution=scores)
    settings = AblationFaithfulness(max_samples=600, fractions=(0.1, 0.5, 1.0))
    ablation_faithfulness(model, data, results, settings)
    # what follows layer 1 is three operations, what follows layer 3 is one
    assert set(replays) == {3, 1}
    for operations in (3, 1):
        per_batch, rest = divmod(replays[operations] - 1, len(data))  # one trial, on the first batch
        assert rest == 0
        # 24 orders, of which both scores' are the same, at 10% and at 50%, and once all neurons together; some random
        # pairs of neurons coincide
        assert 2 * 19 - 8 <= per_batch <= 2 * (24 - 2) + 1


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_batch_size_and_order_do_not_change_scores(baseline):  # T14
    x, y = (part[:150] for part in digits(torch.float64))
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    order = torch.randperm(150)
    versions = [
        batches(x, y, 150),
        batches(x, y, 7),
        iter(batches(x, y, 64)),  # no length
        batches(x[order], y[order], 32),
    ]
    found = [neuron_importance(model, data, layers="*", baseline=baseline, batch_size=None) for data in versions]
    found.append(neuron_importance(model, batches(x, y, 64), layers="*", baseline=baseline, batch_size=11))
    for other in found[1:]:
        for site in "012":
            np.testing.assert_allclose(other[site].mean, found[0][site].mean, atol=1e-12)
            np.testing.assert_allclose(other[site].std, found[0][site].std, atol=1e-9)
            np.testing.assert_allclose(other[site].removal.baseline_value, found[0][site].removal.baseline_value)


@pytest.mark.parametrize(
    "options",
    [
        {"baseline": "mean", "clusters": KMeansClusters(3)},
        {"clusters": "predictions", "target_class": "predicted"},
        {"stratify": True, "groups": lambda batch: [int(row.sum()) % 30 for row in batch[0]]},
    ],
)
@pytest.mark.usefixtures("double")
def test_scores_and_curves_do_not_depend_on_the_number_of_processes(options):  # T14; real processes: test_ddp.py
    """Three processes in lockstep threads, each with a third of the samples."""
    from lightning_neuroimp.batches.probe import ProbeSampler
    from lightning_neuroimp.batches.processes import Processes

    x, y = (part[:120] for part in digits(torch.float64))
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    world = 3
    found = [None] * world
    options = {"layers": ["0", "1"]} | options
    stratify = options.pop("stratify", False)

    def process(rank, gather):
        sampler = ProbeSampler(100, stratify=stratify)
        rows = torch.arange(rank, 120, world)
        for part in rows.split(9):
            sampler.add((x[part], y[part]), part.numpy())
        probe = sampler.close(Processes(gather))
        # `undisturbed` changes modes of a shared model: each its own copy, as processes have
        own = copy.deepcopy(model)
        results = neuron_importance(own, probe, gather=gather, **options)
        found[rank] = ablation_faithfulness(own, probe, results, gather=gather)

    in_lockstep(world, process)
    single_probe = ProbeSet.from_batches(batches(x, y, 50), max_samples=100, stratify=stratify)
    single = neuron_importance(model, single_probe, **options)
    single = ablation_faithfulness(model, single_probe, single)
    for result in found:
        assert result is not None
        assert sorted(result.sample_index) == sorted(single.sample_index)
        np.testing.assert_array_equal(result.sample_cluster, single.sample_cluster)
        for site in ("0", "1"):
            np.testing.assert_allclose(result[site].mean, single[site].mean, atol=1e-12)
            np.testing.assert_array_equal(result[site].mean, found[0][site].mean)
            one, same = result[site].faithfulness, single[site].faithfulness
            for part in ("random_accuracy", "accuracy", "gap", "p_value", "samples"):
                np.testing.assert_array_equal(getattr(one, part), getattr(found[0][site].faithfulness, part))
                np.testing.assert_allclose(getattr(one, part), getattr(same, part), atol=1e-12)
            np.testing.assert_array_equal(result.sample_half, single.sample_half)
            assert result.activity(site).count == single.activity(site).count
            np.testing.assert_allclose(result.activity(site).std, single.activity(site).std, atol=1e-12)
            np.testing.assert_array_equal(result.activity(site).top_samples, single.activity(site).top_samples)
            assert result[site].faithfulness.samples[:, :-1].sum() == 100
            np.testing.assert_array_equal(result[site].faithfulness.samples, single[site].faithfulness.samples)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_ablation_equals_editing_the_weights(kind):
    """A neuron set to zero is a neuron whose outgoing weights are zero."""
    if kind == "linear":
        model = nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10)).double()
        shape, outgoing = (-1, 64), 2
    else:
        model = nn.Sequential(
            nn.Conv2d(1, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(64, 10)
        )
        model, shape, outgoing = model.double(), (-1, 1, 8, 8), 2
    x, y = digits(torch.float64)
    data = [(x[:60].reshape(shape), y[:60])]
    results = neuron_importance(model, data, layers="1")
    n_neurons = results["1"].removal.n_neurons
    orders = [np.random.default_rng(draw).permutation(n_neurons) for draw in range(4)]
    removed = np.array([1, 3])
    groups = (y[:60] % 2).numpy()

    def forward(batch):
        return model(batch[0]), batch[1]

    outcome = ablate_orders(
        SuffixRecorder(model, forward, results["1"].removal),
        [(data[0], np.arange(60), groups)],
        [order[None] for order in orders],
        removed,
    )
    for draw, order in enumerate(orders):
        for point, count in enumerate(removed):
            edited = copy.deepcopy(model)
            with torch.no_grad():
                edited[outgoing].weight[:, order[:count]] = 0.0
                logits = edited(data[0][0])
            np.testing.assert_array_equal(outcome.predicted[draw, point], logits.argmax(1).numpy())
            np.testing.assert_array_equal(outcome.correct[draw, point], (logits.argmax(1) == data[0][1]).numpy())
            rest = logits.clone()
            rest[torch.arange(60), data[0][1]] = -torch.inf
            margin = (logits[torch.arange(60), data[0][1]] - rest.logsumexp(1)).numpy()
            np.testing.assert_allclose(outcome.margin[draw, point], margin, atol=1e-12)


def test_rankings_come_from_the_other_half():
    """Scores that are informative on one half alone must not be judged on it."""
    model, data = train(nn.ReLU, width=32, depth=1, epochs=4), validation_batches()
    results = neuron_importance(model, data, layers="1")
    one = results["1"]
    half = one.half_mean.copy()
    half[1] = -half[1]  # half 1 ranks upside down; half 0 ranks right
    spoiled = results.replace(importances=(copy.copy(one),))
    object.__setattr__(spoiled.importances[0], "half_mean", half)
    right = ablation_faithfulness(model, data, results)["1"].faithfulness
    wrong = ablation_faithfulness(model, data, spoiled)["1"].faithfulness
    assert right.gap[-1] > 0.1
    # the curve is the mean of a right and a wrong half, and the LDS of the two cancel
    assert wrong.gap[-1] < right.gap[-1] * 0.6
    assert abs(wrong.lds[-1]) < abs(right.lds[-1]) / 3
    # the control is of the rankings that are judged, which differ
    assert (right.random_accuracy != wrong.random_accuracy).any()
    assert right.random_accuracy.mean() == pytest.approx(wrong.random_accuracy.mean(), abs=0.05)


def test_halves_are_disjoint_equal_and_stratified_by_correctness():
    model, data = train(nn.ReLU, width=16, depth=1, epochs=3), validation_batches()
    results = neuron_importance(model, data, layers="1")
    assert set(results.sample_half) == {0, 1}
    for cluster in results.clusters.ids:
        for correct in (True, False):
            members = (results.sample_cluster == cluster) & (results.sample_correct == correct)
            first = (results.sample_half[members] == 0).sum()
            assert abs(2 * first - members.sum()) <= 1
    np.testing.assert_array_equal(results["1"].count.sum(0), results.clusters.size)
    again = neuron_importance(model, data, layers="1")
    np.testing.assert_array_equal(again.sample_half, results.sample_half)


def test_moments_equal_a_slow_twin():
    model, data = train(nn.Tanh, width=16, depth=1, epochs=2), validation_batches()
    kept = []

    def record(batch):
        values = batch.sum_positions(batch.deviation * batch.gradient)
        kept.append(values.double())
        return values

    results = neuron_importance(model, ProbeSet.from_batches(data), layers="1", attribution=record)
    probe = ProbeSet.from_batches(data)
    values = torch.cat(kept).numpy()[np.argsort(probe.index, kind="stable")]
    one = results["1"]
    for row, cluster in enumerate(one.cluster_ids):
        member = results.sample_cluster == cluster
        np.testing.assert_allclose(one.mean[row], values[member].mean(0), atol=1e-12)
        np.testing.assert_allclose(one.abs_mean[row], np.abs(values[member]).mean(0), atol=1e-12)
        np.testing.assert_allclose(one.std[row], values[member].std(0), atol=1e-8)
        standard_error = values[member].std(0, ddof=1) / np.sqrt(member.sum())
        np.testing.assert_allclose(one.stderr[row], standard_error, atol=1e-8)
        for half in (0, 1):
            np.testing.assert_allclose(
                one.half_mean[half, row], values[member & (results.sample_half == half)].mean(0), atol=1e-12
            )
        np.testing.assert_array_equal(one.top(int(cluster), 3), np.argsort(-values[member].mean(0))[:3])


class Awkward(nn.Module):
    """Has what must not be changed: dropout, batch norm, a buffer that it writes to, and randomness."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.head = nn.Linear(16, 10)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("rebound", torch.zeros(1))
        self.body[1].eval()  # a frozen part of a model in training
        self.seen = None

    def forward(self, x):
        self.calls += 1
        self.seen = self.fresh = x
        self.rebound = self.rebound + 1
        torch.rand(3), np.random.rand(3)
        return self.head(self.body(x))


def state(model):
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        torch.get_rng_state(),
        np.random.get_state()[1:3],
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        [{name: id(value) for name, value in vars(module).items()} for module in model.modules()],
    )


def assert_same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)
    assert one[1] == other[1]
    for a, b in zip(one[2], other[2], strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    assert one[3] == other[3]
    assert one[4] == other[4]
    assert torch.equal(one[5], other[5])
    assert np.array_equal(one[6][0], other[6][0])
    assert one[6][1] == other[6][1]
    assert one[7:] == other[7:]


@pytest.mark.filterwarnings(
    "ignore:.*the forward pass draws random numbers"
)  # that is why each ablation is a full pass
@pytest.mark.parametrize("fault", ["none", "attribution", "clusters", "ablation"])
def test_the_model_is_left_as_it_was_found(fault):
    model, data = Awkward(), validation_batches()
    x, y = data[0]
    nn.functional.cross_entropy(model(x), y).backward()  # in the middle of an accumulation
    model.head.weight.requires_grad_(False)
    before = state(model)

    def failing(*args):
        raise RuntimeError("injected")

    options = {"attribution": failing} if fault == "attribution" else {}
    options |= {"clusters": failing} if fault == "clusters" else {"clusters": KMeansClusters(3)}
    layers = ["body.0", "body.2"]
    if fault in ("attribution", "clusters"):
        with pytest.raises(RuntimeError, match="injected"):
            neuron_importance(model, data, layers=layers, baseline="mean", **options)
    else:
        results = neuron_importance(model, data, layers=layers, baseline="mean", **options)
        if fault == "ablation":
            calls = iter(range(5))

            def forward_fn(model, batch):
                if next(calls, None) is None:
                    failing()
                return model(batch[0]), batch[1]

            with pytest.raises(RuntimeError, match="injected"):
                ablation_faithfulness(model, data, results, forward_fn=forward_fn)
        else:
            ablation_faithfulness(model, data, results)
    assert_same(state(model), before)


def test_frozen_models_and_inference_mode_give_the_same_scores():
    model, data = train(nn.ReLU, width=16, depth=2, epochs=1), validation_batches()
    expected = neuron_importance(model, data, layers=["0", "1", "3"])
    with torch.inference_mode():
        inside = neuron_importance(model, [(x.clone(), y.clone()) for x, y in data], layers=["0", "1", "3"])
    with torch.no_grad():
        under = neuron_importance(model, data, layers=["0", "1", "3"])
    frozen = copy.deepcopy(model).requires_grad_(False)
    for other in (inside, under, neuron_importance(frozen, data, layers=["0", "1", "3"])):
        for site in expected:
            np.testing.assert_allclose(other[site].mean, expected[site].mean, atol=1e-6)


def test_a_model_with_samples_that_are_not_finite_says_so():
    model, data = train(nn.Tanh, width=16, depth=1, epochs=1), validation_batches(597)
    x, y = data[0]
    x = x.clone()
    x[:3] = torch.nan
    broken = neuron_importance(model, [(x, y)], layers="1", baseline="mean")
    whole = neuron_importance(model, [(x[3:], y[3:])], layers="1", baseline="mean")
    np.testing.assert_allclose(broken["1"].mean, whole["1"].mean, atol=1e-6)
    assert "3 of 597 samples left out, whose outputs were not finite" in broken.notes
    assert broken.clusters.size.sum() == 594
    checked = ablation_faithfulness(model, [(x, y)], broken)
    assert np.isfinite(checked["1"].faithfulness.gap).all()
    with pytest.raises(FloatingPointError, match=r"not finite for any of the 3 probe samples.*diverged"):
        neuron_importance(model, [(x[:3], y[:3])], layers="1")


def test_a_site_that_the_target_does_not_depend_on_is_refused():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.used, self.unused = nn.Linear(64, 8), nn.Linear(8, 10), nn.Linear(8, 3)

        def forward(self, x):
            h = self.body(x).tanh()
            self.unused(h)
            return self.used(h)

    with pytest.raises(ValueError, match=r"layer 'unused' has no gradient: in no batch .*attribution='leave_one_out'"):
        neuron_importance(TwoHeads(), validation_batches(), layers=["body", "unused"])
    results = neuron_importance(TwoHeads(), validation_batches(), layers="*")
    assert results.sites == ("body", "used")
    assert any(note.startswith("unused: skipped, layer 'unused' has no gradient") for note in results.notes)
    results = neuron_importance(TwoHeads(), validation_batches(), layers="unused", attribution="leave_one_out")
    assert np.abs(results["unused"].mean).max() == 0


def test_clusters_of_one_sample_are_marked_not_judged():
    model, (x, y) = train(nn.Tanh, width=16, depth=1, epochs=1), digits()
    rows = torch.tensor([int((y == label).nonzero()[0]) for label in range(10)])
    data = [(x[rows], y[rows])]
    found = ablation_faithfulness(model, data, neuron_importance(model, data, layers="1"))["1"].faithfulness
    assert found.samples.sum() == 0
    assert np.isnan([found.gap[-1], found.p_value[-1], found.p_value_worse[-1]]).all()
    assert np.isnan(found.gap).all()
    assert np.isnan(found.p_value).all()
    assert {*found.verdict, found.verdict[-1]} == {"too few samples to say"}


def test_the_limit_of_clusters_holds_over_processes():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 30))
    errors = []

    def process(rank, gather):
        data = [(torch.randn(60, 4), torch.arange(60) % 15 + 15 * rank)]
        probe = ProbeSet.from_batches(data)
        probe = dataclasses.replace(
            probe, stacks=tuple(dataclasses.replace(stack, index=stack.index + 60 * rank) for stack in probe.stacks)
        )
        try:
            neuron_importance(copy.deepcopy(model), probe, layers="1", gather=gather)
        except ValueError as error:
            errors.append(str(error))

    in_lockstep(2, process)
    assert len(errors) == 2
    assert all("there are 30 clusters, more than 20" in error for error in errors)


@pytest.mark.parametrize(
    ("forward_fn", "options", "phrase"),
    [
        (lambda model, batch: (model(batch[0])[:5], batch[1][:5]), {}, "5 rows of logits for a batch of 128 samples"),
        (lambda model, batch: (model(batch[0]).detach(), batch[1]), {}, "carry no gradient to any of the layers"),
        (None, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_passes_that_cannot_be_made(forward_fn, options, phrase):
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    with pytest.raises(ValueError, match=phrase):
        neuron_importance(model, validation_batches(), layers="1", forward_fn=forward_fn, **options)


def test_a_site_without_any_finite_activation_has_no_mean():
    class Broken(nn.Module):
        def forward(self, x):
            return x * torch.inf

    model = nn.Sequential(nn.Linear(64, 8), Broken(), nn.Hardsigmoid(), nn.Linear(8, 10))
    with torch.no_grad():
        model[0].bias.fill_(100)
        model[0].weight.zero_()
    with pytest.raises(FloatingPointError, match="layer '1' has no sample with finite activations: it has no mean"):
        neuron_importance(model, validation_batches(), layers="1", baseline="mean")
    results = neuron_importance(model, validation_batches(), layers="1")
    assert results["1"].non_finite == 597
    assert results["1"].top(0).tolist() == []
    assert any("597 of 597 samples left out of gradient_x_activation" in note for note in results.notes)
    assert "-" in summary(results)


def test_too_few_samples_and_one_cluster():
    model, data = train(nn.Tanh, width=16, depth=1, epochs=1), validation_batches()
    few = ablation_faithfulness(
        model, [data[0]], neuron_importance(model, [data[0]], layers="1"), AblationFaithfulness(max_samples=60)
    )
    assert set(few["1"].faithfulness.verdict[:-1]) == {"too few samples to say"}
    assert few["1"].faithfulness.verdict[-1] in ("faithful", "weak", "no better than random")
    one = neuron_importance(model, data, layers="1", clusters=lambda batch: ["everything"] * len(batch[1]))
    assert one.clusters.names == ("everything",)
    assert ablation_faithfulness(model, data, one)["1"].faithfulness.gap.shape == (2,)


def test_a_loader_that_shuffles_is_noticed():
    model = train(nn.Tanh, width=16, depth=1, epochs=1)
    x, y = digits()
    orders = iter(range(2))

    class Shuffling:
        def __iter__(self):
            order = torch.randperm(100, generator=torch.Generator().manual_seed(next(orders)))
            return iter(batches(x[:100][order], y[:100][order], 50))

    data = Shuffling()
    results = neuron_importance(model, data, layers="1")
    with pytest.raises(ValueError, match=r"one ProbeSet to both if it shuffles"):
        ablation_faithfulness(model, data, results)


def test_a_data_loader_leaves_the_random_state():
    model, (x, y) = train(nn.Tanh, width=16, depth=1, epochs=1), digits()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:100], y[:100]), 50, shuffle=True)
    before = torch.get_rng_state()
    results = neuron_importance(model, loader, layers="1")
    results = ablation_faithfulness(model, loader, results)  # the same random state, the same order
    assert results.has_faithfulness
    assert torch.equal(torch.get_rng_state(), before)


def test_faithfulness_refuses_other_samples():
    model, data = train(nn.Tanh, width=16, depth=1, epochs=1), validation_batches()
    results = neuron_importance(model, data, layers="1", max_samples=100)
    assert ablation_faithfulness(model, data, results).has_faithfulness
    with pytest.raises(ValueError, match=r"do not give the 100 probe samples.* or one ProbeSet to both if it shuffles"):
        ablation_faithfulness(model, ProbeSet.from_batches(data, max_samples=100, seed=1), results)


def test_a_deletion_curve_takes_no_importance_pass(monkeypatch):
    """Its axis is that of one forward pass over one batch; only a mean baseline needs a pass over all."""
    from lightning_neuroimp.importance.scoring import ImportancePass

    def none_is_needed(*args):
        raise AssertionError

    monkeypatch.setattr(ImportancePass, "run", none_is_needed)
    calls = []
    model, data = train(nn.ReLU, width=8, depth=1, epochs=1), validation_batches(100)
    model.register_forward_hook(lambda *args: calls.append(1))
    probe = ProbeSet.from_batches(data)
    trial = 6  # five over a few samples, which settle the axes, and a random ablation in a full pass
    for baseline, survey in (("zero", 0), (0.5, 0), ("mean", 6)):
        calls.clear()
        deletion_curve(model, probe, range(8), layer="1", baseline=baseline)
        assert len(calls) == 1 + survey + 6 + trial


def test_randomised_weights_compute_only_what_is_read(monkeypatch):
    from lightning_neuroimp.capture.embedding import EmbeddingReader
    from lightning_neuroimp.importance.activity import ActivityMoments

    model, data = train(nn.ReLU, width=8, depth=1, epochs=1), validation_batches(100)
    results = neuron_importance(model, data, layers="1")

    def none_is_read(*args, **options):
        raise AssertionError

    monkeypatch.setattr(ActivityMoments, "add", none_is_read)
    monkeypatch.setattr(EmbeddingReader, "read", none_is_read)
    assert weight_randomisation(model, data, results).randomisations
