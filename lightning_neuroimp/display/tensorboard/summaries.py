"""Built-in TensorBoard summaries of results: histograms, pictures and text, through a logger's own writer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_neuroimp.display.figures import agreement_figure, deletion_figure, specificity_figure, to_image
from lightning_neuroimp.display.sample_pictures import Description, samples_figure, samples_markdown
from lightning_neuroimp.display.samples import MAX_SITES, exemplar_rows, neuron_rows
from lightning_neuroimp.display.summary import markdown
from lightning_neuroimp.display.tensorboard.tags import cluster_tags, site_tag, tag
from lightning_neuroimp.results.history import Agreement
from lightning_neuroimp.results.measurement import Results

MAX_HISTOGRAMS = 100


def write_summaries(
    writer: Any,
    results: Results,
    name: str,
    step: int,
    history: Sequence[Agreement] = (),
    described: Mapping[int, Description] | None = None,
) -> None:
    """Write a measurement's histograms, deletion curves and table.

    Args:
        writer: a `SummaryWriter`, such as `TensorBoardLogger.experiment`; never open a second one in its folder.
        results: one measurement.
        name: first part of every tag.
        step: of the logger.
        history: agreement in the measurements so far, this one included, where there are several.
        described: what the samples look like that are worth showing.
    """
    per_site = max(1, MAX_HISTOGRAMS // len(results.importances))
    largest = np.sort(np.argsort(-results.clusters.size, kind="stable")[:per_site])
    clusters = cluster_tags(results.clusters)
    for one in results.importances[:MAX_HISTOGRAMS]:
        mean = one.mean
        for row in largest.tolist():
            if np.isfinite(mean[row]).all():
                where = f"{site_tag(name, one, results)}/importance/{clusters[row]}"
                writer.add_histogram(where, mean[row], step)
    writer.add_text(tag(name, "summary"), markdown(results, name), step)
    if described:
        _write_samples(writer, results, name, step, described)
    for site in results.sites:
        faithfulness = results[site].faithfulness
        if faithfulness is not None and faithfulness.samples.any():
            picture = to_image(deletion_figure(results, site))
            writer.add_image(tag(name, site, "deletion_curves"), picture, step, dataformats="HWC")
        if faithfulness is not None and faithfulness.specificity is not None:
            picture = to_image(specificity_figure(results, site))
            writer.add_image(tag(name, site, "specificity"), picture, step, dataformats="HWC")
        if len({entry.epoch for entry in history}) > 1:
            picture = to_image(agreement_figure(history, site))
            writer.add_image(tag(name, site, "agreement"), picture, step, dataformats="HWC")


def _write_samples(writer: Any, results: Results, name: str, step: int, described: Mapping[int, Description]) -> None:
    """The clusters' exemplars and the samples that drive the top neurons, as pictures or in words."""
    groups = [("exemplars", "Samples nearest to each cluster's centre", exemplar_rows(results))]
    groups += [
        (
            tag(one.site, "top_neurons"),
            f"{one.site}: samples that drive top neurons most",
            neuron_rows(results, one.site),
        )
        for one in results.activities[:MAX_SITES]
    ]
    texts = []
    for where, title, rows in groups:
        figure = samples_figure(title, rows, described)
        if figure is not None:
            writer.add_image(f"{tag(name)}/{where}", to_image(figure), step, dataformats="HWC")
        words = samples_markdown(rows, described)
        texts += [f"#### {title}\n\n{words}"] if words else []
    if texts:
        writer.add_text(tag(name, "samples"), "\n\n".join(texts), step)
