"""Which of several outputs the logits are, and outputs that are probabilities."""

import warnings
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_neuroimp.capture.forward import forward_logits
from lightning_neuroimp.capture.outputs import find_logits, look_like_probabilities, refuse_probabilities
from lightning_neuroimp.errors import InvalidArgument

N = 8
Y = torch.arange(N) % 3
FEATURES, LOGITS, HIDDEN, ONE = torch.randn(N, 16), torch.randn(N, 3), torch.randn(N, 5, 4), torch.randn(N, 1)
Named = namedtuple("Named", "first second")


@dataclass
class Output:
    features: torch.Tensor
    scores: torch.Tensor


class Returning(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


def run(output, targets=Y, forward_fn=None):
    return forward_logits(Returning(output), (torch.zeros(len(targets), 2), targets), forward_fn)


SEVERAL = {
    "tuple": ((FEATURES, LOGITS), "output[0] (8, 16), output[1] (8, 3)", "[1]"),
    "list of exits": ([LOGITS, LOGITS + 1], "output[0] (8, 3), output[1] (8, 3)", "[1]"),
    "mapping": ({"features": FEATURES, "cls": LOGITS}, "output['features'] (8, 16), output['cls'] (8, 3)", "['cls']"),
    "one logit": ((FEATURES, ONE), "output[1] (8, 1)", "[1]"),
    "one number": ((LOGITS, ONE[:, 0]), "output[1] (8,)", "[1]"),
    "not first": ((HIDDEN, LOGITS), "a tensor that may be the logits: output[1] (8, 3)", "[1]"),
    "first is none": ((None, LOGITS), "output[1] (8, 3)", "[1]"),
    "integers first": ((Y, LOGITS), "output[1] (8, 3)", "[1]"),
    "nested": ((FEATURES, {"out": LOGITS}), "output[1]['out'] (8, 3)", "[1]['out']"),
    "named tuple": (Named(FEATURES, LOGITS), "output.first (8, 16), output.second (8, 3)", ".second"),
    "dataclass": (Output(FEATURES, LOGITS), "output.features (8, 16), output.scores (8, 3)", ".scores"),
    "with a loss": ({"loss": torch.tensor(1.0), "out": LOGITS}, "output['out'] (8, 3)", "['out']"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_tensors_that_may_be_logits_are_refused(kind):
    output, shapes, place = SEVERAL[kind]
    with pytest.raises(InvalidArgument) as error:
        run(output)
    line = f"forward_fn=lambda model, batch: (model(batch[0]){place}, batch[1])"
    for phrase in ("may be the logits", shapes, "say which is", line):
        assert phrase in str(error.value)
    assert len(str(error.value)) < 300
    binary = kind in ("one logit", "one number")
    found = run(output, torch.zeros(N) if binary else Y, eval(line.partition("=")[2]))
    assert torch.equal(found.logits, torch.cat([0 * ONE, ONE], 1) if binary else LOGITS + (kind == "list of exits"))


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, HIDDEN),
        (LOGITS, None),
        [LOGITS, (torch.randn(2, N, 4), torch.randn(2, N, 4))],
        {"features": FEATURES, "logits": LOGITS},
        (LOGITS, torch.randn(3)),  # a weight per class is no logit of these samples
        (LOGITS, Y, torch.tensor(0.5)),
        Named(LOGITS, HIDDEN),
    ],
)
def test_the_only_candidate_is_taken(output):
    assert torch.equal(run(output).logits, LOGITS)


def test_pooled_features_of_a_base_model_are_not_logits():
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    batch = {"input_ids": torch.ones(4, 5, dtype=torch.long), "labels": torch.zeros(4, dtype=torch.long)}
    for kwargs in ({}, {"return_dict": False}):
        model = BertModel(config).eval()
        model.config.return_dict = not kwargs
        with pytest.raises(InvalidArgument, match="may be the logits") as error:
            forward_logits(model, batch, None)
        assert "(4, 8)" in str(error.value)


