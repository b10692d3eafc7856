"""Findings about the samples, the clusters and the model, whatever the layer and the score are."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int

from lightning_neuroimp import statistics
from lightning_neuroimp.batches.numbers import are_copies, sample_keys
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
    # some clusters have enough samples in the probe set, and the check ablates too few of them
    capped = few & (first.count.min(0) >= MIN_HALF) if ablated else np.zeros_like(few)
    smallest, n_samples = int(halves.min()), int(halves.sum())
    return about_samples(
        "few-samples",
        names_of(table, few),
        f"{int(few.sum())} of {len(few)} clusters have fewer than {MIN_HALF} samples in a half (smallest: {smallest}; "
        f"{n_samples} {'ablated ' if capped.any() else ''}samples in total), too few for a verdict on each of them.",
        _more_samples(first.count, few, capped),
        {"clusters": int(few.sum()), "smallest_half": smallest, "samples": n_samples},
        weight=0.2 + share_of_samples(table, few),
    )


def _more_samples(
    count: Int[np.ndarray, "half cluster"], few: Bool[np.ndarray, " cluster"], capped: Bool[np.ndarray, " cluster"]
) -> str:
    """Say which bound to raise: on the samples that are ablated, or on those of the probe set.

    Args:
        count: number of probe samples.
        few: clusters with too few samples.
        capped: those of them that have enough samples in the probe set.
    """
    remedies = []
    if capped.any():
        # ablated samples are drawn so that each half has as many as any other, until it has enough
        enough = int(np.minimum(count, MIN_HALF).sum())
        remedies.append(f"AblationFaithfulness(max_samples={enough}) or more")
    if (few & ~capped).any():
        rest = " for the others" if capped.any() else ""
        remedies.append(
            f"more samples in the probe set{rest} (a larger max_samples of the measurement, stratify=True for rare "
            "labels, more validation data), or fewer clusters"
        )
    return "; ".join(remedies)


COPIED = 0.01
"""Copies are reported where at least this share of the samples has one."""


def copies(results: Results) -> Finding | None:
    """Say that the probe set holds the same sample several times; None where it hardly does."""
    inside = results.sample_half >= 0
    _, number, count = np.unique(results.sample_fingerprint[inside], return_inverse=True, return_counts=True)
    copied = count[number] > 1
    if not copied.any() or copied.mean() < COPIED:
        return None
    apart = results.sample_group is not None  # groups of the user's decide on halves, whatever is a copy
    half = results.sample_half[inside] if apart else _dealt_one_by_one(results)[inside]
    halves_of = np.unique(np.stack([number, half], 1), axis=0)[:, 0]
    divided = np.bincount(halves_of)[number] > 1
    n_copied, n_divided, n_distinct = int(copied.sum()), int(divided.sum()), len(count)
    if not apart and not are_copies(results.sample_fingerprint):
        dealt = "so few values are taken for data that repeat them, and dealt to the halves one by one"
    elif apart:
        dealt = f"{n_divided} of them are in both halves of the samples, as groups= divides copies"
    else:
        dealt = f"dealt one by one, {n_divided} of them would be in both halves, so copies are kept in one"
    return about_samples(
        "copies",
        (),
        f"{n_copied} of {len(number)} samples have a copy among the others ({n_distinct} are distinct): {dealt}. Where "
        "neurons are ranked on the samples that they are tested on, gaps are too large; and copies that count as "
        "samples of their own make p-values and intervals too small.",
        "draw each sample once: a DistributedSampler for several processes, duplicates dropped from the data; or "
        "groups= with one value for all copies of a sample",
        {"copied": n_copied, "in_both_halves": n_divided, "distinct": n_distinct},
        weight=0.3 + 0.6 * float(copied.mean()),
    )


def _dealt_one_by_one(results: Results) -> Int[np.ndarray, " sample"]:
    """Return the half of each sample, if they were dealt in the order of their keys, whatever is a copy."""
    half = np.zeros(len(results.sample_index), np.int64)
    order = np.argsort(sample_keys(results.sample_index, results.seed), kind="stable")
    strata = np.stack([results.sample_cluster, results.sample_correct], 1)[order]
    for cluster, correct in np.unique(strata, axis=0).tolist():
        rows = order[(strata == (cluster, correct)).all(1)]
        half[rows] = (np.arange(len(rows)) + (0 if correct else 1)) % 2
    return half


ABOVE_CHANCE = 0.1
"""A model is near chance where its balanced accuracy exceeds that of always naming one class by less than this share of
what is left to 1."""


FEATURES = (4, 8)
"""Outputs may be features rather than logits where there are at least the first number of times as many as classes that
labels show, and more than the second number beyond these."""


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
    n_logits, n_known = results.clusters.class_counts.shape[1], int(results.sample_label.max()) + 1
    features = n_logits >= FEATURES[0] * n_known and n_logits > n_known + FEATURES[1]
    return about_samples(
        "near-chance",
        (),
        f"the model is right for {accuracy:.0%} of the samples ({balanced:.0%} averaged over classes); always naming "
        f"one class would give {chance:.0%}. "
        + (
            f"It gives {n_logits} numbers per sample, and labels go up to {n_known - 1}: these may be features rather "
            "than logits."
            if features
            else "Scores and verdicts then describe what the network computes, not anything that it has learnt."
        ),
        "forward_fn=lambda model, batch: (logits, targets), with the logits that the training uses"
        if features
        else "train longer, or look at a later epoch",
        {"accuracy": accuracy, "balanced_accuracy": balanced, "chance": chance},
        weight=1.5,
    )


BELOW_LOGGED = (0.2, 2.0)
"""Logits are other ones than the training's where the accuracy is below the logged one by more than the first number,
which shuffled loaders, averages over classes and the like do not explain; and by the second over the square root of the
number of samples, which is at least four standard errors."""


def other_logits(results: Results, logged: Mapping[str, float], *, stratified: bool = False) -> Finding | None:
    """Say that the logits are not those that the training's accuracy is of; None where they may be.

    Args:
        results: one measurement, of all classes.
        logged: accuracies of the validation run, 0 to 1, by key.
        stratified: whether rare classes were drawn as often as others, so that only bounds can be compared.
    """
    known = results.sample_label >= 0
    if not logged or not known.any() or results.importances[0].removal.target_class != "label":
        return None
    correct = results.sample_correct[known]
    _, number, count = np.unique(results.sample_label[known], return_inverse=True, return_counts=True)
    of_class = np.bincount(number, correct) / count
    accuracy = float(correct.mean())
    # what was logged may be averaged over classes
    most, n_samples = max(accuracy, float(of_class.mean())), int(known.sum())
    if stratified:  # with other shares of the classes it may be anything up to that of the best class
        most, n_samples = float(of_class.max()), int(count[of_class.argmax()])
    error = BELOW_LOGGED[1] / np.sqrt(n_samples)
    key = max(logged, key=lambda key: logged[key])
    # of several heads or tasks, the one that agrees may be this one
    agreeing = min(abs(value - accuracy) for value in logged.values()) <= max(0.05, error / 2)
    if logged[key] - most <= max(BELOW_LOGGED[0], error) or agreeing:
        return None
    return about_samples(
        "other-logits",
        (),
        f"these are not the logits that validation_step uses (right for {accuracy:.0%} of the samples; {key!r} is "
        f"{logged[key]:.0%}): scores and verdicts are about another output, or about other inputs.",
        "pass forward_fn, which prepares the inputs and calls the model as validation_step does",
        {"accuracy": accuracy, "logged": logged[key], "samples": int(known.sum())},
        weight=1.8,
    )


PURE = 0.5
"""A cluster is mixed where no class has this share of it."""

MOSTLY = 0.5
"""Clusters are mixed where more than this share of the samples is in mixed ones."""


def mixed_clusters(results: Results) -> Finding | None:
    """Say that most samples are in clusters without a main class; None where few are."""
    table = results.clusters
    if table.kind in ("labels", "groups", "dataloaders"):
        return None  # groups of labels that the user made, and data sets, are meant to be mixed
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
