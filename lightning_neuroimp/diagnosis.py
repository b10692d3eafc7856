"""Diagnosis: what the figures say, in words: verdicts, and findings that explain them.

A finding is a claim with evidence, made from what the passes have measured anyway. The thresholds were chosen, and the
rates of raising each finding rightly and wrongly measured, by `benchmarks/findings.py`.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from lightning_neuroimp import statistics
from lightning_neuroimp.results import Faithfulness, Finding, Importance, Results, SiteActivity

Verdict = Literal["faithful", "weak", "no better than random", "worse than random", "too few samples to say"]

MIN_HALF = 16
"""Fewer samples in a half than this, and no verdict is given."""

LEVEL, WEAK = 0.05, 0.05

FAR = 2
"""A baseline more standard deviations than this from a neuron's mean lies outside of what the neuron does."""

POOR = ((0.8, 0.05), (0.9, 0.25))
"""A ranking is poor where its top neurons carry less than the first share of the effects that the best ones carry, and
the lower end of the interval of (LDS of those effects - LDS) is above the second number; one such pair is enough. Where
removal was not measured, the first share decides."""

GAIN = 0.1
"""Absolute values are better where the lower end of the interval of (their LDS - LDS) is above this."""

BOTH_SIGNS = 0.1
"""A neuron is signed where it goes to both sides of the baseline by more than this share of its range."""

CARRIED = 0.3
"""A target is saturated where the scores are carried by less than this share of the samples."""

MISSED = 0.75
"""A nonlinearity is saturated where the derivative misses more than this share of what removal changes in it."""

REDUNDANT = 2.5
"""Neurons stand in for one another where one of half of them costs so many times more than one of a tenth."""

INERT = 0.3
"""They do, too, where removing a tenth costs less than this share of what the scores say."""

PURE = 0.5
"""A cluster is mixed where no class has this share of it."""

MUCH = 0.8
"""A score is beaten by another one where its gap is below this share of the other one's."""

STRAIGHT = 0.75
"""First order fails where the upper end of the interval of its LDS is below this, although the halves agree."""

MIXED = 0.1
"""A cluster that is not borne out may be so for being mixed where more than this share is of other classes."""

ABOVE_CHANCE = 0.1
"""A model is near chance where its balanced accuracy is above that of one that always names one class by less than this
share of what is left to 1."""

RELIABLE = 0.7
"""Halves disagree where the reliability is below this."""

DEAD = 0.5
"""Many neurons are constant where this share of them is; fewer count where they are..."""

TOP_CONSTANT = 0.05
"""... more than this share of a cluster's top tenth."""

TIE = 0.02
"""Gaps are the same where they differ by less than this."""

SANE = 0.5
"""Scores that keep this rank correlation when all weights are shuffled do not follow the model."""

HARDLY = 0.9
"""Hardly anything is lost where this share of the accuracy is left with the most neurons removed that were..."""

