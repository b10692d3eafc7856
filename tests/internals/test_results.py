import dataclasses
import io
import json
import os
import threading
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, Results, Site, ablation_faithfulness, errors
from lightning_neuroimp import neuron_importance as measure
from lightning_neuroimp.display.summary import summary
from lightning_neuroimp.results import files, measurement
from lightning_neuroimp.results.conditions import Conditions
from lightning_neuroimp.results.findings.diagnosis import diagnose
from lightning_neuroimp.results.record import same
from lightning_neuroimp.results.verdict import Verdict
from lightning_neuroimp.study.randomisation import weight_randomisation
from tests.support.digits import train, validation_batches

VERSION_4 = Path(__file__).parents[1] / "data" / "results_v4.npz"
"""Two scores at the output of a linear layer of five neurons, two clusters, with all that can be asked for but a greedy
order; written by the code of commit 7b47221."""


@pytest.fixture(scope="module")
def results():
    model, data = train(nn.Tanh, width=16, depth=2, epochs=2), validation_batches()
    options = {"layers": ["1", "3"], "clusters": KMeansClusters(3), "attribution": ["gradient", "activation"]}
    first = measure(model, data, **options, epoch=3)
    found = measure(model, data, **options, epoch=4, previous=first, groups=lambda batch: batch[1] % 2)
    settings = AblationFaithfulness(
        max_samples=120, fractions=(0.1, 0.5), least_first=True, best_order=True, specificity=True
    )
    found = ablation_faithfulness(model, data, found, settings)
    return weight_randomisation(model, data, found, attribution=options["attribution"])


@pytest.fixture(scope="module")
def old():
    return Results.load(VERSION_4)


