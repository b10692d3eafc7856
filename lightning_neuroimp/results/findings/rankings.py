"""Rankings: why that of one score is weak, from what the passes have measured anyway."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from lightning_neuroimp import statistics
from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.findings.finding import Finding
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import FRACTIONS, TIE, WEAK

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


MUCH = 0.8
"""A score is beaten by another one where its gap is below this share of the other one's."""


STRAIGHT = 0.75
"""First order fails where the upper end of the interval of its LDS is below this, although the halves agree."""


MIXED = 0.1
"""A cluster that is not borne out may be so for being mixed where more than this share is of other classes."""


RELIABLE = 0.7
"""Halves disagree where the reliability is below this."""


HARDLY = 0.9
"""Hardly anything is lost where this share of the accuracy is left with the most neurons removed that were..."""


PREDICTS = 0.8
"""... although the LDS is above this."""


_FIRST_ORDER = ("gradient", "gradient_x_activation")


def about(
    one: Importance, name: str, text: str, remedy: str, figures: dict[str, float], weight: float, *, layer: bool = False
) -> Finding:
    """About one ranking, or about its layer whatever the ranking is."""
    return Finding(name, one.site, "" if layer else one.attribution, (), text, remedy, figures, float(weight))


def share_of(results: Results, rows: Bool[np.ndarray, " cluster"]) -> float:
    """Of the samples, in some clusters."""
    size = results.clusters.size
    return float(size[rows].sum() / size.sum())


def names_of(results: Results, rows: Bool[np.ndarray, " cluster"]) -> tuple[str, ...]:
    """Of some clusters."""
    return tuple(name for name, chosen in zip(results.clusters.names, rows.tolist(), strict=True) if chosen)


def captured_effect(one: Importance) -> float:
    """Share of the effects that a ranking's top neurons carry, of those that the best ones carry.

    Effects to first order, (activation - baseline) x derivative, ranked on one half of each cluster and summed on the
    other, both ways, over the top neurons at each fraction and all clusters' samples. 1: the ranking is as good as one
    by those effects, or better; 0: to remove its top neurons helps rather than hurts; NaN where the effects are not
    known. It takes no removal, and holds as far as first order does.

    Args:
        one: the importances.
    """
    effects = one.half_first_order
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
    return float(np.clip(carried(one.half_mean) / best, 0.0, 1.0)) if best > 0 else float("nan")


