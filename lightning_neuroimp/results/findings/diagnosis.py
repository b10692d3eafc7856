"""Diagnosis: what speaks against the scores of a measurement, and what to do.

A finding is a claim with evidence, made from what the passes have measured anyway. The thresholds were chosen, and the
rates of raising each finding rightly and wrongly measured, by `benchmarks/findings.py`.
"""

from collections.abc import Iterator

import numpy as np

from lightning_neuroimp import statistics
from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.results.findings.finding import Finding
from lightning_neuroimp.results.findings.layers import baseline_outside, constant_neurons, redundancy
from lightning_neuroimp.results.findings.rankings import about, findings_on, names_of, share_of
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import MIN_HALF, TIE

PURE = 0.5
"""A cluster is mixed where no class has this share of it."""


ABOVE_CHANCE = 0.1
"""A model is near chance where its balanced accuracy is above that of one that always names one class by less than this
share of what is left to 1."""


SANE = 0.5
"""Scores that keep this rank correlation when all weights are shuffled do not follow the model."""


IDS = (
    "few-samples",
    "near-chance",
    "mixed-clusters",
    "halves-disagree",
    "derivative-without-distance",
    "activation-without-derivative",
    "absolute-values",
    "signed-activations",
    "cancelling-signs",
    "better-score-at-hand",
    "first-order-fails",
    "saturated-target",
    "saturated-activation",
    "constant-neurons",
    "baseline-outside",
    "redundancy",
    "clusters-not-borne-out",
    "no-better-than-reference",
    "hardly-any-fall",
    "methods-agree",
    "blind-to-weights",
)
"""All findings that there are; `examples/findings.md` has a section for each."""


def diagnose(results: Results) -> tuple[Finding, ...]:
    """All findings of a measurement, weightiest first.

    Those on rankings need faithfulness; all others come with the importances.

    Args:
        results: one measurement.
    """
    found = [*_samples(results)]
    for site in results.sites:
        ones = [one for one in results.importances if one.site == site]
        activity = next((one for one in results.activities if one.site == site), None)
        ranked = [finding for one in ones for finding in findings_on(results, one, activity)]
        found += [*ranked, *_site(results, ones, activity)]
    found += _insensitive(results)
    return tuple(sorted(found, key=lambda finding: -finding.weight))


def _samples(results: Results) -> Iterator[Finding]:
    """What the samples, the clusters and the model do not allow to say, whatever the score."""
    table, first = results.clusters, results.importances[0]
    halves = first.count if first.faithfulness is None else first.faithfulness.samples[:, :-1]
    few = halves.min(0) < MIN_HALF
    capped = first.faithfulness is not None and first.count.min() >= MIN_HALF
    if few.any():
        yield Finding(
            "few-samples",
            "",
            "",
            names_of(results, few),
            f"{int(few.sum())} of {len(few)} clusters have fewer than {MIN_HALF} samples in a half (the smallest "
            f"{int(halves.min())}), of {int(halves.sum())} {'removed ' if capped else ''}samples in all: there is no "
            "verdict on them one by one.",
            f"AblationFaithfulness(max_samples={len(results.sample_index)})"
            if capped
            else "a larger max_samples, more than one batch, or fewer clusters",
            {"clusters": int(few.sum()), "smallest_half": int(halves.min()), "samples": int(halves.sum())},
            weight=0.2 + share_of(results, few),
        )
    classes, number = np.unique(results.sample_target, return_inverse=True)
    right = float(results.sample_correct.mean()) if len(number) else 0.0
    # the class that the model names is right by definition; few samples say nothing
    if first.removal.target_class == "label" and len(classes) > 1 and len(number) >= 2 * MIN_HALF:
        counts = np.bincount(number)
        balanced = float((np.bincount(number, results.sample_correct) / counts).mean())
        one_name = 1 / len(classes)
        if (balanced - one_name) / (1 - one_name) < ABOVE_CHANCE:
            yield Finding(
                "near-chance",
                "",
                "",
                (),
                f"the model is right for {right:.0%} of the samples, for {balanced:.0%} of a class on average; to name "
                f"one class always would give {one_name:.0%}. What scores and verdicts say holds for what the network "
                "computes, not for anything that it has learnt.",
                "train on, or look at a later epoch",
                {"accuracy": right, "balanced_accuracy": balanced, "chance": one_name},
                weight=1.5,
            )
    # groups of labels that the user made are meant to be mixed
    if table.source != "labels" and not table.source.startswith("groups of"):
        purity = table.class_counts.max(1) / np.maximum(table.class_counts.sum(1), 1)
        mixed = purity < PURE
        if share_of(results, mixed) > 0.5:
            typical = float(statistics.weighted_mean(purity, table.size))
            yield Finding(
                "mixed-clusters",
                "",
                "",
                names_of(results, mixed),
                f"the commonest class of a cluster has {typical:.0%} of it: what helps one of its classes harms "
                "another, and means over both say little of either.",
                "more clusters, KMeansClusters((2, 20)) for a number by silhouette, or clusters='labels'",
                {"commonest_class": typical, "clusters": int(mixed.sum())},
                weight=0.6 * (1 - typical),
            )


def _site(results: Results, ones: list[Importance], activity: SiteActivity | None) -> Iterator[Finding]:
    """What holds for a layer, whatever the score."""
    first = ones[0]
    if activity is not None:
        yield from baseline_outside(first, activity)
        yield from constant_neurons(ones, activity)
    yield from redundancy(results, first)
    checked = [one for one in ones if one.attribution != "random" and one.faithfulness is not None]
    gaps = [one.faithfulness.gap[-1] for one in checked if one.faithfulness is not None]
    faithful = [one.faithfulness is not None and one.faithfulness.verdict[-1] == "faithful" for one in checked]
    if len(checked) > 1 and all(faithful) and max(gaps) - min(gaps) < TIE:
        yield about(
            first,
            "methods-agree",
            f"all {len(checked)} scores do equally well here (gaps {min(gaps):+.3f} to {max(gaps):+.3f}): to compare "
            "them at this layer tells nothing.",
            "take the cheapest one, or compare at an earlier layer",
            {"smallest_gap": min(gaps), "largest_gap": max(gaps)},
            weight=0.05,
            layer=True,
        )


def _insensitive(results: Results) -> Iterator[Finding]:
    """Only where randomised weights were asked for."""
    for one in results.randomisations:
        if one.attribution == "random":
            continue
        after = float(statistics.weighted_mean(one.rank_correlation[-1], results.clusters.size))
        if after > SANE:
            yield Finding(
                "blind-to-weights",
                one.site,
                one.attribution,
                (),
                f"with all weights shuffled the scores keep a rank correlation of {after:.2f}: they follow the "
                "architecture or the inputs rather than what was learnt.",
                "attribution='gradient_x_activation'",
                {"rank_correlation": after},
                weight=after,
            )
