"""Tables, figures and summaries: what a person reads."""

import dataclasses

import numpy as np
import pytest
from torch import nn

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, ablation_faithfulness, neuron_importance
from lightning_neuroimp.display.figures.agreement import agreement_figure
from lightning_neuroimp.display.figures.common import to_image
from lightning_neuroimp.display.figures.deletion import MAX_PANELS, deletion_figure
from lightning_neuroimp.display.figures.specificity import specificity_figure
from lightning_neuroimp.display.summary import markdown, summary, summary_document
from lightning_neuroimp.display.tags import cluster_tags
from lightning_neuroimp.display.tensorboard.summaries import MAX_HISTOGRAMS, write_summaries
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.history import agreement
from lightning_neuroimp.results.verdict import Verdict
from lightning_neuroimp.site import Site
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
        driving = [
            line for line in block if line.startswith(("Samples that drive top neurons most: ", "With baseline="))
        ]
        assert len(driving) == 2 * (results[one.site] is one)  # once per site
        others = [line for line in block if line not in driving]
        (gaps,) = [line for line in others if line.startswith("Gaps of simpler rankings, to compare with ")]
        assert gaps.startswith(f"Gaps of simpler rankings, to compare with {judged.gap[-1]:+.3f}: activation size")
        # which is what the score itself is
        assert ("effects to first order" in gaps) == (one.attribution != "gradient_x_activation")
        lds, reliability = [line for line in others if line.startswith(("Correlation of the scores", "Reliability"))]
        assert lds.endswith(f"; effects measured on the other half would have {judged.lds_ceiling[-1]:.2f}.")
        assert f"LDS, 1 is perfect): {judged.lds[-1]:.2f} (95%: {judged.lds_interval[-1, 0]:.2f} to " in lds
        mean = np.average(one.reliability.split_half, weights=results.clusters.size)
        assert reliability.startswith(
            f"Reliability (how well a cluster's halves agree on its neurons, 1 is perfect): {mean:.2f}; .9 takes about"
        )
        overlap = np.average(one.reliability.top_overlap, weights=results.clusters.size)
        assert reliability.endswith(f"The halves' top 4 overlap by {overlap:.2f} (by chance 0.07).")
    for one in results.comparisons:
        loser = one.second if one.better == one.first else one.first
        told = f"{one.site}: {one.better}; its gap exceeds that of {loser} by {abs(one.difference):.3f} (95%: "
        assert told in text
    q_values = np.concatenate([one.faithfulness.q_value for one in results.importances])
    legend = " ".join(text.split())
    assert (
        f"the cluster's gap counts as a discovery; {(q_values <= 0.05).sum()} of 40 do at 5%. With 19 random orders"
        in legend
    )
    assert "too large for a few of 40 tests to stand out alone: n_random=799 would let them" in legend


def test_comparisons_name_the_better_score(results):
    first, second = (dataclasses.replace(results.comparisons[0], difference=sign * 0.2) for sign in (1, -1))
    first = dataclasses.replace(first, interval=np.array([0.1, 0.3]))
    second = dataclasses.replace(second, interval=np.array([-0.3, -0.1]))
    neither = dataclasses.replace(first, interval=np.array([-0.1, 0.5]))
    lines = (
        summary(results.replace(comparisons=(first, second, neither))).split("Which score is better?\n")[1].splitlines()
    )
    assert lines[:3] == [
        "1: gradient_x_activation; its gap exceeds that of gradient by 0.200 (95%: 0.100 to 0.300).",
        "1: gradient; its gap exceeds that of gradient_x_activation by 0.200 (95%: 0.100 to 0.300).",
        "1: no clear difference; gap of gradient_x_activation - gap of gradient: +0.200 (95%: -0.100 to +0.500).",
    ]


def test_the_rule_of_the_gap_is_stated(results):
    for text in (summary(results), markdown(results)):
        legend = " ".join(text.split())
        assert "1, 2, 4, 7, 16 of 32 neurons, on 512 samples; neurons are ranked on one half of a cluster" in legend
        assert (
            "p: fraction of the random orders (counting the ranking itself) whose gap is at least as large; a random "
            "order is the ranking of every cluster with the names of the neurons permuted. 19 random orders: the "
            "smallest possible p is 0.05; n_random=99 resolves 0.01."
        ) in legend
        assert "faithful: p(m) and p <= 0.05, and a gap of at least 5%" in legend
        assert "p(m): the same of the margin" in legend
        for verdict in Verdict:
            assert f"{verdict}: " in legend


@pytest.mark.parametrize(
    ("n_draws", "resolution"),
    [
        (19, "19 random orders: the smallest possible p is 0.05; n_random=99 resolves 0.01."),
        (99, "99 random orders: the smallest possible p is 0.01; n_random=999 resolves 0.001."),
        (999, "999 random orders: the smallest possible p is 0.001."),
    ],
)
def test_the_resolution_of_the_draws_is_stated(results, n_draws, resolution):
    importances = [
        dataclasses.replace(one, faithfulness=dataclasses.replace(one.faithfulness, n_draws=n_draws))
        for one in results.importances
    ]
    assert resolution in " ".join(summary(results.replace(importances=tuple(importances))).split())


def test_terminal_and_page_say_the_same(results):
    document = summary_document(results, "labels")
    page, terminal = markdown(results, "labels"), summary(results, "labels")
    lines = {" ".join(line.strip("| ").replace("|", " ").split()) for line in page.splitlines()}
    for section in document.sections:
        for block in section.blocks:
            for row in getattr(block, "rows", ()):
                assert " ".join(" ".join(row).split()) in lines
                assert any(all(cell in line for cell in row) for line in terminal.splitlines())
            for line in getattr(block, "lines", ()):
                assert line in terminal
                assert line in page
    assert page.index("Findings") < page.index("| cluster ") < page.index("#### 1, 32 neurons")
    assert terminal.index("validation samples") < terminal.index("\n1, 32 neurons") < terminal.index("\nFindings")


