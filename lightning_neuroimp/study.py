"""The whole flow without a Trainer: `neuron_importance()` and `ablation_faithfulness()`."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Int
from threadpoolctl import threadpool_limits
from torch import nn

from lightning_neuroimp import agreement, damage, faithfulness
from lightning_neuroimp import clusters as clustering
from lightning_neuroimp.attribution import Attribution, AttributionFn, resolve_attributions
from lightning_neuroimp.batches import ForwardFn, forward_logits
from lightning_neuroimp.batches import batch_size as samples_in
from lightning_neuroimp.clusters import Clusters, EmbeddingTap, KMeansClusters
from lightning_neuroimp.deletion import Outcomes, ablate_orders, greedy_orders
from lightning_neuroimp.faithfulness import AblationFaithfulness
from lightning_neuroimp.isolation import undisturbed
from lightning_neuroimp.passes import Passes
from lightning_neuroimp.probe import Gather, ProbeSet, alone
from lightning_neuroimp.progress import Progress, resolve_progress
from lightning_neuroimp.removal import TargetFn, check_baseline, check_target
from lightning_neuroimp.replay import Replayer
from lightning_neuroimp.results import (
    Comparison,
    DeletionCurve,
    Faithfulness,
    Importance,
    Removal,
    Results,
    Specificity,
)
from lightning_neuroimp.sites import Site, find_sites
from lightning_neuroimp.statistics import false_discovery, points, rounds


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
        earlier = None if previous is None or not _same_samples(probe, previous, gather) else previous
        table = None if earlier is None else earlier.clusters
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
            found = Importance(
                removal,
                one.name,
                ids,
                count,
                mean,
                size,
                square,
                deviation,
                non_finite=left_out,
                reliability=agreement.reliability(mean, count),
            )
            importances.append(_with_drift(found, earlier))
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
    comparisons: list[Comparison] = []
    with undisturbed(model):
        part = probe_of(results, batches, gather).select(np.array(list(group_of), np.int64))
        passes = part.count_batches(batch_size) * sum(
            settings.forward_passes(len(ones), ones[0].removal.n_neurons) for ones in by_site.values()
        )
        with resolve_progress(progress)("ablation", passes) as tick:

            def grouped() -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
                for batch, index in part.batches(batch_size):
                    yield batch, index, np.array([group_of[sample] for sample in index.tolist()], np.int64)

            for site, ones in by_site.items():
                removal = ones[0].removal
                replayer = Replayer(model, lambda batch: forward_logits(model, batch, forward_fn, check=False), removal)
                ablate = partial(ablate_orders, replayer, gather=gather, tick=tick)
                judge = _check(ones, settings, ablate, grouped, replayer, results, gather)
                # NumPy's BLAS has threads of its own, which would go on waiting for work beside torch's
                with threadpool_limits(1, "blas"):
                    judged = [judge.faithfulness(position) for position in range(len(ones))]
                    comparisons += judge.comparisons()
                for one, found in zip(ones, judged, strict=True):
                    if settings.specificity:
                        found = replace(found, specificity=_specificity(one, ablate, grouped, results, row_of))
                    checked[site, one.attribution] = found
                if replayer.reason is not None:
                    notes.append(f"{site}: each ablation ran the whole network, because {replayer.reason}")
                if len(judge.control) < settings.n_random:
                    notes.append(
                        f"{site}: no ranking was ahead of the random orders any more after {len(judge.control)} of the "
                        f"{settings.n_random}: the control stopped there"
                    )
    importances = [replace(one, faithfulness=checked[one.site, one.attribution]) for one in results.importances]
    return results.replace(
        importances=tuple(_with_discoveries(importances)),
        seconds={**results.seconds, "faithfulness": time.perf_counter() - start},
        notes=(*results.notes, *notes),
        comparisons=tuple(comparisons),
    )


def deletion_curve(
    model: nn.Module,
    batches: Iterable[Any] | ProbeSet,
    ranking: Sequence[int] | Int[np.ndarray, " neuron"],
    *,
    layer: str | Site,
    fractions: Sequence[float] = AblationFaithfulness.fractions,
    baseline: str = "zero",
    forward_fn: ForwardFn | None = None,
    max_samples: int = 512,
    batch_size: int | None = None,
    seed: int = 0,
) -> DeletionCurve:
    """Accuracy and margin left when a layer's neurons are removed in an order of one's own.

    To judge a ranking, compare with random orders, and take other samples than it was made from, as
    `ablation_faithfulness` does.

    Args:
        model: a classifier. Left as it was found.
        batches: a loader, from which a probe set is drawn, or a `ProbeSet`.
        ranking: every neuron's number once, first removed first; the reverse gives a least-important-first curve.
        layer: whose neurons.
        fractions: shares of the neurons to remove, each rounded up, without repeats.
        baseline: what a removed neuron is set to: "zero", or "mean" over the probe set.
        forward_fn: as in `neuron_importance`.
        max_samples: bound of the probe set.
        batch_size: as in `neuron_importance`.
        seed: of the probe set.

    Raises:
        ValueError: if the ranking does not hold each neuron once, or for what `neuron_importance` refuses.
    """
    probe = _probe(batches, max_samples, 2**62, seed)
    found = neuron_importance(
        model,
        probe,
        layers=layer,
        clusters=lambda batch: np.zeros(samples_in(batch), np.int64),
        attribution="activation",
        baseline=baseline,
        forward_fn=forward_fn,
        batch_size=batch_size,
        seed=seed,
    )
    removal = found.importances[0].removal
    order = np.asarray(ranking, np.int64).reshape(-1)
    if not np.array_equal(np.sort(order), np.arange(removal.n_neurons)):
        different = len(set(order.tolist()))
        numbers = f", {different} different ones from {order.min()} to {order.max()}" if different else ""
        raise ValueError(
            f"ranking must hold the number of each of the {removal.n_neurons} neurons of layer {removal.site!r} once, "
            f"got {len(order)} numbers{numbers}"
        )
    removed = points(fractions, removal.n_neurons)
    with undisturbed(model):
        replayer = Replayer(model, lambda batch: forward_logits(model, batch, forward_fn, check=False), removal)
        data = ((batch, index, np.zeros(len(index), np.int64)) for batch, index in probe.batches(batch_size))
        outcomes = ablate_orders(replayer, data, [order[None]], removed)
    return DeletionCurve(
        removed,
        outcomes.correct[0].mean(1),
        outcomes.margin[0].mean(1),
        float(outcomes.intact_correct.mean()),
        float(outcomes.intact_margin.mean()),
    )


def _check(
    ones: Sequence[Importance],
    settings: AblationFaithfulness,
    ablate: Callable[..., Outcomes],
    grouped: Callable[[], Iterator[tuple[Any, np.ndarray, np.ndarray]]],
    replayer: Replayer,
    results: Results,
    gather: Gather,
) -> faithfulness.Judge:
    """The curves at one site: rankings and the first random orders, then rounds of more until all is decided."""
    removal, n_groups = ones[0].removal, 2 * len(results.clusters.ids)
    removed = points(settings.fractions, removal.n_neurons)
    seed = [results.seed, crc32(removal.site.encode())]
    generator = np.random.default_rng(seed)
    control = np.stack([generator.permutation(removal.n_neurons) for _ in range(settings.n_random)])
    greedy = greedy_orders(replayer, grouped(), removed, n_groups, gather=gather) if settings.greedy else None
    plan = faithfulness.plan(ones, settings, greedy)
    made, outcomes, judge = 0, None, None
    for total in rounds(settings.n_random):
        orders = [*(plan.orders if outcomes is None else []), *control[made:total, None]]
        more = ablate(grouped(), orders, removed)
        outcomes, made = more if outcomes is None else outcomes.joined(more), total
        judge = faithfulness.Judge(ones, outcomes, plan, removed, control[:made], settings.n_random, seed)
        if made < settings.n_random and judge.decided():
            break
    assert judge is not None
    return judge


def _specificity(
    one: Importance,
    ablate: Callable[..., Outcomes],
    grouped: Callable[[], Iterator[tuple[Any, np.ndarray, np.ndarray]]],
    results: Results,
    row_of: dict[int, int],
) -> Specificity:
    n_neurons = one.removal.n_neurons
    removed = points([faithfulness.LDS_FRACTION], n_neurons)
    outcomes = ablate(grouped(), damage.specificity_orders(one), removed)
    target_of = dict(zip(results.sample_index.tolist(), results.sample_target.tolist(), strict=True))
    target = np.array([target_of[sample] for sample in outcomes.sample.tolist()], np.int64)
    counts = results.clusters.class_counts
    classes = np.where((counts > 0).sum(1) == 1, counts.argmax(1), -1)
    return damage.judge_specificity(one, outcomes, int(removed[0]), target, classes, results.seed)


def _with_discoveries(importances: list[Importance]) -> list[Importance]:
    """False discovery rates over all clusters, sites and attributions together."""
    checked = [one.faithfulness for one in importances if one.faithfulness is not None]
    q_values = false_discovery(np.concatenate([one.p_value for one in checked]))
    parts = np.split(q_values, np.cumsum([len(one.p_value) for one in checked])[:-1])
    return [
        replace(one, faithfulness=replace(judged, q_value=part))
        for one, judged, part in zip(importances, checked, parts, strict=True)
    ]


def _with_drift(one: Importance, earlier: Results | None) -> Importance:
    """With the change since an earlier measurement of the same samples, where it holds the same site and score."""
    if earlier is None or one.site not in earlier.sites or one.attribution not in earlier.attributions:
        return one
    return replace(one, drift=agreement.drift(one, earlier[one.site, one.attribution], earlier.epoch))


def _probe(batches: Iterable[Any] | ProbeSet, max_samples: int, max_bytes: int, seed: int) -> ProbeSet:
    if isinstance(batches, ProbeSet):
        return batches
    return ProbeSet.from_batches(batches, max_samples=max_samples, max_bytes=max_bytes, seed=seed)


def probe_of(results: Results, batches: Iterable[Any] | ProbeSet, gather: Gather) -> ProbeSet:
    """The probe set that results are of, drawn again.

    Raises:
        ValueError: if the batches do not give its samples.
    """
    # the smallest keys of the same stream are the same samples, whatever bounds were set then
    probe = _probe(batches, len(results.sample_index), 2**62, results.seed)
    if not _same_samples(probe, results, gather):
        raise ValueError(
            f"the batches do not give the {len(results.sample_index)} probe samples that the results are of: pass "
            "the loader that neuron_importance was called with, or one ProbeSet to both if it shuffles"
        )
    return probe


def _same_samples(probe: ProbeSet, results: Results, gather: Gather) -> bool:
    """Whether the probe set holds the samples that the results are of: the same content under the same numbers."""
    shares = gather((probe.index.tolist(), probe.fingerprint.tolist()))
    found = {pair for share in shares for pair in zip(*share, strict=True)}
    return found == set(zip(results.sample_index.tolist(), results.sample_fingerprint.tolist(), strict=True))
