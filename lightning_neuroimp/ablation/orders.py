"""Plan the orders of removal: own rankings, references, and the samples on which they are tried."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.ablation.predictions import shared_scores
from lightning_neuroimp.ablation.settings import AblationFaithfulness
from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import MIN_HALF

REFERENCES = ("activation_size", "shared_ranking", "first_order")
"""Keys of the rankings that a score is compared with: by mean |activation - baseline|, by the same score's mean over
all clusters, and, where there are gradients, by the effect of removal to first order."""


ALTERNATIVES = ("absolute_values", "activation_size", "first_order", "shared_scores")
"""Keys of the scores that every importance pass gives in addition to the requested one: that score's own absolute
values, mean |activation - baseline|, where there are gradients the effect of removal to first order, and the score's
own mean over all clusters."""

ENOUGH = 3 * MIN_HALF // 2
"""Number of samples of each half of a cluster that are ablated before others are drawn in proportion to its size."""


def choose_samples(results: Results, max_samples: int) -> Int[np.ndarray, " chosen"]:
    """Return the rows of the samples to ablate: in each half of each cluster, the members with the smallest keys.

    Rare clusters are not left to chance: each half has as many of its samples ablated as `ENOUGH` and `max_samples`
    allow, and what is left is shared out in proportion to the numbers of samples.

    Args:
        results: of the importance pass.
        max_samples: upper bound on the number of samples.
    """
    member = np.flatnonzero(results.sample_half >= 0)
    member = member[np.argsort(sample_keys(results.sample_index[member], results.seed), kind="stable")]
    if len(member) <= max_samples:
        return member
    cell = np.stack([results.sample_cluster[member], results.sample_half[member]], 1)
    _, number, size = np.unique(cell, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(number.reshape(-1), kind="stable")
    place = np.empty(len(member), np.int64)  # of each member in its cell, by its key
    place[order] = np.arange(len(member)) - np.repeat(np.cumsum(size) - size, size)
    return member[place < share_out(size, max_samples, ENOUGH)[number.reshape(-1)]]


def share_out(size: Int[np.ndarray, " cell"], total: int, enough: int) -> Int[np.ndarray, " cell"]:
    """Share a number of samples out among cells: a few to each, the rest in proportion to the cells' sizes.

    Args:
        size: number of samples in each cell.
        total: number of samples to share out, at most the number of all.
        enough: number that each cell has first, or all of its samples; as many of them as the total allows.

    Returns:
        Number of samples of each cell, with the given sum.

    >>> share_out(np.array([400, 400, 30, 5]), 200, 24).tolist()
    [86, 85, 24, 5]
    """
    least = max(floor for floor in range(enough + 1) if np.minimum(size, floor).sum() <= total)
    few = np.minimum(size, least)
    low, high = 0.0, 1.0  # the share of each cell that gives the total
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(few, middle * size).sum() <= total else (low, middle)
    exact = np.maximum(few, low * size)
    shares = np.floor(exact + 1e-9).astype(np.int64)
    # what rounding has left goes to the largest remainders
    largest = np.argsort(-(exact - shares), kind="stable")
    largest = largest[shares[largest] < size[largest]][: total - int(shares.sum())]
    shares[largest] += 1
    return shares


@dataclass(frozen=True)
class RemovalOrders:
    """Hold the orders of removal at one site, and the number of each kind of order among them; random ones come later.

    Attributes:
        orders: those before the random control, each with a row per cell.
        own: number of each attribution's own order.
        size: number of the order by mean |activation - baseline|.
        shared: number of the order by each attribution's mean over all clusters.
        first: number of the order by the effects to first order; None where these are not known.
        least: number of each attribution's order, least important first; empty where that was not asked for.
        best: number of the progressive order; None where that was not asked for.
    """

    orders: list[Int[np.ndarray, "cell neuron"]]
    own: list[int]
    size: int
    shared: list[int]
    first: int | None
    least: list[int]
    best: int | None

    def references(self, position: int) -> list[int | None]:
        """Return the numbers of an attribution's reference rankings, in the order of `REFERENCES`; None: not known."""
        return [self.size, self.shared[position], self.first]


def plan_orders(
    importances: Sequence[Importance],
    settings: AblationFaithfulness,
    best: Int[np.ndarray, "cell neuron"] | None = None,
) -> RemovalOrders:
    """Order the neurons for removal: in each cell by the other half's scores, most important first.

    Args:
        importances: the attributions of a site.
        settings: of the check.
        best: the progressive order of each cell, from its own samples; None: there is none.
    """
    n = len(importances)
    own = [_by_other_half(importance.half_mean) for importance in importances]
    shared = [_by_other_half(shared_scores(importance)) for importance in importances]
    orders = [*own, _by_other_half(importances[0].half_deviation), *shared]
    first, effects = None, first_order(importances)
    if effects is not None:
        first = len(orders)
        orders.append(_by_other_half(effects))
    least = list(range(len(orders), len(orders) + n)) if settings.least_first else []
    orders += [order[:, ::-1] for order in own] if settings.least_first else []
    if best is not None:
        orders.append(best.reshape(-1, 2, best.shape[1])[:, ::-1].reshape(best.shape))  # the other half's
    last = None if best is None else len(orders) - 1
    return RemovalOrders(orders, list(range(n)), n, list(range(n + 1, 2 * n + 1)), first, least, last)


def first_order(importances: Sequence[Importance]) -> Float[np.ndarray, "half cluster neuron"] | None:
    """Return the effects of removal to first order at a site; None where they are not known or not finite.

    Args:
        importances: the attributions of the site, any of which may have them.
    """
    for importance in importances:
        effects = importance.half_first_order
        if effects is not None and np.isfinite(effects[importance.count > 0]).all():
            return effects
    return None


def _by_other_half(half_scores: Float[np.ndarray, "half cluster neuron"]) -> Int[np.ndarray, "cell neuron"]:
    """Rank the neurons of each cell by the scores of the cluster's other half, largest first."""
    swapped = half_scores[::-1].transpose(1, 0, 2)  # (cluster, half, neuron): the scores of the other half
    return np.argsort(-swapped, axis=-1, kind="stable").reshape(-1, half_scores.shape[-1])
