from collections import UserDict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import ProbeSet, ablation_faithfulness, deletion_curve, neuron_importance
from lightning_neuroimp.batches.fields import find_tokens, labels_of, split_batch
from lightning_neuroimp.batches.layout import read_batch
from lightning_neuroimp.batches.probe import ProbeSampler
from lightning_neuroimp.batches.stacks import Room, Stack, host_rows
from lightning_neuroimp.batches.structure import copied_to, fingerprint, to_device
from lightning_neuroimp.capture.forward import forward_logits
from lightning_neuroimp.capture.targets import margin
from lightning_neuroimp.errors import InvalidArgument

Pair = namedtuple("Pair", "image label")


class Outputs(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs


def run(outputs, targets=None, forward_fn=None):
    targets = torch.zeros(4, dtype=torch.int64) if targets is None else targets
    return forward_logits(Outputs(outputs), (torch.zeros(4, 2), targets), forward_fn)


def test_pairs_are_inputs_and_targets():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0], dtype=torch.int32)
    logits, classes, *_ = forward_logits(nn.Identity(), [x, y], None)
    assert torch.equal(logits, x)
    assert classes.dtype == torch.int64
    assert split_batch((1, 2)) == (1, 2)
    assert split_batch(Pair(1, 2)) == ({"image": 1}, 2)


def test_anything_else_goes_through_forward_fn():
    batch = {"a": torch.randn(4, 3), "b": torch.arange(4) % 3}
    logits, classes, *_ = forward_logits(nn.Identity(), batch, lambda model, batch: (model(batch["a"]), batch["b"]))
    assert torch.equal(logits, batch["a"])
    assert torch.equal(classes, batch["b"])


def test_half_precision_logits_become_float32():
    assert run(torch.randn(4, 3, dtype=torch.bfloat16))[0].dtype == torch.float32
    assert run(torch.randn(4, 3, dtype=torch.float64))[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("batch", "received"),
    [
        ({"x": 1, "z": 2}, "a dict with keys ['x', 'z']"),
        ((1, 2, 3), "a tuple of 3"),
        (torch.zeros(3, 2), "a Tensor of shape (3, 2)"),
    ],
)
def test_batches_that_cannot_be_told_apart(batch, received):
    with pytest.raises(ValueError, match="cannot tell inputs from targets") as error:
        split_batch(batch)
    message = str(error.value)
    assert received in message
    assert "expected a batch of the form (inputs, targets)" in message
    assert "pass forward_fn=, a function (model, batch) -> (logits, targets)" in message


PROBABILITIES = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0], [0.1, 0.9]])


@pytest.mark.parametrize(
    ("outputs", "targets", "phrases"),
    [
        (([1.0],), None, ["must be a tensor of logits", "a list of 1", "pass forward_fn="]),
        (torch.zeros(4, 2, dtype=torch.int64), None, ["floating-point logits", "torch.int64"]),
        (torch.zeros(4, 3, 5), None, ["(sample, class)", "dense or sequence outputs", "(4, 3, 5)"]),
        (torch.zeros(4), torch.tensor([0.0, 0.5, 2.0, 1.0]), ["one number per sample", "0, 0.5, 1, 2", "regression"]),
        (torch.zeros(4, 1), torch.arange(4), ["one number per sample", "targets are 0, 1, 2, 3:", "forward_fn="]),
        (torch.zeros(4, 1), torch.zeros(3), ["at least two classes, or one logit per sample", "(4, 1)"]),
        (torch.zeros(4, requires_grad=True).sigmoid(), torch.ones(4), ["is a sigmoid's", ".logit(eps=1e-6)"]),
        (
            torch.zeros(4, 1, requires_grad=True).sigmoid().squeeze(1),
            torch.ones(4),
            ["Explain the model before its sigmoid"],
        ),
        (PROBABILITIES, None, ["look like probabilities", "logits are needed", ".clamp_min(1e-12).log()"]),
        (torch.zeros(4, 2), list("abca"), ["targets must be class numbers", "the names ['a', 'b', 'c']"]),
        (torch.zeros(4, 2), torch.zeros(4, 2, 1, dtype=torch.int64), ["shape (4,)", "(4, 2, 1)"]),
        (torch.zeros(4, 2), torch.full((4,), 0.5), ["integer class numbers", "torch.float32", "regression target"]),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.bool), ["integer class numbers", "torch.bool"]),
        (torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), ["shape (4,)", "(3,)"]),
        (torch.zeros(4, 2), torch.tensor([0, 1, 2, -100]), ["0..1", "from -100 to 2", "pass ignore_index=-100"]),
    ],
)
def test_outputs_and_targets_of_no_classifier(outputs, targets, phrases):
    with pytest.raises(ValueError, match=".") as error:
        run(outputs, targets)
    for phrase in phrases:
        assert phrase in str(error.value)


