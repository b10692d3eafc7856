"""Orders of removal: own rankings, references, and which samples they are tried on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.ablation.settings import AblationFaithfulness
from lightning_neuroimp.batches.keys import sample_keys
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results

REFERENCES = ("activation size", "one ranking for all clusters")
"""Rankings that a score should beat: mean |activation - baseline|, and the same score's mean over all clusters."""


ALTERNATIVES = ("absolute values", "activation size", "activation x derivative")
"""Scores that every importance pass gives beside the one that was asked for: that score's own absolute values, mean
|activation - baseline|, and, where there are gradients, the effect of removal to first order."""


def choose_samples(results: Results, max_samples: int) -> Int[np.ndarray, " chosen"]:
    """Positions of the samples to ablate: those with the smallest keys among the members of clusters."""
    member = np.flatnonzero(results.sample_half >= 0)
    keys = sample_keys(results.sample_index[member], results.seed)
    return member[np.argsort(keys, kind="stable")[:max_samples]]


@dataclass(frozen=True)
class Plan:
    """Orders of removal at one site, and which of them is what; each holds a row per group (cluster and half).

    Attributes:
        orders: before the random control.
        own: of each attribution.
        size: of the activations' size.
        shared: of each attribution's one ranking for all clusters.
        least: of each attribution, least important first; empty where that was not asked for.
        greedy: of the greedy order; None where that was not asked for.
    """

    orders: list[Int[np.ndarray, "group neuron"]]
    own: list[int]
    size: int
    shared: list[int]
    least: list[int]
    greedy: int | None

    @property
    def control(self) -> int:
        """Where the random control begins."""
        return len(self.orders)


def plan(
    ones: Sequence[Importance], settings: AblationFaithfulness, greedy: Int[np.ndarray, "group neuron"] | None = None
) -> Plan:
    """Orders of removal, each group's from the other half's scores, most important first.

    Args:
        ones: the attributions of a site.
        settings: what is asked for.
        greedy: the greedy order of each group, from its own samples.
    """
    n = len(ones)
    own = [_orders(one.half_mean) for one in ones]
    shared = []
    for one in ones:
        weight = one.count / np.maximum(one.count.sum(1, keepdims=True), 1)
        mean = (weight[..., None] * np.nan_to_num(one.half_mean)).sum(1, keepdims=True)
        shared.append(_orders(np.repeat(mean, one.half_mean.shape[1], axis=1)))
    orders = [*own, _orders(ones[0].half_deviation), *shared]
    least = list(range(len(orders), len(orders) + n)) if settings.least_first else []
    orders += [order[:, ::-1] for order in own] if settings.least_first else []
    if greedy is not None:
        orders.append(greedy.reshape(-1, 2, greedy.shape[1])[:, ::-1].reshape(greedy.shape))  # of the other half
    last = len(orders) - 1
    return Plan(orders, list(range(n)), n, list(range(n + 1, 2 * n + 1)), least, None if greedy is None else last)


def _orders(half_scores: Float[np.ndarray, "half cluster neuron"]) -> Int[np.ndarray, "group neuron"]:
    swapped = half_scores[::-1].transpose(1, 0, 2)  # (cluster, half, neuron): the scores of the other half
    return np.argsort(-swapped, axis=-1, kind="stable").reshape(-1, half_scores.shape[-1])
