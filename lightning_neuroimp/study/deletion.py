"""Measure the deletion curve of a user's own order of a layer's neurons."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from lightning_neuroimp import _validate
from lightning_neuroimp.ablation.outcomes import ablate_orders
from lightning_neuroimp.ablation.settings import AblationFaithfulness
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.structure import to_device
from lightning_neuroimp.capture.baselines import Baseline, BaselineLike
from lightning_neuroimp.capture.cache import ActivationCache
from lightning_neuroimp.capture.forward import ForwardFn
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.suffix.randomness import RandomSources
from lightning_neuroimp.capture.trial import try_out
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.faithfulness import DeletionCurve
from lightning_neuroimp.site import Removal, Site
from lightning_neuroimp.statistics import points
from lightning_neuroimp.study.baselines import averaged_sites, baseline_values
from lightning_neuroimp.study.probing import draw_probe
from lightning_neuroimp.study.survey import survey


def deletion_curve(
    model: nn.Module,
    batches: Iterable[Any] | ProbeSet,
    ranking: Sequence[int] | Int[np.ndarray, " neuron"],
    *,
    layer: str | Site,
    fractions: Sequence[float] = AblationFaithfulness.fractions,
    baseline: BaselineLike = "zero",
    forward_fn: ForwardFn | None = None,
    max_samples: int = 512,
    batch_size: int | None = None,
    seed: int = 0,
    ignore_index: int | None = None,
) -> DeletionCurve:
    """Measure the accuracy and margin left when a layer's neurons are removed in a given order.

    To judge a ranking, compare with random orders on other samples than it was made from, as `ablation_faithfulness`
    does.

    Args:
        model: a classifier. Left as it was found.
        batches: a loader, from which a probe set is drawn, or a `ProbeSet`.
        ranking: number of every neuron once, first removed first; the reverse gives a least-important-first curve.
        layer: name or `Site` of the layer whose neurons are removed.
        fractions: shares of the neurons to remove, each rounded up, without repeats.
        baseline: what a removed neuron is set to, as in `neuron_importance`.
        forward_fn: as in `neuron_importance`.
        max_samples: upper bound on the number of samples in the probe set.
        batch_size: as in `neuron_importance`.
        seed: of the probe set.
        ignore_index: as in `neuron_importance`; where only `forward_fn` tells the labels, its batches must have none.

    Returns:
        Accuracy, and mean margin in logits, with all neurons and at each number of removed ones.

    Raises:
        InvalidArgument: if the ranking does not hold each neuron once, or for what `neuron_importance` refuses.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> loader = [(torch.randn(8, 2), torch.arange(8) % 2)]
    >>> deletion_curve(model, loader, [2, 0, 1], layer="1").removed
    array([1, 2])
    """
    settings = AblationFaithfulness(fractions=fractions)
    removed_to = Baseline.of(baseline)
    seed = _validate.integer("seed", seed, least=0, most=2**32 - 1)
    sites = find_sites(model, layer)
    if len(sites) > 1:
        names = ", ".join(map(str, sites[:4]))
        raise InvalidArgument(f"layer must name one layer, got {len(sites)}: {names}; pass one of them")
    removed_to.require_sites(sites)
    order = np.asarray(ranking, np.int64).reshape(-1)
    with undisturbed(model):
        probe = draw_probe(batches, max_samples=max_samples, max_bytes=2**62, seed=seed, ignore_index=ignore_index)
        subject = Subject(model, probe, forward_fn, batch_size)
        removal = _removal(subject, layer, removed_to, seed)
        _require_each_once(order, removal)
        removed = points(settings.fractions, removal.n_neurons)
        recorder = subject.recorder(removal, subject.donors(removal.baseline, seed))
        data = ((batch, index, np.zeros(len(index), np.int64)) for batch, index in subject.passes())
        outcomes = ablate_orders(recorder, data, [order[None]], removed)
    return DeletionCurve(
        removed,
        outcomes.correct[0].mean(1),
        outcomes.margin[0].mean(1),
        float(outcomes.intact_correct.mean()),
        float(outcomes.intact_margin.mean()),
    )


def _removal(subject: Subject, asked: str | Site, baseline: Baseline, seed: int) -> Removal:
    """Return the removal at a site, with the axis and size seen on the first batch, and the baseline over all."""
    trial = try_out(subject, asked)
    ((name, site),) = trial.sites.items()
    if trial.random_spread:
        subject.states = RandomSources(subject.model).states()
    cache = ActivationCache([site], gradients=False, axes=trial.axes)
    batch, index = next(iter(subject.passes()))
    with torch.no_grad(), cache.attach(subject.model):
        with cache.record(subject.model, len(index), subject.rows(len(index))):
            subject.predict(to_device(batch, subject.device), len(index))
        axis, n_channels = cache.axes[name], cache.outputs[name].shape[cache.axes[name]]
    sites = averaged_sites(baseline, {name: site})
    surveyed = survey(subject, trial, sites, "label", spread=baseline.kind == "optimal") if sites else None
    values = baseline_values(subject, baseline, {name: site}, trial, surveyed, "label", seed)
    return Removal(site, axis, baseline.at(name).kind, baseline.channels(name, n_channels, values), "margin")


def _require_each_once(order: Int[np.ndarray, " number"], removal: Removal) -> None:
    """Refuse an order that does not hold the number of each neuron once."""
    if np.array_equal(np.sort(order), np.arange(removal.n_neurons)):
        return
    different = len(set(order.tolist()))
    numbers = f", {different} different ones from {order.min()} to {order.max()}" if different else ""
    raise InvalidArgument(
        f"ranking must hold the number of each of the {removal.n_neurons} neurons of layer {removal.site!r} once, "
        f"got {len(order)} numbers{numbers}; np.argsort(-scores) gives such an order"
    )
