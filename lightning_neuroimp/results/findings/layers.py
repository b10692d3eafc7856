"""Findings about a layer, whatever the score is (constant neurons are reported for a score that ranks them high)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from lightning_neuroimp import statistics
from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.results.findings.finding import Finding, about_layer, about_score
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import MIN_HALF, TIE, Verdict

FAR = 2
"""A baseline is outside the activations of a channel where it is more standard deviations than this from their mean."""


def baseline_outside(importance: Importance, activity: SiteActivity) -> Finding | None:
    """Say that the baseline is outside the activations of most channels; None where it is not.

    Args:
        importance: any score at the site.
        activity: what the activations of the site are like.
    """
    away = activity.distance(importance.removal.baseline_value)
    far, known = int((away > FAR).sum()), int(np.isfinite(away).sum())
    if not known or far <= known / 2:
        return None
    return about_layer(
        importance,
        "baseline-outside",
        f"the baseline ({_baseline(importance)}) lies more than {FAR} standard deviations from the mean of {far} of "
        f"{known} channels that vary: setting neurons to it does not just remove what they say, it gives them values "
        "that they hardly ever take.",
        "baseline='mean'",
        {"far": far, "channels": known},
        weight=0.5 * far / known,
    )


def _baseline(importance: Importance) -> str:
    removal = importance.removal
    return f"constant {removal.baseline_value[0]:g}" if removal.baseline == "constant" else removal.baseline


TOP_CONSTANT = 0.05
"""Constant neurons matter where they are more than this share of the clusters' top tenths..."""

DEAD = 0.5
"""... or more than this share of all neurons."""


def constant_neurons(importances: Sequence[Importance], activity: SiteActivity) -> Finding | None:
    """Say that constant neurons are ranked high by a score, or are most of the layer; None where neither is so.

    Args:
        importances: all scores at the site; the first one that ranks constant neurons high is reported.
        activity: what the activations of the site are like.
    """
    first = importances[0]
    constant = (activity.minimum == activity.maximum).reshape(-1, first.removal.where.group).all(1)
    # among few samples any neuron may be constant
    if not constant.any() or first.count.sum() < 2 * MIN_HALF:
        return None
    share, number = float(constant.mean()), f"{int(constant.sum())} of {len(constant)} neurons"
    for importance in importances:
        of_top = 0.0 if importance.attribution_kind == "random" else _constant_share_of_top(importance, constant)
        if of_top > TOP_CONSTANT:
            return about_score(
                importance,
                "constant-neurons",
                f"{number} are constant on all samples, and they are {of_top:.0%} of the clusters' top "
                f"{importance.reliability.k}: they say nothing about a sample, their score is that of a bias.",
                "baseline='mean' and attribution='gradient_x_activation', which score them zero",
                {"constant": share, "of_top": of_top},
                weight=0.3 + 0.5 * of_top,
            )
    if share <= DEAD:
        return None
    return about_layer(
        first,
        "constant-neurons",
        f"{number} are constant on all samples: shares of removed neurons include them, so random removal takes few "
        "neurons that matter, and gaps look larger than they are.",
        "compare with other layers by number of neurons rather than by share; use a narrower layer, or another "
        "initialisation",
        {"constant": share, "of_top": 0.0},
        weight=0.3 * share,
    )


def _constant_share_of_top(importance: Importance, constant: Bool[np.ndarray, " neuron"]) -> float:
    mean = importance.mean
    top = np.argsort(-mean, axis=1, kind="stable")[:, : importance.reliability.k]
    # a score of exactly zero ranks no neuron: constant ones fill up where fewer matter than are looked at
    return float((constant[top] & (np.take_along_axis(mean, top, 1) > 0)).mean())


REDUNDANT = 2.5
"""Neurons are redundant where each of the most removed ones costs more times than this what each of a tenth costs..."""

INERT = 0.3
"""... or where removing a tenth costs less than this share of what their scores predict."""


