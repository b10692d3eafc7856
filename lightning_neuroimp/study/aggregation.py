"""Aggregate scores: from the moments of an importance pass to the importance of each neuron for each cluster."""

from dataclasses import replace

import numpy as np
from jaxtyping import Int

from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.targets import Target
from lightning_neuroimp.importance.agreement import drift, reliability
from lightning_neuroimp.importance.attributions.progressive import ProgressiveGradient
from lightning_neuroimp.importance.attributions.registry import Attribution
from lightning_neuroimp.importance.moments import CellMeans
from lightning_neuroimp.importance.progressive import ranked_means
from lightning_neuroimp.importance.scoring import Scores
from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement
from lightning_neuroimp.site import Removal
from lightning_neuroimp.study.settings import ImportanceSettings


def aggregate(
    subject: Subject,
    settings: ImportanceSettings,
    scores: Scores,
    table: ClusterTable,
    before: PreviousMeasurement | None,
) -> tuple[Importance, ...]:
    """Average the scores over cells: return the importance at each site for each attribution."""
    found, ids = [], table.ids
    for removal in scores.removals.values():
        for attribution in settings.attributions:
            moments = cell_means(subject, scores, ids, removal, attribution, settings.explained, settings.seed)
            importance = Importance(
                removal=removal,
                attribution=attribution.name,
                attribution_kind=attribution.kind,
                cluster_ids=ids,
                count=moments.count,
                half_mean=moments.mean,
                half_abs_mean=moments.abs_mean,
                half_square_mean=moments.square_mean,
                half_deviation=moments.deviation,
                half_first_order=moments.first_order,
                effective_samples=moments.effective_samples,
                non_finite=moments.left_out,
                reliability=reliability(moments.mean, moments.count),
                cluster_names=table.names,
            )
            found.append(importance if before is None else replace(importance, drift=drift(importance, before)))
    return tuple(found)


def cell_means(
    subject: Subject,
    scores: Scores,
    ids: Int[np.ndarray, " cluster"],
    removal: Removal,
    attribution: Attribution,
    target: Target,
    seed: int,
) -> CellMeans:
    """Average one score at one site over cells; find the order of each cell where the score is an order.

    Args:
        subject: model and samples.
        scores: from the importance pass.
        ids: clusters of the rows.
        removal: at the site.
        attribution: the score.
        target: the scalar that is explained per sample.
        seed: of the donors.
    """
    means = scores.moments[removal.site, attribution.name].means(ids, removal.n_neurons, subject.processes)
    if not isinstance(attribution.score, ProgressiveGradient):
        return means
    recorder = subject.recorder(removal, subject.donors(removal.baseline, seed))
    return ranked_means(means, subject, recorder, scores.samples, ids, attribution.score.fractions, target)
