import dataclasses
import json
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
from torch import nn

from lightning_neuroimp import KMeansClusters, Results, ablation_faithfulness, neuron_importance
from lightning_neuroimp.results import files, measurement
from tests.support.digits import train, validation_batches


@pytest.fixture(scope="module")
def results():
    model, data = train(nn.Tanh, width=16, depth=2, epochs=2), validation_batches()
    found = neuron_importance(
        model, data, layers=["1", "3"], clusters=KMeansClusters(3), attribution=["gradient", "activation"], epoch=4
    )
    return ablation_faithfulness(model, data, found)


def assert_equal(one, other):
    assert type(one) is type(other)
    if is_dataclass(one):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other or (one != one and other != other)


def test_what_is_saved_is_what_is_loaded(results, tmp_path):
    path = tmp_path / "new" / "folder" / "results.npz"
    results.save(path)
    assert_equal(Results.load(path), results)
    assert [file.name for file in path.parent.iterdir()] == ["results.npz"]
    with np.load(path, allow_pickle=False) as file:
        header = json.loads(file["header"].tobytes())
    assert (header["format"], header["version"]) == (measurement.FORMAT, measurement.VERSION)
    without = results.replace(
        importances=tuple(dataclasses.replace(one, faithfulness=None) for one in results.importances)
    )
    without.save(path)
    assert not Results.load(path).has_faithfulness


def test_a_failed_write_leaves_the_old_file_and_nothing_else(results, tmp_path, monkeypatch):
    path = tmp_path / "results.npz"
    results.save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("disk full")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(files.os, step, full)
            with pytest.raises(OSError, match="disk full"):
                results.replace(epoch=9).save(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["results.npz"]


def test_files_that_hold_something_else(results, tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, a=np.zeros(3))
    with pytest.raises(ValueError, match="does not hold results of lightning_neuroimp"):
        Results.load(other)
    results.save(other)
    other.write_bytes(other.read_bytes()[: other.stat().st_size // 2])
    with pytest.raises(ValueError, match="does not hold results of lightning_neuroimp"):
        Results.load(other)
    other.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="does not hold results of lightning_neuroimp"):
        Results.load(other)
    newer = json.dumps({"format": measurement.FORMAT, "version": 99, "results": None}).encode()
    np.savez(other, header=np.frombuffer(newer, np.uint8))
    with pytest.raises(
        ValueError,
        match=rf"of version 99; this version of lightning_neuroimp reads .* of version {measurement.VERSION}",
    ):
        Results.load(other)
    with pytest.raises(FileNotFoundError):
        Results.load(tmp_path / "missing.npz")


def test_lookup(results):
    assert list(results) == ["1", "3"]
    assert len(results) == 2
    assert results["1"].attribution == "gradient"
    assert results["3", "activation"].attribution == "activation"
    with pytest.raises(KeyError, match=r"no result for 'x': the sites are \['1', '3'\], the attributions"):
        results["x"]
    with pytest.raises(KeyError, match=r"no cluster 9 at '1': the clusters are \[0, 1, 2\]"):
        results["1"].top(9)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        results["1"].top(0, 0)
    assert len(results["1"].top(0, 99)) == 16


def test_shapes(results):
    one = results["1"]
    for name in ("mean", "abs_mean", "std", "stderr"):
        assert getattr(one, name).shape == (3, 16)
    faithfulness = one.faithfulness
    n_points = len(faithfulness.removed)
    assert faithfulness.accuracy.shape == (3, n_points)
    assert faithfulness.random_accuracy.shape == (19, 3, n_points)
    assert faithfulness.reference_accuracy.shape == (2, 3, n_points)
    assert faithfulness.samples.sum() == 512
