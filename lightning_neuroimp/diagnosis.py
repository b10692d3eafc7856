"""Diagnosis: what speaks against the scores of a measurement, and what to do.

A finding is a claim with evidence, made from what the passes have measured anyway. The thresholds were chosen, and the
rates of raising each finding rightly and wrongly measured, by `benchmarks/findings.py`.
"""

from collections.abc import Iterator

import numpy as np

from lightning_neuroimp import statistics
from lightning_neuroimp.rankings import about, findings_on, names_of, share_of
from lightning_neuroimp.results import Finding, Importance, Results, SiteActivity
from lightning_neuroimp.verdicts import MIN_HALF, TIE

FAR = 2
"""A baseline more standard deviations than this from a neuron's mean lies outside of what the neuron does."""

REDUNDANT = 2.5
"""Neurons stand in for one another where one of half of them costs so many times more than one of a tenth."""

INERT = 0.3
"""They do, too, where removing a tenth costs less than this share of what the scores say."""

PURE = 0.5
"""A cluster is mixed where no class has this share of it."""

ABOVE_CHANCE = 0.1
"""A model is near chance where its balanced accuracy is above that of one that always names one class by less than this
share of what is left to 1."""

DEAD = 0.5
"""Many neurons are constant where this share of them is; fewer count where they are..."""

TOP_CONSTANT = 0.05
"""... more than this share of a cluster's top tenth."""

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
    halves = first.count if first.faithfulness is None else first.faithfulness.samples
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
        yield from _baseline(first, activity)
        yield from _dead(ones, activity)
    yield from _redundancy(results, first)
    checked = [one for one in ones if one.attribution != "random" and one.faithfulness is not None]
    gaps = [one.faithfulness.overall.gap for one in checked if one.faithfulness is not None]
    faithful = [one.faithfulness is not None and one.faithfulness.overall.verdict == "faithful" for one in checked]
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


def _baseline(one: Importance, activity: SiteActivity) -> Iterator[Finding]:
    away = activity.distance(one.removal.baseline_value)
    far, known = int((away > FAR).sum()), int(np.isfinite(away).sum())
    if known and far > known / 2:
        yield about(
            one,
            "baseline-outside",
            f"the baseline ({one.removal.baseline}) lies more than {FAR} standard deviations from the mean of {far} of "
            f"{known} channels that vary: to set neurons to it is not to remove what they tell.",
            "baseline='mean'",
            {"far": far, "channels": known},
            weight=0.5 * far / known,
            layer=True,
        )


def _dead(ones: list[Importance], activity: SiteActivity) -> Iterator[Finding]:
    group = ones[0].removal.where.group
    constant = (activity.minimum == activity.maximum).reshape(-1, group).all(1)
    # of few samples any neuron may be constant
    if not constant.any() or ones[0].count.sum() < 2 * MIN_HALF:
        return
    share, k = float(constant.mean()), ones[0].reliability.k
    for one in ones:
        if one.attribution == "random":
            continue
        top = np.argsort(-one.mean, axis=1, kind="stable")[:, :k]
        # a score of exactly zero ranks nobody: constant neurons fill up where fewer matter than are looked at
        of_top = float((constant[top] & (np.take_along_axis(one.mean, top, 1) > 0)).mean())
        if of_top > TOP_CONSTANT:
            yield about(
                one,
                "constant-neurons",
                f"{int(constant.sum())} of {len(constant)} neurons are constant on all samples, and {of_top:.0%} of "
                f"the top {k} of a cluster are among them: they tell nothing about a sample, their score is a bias's.",
                "baseline='mean' and attribution='gradient_x_activation', which give them zero",
                {"constant": share, "of_top": of_top},
                weight=0.3 + 0.5 * of_top,
            )
            return
    if share > DEAD:
        yield about(
            ones[0],
            "constant-neurons",
            f"{int(constant.sum())} of {len(constant)} neurons are constant on all samples: shares of removed neurons "
            "count them, so that random removal takes few that matter, and gaps look larger than they are.",
            "compare with other layers by numbers of neurons, not by shares; a narrower layer, or another start",
            {"constant": share, "of_top": 0.0},
            weight=0.3 * share,
            layer=True,
        )


def joint_effects(results: Results, one: Importance) -> tuple[float, float, float, float]:
    """How the effect of a removed neuron grows with the number of those that are removed with it.

    Returns:
        Mean fall of the margin for each of the most neurons removed at random, over that for each of at most a tenth;
        the lower end of its 95% interval over the random orders; the latter over what the effects to first order (else
        the scores) say; and the upper end of its interval. NaN where they are not known.
    """
    judged = one.faithfulness
    nan = float("nan")
    if judged is None or not judged.samples.any():
        return nan, nan, nan, nan
    size = judged.samples.sum(0)
    falls = statistics.weighted_mean((judged.intact_margin[:, None] - judged.random_margin).swapaxes(1, 2), size)
    each = falls / judged.removed  # (draw, point)
    n_neurons = one.removal.n_neurons
    few = judged.removed <= max(1.0, 0.1 * n_neurons + 1)
    if few.all() or not few.any():
        return nan, nan, nan, nan
    generator = np.random.default_rng([results.seed, len(each)])
    draws = np.concatenate([np.arange(len(each))[None], generator.integers(len(each), size=(999, len(each)))])
    single, joint = each[:, few].mean(1)[draws].mean(1), each[:, -1][draws].mean(1)
    # where removing few is no loss at all there is no ratio: any loss is infinitely more
    ratio = np.divide(joint, single, out=np.where(joint > 0, np.inf, np.nan), where=single > 0)
    known = np.sort(ratio[1:][~np.isnan(ratio[1:])])
    lower = float(known[int(0.025 * len(known))]) if len(known) > len(ratio) / 2 else nan
    scores = one.mean if one.first_order is None else one.first_order
    expected = float(statistics.weighted_mean(scores.mean(1), size))
    kept = single / expected if expected > 0 else np.full(len(single), nan)
    return float(ratio[0]), lower, float(kept[0]), float(np.quantile(kept[1:], 0.975))


def _redundancy(results: Results, one: Importance) -> Iterator[Finding]:
    if one.faithfulness is None or one.removal.target_class != "label":
        return
    ratio, lower, kept, upper = joint_effects(results, one)
    in_margins = one.removal.target in ("margin", "probability", "log_probability") and one.first_order is not None
    inert = in_margins and upper < INERT
    if lower > REDUNDANT or inert:
        largest = int(one.faithfulness.removed[-1])
        text = (
            f"neurons stand in for one another: removed together with {largest - 1} others, a neuron costs "
            f"{f'{ratio:.1f} times what it does' if np.isfinite(ratio) else 'something, nothing'} with few."
            if lower > REDUNDANT
            else f"neurons stand in for one another: a tenth costs {max(kept, 0.0):.0%} of what their scores say."
        )
        yield about(
            one,
            "redundancy",
            text + " What one of them does alone says little of what several do.",
            "attribution='masked_gradient', which averages over removals of others, or Site(name, group=...)",
            # JSON has no infinity
            {"joint_over_single": min(ratio, 1e9), "lower": min(lower, 1e9), "single_over_scores": kept},
            weight=0.4,
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