def test_outputs_without_any_candidate_are_left_to_what_refuses_them():
    assert find_logits(()) == ()
    assert find_logits((HIDDEN, HIDDEN)) is HIDDEN
    with pytest.raises(InvalidArgument, match="must be a tensor of logits, got a dict with keys"):
        run({"a": HIDDEN, "b": HIDDEN})
    with pytest.raises(InvalidArgument) as error:
        run(torch.randn(N, 3, dtype=torch.complex64))
    for phrase in ("must be real logits", "torch.complex64", "model(batch[0]).abs()", ".real"):
        assert phrase in str(error.value)


class Head(nn.Module):
    """Ends in a function of what a linear layer gives."""

    def __init__(self, function, k=5):
        super().__init__()
        self.linear, self.function = nn.Linear(4, k), function

    def forward(self, x):
        return self.function(self.linear(x))


X = torch.randn(N, 4)
SIGMOIDS = {
    "per class": torch.sigmoid,
    "hard": F.hardsigmoid,
    "clamped": lambda z: z.sigmoid().clamp(1e-3, 1 - 1e-3),
    "complement": lambda z: 1 - z.sigmoid(),
    "product": lambda z: z.sigmoid() * (-z).sigmoid(),
    "mean of two": lambda z: (z.sigmoid() + (2 * z).sigmoid()) / 2,
    "pooled": lambda z: F.adaptive_avg_pool1d(z[:, :, None].expand(-1, -1, 3).sigmoid(), 1).squeeze(2),
    "largest of places": lambda z: torch.stack([z.sigmoid(), (z / 2).sigmoid()], 1).amax(1),
    "exp": lambda z: F.logsigmoid(z).exp(),
    "concatenated": lambda z: torch.cat([z[:, :2].sigmoid(), z[:, 2:].sigmoid()], 1),
    "half": lambda z: z.sigmoid().bfloat16(),
    "attention": lambda z: (torch.stack([z, -z], 1).sigmoid() * torch.stack([z, 2 * z], 1).softmax(1)).sum(1),
}
SOFTMAXES = {
    "plain": lambda z: z.softmax(1),
    "half": lambda z: z.bfloat16().softmax(1),
    "float16": lambda z: z.half().softmax(1),
    "half and back": lambda z: z.bfloat16().softmax(1).float(),
    "exp": lambda z: z.log_softmax(1).exp(),
    "some of them": lambda z: z.softmax(1)[:, :3],
    "tempered": lambda z: z.softmax(1).sqrt(),
    "by hand": lambda z: z.exp() / z.exp().sum(1, keepdim=True),
    "sigmoids of two": lambda z: torch.cat([1 - z[:, :1].sigmoid(), z[:, :1].sigmoid()], 1),
}


@pytest.mark.parametrize("kind", SIGMOIDS)
def test_sigmoids_are_refused(kind):
    with pytest.raises(InvalidArgument) as error:
        forward_logits(Head(SIGMOIDS[kind]), (X, Y), None)
    line = "forward_fn=lambda model, batch: (model(batch[0])."
    for phrase in ("logits are needed", "Explain the model before its", line):
        assert phrase in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("kind", SOFTMAXES)
def test_softmaxes_are_refused(kind):
    model = Head(SOFTMAXES[kind])
    with pytest.raises(InvalidArgument) as error:
        forward_logits(model, (X, Y % 2), None)
    for phrase in ("probabilities, but logits are needed", "before its softmax", ".clamp_min(1e-12).log(), batch[1])"):
        assert phrase in str(error.value)
    assert len(str(error.value)) < 300
    logits = forward_logits(model, (X, Y % 2), eval(str(error.value).split("forward_fn=")[1])).logits
    torch.testing.assert_close(logits, model(X).clamp_min(1e-12).log().float())


