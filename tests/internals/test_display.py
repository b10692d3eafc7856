"""Tables, figures and summaries: what a person reads."""

import dataclasses

import numpy as np
import pytest
from torch import nn

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, ablation_faithfulness, neuron_importance
from lightning_neuroimp.display.figures import (
    MAX_PANELS,
    agreement_figure,
    deletion_figure,
    specificity_figure,
    to_image,
)
from lightning_neuroimp.display.summary import markdown, summary
from lightning_neuroimp.display.tensorboard.summaries import MAX_HISTOGRAMS, write_summaries
from lightning_neuroimp.display.tensorboard.tags import cluster_tags
from lightning_neuroimp.results.history import agreement
from tests.support.digits import train, validation_batches


@pytest.fixture(scope="module")
def results():
    model, data = train(nn.Tanh, width=32, depth=2, epochs=3), validation_batches()
    names = ["gradient_x_activation", "gradient"]
    found = neuron_importance(model, data, layers=["1", "3"], attribution=names, epoch=2)
    return ablation_faithfulness(model, data, found, AblationFaithfulness(n_random=19))


@pytest.fixture(scope="module")
def kmeans():
    model, data = train(nn.Tanh, width=32, depth=2, epochs=3), validation_batches()
    first = neuron_importance(model, data, layers="1", clusters=KMeansClusters(3))
    return neuron_importance(model, data, layers="1", clusters=KMeansClusters(3), previous=first)


def test_the_table_says_what_the_results_say(results):
    text = summary(results, "labels")
    assert text.startswith("labels | epoch 2 | 597 probe samples | clusters: labels | target: margin | baseline: zero")
    for one in results.importances:
        judged = one.faithfulness
        start = text.index(f"{one.site}, 32 neurons, {one.attribution}: {judged.verdict[-1]}\n")
        block = text[start:].split("\n\n")[0].splitlines()
        for row, cluster in enumerate(one.cluster_ids):
            (line,) = [line for line in block if line.startswith(f"label {cluster} ")]
            (described,) = [line for line in text.split("\n\n")[1].splitlines() if line.startswith(f"label {cluster} ")]
            assert f"{results.clusters.accuracy[row]:.2f}" in described
            assert described.endswith(" ".join(map(str, results.clusters.exemplars[row])))
            top = " ".join(map(str, one.top(cluster, 5)))
            gap, p = one.faithfulness.gap[row], one.faithfulness.p_value[row]
            words = line.split()
            assert words[2] == str(results.clusters.size[row])
            assert f" {top} " in line
            assert f"{round(gap, 3) + 0.0:+.3f}" in words
            assert f"{p:.3g}" in words
            assert line.endswith(one.faithfulness.verdict[row])
        (line,) = [line for line in block if line.startswith("all ")]
        low, high = judged.gap_interval[-1]
        assert line.endswith(judged.verdict[-1])
        assert line.split()[2:6] == [f"{judged.gap[-1]:+.3f}", f"{low:+.3f}", "to", f"{high:+.3f}"]
        driving = [line for line in block if line.startswith("Samples that drive top neurons most: ")]
        assert len(driving) == (results[one.site] is one)  # once per site
        gaps, lds, reliability = [line for line in block if line not in driving][-3:]
        assert gaps.startswith(f"Gaps of simpler rankings, to compare with {judged.gap[-1]:+.3f}: activation size")
        assert f"LDS, 1 is perfect): {judged.lds[-1]:.2f} ({judged.lds_interval[-1, 0]:+.2f} to " in lds
        mean = np.average(one.reliability.split_half, weights=results.clusters.size)
        assert reliability.startswith(
            f"Reliability, by which a cluster's halves agree on its neurons: {mean:.2f}; .9 takes"
        )
        overlap = np.average(one.reliability.top_overlap, weights=results.clusters.size)
        assert reliability.endswith(f"Their top 4 overlap by {overlap:.2f} (by chance 0.07).")
    for one in results.comparisons:
        assert f"{one.site}: {one.better}; gap of {one.first} - gap of {one.second}: {one.difference:+.3f} (" in text
    q_values = np.concatenate([one.faithfulness.q_value for one in results.importances])
    assert f"cluster counts; {(q_values <= 0.05).sum()} of 40 do at 5%. With 19 random orders" in text
    assert "a few of 40 tests cannot stand out alone: n_random=799 would let them" in text