PREDICTS = 0.8
"""... although the LDS is above this."""

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of the neurons at which rankings are compared where none were removed."""

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

_FIRST_ORDER = ("gradient", "gradient_x_activation")


def verdict(p_value: float, p_value_worse: float, relative_gap: float, smallest_half: int) -> Verdict:
    """Whether removal bears a ranking out.

    Args:
        p_value: randomisation p-value of the gap.
        p_value_worse: its lower tail.
        relative_gap: gap over the mean accuracy under random removal.
        smallest_half: ablated samples in the smaller of the two halves.

    >>> verdict(0.01, 1.0, 0.4, 50)
    'faithful'
    >>> verdict(0.01, 1.0, 0.02, 50)
    'weak'
    """
    if smallest_half < MIN_HALF:
        return "too few samples to say"
    if p_value_worse <= LEVEL < p_value:
        return "worse than random"
    if p_value > LEVEL:
        return "no better than random"
    # where random removal leaves no accuracy at all there is no relative gap, and no gap to be found either
    return "faithful" if relative_gap >= WEAK else "weak"


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
        ranked = [finding for one in ones for finding in _ranking(results, one, activity)]
        found += [*ranked, *_site(results, ones, activity)]
    found += _insensitive(results)
    return tuple(sorted(found, key=lambda finding: -finding.weight))


def _of(
    one: Importance, name: str, text: str, remedy: str, figures: dict[str, float], weight: float, *, layer: bool = False
) -> Finding:
    """About one ranking, or about its layer whatever the ranking is."""
    return Finding(name, one.site, "" if layer else one.attribution, (), text, remedy, figures, float(weight))


def _share(results: Results, rows: Bool[np.ndarray, " cluster"]) -> float:
    """Of the samples, in some clusters."""
    size = results.clusters.size
    return float(size[rows].sum() / size.sum())


def _names(results: Results, rows: Bool[np.ndarray, " cluster"]) -> tuple[str, ...]:
    return tuple(name for name, chosen in zip(results.clusters.names, rows.tolist(), strict=True) if chosen)


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
            _names(results, few),
            f"{int(few.sum())} of {len(few)} clusters have fewer than {MIN_HALF} samples in a half (the smallest "
            f"{int(halves.min())}), of {int(halves.sum())} {'removed ' if capped else ''}samples in all: there is no "
            "verdict on them one by one.",
            f"AblationFaithfulness(max_samples={len(results.sample_index)})"
            if capped
            else "a larger max_samples, more than one batch, or fewer clusters",
            {"clusters": int(few.sum()), "smallest_half": int(halves.min()), "samples": int(halves.sum())},
            weight=0.2 + _share(results, few),
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
        if _share(results, mixed) > 0.5:
            typical = float(statistics.weighted_mean(purity, table.size))
            yield Finding(
                "mixed-clusters",
                "",
                "",
                _names(results, mixed),
                f"the commonest class of a cluster has {typical:.0%} of it: what helps one of its classes harms "
                "another, and means over both say little of either.",
                "more clusters, KMeansClusters((2, 20)) for a number by silhouette, or clusters='labels'",
                {"commonest_class": typical, "clusters": int(mixed.sum())},
                weight=0.6 * (1 - typical),
            )


def captured_effect(one: Importance, scores: Float[np.ndarray, "half cluster neuron"] | None = None) -> float:
    """Share of the effects that a ranking's top neurons carry, of those that the best ones carry.

    Effects to first order, (activation - baseline) x derivative, ranked on one half of each cluster and summed on the
    other, both ways, over the top neurons at each fraction and all clusters' samples. 1: the ranking is as good as one
    by those effects, or better; 0: to remove its top neurons helps rather than hurts; NaN where the effects are not
    known. It takes no removal, and holds as far as first order does.

    Args:
        one: the importances.
        scores: to rank by, in the place of the importances.
    """
    effects, scores = one.half_first_order, one.half_mean if scores is None else scores
    if effects is None:
        return float("nan")
    judged = one.faithfulness
    removed = statistics.points(FRACTIONS, one.removal.n_neurons) if judged is None else judged.removed

    def carried(ranking: Float[np.ndarray, "half cluster neuron"]) -> float:
        order = np.argsort(-ranking, axis=-1, kind="stable")
        sums = np.take_along_axis(effects[::-1], order, -1).cumsum(-1)[..., removed - 1].sum(2)
        known = np.isfinite(sums).all(0)
        return float(sums.sum(0)[known] @ one.count.sum(0)[known])

    best = carried(effects)
    return float(np.clip(carried(scores) / best, 0.0, 1.0)) if best > 0 else float("nan")


def _top(one: Importance) -> int:
    return one.reliability.k


def _ranking(results: Results, one: Importance, activity: SiteActivity | None) -> Iterator[Finding]:
    """Why one score's ranking is weak."""
    size, removal = results.clusters.size, one.removal
    if one.attribution == "random":
        return  # a control: it is meant to be weak
    reliability = float(statistics.weighted_mean(one.reliability.split_half, size))
    carried = float(statistics.weighted_mean(one.effective_samples / np.maximum(one.count.sum(0), 1), size))
    flat = removal.target in ("probability", "log_probability") and carried < CARRIED
    if reliability < RELIABLE:
        needed = one.reliability.samples_needed[np.isfinite(one.reliability.samples_needed)]
        most = f" (.9 takes about {int(np.ceil(np.median(needed)))} in a cluster)" if len(needed) else ""
        fewer = "" if results.clusters.source == "labels" else ", fewer or purer clusters"
        margin = "target='margin', which does not hang on a few samples; " if flat else ""
        yield _of(
            one,
            "halves-disagree",
            f"the two halves of a cluster rank its neurons differently (reliability {reliability:.2f}): another sample "
            "would give another ranking.",
            f"{margin}more samples{most}{fewer}",
            {"reliability": reliability},
            weight=1 - reliability,
        )
    gain, captured = _gains(one), captured_effect(one)
    poor = _is_poor(captured, gain["activation x derivative"][0])
    poor = poor or _beaten(results, one, ("gradient_x_activation",)) is not None
    product = one.attribution == "gradient_x_activation"
    if flat and poor:
        yield _of(
            one,
            "saturated-target",
            f"target={removal.target!r} is flat where the model is sure: the scores are carried by {carried:.0%} of "
            f"the samples, and the top neurons carry {_carry(captured)}"
            f"{_lds(one, gain, 'activation x derivative of the margin')}.",
            "target='margin'" + ("" if product else ", and attribution='gradient_x_activation'"),
            {"carried_by": carried, "captured": captured, **_lds_figures(one, gain)},
            weight=1 - captured,
        )
        if product:
            return  # the other findings on this ranking would say the same of its consequences
    yield from _kind_of_score(results, one, activity, gain, captured, poor)
    yield from _first_order_fails(results, one, reliability)
    if (
        activity is not None
        and one.attribution in _FIRST_ORDER
        and activity.nonlinearity
        and activity.derivative_error > MISSED
    ):
        yield _of(
            one,
            "saturated-activation",
            f"{activity.nonlinearity} takes these values next and is saturated: the derivative does not "
            f"see {activity.derivative_error:.0%} of what removal changes in its outcome.",
            f"the layer of the {activity.nonlinearity} itself, or attribution='leave_one_out'",
            {"missed": activity.derivative_error},
            weight=0.8 * min(activity.derivative_error, 1.0),
        )
    if one.faithfulness is not None:
        yield from _not_borne_out(results, one, one.faithfulness)
        yield from _against_references(one, one.faithfulness)
        yield from _hardly_any_fall(one, one.faithfulness)


