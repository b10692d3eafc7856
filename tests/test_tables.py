"""Data frames, comparisons of measurements, names of clusters as keys, and the command line."""

import dataclasses
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightning_neuroimp
from lightning_neuroimp import (
    KMeansClusters,
    Results,
    ablation_faithfulness,
    compare,
    load_history,
    neuron_importance,
)
from lightning_neuroimp.cli import main
from lightning_neuroimp.display.changes import changes_summary
from lightning_neuroimp.errors import FileFormatError, InvalidArgument, MissingPackage
from tests.support.digits import batches, digits

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")


def trained(seed, epochs):
    torch.manual_seed(seed)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 10))
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(epochs):
        optimiser.zero_grad()
        F.cross_entropy(model(x[:800]), y[:800]).backward()
        optimiser.step()
    return model, batches(x[800:1400], y[800:1400])


@pytest.fixture(scope="module")
def results():
    model, data = trained(0, 60)
    scores = ["gradient_x_activation", "activation"]
    found = neuron_importance(
        model, data, layers=["1", "3"], attribution=scores, class_names=[f"d{k}" for k in range(10)]
    )
    return ablation_faithfulness(model, data, found)


@pytest.fixture(scope="module")
def unchecked_results():
    model, data = trained(0, 60)
    return neuron_importance(model, data, layers="3", clusters=KMeansClusters(3), epoch=4, step=70)


class TestFrames:
    def test_rows_of_neurons(self, results):
        frame = results.to_frame()
        assert len(frame) == 2 * 10 * (20 + 12)
        one = results["3", "activation"]
        part = frame[(frame.site == "3") & (frame.attribution == "activation") & (frame.cluster_name == "d4")]
        np.testing.assert_array_equal(part.neuron, np.arange(12))
        np.testing.assert_allclose(part.importance, one.mean[4])
        np.testing.assert_allclose(part.first_order, one.first_order[4])
        assert part.sort_values("rank").neuron.tolist()[:5] == one.top("d4", 5).tolist()
        assert set(part["rank"]) == set(range(1, 13))
        assert (part.gap == one.faithfulness.gap[4]).all()
        assert (part.gap_lower == one.faithfulness.gap_interval[4, 0]).all()
        assert (part.verdict == str(one.faithfulness.verdict[4])).all()
        assert (part.cluster_size == results.clusters.size[4]).all()
        assert (part.reliability == one.reliability.split_half[4]).all()

    def test_intervals_are_those_of_a_mean(self, results):
        from scipy import stats

        model, data = trained(0, 60)
        scores = []

        def keep(batch):
            values = batch.sum_positions(batch.deviation * batch.gradient)
            scores.append((batch.index, values))
            return values

        found = neuron_importance(model, data, layers="3", attribution=keep)
        values = torch.cat([value for _, value in scores]).numpy()
        member = np.concatenate([index for index, _ in scores])
        member = np.isin(member, found.sample_index[found.sample_cluster == 2])
        reach = stats.t.ppf(0.975, member.sum() - 1) * stats.sem(values[member].astype(np.float64))
        low, high = values[member].mean(0) - reach, values[member].mean(0) + reach
        frame = found.to_frame()
        part = frame[frame.cluster == 2]
        np.testing.assert_allclose(part.importance_lower, low, rtol=1e-4)
        np.testing.assert_allclose(part.importance_upper, high, rtol=1e-4)

    def test_rows_of_clusters_and_layers(self, results):
        frame = results.to_frame("clusters")
        assert len(frame) == 2 * 2 * 10
        assert "neuron" not in frame
        layers = results.to_frame("layers")
        assert len(layers) == 4
        assert "cluster" not in layers
        one = layers[(layers.site == "1") & (layers.attribution == "gradient_x_activation")].iloc[0]
        judged = results["1"].faithfulness
        for name in ("gap", "p_value", "margin_gap", "margin_p_value", "lds", "lds_ceiling", "relative_gap"):
            assert one[name] == pytest.approx(getattr(judged, name)[-1], nan_ok=True)
        assert one.verdict == str(judged.verdict[-1])

    def test_without_a_check(self, unchecked_results):
        frame = unchecked_results.to_frame("clusters")
        assert frame.gap.isna().all()
        assert (frame.verdict == "").all()
        assert (frame.epoch == 4).all()
        assert (frame.step == 70).all()
        assert unchecked_results.to_frame("layers").reliability.notna().all()

    def test_an_order_of_rows_that_does_not_exist(self, results, unchecked):
        with pytest.raises(InvalidArgument, match="rows must be") as caught:
            results.to_frame("samples")
        assert "'neurons', 'clusters'" in str(caught.value)

    def test_missing_pandas(self, results, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingPackage, match="data frames need pandas: pip install pandas"):
            results.to_frame()
        with pytest.raises(ImportError):
            results.to_frame()


