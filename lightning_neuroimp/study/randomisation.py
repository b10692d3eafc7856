"""weight_randomisation(): scores that survive randomised weights do not depend on what the model has learned."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from lightning_neuroimp import statistics
from lightning_neuroimp.batches.numbers import rows_of
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Gather, Processes, alone
from lightning_neuroimp.batches.progress import Progress, resolve_progress
from lightning_neuroimp.capture.forward import ForwardFn
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.targets import Target, TargetFn
from lightning_neuroimp.clusters.assignment import Assignment
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.base import Attribution, AttributionFn, resolve_attributions
from lightning_neuroimp.importance.scoring import ImportancePass, ScoreRequest
from lightning_neuroimp.results.agreement import Randomisation
from lightning_neuroimp.results.findings.diagnosis import diagnose
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.site import OWN
from lightning_neuroimp.study.probing import draw_again

MAX_STAGES = 6

Stage = list[tuple[str, nn.Module]]


def weight_randomisation(
    model: nn.Module,
    batches: Iterable[Any] | ProbeSet,
    results: Results,
    *,
    attribution: Sequence[str | AttributionFn | Attribution] | None = None,
    target: str | TargetFn | None = None,
    forward_fn: ForwardFn | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    gather: Gather = alone,
    progress: bool | Progress = False,
) -> Results:
    """Measure how far importances follow the model's weights.

    On a copy of the model the weights of more and more modules are shuffled, each tensor's entries among themselves,
    from the output towards the input, in at most 6 stages; importances are computed anew for the same clusters. A score
    whose ranking stays the same when all weights are shuffled says nothing about what the model has learned.

    Takes the passes of `neuron_importance` once for each stage.

    Args:
        model: the one that the results are of. Left as it was found; it must be possible to copy it.
        batches: the same loader or `ProbeSet` as in `neuron_importance`.
        results: its outcome.
        attribution: as in `neuron_importance`; by default those of the results, where all are built in.
        target: as in `neuron_importance`; by default that of the results, where it is built in.
        forward_fn: as in `neuron_importance`.
        batch_size: as in `neuron_importance`.
        seed: of the shuffling.
        gather: as in `neuron_importance`.
        progress: as in `neuron_importance`.

    Returns:
        The results, with `randomisations`.

    Raises:
        InvalidArgument: if the model cannot be copied, an attribution or target of the user's own was not passed
            again, or the batches do not give the samples that the results are of.

    References:
        Adebayo et al., "Sanity checks for saliency maps", 2018, cascading randomisation.

    >>> from lightning_neuroimp import neuron_importance
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> probe = ProbeSet.from_batches([(torch.randn(40, 2), torch.arange(40) % 2)])
    >>> results = weight_randomisation(model, probe, neuron_importance(model, probe, layers="1"))
    >>> results.randomisations[0].stages
    ('2', '0')
    """
    attributions, explained = same_functions(results, attribution, target)
    processes = Processes(gather)
    with undisturbed(model):
        probe = draw_again(batches, results, processes)
        subject = Subject(model, probe, forward_fn, batch_size, processes, resolve_progress(progress))
        found = measure_randomisation(subject, results, attributions, explained, seed)
    return found.replace(findings=diagnose(found))


def same_functions(results: Results, attribution: Any, target: Any) -> tuple[tuple[Attribution, ...], Target]:
    """Return the attributions and the target that results were computed with.

    Args:
        results: they know the built-in ones.
        attribution: what was passed; None: those of the results.
        target: what was passed; None: that of the results.

    Raises:
        InvalidArgument: if one of the user's own is needed and was not passed again, or another one was.
    """
    removal = results.importances[0].removal
    own = [one.attribution for one in results.importances if one.attribution_kind == OWN]
    if attribution is None and own:
        raise InvalidArgument(
            f"the results hold attributions of your own, {sorted(set(own))}, which their names do not bring back: pass "
            "attribution= as to neuron_importance"
        )
    if target is None and removal.target_kind == OWN:
        raise InvalidArgument(
            f"the results explain a target of your own, {removal.target!r}, which its name does not bring back: pass "
            "target= as to neuron_importance"
        )
    attributions = resolve_attributions(results.attributions if attribution is None else attribution)
    explained = Target.of(removal.target if target is None else target)
    kinds = {one.attribution: one.attribution_kind for one in results.importances}
    for one in attributions:
        if kinds.get(one.name, one.kind) != one.kind:
            raise InvalidArgument(
                f"attribution {one.name!r} of the results is {_whose(kinds[one.name])}, and the one passed is "
                f"{_whose(one.kind)}: pass the same as to neuron_importance"
            )
    if explained.kind != removal.target_kind:
        raise InvalidArgument(
            f"the target of the results is {_whose(removal.target_kind)}, and the one passed is "
            f"{_whose(explained.kind)}: pass the same as to neuron_importance"
        )
    return attributions, explained


def _whose(kind: str) -> str:
    return "one of your own" if kind == OWN else f"the built-in {kind!r}"


def measure_randomisation(
    subject: Subject, results: Results, attributions: tuple[Attribution, ...], target: Target, seed: int
) -> Results:
    """Compute importances with randomised weights, inside `undisturbed`; findings are not made here.

    Args:
        subject: the model and all samples that the results are of.
        results: of the importance pass.
        attributions: those of the results.
        target: that of the results.
        seed: of the shuffling.

    Raises:
        InvalidArgument: if the model cannot be copied.
    """
    removals = {one.site: one.removal for one in results.importances}
    first = next(iter(removals.values()))
    request = ScoreRequest(
        {site: removal.where for site, removal in removals.items()},
        attributions,
        target,
        first.target_class,
        lambda site, axis, n_channels: removals[site],
        results.seed,
        subject.donors(first.baseline, results.seed),
        details=False,
    )
    assigned = results.sample_cluster[rows_of(results.sample_index, subject.probe.index)]
    shuffled = _copy(subject.model)
    stages, generator = _stages(shuffled), torch.Generator().manual_seed(seed)
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for stage in stages:
        _shuffle(stage, generator)
        with undisturbed(shuffled):
            moments = ImportancePass(subject.of(shuffled), request).run(Assignment(assigned)).moments
        for importance in results.importances:
            key = (importance.site, importance.attribution)
            if key in moments:
                means = moments[key].means(importance.cluster_ids, importance.removal.n_neurons, subject.processes)
                found.setdefault(key, []).append(_agreement(importance, means.count, means.mean))
    names = tuple(", ".join(name for name, _ in stage) for stage in stages)
    return results.replace(
        randomisations=tuple(
            Randomisation(site, name, names, np.stack(correlations)) for (site, name), correlations in found.items()
        )
    )


def _agreement(importance: Importance, count: np.ndarray, half_mean: np.ndarray) -> Float[np.ndarray, " cluster"]:
    """Return the rank correlation of each cluster's importances with those computed with randomised weights."""
    weight = (count / np.maximum(count.sum(0), 1))[..., None]
    after = np.where(weight > 0, half_mean * weight, 0.0).sum(0)
    pairs = zip(importance.mean, after, strict=True)
    return np.array([statistics.rank_correlation(*pair) for pair in pairs], float)


def _copy(model: nn.Module) -> nn.Module:
    # a LightningModule knows its trainer, which knows everything
    attached = [value for name, value in vars(model).items() if name in ("_trainer", "_fabric") and value is not None]
    try:
        return copy.deepcopy(model, {id(value): value for value in attached})
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidArgument(
            f"the model cannot be copied, which randomised weights need: {type(error).__name__}: {error}"
        ) from error


def _stages(model: nn.Module) -> list[Stage]:
    """Group modules with weights of their own into at most six stages, the last ones first."""
    with_weights = [
        (name or "the model's own", module)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ][::-1]
    if not with_weights:
        raise InvalidArgument("the model has no weights to randomise")
    parts = np.array_split(np.arange(len(with_weights)), min(MAX_STAGES, len(with_weights)))
    return [[with_weights[index] for index in part.tolist()] for part in parts]


def _shuffle(stage: Stage, generator: torch.Generator) -> None:
    with torch.no_grad():
        for _, module in stage:
            for parameter in module.parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
