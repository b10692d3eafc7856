"""Findings about the ranking of one score: why it is weak, from what the passes have measured anyway."""

import numpy as np

from lightning_neuroimp import statistics
from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.results.agreement import Randomisation
from lightning_neuroimp.results.findings.evidence import EFFECTS, Evidence
from lightning_neuroimp.results.findings.finding import Finding, about_score
from lightning_neuroimp.results.findings.removal import hardly_any_fall, no_better_than_reference, unsupported_clusters
from lightning_neuroimp.results.importance import ORDER, Importance
from lightning_neuroimp.results.measurement import Results

DEFAULT = "attribution='gradient_x_activation'"
"""What to use instead of a poor score."""


def score_findings(results: Results, importance: Importance, activity: SiteActivity | None) -> list[Finding]:
    """Return all findings about one score at one site; none for random scores, which are meant to be weak.

    Args:
        results: one measurement.
        importance: one of its importances.
        activity: what the activations of the site are like, where that is known.
    """
    if importance.attribution_kind == "random":
        return []
    evidence = Evidence(results, importance, activity)
    target = saturated_target(evidence)
    found = [halves_disagree(evidence), target]
    # of effects the other rules would only report what a saturated target causes
    if target is None or evidence.kind not in EFFECTS:
        found += [
            gradient_without_distance(evidence),
            activation_without_gradient(evidence),
            absolute_values(evidence),
            better_score_at_hand(evidence),
            signed_activations(evidence),
            cancelling_signs(evidence),
            first_order_fails(evidence),
            poor_prediction(evidence),
            saturated_activation(evidence),
            unsupported_clusters(results, importance),
            *no_better_than_reference(importance),
            hardly_any_fall(evidence),
        ]
    return [finding for finding in found if finding is not None]


RELIABLE = 0.7
"""Halves disagree where the reliability is below this."""


def halves_disagree(evidence: Evidence) -> Finding | None:
    """Say that another sample would give another ranking; None where the halves agree, or it is not known."""
    if not evidence.reliability < RELIABLE:
        return None
    needed = evidence.importance.reliability.samples_needed
    needed = needed[np.isfinite(needed)]
    number = f" (.9 takes about {int(np.ceil(np.median(needed)))} per cluster)" if len(needed) else ""
    fewer = "" if evidence.results.clusters.kind == "labels" else ", fewer or more homogeneous clusters"
    margin = "target='margin', which does not depend on a few samples; " if evidence.is_flat else ""
    return about_score(
        evidence.importance,
        "halves-disagree",
        f"the two halves of a cluster rank its neurons differently (reliability {evidence.reliability:.2f}): another "
        "sample would give another ranking.",
        f"{margin}more samples{number}{fewer}",
        {"reliability": evidence.reliability},
        weight=1 - evidence.reliability,
    )


def saturated_target(evidence: Evidence) -> Finding | None:
    """Say that a few samples carry a poor ranking, as the target is flat for all others; None where that is not so."""
    if not (evidence.is_flat and evidence.accounts_for_less):
        return None
    return about_score(
        evidence.importance,
        "saturated-target",
        f"target={evidence.importance.removal.target!r} is flat where the model is confident: the scores are carried "
        f"by {evidence.carried_by:.0%} of the samples, and {evidence.accounted()}"
        f"{evidence.lds_against('gradient x activation of the margin')}.",
        "target='margin'" + ("" if evidence.kind in EFFECTS else f", and {DEFAULT}"),
        {
            "carried_by": evidence.carried_by,
            "captured": evidence.captured,
            **evidence.lds_figures("first_order"),
        },
        weight=evidence.lost,
    )


def gradient_without_distance(evidence: Evidence) -> Finding | None:
    """Say that a poor ranking is by the gradient alone; None where it is not."""
    if not evidence.is_poor or evidence.kind != "gradient":
        return None
    claim = "the gradient is a sensitivity; removal also moves each neuron by its distance from the baseline"
    return _poor_ranking(evidence, "derivative-without-distance", claim, DEFAULT)


def activation_without_gradient(evidence: Evidence) -> Finding | None:
    """Say that a poor ranking is by the activation alone; None where it is not."""
    if not evidence.is_poor or evidence.kind != "activation":
        return None
    target = evidence.importance.removal.target
    claim = f"how far a neuron is from the baseline does not say what that does to the {target}"
    return _poor_ranking(evidence, "activation-without-derivative", claim, DEFAULT)


def absolute_values(evidence: Evidence) -> Finding | None:
    """Say that a poor ranking is by scores without a sign, although effects have one; None where that is not so."""
    if not evidence.is_poor or evidence.kind in ("gradient", "activation", ORDER) or not evidence.hidden_negative > 0:
        return None
    negative = evidence.hidden_negative
    claim = (
        "scores without a sign rank neurons whose removal helps as high as those whose removal hurts; "
        f"{negative:.0%} of the effects to first order are negative"
    )
    remedy = f"keep the sign, as {DEFAULT} does"
    return _poor_ranking(evidence, "absolute-values", claim, remedy, {"negative": negative})