def test_the_remedies_in_the_messages_work():
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0])
    f = torch.tensor([-1.0, 2.0, -3.0, 4.0])
    binary = lambda model, batch: (  # noqa: E731 (as in the message)
        torch.nn.functional.pad(model(batch[0]).reshape(-1, 1), (1, 0)),
        batch[1].long().reshape(-1),
    )
    logits, classes, *_ = forward_logits(Outputs(f), (torch.zeros(4, 2), labels), binary)
    assert torch.equal(logits.argmax(1) == classes, (f > 0) == (labels == 1))
    log = lambda model, batch: (model(batch[0]).clamp_min(1e-12).log(), batch[1])  # noqa: E731
    logits, *_ = forward_logits(Outputs(PROBABILITIES), (torch.zeros(4, 2), labels.long()), log)
    torch.testing.assert_close(logits.softmax(1), PROBABILITIES)


def test_forward_fn_must_return_a_pair():
    with pytest.raises(ValueError, match=r"forward_fn must return a tuple \(logits, targets\), or .*, got a Tensor"):
        run(torch.zeros(4, 2), forward_fn=lambda model, batch: torch.zeros(4, 2))


NESTED = {
    "x": torch.arange(12.0).reshape(4, 3),
    "deep": [Pair(torch.arange(4), np.arange(4)), ("a", "b", "c", "d")],
    "constant": 7,
    "scalar": torch.tensor(2.0),
}


def joined(batch, *rows):
    """Some samples of a batch, stored and joined again."""
    flat = read_batch(batch)
    room, rows = Room(flat), np.array(rows)
    entries = zip(*[host_rows(leaf, rows) for leaf in flat.leaves], strict=True)
    places = [room.put(sample) for sample in entries]
    return Stack.of(room, np.array(places), rows)


def test_samples_of_nested_batches():
    flat = read_batch(NESTED)
    assert flat.size == 4
    assert flat.n_bytes.tolist() == [4 * 3 + 8 + 8] * 4
    assert [type(leaf).__name__ for leaf in flat.leaves] == ["Tensor", "Tensor", "ndarray", "tuple"]
    stack = joined(NESTED, 2, 0, 1)
    taken = stack.batch(0, 2)
    assert torch.equal(taken["x"], NESTED["x"][[2, 0]])
    assert isinstance(taken["deep"][0], Pair)
    assert torch.equal(taken["deep"][0].image, torch.tensor([2, 0]))
    assert taken["deep"][0].label.tolist() == [2, 0]
    assert taken["deep"][1] == ["c", "a"]
    assert taken["constant"] == 7
    assert taken["scalar"] == 2
    assert flat.signature == read_batch(taken).signature
    assert flat.signature != read_batch(NESTED | {"constant": 8}).signature
    assert flat.signature != read_batch(NESTED | {"scalar": torch.tensor(3.0)}).signature
    assert len(set(stack.fingerprint.tolist())) == 3
    assert stack.fingerprint[1] == fingerprint(stack.batch(1, 2))
    sample = stack.sample(0)
    assert sample["x"].tolist() == [6, 7, 8]
    assert sample["deep"] == [Pair(2, 2), "c"]
    assert (sample["constant"], sample["scalar"]) == (7, 2)