def test_the_rule_of_the_gap_is_stated(results):
    for text in (summary(results), markdown(results)):
        assert "1, 2, 4, 7, 16 of 32 neurons; on 512 samples, ranked on one half of a cluster" in text
        assert (
            "share of 19 random orders, and the ranking itself, with a gap as large (smallest possible: 0.05)" in text
        )
        assert "faithful: p <= .05 and a gap of at least 5%" in text


def test_clusters_that_change_are_described(kmeans):
    text = summary(kmeans)
    assert "agreement with last epoch: 1.00" in text
    assert "validation samples nearest to its centre" in text
    row = int(np.argmax(kmeans.clusters.size))
    counts = kmeans.clusters.class_counts[row]
    assert f"{counts.argmax()} {counts.max() / counts.sum():.0%}" in text
    assert "verdict" not in text
    assert "gap" not in text


def test_notes_are_shown(results):
    noted = results.replace(notes=("3 of 9 samples left out",))
    assert "Note: 3 of 9 samples left out" in summary(noted)
    assert "**Note:** 3 of 9 samples left out" in markdown(noted)


def test_the_figure_draws_what_was_measured(results):
    figure = deletion_figure(results, "1")
    axes = figure.axes
    assert len(axes) == 11
    one = results["1"]
    lines = {line.get_label(): line for line in axes[0].lines}
    share = 100 * one.faithfulness.removed / 32
    np.testing.assert_allclose(lines["gradient_x_activation"].get_xdata(), share)
    np.testing.assert_allclose(lines["gradient_x_activation"].get_ydata(), one.faithfulness.accuracy[-1])
    np.testing.assert_allclose(
        lines["random orders: mean, 5-95% of 19"].get_ydata(), one.faithfulness.random_accuracy[:, -1].mean(0)
    )
    np.testing.assert_allclose(
        {line.get_label(): line for line in axes[4].lines}["gradient"].get_ydata(),
        results["1", "gradient"].faithfulness.accuracy[3],
    )
    assert axes[4].get_title().startswith("label 3 (")
    assert axes[0].get_xlabel() == "neurons removed (%), set to zero, most important first"
    assert axes[0].get_ylabel() == "accuracy"
    assert axes[0].get_title() == "1, all clusters, epoch 2"
    image = to_image(figure)
    assert image.dtype == np.uint8
    assert image.shape[1:] == (800, 3)
    assert (image < 250).any()


def test_overall_is_the_weighted_mean_of_the_clusters(results):
    faithfulness = results["1"].faithfulness
    size = faithfulness.samples.sum(0)
    np.testing.assert_allclose(faithfulness.accuracy[-1], size @ faithfulness.accuracy / size.sum())
    assert faithfulness.gap[-1] == pytest.approx(size @ faithfulness.gap / size.sum())


def test_no_figure_without_curves(kmeans):
    with pytest.raises(ValueError, match="no deletion curves at '1': run ablation_faithfulness on the results first"):
        deletion_figure(kmeans, "1")


class Writer:
    def __init__(self):
        self.histograms, self.images, self.texts = [], [], []

    def add_histogram(self, tag, values, step):
        self.histograms.append(tag)

    def add_image(self, tag, image, step, dataformats):
        self.images.append(tag)

    def add_text(self, tag, text, step):
        self.texts.append(tag)


