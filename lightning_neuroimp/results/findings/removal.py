"""Findings about what ablation says of one score's ranking, and what it does not say."""

from collections.abc import Iterator

import numpy as np

from lightning_neuroimp.results.findings.finding import Finding, about_score, names_of, share_of_samples
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import TIE, WEAK, Verdict

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
    by_chance = (judged.p_value[:-1][poor] <= 3 / (judged.n_draws + 1)).any()
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


def no_better_than_reference(importance: Importance) -> Iterator[Finding]:
    """Yield a finding for each reference ranking that is as good as the score's, or better.

    As good: its gap is less than `TIE` below the score's, and the interval of the difference reaches zero.

    Args:
        importance: the importances by which neurons are ranked.
    """
    judged = importance.faithfulness
    if judged is None or importance.removal.n_neurons < 2 or len(importance.cluster_ids) < 2:
        return
    gap = float(judged.gap[-1])
    for row, key in enumerate(judged.references):
        if key == "activation_size" and importance.attribution_kind == "activation":
            continue  # which is the reference itself
        reference = float(judged.reference_gap[row, -1])
        difference = gap - reference
        if not (judged.reference_interval[row, -1, 0] <= 0 and difference < TIE):
            continue
        how = "better" if difference < -TIE else "as good"
        if key == "activation_size":
            text = f"ranking by mean |activation - baseline| is {how} (gap {reference:+.3f}, this score {gap:+.3f})."
            remedy = "do not read more into the score than into the activations; try another layer or score"
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


PREDICTS = 0.8
"""Scores predict the fall of the margin where the LDS is above this..."""

HARDLY = 0.9
"""... and accuracy hardly falls where more than this share of it is left with the most neurons removed."""


def hardly_any_fall(importance: Importance) -> Finding | None:
    """Say that the scores are right, but accuracy does not show it; None where that is not so."""
    judged, n_neurons = importance.faithfulness, importance.removal.n_neurons
    if judged is None or not judged.intact_accuracy[-1] > 0:
        return None
    most, lds = int(judged.removed[-1]), float(judged.lds[-1])
    left = float(judged.accuracy[-1, -1] / judged.intact_accuracy[-1])
    hardly = judged.relative_gap[-1] < WEAK and left > HARDLY
    if not (lds > PREDICTS and hardly and most < n_neurons):
        return None
    return about_score(
        importance,
        "hardly-any-fall",
        f"the scores predict how the margin falls (LDS {lds:.2f}), but accuracy hardly falls: without the top {most} "
        f"of {n_neurons} neurons, {left:.0%} of it is left.",
        "larger fractions, such as AblationFaithfulness(fractions=(.5, .7, .8, .9, .95)), or go by the LDS",
        {"left": left, "lds": lds, "removed": most},
        weight=0.5,
    )