class TestHistory:
    def test_all_measurements_of_a_folder(self, unchecked_results, tmp_path):
        for epoch in (2, 0, 1):
            unchecked_results.replace(epoch=epoch, step=10 * epoch).save(tmp_path / f"{9 - epoch}.npz")
        frame = load_history(tmp_path)
        assert frame.epoch.tolist() == [0] * 3 + [1] * 3 + [2] * 3
        assert frame.file.tolist()[::3] == ["9.npz", "8.npz", "7.npz"]
        neurons = load_history(tmp_path, "neurons")
        assert len(neurons) == 3 * 3 * 12

    def test_the_last_file_of_a_step_counts(self, unchecked_results, tmp_path):
        for number in range(2):
            path = tmp_path / f"epoch=4{f'-v{number}' * number}.npz"
            unchecked_results.replace(seed=number).save(path)
            os.utime(path, (number, number))
        assert set(load_history(tmp_path).file) == {"epoch=4-v1.npz"}

    def test_folders_without_results(self, unchecked_results, tmp_path):
        with pytest.raises(InvalidArgument, match=r"there is no results file \(\*.npz\) in .*") as caught:
            load_history(tmp_path)
        assert "there are some in" not in str(caught.value)
        unchecked_results.save(tmp_path / "labels" / "a.npz")
        with pytest.raises(InvalidArgument, match=r"there are some in its folders \['labels'\]"):
            load_history(tmp_path)
        (tmp_path / "labels" / "b.npz").write_bytes(b"nothing")
        with pytest.raises(FileFormatError, match="b.npz"):
            load_history(tmp_path / "labels")