def test_names_do_not_break_tables(results):
    """From results to both texts; `test_document.py` has many more names."""
    names = ("a|b", "<script>", "`c", "two\nlines", "\x1b[31mred", "x" * 999, *results.clusters.names[6:])
    clusters = dataclasses.replace(results.clusters, names=names)
    one = results.importances[0]
    removal = dataclasses.replace(one.removal, where=Site("wide|__x__"))
    one = dataclasses.replace(one, removal=removal, attribution="<lambda>")
    odd = results.replace(importances=(one,), comparisons=(), clusters=clusters, notes=("1 | *2*",), activities=())
    rows = [line for line in markdown(odd).splitlines() if line.startswith("| ")]
    cells = [row.count("|") for row in rows]
    assert cells == [5] * 11 + [10] * 12
    assert [row.split()[1] for row in rows[1:5]] == ["a&#124;b", "&#60;script>", "&#96;c", "two"]
    assert "#### wide&#124;&#95;&#95;x&#95;&#95;, 32 neurons, &#60;lambda>: " in markdown(odd)
    assert "**Note:** 1 &#124; &#42;2&#42;" in markdown(odd)
    block = next(part for part in summary(odd).split("\n\n") if part.startswith("wide|__x__, 32 neurons, <lambda>: "))
    table = block.splitlines()[1:14]
    assert [line[:42].strip() for line in table[2:7]] == ["a|b", "<script>", "`c", "two lines", r"\x1b[31mred"]
    sizes = [line[42:50].strip() for line in table[2:]]
    assert sizes == [*map(str, clusters.size), str(clusters.size.sum())]


def test_clusters_that_change_are_described(kmeans):
    text = summary(kmeans)
    assert "agreement with the last epoch's clusters: 1.00" in text
    assert "validation samples nearest to its centre" in text
    row = int(np.argmax(kmeans.clusters.size))
    counts = kmeans.clusters.class_counts[row]
    assert f"{counts.argmax()} ({counts.max() / counts.sum():.0%})" in text
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
    size = results.clusters.size.astype(float)  # of which 512 samples were ablated
    np.testing.assert_allclose(faithfulness.accuracy[-1], size @ faithfulness.accuracy[:-1] / size.sum())
    assert faithfulness.gap[-1] == pytest.approx(size @ faithfulness.gap[:-1] / size.sum())


def test_no_figure_without_curves(kmeans):
    with pytest.raises(ValueError, match="no deletion curves at '1': run ablation_faithfulness on the results first"):
        deletion_figure(kmeans, "1")


def test_no_figure_of_an_unknown_layer(results):
    for draw in (deletion_figure, specificity_figure):
        with pytest.raises(InvalidArgument, match=r"no layer 'encoder' in these results: the layers are '1', '3'"):
            draw(results, "encoder")


def test_figures_show_names_as_they_are(results):
    """Matplotlib takes dollars for formulas, and leaves labels with an underscore out of legends."""
    ours, other = (one for one in results.importances if one.site == "1")
    ours = dataclasses.replace(ours, attribution="_$x^$")
    clusters = dataclasses.replace(
        results.clusters, names=("$a_$", "\x1b[31mred", "x" * 99, *results.clusters.names[3:])
    )
    found = results.replace(importances=(ours, other), clusters=clusters)
    figure = deletion_figure(found, "1")
    to_image(figure)  # a formula would fail here
    legend = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    assert legend[-2:] == ["_$x^$", "gradient"]
    titles = [axes.get_title() for axes in figure.axes[1:4]]
    assert [title.split(" (")[0] for title in titles] == ["$a_$", r"\x1b[31mred", f"{'x' * 25}...{'x' * 12}"]


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
    asked = AblationFaithfulness(specificity=True, least_first=True, best_order=True)
    found = ablation_faithfulness(model, data, again, asked)
    text = summary(found)
    for words in (
        "Specificity (4 neurons removed)",
        "Symmetric relevance gain",
        "Normalised gap",
        "Stability (rank correlation with epoch 0): 1.00.",
    ):
        assert words in text
    before, after = (
        found["1"].faithfulness.specificity.balanced_accuracy @ found.clusters.size / found.clusters.size.sum()
    )
    told = f"Balanced accuracy of a label against all others: {before:.2f}, without its top neurons {after:.2f}."
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


def test_verdicts_and_both_p_values_are_drawn_and_explained(results):
    """Both p-values stand in the tables; an order that is the score's own is not drawn twice."""
    for text in (summary(results), markdown(results)):
        assert "p(m)" in text
    for one in results.importances:
        judged = one.faithfulness
        told = summary(results).split(f"{one.site}, 32 neurons, {one.attribution}: ")[1].split("\n\n")[0]
        (line,) = [line for line in told.splitlines() if line.startswith("all ")]
        assert f"{judged.margin_p_value[-1]:.3g}" in line.split()
    drawn = {line.get_label() for line in deletion_figure(results, "1").axes[0].lines}
    assert {"activation size", "one ranking for all clusters"} <= drawn
    assert "effects to first order" not in drawn
    alone = results.replace(importances=tuple(one for one in results.importances if one.attribution == "gradient"))
    assert "effects to first order" in {line.get_label() for line in deletion_figure(alone, "1").axes[0].lines}