def _is_poor(captured: float, gain: float) -> bool:
    if np.isnan(gain):
        return captured < POOR[0][0]
    return any(captured < share and gain > bound for share, bound in POOR)


Gains = dict[str, tuple[float, float]]
"""Of each alternative score: the lower end of the interval of (its LDS - LDS), and its LDS."""


def _gains(one: Importance) -> Gains:
    if one.faithfulness is None:
        return dict.fromkeys(("absolute values", "activation size", "activation x derivative"), (np.nan, np.nan))
    overall = one.faithfulness.overall
    return {
        name: (float(overall.alternative_interval[row, 0]), float(overall.alternative_lds[row]))
        for row, name in enumerate(one.faithfulness.alternatives)
    }


def _lds(one: Importance, gain: Gains, what: str) -> str:
    if one.faithfulness is None:
        return ""
    own, other = one.faithfulness.overall.lds, gain["activation x derivative"][1]
    return f"; LDS {'none' if np.isnan(own) else f'{own:.2f}'}, {what} {other:.2f}"


def _lds_figures(one: Importance, gain: Gains, name: str = "activation x derivative") -> dict[str, float]:
    if one.faithfulness is None:
        return {}
    return {"lds": one.faithfulness.overall.lds, f"lds of {name}": gain[name][1]}


