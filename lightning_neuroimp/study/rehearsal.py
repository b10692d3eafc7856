"""Rehearse a measurement on one batch: to find mistakes in the arguments before an epoch is paid for."""

from dataclasses import dataclass, replace

import numpy as np

from lightning_neuroimp.capture.baselines import Baseline
from lightning_neuroimp.capture.embedding import EmbeddingReader
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.trial import Trial
from lightning_neuroimp.clusters.assignment import Assignment, counted
from lightning_neuroimp.clusters.choice import assign_by_callable
from lightning_neuroimp.clusters.classes import MAX_CLUSTERS, ClassClusters, validate_count
from lightning_neuroimp.clusters.halves import assign_groups
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.scoring import ImportancePass, ScoreRequest
from lightning_neuroimp.site import OWN, Removal
from lightning_neuroimp.study.baselines import reference_means
from lightning_neuroimp.study.settings import ImportanceSettings
from lightning_neuroimp.study.trial import embedding_layer, settle, sites_of


@dataclass(frozen=True)
class Rehearsal:
    """Hold what a rehearsal has found.

    Attributes:
        trial: what was settled, for the measurements to come.
        doubts: what will go wrong unless the other batches are different, in words.
    """

    trial: Trial
    doubts: tuple[str, ...]


def rehearse(subject: Subject, settings: ImportanceSettings) -> Rehearsal:
    """Do once, on a few samples and inside `undisturbed`, what a measurement asks of the model and of user's functions.

    Scores of the user's own and those that need a gradient are computed; nothing is removed, averaged or clustered by
    KMeans, as that depends on the number of samples.

    Args:
        subject: the model, and the samples of one batch.
        settings: of the measurement.

    Raises:
        InvalidArgument: for what the first measurement would refuse.
    """
    trial = settle(subject, settings)
    kept = tuple(each for each in settings.attributions if each.needs_gradient or each.kind == OWN)
    sites = sites_of(subject, settings, trial)
    # a mean, an optimum, or another sample's activations are not known yet: what is subtracted makes no difference to
    # mistakes
    baseline = Baseline.of("zero") if settings.removed_to.kind == "resample" else settings.removed_to
    known = {} if baseline.reference is None else reference_means(subject, baseline.reference, sites, trial)

    def removal_of(site: str, axis: int, n_channels: int) -> Removal:
        """Return the removal at a site."""
        where, value = replace(sites[site], optional=False), baseline.channels(site, n_channels, known)
        target = settings.explained
        return Removal(where, axis, baseline.at(site).kind, value, target.name, settings.target_class, target.kind)

    request = ScoreRequest(sites, kept, settings.explained, settings.target_class, removal_of, settings.seed, trial)
    embedding = EmbeddingReader(subject.model, embedding_layer(settings), trial.axes)
    everybody = Assignment(np.zeros(len(subject.probe), np.int64))
    scores = ImportancePass(subject, request).run(everybody, embedding)
    by_class = settings.class_clusters()
    if by_class is not None:
        found = by_class.of(scores.samples.label, scores.samples.predicted)
        found = found[counted(scores.samples, settings.classes) & (found >= 0)]
        validate_count(len(np.unique(found)), so_far=True)
    if callable(settings.clusters):
        assign_by_callable(settings.clusters, subject)
    if settings.groups is not None:
        assign_groups(settings.groups, subject)
    n_classes = scores.samples.n_classes
    beyond = [label for label in settings.classes or () if label >= n_classes]
    if beyond:
        raise InvalidArgument(
            f"classes={list(settings.classes or ())} asks for class {beyond[0]}, but the model has {n_classes} logits, "
            f"for the classes 0 to {n_classes - 1}"
        )
    return Rehearsal(trial, () if by_class is None else _doubts(settings, by_class, n_classes))


def _doubts(settings: ImportanceSettings, by_class: ClassClusters, n_classes: int) -> tuple[str, ...]:
    """Say that there may be too many clusters, if all of the model's classes come.

    Args:
        settings: of the measurement.
        by_class: how clusters follow from classes.
        n_classes: number of logits.
    """
    classes = np.arange(n_classes) if settings.classes is None else np.array(sorted(settings.classes), np.int64)
    found = by_class.of(classes, classes)
    n_clusters = len(np.unique(found[found >= 0]))
    if n_clusters <= MAX_CLUSTERS:
        return ()
    return (
        f"the model has {n_classes} classes; if more than {MAX_CLUSTERS} of them come, each would be a cluster, and "
        "the first measurement refuses that: look at some with classes=[0, 1, 2], or group them with a mapping, "
        "clusters={0: 'animal', 1: 'vehicle', ...}, or clusters=KMeansClusters(8)",
    )
