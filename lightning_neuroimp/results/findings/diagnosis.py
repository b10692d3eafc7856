"""Diagnosis: what speaks against the scores of a measurement, and what to do.

A finding is a claim with evidence, made from what the passes have measured anyway. Each rule is a function with its
thresholds above it, in the module of its subject. The thresholds were chosen by `benchmarks/findings.py`, which also
measures how often each finding is raised rightly and wrongly.
"""

from lightning_neuroimp.results.findings.finding import Finding
from lightning_neuroimp.results.findings.layers import baseline_outside, constant_neurons, methods_agree, redundancy
from lightning_neuroimp.results.findings.samples import few_samples, mixed_clusters, near_chance
from lightning_neuroimp.results.findings.scores import blind_to_weights, score_findings
from lightning_neuroimp.results.measurement import Results

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
    """Return all findings of a measurement, weightiest first.

    Those on rankings need faithfulness; all others come with the importances.

    Args:
        results: one measurement.
    """
    if not results.importances:
        return ()
    found = [few_samples(results), near_chance(results), mixed_clusters(results)]
    for site in results.sites:
        importances = [each for each in results.importances if each.site == site]
        activity = next((each for each in results.activities if each.site == site), None)
        for importance in importances:
            found += score_findings(results, importance, activity)
        if activity is not None:
            found += [baseline_outside(importances[0], activity), constant_neurons(importances, activity)]
        found += [redundancy(results, importances[0]), methods_agree(importances)]
    found += [blind_to_weights(results, randomisation) for randomisation in results.randomisations]
    raised = [finding for finding in found if finding is not None]
    return tuple(sorted(raised, key=lambda finding: -finding.weight))