class TestCompare:
    def test_the_same_measurement_has_not_changed(self, results):
        found = compare(results, results)
        assert len(found.changes) == 40
        assert not found.notes
        assert not any(change.changed for change in found.changes)
        assert all(change.overlap == 1 for change in found.changes)
        assert found.changes[3].gap_before == found.changes[3].gap_after == results["1"].faithfulness.gap[3]

    def test_neurons_that_came_and_went(self, results):
        """Two neurons change places in both halves of one cluster, two others in one half only."""
        one = results["1"]
        half_mean = one.half_mean.copy()
        tops = [set(np.argsort(-half)[:2].tolist()) for half in half_mean[:, 6]]
        best, worst = sorted(tops[0] & tops[1])[0], int(np.argsort(half_mean[:, 6].sum(0))[0])
        half_mean[:, 6, [best, worst]] = half_mean[:, 6, [worst, best]]
        half_mean[0, 2, :2] = half_mean[0, 2, 1::-1] + 100
        changed = dataclasses.replace(one, half_mean=half_mean)
        after = results.replace(importances=(changed, *results.importances[1:]))
        found = {(each.site, each.attribution, each.cluster): each for each in compare(results, after).changes}
        change = found["1", "gradient_x_activation", "d6"]
        assert change.came == (best,) or change.came == (worst,)
        assert change.came == (worst,)
        assert change.went == (best,)
        assert change.k == 2
        assert change.correlation < 1
        assert not found["1", "gradient_x_activation", "d2"].changed  # one half alone decides nothing
        text = changes_summary(compare(results, after), "two epochs")
        assert "two epochs" in text
        assert "1 of 40 rankings changed: a neuron came or went" in text
        line = next(line for line in text.splitlines() if line.startswith("d6"))
        assert line.split()[1:3] == [str(worst), str(best)]

    def test_clusters_of_kmeans_are_matched_by_members(self, unchecked_results):
        """Ids and names are others in each run."""
        renamed = {0: 5, 1: 3, 2: 9}
        other = unchecked_results.replace(
            sample_cluster=np.array([renamed.get(key, -1) for key in unchecked_results.sample_cluster.tolist()])
        )
        order = [1, 0, 2]  # rows by the new ids
        table = other.clusters
        table = dataclasses.replace(
            table,
            ids=np.array([3, 5, 9]),
            names=("x", "y", "z"),
            size=table.size[order],
            accuracy=table.accuracy[order],
        )
        one = unchecked_results["3"]
        moved = dataclasses.replace(
            one,
            half_mean=one.half_mean[:, order],
            count=one.count[:, order],
            cluster_ids=table.ids,
            cluster_names=table.names,
        )
        found = compare(unchecked_results, other.replace(clusters=table, importances=(moved,)))
        assert [change.cluster for change in found.changes] == ["x", "y", "z"]
        assert [change.overlap for change in found.changes] == [1, 1, 1]

    def test_another_training_run_changes_much(self, results):
        model, data = trained(1, 60)
        other = neuron_importance(model, data, layers=["1", "3"], class_names=[f"d{k}" for k in range(10)])
        found = compare(results, other)
        assert sum(change.changed for change in found.changes) > 10
        assert np.isnan(found.changes[0].gap_after)
        assert np.mean([change.correlation - change.expected for change in found.changes]) < -0.3
        assert found.notes == ("measured only once: 1 (activation), 3 (activation)",)

    def test_what_cannot_be_compared_is_said(self, results, unchecked_results):
        model = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 10))
        _, data = trained(0, 0)
        names = [f"d{k}" for k in range(10)]
        other = neuron_importance(model, data, layers=["1", "3"], class_names=names, baseline=0.5, classes=[0, 1, 2])
        found = compare(results, other)
        assert "3 has 12 neurons before and 9 after" in found.notes
        assert "1: the baseline is 'zero' before and 'constant' after" in found.notes
        assert any(note.startswith("clusters that are only in the measurement before: d3, d4") for note in found.notes)
        with pytest.raises(
            InvalidArgument, match="no layer with the same score in common.*compare measurements of the"
        ):
            compare(results, neuron_importance(model, data, layers="0"))
        with pytest.raises(InvalidArgument, match="no cluster in common.*compare measurements with the same clusters"):
            compare(
                results, neuron_importance(model, data, layers=["1"], clusters=lambda batch: ["all"] * len(batch[0]))
            )


def test_what_makes_scores_differ_is_said(unchecked_results):
    """The model is the same: other values of the baseline, and other samples under the same name."""
    model, data = trained(0, 60)

    def measured(**options):
        return neuron_importance(model, data, layers="3", attribution="gradient_x_activation", **options)

    for one, other, note in (
        ({"baseline": 0.1}, {"baseline": 5.0}, "3: the constant baseline has other values before and after"),
        (
            {"baseline": [0.1] * 12},
            {"baseline": [5.0] * 12},
            "3: the vector baseline has other values before and after",
        ),
        (
            {"clusters": lambda batch: batch[1] % 2},
            {"clusters": lambda batch: 1 - batch[1] % 2},
            "cluster '0' holds mostly other samples before and after",
        ),
    ):
        assert note in compare(measured(**one), measured(**other)).notes
    assert not compare(measured(), measured()).notes
    other = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 10))
    with pytest.raises(InvalidArgument, match="no layer of the same width in common: 3 has 12 neurons before and 9"):
        compare(measured(), neuron_importance(other, data, layers="3", attribution="gradient_x_activation"))