def _kind_of_score(
    results: Results, one: Importance, activity: SiteActivity | None, gain: Gains, captured: float, poor: bool
) -> Iterator[Finding]:
    """A derivative without a distance, a distance without a derivative, absolute values, signs that cancel."""
    figures = {"captured": captured, **_lds_figures(one, gain)}
    what = f": the top neurons carry {_carry(captured)}{_lds(one, gain, 'activation x derivative of the same pass')}."
    lost = 1 - captured
    weighted = np.abs(one.mean).sum(1) @ one.count.sum(0)
    total = one.abs_mean.sum(1) @ one.count.sum(0)
    surviving = float(weighted / total) if total > 0 else float("nan")
    unsigned = bool(one.removal.n_neurons > 1 and not (one.half_mean < 0).any() and surviving > 1 - 1e-6)
    first_order = one.first_order
    if poor:
        if one.attribution == "gradient":
            yield _of(
                one,
                "derivative-without-distance",
                "the derivative is a sensitivity; removal also moves each neuron by its distance from the baseline"
                + what,
                "attribution='gradient_x_activation'",
                figures,
                weight=lost,
            )
        elif one.attribution == "activation":
            yield _of(
                one,
                "activation-without-derivative",
                f"how far a neuron is from the baseline does not say what that does to the {one.removal.target}" + what,
                "attribution='gradient_x_activation'",
                figures,
                weight=lost,
            )
        elif unsigned and first_order is not None and (negative := _negative(first_order)) > 0:
            yield _of(
                one,
                "absolute-values",
                f"scores without a sign rank neurons whose removal helps as high as those whose removal hurts; "
                f"{negative:.0%} of the effects to first order are negative" + what,
                "keep the sign, as attribution='gradient_x_activation' does",
                {"negative": negative, **figures},
                weight=lost,
            )
        elif one.attribution != "gradient_x_activation":
            yield _of(
                one,
                "better-score-at-hand",
                "another score of the same pass predicts better what removal does" + what,
                "attribution='gradient_x_activation'",
                figures,
                weight=lost,
            )
        if activity is not None and one.attribution in ("gradient", "activation"):
            both = _both_signs(activity, one)
            if both > 0.5:
                yield _of(
                    one,
                    "signed-activations",
                    f"{both:.0%} of the neurons go to both sides of the baseline, so that neither the sign of their "
                    "activation nor that of a derivative says whether removing them hurts; only the product does.",
                    "attribution='gradient_x_activation'",
                    {"both_signs": both},
                    weight=0.3 * lost,
                )
    if one.faithfulness is None:
        return
    absolute, lds = gain["absolute values"]
    cancels = f" ({1 - surviving:.0%} of the scores' size cancels inside the clusters)" if surviving < 0.9 else ""
    if absolute > GAIN:
        yield _of(
            one,
            "cancelling-signs",
            f"the sign of the mean misleads{cancels}: the absolute values of single samples predict removal better "
            f"(LDS {lds:.2f} against {one.faithfulness.overall.lds:.2f}).",
            "attribution='gradient_x_activation', whose sign means something"
            + ("" if results.clusters.source == "labels" else "; purer clusters"),
            {"surviving": surviving, **_lds_figures(one, gain, "absolute values")},
            weight=0.5 * absolute,
        )


def _carry(captured: float) -> str:
    if captured <= 0:
        return "no effect: to remove them helps rather than hurts"
    return f"{captured:.0%} of the effect that the best ones carry"


def _beaten(results: Results, one: Importance, by: tuple[str, ...]) -> str | None:
    """Which other score has a gap that is larger for certain, and by much, where both were measured."""
    for other in by:
        rival = results.get((one.site, other), one)
        if rival is one or rival.faithfulness is None or one.faithfulness is None:
            continue
        better = next(
            each.better
            for each in results.comparisons
            if each.site == one.site and {each.first, each.second} == {one.attribution, other}
        )
        if better == other and one.faithfulness.overall.gap < MUCH * rival.faithfulness.overall.gap:
            return other
    return None


def _first_order_fails(results: Results, one: Importance, reliability: float) -> Iterator[Finding]:
    """The default itself: where the target bends so much that a straight line says little of removal."""
    judged = one.faithfulness
    if one.attribution != "gradient_x_activation" or judged is None or one.removal.target != "margin":
        return
    better = _beaten(results, one, ("masked_gradient", "leave_one_out", "integrated_gradients"))
    high = float(judged.overall.lds_interval[1])
    if better is None and not (high < STRAIGHT and reliability > RELIABLE):
        return
    text = (
        f"effects to first order predict removal poorly here (LDS {judged.overall.lds:.2f}, reliability "
        f"{reliability:.2f})"
    )
    if better is not None:
        rival = results[one.site, better].faithfulness
        assert rival is not None
        text = (
            f"effects to first order are not enough here: {better} has a gap of {rival.overall.gap:+.3f}, this score "
            f"{judged.overall.gap:+.3f} (LDS {rival.overall.lds:.2f} and {judged.overall.lds:.2f})"
        )
    yield _of(
        one,
        "first-order-fails",
        f"{text}: what the network does bends between the activations and the baseline.",
        f"attribution={better!r}" if better else "attribution='masked_gradient' or 'leave_one_out'; compare their gaps",
        {"lds": judged.overall.lds, "lds_high": high, "reliability": reliability},
        weight=1 - judged.overall.lds if np.isfinite(judged.overall.lds) else 0.5,
    )


def _negative(first_order: Float[np.ndarray, "cluster neuron"]) -> float:
    """Share of the effects to first order that are negative, by size."""
    size = np.nansum(np.abs(first_order))
    return float(-np.nansum(np.minimum(first_order, 0)) / size) if size > 0 else 0.0


def _both_signs(activity: SiteActivity, one: Importance) -> float:
    """Share of the channels that go to both sides of the baseline."""
    baseline = one.removal.baseline_value
    reach = BOTH_SIGNS * (activity.maximum - activity.minimum)
    known = np.isfinite(baseline) & (reach > 0)
    both = (activity.minimum < baseline - reach) & (activity.maximum > baseline + reach)
    return float(both[known].mean()) if known.any() else 0.0