def findings_on(results: Results, one: Importance, activity: SiteActivity | None) -> Iterator[Finding]:
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
        yield about(
            one,
            "halves-disagree",
            f"the two halves of a cluster rank its neurons differently (reliability {reliability:.2f}): another sample "
            "would give another ranking.",
            f"{margin}more samples{most}{fewer}",
            {"reliability": reliability},
            weight=1 - reliability,
        )
    gain, captured = _gains(one), captured_effect(one)
    beaten = _beaten(results, one, ("gradient_x_activation",)) is not None
    poor = beaten or _is_poor(captured, gain["activation x derivative"][0])
    product = one.attribution == "gradient_x_activation"
    if flat and poor:
        yield about(
            one,
            "saturated-target",
            f"target={removal.target!r} is flat where the model is sure: the scores are carried by {carried:.0%} of "
            f"the samples, and the top neurons carry {_carry(captured)}"
            f"{_lds(one, gain, 'activation x derivative of the margin')}.",
            "target='margin'" + ("" if product else ", and attribution='gradient_x_activation'"),
            {"carried_by": carried, "captured": captured, **_lds_figures(one, gain)},
            weight=_lost(captured),
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
        yield about(
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
    faithfulness = one.faithfulness
    return {
        name: (float(faithfulness.alternative_interval[row, -1, 0]), float(faithfulness.alternative_lds[row, -1]))
        for row, name in enumerate(one.faithfulness.alternatives)
    }


def _lds(one: Importance, gain: Gains, what: str) -> str:
    if one.faithfulness is None:
        return ""
    own, other = one.faithfulness.lds[-1], gain["activation x derivative"][1]
    return f"; LDS {'none' if np.isnan(own) else f'{own:.2f}'}, {what} {other:.2f}"


def _lds_figures(one: Importance, gain: Gains, name: str = "activation x derivative") -> dict[str, float]:
    if one.faithfulness is None:
        return {}
    return {"lds": one.faithfulness.lds[-1], f"lds of {name}": gain[name][1]}


def _kind_of_score(
    results: Results, one: Importance, activity: SiteActivity | None, gain: Gains, captured: float, poor: bool
) -> Iterator[Finding]:
    """A derivative without a distance, a distance without a derivative, absolute values, signs that cancel."""
    figures = {"captured": captured, **_lds_figures(one, gain)}
    what = f": the top neurons carry {_carry(captured)}{_lds(one, gain, 'activation x derivative of the same pass')}."
    lost = _lost(captured)
    weighted = np.abs(one.mean).sum(1) @ one.count.sum(0)
    total = one.abs_mean.sum(1) @ one.count.sum(0)
    surviving = float(weighted / total) if total > 0 else float("nan")
    unsigned = bool(one.removal.n_neurons > 1 and not (one.half_mean < 0).any() and surviving > 1 - 1e-6)
    first_order = one.first_order
    if poor:
        if one.attribution == "gradient":
            yield about(
                one,
                "derivative-without-distance",
                "the derivative is a sensitivity; removal also moves each neuron by its distance from the baseline"
                + what,
                "attribution='gradient_x_activation'",
                figures,
                weight=lost,
            )
        elif one.attribution == "activation":
            yield about(
                one,
                "activation-without-derivative",
                f"how far a neuron is from the baseline does not say what that does to the {one.removal.target}" + what,
                "attribution='gradient_x_activation'",
                figures,
                weight=lost,
            )
        elif unsigned and first_order is not None and (negative := _negative(first_order)) > 0:
            yield about(
                one,
                "absolute-values",
                f"scores without a sign rank neurons whose removal helps as high as those whose removal hurts; "
                f"{negative:.0%} of the effects to first order are negative" + what,
                "keep the sign, as attribution='gradient_x_activation' does",
                {"negative": negative, **figures},
                weight=lost,
            )
        elif one.attribution != "gradient_x_activation":
            yield about(
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
                yield about(
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
        yield about(
            one,
            "cancelling-signs",
            f"the sign of the mean misleads{cancels}: the absolute values of single samples predict removal better "
            f"(LDS {lds:.2f} against {one.faithfulness.lds[-1]:.2f}).",
            "attribution='gradient_x_activation', whose sign means something"
            + ("" if results.clusters.source == "labels" else "; purer clusters"),
            {"surviving": surviving, **_lds_figures(one, gain, "absolute values")},
            weight=0.5 * absolute,
        )


def _lost(captured: float) -> float:
    """Of the effects; where they are not known, and a comparison has told that much is, half."""
    return 0.5 if np.isnan(captured) else 1 - captured


def _carry(captured: float) -> str:
    if np.isnan(captured):
        return "less than others do"
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
        if better == other and one.faithfulness.gap[-1] < MUCH * rival.faithfulness.gap[-1]:
            return other
    return None


def _first_order_fails(results: Results, one: Importance, reliability: float) -> Iterator[Finding]:
    """The default itself: where the target bends so much that a straight line says little of removal."""
    judged = one.faithfulness
    if one.attribution != "gradient_x_activation" or judged is None or one.removal.target != "margin":
        return
    better = _beaten(results, one, ("masked_gradient", "leave_one_out", "integrated_gradients"))
    high = float(judged.lds_interval[-1, 1])
    if better is None and not (high < STRAIGHT and reliability > RELIABLE):
        return
    text = (
        f"effects to first order predict removal poorly here (LDS {judged.lds[-1]:.2f}, reliability {reliability:.2f})"
    )
    if better is not None:
        rival = results[one.site, better].faithfulness
        assert rival is not None
        text = (
            f"effects to first order are not enough here: {better} has a gap of {rival.gap[-1]:+.3f}, this score "
            f"{judged.gap[-1]:+.3f} (LDS {rival.lds[-1]:.2f} and {judged.lds[-1]:.2f})"
        )
    yield about(
        one,
        "first-order-fails",
        f"{text}: what the network does bends between the activations and the baseline.",
        f"attribution={better!r}" if better else "attribution='masked_gradient' or 'leave_one_out'; compare their gaps",
        {"lds": judged.lds[-1], "lds_high": high, "reliability": reliability},
        weight=1 - judged.lds[-1] if np.isfinite(judged.lds[-1]) else 0.5,
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
    poor = np.array([judged in ("no better than random", "worse than random") for judged in faithfulness.verdict[:-1]])
    if faithfulness.verdict[-1] != "faithful" or not poor.any():
        return
    counts = results.clusters.class_counts[poor]
    purity = float(np.mean(counts.max(1) / np.maximum(counts.sum(1), 1)))
    mixed = purity < 1 - MIXED
    # random orders that were ahead by chance are one or two
    chance = (faithfulness.p_value[:-1][poor] <= 3 / (faithfulness.n_draws + 1)).any()
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
        names_of(results, poor),
        f"removal bears out the ranking of the layer, but not that of {int(poor.sum())} of {len(poor)} clusters"
        + (f" (the commonest class has {purity:.0%} of them)." if mixed else "."),
        remedy,
        {"clusters": int(poor.sum()), "commonest_class": purity},
        weight=0.1 + 0.5 * share_of(results, poor),
    )


def _against_references(one: Importance, faithfulness: Faithfulness) -> Iterator[Finding]:
    """Rankings that take less are as good."""
    for row, name in enumerate(faithfulness.references):
        own = name == "activation size" and one.attribution == "activation"
        low = float(faithfulness.reference_interval[row, -1, 0])
        difference = faithfulness.gap[-1] - float(faithfulness.reference_gap[row, -1])
        if own or one.removal.n_neurons < 2 or len(one.cluster_ids) < 2 or not (low <= 0 and difference < TIE):
            continue
        worse = "better" if difference < -TIE else "as good"
        if name == "activation size":
            text, remedy = (
                f"to rank by mean |activation - baseline| is {worse} (gap {faithfulness.reference_gap[row, -1]:+.3f}, this "
                f"score {faithfulness.gap[-1]:+.3f}).",
                "do not read more into the score than into the activations; try another layer or score",
            )
        else:
            text, remedy = (
                f"one ranking for all clusters is {worse} (gap {faithfulness.reference_gap[row, -1]:+.3f}, each cluster's own "
                f"{faithfulness.gap[-1]:+.3f}): nothing is learnt about single clusters.",
                "do not read the clusters' differences; a later layer or other clusters may have some",
            )
        yield about(
            one,
            "no-better-than-reference",
            text,
            remedy,
            {"gap": faithfulness.gap[-1], f"gap of {name}": float(faithfulness.reference_gap[row, -1])},
            weight=0.15 + min(max(-difference, 0.0), 1.0),
        )


def _hardly_any_fall(one: Importance, faithfulness: Faithfulness) -> Iterator[Finding]:
    """The scores are right, and accuracy does not show it."""
    most = int(faithfulness.removed[-1])
    left = (
        faithfulness.accuracy[-1, -1] / faithfulness.intact_accuracy[-1]
        if faithfulness.intact_accuracy[-1] > 0
        else float("nan")
    )
    if (
        faithfulness.lds[-1] > PREDICTS
        and faithfulness.relative_gap[-1] < WEAK
        and left > HARDLY
        and most < one.removal.n_neurons
    ):
        yield about(
            one,
            "hardly-any-fall",
            f"the scores predict how the margin falls (LDS {faithfulness.lds[-1]:.2f}), but accuracy hardly does: without the "
            f"top {most} of {one.removal.n_neurons} neurons {left:.0%} of it are left.",
            "larger fractions in AblationFaithfulness, such as (.5, .7, .8, .9, .95), or read the LDS",
            {"left": float(left), "lds": faithfulness.lds[-1], "removed": most},
            weight=0.5,
        )