def test_intervals_only_where_the_spread_is_known():
    model, data = trained(0, 60)
    grouped = neuron_importance(model, data, layers="3", groups=lambda batch: batch[1])
    assert grouped.to_frame().importance_lower.isna().all()
    order = neuron_importance(model, data, layers="3", attribution="progressive_gradient")
    assert order.to_frame().importance_upper.isna().all()
    assert np.isnan(order["3"].std).all()


class TestKeys:
    def test_clusters_by_name(self, results):
        one = results["1"]
        for cluster in (0, 7):
            np.testing.assert_array_equal(one.top(f"d{cluster}"), one.top(cluster))
            assert one.row(f"d{cluster}") == one.row(np.int64(cluster)) == cluster
        with pytest.raises(KeyError, match="no cluster 'd77' at '1': did you mean 'd7'"):
            one.top("d77")
        twice = dataclasses.replace(one, cluster_names=("same", *one.cluster_names[1:9], "same"))
        with pytest.raises(KeyError, match=r"several have this name; pass one of the ids \[0, 1, "):
            twice.top("same")

    def test_completion(self, results):
        assert results._ipython_key_completions_() == ["1", "3", *results]


class TestCommandLine:
    def test_show(self, results, tmp_path, capsys):
        results.save(tmp_path / "a.npz")
        assert main(["show", str(tmp_path / "a.npz")]) == 0
        assert capsys.readouterr().out == results.summary() + "\n"
        assert main(["show", "--all-findings", str(tmp_path)]) == 0
        assert capsys.readouterr().out == results.summary(all_findings=True) + "\n"

    def test_compare(self, results, tmp_path, capsys):
        results.save(tmp_path / "a.npz")
        assert main(["compare", str(tmp_path / "a.npz"), str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"before: {tmp_path / 'a.npz'} | after: {tmp_path}")
        assert "0 of 40 rankings changed" in out

    @pytest.mark.parametrize(
        ("arguments", "phrase"),
        [
            (["show", "missing.npz"], "No such file or directory: 'missing.npz'"),
            (["show", "."], "there is no results file (*.npz) in '.'"),
            (["show", "text.npz"], "'text.npz' does not hold results of lightning_neuroimp"),
            (["compare", "text.npz", "text.npz"], "does not hold results"),
        ],
    )
    def test_errors_are_one_line(self, arguments, phrase, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        if "text.npz" in arguments:
            (tmp_path / "text.npz").write_text("nothing")
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("neuroimp: ")
        assert phrase in err
        assert err.count("\n") == 1

    def test_usage(self, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["shows", "x"])
        assert caught.value.code == 2
        assert "invalid choice: 'shows'" in capsys.readouterr().err

    def test_as_a_module_without_torch(self, results, tmp_path):
        results.save(tmp_path / "a.npz")
        code = (
            "import sys, runpy; sys.argv = ['neuroimp', 'show', sys.argv[1]]\n"
            "try: runpy.run_module('lightning_neuroimp', run_name='__main__')\n"
            "except SystemExit as end: assert end.code == 0\n"
            "heavy = ('torch', 'lightning', 'tensorboard', 'pandas', 'matplotlib')\n"
            "print([name for name in heavy if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.npz")], capture_output=True, text=True, check=True
        )
        assert done.stdout == results.summary() + "\n[]\n"

    def test_a_reader_that_stops_early(self, results, tmp_path):
        results.save(tmp_path / "a.npz")
        command = f"{sys.executable} -m lightning_neuroimp show {tmp_path / 'a.npz'} --all-findings | head -c 10"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        assert done.stderr == ""


def test_results_files_give_the_same_frame(results, tmp_path):
    results.save(tmp_path / "a.npz")
    loaded = Results.load(tmp_path / "a.npz")
    assert loaded.to_frame().equals(results.to_frame())
    assert "load_history" in dir(lightning_neuroimp)
