"""Findings about what ablation says of one score's ranking, and what it does not say."""

import math
from collections.abc import Iterator

import numpy as np

from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.findings.evidence import Evidence
from lightning_neuroimp.results.findings.finding import Finding, about_layer, about_score, names_of, share_of_samples
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import LEVEL, TIE, WEAK, Verdict

MIXED = 0.1
"""Mixed classes may explain an unsupported cluster where more than this share of it is of other than its main class."""


def unsupported_clusters(results: Results, importance: Importance) -> Finding | None:
    """Say which clusters' rankings ablation does not support, where it supports the layer's; None where there are none.

    Args:
        results: one measurement.
        importance: one of its importances.
    """
    judged = importance.faithfulness
    if judged is None or judged.verdict[-1] != Verdict.FAITHFUL:
        return None
    poor = np.array([verdict in (Verdict.NO_BETTER, Verdict.WORSE) for verdict in judged.verdict[:-1]], bool)
    if not poor.any():
        return None
    counts = results.clusters.class_counts[poor]
    purity = float(np.mean(counts.max(1) / np.maximum(counts.sum(1), 1)))
    mixed = purity < 1 - MIXED
    # one or two random orders may have been ahead by chance
    p_values = np.where(np.isnan(judged.margin_p_value), judged.p_value, judged.margin_p_value)
    all_tried = judged.n_draws == math.factorial(min(importance.removal.n_neurons, 20)) - 1
    by_chance = not all_tried and (p_values[:-1][poor] <= 3 / (judged.n_draws + 1)).any()
    if by_chance:
        more = max(99, 5 * judged.n_draws)
        remedy = f"n_random={more}: with {judged.n_draws} random orders, one or two of them decide"
    elif mixed:
        remedy = "try more, or more homogeneous, clusters"
    else:
        remedy = "do not interpret these clusters' neurons; more samples may decide"
    whose = f" (whose most common class makes up {purity:.0%})" if mixed else ""
    return Finding(
        "clusters-not-borne-out",
        importance.site,
        importance.attribution,
        names_of(results.clusters, poor),
        f"removal supports the ranking of the layer, but not that of {int(poor.sum())} of {len(poor)} clusters{whose}.",
        remedy,
        {"clusters": float(poor.sum()), "commonest_class": purity},
        weight=0.1 + 0.5 * share_of_samples(results.clusters, poor),
    )


SCORES_OF = {"activation_size": "activation_size", "shared_ranking": "shared_scores"}
"""The alternative by whose scores each reference ranks."""

AS_MUCH = 0.9
"""A reference is as good only where its gap in margin is at least this share of the score's..."""

STILL = 0.8
"""... or this share, if its gap in accuracy is certainly larger; ..."""

AS_WELL = 0.1
"""... and, if it is not, where its LDS is not lower by more than this."""


def no_better_than_reference(importance: Importance) -> Iterator[Finding]:
    """Yield a finding for each simpler ranking that is as good as the score's, or better.

    As good: its gap is less than `TIE` below the score's, and the interval of the difference reaches zero. That is no
    evidence where accuracy hardly moves, so that the gaps in margin and the LDS must agree. Where its gap is larger by
    more than `TIE`, and for certain, the margin alone must.

    Args:
        importance: the importances by which neurons are ranked.
    """
    judged = importance.faithfulness
    if judged is None or importance.removal.n_neurons < 2 or len(importance.cluster_ids) < 2:
        return
    gap = float(judged.gap[-1])
    for row, key in enumerate(judged.references):
        if key not in SCORES_OF or (key == "activation_size" and importance.attribution_kind == "activation"):
            continue  # which is the reference itself
        reference = float(judged.reference_gap[row, -1])
        difference = gap - reference
        if not (judged.reference_interval[row, -1, 0] <= 0 and difference < TIE) or _tells_apart(judged, row):
            continue
        how = "better" if difference < -TIE else "as good"
        if key == "activation_size":
            text = f"ranking by mean |activation - baseline| is {how} (gap {reference:+.3f}, this score {gap:+.3f})."
            remedy = "do not read more into the score than into the activations; try another layer or score"
            if how == "better" and importance.attribution_kind == "gradient_x_activation":
                remedy = "attribution='blockwise_gradient', which follows the network on the way to the baseline"
        else:
            text = (
                f"one ranking for all clusters is {how} (gap {reference:+.3f}, each cluster's own {gap:+.3f}): nothing "
                "is learnt about single clusters."
            )
            remedy = "do not interpret differences between clusters; a later layer or other clusters may have some"
        yield about_score(
            importance,
            "no-better-than-reference",
            text,
            remedy,
            {"gap": gap, f"gap of {key}": reference},
            weight=0.15 + min(max(-difference, 0.0), 1.0),
        )


