"""The whole flow without a Trainer: `neuron_importance()` and `ablation_faithfulness()`."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
from torch import nn

from lightning_neuroimp import clusters as clustering
from lightning_neuroimp import faithfulness
from lightning_neuroimp.attribution import Attribution, AttributionFn, resolve_attributions
from lightning_neuroimp.batches import ForwardFn, forward_logits
from lightning_neuroimp.clusters import Clusters, EmbeddingTap, KMeansClusters
from lightning_neuroimp.deletion import ablate_orders
from lightning_neuroimp.faithfulness import AblationFaithfulness
from lightning_neuroimp.isolation import undisturbed
from lightning_neuroimp.passes import Passes
from lightning_neuroimp.probe import Gather, ProbeSet, alone
from lightning_neuroimp.progress import Progress, resolve_progress
from lightning_neuroimp.removal import TargetFn, check_baseline, check_target
from lightning_neuroimp.replay import Replayer
from lightning_neuroimp.results import Faithfulness, Importance, Removal, Results
from lightning_neuroimp.sites import Site, find_sites
from lightning_neuroimp.statistics import points


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
    baseline: str = "zero",
    forward_fn: ForwardFn | None = None,
    max_samples: int = 1024,
    max_bytes: int = 2**30,
    batch_size: int | None = None,
    seed: int = 0,
    previous: Results | None = None,
    gather: Gather = alone,
    progress: bool | Progress = False,
    epoch: int = -1,
    step: int = -1,
) -> Results:
    """Importance of every neuron of some layers for every cluster of samples.

    Takes one forward and one backward pass per batch of the probe set for all layers and attributions together, and
    one forward pass before where KMeans needs embeddings or the baseline is the mean.

    Args:
        model: a classifier; called with the inputs of a batch, unless `forward_fn` is given. Left as it was found.
        batches: a loader, from which a probe set is drawn, or a `ProbeSet`.
        layers: names or globs as in `model.named_modules()`, or `Site`s; their outputs' channels are the neurons.
        clusters: "labels", `KMeansClusters(...)`, or a callable `batch -> one integer or string per sample`.
        attribution: "gradient_x_activation", "gradient", "activation", "random", a callable
            `SiteBatch -> (sample, neuron) scores`, or several of these.
        target: the scalar explained per sample: "margin", "logit", "log_probability", "probability", or a callable
            `(logits, classes) -> (sample,)`.
        baseline: what a removed neuron is set to: "zero", or "mean" over the probe set.
        forward_fn: `forward_fn(model, batch) -> (logits, targets)` for batches other than `(inputs, targets)`.
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
    check_baseline(baseline)
    clustering.check_clusters(clusters)
    sites = find_sites(model, layers)
    kmeans = clusters if isinstance(clusters, KMeansClusters) else None
    with undisturbed(model):
        # drawn inside: to iterate over a DataLoader moves torch's random state
        probe = _probe(batches, max_samples, max_bytes, seed)
        table = None if previous is None or not _same_samples(probe, previous, gather) else previous.clusters
        passes = Passes(model, probe, sites, forward_fn, batch_size, gather, resolve_progress(progress))
        tap = EmbeddingTap(model, None if kmeans is None else kmeans.embedding)
        names: dict[int, str] = {}
        assigned = means = history = None
        if kmeans is not None or baseline == "mean":
            survey, means = passes.survey(tap, required=kmeans is not None)
        if kmeans is not None:
            number = kmeans.assign(survey.embedding, survey.index, table, seed)
            # everybody takes the first process's clusters: the same code may round differently elsewhere
            named, history = gather(clustering.keep_identities(number, survey.index, table)[::2])[0]
            place = dict(zip(survey.index.tolist(), named.tolist(), strict=True))
            assigned = np.array([place[sample] for sample in probe.index.tolist()], np.int64)
        elif callable(clusters):
            assigned, names = clustering.assign_by_callable(clusters, probe, batch_size, gather)

        def removal_of(site: str, axis: int, n_neurons: int) -> Removal:
            value = means[site] if means is not None and baseline == "mean" else np.zeros(n_neurons)
            return Removal(site, axis, baseline, value, target_name)

        samples, moments, removals = passes.score(tap, assigned, attributions, target_fn, removal_of, seed)
    if clusters == "labels":
        names = {int(key): f"label {key}" for key in np.unique(samples.cluster)}
    samples.check()
    ids = np.unique(samples.cluster[samples.cluster >= 0])
    if kmeans is None:
        clustering.check_number(len(ids))  # each process has seen its own only
    if history is None:
        history = np.stack([samples.cluster, samples.index], 1)[samples.cluster >= 0]
    importances = []
    notes = [f"{name}: passed over, {reason}" for name, reason in passes.skipped.items()]
    for site, removal in removals.items():
        for one in attributions:
            count, (mean, size, square, deviation), left_out = moments[site, one.name].means(
                ids, removal.n_neurons, gather
            )
            importances.append(
                Importance(removal, one.name, ids, count, mean, size, square, deviation, non_finite=left_out)
            )
            if left_out:
                notes.append(
                    f"{site}: {left_out} of {len(samples.index)} samples left out of {one.name}, whose values were "
                    "not finite"
                )
    left_out = int((~samples.finite).sum())
    if left_out:
        notes.append(f"{left_out} of {len(samples.index)} samples left out, whose outputs were not finite")
    described = clustering.describe(
        clustering.describe_source(clusters),
        names,
        ids,
        samples.cluster,
        samples.index,
        samples.target,
        samples.correct,
        samples.embedding,
        samples.n_classes,
        table,
        history,
    )
    return Results(
        tuple(importances),
        described,
        samples.index,
        samples.fingerprint,
        samples.target,
        samples.correct,
        samples.cluster,
        samples.half,
        epoch,
        step,
        int(seed),
        dict(passes.seconds),
        tuple(notes),
    )


