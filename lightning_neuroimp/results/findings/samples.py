"""Findings about the samples, the clusters and the model, whatever the layer and the score are."""

import numpy as np

from lightning_neuroimp import statistics
from lightning_neuroimp.results.findings.finding import Finding, about_samples, names_of, share_of_samples
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import MIN_HALF


def few_samples(results: Results) -> Finding | None:
    """Say where clusters have too few samples in a half for a verdict; None where all have enough."""
    table, first = results.clusters, results.importances[0]
    ablated = first.faithfulness is not None
    halves = first.count if first.faithfulness is None else first.faithfulness.samples[:, :-1]
    few = halves.min(0) < MIN_HALF
    if not few.any():
        return None
    # the probe set has enough, and the bound on ablated samples is what is too low
    capped = ablated and first.count.min() >= MIN_HALF
    smallest, n_samples = int(halves.min()), int(halves.sum())
    return about_samples(
        "few-samples",
        names_of(table, few),
        f"{int(few.sum())} of {len(few)} clusters have fewer than {MIN_HALF} samples in a half (smallest: {smallest}; "
        f"{n_samples} {'ablated ' if capped else ''}samples in total), too few for a verdict on each of them.",
        f"AblationFaithfulness(max_samples={len(results.sample_index)})"
        if capped
        else "a larger max_samples, more than one batch, or fewer clusters",
        {"clusters": int(few.sum()), "smallest_half": smallest, "samples": n_samples},
        weight=0.2 + share_of_samples(table, few),
    )


ABOVE_CHANCE = 0.1
"""A model is near chance where its balanced accuracy exceeds that of always naming one class by less than this share of
what is left to 1."""


def near_chance(results: Results) -> Finding | None:
    """Say that the model has learnt next to nothing; None where it has, or where that cannot be told."""
    classes, number = np.unique(results.sample_target, return_inverse=True)
    # predicted classes are right by definition; few samples say nothing
    told = results.importances[0].removal.target_class == "label" and len(number) >= 2 * MIN_HALF
    if len(classes) < 2 or not told:
        return None
    accuracy = float(results.sample_correct.mean())
    balanced = float((np.bincount(number, results.sample_correct) / np.bincount(number)).mean())
    chance = 1 / len(classes)
    if (balanced - chance) / (1 - chance) >= ABOVE_CHANCE:
        return None
    return about_samples(
        "near-chance",
        (),
        f"the model is right for {accuracy:.0%} of the samples ({balanced:.0%} averaged over classes); always naming "
        f"one class would give {chance:.0%}. Scores and verdicts then describe what the network computes, not anything "
        "that it has learnt.",
        "train longer, or look at a later epoch",
        {"accuracy": accuracy, "balanced_accuracy": balanced, "chance": chance},
        weight=1.5,
    )


PURE = 0.5
"""A cluster is mixed where no class has this share of it."""

MOSTLY = 0.5
"""Clusters are mixed where more than this share of the samples is in mixed ones."""


def mixed_clusters(results: Results) -> Finding | None:
    """Say that most samples are in clusters without a main class; None where few are."""
    table = results.clusters
    if table.kind in ("labels", "groups"):
        return None  # groups of labels that the user made are meant to be mixed
    purity = table.class_counts.max(1) / np.maximum(table.class_counts.sum(1), 1)
    mixed = purity < PURE
    if share_of_samples(table, mixed) <= MOSTLY:
        return None
    typical = float(statistics.weighted_mean(purity, table.size))
    return about_samples(
        "mixed-clusters",
        names_of(table, mixed),
        f"on average, the most common class makes up {typical:.0%} of a cluster: what helps one of its classes harms "
        "another, and a mean over both says little about either.",
        "more clusters, KMeansClusters((2, 20)) to choose their number by silhouette, or clusters='labels'",
        {"commonest_class": typical, "clusters": int(mixed.sum())},
        weight=0.6 * (1 - typical),
    )
