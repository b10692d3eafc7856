"""Sanity check by weight randomisation: scores that survive it do not depend on what the model has learned."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_neuroimp import statistics
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Gather, alone
from lightning_neuroimp.batches.progress import Progress, resolve_progress
from lightning_neuroimp.capture.donors import Donors
from lightning_neuroimp.capture.embedding import EmbeddingReader
from lightning_neuroimp.capture.forward import ForwardFn
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.targets import TargetFn, check_target
from lightning_neuroimp.importance.attributions.base import Attribution, AttributionFn, resolve_attributions
from lightning_neuroimp.importance.passes import Passes
from lightning_neuroimp.results.agreement import Randomisation
from lightning_neuroimp.results.findings.diagnosis import diagnose
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.site import Removal
from lightning_neuroimp.study.probing import probe_of

MAX_STAGES = 6


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
    """How far importances follow the model's weights.

    On a copy of the model the weights of more and more modules are shuffled, each tensor's entries among themselves,
    from the output towards the input, in at most 6 stages; importances are computed anew for the same clusters. A score
    whose ranking stays the same when all weights are shuffled says nothing about what the model has learned.

    Takes the passes of `neuron_importance` once for each stage.

    Args:
        model: the one that the results are of. Left as it was found; it must be possible to copy it.
        batches: the same loader or `ProbeSet` as in `neuron_importance`.
        results: its outcome.
        attribution: as in `neuron_importance`; by default those of the results, where all have names.
        target: as in `neuron_importance`; by default that of the results, where it has a name.
        forward_fn: as in `neuron_importance`.
        batch_size: as in `neuron_importance`.
        seed: of the shuffling.
        gather: as in `neuron_importance`.
        progress: as in `neuron_importance`.

    Returns:
        The results, with `randomisations`.

    Raises:
        ValueError: if the model cannot be copied, an attribution or target of one's own has not been passed again, or
            the batches do not give the samples that the results are of.

    Source: Adebayo et al., "Sanity checks for saliency maps", 2018, cascading randomisation.
    """
    attributions = resolve_attributions(results.attributions if attribution is None else attribution)
    removals = {one.site: one.removal for one in results.importances}
    first = next(iter(removals.values()))
    _, target_fn = check_target(first.target if target is None else target)
    shuffled = _copy(model)
    stages = _stages(shuffled)
    generator = torch.Generator().manual_seed(seed)
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    number = dict(zip(results.sample_index.tolist(), results.sample_cluster.tolist(), strict=True))
    with undisturbed(model):
        probe = probe_of(results, batches, gather)
        assigned = np.array([number[sample] for sample in probe.index.tolist()], np.int64)
        for stage in stages:
            _shuffle(stage, generator)
            with undisturbed(shuffled):
                passes = Passes(
                    shuffled,
                    probe,
                    [removal.where for removal in removals.values()],
                    forward_fn,
                    batch_size,
                    gather,
                    resolve_progress(progress),
                    first.target_class,
                    Donors(probe, results.seed) if first.baseline == "resample" else None,
                )

                def removal_of(site: str, axis: int, n_channels: int) -> Removal:
                    return removals[site]

                tap = EmbeddingReader(shuffled, None)
                moments = passes.score(tap, assigned, attributions, target_fn, removal_of, results.seed).moments
            for one in results.importances:
                if (one.site, one.attribution) in moments:
                    moment = moments[one.site, one.attribution].means(one.cluster_ids, one.removal.n_neurons, gather)
                    weight = (moment.count / np.maximum(moment.count.sum(0), 1))[..., None]
                    after = np.where(weight > 0, moment.mean * weight, 0.0).sum(0)
                    pairs = zip(one.mean, after, strict=True)
                    correlation = np.array([statistics.rank_correlation(*pair) for pair in pairs], float)
                    found.setdefault((one.site, one.attribution), []).append(correlation)
    names = tuple(", ".join(name for name, _ in stage) for stage in stages)
    results = results.replace(
        randomisations=tuple(
            Randomisation(site, name, names, np.stack(correlations)) for (site, name), correlations in found.items()
        )
    )
    return results.replace(findings=diagnose(results))


def _copy(model: nn.Module) -> nn.Module:
    # a LightningModule knows its trainer, which knows everything
    attached = [value for name, value in vars(model).items() if name in ("_trainer", "_fabric") and value is not None]
    try:
        return copy.deepcopy(model, {id(value): value for value in attached})
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"the model cannot be copied, which randomised weights need: {type(error).__name__}: {error}"
        ) from error


def _stages(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Modules with weights of their own, the last ones first, in at most six groups."""
    with_weights = [
        (name or "the model's own", module)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ][::-1]
    if not with_weights:
        raise ValueError("the model has no weights to randomise")
    parts = np.array_split(np.arange(len(with_weights)), min(MAX_STAGES, len(with_weights)))
    return [[with_weights[index] for index in part.tolist()] for part in parts]


def _shuffle(stage: Sequence[tuple[str, nn.Module]], generator: torch.Generator) -> None:
    with torch.no_grad():
        for _, module in stage:
            for parameter in module.parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