def test_the_sigmoid_s_remedy_gives_what_it_was_given():
    model = Head(torch.sigmoid)
    with pytest.raises(InvalidArgument) as error:
        forward_logits(model, (X, Y), None)
    found = forward_logits(model, (X, Y), eval(str(error.value).split("forward_fn=")[1]))
    torch.testing.assert_close(found.logits, model.linear(X), atol=1e-5, rtol=1e-5)


def test_a_binary_sigmoid_is_refused_whatever_changes_its_shape():
    for function in (torch.sigmoid, lambda z: z.sigmoid().squeeze(1), lambda z: z.sigmoid().float().clamp(0, 1)):
        with pytest.raises(InvalidArgument, match="is a sigmoid's, a probability"):
            forward_logits(Head(function, k=1), (X, (Y > 0).float()), None)


LOGIT_LIKE = {
    "linear": lambda z: z,
    "log-softmax": lambda z: z.log_softmax(1),
    "small": lambda z: z.abs() / 100,
    "gated": lambda z: z.abs() / 100 * z.sigmoid(),
    "shifted": lambda z: z.sigmoid() * 3 - 1,
    "log-sigmoid": F.logsigmoid,
    "product with weights": lambda z: z.sigmoid() @ torch.full((5, 5), 0.1),
    "cosine": lambda z: F.normalize(z, dim=1).abs(),
    "linear after sigmoid": lambda z: torch.addmm(torch.full((5,), 0.1), z.sigmoid(), torch.full((5, 5), 0.1)),
    "convolved": lambda z: F.conv1d(z.sigmoid()[:, None], torch.full((1, 1, 3), 0.2), padding=1)[:, 0],
    "interpolated": lambda z: F.layer_norm(z.sigmoid(), (5,)).abs() / 10,
}


@pytest.mark.parametrize("kind", LOGIT_LIKE)
def test_logits_pass_also_where_they_lie_between_0_and_1(kind):
    model = Head(LOGIT_LIKE[kind])
    found = forward_logits(model, (X, Y), None)
    assert torch.equal(found.logits, model(X))
    assert not look_like_probabilities(found.logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("k", [2, 10, 1000])
def test_rounded_rows_of_softmax_are_recognised_without_a_graph(dtype, k):
    for scale in (0.01, 1.0, 6.0):
        rows = (scale * torch.randn(64, k, dtype=torch.float64)).softmax(1).to(dtype)
        for output in (rows, rows.float(), rows.double()):
            with pytest.raises(InvalidArgument, match="each row sums to 1"):
                refuse_probabilities(output)


def test_rows_that_sum_to_something_else_pass():
    refuse_probabilities(torch.rand(64, 2))
    refuse_probabilities(torch.rand(64, 2).bfloat16())
    refuse_probabilities(torch.eye(5))  # a hand-made network's
    refuse_probabilities(torch.full((3, 4), 0.2))


def test_without_a_graph_what_looks_like_probabilities_is_only_noted():
    with torch.no_grad():
        found = forward_logits(Head(torch.sigmoid), (X, Y), None).logits
    assert look_like_probabilities(found)
    assert not look_like_probabilities(found - 0.5)
    assert not look_like_probabilities(torch.eye(3))
    assert not look_like_probabilities(torch.tensor([[0.5, 2.0]]))
    assert look_like_probabilities(torch.tensor([[0.5, float("nan")]]))


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_what_no_graph_shows_is_only_noted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.Sigmoid()))
    for model in (scripted, Head(Own.apply)):
        for number in range(3):  # the first call of a scripted model is profiled
            if model is scripted and number == 0:  # whose graph still shows the sigmoid
                with pytest.raises(InvalidArgument, match="is a sigmoid's"):
                    forward_logits(model, (X, Y), None)
            else:
                assert look_like_probabilities(forward_logits(model, (X, Y), None).logits)


def test_the_graph_is_not_walked_where_values_need_not_be_looked_at():
    found = forward_logits(Head(torch.sigmoid), (X, Y), None, validate=False)
    assert look_like_probabilities(found.logits)
