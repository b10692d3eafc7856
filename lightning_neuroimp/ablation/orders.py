"""Plan the orders of removal: own rankings, references, and the samples on which they are tried."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.ablation.settings import AblationFaithfulness
from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results

REFERENCES = ("activation_size", "shared_ranking")
"""Keys of the rankings that a score should beat: by mean |activation - baseline|, and by the same score's mean over all
clusters."""


ALTERNATIVES = ("absolute_values", "activation_size", "first_order")
"""Keys of the scores that every importance pass gives in addition to the requested one: that score's own absolute
values, mean |activation - baseline|, and, where there are gradients, the effect of removal to first order."""


def choose_samples(results: Results, max_samples: int) -> Int[np.ndarray, " chosen"]:
    """Return the rows of the samples to ablate: the members of clusters with the smallest keys.

    Args:
        results: of the importance pass.
        max_samples: upper bound on the number of samples.
    """
    member = np.flatnonzero(results.sample_half >= 0)
    keys = sample_keys(results.sample_index[member], results.seed)
    return member[np.argsort(keys, kind="stable")[:max_samples]]


@dataclass(frozen=True)
class RemovalOrders:
    """Hold the orders of removal at one site, and the number of each kind of order among them; random ones come later.

    Attributes:
        orders: those before the random control, each with a row per cell.
        own: number of each attribution's own order.
        size: number of the order by mean |activation - baseline|.
        shared: number of the order by each attribution's mean over all clusters.
        least: number of each attribution's order, least important first; empty where that was not asked for.
        greedy: number of the greedy order; None where that was not asked for.
    """

    orders: list[Int[np.ndarray, "cell neuron"]]
    own: list[int]
    size: int
    shared: list[int]
    least: list[int]
    greedy: int | None

    def references(self, position: int) -> list[int]:
        """Return the numbers of an attribution's reference rankings, in the order of `REFERENCES`."""
        return [self.size, self.shared[position]]


def plan_orders(
    importances: Sequence[Importance],
    settings: AblationFaithfulness,
    greedy: Int[np.ndarray, "cell neuron"] | None = None,
) -> RemovalOrders:
    """Order the neurons for removal: in each cell by the other half's scores, most important first.

    Args:
        importances: the attributions of a site.
        settings: of the check.
        greedy: the greedy order of each cell, from its own samples; None: there is none.
    """
    n = len(importances)
    own = [_by_other_half(importance.half_mean) for importance in importances]
    shared = []
    for importance in importances:
        weight = importance.count / np.maximum(importance.count.sum(1, keepdims=True), 1)
        mean = (weight[..., None] * np.nan_to_num(importance.half_mean)).sum(1, keepdims=True)
        shared.append(_by_other_half(np.repeat(mean, importance.half_mean.shape[1], axis=1)))
    orders = [*own, _by_other_half(importances[0].half_deviation), *shared]
    least = list(range(len(orders), len(orders) + n)) if settings.least_first else []
    orders += [order[:, ::-1] for order in own] if settings.least_first else []
    if greedy is not None:
        orders.append(greedy.reshape(-1, 2, greedy.shape[1])[:, ::-1].reshape(greedy.shape))  # the other half's
    last = None if greedy is None else len(orders) - 1
    return RemovalOrders(orders, list(range(n)), n, list(range(n + 1, 2 * n + 1)), least, last)


def _by_other_half(half_scores: Float[np.ndarray, "half cluster neuron"]) -> Int[np.ndarray, "cell neuron"]:
    """Rank the neurons of each cell by the scores of the cluster's other half, largest first."""
    swapped = half_scores[::-1].transpose(1, 0, 2)  # (cluster, half, neuron): the scores of the other half
    return np.argsort(-swapped, axis=-1, kind="stable").reshape(-1, half_scores.shape[-1])