class Counting(Mapping):
    """Counts how often its parts are read."""

    def __init__(self, **parts):
        self.parts, self.reads = parts, 0

    def __getitem__(self, key):
        self.reads += 1
        return self.parts[key]

    def __iter__(self):
        return iter(self.parts)

    def __len__(self):
        return len(self.parts)


def test_a_batch_is_walked_once():
    def batch():
        return Counting(x=torch.zeros(4, 2), y=torch.zeros(4))

    sampler = ProbeSampler(100)
    sampler.add(batch())
    second, third = batch(), batch()
    sampler.add(second)
    assert second.reads == 2  # one for each part, although four samples were stored
    sampler.add(read_batch(third))
    assert third.reads == 2
    assert len(sampler.close()) == 12


def test_reading_shares_memory_and_storing_copies():
    batch = {"x": torch.zeros(3, 2), "files": list("abc"), "scalar": torch.tensor(1.0), "array": np.zeros(())}
    assert read_batch(batch).leaves[0] is batch["x"]
    stack = joined(batch, 1)
    batch["x"].fill_(9)
    batch["scalar"].fill_(9)
    batch["array"].fill(9)
    for _ in range(2):  # and again: batches belong to whoever has asked for them
        taken = stack.batch(0, 1)
        assert (taken["x"].tolist(), taken["scalar"], taken["array"]) == ([[0, 0]], 1, 0)
        taken["x"].fill_(5)
        taken["scalar"].fill_(5)
        taken["array"].fill(5)
        taken["files"].append("z")
    assert stack.batch(0, 1)["files"] == ["b"]


def test_moving_copies_only_what_is_elsewhere():
    batch = {"x": torch.zeros(3), "array": np.zeros(3), "sampled": Sampled(torch.zeros(3), torch.zeros(3))}
    here, meta = torch.device("cpu"), torch.device("meta")
    moved, copied = to_device(batch, here), copied_to(batch, here)
    assert moved["x"] is batch["x"]
    assert moved["sampled"].image is batch["sampled"].image
    assert to_device(batch, meta)["sampled"].image.device == meta
    copied["x"].fill_(1)
    copied["array"].fill(1)
    copied["sampled"].image.fill_(1)
    assert batch["x"].sum() == batch["array"].sum() == batch["sampled"].image.sum() == 0
    assert isinstance(copied["sampled"], Sampled)


@pytest.mark.parametrize(
    ("batch", "phrase"),
    [
        ((torch.zeros(3, 2), torch.zeros(4)), "first dimensions [3, 4]"),
        (("a", 1), "no tensor with a first dimension"),
    ],
)
def test_batches_without_a_sample_axis(batch, phrase):
    with pytest.raises(ValueError, match="must share their first dimension") as error:
        read_batch(batch)
    assert phrase in str(error.value)
    assert "collate_fn" in str(error.value)


X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


@dataclass(frozen=True)
class Sampled:
    image: torch.Tensor
    target: torch.Tensor


class Linear(nn.Module):
    """Its forward names its input."""

    def forward(self, image):
        return image


class Two(nn.Module):
    def forward(self, first, second, scale=2.0):
        return first + scale * second


class Whole(nn.Module):
    def forward(self, batch):
        return batch["a"] + batch["b"]


class Passes(nn.Module):
    """As LightningModules around Hugging Face's models do."""

    def forward(self, **inputs):
        return inputs["first"] + inputs["second"]


class Anything(nn.Module):
    def forward(self, first, **others):
        assert set(others) <= {"second"}
        return first


