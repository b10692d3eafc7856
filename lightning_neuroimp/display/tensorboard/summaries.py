"""Write results as TensorBoard's own kinds of summaries, through the writer that a logger has open."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_neuroimp.display.figures.agreement import agreement_figure
from lightning_neuroimp.display.figures.common import to_image
from lightning_neuroimp.display.figures.deletion import deletion_figure
from lightning_neuroimp.display.figures.specificity import specificity_figure
from lightning_neuroimp.display.markdown import escape
from lightning_neuroimp.display.sample_pictures import Description, samples_figure, samples_markdown
from lightning_neuroimp.display.samples import MAX_SITES, exemplar_rows, largest_clusters, neuron_rows
from lightning_neuroimp.display.summary import markdown
from lightning_neuroimp.display.tags import cluster_tags, site_tag, tag
from lightning_neuroimp.results.history import Agreement
from lightning_neuroimp.results.measurement import Results

MAX_HISTOGRAMS = 100
"""Histograms of one measurement; each is the importances of one cluster at one layer by one score."""


def write_summaries(
    writer: Any,
    results: Results,
    name: str,
    step: int,
    history: Sequence[Agreement] = (),
    described: Mapping[int, Description] | None = None,
) -> None:
    """Write the histograms, tables and pictures of a measurement.

    Args:
        writer: a `SummaryWriter`, such as `TensorBoardLogger.experiment`; never open a second one in its folder.
        results: one measurement.
        name: first part of every tag.
        step: of the logger.
        history: agreement in all measurements so far, including this one.
        described: samples by their numbers, as pictures or in words.
    """
    _write_histograms(writer, results, name, step)
    writer.add_text(tag(name, "summary"), markdown(results, name), step)
    if described:
        _write_samples(writer, results, name, step, described)
    n_epochs = len({entry.epoch for entry in history})
    for site in results.sites:
        faithfulness = results[site].faithfulness
        if faithfulness is not None and faithfulness.samples.any():
            picture = to_image(deletion_figure(results, site))
            writer.add_image(tag(name, site, "deletion_curves"), picture, step, dataformats="HWC")
        if faithfulness is not None and faithfulness.specificity is not None:
            picture = to_image(specificity_figure(results, site))
            writer.add_image(tag(name, site, "specificity"), picture, step, dataformats="HWC")
        if n_epochs > 1:
            picture = to_image(agreement_figure(history, site))
            writer.add_image(tag(name, site, "agreement"), picture, step, dataformats="HWC")


def _write_histograms(writer: Any, results: Results, name: str, step: int) -> None:
    """Write the importances of all neurons of the largest clusters, where they are finite."""
    per_site = max(1, MAX_HISTOGRAMS // len(results.importances))
    rows = largest_clusters(results, per_site)
    clusters = cluster_tags(results.clusters)
    for importance in results.importances[:MAX_HISTOGRAMS]:
        mean = importance.mean
        for row in rows:
            if np.isfinite(mean[row]).all():
                where = f"{site_tag(name, importance, results)}/importance/{clusters[row]}"
                writer.add_histogram(where, mean[row], step)


def _write_samples(writer: Any, results: Results, name: str, step: int, described: Mapping[int, Description]) -> None:
    """Write the clusters' exemplars and the samples that drive the top neurons, as pictures or in words."""
    groups = [("exemplars", "Samples nearest to each cluster's centre", exemplar_rows(results))]
    groups += [
        (
            tag(activity.site, "top_neurons"),
            f"{activity.site}: samples that drive top neurons most",
            neuron_rows(results, activity.site),
        )
        for activity in results.activities[:MAX_SITES]
    ]
    texts = []
    for where, title, rows in groups:
        figure = samples_figure(title, rows, described)
        if figure is not None:
            writer.add_image(f"{tag(name)}/{where}", to_image(figure), step, dataformats="HWC")
        words = samples_markdown(rows, described)
        texts += [f"#### {escape(title)}\n\n{words}"] if words else []
    if texts:
        writer.add_text(tag(name, "samples"), "\n\n".join(texts), step)