def redundancy(results: Results, importance: Importance) -> Finding | None:
    """Say that neurons stand in for one another; None where they do not, or where that is not known.

    Args:
        results: one measurement.
        importance: any score at the site.
    """
    removal, judged = importance.removal, importance.faithfulness
    if judged is None or removal.target_class != "label":
        return None
    ratio, lower, kept, upper = joint_effects(results, importance)
    in_margins = removal.target_kind in ("margin", "probability", "log_probability")
    if lower > REDUNDANT:
        others = int(judged.removed[-1]) - 1
        text = (
            f"removing a neuron together with {others} others costs {ratio:.1f} times as much as with few."
            if np.isfinite(ratio)
            else f"removing a neuron together with {others} others has a cost, with few it has none."
        )
    elif in_margins and importance.first_order is not None and upper < INERT:
        text = f"removing a tenth of them costs {max(kept, 0.0):.0%} of what their scores predict."
    else:
        return None
    return about_layer(
        importance,
        "redundancy",
        f"neurons stand in for one another: {text} The effect of a single neuron says little about that of several.",
        "attribution='masked_gradient', which averages over removals of other neurons, or Site(name, group=...)",
        # figures that can be plotted
        {"joint_over_single": min(ratio, 1e9), "lower": min(lower, 1e9), "single_over_scores": kept},
        weight=0.4,
    )


def joint_effects(results: Results, importance: Importance) -> tuple[float, float, float, float]:
    """Compare the effect of removing neurons with many others, with few others, and as the scores predict it.

    Args:
        results: one measurement.
        importance: any score at the site.

    Returns:
        Mean fall of the margin per neuron with the most neurons removed at random, over that with at most a tenth of
        them; the lower end of its 95% interval over the random orders; the latter fall over what the effects to first
        order (otherwise the scores) predict; and the upper end of its interval. NaN where they are not known.
    """
    judged, unknown = importance.faithfulness, (float("nan"),) * 4
    if judged is None or not judged.samples.any():
        return unknown
    size = judged.samples[:, :-1].sum(0)
    falls = (judged.intact_margin[:-1, None] - judged.random_margin[:, :-1]).swapaxes(1, 2)
    per_neuron = statistics.weighted_mean(falls, size) / judged.removed  # (draw, point)
    few = judged.removed <= max(1.0, 0.1 * importance.removal.n_neurons + 1)
    if few.all() or not few.any():
        return unknown
    n_draws = len(per_neuron)
    generator = np.random.default_rng([results.seed, n_draws])
    draws = np.concatenate([np.arange(n_draws)[None], generator.integers(n_draws, size=(999, n_draws))])
    single, joint = per_neuron[:, few].mean(1)[draws].mean(1), per_neuron[:, -1][draws].mean(1)
    # where removing few costs nothing at all there is no ratio: any cost is infinitely more
    ratio = np.divide(joint, single, out=np.where(joint > 0, np.inf, np.nan), where=single > 0)
    known = np.sort(ratio[1:][~np.isnan(ratio[1:])])
    lower = float(known[int(0.025 * len(known))]) if len(known) > len(ratio) / 2 else float("nan")
    scores = importance.mean if importance.first_order is None else importance.first_order
    predicted = float(statistics.weighted_mean(scores.mean(1), size))
    kept = single / predicted if predicted > 0 else np.full(len(single), np.nan)
    return float(ratio[0]), lower, float(kept[0]), float(np.quantile(kept[1:], 0.975))


def methods_agree(importances: Sequence[Importance]) -> Finding | None:
    """Say that all scores at a site are faithful and do equally well; None where they differ.

    Args:
        importances: all scores at the site.
    """
    judged = [each.faithfulness for each in importances if each.attribution_kind != "random" and each.faithfulness]
    if len(judged) < 2 or any(each.verdict[-1] != Verdict.FAITHFUL for each in judged):
        return None
    gaps = [float(each.gap[-1]) for each in judged]
    if max(gaps) - min(gaps) >= TIE:
        return None
    return about_layer(
        importances[0],
        "methods-agree",
        f"all {len(judged)} scores do equally well here (gaps {min(gaps):+.3f} to {max(gaps):+.3f}): comparing them at "
        "this layer does not tell which one is better.",
        "use the cheapest one, or compare them at an earlier layer",
        {"smallest_gap": min(gaps), "largest_gap": max(gaps)},
        weight=0.05,
    )