@pytest.mark.parametrize(
    ("model", "batch", "expected"),
    [
        (Linear(), {"image": X, "label": Y}, X),
        (Linear(), {"pixels": X, "targets": Y}, X),  # the only one, whatever it is called
        (Linear(), {"image": X, "y": Y, "path": ["a"] * 4}, X),
        (Linear(), {"pixels": X, "y": Y, "path": ["a"] * 4}, X),
        (Linear(), {"image": X, "weight": X * 3, "labels": Y}, X),  # what it does not ask for is left out
        (Linear(), Pair(X, Y), X),
        (Linear(), Sampled(X, Y), X),
        (Linear(), UserDict(image=X, label=Y), X),
        (Linear(), ({"image": X}, Y), X),
        (Two(), {"second": X, "first": X, "labels": Y}, 3 * X),
        (Two(), {"second": X, "first": X, "labels": Y, "scale": 1.0}, 2 * X),
        (Whole(), {"a": X, "b": X, "labels": Y}, 2 * X),
        (Passes(), {"first": X, "second": X, "names": ["a"] * 4, "label": Y}, 2 * X),
        (Anything(), {"first": X, "second": X, "names": ["a"] * 4, "label": Y}, X),
    ],
)
def test_named_batches_need_no_forward_fn(model, batch, expected):
    found = forward_logits(model, batch, None)
    assert torch.equal(found.logits, expected)
    assert torch.equal(found.labels, Y)


def test_names_that_do_not_fit():
    with pytest.raises(
        ValueError,
        match=r"the batch holds \['a', 'b'\] .* Two.forward takes \['first', 'second', 'scale'\].*forward_fn=",
    ):
        forward_logits(Two(), {"a": X, "b": X, "labels": Y}, None)


def test_the_first_known_name_is_the_target():
    assert split_batch({"x": 1, "y": 2, "label": 3}) == ({"x": 1, "y": 2}, 3)


class WithLogits:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(
    "output",
    [X, (X, "features"), [X], {"logits": X, "loss": torch.tensor(1.0)}, {"out": X}, WithLogits(X), Pair(X, None)],
)
def test_where_the_logits_are(output):
    assert run(output, Y).logits is X


@pytest.mark.parametrize(
    "targets", [torch.tensor([0.0, 1, 1, 0]), torch.tensor([0, 1, 1, 0]) > 0, torch.tensor([0, 1, 1, 0])]
)
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_logit_is_a_binary_classifier(shape, targets):
    f = torch.tensor([-1.0, 2.0, -3.0, 4.0])
    for labels in (targets, targets[:, None]):
        found = run(f.reshape(shape), labels)
        assert found.logits.tolist() == [[0, -1], [0, 2], [0, -3], [0, 4]]
        assert found.labels.tolist() == [0, 1, 1, 0]
    sign = torch.where(targets > 0, 1, -1)
    assert torch.equal(margin(found.logits, found.labels), sign * f)


def test_masks_of_tokens():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.equal(find_tokens({"attention_mask": mask}), mask.bool())
    assert torch.equal(find_tokens({"src_key_padding_mask": mask == 0}), mask.bool())
    assert torch.equal(find_tokens(({"attention_mask": mask}, 3)), mask.bool())
    assert torch.equal(find_tokens({"attention_mask": mask[:, None]}), mask.bool())
    assert find_tokens((mask, 3)) is None
    logits = torch.randn(4, 3)
    given = forward_logits(nn.Identity(), None, lambda model, batch: (logits, Y, torch.ones(4, 2)))
    assert torch.equal(given.tokens, torch.ones(4, 2, dtype=torch.bool))
    assert forward_logits(nn.Identity(), {"attention_mask": mask}, lambda m, b: (logits, Y, None)).tokens is None
    with pytest.raises(ValueError, match=r"third value of forward_fn must be a mask of tokens .*got a list of 2"):
        forward_logits(nn.Identity(), None, lambda model, batch: (logits, Y, [1, 2]))


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((X, Y), [0, 1, 2, 0]),
        ({"x": X, "label": Y[:, None]}, [0, 1, 2, 0]),
        ((X, Y.double()), [0, 1, 2, 0]),
        ((X, Y > 0), [0, 1, 1, 0]),
        ((X, X), None),
        ((X, X[:, 0]), None),
        (X, None),
        ((X, ["a"] * 4), None),
    ],
)
def test_labels_before_any_forward_pass(batch, expected):
    found = labels_of(batch)
    assert found is None if expected is None else found.tolist() == expected