def ablation_faithfulness(
    model: nn.Module,
    batches: Iterable[Any] | ProbeSet,
    results: Results,
    settings: AblationFaithfulness | None = None,
    *,
    forward_fn: ForwardFn | None = None,
    batch_size: int | None = None,
    gather: Gather = alone,
    progress: bool | Progress = False,
) -> Results:
    """Does removing the important neurons hurt more than removing random ones?

    Neurons are ranked on one half of each cluster and removed on the other, both ways, in the way of the removal that
    the results were computed for. The random control shares one order per draw between all clusters and halves.

    Args:
        model: the one that the results are of. Left as it was found.
        batches: the same loader or `ProbeSet` as in `neuron_importance`; a loader must give the same order again.
        results: its outcome.
        settings: how much is measured.
        forward_fn: as in `neuron_importance`.
        batch_size: as in `neuron_importance`.
        gather: as in `neuron_importance`.
        progress: as in `neuron_importance`.

    Returns:
        The results, with `faithfulness` at each site for each attribution.

    Raises:
        ValueError: if the batches do not give the samples that the results are of (their content is compared).
    """
    settings = AblationFaithfulness() if settings is None else settings
    start = time.perf_counter()
    row_of = {key: row for row, key in enumerate(results.clusters.ids.tolist())}
    group_of = {
        int(results.sample_index[sample]): 2 * row_of[int(results.sample_cluster[sample])]
        + int(results.sample_half[sample])
        for sample in faithfulness.choose_samples(results, settings.max_samples)
    }
    by_site = {site: [one for one in results.importances if one.site == site] for site in results.sites}
    checked: dict[tuple[str, str], Faithfulness] = {}
    notes: list[str] = []
    with undisturbed(model):
        # the smallest keys of the same stream are the same samples, whatever bounds were set then
        probe = _probe(batches, len(results.sample_index), 2**62, results.seed)
        if not _same_samples(probe, results, gather):
            raise ValueError(
                f"the batches do not give the {len(results.sample_index)} probe samples that the results are of: pass "
                "the loader that neuron_importance was called with, or one ProbeSet to both if it shuffles"
            )
        part = probe.select(np.array(list(group_of), np.int64))
        passes = part.count_batches(batch_size) * sum(
            settings.forward_passes(len(ones), ones[0].removal.n_neurons) for ones in by_site.values()
        )
        with resolve_progress(progress)("ablation", passes) as tick:
            for site, ones in by_site.items():
                removal = ones[0].removal
                removed = points(settings.fractions, removal.n_neurons)
                generator = np.random.default_rng([results.seed, crc32(site.encode())])
                control = np.stack([generator.permutation(removal.n_neurons) for _ in range(settings.n_random)])
                rankings = faithfulness.rankings(ones)
                grouped = (
                    (batch, np.array([group_of[sample] for sample in index.tolist()], np.int64))
                    for batch, index in part.batches(batch_size)
                )
                replayer = Replayer(model, lambda batch: forward_logits(model, batch, forward_fn, check=False), removal)
                outcomes = ablate_orders(
                    replayer,
                    grouped,
                    [*rankings, *control[:, None]],
                    removed,
                    2 * len(row_of),
                    gather=gather,
                    tick=tick,
                )
                if replayer.reason is not None:
                    notes.append(f"{site}: each ablation ran the whole network, because {replayer.reason}")
                for position, one in enumerate(ones):
                    judged = faithfulness.judge(one, outcomes, removed, control, position, len(ones))
                    checked[site, one.attribution] = judged
    return results.replace(
        importances=tuple(replace(one, faithfulness=checked[one.site, one.attribution]) for one in results.importances),
        seconds={**results.seconds, "faithfulness": time.perf_counter() - start},
        notes=(*results.notes, *notes),
    )


def _probe(batches: Iterable[Any] | ProbeSet, max_samples: int, max_bytes: int, seed: int) -> ProbeSet:
    if isinstance(batches, ProbeSet):
        return batches
    return ProbeSet.from_batches(batches, max_samples=max_samples, max_bytes=max_bytes, seed=seed)


def _same_samples(probe: ProbeSet, results: Results, gather: Gather) -> bool:
    """Whether the probe set holds the samples that the results are of: the same content under the same numbers."""
    shares = gather((probe.index.tolist(), probe.fingerprint.tolist()))
    found = {pair for share in shares for pair in zip(*share, strict=True)}
    return found == set(zip(results.sample_index.tolist(), results.sample_fingerprint.tolist(), strict=True))
