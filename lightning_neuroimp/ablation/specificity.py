"""Damage: what removing the top neurons of one cluster does to every other cluster."""

import numpy as np
from jaxtyping import Int

from lightning_neuroimp import statistics
from lightning_neuroimp.ablation.outcomes import Outcomes
from lightning_neuroimp.results.faithfulness import Specificity
from lightning_neuroimp.results.importance import Importance


def specificity_orders(one: Importance) -> list[Int[np.ndarray, "group neuron"]]:
    """For each cluster the order of its own neurons, from the other half, for the samples of all clusters."""
    halves = np.argsort(-one.half_mean[::-1], axis=-1, kind="stable")  # (half that is removed on, cluster, neuron)
    n_clusters = halves.shape[1]
    return [np.tile(halves[:, cluster], (n_clusters, 1)) for cluster in range(n_clusters)]


def judge_specificity(
    one: Importance,
    outcomes: Outcomes,
    removed: int,
    target: Int[np.ndarray, " sample"],
    classes: Int[np.ndarray, " cluster"],
    seed: int,
) -> Specificity:
    """Damage of each cluster's top neurons to each cluster.

    Args:
        one: whose rankings were removed.
        outcomes: one order per cluster, as `specificity_orders` lists them, at one point.
        removed: how many neurons.
        target: class of each sample of the outcomes.
        classes: the one class of each cluster; -1 where it has several.
        seed: of the assignments that are drawn.
    """
    cluster, half = outcomes.group // 2, outcomes.group % 2
    n = len(classes)
    accuracy_drop, balanced = np.full((n, n), np.nan), np.full((2, n), np.nan)
    predicted = np.concatenate([outcomes.intact_predicted[None], outcomes.predicted[:, 0]])
    for column in range(n):
        ranked = (one.count[::-1, column] > 0)[half] if len(half) else np.zeros(0, bool)
        fell = outcomes.intact_correct.astype(float) - outcomes.correct[column, 0]
        for row in range(n):
            rows = ranked & (cluster == row)
            if rows.any():
                accuracy_drop[row, column] = fell[rows].mean()
        own, others = ranked & (target == classes[column]), ranked & (target != classes[column])
        if classes[column] >= 0 and own.any() and others.any():
            for which, order in enumerate((0, 1 + column)):
                named = predicted[order] == classes[column]
                balanced[which, column] = (named[own].mean() + 1 - named[others].mean()) / 2
    value, p_value = statistics.specificity(accuracy_drop, seed=seed)
    return Specificity(removed, accuracy_drop, value, p_value, balanced)