class Graph:
    """As PyTorch Geometric's: nodes of all graphs in one row."""

    def __init__(self, x, label):
        self.x, self.label = x, label

    def to(self, device):
        self.x = self.x.to(device)
        return self


class Graphs:
    def __init__(self, graphs):
        self.graphs = graphs
        self.x = torch.cat([graph.x for graph in graphs])
        self.batch = torch.arange(len(graphs)).repeat_interleave(torch.tensor([len(graph.x) for graph in graphs]))
        self.y = torch.tensor([graph.label for graph in graphs])

    def to_data_list(self):
        return self.graphs

    @classmethod
    def from_data_list(cls, graphs):
        return cls(graphs)


class Readout(nn.Module):
    def __init__(self):
        super().__init__()
        self.node, self.pooled, self.head = nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x, batch, n):
        return self.head(self.pooled(torch.zeros(n, 8).index_add(0, batch, self.node(x))))


@pytest.mark.parametrize("packed", [True, False])
def test_graphs_through_forward_fn(packed):
    graphs = [Graph(torch.randn(2 + number % 3, 3), number % 3) for number in range(20)]
    batches = [graphs[:8], graphs[8:16], graphs[16:]]
    batches = [Graphs(part) for part in batches] if packed else batches

    def forward(model, batch):
        joined = batch if packed else Graphs(batch)
        return model(joined.x, joined.batch, len(joined.y)), joined.y

    model = Readout()
    results = neuron_importance(model, batches, layers="pooled", forward_fn=forward, max_samples=15, batch_size=4)
    results = ablation_faithfulness(model, batches, results, forward_fn=forward)
    for row, sample in enumerate(results.sample_index.tolist()):
        assert results.sample_label[row] == graphs[sample].label
    expected = torch.stack([model.pooled(model.node(graph.x).sum(0)) for graph in graphs]).detach()
    whole = neuron_importance(model, batches, layers="pooled", forward_fn=forward, attribution="activation")
    labels = np.array([graph.label for graph in graphs])
    for row, label in enumerate(whole["pooled"].cluster_ids):
        np.testing.assert_allclose(whole["pooled"].mean[row], expected[labels == label].mean(0), atol=1e-5)
    with pytest.raises(ValueError, match=r"tokens and nodes in one row, cannot be explained: choose a later layer"):
        neuron_importance(model, batches, layers="node", forward_fn=forward)


def test_dataclass_batches_keep_their_kind():
    batch = Sampled(X, Y)
    flat = read_batch(batch)
    assert flat.size == 4
    assert flat.n_bytes.tolist() == [3 * 4 + 8] * 4
    taken = joined(batch, 2, 0).batch(0, 2)
    assert isinstance(taken, Sampled)
    assert torch.equal(taken.image, X[[2, 0]])
    assert fingerprint(taken) != fingerprint(joined(batch, 0, 2).batch(0, 2))
    assert flat.signature == read_batch(taken).signature
    seen = [one for one, _ in ProbeSet.from_batches([batch] * 2).batches()]
    assert all(isinstance(one, Sampled) for one in seen)
    assert sum(len(one.target) for one in seen) == 8


def test_parts_are_no_samples_where_their_number_happens_to_be_the_same():
    Sizes = namedtuple("Sizes", "height width")
    for batch in (
        (Sampled(X[:2], Y[:2]), Sampled(X[2:], Y[2:])),
        {"x": X[:2], "sizes": Sizes(3, 4), "shape": torch.Size([3, 4])},
    ):
        taken = next(ProbeSet.from_batches([batch]).batches())[0]
        assert type(taken) is type(batch)
        if isinstance(batch, tuple):
            assert [type(part) for part in taken] == [Sampled, Sampled]
            assert taken[0].image.shape == (2, 3)
        else:
            assert (taken["sizes"], taken["shape"]) == (Sizes(3, 4), torch.Size([3, 4]))


