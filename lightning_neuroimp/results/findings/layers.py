"""What holds for a layer, whatever the score."""

from collections.abc import Iterator

import numpy as np

from lightning_neuroimp import statistics
from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.results.findings.finding import Finding
from lightning_neuroimp.results.findings.rankings import about
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import MIN_HALF

FAR = 2
"""A baseline more standard deviations than this from a neuron's mean lies outside of what the neuron does."""


REDUNDANT = 2.5
"""Neurons stand in for one another where one of half of them costs so many times more than one of a tenth."""


INERT = 0.3
"""They do, too, where removing a tenth costs less than this share of what the scores say."""


DEAD = 0.5
"""Many neurons are constant where this share of them is; fewer count where they are..."""


TOP_CONSTANT = 0.05
"""... more than this share of a cluster's top tenth."""


def baseline_outside(one: Importance, activity: SiteActivity) -> Iterator[Finding]:
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


def constant_neurons(ones: list[Importance], activity: SiteActivity) -> Iterator[Finding]:
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
    size = judged.samples[:, :-1].sum(0)
    falls = statistics.weighted_mean(
        (judged.intact_margin[:-1, None] - judged.random_margin[:, :-1]).swapaxes(1, 2), size
    )
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


def redundancy(results: Results, one: Importance) -> Iterator[Finding]:
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