def test_bounds_of_what_is_written():
    """20 clusters at 8 layers: at most 100 histograms, one picture a layer, at most 12 panels."""
    model, data = train(nn.ReLU, width=16, depth=8, epochs=1), validation_batches()
    layers = [str(2 * layer + 1) for layer in range(8)]

    def halved(batch):
        return batch[1] * 2 + (batch[0].sum(1) * 16).long() % 2

    found = neuron_importance(model, data, layers=layers, clusters=halved)
    assert len(found.clusters.ids) == 20
    found = ablation_faithfulness(model, data, found, AblationFaithfulness(fractions=(0.5,), max_samples=300))
    writer = Writer()
    write_summaries(writer, found, "mine", 3)
    assert len(writer.histograms) == 8 * 12 <= MAX_HISTOGRAMS
    assert writer.images == [f"mine/{layer}/deletion_curves" for layer in layers]
    assert writer.texts == ["mine/summary"]
    figure = deletion_figure(found, "1")
    assert len(figure.axes) == MAX_PANELS
    assert "(9 clusters not drawn)" in figure.axes[0].get_title()


def test_tags_of_clusters_differ(results):
    table = results.clusters
    spaced = type(table)(**{**vars(table), "names": ("a b", "a_b", *table.names[2:])})
    assert cluster_tags(spaced)[:3] == ["a_b_0", "a_b_1", "label_2"]


def test_specificity_and_agreement_are_drawn():
    model, data = train(nn.Tanh, width=32, depth=1, epochs=3), validation_batches()
    names = ["gradient_x_activation", "gradient"]
    found = neuron_importance(model, data, layers="1", attribution=names, epoch=0)
    again = neuron_importance(model, data, layers="1", attribution=names, epoch=1, previous=found)
    asked = AblationFaithfulness(specificity=True, least_first=True, greedy=True)
    found = ablation_faithfulness(model, data, again, asked)
    text = summary(found)
    for words in (
        "Specificity, of removing 4 neurons",
        "Symmetric relevance gain",
        "normalised gap",
        "with epoch 0: 1.00",
    ):
        assert words in text
    before, after = (
        found["1"].faithfulness.specificity.balanced_accuracy @ found.clusters.size / found.clusters.size.sum()
    )
    told = f"Balanced accuracy of telling a label from all others: {before:.2f}, without its top neurons {after:.2f}."
    assert told in text
    picture = specificity_figure(found, "1")
    matrices = [axes.images[0].get_array() for axes in picture.axes if axes.images]
    for matrix, one in zip(matrices, found.importances, strict=True):
        np.testing.assert_allclose(matrix, one.faithfulness.specificity.accuracy_drop)
    labels = [line.get_label() for line in deletion_figure(found, "1").axes[0].lines]
    assert "gradient_x_activation, least important first" in labels
    history = [agreement(results, one) for results in (again, found) for one in results.importances]
    history = [dataclasses.replace(entry, epoch=number // 2) for number, entry in enumerate(history)]
    lines = agreement_figure(history, "1").axes[0].lines
    assert [line.get_label() for line in lines[:2]] == [
        "gradient_x_activation: two halves",
        "gradient_x_activation: with the epoch before",
    ]
    with pytest.raises(
        ValueError, match=r"no specificity at '1': measure with AblationFaithfulness\(specificity=True\)"
    ):
        specificity_figure(again, "1")
    with pytest.raises(ValueError, match=r"no history of '7': it has \['1'\]"):
        agreement_figure(history, "7")


def test_all_pictures_reach_tensorboard():
    model, data = train(nn.Tanh, width=16, depth=1, epochs=2), validation_batches(200)
    found = neuron_importance(model, data, layers="1", epoch=1)
    found = ablation_faithfulness(model, data, found, AblationFaithfulness(specificity=True))
    entries = [agreement(found, found["1"])]
    history = [dataclasses.replace(entries[0], epoch=0), *entries]
    seen = []

    class Writer:
        def add_histogram(self, *args):
            pass

        def add_text(self, *args):
            pass

        def add_image(self, tag, *args, **kwargs):
            seen.append(tag)

    write_summaries(Writer(), found, "mine", 3, history)
    assert seen == ["mine/1/deletion_curves", "mine/1/specificity", "mine/1/agreement"]
    seen.clear()
    write_summaries(Writer(), found, "mine", 3, entries)  # one epoch is no history
    assert seen == ["mine/1/deletion_curves", "mine/1/specificity"]
