"""Judge specificity: what removing the top neurons of one cluster costs every other cluster."""

import numpy as np
from jaxtyping import Int

from lightning_neuroimp import statistics
from lightning_neuroimp.ablation.outcomes import Outcomes
from lightning_neuroimp.results.faithfulness import Specificity
from lightning_neuroimp.results.importance import Importance


def specificity_orders(importance: Importance) -> list[Int[np.ndarray, "cell neuron"]]:
    """Rank the neurons by each cluster's importance on the other half, for removal from the samples of all clusters.

    Args:
        importance: the importance whose rankings are removed.

    Returns:
        One order per cluster, the same in all cells of one half.
    """
    halves = np.argsort(-importance.half_mean[::-1], axis=-1, kind="stable")  # (half removed on, cluster, neuron)
    n_clusters = halves.shape[1]
    return [np.tile(halves[:, cluster], (n_clusters, 1)) for cluster in range(n_clusters)]


def judge_specificity(
    importance: Importance,
    outcomes: Outcomes,
    removed: int,
    target: Int[np.ndarray, " sample"],
    classes: Int[np.ndarray, " cluster"],
    seed: int,
) -> Specificity:
    """Judge whether a cluster's top neurons cost that cluster more than the others.

    Args:
        importance: the importance whose rankings were removed.
        outcomes: one order per cluster, as `specificity_orders` lists them, at one point.
        removed: number of removed neurons.
        target: label of each sample of the outcomes.
        classes: label that all samples of a cluster share; -1 if they have several.
        seed: of the random assignments of rankings to clusters.
    """
    cluster, half = outcomes.cell // 2, outcomes.cell % 2
    n = len(classes)
    drop, balanced = np.full((n, n), np.nan), np.full((2, n), np.nan)
    predicted = np.concatenate([outcomes.intact_predicted[None], outcomes.predicted[:, 0]])
    for column in range(n):
        ranked = (importance.count[::-1, column] > 0)[half] if len(half) else np.zeros(0, bool)
        fell = outcomes.intact_correct.astype(float) - outcomes.correct[column, 0]
        for row in range(n):
            rows = ranked & (cluster == row)
            if rows.any():
                drop[row, column] = fell[rows].mean()
        own, others = ranked & (target == classes[column]), ranked & (target != classes[column])
        if classes[column] >= 0 and own.any() and others.any():
            for which, order in enumerate((0, 1 + column)):
                named = predicted[order] == classes[column]
                balanced[which, column] = (named[own].mean() + 1 - named[others].mean()) / 2
    value, p_value = statistics.specificity(drop, seed=seed)
    return Specificity(removed, drop, value, p_value, balanced)