def test_what_is_saved_is_what_is_loaded(results, tmp_path):
    path = tmp_path / "new" / "folder" / "results.npz"
    results.save(path)
    assert Results.load(path) == results
    assert [file.name for file in path.parent.iterdir()] == ["results.npz"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    without = results.replace(
        importances=tuple(dataclasses.replace(one, faithfulness=None, drift=None) for one in results.importances),
        comparisons=(),
        sample_group=None,
    )
    without.save(path)
    assert Results.load(path) == without != results
    assert not Results.load(path).has_faithfulness


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_verdicts_are_members_also_after_loading(old, results):
    for one in (*old.importances, *results.importances):
        assert all(type(verdict) is Verdict for verdict in one.faithfulness.verdict)


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_the_header_is_strict_json(old, tmp_path):
    path = tmp_path / "results.npz"
    finding = dataclasses.replace(old.findings[0], figures={"a": np.inf, "b": -np.inf, "c": np.nan, "d": 0.5})
    odd = old.replace(findings=(finding,), seconds={"pass": np.float64(np.nan)})
    odd.save(path)
    with np.load(path, allow_pickle=False) as file:
        header = json.loads(file["header"].tobytes(), parse_constant=refuse)
    assert (header["format"], header["version"]) == (measurement.FORMAT, 7)
    loaded = Results.load(path)
    assert loaded.findings == (finding,)
    assert loaded == odd


def test_a_failed_write_leaves_the_old_file_and_nothing_else(old, tmp_path, monkeypatch):
    path = tmp_path / "results.npz"
    old.save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("disk full")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(files.os, step, full)
            with pytest.raises(OSError, match="disk full"):
                old.replace(epoch=9).save(path)
            if step == "replace":  # as on a file system without hard links
                patched.setattr(files.os, "link", full)
            with pytest.raises(OSError, match="disk full"):
                old.save_new([path, tmp_path / "other.npz"])
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["results.npz"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_runs_at_once_take_different_names(old, tmp_path, monkeypatch, hard_links):
    if not hard_links:

        def link(*args):
            raise OSError("Operation not permitted")

        monkeypatch.setattr(files.os, "link", link)
    n_runs, taken = 8, {}
    together = threading.Barrier(n_runs)

    def run(number):
        candidates = (tmp_path / f"epoch{version}.npz" for version in range(n_runs))
        together.wait()
        taken[number] = old.replace(epoch=number).save_new(candidates)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(n_runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken.values()) == sorted(tmp_path.iterdir())
    assert {path.name for path in taken.values()} == {f"epoch{version}.npz" for version in range(n_runs)}
    for number, path in taken.items():
        assert Results.load(path).epoch == number
    with pytest.raises(FileExistsError, match=r"files at all paths that were given, the last of which is '.*epoch3"):
        old.save_new([tmp_path / f"epoch{version}.npz" for version in range(4)])
    with pytest.raises(FileExistsError, match="no path was given"):
        old.save_new([])
    assert len(list(tmp_path.iterdir())) == n_runs


def test_files_of_version_4(old):
    """What is loaded is what the file holds, with the record `Overall` in the last rows."""
    with np.load(VERSION_4, allow_pickle=False) as file:
        header, arrays = json.loads(file["header"].tobytes()), {key: file[key] for key in file.files}
    assert header["version"] == 4

    def plain(tree):
        if not isinstance(tree, dict):
            return tree
        if "array" in tree:
            return arrays[tree["array"]]
        if "tuple" in tree:
            return tuple(map(plain, tree["tuple"]))
        return {key: plain(value) for key, value in tree["fields" if "class" in tree else "dict"].items()}

    raw = plain(header["results"])
    new = {"sample_predicted", "sample_margin", "conditions"}
    for name in {field.name for field in dataclasses.fields(old)} - new - {"importances", "clusters"}:
        assert_equal(getattr(old, name), raw[name], moved=("site",))
    assert_equal(old.clusters, raw["clusters"])
    assert old.clusters.kind == "labels"
    assert old.sample_predicted.tolist() == [-1] * 40
    assert np.isnan(old.sample_margin).all()
    for importance, before in zip(old.importances, raw["importances"], strict=True):
        assert_equal(importance, {**before, "faithfulness": None, "removal": None}, moved=("faithfulness", "removal"))
        assert importance.attribution_kind == importance.attribution
        assert (importance.removal.baseline, importance.removal.target_kind) == ("constant", "margin")
        assert_equal(importance.removal, before["removal"], moved=("baseline",))
        judged, before = importance.faithfulness, before["faithfulness"]
        overall = before.pop("overall")
        assert len(overall) == 21
        for name, last in overall.items():
            axis = 1 if name.startswith(("random_", "reference_", "alternative_")) else 0
            value = getattr(judged, "best_accuracy" if name == "greedy_accuracy" else name)
            if name == "verdict":
                assert value == (*before[name], last)
            elif last is None:
                assert value is None
            else:
                np.testing.assert_array_equal(np.take(value, -1, axis), last)
                rest = before.get(name, np.full_like(np.delete(value, -1, axis), np.nan))
                np.testing.assert_array_equal(np.delete(value, -1, axis), rest)
        size = before["samples"].sum(0)
        np.testing.assert_array_equal(judged.samples, np.c_[before["samples"], before["samples"].sum(1)])
        np.testing.assert_array_equal(judged.q_value, [*before["q_value"], np.nan])
        for name in ("intact_margin", "margin", "random_margin"):
            axis = int(name == "random_margin")
            value = getattr(judged, name)
            np.testing.assert_array_equal(np.delete(value, -1, axis), before[name])
            np.testing.assert_allclose(np.take(value, -1, axis), np.average(before[name], axis, size))
        assert judged.references == ("activation_size", "shared_ranking")
        assert judged.alternatives == ("absolute_values", "activation_size", "first_order")
        np.testing.assert_array_equal(judged.specificity.accuracy_drop, before["specificity"]["damage"])
        assert (judged.n_draws, judged.specificity.removed) == (19, 1)


def assert_equal(one, raw, moved=()):
    """Each value in the plain tree is that of the field, but for those that moved."""
    if isinstance(raw, dict) and not isinstance(one, dict):
        for name in raw.keys() - {*moved}:
            assert_equal(getattr(one, name), raw[name], moved)
    elif isinstance(raw, tuple):
        for a, b in zip(one, raw, strict=True):
            assert_equal(a, b, moved)
    else:
        assert same(one, raw) or (isinstance(one, dict) and one == raw), (one, raw)


def test_sites_of_version_4_are_called_as_they_are_now(old):
    assert old.sites == ("0 (axis 1)",)
    named = (*old.comparisons, *old.randomisations, *old.activities, *(one for one in old.findings if one.site))
    assert {one.site for one in named} == {"0 (axis 1)"}
    assert old.activity("0").count == 40
    assert "0 (axis 1), 5 neurons, gradient_x_activation: faithful" in summary(old)


def test_rules_raise_of_old_files_what_was_raised_then(old):
    def key(finding):
        return finding.id, finding.where, finding.clusters, finding.weight

    assert [key(one) for one in diagnose(old)] == [key(one) for one in old.findings]


def test_saved_again_old_files_are_of_the_new_version(old, tmp_path):
    old.save(tmp_path / "new.npz")
    assert Results.load(tmp_path / "new.npz") == old


def at(tree, path):
    """Follow names of fields and numbers of items."""
    for step in path.split("."):
        tree = tree["tuple"][int(step)] if "tuple" in tree else tree.get("fields", tree)[step]
    return tree


def put(path, value):
    """Change the header: at a path of names and numbers."""
    parent, _, last = path.rpartition(".")

    def change(header, arrays):
        holder = at(header, parent) if parent else header
        holder = holder["tuple"] if "tuple" in holder else holder.get("fields", holder.get("dict", holder))
        holder[int(last) if isinstance(holder, list) else last] = value

    return change


def array(path, change):
    """Change an array that the header refers to."""

    def apply(header, arrays):
        key = at(header, path)["array"]
        arrays[key] = change(arrays[key])

    return apply


def drop(path, name):
    return lambda header, arrays: at(header, path)["fields"].pop(name)


def nested(depth):
    value = None
    for _ in range(depth):
        value = {"tuple": [value]}
    return value


def test_files_of_version_5():
    """They hold the same as one of version 6, except under which conditions the model was measured."""
    path = VERSION_4.with_name("results_v5.npz")
    with np.load(path, allow_pickle=False) as file:
        assert json.loads(file["header"].tobytes())["version"] == 5
    loaded = Results.load(path)
    assert loaded.conditions == Conditions()
    assert np.isnan(loaded.conditions.random_spread)
    assert not loaded.conditions.flat_sites
    assert loaded.has_faithfulness
    assert "0 (axis 1), 5 neurons, gradient_x_activation: no better than random" in summary(loaded)


def test_files_of_version_6():
    path = VERSION_4.with_name("results_v6.npz")
    with np.load(path, allow_pickle=False) as file:
        assert json.loads(file["header"].tobytes())["version"] == 6
    loaded = Results.load(path)
    assert loaded["1"].faithfulness.verdict == ("weak",) * 3
    assert loaded["1"].faithfulness.lds[-1] > 0.99
    assert loaded["1", "activation"].faithfulness.specificity is not None
    assert "1, 8 neurons, gradient_x_activation: weak" in summary(loaded)


IMPORTANCE = "results.importances.0"
JUDGED = f"{IMPORTANCE}.faithfulness"
HOSTILE = [
    (put("format", "another"), "holds 'another' of version 7; this version of lightning_neuroimp reads"),
    (put("version", 99), "of version 99; this version of lightning_neuroimp reads 'lightning_neuroimp.results'"),
    (put("version", 3), "of version 3; this version"),
    (put("version", "5"), "of version '5'"),
    (put("version", True), "of version True"),
    (put("version", 4), r"cannot be upgraded to version 5 \(KeyError"),
    (put("results", None), "results must be a Results, found None"),
    (put("results", [1]), r"holds \[1\], which stands for nothing"),
    (put("results", nested(450)), "is not a valid file of version 7: "),
    (put("results.clusters", {"class": "os.system", "fields": {}}), "clusters must be a ClusterTable, found a 'os"),
    (put("results.clusters", {"class": "ClusterTable", "fields": {}}), "clusters must have the fields of .* found no"),
    (put("results.colour", "red"), "results must have the fields of a Results, found an unknown 'colour'"),
    (drop("results", "epoch"), "results must have the fields of a Results, found no epoch"),
    (put("results.epoch", "4"), "results.epoch must be an integer, found '4'"),
    (put("results.epoch", True), "results.epoch must be an integer, found True"),
    (put("results.epoch", 4.5), "results.epoch must be an integer, found 4.5"),
    (put("results.epoch", None), "results.epoch must be an integer, found None"),
    (put("results.epoch", {"float": "NaN"}), "stands for nothing"),
    (put("results.notes", ["a list"]), "stands for nothing"),
    (put("results.notes", {"tuple": [1]}), r"results.notes\[0\] must be a string, found 1"),
    (put("results.seconds", {"tuple": []}), r"results.seconds must be a dictionary, found \(\)"),
    (put("results.seconds.importance", "long"), r"results.seconds\['importance'\] must be a number, found 'long'"),
    (put("results.seconds.importance", 10**400), r"results.seconds\['importance'\] must be a number, found 1000"),
    (put("results.sample_index", {"array": "a999"}), "refers to an array 'a999' that the file does not hold"),
    (put("results.sample_index", {"array": "a1", "tuple": []}), "stands for nothing"),
    (put("results.importances", {"array": "a1"}), "results.importances must be a tuple, found "),
    (put("results.sample_group", 3), r"sample_group must be Int\[ndarray, 'sample'\], found 3"),
    (array("results.sample_index", lambda a: a.astype(float)), r"sample_index must be Int.*, found float64\[40\]"),
    (array("results.sample_label", lambda a: a[:39]), r"sample_label must be Int.* arrays, found int64\[39\]"),
    (array("results.sample_group", lambda a: a[:39]), r"sample_group must be Int\[ndarray, 'sample'\], as large as"),
    (array("results.comparisons.0.interval", lambda a: np.append(a, 0)), r"interval must be Float\[ndarray, '2'\]"),
    (array(f"{IMPORTANCE}.half_mean", lambda a: a[0]), r"half_mean must be Float.*, found float64\[2, 5\]"),
    (array(f"{IMPORTANCE}.half_mean", lambda a: a[..., :4]), r"half_abs_mean must be .*as large as the other"),
    (array(f"{IMPORTANCE}.cluster_ids", lambda a: a + 1), r"cluster_ids must be those of the clusters, found \[1, 2\]"),
    (array(f"{IMPORTANCE}.removal.baseline_value", lambda a: a[:4]), "half_mean must have 4 entries.*, found 5"),
    (array(f"{JUDGED}.removed", lambda a: a + 5), r"removed must be numbers from 1 to 5, found \[6, 8\]"),
    (put(f"{IMPORTANCE}.attribution", "activation"), r"found \('0 \(axis 1\)', 'activation'\) twice"),
    (put(f"{IMPORTANCE}.drift", "much"), r"importances\[0\].drift must be a Drift, found 'much'"),
    (put(f"{IMPORTANCE}.removal.target_class", None), "target_class must be a string or an integer, found None"),
    (put(f"{IMPORTANCE}.removal.where.group", 0), "where is no valid Site: group of a site must be at least 1, got 0"),
    (put(f"{JUDGED}.verdict.0", "excellent"), r"verdict\[0\] must be 'faithful', .*, found 'excellent'"),
    (put(f"{JUDGED}.verdict", {"tuple": ["weak"]}), "verdict must have 3 entries along an axis, found 1"),
    (put(f"{JUDGED}.references", {"tuple": []}), "reference_gap must have 0 entries along an axis, found 2"),
    (put("results.clusters.names", {"tuple": []}), "clusters.names must have 2 entries along an axis, found 0"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "phrase"), HOSTILE, ids=range(len(HOSTILE)))
def test_malformed_files_are_refused_in_words(old, tmp_path, change, phrase):
    path = tmp_path / "results.npz"
    old.save(path)
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    header = json.loads(arrays.pop("header").tobytes())
    change(header, arrays)
    _write(path, json.dumps(header).encode(), arrays)
    with pytest.raises(errors.FileFormatError, match=phrase) as caught:
        Results.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def _npy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def _write(path, header, arrays):
    np.savez(path, header=np.frombuffer(header, np.uint8), **arrays)


@pytest.mark.parametrize(
    ("write", "phrase"),
    [
        (lambda path: path.write_bytes(b""), "does not hold results"),
        (lambda path: path.write_bytes(b"nonsense"), "does not hold results"),
        (lambda path: path.write_bytes(VERSION_4.read_bytes()[:9000]), "does not hold results"),
        (lambda path: np.savez(path, a=np.zeros(3)), r"it has no header, only \['a'\]"),
        (lambda path: path.write_bytes(_npy()), "does not hold results"),
        (lambda path: np.savez(path, header=np.array([{}], object)), "does not hold results"),
        (lambda path: _write(path, b"[1]", {}), r"its header must be an object, found \[1\]"),
        (lambda path: _write(path, b"{", {}), "does not hold results"),
        (lambda path: _write(path, b"\xff{}", {}), "does not hold results"),
        (lambda path: _write(path, b"{}", {}), "holds None of version None"),
        (lambda path: _write(path, b"[" * 10**5, {}), "does not hold results"),
    ],
    ids=range(11),
)
def test_files_that_hold_something_else(tmp_path, write, phrase):
    path = tmp_path / "other.npz"
    write(path)
    with pytest.raises(errors.FileFormatError, match=phrase) as caught:
        Results.load(path)
    assert repr(str(path)) in str(caught.value)


def test_files_that_cannot_be_opened_are_the_systems_affair(tmp_path):
    with pytest.raises(FileNotFoundError):
        Results.load(tmp_path / "missing.npz")
    with pytest.raises(IsADirectoryError):
        Results.load(tmp_path)


def test_results_are_a_mapping_of_all_importances(results):
    keys = [("1", "gradient"), ("1", "activation"), ("3", "gradient"), ("3", "activation")]
    assert list(results) == list(results.keys()) == keys
    assert len(results) == 4
    assert list(results.values()) == list(results.importances)
    assert all(results[key] is importance for key, importance in results.items())
    assert results["1"] is results["1", "gradient"] is results[Site("1")] is results[Site("1"), "gradient"]
    assert results["3", "activation"].attribution == "activation"
    assert "1" in results
    assert ("3", "activation") in results
    assert results.get("5") is None
    for key in (None, 3, ("1",), ("1", "gradient", 0), ["1"], Site("5"), ("1", None, 2)):
        assert key not in results
    with pytest.raises(KeyError, match="no result for 'x': the sites are '1', '3'"):
        results["x"]
    with pytest.raises(KeyError, match=r"no result for \('1', 'gradients'\): did you mean 'gradient'"):
        results["1", "gradients"]
    with pytest.raises(KeyError, match="no activations of 'x': the sites are '1', '3'"):
        results.activity("x")
    assert results.activity(Site("1")).site == "1"


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.last = nn.GRU(4, 6, batch_first=True), nn.Linear(12, 2)

    def forward(self, x):
        output, state = self.rnn(x)
        return self.last(torch.cat([output[:, -1], state[-1]], 1))


def test_a_module_stands_for_its_only_site():
    batches = [(torch.randn(40, 3, 4), torch.arange(40) % 2)]
    one = measure(Both().eval(), batches, layers=Site("rnn", item=0))
    assert one["rnn"] is one["rnn (item 0)"] is one["rnn", "blockwise_gradient"]
    assert one.activity("rnn").site == "rnn (item 0)"
    assert Site("rnn") not in one  # which is another site
    two = measure(Both().eval(), batches, layers=[Site("rnn", item=0), Site("last", side="input")])
    two = two.replace(importances=(*two.importances, *measure(Both().eval(), batches, layers="rnn").importances))
    assert two["last"].site == "last (input)"
    assert two["rnn"].site == "rnn"
    both = two.replace(importances=(two["rnn"], dataclasses.replace(two["last"], removal=one["rnn"].removal)))
    both = both.replace(importances=(one["rnn"], dataclasses.replace(one["rnn"], removal=_called(one["rnn"].removal))))
    with pytest.raises(KeyError, match=r"no result for 'rnn': the sites are 'rnn \(item 0\)', 'rnn \(call 1\)'"):
        both["rnn"]


def _called(removal):
    return dataclasses.replace(removal, where=Site("rnn", call=1))


def test_values_make_results_equal(results, old):
    assert results == results.replace(notes=tuple(results.notes))
    assert results != results.replace(epoch=5)
    assert results != results.replace(sample_label=results.sample_label + 1)
    assert results != results.replace(sample_label=results.sample_label.astype(np.int32))
    assert results != old
    assert results != dict(results)
    with pytest.raises(TypeError, match="unhashable"):
        hash(results)
    # sites and removals are no records, and compared all the same
    moved = dataclasses.replace(results["1"].removal, baseline_value=results["1"].removal.baseline_value + 1)
    first, *rest = results.importances
    assert results != results.replace(importances=(dataclasses.replace(first, removal=moved), *rest))
    copied = dataclasses.replace(first, removal=dataclasses.replace(first.removal))
    assert results == results.replace(importances=(copied, *rest))


def test_verdicts_come_first_in_a_repr_of_a_few_lines(results, old):
    assert repr(old).splitlines() == [
        "<Results",
        "  0 (axis 1), gradient_x_activation: faithful, gap +0.053, p 0.05, LDS 0.97",
        "  0 (axis 1), activation: no better than random, gap -0.010, p 1, LDS -0.95",
        "  40 probe samples, 2 clusters (labels), epoch 1",
        "  7 findings, weightiest: few-samples>",
    ]
    bare = dataclasses.replace(old.importances[0], faithfulness=None)
    text = repr(old.replace(importances=(bare,) * 30, findings=(), epoch=-1))
    assert text.splitlines()[1] == "  0 (axis 1), gradient_x_activation: 5 neurons, not ablated"
    assert text.splitlines()[20:] == ["  ... and 11 more", "  40 probe samples, 2 clusters (labels)", "  no findings>"]
    for record in (old.importances[0], old.clusters, old.importances[0].faithfulness, old.activities[0]):
        assert repr(record).startswith(f"{type(record).__name__}(")
        assert len(repr(record)) < 1500
    assert "half_mean=float64[2, 2, 5], " in repr(old.importances[0])
    assert repr(results.replace(importances=())).startswith("<Results\n  597 probe samples")


def test_summaries_are_methods(results):
    assert results.summary() == summary(results)
    assert results.summary(all_findings=True) == summary(results, all_findings=True)


def test_rows_and_tops(results):
    with pytest.raises(KeyError, match=r"no cluster 9 at '1': the clusters are \[0, 1, 2\]"):
        results["1"].top(9)
    with pytest.raises(errors.InvalidArgument, match="k must be at least 1, got 0"):
        results["1"].top(0, 0)
    assert len(results["1"].top(0, 99)) == 16


def test_shapes(results):
    one = results["1"]
    for name in ("mean", "abs_mean", "std", "stderr"):
        assert getattr(one, name).shape == (3, 16)
    faithfulness = one.faithfulness
    n_points = len(faithfulness.removed)
    assert faithfulness.accuracy.shape == (4, n_points)
    assert faithfulness.random_accuracy.shape == (19, 4, n_points)
    assert faithfulness.reference_accuracy.shape == (3, 4, n_points)
    assert faithfulness.reference_margin_gap.shape == (3, 4)
    assert faithfulness.margin_gap.shape == faithfulness.lds_ceiling.shape == (4,)
    assert faithfulness.samples[:, :-1].sum() == 120
    assert set(get_type_hints(type(faithfulness))) == {field.name for field in dataclasses.fields(faithfulness)}
