"""What is described of single samples, and how."""

import numpy as np
import pytest
import torch

from lightning_neuroimp import ProbeSet, describe_samples
from lightning_neuroimp.batches.description import as_picture
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.errors import InvalidArgument
from tests.support.toys import in_lockstep


def describe(batch, **options):
    probe = ProbeSet.from_batches([batch])
    return describe_samples(probe, probe.index.tolist(), **options)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (torch.rand(2, 3, 8, 6), (8, 6, 3)),
        (torch.rand(2, 1, 8, 6), (8, 6, 3)),
        (torch.rand(2, 8, 6, 3), (8, 6, 3)),
        (torch.rand(2, 8, 6), (8, 6, 3)),
        (torch.rand(2, 3, 400, 200), (80, 40, 3)),
        (torch.tensor([[0.5, -2.0], [1.0, 3.0]]), {"0.5 -2", "1 3"}),
        (torch.arange(14).repeat(2, 1).float(), {"0 1 2 3 4 5 6 7 8 9 10 11 ..."}),
    ],
)  # fmt: skip
def test_what_inputs_look_like(inputs, expected):
    found = describe((inputs, torch.zeros(2).long()))
    if isinstance(expected, set):
        assert set(found.values()) == expected
    else:
        assert all(one.shape == expected and one.dtype == np.uint8 for one in found.values())


def test_padding_and_words():
    batch = {
        "ids": torch.tensor([[5, 6, 0], [7, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]),
        "y": torch.zeros(2),
    }
    assert set(describe(batch).values()) == {"5 6", "7"}
    assert set(describe(batch | {"text": ["first words", "others"]}).values()) == {"first words", "others"}
    assert set(describe([torch.ones(2), torch.zeros(2), torch.zeros(2)]).values()) == {"1"}


def test_describe_sample_gets_single_samples():
    batch = {"x": torch.arange(6.0).reshape(2, 3), "y": torch.tensor([4, 5]), "name": ["a", "b"]}
    words = describe(batch, describe_sample=lambda sample: f"{sample['name']} {sample['y']} {sample['x'].tolist()}")
    assert set(words.values()) == {"a 4 [0.0, 1.0, 2.0]", "b 5 [3.0, 4.0, 5.0]"}
    pictures = describe(batch, describe_sample=lambda sample: sample["x"].expand(4, 3))
    assert all(one.shape == (4, 3, 3) for one in pictures.values())
    with pytest.raises(
        InvalidArgument, match=r"describe_sample must return text, or a picture .*got a ndarray of shape \(3,\)"
    ):
        describe(batch, describe_sample=lambda sample: sample["x"])
    with pytest.raises(InvalidArgument, match=r"describe_sample must return text, or a picture .*got a int"):
        describe(batch, describe_sample=lambda sample: 3)
    with pytest.raises(InvalidArgument, match=r"describe_sample failed with KeyError: 'image'"):
        describe(batch, describe_sample=lambda sample: sample["image"])
    with pytest.raises(InvalidArgument, match=r"describe_sample must be a callable \(sample\) -> text or picture, got"):
        describe(batch, describe_sample=str)


def test_samples_have_no_sample_axis_in_any_nesting():
    samples = []

    def look(sample):
        samples.append(sample)
        return ""

    describe([{"x": torch.arange(6.0).reshape(2, 3), "names": ["a"], "files": ["b", "c"]}], describe_sample=look)
    for [sample] in samples:
        assert sample["x"].shape == (3,)
        assert sample["names"] == ["a"]  # of the batch
        assert sample["files"] in ("b", "c")


def test_each_process_describes_what_it_holds():
    whole = ProbeSet.from_batches([(torch.randn(12, 2), torch.zeros(12).long())])
    expected, found = describe_samples(whole, [1, 4, 7]), [None] * 2

    def process(rank, gather):
        found[rank] = describe_samples(whole.select(np.arange(rank, 12, 2)), [1, 4, 7], None, Processes(gather))

    in_lockstep(2, process)
    assert found[0] == found[1] == expected


def test_pictures_are_from_black_to_white():
    picture = as_picture(np.array([[-1.0, 0.0], [1.0, np.nan]]))
    assert picture[..., 0].tolist() == [[0, 128], [255, 128]]
    assert as_picture(np.full((2, 2), 7.0)).max() == 0
    kept = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(as_picture(kept), kept)
