"""Compute the importance of every neuron for every cluster, in six steps.

Each step takes some of: `subject`, the model and its samples; `settings`, what is measured; `trial`, which axes sites
have; `before`, the measurement before; `surveyed`, what the survey found; `clustered`, the clusters and halves;
`embedding`, which reads embeddings; `scores`, from the importance pass; `ids`, of the clusters. None: not needed.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import nn

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.numbers import are_copies
from lightning_neuroimp.batches.probe import ProbeSet, Stratify
from lightning_neuroimp.batches.processes import Gather, Processes, alone
from lightning_neuroimp.batches.progress import Progress, resolve_progress
from lightning_neuroimp.capture.baselines import BaselineLike
from lightning_neuroimp.capture.embedding import EmbeddingReader
from lightning_neuroimp.capture.forward import ForwardFn
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.suffix.randomness import RandomSources
from lightning_neuroimp.capture.targets import TargetFn
from lightning_neuroimp.capture.trial import Trial
from lightning_neuroimp.clusters.assignment import Assignment, counted
from lightning_neuroimp.clusters.choice import (
    BatchFn,
    Clusters,
    assign_by_callable,
    assign_by_loader,
    describe_source,
    kind_of,
)
from lightning_neuroimp.clusters.classes import ClassClusters, validate_count
from lightning_neuroimp.clusters.halves import Halves, SampleGroups, assign_groups, deal_by_keys
from lightning_neuroimp.clusters.identities import keep_identities
from lightning_neuroimp.clusters.table import ClusterNaming, cluster_table
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.registry import Attribution, AttributionFn
from lightning_neuroimp.importance.scoring import ImportancePass, ScoreRequest, Scores
from lightning_neuroimp.results.conditions import Conditions
from lightning_neuroimp.results.findings.diagnosis import diagnose
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement
from lightning_neuroimp.site import Removal, Site
from lightning_neuroimp.study.aggregation import aggregate
from lightning_neuroimp.study.baselines import averaged_sites, baseline_values, compare_baselines
from lightning_neuroimp.study.notes import importance_notes
from lightning_neuroimp.study.probing import draw_probe, same_samples
from lightning_neuroimp.study.settings import ImportanceSettings
from lightning_neuroimp.study.survey import Survey, survey
from lightning_neuroimp.study.trial import embedding_layer, settle, sites_of


def neuron_importance(
    model: nn.Module,
    batches: Iterable[Any] | ProbeSet,
    *,
    layers: str | Site | Sequence[str | Site],
    clusters: Clusters = "labels",
    attribution: str | AttributionFn | Attribution | Sequence[str | AttributionFn | Attribution] = (
        "blockwise_gradient"
    ),
    target: str | TargetFn = "margin",
    target_class: str | int = "label",
    baseline: BaselineLike = "zero",
    classes: Collection[int | str] | None = None,
    class_names: Sequence[str] = (),
    groups: BatchFn | None = None,
    ignore_index: int | None = None,
    stratify: Stratify = False,
    forward_fn: ForwardFn | None = None,
    max_samples: int = 1024,
    max_bytes: int = 2**30,
    batch_size: int | None = None,
    seed: int = 0,
    previous: Results | PreviousMeasurement | None = None,
    gather: Gather = alone,
    progress: bool | Progress = False,
    epoch: int = -1,
    step: int = -1,
) -> Results:
    """Compute the importance of every neuron of the given layers for every cluster of samples.

    Takes one forward and one backward pass per batch of the probe set for all layers and attributions together. A
    forward pass is made before it if KMeans needs embeddings, if a baseline is the mean, or if samples have several
    shapes or are spread over processes (the halves of the clusters must not depend on that); another one is made with
    it if the baseline is resampled. Before all, a few passes over up to six samples settle which axes hold what.

    Args:
        model: a classifier; called with the inputs of a batch, unless `forward_fn` is given. Left as it was found.
        batches: a loader, from which a probe set is drawn, or a `ProbeSet`.
        layers: names or globs as in `model.named_modules()`, or `Site`s; their outputs' channels are the neurons.
        clusters: "labels", "predictions", a mapping from classes to groups, `KMeansClusters(...)`, or a callable
            `batch -> one integer or string per sample`; in a Trainer also "dataloaders".
        attribution: "blockwise_gradient", "gradient_x_activation", "layer_norm_rule", "masked_gradient",
            "integrated_gradients", "leave_one_out", "shapley", "regression", "progressive_gradient", "conductance",
            "internal_influence", "taylor", "gradient", "activation", "random", a method of Captum such as
            "captum.attr.DeepLift", a callable `SiteBatch -> (sample, neuron) scores`, or several of these; with options
            as in "masked_gradient(points=2)" or `MaskedGradient(points=2)`.
        target: the scalar explained per sample: "margin", "logit", "log_probability", "probability", or a callable
            `(logits, classes) -> (sample,)`.
        target_class: class whose target is explained: each sample's "label", the class "predicted" for it, or one
            class for all, by its number. Accuracies are agreement with that class.
        baseline: what a removed neuron is set to: "zero", "mean" over the probe set, "resample" (what another sample
            has), "optimal" (one vector per layer that keeps the cross entropy least under random removals: for each
            layer 32 times a forward pass, and a forward and backward pass of what follows it), a number, a vector with
            one number per channel, a mapping from layers to "zero", "mean", numbers or vectors, or
            `ReferenceInput(...)`.
        classes: labels (numbers, or names in `class_names`) of the samples that are drawn and clustered; None: all.
        class_names: names of all classes, for tables.
        groups: `batch -> one integer or string per sample`; samples with equal values, such as patients or copies of
            one image, are never divided between the halves of a cluster.
        ignore_index: label of samples without one, such as -1 or 255, which are left out; None: all have one.
        stratify: True: the probe set holds as many samples of each label as there is room for; or a callable,
            `batch -> one integer or string per sample`.
        forward_fn: `forward_fn(model, batch) -> (logits, targets)`, when inputs, targets and logits cannot be
            inferred; or `-> (logits, targets, tokens)`, where `tokens` is True for non-padding tokens.
        max_samples: upper bound on the number of samples in the probe set, over all processes.
        max_bytes: upper bound on the memory of the probe set on the host, per process.
        batch_size: number of samples in our passes; by default that of the loader.
        seed: of the probe set, KMeans and random rankings.
        previous: results of the measurement before, whose cluster ids are kept if they are of the same samples.
        gather: for several processes: takes an object, returns the list of all processes' objects in rank order.
        progress: True for progress bars.
        epoch: recorded in the results.
        step: recorded in the results.

    Returns:
        The results, without faithfulness.

    Raises:
        InvalidArgument: for arguments, batches, layers or outputs that cannot be worked with; the message names a
            remedy.
        NonFiniteOutputs: if no sample has finite outputs.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> loader = [(torch.randn(8, 2), torch.arange(8) % 2)] * 2
    >>> neuron_importance(model, loader, layers="1").importances[0].mean.shape
    (2, 3)
    """
    settings = ImportanceSettings(
        layers, clusters, attribution, target, target_class, baseline, classes, class_names, groups, seed, ignore_index
    )
    settings.removed_to.require_sites(find_sites(model, settings.layers))  # before anything is drawn
    with undisturbed(model):
        # drawn inside, as iterating over a DataLoader advances torch's random state
        probe = draw_probe(
            batches,
            max_samples=max_samples,
            max_bytes=max_bytes,
            seed=settings.seed,
            stratify=stratify,
            # labels that only forward_fn can tell are not known yet
            classes=settings.classes if forward_fn is None else None,
            ignore_index=settings.ignore_index,
        )
        subject = Subject(model, probe, forward_fn, batch_size, Processes(gather), resolve_progress(progress))
        subject.ignore_index = settings.ignore_index
        results = measure_importance(subject, settings, previous, epoch, step)
    return results.replace(findings=diagnose(results))


def measure_importance(
    subject: Subject,
    settings: ImportanceSettings,
    previous: Results | PreviousMeasurement | None = None,
    epoch: int = -1,
    step: int = -1,
    trial: Trial | None = None,
) -> Results:
    """Measure importance in six steps, inside `undisturbed`; leave findings to the caller.

    Args:
        subject: model and samples.
        settings: of the measurement.
        previous: the measurement before; None: there was none.
        epoch: recorded in the results.
        step: recorded in the results.
        trial: what an earlier measurement of the model has settled; None: it is settled now.

    Raises:
        InvalidArgument: if the arguments do not fit the model or the samples.
        NonFiniteOutputs: if no sample has finite outputs.
    """
    trial = trial or settle(subject, settings)
    subject.states = RandomSources(subject.model).states() if trial.random_spread else None
    before = match_previous(subject, previous)
    embedding = EmbeddingReader(subject.model, embedding_layer(settings), trial.axes)
    surveyed = survey_where_needed(subject, settings, trial, embedding)
    clustered = assign_clusters(subject, settings, surveyed, before)
    scores = score_neurons(subject, settings, trial, surveyed, clustered, embedding)
    conditions = Conditions(trial.batch_dependence, trial.random_spread, scores.bounded, scores.flat)
    found = collect_results(subject, settings, clustered, scores, before)
    return found.replace(epoch=epoch, step=step, conditions=conditions)


def match_previous(subject: Subject, previous: Results | PreviousMeasurement | None) -> PreviousMeasurement | None:
    """Return what is needed of the measurement before; None if there was none, or it was of other samples."""
    before = PreviousMeasurement.of(previous) if isinstance(previous, Results) else previous
    same = before is not None and same_samples(subject.probe, before, subject.processes)
    return before if same else None


def survey_where_needed(
    subject: Subject, settings: ImportanceSettings, trial: Trial, embedding: EmbeddingReader
) -> Survey | None:
    """Survey the samples if embeddings, means or an order of all samples are needed first; None if not."""
    sites = averaged_sites(settings.removed_to, sites_of(subject, settings, trial))
    # a pass meets samples by shape and by process; to deal them to halves in an order that does not depend on these,
    # clusters and correctness must be known before
    several_shapes = subject.processes.gather(len(subject.probe.stacks) > 1)
    scattered = settings.groups is None and (any(several_shapes) or len(several_shapes) > 1)
    if settings.kmeans is None and not sites and not scattered:
        return None
    return survey(
        subject,
        trial,
        sites,
        settings.target_class,
        embedding,
        embedding_required=settings.kmeans is not None,
        spread=settings.removed_to.kind == "optimal",
    )


@dataclass(frozen=True, eq=False)
class Clustered:
    """Hold the assignment of samples to clusters and halves.

    Attributes:
        assignment: gives samples their clusters and halves.
        naming: names and source of the clusters; names of classes are added once their ids are known.
        groups: samples that must not be divided between halves; None: there are no groups.
    """

    assignment: Assignment
    naming: ClusterNaming
    groups: SampleGroups | None


def assign_clusters(
    subject: Subject, settings: ImportanceSettings, surveyed: Survey | None, before: PreviousMeasurement | None
) -> Clustered:
    """Find clusters, and deal halves, as far as this must be done before the importance pass."""
    names: dict[int, str] = {}
    local = history = groups = half = None
    if settings.kmeans is not None:
        assert surveyed is not None
        table = surveyed.samples
        assert table.embedding is not None
        number = settings.kmeans.assign(table.embedding, table.index, before, settings.seed)
        # all processes take the first one's clusters: the same code may round differently on another machine
        named, history = subject.processes.from_first(keep_identities(number, table.index, before)[::2])
        local = named[table.rows(subject.probe.index)]
    elif settings.clusters == "dataloaders":
        local, names = assign_by_loader(subject)
    elif settings.class_clusters() is None:
        local, names = assign_by_callable(settings.clusters, subject)  # type: ignore[arg-type]
    clusters = settings.class_clusters() if local is None else local
    assert clusters is not None
    if settings.groups is not None:
        groups = assign_groups(settings.groups, subject, local)
        half = groups.half
    elif surveyed is not None:
        half = deal_beforehand(subject, settings, surveyed, clusters)
    naming = ClusterNaming(
        kind_of(settings.clusters), describe_source(settings.clusters), names, history, settings.class_names
    )
    halves = Halves(are_copies(subject.probe.fingerprint))
    return Clustered(Assignment(clusters, half, settings.classes, halves), naming, groups)


def deal_beforehand(
    subject: Subject,
    settings: ImportanceSettings,
    surveyed: Survey,
    clusters: Int[np.ndarray, " local"] | ClassClusters,
) -> Int[np.ndarray, " local"]:
    """Deal the samples of all processes to halves by fixed keys; return the halves of this process's samples."""
    table = surveyed.samples
    if isinstance(clusters, ClassClusters):
        cluster = clusters.of(table.label, table.predicted)
    else:
        shares = subject.processes.gather((subject.probe.index, clusters))
        cluster = np.empty(len(table), np.int64)
        for index, local in shares:
            cluster[table.rows(index)] = local
    cluster = np.where(counted(table, settings.classes), cluster, -1)
    half = deal_by_keys(table.index, cluster, table.correct, table.fingerprint, settings.seed)
    return half[table.rows(subject.probe.index)]


