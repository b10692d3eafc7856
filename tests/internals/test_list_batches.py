"""Batches that are lists of samples, or of one tensor per sample; sparse and complex tensors."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import ProbeSet, ablation_faithfulness, neuron_importance
from lightning_neuroimp.batches.fields import labels_of, split_batch
from lightning_neuroimp.batches.layout import read_batch
from lightning_neuroimp.batches.structure import copied_to, fingerprint, to_device, to_numpy
from lightning_neuroimp.capture.forward import forward_logits
from lightning_neuroimp.errors import InvalidArgument

Pair = namedtuple("Pair", "image label")


@dataclass
class Sample:
    image: torch.Tensor
    target: int


def images(n, channels=3, size=4):
    return [torch.randn(channels, size, size) for _ in range(n)]


LISTS = {
    "pairs": lambda x, y: (x, y),
    "lists": lambda x, y: [x, y],
    "mappings": lambda x, y: {"image": x, "label": y},
    "named tuples": lambda x, y: Pair(x, y),
    "dataclasses": lambda x, y: Sample(x, y),
    "labels without axes": lambda x, y: (x, torch.tensor(y)),
    "arrays": lambda x, y: (x.numpy(), np.int64(y)),
    "names": lambda x, y: (x, "ab"[y % 2]),
    "one-hot": lambda x, y: (x, torch.eye(5)[y]),
    "with metadata": lambda x, y: {"image": x, "path": None if y else "a.png", "label": y},
    "tokens": lambda x, y: {"ids": list(range(y + 2)), "label": y},
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_items_that_are_built_alike_are_samples(kind, n):
    batch = [LISTS[kind](x, number % 2) for number, x in enumerate(images(n))]
    flat = read_batch(batch)
    assert flat.size == n
    assert (flat.n_bytes > 0).sum() in ((n,) if kind != "tokens" else (0,))
    taken = [one for one, _ in ProbeSet.from_batches([batch] * 2).batches(3)]
    assert sum(map(len, taken)) == 2 * n
    assert all(type(item) is type(batch[0]) for part in taken for item in part)
    with pytest.raises(InvalidArgument) as error:
        split_batch(batch)
    for phrase in (
        f"the batch is a list of {n} samples",
        "join them in the loader's collate_fn",
        "or pass forward_fn=",
    ):
        assert phrase in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("kind", [kind for kind in LISTS if kind != "tokens"])
def test_the_line_in_the_message_joins_them(kind):
    batch = [LISTS[kind](x, number % 2) for number, x in enumerate(images(3))]
    with pytest.raises(InvalidArgument) as error:
        split_batch(batch)
    line = str(error.value).split("forward_fn=")[1]
    forward_fn = eval(line, {"torch": torch, "names": ["a", "b"]})
    found = forward_logits(nn.Sequential(nn.Flatten(), nn.Linear(48, 5 if kind == "one-hot" else 2)), batch, forward_fn)
    assert found.labels.tolist() == [0, 1, 0]


def test_images_may_differ_in_size_and_everything_works_with_forward_fn():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 6), nn.ReLU(), nn.Linear(6, 2))
    data = [(torch.randn(3, 5 + k % 3, 6), k % 2) for k in range(24)]
    batches = [data[start : start + 5] for start in range(0, 24, 5)]

    def crop(x):
        return x[:, :3, -3:]

    def forward(model, batch):
        return model(torch.stack([crop(x) for x, _ in batch])), torch.tensor([y for _, y in batch])

    results = neuron_importance(model, batches, layers="2", forward_fn=forward, batch_size=4)
    assert results.sample_label[np.argsort(results.sample_index)].tolist() == [k % 2 for k in range(24)]
    assert len(set(results.sample_fingerprint.tolist())) == 24
    weight = model[3].weight.detach()
    for row, label in enumerate(results["2"].cluster_ids):
        twin = [model[:3](crop(x)[None])[0].detach() * (weight[y] - weight[1 - y]) for x, y in data if y == label]
        np.testing.assert_allclose(results["2"].mean[row], torch.stack(twin).mean(0), atol=1e-5)
    assert ablation_faithfulness(model, batches, results, forward_fn=forward).has_faithfulness


def test_columns_stay_columns():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for batch in ([x, y], [[x, x], [y, y]], [[x, y], [x.double(), y.double()]], [(x, x[:, :2]), (x[:, :1], x)]):
        assert read_batch(batch).size == 4
    assert read_batch([["a", "b", "c", "d"], x]).size == 4
    assert read_batch([{"x": x, "names": ["a"]}]).size == read_batch([[x, y]]).size == 4
    assert read_batch((Pair(x, y), Pair(x, y))).size == 4


@pytest.mark.parametrize(
    "batch",
    [
        [[torch.zeros(3, 2), torch.zeros(3)]] * 4,
        [Pair(torch.zeros(3, 2), torch.zeros(3))] * 3,
        [{"x": torch.zeros(3, 2), "y": torch.zeros(3)}] * 2,
        [(torch.zeros(3, 2), [1, 2, 3])] * 2,
    ],
)
def test_what_may_be_samples_or_columns_is_refused(batch):
    with pytest.raises(InvalidArgument) as error:
        read_batch(batch)
    for phrase in (f"the batch is a list of {len(batch)} items", "or columns of 3", "let the loader's collate_fn"):
        assert phrase in str(error.value)
    assert len(str(error.value)) < 300
    assert labels_of(batch) is None


def test_items_that_are_not_built_alike_are_no_samples():
    x = torch.zeros(3, 2)
    for batch in ([(x, 0), (x, 1, 2)], [{"a": x, "b": 0}, {"a": x, "c": 0}], [(x, 0), (x.double(), 0)]):
        assert read_batch(batch).size == 3
    with pytest.raises(InvalidArgument, match="first dimensions"):
        read_batch([(x, 0), (x[0], 1)])


@pytest.mark.parametrize("n", [2, 5, 8])
def test_columns_of_entries_are_divided_by_entries(n):
    x, y = images(n, channels=4), [k % 3 for k in range(n)]
    for batch in (
        (tuple(x), tuple(y)),
        {"image": x, "label": y},
        (x, torch.tensor(y)),
        (x, [torch.tensor(one) for one in y]),
        (x, [torch.eye(3)[one] for one in y]),
    ):
        flat = read_batch(batch)
        assert flat.size == n
        assert (flat.n_bytes >= 4 * 4 * 16).all()
        taken = next(ProbeSet.from_batches([batch]).batches())[0]
        assert len(taken["image"] if isinstance(batch, dict) else taken[0]) == n
    batch = (x, y)
    found = forward_logits(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        batch,
        lambda model, batch: (model(torch.stack(batch[0])), batch[1]),
    )
    assert found.labels.tolist() == y


def test_views_stay_views_and_what_cannot_be_told_is_refused():
    views, y = [torch.randn(4, 3)] * 2, [0, 1, 2, 0]
    assert read_batch((views, y)).size == read_batch((views, torch.tensor(y))).size == 4
    assert read_batch(([torch.randn(2, 3)] * 2, torch.tensor([0, 1]))).size == 2
    with pytest.raises(InvalidArgument) as error:
        read_batch((images(3), [0, 1, 2]))
    for phrase in (
        "lists of 3 tensors, each with 3 entries",
        "the tensors may be 3 samples",
        "collate_fn return tensors",
    ):
        assert phrase in str(error.value)


def test_labels_in_lists_of_samples():
    x = torch.zeros(3, 2)
    assert labels_of([(x, 1), (x, 0)]).tolist() == [1, 0]
    assert labels_of([(x, torch.tensor(1)), (x, torch.tensor(2))]).tolist() == [1, 2]
    assert labels_of([{"image": x, "y": 1}, {"image": x, "y": 2}]).tolist() == [1, 2]
    assert labels_of([(x, 1, 17), (x, 0, 18)]) is None  # the last one may be a number of the sample
    assert labels_of([(x, "a"), (x, "b")]) is None
    assert labels_of([{"image": x, "number": 1}] * 2) is None
    probe = ProbeSet.from_batches([[(torch.randn(3, 2), k % 4) for k in range(40)]], max_samples=8, classes=[1, 2])
    assert {y for batch, _ in probe.batches() for _, y in batch} == {1, 2}


beta = pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR) tensor support")


def sparse(layout, n=12, width=7):
    dense = torch.randn(n, width).relu()
    dense[n // 2] = 0
    return dense, dense.to_sparse(layout=layout)


@beta
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_tensors_are_divided_by_rows(layout):
    dense, x = sparse(layout)
    batch = {"x": x, "label": torch.arange(12) % 3}
    flat = read_batch(batch)
    assert flat.size == 12
    per_row = (dense != 0).sum(1).numpy()
    np.testing.assert_array_equal(flat.n_bytes, per_row * (8 + 8 + 4) + 8)
    probe = ProbeSet.from_batches([batch], seed=3)
    for taken, index in probe.batches(5):
        assert taken["x"].layout == layout
        assert torch.equal(taken["x"].to_dense(), dense[index])
    same = ProbeSet.from_batches([batch | {"x": x.clone()}], seed=3)
    assert probe.fingerprint.tolist() == same.fingerprint.tolist()
    assert len(set(probe.fingerprint.tolist())) == 12
    for part in (copied_to(batch, torch.device("cpu")), to_device(batch, torch.device("cpu"))):
        assert torch.equal(part["x"].to_dense(), dense)
    np.testing.assert_array_equal(to_numpy(x), dense)
    assert fingerprint(x) == fingerprint(x.clone()) != fingerprint(2 * x)


@beta
def test_a_model_with_sparse_inputs_is_scored_like_its_dense_twin():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.act, self.head = nn.Parameter(torch.randn(7, 6)), nn.ReLU(), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(
                self.act(torch.sparse.mm(x, self.weight) if x.layout != torch.strided else x @ self.weight)
            )

    model, (dense, x) = Bag(), sparse(torch.sparse_csr)
    y = torch.arange(12) % 3
    found, twin = (neuron_importance(model, [(one, y)], layers="act", batch_size=5) for one in (x, dense))
    np.testing.assert_allclose(found["act"].mean, twin["act"].mean, atol=1e-6)


def test_hybrid_and_uncoalesced_tensors():
    x = torch.sparse_coo_tensor(
        [[0, 2, 2, 0]], torch.randn(4, 5), (3, 5), check_invariants=True
    )  # rows of dense values, some of them twice
    taken = next(ProbeSet.from_batches([(x, torch.arange(3))]).batches())
    assert torch.allclose(taken[0][0].to_dense(), x.to_dense()[taken[1]])


@beta
@pytest.mark.parametrize(
    ("x", "phrases"),
    [
        (
            lambda: torch.eye(4).to_sparse(layout=torch.sparse_bsr, blocksize=(2, 2)),
            ["torch.sparse_bsr", ".to_dense()"],
        ),
        (lambda: torch.ones(4, 2, 2).to_sparse(layout=torch.sparse_csr), ["with 3 axes", ".to_dense()"]),
        (
            lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
            ["nested", "to_padded_tensor(x, 0.0)"],
        ),
    ],
)
def test_other_layouts_are_refused(x, phrases):
    with pytest.raises(InvalidArgument) as error:
        read_batch((x(), torch.arange(4)))
    for phrase in ("cannot be divided into samples", "collate_fn", *phrases):
        assert phrase in str(error.value)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32])
def test_complex_tensors(dtype):
    x = torch.randn(6, 3, dtype=torch.complex128).to(dtype)
    for z in (x, x.conj(), x.conj().imag if dtype != torch.complex32 else x, x.mT.conj().mT):
        assert fingerprint(z) == fingerprint(z.clone()) == fingerprint(z.resolve_conj().resolve_neg())
        probe = ProbeSet.from_batches([(z, torch.arange(6))])
        taken, index = next(probe.batches())
        assert torch.equal(torch.view_as_real(taken[0]) if z.is_complex() else taken[0],
                           torch.view_as_real(z[index].resolve_conj()) if z.is_complex() else z[index])  # fmt: skip
        assert len(set(probe.fingerprint.tolist())) == 6
        assert to_numpy(z).shape == (6, 3)