def _tells_apart(judged: Faithfulness, row: int) -> bool:
    """Tell whether margins or LDS show that the score is better than a reference, whatever accuracy says.

    Args:
        judged: how removal supports the score.
        row: of the reference.
    """
    in_margin, difference = float(judged.reference_margin_gap[row, -1]), judged.gap[-1] - judged.reference_gap[row, -1]
    if difference < -TIE and judged.reference_interval[row, -1, 1] < 0:
        return bool(in_margin < STILL * judged.margin_gap[-1])
    if in_margin < AS_MUCH * judged.margin_gap[-1]:
        return True
    key = SCORES_OF[judged.references[row]]
    if key not in judged.alternatives:
        return False
    lds = judged.alternative_lds[judged.alternatives.index(key), -1]
    # scores that do not differ predict nothing
    return bool(judged.lds[-1] - np.nan_to_num(lds) > AS_WELL)


PREDICTS = 0.8
"""Scores predict the fall of the margin where the LDS is above this share of its ceiling..."""

HARDLY = 0.9
"""... and accuracy hardly falls where more than this share of it is left with the most neurons removed."""


def hardly_any_fall(evidence: Evidence) -> Finding | None:
    """Say that the scores are right, but no decision hangs on it; None where that is not so."""
    importance = evidence.importance
    judged, n_neurons = importance.faithfulness, importance.removal.n_neurons
    if judged is None or not judged.intact_accuracy[-1] > 0:
        return None
    most, lds = int(judged.removed[-1]), float(judged.lds[-1])
    left = float(judged.accuracy[-1, -1] / judged.intact_accuracy[-1])
    hardly = judged.gap[-1] > -TIE and judged.relative_gap[-1] < WEAK and left > HARDLY
    share = lds if np.isnan(evidence.predicted) else evidence.predicted
    unmoved = judged.verdict[-1] == Verdict.MARGIN_ONLY and left > HARDLY
    if not (share > PREDICTS and (hardly or unmoved)):
        return None
    more = (
        "larger fractions, such as AblationFaithfulness(fractions=(.5, .7, .8, .9, .95)), or go by the LDS"
        if most < n_neurons and left > HARDLY
        else "go by the LDS; a layer or clusters on which decisions hang"
    )
    return about_score(
        importance,
        "hardly-any-fall",
        f"the scores predict how the margin falls (LDS {lds:.2f}), but no decision hangs on it: without the top {most} "
        f"of {n_neurons} neurons, {left:.0%} of the accuracy is left, under random removal "
        f"{float(judged.random_accuracy[:, -1, -1].mean() / judged.intact_accuracy[-1]):.0%}.",
        more,
        {"left": left, "lds": lds, "removed": most},
        weight=0.5,
    )


def too_few_neurons(importance: Importance) -> Finding | None:
    """Say that no ranking of so few neurons could be told from random ones; None where it could."""
    judged = importance.faithfulness
    if judged is None or judged.verdict[-1] != Verdict.TOO_FEW_NEURONS:
        return None
    n_neurons = importance.removal.n_neurons
    few = n_neurons < 4
    return about_layer(
        importance,
        "few-neurons",
        f"{n_neurons} neurons can be removed in so few ways that random orders often remove the same ones: no p-value "
        f"can be {LEVEL:g}, whatever the ranking is.",
        "smaller groups of channels (Site(name, group=...)), or go by the LDS"
        if few
        else "AblationFaithfulness(fractions=...) with a point for every number of neurons, or smaller groups",
        {"neurons": n_neurons},
        weight=0.3,
    )