def score_neurons(
    subject: Subject,
    settings: ImportanceSettings,
    trial: Trial,
    surveyed: Survey | None,
    clustered: Clustered,
    embedding: EmbeddingReader,
) -> Scores:
    """Compute the baselines, as far as they follow from samples, and make the importance pass."""
    sites = sites_of(subject, settings, trial)
    baseline, target = settings.removed_to, settings.explained
    values = baseline_values(subject, baseline, sites, trial, surveyed, settings.target_class, settings.seed)

    def removal_of(site: str, axis: int, n_channels: int) -> Removal:
        """Return the removal at a site, once its axis and number of channels are known."""
        value, kind = baseline.channels(site, n_channels, values), baseline.at(site).kind
        where = replace(sites[site], optional=False)
        return Removal(where, axis, kind, value, target.name, settings.target_class, target.kind)

    donors = subject.donors(baseline.kind, settings.seed)
    request = ScoreRequest(
        sites, settings.attributions, target, settings.target_class, removal_of, settings.seed, trial, donors
    )
    scores = ImportancePass(subject, request).run(clustered.assignment, embedding)
    return compare_baselines(subject, scores, surveyed)


def collect_results(
    subject: Subject,
    settings: ImportanceSettings,
    clustered: Clustered,
    scores: Scores,
    before: PreviousMeasurement | None,
) -> Results:
    """Aggregate the scores over cells, and collect the results; `epoch` and `step` are left at -1.

    Raises:
        InvalidArgument: if no sample is in a cluster, or there are more than 20 clusters.
        NonFiniteOutputs: if no sample has finite outputs.
    """
    samples = scores.samples
    samples.require_finite()
    assert samples.cluster is not None
    assert samples.half is not None
    ids = np.unique(samples.cluster[samples.cluster >= 0])
    if not len(ids):
        asked = "" if settings.classes is None else f", classes={_validate.shown(list(settings.classes), 60)}"
        raise InvalidArgument(
            f"no probe sample is in a cluster: clusters={clustered.naming.source!r}{asked}, and the labels are "
            f"{_validate.shown(np.unique(samples.label).tolist(), 60)}; choose among these"
        )
    by_class = settings.class_clusters()
    naming = clustered.naming if by_class is None else replace(clustered.naming, names=by_class.names(ids))
    if settings.kmeans is None:
        validate_count(len(ids))  # while the batches came, each process counted its own only
    table = cluster_table(samples, ids, naming, before)
    importances = aggregate(subject, settings, scores, table, before)
    sample_group = None
    if clustered.groups is not None:
        sample_group = clustered.groups.number[np.argsort(clustered.groups.index, kind="stable")]
    return Results(
        importances=importances,
        clusters=table,
        sample_index=samples.index,
        sample_fingerprint=samples.fingerprint,
        sample_label=samples.label,
        sample_target=samples.target,
        sample_correct=samples.correct,
        sample_predicted=samples.predicted,
        sample_margin=samples.margin.astype(np.float64),
        sample_cluster=samples.cluster,
        sample_half=samples.half,
        epoch=-1,
        step=-1,
        seed=settings.seed,
        seconds=dict(subject.seconds),
        notes=tuple(importance_notes(settings, scores, importances, naming, ids)),
        activities=scores.activities,
        sample_group=sample_group,
    )
