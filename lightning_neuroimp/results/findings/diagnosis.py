"""Diagnosis: what speaks against the scores of a measurement, and what to do.

A finding is a claim with evidence, made from what the passes have measured anyway. Each rule is a function with its
thresholds above it, in the module of its subject. The thresholds were chosen by `benchmarks/findings.py`, which also
measures how often each finding is raised rightly and wrongly.
"""

from collections.abc import Iterable, Mapping

from lightning_neuroimp.results.findings.conditions import (
    batch_dependent,
    bounded_outputs,
    flat_gradient,
    random_forward,
)
from lightning_neuroimp.results.findings.finding import Finding
from lightning_neuroimp.results.findings.layers import baseline_outside, constant_neurons, methods_agree, redundancy
from lightning_neuroimp.results.findings.removal import too_few_neurons
from lightning_neuroimp.results.findings.samples import copies, few_samples, mixed_clusters, near_chance, other_logits
from lightning_neuroimp.results.findings.scores import blind_to_weights, score_findings
from lightning_neuroimp.results.measurement import Results

IDS = (
    "few-samples",
    "near-chance",
    "other-logits",
    "copies",
    "mixed-clusters",
    "halves-disagree",
    "derivative-without-distance",
    "activation-without-derivative",
    "absolute-values",
    "signed-activations",
    "cancelling-signs",
    "better-score-at-hand",
    "first-order-fails",
    "poor-prediction",
    "saturated-target",
    "saturated-activation",
    "constant-neurons",
    "baseline-outside",
    "redundancy",
    "clusters-not-borne-out",
    "no-better-than-reference",
    "hardly-any-fall",
    "few-neurons",
    "batch-dependent",
    "random-forward",
    "flat-gradient",
    "bounded-outputs",
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
    found = [few_samples(results), near_chance(results), mixed_clusters(results), copies(results)]
    found += [batch_dependent(results), random_forward(results), bounded_outputs(results)]
    for site in results.sites:
        found.append(flat_gradient(results, site))
        importances = [each for each in results.importances if each.site == site]
        activity = next((each for each in results.activities if each.site == site), None)
        for importance in importances:
            found += score_findings(results, importance, activity)
        if activity is not None:
            found += [baseline_outside(importances[0], activity), constant_neurons(importances, activity)]
        found += [redundancy(results, importances[0]), methods_agree(importances), too_few_neurons(importances[0])]
    found += [blind_to_weights(results, randomisation) for randomisation in results.randomisations]
    return _weightiest_first(found)


def with_other_logits(results: Results, logged: Mapping[str, float], *, stratified: bool = False) -> Results:
    """Return results with the finding that their logits are not the training's, if what was logged says so.

    Args:
        results: one measurement, with its findings.
        logged: accuracies of the validation run, 0 to 1, by key.
        stratified: whether rare classes were drawn as often as others.
    """
    found = other_logits(results, logged, stratified=stratified)
    beside = ("other-logits",) if found is None else ("other-logits", "near-chance")  # which it explains
    kept = [finding for finding in results.findings if finding.id not in beside]
    return results.replace(findings=_weightiest_first([*kept, found]))


def _weightiest_first(found: Iterable[Finding | None]) -> tuple[Finding, ...]:
    raised = [finding for finding in found if finding is not None]
    return tuple(sorted(raised, key=lambda finding: -finding.weight))
