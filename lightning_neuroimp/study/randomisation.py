"""Compute importances with randomised weights: scores that survive do not depend on what the model has learned."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm

from lightning_neuroimp import _compat, statistics
from lightning_neuroimp.batches.numbers import rows_of
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Gather, Processes, alone
from lightning_neuroimp.batches.progress import Progress, resolve_progress
from lightning_neuroimp.capture.forward import ForwardFn
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.targets import Target, TargetFn
from lightning_neuroimp.capture.trial import Trial
from lightning_neuroimp.clusters.assignment import Assignment
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.captum import PREFIX, CaptumAttribution
from lightning_neuroimp.importance.attributions.registry import Attribution, AttributionFn, resolve_attributions
from lightning_neuroimp.importance.scoring import ImportancePass, ScoreRequest
from lightning_neuroimp.results.agreement import Randomisation
from lightning_neuroimp.results.findings.diagnosis import diagnose
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.site import OWN
from lightning_neuroimp.study.aggregation import cell_means
from lightning_neuroimp.study.probing import draw_again

MAX_STAGES = 6
"""Upper bound on the number of stages: each takes an importance pass."""

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
        model: the model that the results are of. Left as it was found; it must be possible to copy it.
        batches: the same loader or `ProbeSet` as in `neuron_importance`.
        results: from `neuron_importance`.
        attribution: as in `neuron_importance`; by default those of the results, if all are built in.
        target: as in `neuron_importance`; by default that of the results, if it is built in.
        forward_fn: as in `neuron_importance`.
        batch_size: as in `neuron_importance`.
        seed: of the shuffling.
        gather: as in `neuron_importance`.
        progress: as in `neuron_importance`.

    Returns:
        The results, with `randomisations`.

    Raises:
        InvalidArgument: if the model cannot be copied, a custom attribution or target was not passed again, or the
            batches do not give the samples that the results are of.

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
        if (results.sample_label < 0).any():  # samples without a label, which only forward_fn has told
            subject = subject.on(results.sample_index[results.sample_label >= 0])
        found = measure_randomisation(subject, results, attributions, explained, seed)
    return found.replace(findings=diagnose(found))


def same_functions(results: Results, attribution: Any, target: Any) -> tuple[tuple[Attribution, ...], Target]:
    """Return the attributions and the target that results were computed with.

    Args:
        results: from `neuron_importance`; they bring back what is built in.
        attribution: what was passed; None: those of the results.
        target: what was passed; None: that of the results.

    Raises:
        InvalidArgument: if a custom one was not passed again, or another one was passed.
    """
    removal = results.importances[0].removal
    own = [importance.attribution for importance in results.importances if not _tells_its_score(importance)]
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
    kinds = {importance.attribution: importance.attribution_kind for importance in results.importances}
    for passed in attributions:
        if kinds.get(passed.name, passed.kind) != passed.kind:
            raise InvalidArgument(
                f"attribution {passed.name!r} of the results is {_describe(kinds[passed.name])}, and the one passed is "
                f"{_describe(passed.kind)}: pass the same as to neuron_importance"
            )
    if explained.kind != removal.target_kind:
        raise InvalidArgument(
            f"the target of the results is {_describe(removal.target_kind)}, and the one passed is "
            f"{_describe(explained.kind)}: pass the same as to neuron_importance"
        )
    return attributions, explained


def _describe(kind: str) -> str:
    """Say in words what an attribution or target of some kind is, for messages."""
    return "one of your own" if kind == OWN else f"the built-in {kind!r}"


def _tells_its_score(importance: Importance) -> bool:
    """Tell whether the name of a score brings it back: not that of a user's function, or another name."""
    kind, name = importance.attribution_kind, importance.attribution.partition("(")[0]
    return kind != OWN and (name == kind or (kind == CaptumAttribution.kind and name.startswith(PREFIX)))