def _not_borne_out(results: Results, one: Importance, faithfulness: Faithfulness) -> Iterator[Finding]:
    """Single clusters of a layer whose ranking holds as a whole."""
    poor = np.array([judged in ("no better than random", "worse than random") for judged in faithfulness.verdict])
    if faithfulness.overall.verdict != "faithful" or not poor.any():
        return
    counts = results.clusters.class_counts[poor]
    purity = float(np.mean(counts.max(1) / np.maximum(counts.sum(1), 1)))
    mixed = purity < 1 - MIXED
    # random orders that were ahead by chance are one or two
    chance = (faithfulness.p_value[poor] <= 3 / (faithfulness.n_draws + 1)).any()
    if chance:
        remedy = f"n_random={max(99, 5 * faithfulness.n_draws)}: with {faithfulness.n_draws} one or two orders decide"
    elif mixed:
        remedy = "more or other clusters, so that each holds less that is different"
    else:
        remedy = "do not read these clusters' neurons; more samples may tell"
    yield Finding(
        "clusters-not-borne-out",
        one.site,
        one.attribution,
        _names(results, poor),
        f"removal bears out the ranking of the layer, but not that of {int(poor.sum())} of {len(poor)} clusters"
        + (f" (the commonest class has {purity:.0%} of them)." if mixed else "."),
        remedy,
        {"clusters": int(poor.sum()), "commonest_class": purity},
        weight=0.1 + 0.5 * _share(results, poor),
    )


def _against_references(one: Importance, faithfulness: Faithfulness) -> Iterator[Finding]:
    """Rankings that take less are as good."""
    overall = faithfulness.overall
    for row, name in enumerate(faithfulness.references):
        own = name == "activation size" and one.attribution == "activation"
        low = float(overall.reference_interval[row, 0])
        difference = overall.gap - float(overall.reference_gap[row])
        if own or one.removal.n_neurons < 2 or len(one.cluster_ids) < 2 or not (low <= 0 and difference < TIE):
            continue
        worse = "better" if difference < -TIE else "as good"
        if name == "activation size":
            text, remedy = (
                f"to rank by mean |activation - baseline| is {worse} (gap {overall.reference_gap[row]:+.3f}, this "
                f"score {overall.gap:+.3f}).",
                "do not read more into the score than into the activations; try another layer or score",
            )
        else:
            text, remedy = (
                f"one ranking for all clusters is {worse} (gap {overall.reference_gap[row]:+.3f}, each cluster's own "
                f"{overall.gap:+.3f}): nothing is learnt about single clusters.",
                "do not read the clusters' differences; a later layer or other clusters may have some",
            )
        yield _of(
            one,
            "no-better-than-reference",
            text,
            remedy,
            {"gap": overall.gap, f"gap of {name}": float(overall.reference_gap[row])},
            weight=0.15 + min(max(-difference, 0.0), 1.0),
        )


def _hardly_any_fall(one: Importance, faithfulness: Faithfulness) -> Iterator[Finding]:
    """The scores are right, and accuracy does not show it."""
    overall, most = faithfulness.overall, int(faithfulness.removed[-1])
    left = overall.accuracy[-1] / overall.intact_accuracy if overall.intact_accuracy > 0 else float("nan")
    if overall.lds > PREDICTS and overall.relative_gap < WEAK and left > HARDLY and most < one.removal.n_neurons:
        yield _of(
            one,
            "hardly-any-fall",
            f"the scores predict how the margin falls (LDS {overall.lds:.2f}), but accuracy hardly does: without the "
            f"top {most} of {one.removal.n_neurons} neurons {left:.0%} of it are left.",
            "larger fractions in AblationFaithfulness, such as (.5, .7, .8, .9, .95), or read the LDS",
            {"left": float(left), "lds": overall.lds, "removed": most},
            weight=0.5,
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
        yield _of(
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
        yield _of(
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
    share, k = float(constant.mean()), _top(ones[0])
    for one in ones:
        if one.attribution == "random":
            continue
        top = np.argsort(-one.mean, axis=1, kind="stable")[:, :k]
        # a score of exactly zero ranks nobody: constant neurons fill up where fewer matter than are looked at
        of_top = float((constant[top] & (np.take_along_axis(one.mean, top, 1) > 0)).mean())
        if of_top > TOP_CONSTANT:
            yield _of(
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
        yield _of(
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
        yield _of(
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
