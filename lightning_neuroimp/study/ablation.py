"""Ablation without a Trainer: `ablation_faithfulness()` and `deletion_curve()`."""

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

from lightning_neuroimp.ablation.greedy import greedy_orders
from lightning_neuroimp.ablation.judge import LDS_FRACTION, Judge, RandomControl
from lightning_neuroimp.ablation.orders import choose_samples, plan_orders
from lightning_neuroimp.ablation.outcomes import Outcomes, ablate_orders
from lightning_neuroimp.ablation.settings import AblationFaithfulness
from lightning_neuroimp.ablation.specificity import judge_specificity, specificity_orders
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Gather, alone
from lightning_neuroimp.batches.progress import Progress, resolve_progress
from lightning_neuroimp.capture.donors import Donors
from lightning_neuroimp.capture.forward import ForwardFn, predict
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.results.faithfulness import Comparison, Faithfulness, Specificity
from lightning_neuroimp.results.findings.diagnosis import diagnose
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.site import Removal
from lightning_neuroimp.statistics import false_discovery, points, rounds
from lightning_neuroimp.study.probing import probe_of


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
        for sample in choose_samples(results, settings.max_samples)
    }
    by_site = {site: [one for one in results.importances if one.site == site] for site in results.sites}
    checked: dict[tuple[str, str], Faithfulness] = {}
    notes: list[str] = []
    comparisons: list[Comparison] = []
    with undisturbed(model):
        probe = probe_of(results, batches, gather)
        part = probe.select(np.array(list(group_of), np.int64))
        passes = part.count_batches(batch_size) * sum(
            settings.forward_passes(len(ones), ones[0].removal.n_neurons) for ones in by_site.values()
        )
        with resolve_progress(progress)("ablation", passes) as tick:

            def grouped() -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
                for batch, index in part.batches(batch_size):
                    yield batch, index, np.array([group_of[sample] for sample in index.tolist()], np.int64)

            for site, ones in by_site.items():
                removal = ones[0].removal
                replayer = suffix_recorder(model, probe, removal, forward_fn, results.seed)
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
                if len(judge.control.orders) < settings.n_random:
                    notes.append(
                        f"{site}: no ranking was ahead of the random orders any more after {len(judge.control.orders)} of the "
                        f"{settings.n_random}: the control stopped there"
                    )
    importances = [replace(one, faithfulness=checked[one.site, one.attribution]) for one in results.importances]
    checked_results = results.replace(
        importances=tuple(_with_discoveries(importances)),
        seconds={**results.seconds, "faithfulness": time.perf_counter() - start},
        notes=(*results.notes, *notes),
        comparisons=tuple(comparisons),
    )
    return checked_results.replace(findings=diagnose(checked_results))


def suffix_recorder(
    model: nn.Module, probe: ProbeSet, removal: Removal, forward_fn: ForwardFn | None, seed: int
) -> SuffixRecorder:
    donors = Donors(probe, seed) if removal.baseline == "resample" else None
    return SuffixRecorder(
        model, lambda batch: predict(model, batch, forward_fn, removal.target_class), removal, donors=donors
    )


def _check(
    ones: Sequence[Importance],
    settings: AblationFaithfulness,
    ablate: Callable[..., Outcomes],
    grouped: Callable[[], Iterator[tuple[Any, np.ndarray, np.ndarray]]],
    replayer: SuffixRecorder,
    results: Results,
    gather: Gather,
) -> Judge:
    """The curves at one site: rankings and the first random orders, then rounds of more until all is decided."""
    removal, n_groups = ones[0].removal, 2 * len(results.clusters.ids)
    removed = points(settings.fractions, removal.n_neurons)
    seed = [results.seed, crc32(removal.site.encode())]
    control = RandomControl.draw(removed, removal.n_neurons, settings.n_random, seed)
    greedy = greedy_orders(replayer, grouped(), removed, n_groups, gather=gather) if settings.greedy else None
    planned = plan_orders(ones, settings, greedy)
    made, outcomes, judge = 0, None, None
    for total in rounds(settings.n_random):
        orders = [*(planned.orders if outcomes is None else []), *control.orders[made:total, None]]
        more = ablate(grouped(), orders, removed)
        outcomes, made = more if outcomes is None else outcomes.joined(more), total
        judge = Judge(ones, outcomes, planned, control.first(made), _groups(results, outcomes))
        if made < settings.n_random and judge.decided():
            break
    assert judge is not None
    return judge


def _groups(results: Results, outcomes: Outcomes) -> Int[np.ndarray, " sample"] | None:
    """The group of each sample of the outcomes."""
    if results.sample_group is None:
        return None
    place = {sample: row for row, sample in enumerate(results.sample_index.tolist())}
    return results.sample_group[[place[sample] for sample in outcomes.sample.tolist()]]


def _specificity(
    one: Importance,
    ablate: Callable[..., Outcomes],
    grouped: Callable[[], Iterator[tuple[Any, np.ndarray, np.ndarray]]],
    results: Results,
    row_of: dict[int, int],
) -> Specificity:
    n_neurons = one.removal.n_neurons
    removed = points([LDS_FRACTION], n_neurons)
    outcomes = ablate(grouped(), specificity_orders(one), removed)
    target_of = dict(zip(results.sample_index.tolist(), results.sample_label.tolist(), strict=True))
    target = np.array([target_of[sample] for sample in outcomes.sample.tolist()], np.int64)
    counts = results.clusters.class_counts
    classes = np.where((counts > 0).sum(1) == 1, counts.argmax(1), -1)
    return judge_specificity(one, outcomes, int(removed[0]), target, classes, results.seed)


def _with_discoveries(importances: list[Importance]) -> list[Importance]:
    """False discovery rates over all clusters, sites and attributions together."""
    checked = [one.faithfulness for one in importances if one.faithfulness is not None]
    q_values = false_discovery(np.concatenate([one.p_value[:-1] for one in checked]))
    parts = np.split(q_values, np.cumsum([len(one.p_value) - 1 for one in checked])[:-1])
    return [
        replace(one, faithfulness=replace(judged, q_value=np.append(part, np.nan)))
        for one, judged, part in zip(importances, checked, parts, strict=True)
    ]
