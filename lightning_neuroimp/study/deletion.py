"""The deletion curve of a ranking of one's own."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import nn

from lightning_neuroimp.ablation.outcomes import ablate_orders
from lightning_neuroimp.ablation.settings import AblationFaithfulness
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.structure import batch_size as samples_in
from lightning_neuroimp.batches.structure import unpacked
from lightning_neuroimp.capture.forward import ForwardFn
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.results.faithfulness import DeletionCurve
from lightning_neuroimp.site import Site
from lightning_neuroimp.statistics import points
from lightning_neuroimp.study.ablation import suffix_recorder
from lightning_neuroimp.study.importance import neuron_importance
from lightning_neuroimp.study.probing import draw_probe


def deletion_curve(
    model: nn.Module,
    batches: Iterable[Any] | ProbeSet,
    ranking: Sequence[int] | Int[np.ndarray, " neuron"],
    *,
    layer: str | Site,
    fractions: Sequence[float] = AblationFaithfulness.fractions,
    baseline: str | float = "zero",
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
        baseline: what a removed neuron is set to: "zero", "mean" over the probe set, "resample", or a number.
        forward_fn: as in `neuron_importance`.
        max_samples: bound of the probe set.
        batch_size: as in `neuron_importance`.
        seed: of the probe set.

    Raises:
        ValueError: if the ranking does not hold each neuron once, or for what `neuron_importance` refuses.
    """
    probe = draw_probe(batches, max_samples, 2**62, seed)
    found = neuron_importance(
        model,
        probe,
        layers=layer,
        clusters=lambda batch: np.zeros(samples_in(unpacked(batch)), np.int64),
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
        replayer = suffix_recorder(model, probe, removal, forward_fn, seed)
        data = ((batch, index, np.zeros(len(index), np.int64)) for batch, index in probe.batches(batch_size))
        outcomes = ablate_orders(replayer, data, [order[None]], removed)
    return DeletionCurve(
        removed,
        outcomes.correct[0].mean(1),
        outcomes.margin[0].mean(1),
        float(outcomes.intact_correct.mean()),
        float(outcomes.intact_margin.mean()),
    )