def test_lists_of_parts_are_divided_part_by_part():
    views = [Sampled(X, Y), Sampled(X + 1, Y), Sampled(X + 2, Y)]
    probe = ProbeSet.from_batches([{"views": views, "y": Y}] * 2)
    for batch, index in probe.batches():
        for view, part in zip(views, batch["views"], strict=True):
            assert torch.equal(part.image, view.image[index % 4])
    with pytest.raises(InvalidArgument, match=r"first dimensions \[2, 4\]"):
        read_batch({"views": [Sampled(X[:2], Y[:2])] * 3, "y": Y})


def test_arrays_of_objects_are_told_apart_by_their_content():
    def batches(*names):
        return [{"x": torch.zeros(2), "name": np.array(["".join(name) for name in names], object)}]

    probe, same, other = (
        ProbeSet.from_batches(batches(*names)) for names in (("ab", "cd"), ("ab", "cd"), ("ab", "ce"))
    )
    assert probe.fingerprint.tolist() == same.fingerprint.tolist()
    assert (probe.fingerprint == other.fingerprint).sum() == 1


class Opaque:
    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize(
    "batch", [(Opaque(X), Y), {"x": Opaque(X), "y": Y}, ([Opaque(X), X], Y), Sampled(Opaque(X), Y)]
)
def test_what_cannot_be_divided_into_samples_is_refused(batch):
    # kept whole, it would be paired with the labels of other samples
    with pytest.raises(
        ValueError, match=r"a batch holds a Opaque, which cannot be divided into samples; let the .*coll"
    ):
        ProbeSet.from_batches([batch])


def test_graphs_inside_of_other_batches():
    graphs = [Graph(torch.full((2 + number % 3, 3), float(number)), number % 3) for number in range(12)]
    batches = [
        {"graph": Graphs(graphs[:7]), "label": Graphs(graphs[:7]).y},
        {"graph": Graphs(graphs[7:]), "label": Graphs(graphs[7:]).y},
    ]
    probe = ProbeSet.from_batches(batches)
    assert len(probe) == 12
    for batch, index in probe.batches(5):
        assert isinstance(batch["graph"], Graphs)
        assert [int(graph.x[0, 0]) for graph in batch["graph"].graphs] == index.tolist()
        assert (batch["label"] == batch["graph"].y).all()
    assert len(set(probe.fingerprint.tolist())) == 12  # by their content
    curve = deletion_curve(
        Readout(), batches, range(8), layer="pooled",
        forward_fn=lambda m, b: (m(b["graph"].x, b["graph"].batch, len(b["graph"].y)), b["graph"].y),
    )  # fmt: skip
    assert curve.removed[-1] == 4


class Named(nn.Module):
    def forward(self, batch):
        return batch["image"]


class Annotated(nn.Module):
    def forward(self, x: dict[str, torch.Tensor]):
        return x["image"]


class Pairwise(nn.Module):
    def forward(self, one, other):
        return one + other


@pytest.mark.parametrize(
    ("model", "batch", "expected"),
    [
        (Named(), {"image": X, "label": Y}, X),
        (Named(), {"image": X, "label": Y, "path": ["a"] * 4}, X),
        (Annotated(), {"image": X, "label": Y}, X),
        (Pairwise(), ((X, X), Y), 2 * X),
        (Pairwise(), ([X, X], Y.tolist()), 2 * X),
        (nn.Identity(), (X, Y.numpy()), X),
    ],
)
def test_more_ways_to_call_a_model(model, batch, expected):
    found = forward_logits(model, batch, None)
    assert torch.equal(found.logits, expected)
    assert torch.equal(found.labels, Y)


def test_a_model_that_cannot_take_its_inputs_says_how_it_was_called():
    class Hidden(nn.Module):
        def forward(self, x):
            return x["image"]

    message = (
        r"Hidden was called with a Tensor of shape \(4, 3\).*, and failed with IndexError: .*; if it should be called"
    )
    with pytest.raises(ValueError, match=message):
        forward_logits(Hidden(), {"image": X, "label": Y}, None)