def better_score_at_hand(evidence: Evidence) -> Finding | None:
    """Say that a ranking is poor for no reason that is known; None where it is not, or there is a reason."""
    explained = evidence.kind in ("gradient", "activation", *EFFECTS) or evidence.hidden_negative > 0
    if not evidence.is_poor or explained:
        return None
    claim = "another score of the same pass predicts the effect of removal better"
    return _poor_ranking(evidence, "better-score-at-hand", claim, DEFAULT)


def _poor_ranking(
    evidence: Evidence, id: str, claim: str, remedy: str, figures: dict[str, float] | None = None
) -> Finding:
    """Return a finding about a poor ranking: the reason, then how much its top neurons account for."""
    lds, loss = evidence.lds_against("gradient x activation of the same pass"), evidence.measured_loss
    measured = {} if loss is None else {"gap": loss.gap, "gap of first_order": loss.rival}
    return about_score(
        evidence.importance,
        id,
        f"{claim}: {evidence.top_neurons()}{lds}.",
        remedy,
        {**(figures or {}), "captured": evidence.captured, **evidence.lds_figures("first_order"), **measured},
        weight=evidence.lost,
    )


BOTH_SIGNS = 0.1
"""A neuron is signed where it exceeds the baseline on both sides by more than this share of its range."""

MOST = 0.5
"""Activations are signed where more than this share of the channels is."""


def signed_activations(evidence: Evidence) -> Finding | None:
    """Say that a poor ranking is by one factor of a product of two signs; None where that is not so."""
    if not evidence.is_poor or evidence.activity is None or evidence.kind not in ("gradient", "activation"):
        return None
    both = _share_on_both_sides(evidence.activity, evidence.importance)
    if both <= MOST:
        return None
    # never "100%" of what is not all
    neurons = "all neurons" if both == 1 else f"{min(both, 0.99):.0%} of the neurons"
    return about_score(
        evidence.importance,
        "signed-activations",
        f"{neurons} take values on both sides of the baseline, so neither the sign of the activation nor that of the "
        "gradient says whether removing them hurts; only their product does.",
        DEFAULT,
        {"both_signs": both},
        weight=0.3 * evidence.lost,
    )


def _share_on_both_sides(activity: SiteActivity, importance: Importance) -> float:
    """Return the share of the channels that take values clearly above and clearly below the baseline, 0 to 1."""
    baseline = importance.removal.baseline_value
    reach = BOTH_SIGNS * (activity.maximum - activity.minimum)
    known = np.isfinite(baseline) & (reach > 0)
    both = (activity.minimum < baseline - reach) & (activity.maximum > baseline + reach)
    return float(both[known].mean()) if known.any() else 0.0


GAIN = 0.1
"""Absolute values are better where the lower end of the interval of (their LDS - LDS) is above this."""

CANCELLED = 0.9
"""Cancellation is mentioned where less than this share of the scores' magnitude is left in their means."""


def cancelling_signs(evidence: Evidence) -> Finding | None:
    """Say that the score's absolute values predict removal better than its mean; None where they do not."""
    judged, (lds, gain) = evidence.importance.faithfulness, evidence.alternative("absolute_values")
    if judged is None or not gain > GAIN:
        return None
    cancelled = f" ({1 - evidence.surviving:.0%} of the scores' magnitude cancels within the clusters)"
    return about_score(
        evidence.importance,
        "cancelling-signs",
        f"the sign of the mean is misleading{cancelled if evidence.surviving < CANCELLED else ''}: the mean of the "
        f"absolute values predicts removal better (LDS {lds:.2f} against {judged.lds[-1]:.2f}).",
        f"{DEFAULT}, whose sign has a meaning"
        + ("" if evidence.results.clusters.kind == "labels" else "; more homogeneous clusters"),
        {"surviving": evidence.surviving, **evidence.lds_figures("absolute_values")},
        weight=0.5 * gain,
    )


PREDICTED = 0.8
"""Effects are predicted poorly where the LDS is below this share of its ceiling..."""

STEADY = 0.4
"""... and the reliability above this: with less, it is samples that are missing."""


def first_order_fails(evidence: Evidence) -> Finding | None:
    """Say that effects to first order predict removal poorly, as the network is too nonlinear; None where they do not.

    Args:
        evidence: of a score that is (activation - baseline) x gradient; others have no such finding.
    """
    judged = evidence.importance.faithfulness
    if evidence.kind != "gradient_x_activation" or judged is None:
        return None
    if evidence.importance.removal.target_kind != "margin":
        return None
    better = evidence.beaten_by("blockwise_gradient", "masked_gradient", "leave_one_out", "integrated_gradients")
    if better is None and not _predicts_poorly(evidence):
        return None
    rival = None if better is None else evidence.results[evidence.importance.site, better].faithfulness
    if rival is None:
        claim = f"predict removal poorly here ({_share_of_ceiling(evidence)}, reliability {evidence.reliability:.2f})"
        remedy = "attribution='blockwise_gradient' or 'leave_one_out'; compare their gaps"
    else:
        claim = (
            f"are not enough here: {better} has a gap of {rival.gap[-1]:+.3f}, this score {judged.gap[-1]:+.3f} "
            f"(LDS {rival.lds[-1]:.2f} and {judged.lds[-1]:.2f})"
        )
        remedy = f"attribution={better!r}"
    return about_score(
        evidence.importance,
        "first-order-fails",
        f"effects to first order {claim}: the network is far from linear between the activations and the baseline.",
        remedy,
        _prediction_figures(evidence),
        weight=_missed(evidence),
    )