def measure_randomisation(
    subject: Subject, results: Results, attributions: tuple[Attribution, ...], target: Target, seed: int
) -> Results:
    """Compute importances with randomised weights, inside `undisturbed`; leave findings to the caller.

    Args:
        subject: the model and all samples that the results are of.
        results: of the importance pass.
        attributions: the attributions of the results.
        target: the target of the results.
        seed: of the shuffling.

    Raises:
        InvalidArgument: if the model cannot be copied.
    """
    removals = {importance.site: importance.removal for importance in results.importances}
    first = next(iter(removals.values()))
    sites = {site: removal.where for site, removal in removals.items()}
    request = ScoreRequest(
        sites,
        attributions,
        target,
        first.target_class,
        lambda site, axis, n_channels: removals[site],
        results.seed,
        Trial(sites, {site: removal.axis for site, removal in removals.items()}),
        subject.donors(first.baseline, results.seed),
        details=False,
    )
    assigned = results.sample_cluster[rows_of(results.sample_index, subject.probe.index)]
    shuffled = _copy(subject.model)
    _make_plain(shuffled)
    stages, generator = _stages(shuffled), torch.Generator().manual_seed(seed)
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    by_name = {attribution.name: attribution for attribution in attributions}
    for stage in stages:
        _shuffle(stage, generator)
        with undisturbed(shuffled):
            other = subject.of(shuffled)
            scores = ImportancePass(other, request).run(Assignment(assigned))
            for importance in results.importances:
                key, ids = (importance.site, importance.attribution), importance.cluster_ids
                if key in scores.moments:
                    score = by_name[importance.attribution]
                    means = cell_means(other, scores, ids, importance.removal, score, target, results.seed)
                    found.setdefault(key, []).append(_agreement(importance, means.count, means.mean))
    names = tuple(", ".join(name for name, _ in stage) for stage in stages)
    return results.replace(
        randomisations=tuple(
            Randomisation(site, name, names, np.stack(correlations)) for (site, name), correlations in found.items()
        )
    )


def _agreement(importance: Importance, count: np.ndarray, half_mean: np.ndarray) -> Float[np.ndarray, " cluster"]:
    """Correlate the ranks of each cluster's importances with those computed with randomised weights.

    Args:
        importance: computed with the model's own weights.
        count: number of samples in each cell.
        half_mean: mean score in each cell, with randomised weights.
    """
    weight = (count / np.maximum(count.sum(0), 1))[..., None]
    after = np.where(weight > 0, half_mean * weight, 0.0).sum(0)
    pairs = zip(importance.mean, after, strict=True)
    return np.array([statistics.rank_correlation(*pair) for pair in pairs], float)


def _copy(model: nn.Module) -> nn.Module:
    """Copy a model; refuse one that cannot be copied."""
    # a LightningModule refers to its trainer, which refers to data, loggers and all else: that is shared, not copied
    known: dict[int, Any] = {id(value): value for value in _compat.lightning_attachments(model)}
    # torch copies no tensor with a graph, such as a weight that a hook has computed from others
    known |= {id(value): value.detach().clone() for value in _computed(model)}
    try:
        return copy.deepcopy(model, known)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidArgument(
            f"the model cannot be copied, which randomised weights need: {type(error).__name__}: {str(error)[:120]}; "
            "define __deepcopy__, or leave out the check by randomised weights"
        ) from error


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors with a graph that modules have as attributes, also in lists, tuples and dictionaries."""
    for module in model.modules():
        for value in list(vars(module).values()):
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            yield from (part for part in list(held) if isinstance(part, Tensor) and part.grad_fn is not None)


def _make_plain(model: nn.Module) -> None:
    """Replace weights that are computed from others, by norms or pruning, by plain ones with the same values.

    So each entry of a weight that the model uses is moved, as in a model that was never reparametrised: the parts that
    such a weight is computed from have other meanings, and a pruned one would come back.

    Raises:
        InvalidArgument: if a weight cannot be replaced.
    """
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            try:
                _make_plain_module(module)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:
                raise InvalidArgument(
                    f"the weights of layer {name!r} are computed from others, and cannot be randomised: "
                    f"{type(error).__name__}: {str(error)[:100]}; leave out the check by randomised weights, or pass a "
                    "model with plain weights (torch.nn.utils.parametrize.remove_parametrizations)"
                ) from error


def _make_plain_module(module: nn.Module) -> None:
    if parametrize.is_parametrized(module):
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            weight = getattr(module, name)
            if not isinstance(weight, nn.Parameter):  # a buffer, where it is computed from several parts
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    if isinstance(module, torch.jit.ScriptModule):
        return
    # older ways, by hooks: the parts of a weight are named after it
    parameters, buffers = dict(module.named_parameters(recurse=False)), dict(module.named_buffers(recurse=False))
    for key in parameters:
        name, _, part = key.rpartition("_")
        with suppress(ValueError):  # no such hook: it is only named so
            if part == "orig" and f"{name}_mask" in buffers:
                prune.remove(module, name)
            elif part == "orig" and f"{name}_u" in buffers:
                remove_spectral_norm(module, name)
            elif part == "v" and f"{name}_g" in parameters:
                remove_weight_norm(module, name)


def _stages(model: nn.Module) -> list[Stage]:
    """Group the modules that hold weights into at most six stages, the last modules first."""
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
    """Shuffle the entries of every parameter of a stage's modules, in place."""
    with torch.no_grad():
        for _, module in stage:
            for name, parameter in module.named_parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                try:
                    parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, NotImplementedError) as error:
                    raise InvalidArgument(
                        f"parameter {name!r} of a {type(module).__name__} cannot be shuffled: {type(error).__name__}: "
                        f"{str(error)[:100]}; leave out the check by randomised weights"
                    ) from error
