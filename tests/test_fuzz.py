"""Whatever it is given, the outcome is a result or one of our errors, and the model is left as it was.

Two thousand examples by default; `NEUROIMP_EXAMPLES=20000` tries more of each kind.
"""

import functools
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_neuroimp import (
    AblationFaithfulness,
    KMeansClusters,
    NeuronImportance,
    Results,
    Site,
    ablation_faithfulness,
    neuron_importance,
)
from lightning_neuroimp.display.summary import markdown, summary

pytestmark = pytest.mark.usefixtures("unchecked")

N_EXAMPLES = int(os.environ.get("NEUROIMP_EXAMPLES", "1000"))
many = functools.partial(
    settings,
    max_examples=N_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class InjectedError(Exception):
    """Neither ours nor torch's."""


class Net(nn.Module):
    """A small classifier of one of several kinds, with a fault at one of its calls."""

    def __init__(self, kind, width, n_classes, activation, fault, at):
        super().__init__()
        self.kind, self.fault, self.left = kind, fault, at
        activation = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[activation]()
        front = {"mlp": nn.Linear(4, width), "cnn": nn.Conv1d(1, width, 2), "tokens": nn.Linear(2, width)}[kind]
        self.body = nn.Sequential(front, activation)
        self.head = nn.Linear(width, n_classes)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.left -= 1
        faulty = self.left == 0
        if faulty and self.fault == "raises":
            raise InjectedError("injected")
        if self.kind == "cnn":
            h = self.body(x[:, None]).mean(2)
        elif self.kind == "tokens":
            h = self.body(x.unflatten(1, (2, 2))).mean(1)
        else:
            h = self.body(x)
        logits = self.head(h)
        if faulty and self.fault == "nan":
            return logits * torch.nan
        if faulty and self.fault == "short":
            return logits[1:]
        if faulty and self.fault == "tuple":
            return logits, h
        if faulty and self.fault == "flat":
            return logits[:, 0]
        return logits


nets = st.builds(
    Net,
    st.sampled_from(["mlp", "cnn", "tokens"]),
    st.integers(1, 5),
    st.integers(3, 5) | st.integers(1, 2),
    st.sampled_from(["relu", "tanh", "gelu"]),
    st.sampled_from([None] * 10 + ["raises", "nan", "short", "tuple", "flat"]),
    st.integers(1, 7),
)


@st.composite
def data(draw):
    n, size = draw(st.integers(1, 40)), draw(st.integers(1, 16))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(n, 4, generator=generator) * draw(st.sampled_from([0.0, 1.0, 1.0, 1e4, 1e-30]))
    bad = draw(st.sampled_from([None] * 6 + [float("nan"), float("inf"), 1e38]))
    if bad is not None:
        x[draw(st.integers(0, n - 1))] = bad
    y = torch.randint(draw(st.integers(1, 4)), (n,), generator=generator)
    kind = draw(st.sampled_from(["int"] * 10 + ["float", "negative", "column", "missing", "dict", "dict"]))
    batches = []
    for a, b in zip(x.split(size), y.split(size), strict=True):
        b = {"float": b.float(), "negative": b - 2, "column": b[:, None]}.get(kind, b)
        batches.append(a if kind == "missing" else {"x": a, "labels": b} if kind == "dict" else (a, b))
    return batches


def inputs_of(batch):
    return batch["x"] if isinstance(batch, dict) else batch[0] if isinstance(batch, tuple) else batch


clusters = st.sampled_from(
    [
        "labels",
        "labels",
        "predictions",
        KMeansClusters(2),
        KMeansClusters(3, scale="standard"),
        KMeansClusters((2, 4)),
        {0: "a", 1: "b"},
        lambda batch: [0] * len(inputs_of(batch)),
        lambda batch: (inputs_of(batch)[:, 0] > 0).long(),
        lambda batch: "wrong",
    ]
)
arguments = {
    "layers": st.sampled_from(
        [
            *["body.1"] * 4,
            "body.0",
            ["body.0", "body.1"],
            "body.*",
            "head",
            "**",
            "nothing",
            Site("body.1", side="input"),
        ]
    ),
    "clusters": clusters,
    "attribution": st.lists(
        st.sampled_from(
            ["gradient_x_activation", "gradient", "activation", "random", "leave_one_out", "integrated_gradients"]
        ),
        min_size=1,
        max_size=2,
        unique=True,
    ),
    "target": st.sampled_from([*["margin"] * 4, "logit", "probability", "log_probability", lambda logits, y: logits]),
    "target_class": st.sampled_from([*["label"] * 4, "predicted", 0, 3]),
    "baseline": st.sampled_from(["zero", "mean", "resample", 0.5, -1e30]),
    "max_samples": st.sampled_from([1, 2, 7, 1024]),
    "seed": st.integers(0, 5),
    "stratify": st.sampled_from([False, False, True]),
    "classes": st.sampled_from([None] * 6 + [[0], [0, 1], [7]]),
}
checks = st.builds(
    AblationFaithfulness,
    n_random=st.sampled_from([19, 25]),
    fractions=st.sampled_from([(0.5,), (0.1, 1.0), (0.01, 0.5)]),
    max_samples=st.sampled_from([1, 5, 512]),
    least_first=st.booleans(),
    specificity=st.booleans(),
    best_order=st.booleans(),
    keep_only=st.booleans(),
)


def state_of(model):
    return {
        "buffers": {name: value.clone() for name, value in model.named_buffers()},
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "random": torch.get_rng_state(),
    }


@many()
@given(nets, data(), st.fixed_dictionaries({}, optional=arguments), st.one_of(st.none(), checks, checks))
def test_every_outcome_is_a_result_or_an_error_of_ours(model, batches, options, check):
    before = state_of(model)
    results = None
    # a fallback to full passes says so
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*each (ablation|gradient) runs the whole network")
        try:
            results = neuron_importance(model, batches, **({"layers": "body.1"} | options))
            if check is not None:
                results = ablation_faithfulness(model, batches, results, check)
        except (ValueError, FloatingPointError) as error:
            message = str(error)
            assert message
            event("refused")
            # not one of NumPy's, torch's or scikit-learn's
            assert not any(word in message for word in ("broadcast", "dimension", "array", "concatenate", "numpy")), (
                message
            )
        except InjectedError:
            assert model.fault == "raises"
            event("injected")
        if results is not None:
            event("result, checked" if results.has_faithfulness else "result")
            path = Path(folder) / "results.npz"
            results.save(path)
            text = summary(Results.load(path), all_findings=True)
            assert text
            assert markdown(results)
            for one in results.importances:
                assert one.mean.shape == (len(results.clusters.ids), one.removal.n_neurons)
                counted = one.count.sum(0) > 0
                assert np.isfinite(one.mean[counted]).all()
            assert all(np.isfinite(one.weight) for one in results.findings)
    after = state_of(model)
    for name, value in before["buffers"].items():
        assert torch.equal(value, after["buffers"][name])
    assert torch.equal(before["random"], after["random"])
    assert {key: before[key] for key in ("modes", "hooks", "gradients")} == {
        key: after[key] for key in ("modes", "hooks", "gradients")
    }


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.one_of(st.integers(-2, 3), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.integers(0, 3), st.text(max_size=2), max_size=3),
    st.just(len),
    st.sampled_from(
        ["labels", "margin", "zero", "gradient", "label", "warn", KMeansClusters(2), AblationFaithfulness()]
    ),
)
NAMES = [
    *(
        "layers",
        "clusters",
        "attribution",
        "target",
        "baseline",
        "faithfulness",
        "forward_fn",
        "max_samples",
        "max_bytes",
    ),
    *(
        "batch_size",
        "every_n_epochs",
        "name",
        "seed",
        "on_error",
        "results_dir",
        "target_class",
        "classes",
        "class_names",
    ),
    *("groups", "stratify", "describe_sample"),
]


@many()
@given(st.dictionaries(st.sampled_from(NAMES), anything, max_size=5))
def test_arguments_are_taken_or_refused(options):
    try:
        callback = NeuronImportance(**({"layers": "encoder.1"} | options))
    except MisconfigurationException:
        event("refused")
    else:
        event("taken")
        # what is taken survives a checkpoint
        state = callback.state_dict()
        callback.load_state_dict(state)
        assert callback.summary().endswith("nothing measured yet")


@pytest.mark.parametrize("call", [2, 3])
def test_outputs_that_change_their_shape_are_refused(call):
    """What the examples above have found."""
    model = Net("mlp", 3, 3, "relu", "flat", call)
    batches = [(torch.randn(2, 4), torch.tensor([0, 1])) for _ in range(3)]
    with pytest.raises(ValueError, match="3 logits for each sample first, and 2 later"):
        neuron_importance(model, batches, layers="body.1")
