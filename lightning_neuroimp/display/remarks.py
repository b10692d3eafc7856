"""Say below the table of a layer and score what the table does not, in one line each."""

import numpy as np

from lightning_neuroimp import statistics
from lightning_neuroimp.display.formats import counted, fixed, interval, percentage, probability, signed
from lightning_neuroimp.display.labels import reference_label
from lightning_neuroimp.display.samples import present, top_neurons
from lightning_neuroimp.results.faithfulness import Faithfulness, Specificity
from lightning_neuroimp.results.history import agreement
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import MIN_HALF

_N_NEURONS = 5  # whose samples are named
_N_SAMPLES = 3  # of each of them
_ALIKE = 0.9  # rankings with at least this rank correlation are called alike


def remarks(results: Results, importance: Importance) -> list[str]:
    """Say how a score compares with simpler rankings and itself, and what else was measured; one sentence a line.

    Args:
        results: the measurement.
        importance: of one layer and score of it.
    """
    return [
        *(_on_ablation(results, importance.faithfulness) if importance.faithfulness is not None else []),
        *_on_halves(results, importance),
        *_on_activity(results, importance),
        *_on_baseline(results, importance),
        *_on_randomised_weights(results, importance),
        *_on_drift(results, importance),
    ]


def _on_ablation(results: Results, faithfulness: Faithfulness) -> list[str]:
    other = np.isfinite(faithfulness.reference_gap[:, -1])
    # effects to first order may be what the score itself is
    other &= (faithfulness.reference_accuracy != faithfulness.accuracy).any((1, 2))
    gaps = ", ".join(
        f"{reference_label(reference)} {signed(gap)}"
        for reference, gap, shown in zip(faithfulness.references, faithfulness.reference_gap[:, -1], other, strict=True)
        if shown
    )
    lds = fixed(faithfulness.lds[-1])
    if not np.isnan(faithfulness.lds[-1]):
        lds += f" (95%: {interval(faithfulness.lds_interval[-1], 2, sign=False)})"
    if not np.isnan(faithfulness.lds_ceiling[-1]):
        lds += f"; effects measured on the other half would have {fixed(faithfulness.lds_ceiling[-1])}"
    lines = [
        *_on_left_out_clusters(faithfulness),
        *([f"Gaps of simpler rankings, to compare with {signed(faithfulness.gap[-1])}: {gaps}."] if gaps else []),
        f"Correlation of the scores with measured effects of random removals (LDS, 1 is perfect): {lds}.",
    ]
    if faithfulness.least_accuracy is not None:
        lines.append(
            "Symmetric relevance gain (least important first - most important first): "
            f"{signed(faithfulness.srg[-1])} (95%: {interval(faithfulness.srg_interval[-1])})."
        )
    if faithfulness.kept_accuracy is not None and faithfulness.random_kept_accuracy is not None:
        chance = faithfulness.random_kept_accuracy[:, -1].mean(0)
        kept = [
            f"{count}: {own:.2f} ({random:.2f})"
            for count, own, random in zip(faithfulness.removed, faithfulness.kept_accuracy[-1], chance, strict=True)
        ]
        lines.append(f"Accuracy with only the most important neurons left (with only random ones): {', '.join(kept)}.")
    if faithfulness.best_accuracy is not None:
        lines.append(
            f"Normalised gap (share of a progressive order's gap): {percentage(faithfulness.normalised_gap[-1])}."
        )
    if faithfulness.specificity is not None:
        lines += _on_specificity(results, faithfulness.specificity)
    return lines


def _on_left_out_clusters(faithfulness: Faithfulness) -> list[str]:
    """Say how many clusters do not count in the row of all of them."""
    of_clusters = faithfulness.samples[:, :-1]
    if of_clusters.sum() <= faithfulness.samples[:, -1].sum():
        return []
    few = int(((of_clusters.min(0) < MIN_HALF) & (of_clusters.sum(0) > 0)).sum())
    whose = "a verdict of its own" if few == 1 else "verdicts of their own"
    return [f"The row of all clusters leaves out {counted(few, 'cluster')} with too few samples for {whose}."]


def _on_specificity(results: Results, specificity: Specificity) -> list[str]:
    lines = [
        f"Specificity ({counted(specificity.removed, 'neuron')} removed): accuracy lost without a cluster's own top "
        f"neurons minus accuracy lost without those of other clusters: {signed(specificity.value)}, "
        f"p {probability(specificity.p_value)}."
    ]
    before, after = (
        float(statistics.weighted_mean(row, results.clusters.size)) for row in specificity.balanced_accuracy
    )
    if not np.isnan(before):
        lines.append(
            f"Balanced accuracy of a label against all others: {fixed(before)}, without its top neurons {fixed(after)}."
        )
    return lines


def _on_halves(results: Results, importance: Importance) -> list[str]:
    reliability = importance.reliability
    mean = agreement(results, importance).reliability
    if np.isnan(mean):
        return []
    needed = reliability.samples_needed[np.isfinite(reliability.samples_needed)]
    n_needed = max(1, int(np.ceil(np.median(needed)))) if len(needed) else 0
    for_more = f"; .9 takes about {counted(n_needed, 'sample')} per cluster" if n_needed else ""
    overlap = float(statistics.weighted_mean(reliability.top_overlap, results.clusters.size))
    return [
        f"Reliability (how well a cluster's halves agree on its neurons, 1 is perfect): {fixed(mean)}{for_more}. The "
        f"halves' top {reliability.k} overlap by {fixed(overlap)} (by chance {fixed(reliability.top_chance)})."
    ]


def _on_activity(results: Results, importance: Importance) -> list[str]:
    """Say which samples drive the top neurons, once per site: below the table of its first score."""
    site = importance.site
    if results[site] is not importance or site not in [activity.site for activity in results.activities]:
        return []
    samples = results.activity(site).top_samples
    driven = [
        f"{' '.join(map(str, present(samples[neuron])[:_N_SAMPLES]))} (neuron {neuron})"
        for neuron in top_neurons(results, site, _N_NEURONS)
    ]
    return [f"Samples that drive top neurons most: {', '.join(driven)}."] if driven else []


def _on_baseline(results: Results, importance: Importance) -> list[str]:
    """Say how the ranking would change with another baseline, once per site: below the table of its first score."""
    site = importance.site
    if results[site] is not importance or site not in [activity.site for activity in results.activities]:
        return []
    activity = results.activity(site)
    if np.isnan(activity.baseline_agreement):
        return []
    alike = "almost alike" if activity.baseline_agreement >= _ALIKE else "differently"
    return [
        f"With baseline={activity.other_baseline!r} first-order scores would rank neurons {alike} (rank correlation "
        f"{fixed(activity.baseline_agreement)})."
    ]


def _on_randomised_weights(results: Results, importance: Importance) -> list[str]:
    lines = []
    for randomisation in results.randomisations:
        if (randomisation.site, randomisation.attribution) == (importance.site, importance.attribution):
            mean = statistics.weighted_mean(randomisation.rank_correlation, results.clusters.size)
            stages = ", ".join(map(fixed, mean.tolist()))
            lines.append(
                f"Rank correlation with randomised weights, from the output to all modules (near 0 is sane): {stages}."
            )
    return lines


def _on_drift(results: Results, importance: Importance) -> list[str]:
    stability = agreement(results, importance).stability
    if importance.drift is None or np.isnan(stability):
        return []
    return [f"Stability (rank correlation with epoch {importance.drift.epoch}): {fixed(stability)}."]
