"""Check importances by ablation: does removing the important neurons hurt more than removing random ones?"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal
from zlib import crc32

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits
from torch import nn

from lightning_neuroimp.ablation.control import RandomControl
from lightning_neuroimp.ablation.early_stopping import rounds
from lightning_neuroimp.ablation.judge import Judge
from lightning_neuroimp.ablation.orders import choose_samples, plan_orders
from lightning_neuroimp.ablation.outcomes import CellBatch, Outcomes, ablate_orders
from lightning_neuroimp.ablation.predictions import LDS_FRACTION
from lightning_neuroimp.ablation.settings import MIN_RANDOM, AblationFaithfulness
from lightning_neuroimp.ablation.specificity import judge_specificity, specificity_orders
from lightning_neuroimp.batches.numbers import rows_of
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Gather, Processes, alone
from lightning_neuroimp.batches.progress import Progress, resolve_progress
from lightning_neuroimp.capture.forward import ForwardFn
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.targets import MARGIN
from lightning_neuroimp.importance.progressive import progressive_orders
from lightning_neuroimp.results.faithfulness import Comparison, Faithfulness, Specificity
from lightning_neuroimp.results.findings.diagnosis import diagnose
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.statistics import false_discovery, points
from lightning_neuroimp.study.probing import draw_again
from lightning_neuroimp.study.same_model import require_same_model

BY_NOTE = "q-values are Benjamini and Yekutieli's, which hold however the tests depend on one another"
"""Note on results whose q-values are not those of Benjamini and Hochberg."""


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
    """Check importances by ablation: does removing the top neurons hurt more than removing random ones?

    Neurons are ranked on one half of each cluster and removed on the other, both ways, with the same removal as in the
    results. The random control is the rankings themselves with the names of the neurons permuted: one permutation a
    draw, for all clusters and halves.

    Args:
        model: the model that the results are of. Left as it was found.
        batches: the same loader or `ProbeSet` as in `neuron_importance`; a loader must give the same order again.
        results: from `neuron_importance`.
        settings: of the check; None: the defaults.
        forward_fn: as in `neuron_importance`.
        batch_size: as in `neuron_importance`.
        gather: as in `neuron_importance`.
        progress: as in `neuron_importance`.

    Returns:
        The results, with `faithfulness` at each site for each attribution.

    Raises:
        InvalidArgument: if the batches do not give the samples that the results are of (their content is compared),
            or the model and `forward_fn` do not give the predictions that the results hold.

    >>> import torch
    >>> from lightning_neuroimp import neuron_importance
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> probe = ProbeSet.from_batches([(torch.randn(40, 2), torch.arange(40) % 2)])
    >>> results = ablation_faithfulness(model, probe, neuron_importance(model, probe, layers="1"))
    >>> results["1"].faithfulness.gap.shape  # two clusters, and all of them
    (3,)
    """
    settings = AblationFaithfulness() if settings is None else settings
    processes = Processes(gather)
    with undisturbed(model):
        probe = draw_again(batches, results, processes)
        subject = Subject(model, probe, forward_fn, batch_size, processes, resolve_progress(progress))
        checked = measure_faithfulness(subject, results, settings, verify=True)
    return checked.replace(findings=diagnose(checked))


def measure_faithfulness(
    subject: Subject, results: Results, settings: AblationFaithfulness, *, verify: bool = False
) -> Results:
    """Check results by ablation, inside `undisturbed`; leave findings to the caller.

    Args:
        subject: the model and all samples that the results are of.
        results: of the importance pass.
        settings: what is measured.
        verify: whether to compare the model's predictions with those in the results; not needed if it is known to be
            the same model.

    Raises:
        InvalidArgument: if the model does not give the predictions that the results hold.
    """
    check = _Check(subject, results, settings, verify=verify)
    by_site = {
        site: [importance for importance in results.importances if importance.site == site] for site in results.sites
    }
    judged: dict[tuple[str, str], Faithfulness] = {}
    notes = [BY_NOTE] if settings.false_discovery == "by" else []
    comparisons: list[Comparison] = []
    with check.progress(list(by_site.values())):
        for site, importances in by_site.items():
            outcome = check.site(importances)
            judged |= {(site, name): found for name, found in outcome.judged.items()}
            comparisons += outcome.comparisons
            notes += outcome.notes
    importances = [
        replace(importance, faithfulness=judged[importance.site, importance.attribution])
        for importance in results.importances
    ]
    return results.replace(
        importances=tuple(_with_discoveries(importances, settings.false_discovery)),
        seconds={**results.seconds, **subject.seconds},
        notes=(*results.notes, *notes),
        comparisons=tuple(comparisons),
    )


@dataclass(frozen=True)
class _SiteOutcome:
    """Hold what the check of one site found.

    Attributes:
        judged: the faithfulness of each attribution, by its name.
        comparisons: of every pair of attributions.
        notes: what a reader should know of the check.
    """

    judged: dict[str, Faithfulness]
    comparisons: list[Comparison]
    notes: list[str]


class _Check:
    """Check the importances of sites, one site after the other, on the same samples.

    Args:
        subject: the model and all samples that the results are of.
        results: of the importance pass.
        settings: what is measured.
        verify: whether to compare the model's predictions with those in the results.
    """

    def __init__(self, subject: Subject, results: Results, settings: AblationFaithfulness, *, verify: bool) -> None:
        self.subject, self.results, self.settings, self._verify = subject, results, settings, verify
        chosen = choose_samples(results, settings.max_samples)
        self._index = results.sample_index[chosen]
        cluster = rows_of(results.clusters.ids, results.sample_cluster[chosen])
        self._cell = 2 * cluster + results.sample_half[chosen]
        self._part = subject.on(self._index)
        self._tick: Callable[[], None] = lambda: None

    @contextmanager
    def progress(self, sites: Sequence[Sequence[Importance]]) -> Iterator[None]:
        """Show one progress bar for the passes at all sites, and add their duration to the subject's seconds.

        Args:
            sites: the importances at each site.
        """
        passes = self._part.count_batches() * sum(
            self.settings.forward_passes(len(importances), importances[0].removal.n_neurons) for importances in sites
        )
        start = time.perf_counter()
        with self.subject.progress("ablation", passes) as self._tick:
            yield
        self.subject.seconds["faithfulness"] = time.perf_counter() - start

    def site(self, importances: Sequence[Importance]) -> _SiteOutcome:
        """Check the rankings of one site.

        Args:
            importances: all attributions at the site.
        """
        removal, results = importances[0].removal, self.results
        donors = self.subject.donors(removal.baseline, results.seed)
        recorder = self.subject.recorder(removal, donors)
        judge = self._judge(importances, recorder)
        # NumPy's BLAS has threads of its own, which would busily wait for work and slow torch's threads down
        with threadpool_limits(1, "blas"):
            judged = {importance.attribution: judge.faithfulness(place) for place, importance in enumerate(importances)}
            comparisons = judge.comparisons()
        if self.settings.specificity:
            for importance in importances:
                found, name = self._specificity(importance, recorder), importance.attribution
                judged[name] = replace(judged[name], specificity=found)
        if self.settings.keep_only:
            for importance, kept in zip(importances, self._kept(judge, recorder), strict=True):
                name = importance.attribution
                judged[name] = replace(judged[name], kept_accuracy=kept[0], random_kept_accuracy=kept[1:])
        notes = []
        if recorder.reason is not None:
            notes.append(f"{removal.site}: each ablation ran the whole network, because {recorder.reason}")
        asked = judge.control.n_draws
        for place, importance in enumerate(importances):
            made = len(judge.control.runs(place))
            if made < asked:
                notes.append(
                    f"{removal.site}: no ranking of {importance.attribution} was ahead of the random orders any more "
                    f"after {made} of the {asked}: its control stopped there"
                )
        return _SiteOutcome(judged, comparisons, notes)

    def _batches(self) -> Iterator[CellBatch]:
        """Yield this process's batches of the ablated samples, with their numbers and cells."""
        for batch, index in self._part.passes():
            yield batch, index, self._cell[rows_of(self._index, index)]

    def _ablate(self, recorder: SuffixRecorder, orders: Sequence[np.ndarray], removed: np.ndarray) -> Outcomes:
        """Remove neurons in given orders from all ablated samples."""
        processes = self.subject.processes
        return ablate_orders(recorder, self._batches(), orders, removed, processes=processes, tick=self._tick)

    def _judge(self, importances: Sequence[Importance], recorder: SuffixRecorder) -> Judge:
        """Ablate the rankings and the first random orders, then more rounds of these until all verdicts are decided."""
        removal, settings, results = importances[0].removal, self.settings, self.results
        removed = points(settings.fractions, removal.n_neurons)
        seed = (results.seed, crc32(removal.where.key.encode()))
        best = None
        if settings.best_order:
            n_cells, processes = 2 * len(results.clusters.ids), self.subject.processes
            best = progressive_orders(recorder, self._batches, removed, n_cells, MARGIN, processes=processes)
        planned = plan_orders(importances, settings, best)
        control = RandomControl([planned.orders[own] for own in planned.own], removed, settings.n_random, seed)
        first, *later = [control.n_draws] if control.exhaustive else rounds(control.n_draws)
        orders = [*planned.orders, *control.extend(range(len(importances)), first, len(planned.orders))]
        outcomes = self._first_round(recorder, orders, removed)
        judge = Judge(importances, outcomes, planned, control, self._groups(outcomes))
        for total in later:
            undecided = judge.undecided()
            if not undecided:
                break
            more = control.extend(undecided, total, len(outcomes.correct))
            outcomes = outcomes.joined(self._ablate(recorder, more, removed))
            judge = Judge(importances, outcomes, planned, control, self._groups(outcomes))
        return judge

    def _first_round(self, recorder: SuffixRecorder, orders: Sequence[np.ndarray], removed: np.ndarray) -> Outcomes:
        """Ablate the first orders, and compare the model with the results if asked for."""
        outcomes = self._ablate(recorder, orders, removed)
        # a model that draws random numbers gives other predictions each time: nothing can be compared
        if self._verify and not any(self.subject.processes.gather(recorder.draws_random)):
            require_same_model(self.subject.model, self.results, outcomes)
        return outcomes

    def _groups(self, outcomes: Outcomes) -> Int[np.ndarray, " sample"] | None:
        """Return the group of each sample of the outcomes."""
        group = self.results.sample_group
        return None if group is None else group[rows_of(self.results.sample_index, outcomes.sample)]

    def _kept(self, judge: Judge, recorder: SuffixRecorder) -> list[Float[np.ndarray, "order row point"]]:
        """Remove all neurons but the most important ones, and all but random ones.

        Returns:
            For each score the accuracy with its own order, then with random ones.
        """
        n_draws = min(MIN_RANDOM, judge.control.n_draws)
        orders = [
            order[:, ::-1]
            for place, own in enumerate(judge.orders.own)
            for order in (judge.orders.orders[own], *(judge.control.order(place, draw) for draw in range(n_draws)))
        ]
        removed = judge.control.n_neurons - judge.control.removed[::-1]
        curves = judge.curves_of(self._ablate(recorder, orders, removed))[..., ::-1]
        return np.split(curves, len(judge.orders.own))

    def _specificity(self, importance: Importance, recorder: SuffixRecorder) -> Specificity:
        """Remove each cluster's top tenth of the neurons from all clusters, and judge the difference."""
        results = self.results
        removed = points([LDS_FRACTION], importance.removal.n_neurons)
        outcomes = self._ablate(recorder, specificity_orders(importance), removed)
        target = results.sample_label[rows_of(results.sample_index, outcomes.sample)]
        counts = results.clusters.class_counts
        classes = np.where((counts > 0).sum(1) == 1, counts.argmax(1), -1)
        return judge_specificity(importance, outcomes, int(removed[0]), target, classes, results.seed)


def _with_discoveries(importances: Sequence[Importance], method: Literal["bh", "by"]) -> list[Importance]:
    """Add false discovery rates, computed over all clusters, sites and attributions together."""
    judged = [importance.faithfulness for importance in importances if importance.faithfulness is not None]
    q_values = false_discovery(np.concatenate([faithfulness.p_value[:-1] for faithfulness in judged]), method)
    parts = np.split(q_values, np.cumsum([len(faithfulness.p_value) - 1 for faithfulness in judged])[:-1])
    return [
        replace(importance, faithfulness=replace(faithfulness, q_value=np.append(part, np.nan)))
        for importance, faithfulness, part in zip(importances, judged, parts, strict=True)
    ]