BETTER_EFFECTS = {
    "blockwise_gradient": "more, or more homogeneous, clusters; or compare 'leave_one_out' and 'progressive_gradient'",
    "masked_gradient": "attribution='blockwise_gradient' or 'leave_one_out'; compare their gaps",
    "integrated_gradients": "attribution='blockwise_gradient' or 'leave_one_out'; compare their gaps",
    "leave_one_out": "more, or more homogeneous, clusters; or compare 'blockwise_gradient'",
}
"""What to use instead of a score whose sums predict removal poorly, by its key."""


def poor_prediction(evidence: Evidence) -> Finding | None:
    """Say that scores that estimate effects, other than to first order, do not predict removal; None where they do."""
    if evidence.kind not in EFFECTS or evidence.kind == "gradient_x_activation" or not _predicts_poorly(evidence):
        return None
    if evidence.importance.removal.target_kind != "margin":
        return None
    return about_score(
        evidence.importance,
        "poor-prediction",
        f"the scores predict removal poorly here ({_share_of_ceiling(evidence)}, reliability "
        f"{evidence.reliability:.2f}): what a neuron does depends on which others are there, more than one number each "
        "can say.",
        BETTER_EFFECTS.get(evidence.kind, "another score, such as 'blockwise_gradient' or 'leave_one_out'"),
        _prediction_figures(evidence),
        weight=_missed(evidence),
    )


def _predicts_poorly(evidence: Evidence) -> bool:
    """Tell whether the LDS is well below what could be reached, and not for want of samples."""
    return evidence.predicted < PREDICTED and evidence.reliability > STEADY


def _share_of_ceiling(evidence: Evidence) -> str:
    judged = evidence.importance.faithfulness
    assert judged is not None
    return f"LDS {judged.lds[-1]:.2f}, where {judged.lds_ceiling[-1]:.2f} could be reached"


def _prediction_figures(evidence: Evidence) -> dict[str, float]:
    judged = evidence.importance.faithfulness
    assert judged is not None
    figures = {"lds": judged.lds[-1], "lds_ceiling": judged.lds_ceiling[-1], "reliability": evidence.reliability}
    return {key: float(value) for key, value in figures.items()}


def _missed(evidence: Evidence) -> float:
    """Return the share of what can be predicted that is not, 0 to 1; a half where that is not known."""
    return float(np.clip(1 - evidence.predicted, 0.0, 1.0)) if np.isfinite(evidence.predicted) else 0.5


MISSED = 0.75
"""A function is saturated where its gradient misses more than this share of what removal changes in its output."""


def saturated_activation(evidence: Evidence) -> Finding | None:
    """Say that the layer feeds a saturated nonlinearity, which gradients do not see; None where it does not."""
    activity = evidence.activity
    if activity is None or evidence.kind not in ("gradient", "gradient_x_activation"):
        return None
    missed, name = activity.derivative_error, activity.nonlinearity
    if not name or not missed > MISSED:
        return None
    return about_score(
        evidence.importance,
        "saturated-activation",
        f"these values are the input of a saturated {name}: its gradient misses {missed:.0%} of what removal changes "
        "in its output.",
        f"the layer of the {name} itself, or attribution='leave_one_out'",
        {"missed": missed},
        weight=0.8 * min(missed, 1.0),
    )


SANE = 0.5
"""Scores do not follow the model where they keep more than this rank correlation when all weights are shuffled."""


def blind_to_weights(results: Results, randomisation: Randomisation) -> Finding | None:
    """Say that a score does not follow the model's weights; None where it does, and for random scores.

    Args:
        results: one measurement.
        randomisation: agreement of one score with randomised weights.
    """
    site, attribution = randomisation.site, randomisation.attribution
    kinds = {each.attribution_kind for each in results.importances if each.attribution == attribution}
    kept = float(statistics.weighted_mean(randomisation.rank_correlation[-1], results.clusters.size))
    if "random" in kinds or not kept > SANE:
        return None
    return Finding(
        "blind-to-weights",
        site,
        attribution,
        (),
        f"with all weights shuffled, the scores keep a rank correlation of {kept:.2f} with those of the trained model: "
        "they reflect the architecture or the inputs rather than what was learnt.",
        "attribution='gradient_x_activation'",
        {"rank_correlation": kept},
        weight=kept,
    )
