"""Importance without a Trainer: `neuron_importance()`, the whole flow up to ablation."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from lightning_neuroimp.batches.probe import ProbeSet, Stratify
from lightning_neuroimp.batches.processes import Gather, alone
from lightning_neuroimp.batches.progress import Progress, resolve_progress
from lightning_neuroimp.capture.donors import Donors
from lightning_neuroimp.capture.embedding import EmbeddingReader
from lightning_neuroimp.capture.forward import ForwardFn
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.removal import check_baseline, describe_baseline
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.capture.targets import TargetFn, check_target, check_target_class
from lightning_neuroimp.clusters.choice import Clusters, assign_by_callable, check_clusters, describe_source
from lightning_neuroimp.clusters.classes import ClassClusters, check_class_names, check_number, class_numbers
from lightning_neuroimp.clusters.halves import assign_groups, deal_by_keys
from lightning_neuroimp.clusters.identities import keep_identities
from lightning_neuroimp.clusters.kmeans import KMeansClusters
from lightning_neuroimp.clusters.table import describe
from lightning_neuroimp.importance.agreement import drift, reliability
from lightning_neuroimp.importance.attributions.base import Attribution, AttributionFn, resolve_attributions
from lightning_neuroimp.importance.passes import Passes
from lightning_neuroimp.results.findings.diagnosis import diagnose
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.previous import PreviousMeasurement
from lightning_neuroimp.site import Removal, Site
from lightning_neuroimp.study.probing import draw_probe, same_samples


def neuron_importance(
    model: nn.Module,
    batches: Iterable[Any] | ProbeSet,
    *,
    layers: str | Site | Sequence[str | Site],
    clusters: Clusters = "labels",
    attribution: str | AttributionFn | Attribution | Sequence[str | AttributionFn | Attribution] = (
        "gradient_x_activation"
    ),
    target: str | TargetFn = "margin",
    target_class: str | int = "label",
    baseline: str | float = "zero",
    classes: Collection[int | str] | None = None,
    class_names: Sequence[str] = (),
    groups: Callable[..., Any] | None = None,
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
    """Importance of every neuron of some layers for every cluster of samples.

    Takes one forward and one backward pass per batch of the probe set for all layers and attributions together, and
    one forward pass before where KMeans needs embeddings or the baseline is the mean, and one more beside it where the
    baseline is resampled. One more before, too, where samples have several shapes or are spread over processes: the
    halves of the clusters shall not depend on that.

    Args:
        model: a classifier; called with the inputs of a batch, unless `forward_fn` is given. Left as it was found.
        batches: a loader, from which a probe set is drawn, or a `ProbeSet`.
        layers: names or globs as in `model.named_modules()`, or `Site`s; their outputs' channels are the neurons.
        clusters: "labels", "predictions", a mapping from classes to groups, `KMeansClusters(...)`, or a callable
            `batch -> one integer or string per sample`.
        attribution: "gradient_x_activation", "gradient", "activation", "integrated_gradients", "masked_gradient",
            "leave_one_out", "random", a callable `SiteBatch -> (sample, neuron) scores`, or several of these.
        target: the scalar explained per sample: "margin", "logit", "log_probability", "probability", or a callable
            `(logits, classes) -> (sample,)`.
        target_class: whose: of each sample's "label", of the class that is "predicted" for it, or of one class for all,
            by its number. Accuracies are agreement with that class.
        baseline: what a removed neuron is set to: "zero", "mean" over the probe set, "resample" (what another sample
            has), or a number.
        classes: only samples with these labels (numbers, or names in `class_names`) are drawn and clustered.
        class_names: of all classes, for tables.
        groups: `batch -> one integer or string per sample`; samples with equal values, such as patients or copies of
            one image, are never divided between the halves of a cluster.
        stratify: True: the probe set holds as many samples of each label as there is room for; or a callable,
            `batch -> one integer or string per sample`.
        forward_fn: `forward_fn(model, batch) -> (logits, targets)` for batches and models that cannot be told apart;
            or `-> (logits, targets, tokens)`, with tokens true where a token is no padding.
        max_samples: bound of the probe set, over all processes.
        max_bytes: bound of the probe set on the host, per process.
        batch_size: of our passes; by default that of the loader.
        seed: of the probe set, KMeans and random rankings.
        previous: the last epoch's results, whose cluster ids are carried on if they are of the same samples.
        gather: for several processes: passes an object, gets everybody's in rank order.
        progress: True for bars.
        epoch: recorded in the results.
        step: recorded in the results.

    Returns:
        The results, without faithfulness.

    Raises:
        ValueError: for arguments, batches, layers or outputs that cannot be worked with; the message names a remedy.
        FloatingPointError: if no sample has finite outputs.
    """
    attributions = resolve_attributions(attribution)
    target_name, target_fn = check_target(target)
    baseline, target_class = check_baseline(baseline), check_target_class(target_class)
    check_clusters(clusters)
    class_names = check_class_names(class_names)
    chosen = class_numbers(classes, class_names)
    if groups is not None and not callable(groups):
        raise ValueError(f"groups must be a callable (batch) -> one integer or string per sample, got {groups!r}")
    by_class = ClassClusters(clusters, class_names) if isinstance(clusters, str | Mapping) else None
    kmeans = clusters if isinstance(clusters, KMeansClusters) else None
    sites = {str(site): site for site in find_sites(model, layers)}
    with undisturbed(model):
        # drawn inside: to iterate over a DataLoader moves torch's random state
        # labels that only forward_fn knows cannot be told before
        drawn = chosen if forward_fn is None else None
        probe = draw_probe(batches, max_samples, max_bytes, seed, stratify, drawn)
        before = PreviousMeasurement.of(previous) if isinstance(previous, Results) else previous
        earlier = None if before is None or not same_samples(probe, before, gather) else before
        donors = Donors(probe, seed) if baseline == "resample" else None
        passes = Passes(
            model,
            probe,
            list(sites.values()),
            forward_fn,
            batch_size,
            gather,
            resolve_progress(progress),
            target_class,
            donors,
        )
        tap = EmbeddingReader(model, None if kmeans is None else kmeans.embedding)
        names: dict[int, str] = {}
        assigned = history = survey = None
        means: dict[str, np.ndarray] = {}
        # in one pass samples come by shape and by process: to be dealt to the halves in an order of their own, what is
        # known of them must be known before
        several_shapes = gather(len(probe.groups) > 1)
        scattered = groups is None and (any(several_shapes) or len(several_shapes) > 1)
        if kmeans is not None or baseline == "mean" or scattered:
            survey, means = passes.survey(tap, required=kmeans is not None, averaged=baseline == "mean")
        if kmeans is not None:
            assert survey is not None
            number = kmeans.assign(survey.embedding, survey.index, earlier, seed)
            # everybody takes the first process's clusters: the same code may round differently elsewhere
            named, history = gather(keep_identities(number, survey.index, earlier)[::2])[0]
            place = dict(zip(survey.index.tolist(), named.tolist(), strict=True))
            assigned = np.array([place[sample] for sample in probe.index.tolist()], np.int64)
        elif callable(clusters):
            assigned, names = assign_by_callable(clusters, probe, batch_size, gather)
        grouping = by_class if assigned is None else assigned
        assert grouping is not None
        halves = group_of = None
        if groups is not None:
            halves, group_of = assign_groups(groups, probe, batch_size, gather, assigned)
        elif survey is not None:
            halves = deal_by_keys(survey, grouping, probe, chosen, seed, gather)

        def removal_of(site: str, axis: int, n_channels: int) -> Removal:
            constant = baseline if isinstance(baseline, float) else np.nan if baseline == "resample" else 0.0
            value = means[site] if baseline == "mean" else np.full(n_channels, constant)
            where = replace(sites[site], optional=False)
            return Removal(where, axis, describe_baseline(baseline), value, target_name, target_class)

        scores = passes.score(
            tap,
            grouping,
            attributions,
            target_fn,
            removal_of,
            seed,
            fixed_halves=halves,
            classes=chosen,
        )
    samples, moments = scores.samples, scores.moments
    samples.check()
    ids = np.unique(samples.cluster[samples.cluster >= 0])
    if by_class is not None:
        names = by_class.names(ids)
    if not len(ids):
        raise ValueError(
            f"no probe sample is in a cluster: clusters={describe_source(clusters)!r}"
            + (f", classes={list(chosen)}" if chosen is not None else "")
            + f", and the labels are {np.unique(samples.label).tolist()}"
        )
    if kmeans is None:
        check_number(len(ids))  # each process has seen its own only
    if history is None:
        history = np.stack([samples.cluster, samples.index], 1)[samples.cluster >= 0]
    importances = []
    notes = [f"{name}: passed over, {reason}" for name, reason in passes.skipped.items()]
    notes += [f"{name}: {remark}" for name, remark in passes.remarks.items()]
    missing = sorted(set(chosen or ()) - set(np.unique(samples.label).tolist()))
    if missing:
        notes.append(f"no probe sample has a label among {missing}, which classes= asks for")
    if groups is not None:
        whole = [
            names.get(key, f"cluster {key}")
            for key in ids.tolist()
            if len(set(samples.half[samples.cluster == key].tolist())) < 2
        ]
        if whole:
            notes.append(
                f"all samples of {', '.join(map(str, whole))} are in one half, as groups= does not allow to divide "
                "them: there is nothing to judge their rankings on"
            )
    outside = int((samples.finite & (samples.cluster < 0)).sum())
    if outside:
        notes.append(f"{outside} of {len(samples.index)} samples are in no cluster")
    for site, removal in scores.removals.items():
        for one in attributions:
            moment = moments[site, one.name].means(ids, removal.n_neurons, gather)
            left_out = moment.left_out
            found = Importance(
                removal,
                one.name,
                ids,
                moment.count,
                moment.mean,
                moment.abs_mean,
                moment.square_mean,
                moment.deviation,
                moment.first_order,
                moment.effective_samples,
                non_finite=left_out,
                reliability=reliability(moment.mean, moment.count),
            )
            importances.append(found if earlier is None else replace(found, drift=drift(found, earlier)))
            if left_out:
                notes.append(
                    f"{site}: {left_out} of {len(samples.index)} samples left out of {one.name}, whose values were "
                    "not finite"
                )
    left_out = int((~samples.finite).sum())
    if left_out:
        notes.append(f"{left_out} of {len(samples.index)} samples left out, whose outputs were not finite")
    described = describe(
        describe_source(clusters),
        names,
        ids,
        samples.cluster,
        samples.index,
        samples.label,
        samples.correct,
        samples.embedding,
        samples.n_classes,
        earlier,
        history,
        class_names,
    )
    results = Results(
        tuple(importances),
        described,
        samples.index,
        samples.fingerprint,
        samples.label,
        samples.target,
        samples.correct,
        samples.cluster,
        samples.half,
        epoch,
        step,
        int(seed),
        dict(passes.seconds),
        tuple(notes),
        activities=scores.activities,
        sample_group=None
        if group_of is None
        else np.array([group_of[key] for key in samples.index.tolist()], np.int64),
    )
    return results.replace(findings=diagnose(results))
