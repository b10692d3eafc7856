"""Compute the values of a measurement that reach `trainer.callback_metrics` and the loggers' scalars."""

import math
from collections.abc import Sequence

import numpy as np

from lightning_neuroimp.clusters.choice import FIXED
from lightning_neuroimp.display.tags import cluster_tags, site_tag, tag
from lightning_neuroimp.results.history import agreement
from lightning_neuroimp.results.measurement import Results

UNDEFINED = {"gap": 0.0, "lds": 0.0, "p_value": 1.0, "relative_gap": 0.0}
"""Uninformative values, logged where one is not defined: NaN would end a training run that monitors it."""


def metrics(results: Results, name: str) -> dict[str, float]:
    """Return the few, fixed values of a measurement that can be monitored.

    Args:
        results: the measurement.
        name: prefix of each key.
    """
    values = {tag(name, "measured_epoch"): float(results.epoch)}
    if results.clusters.kind not in FIXED:
        # in the first epoch there is nothing to agree with: the clusters have not changed yet
        stable = results.clusters.adjusted_rand_index
        values[tag(name, "adjusted_rand_index")] = 1.0 if math.isnan(stable) else stable
    for importance in results.importances:
        agreed, key = agreement(results, importance), site_tag(name, importance, results)
        values[f"{key}/reliability"] = 0.0 if math.isnan(agreed.reliability) else agreed.reliability
        # undefined in the first epoch: zero, so that a monitor does not take that epoch for the best
        values[f"{key}/stability"] = 0.0 if math.isnan(agreed.stability) else agreed.stability
    return values


def check_metrics(results: Results, name: str) -> dict[str, float]:
    """Return the values of a measurement that come from its check by ablation.

    Args:
        results: the measurement, checked.
        name: prefix of each key.
    """
    values = {tag(name, "checked_epoch"): float(results.epoch)}
    for importance in results.importances:
        judged, key = importance.faithfulness, site_tag(name, importance, results)
        if judged is not None:
            found = {kind: float(getattr(judged, kind)[-1]) for kind in UNDEFINED}
            values |= {
                f"{key}/{kind}": value if math.isfinite(value) else UNDEFINED[kind] for kind, value in found.items()
            }
    return values


def missing_metrics(
    name: str, sites: Sequence[str], attributions: Sequence[str], *, changing: bool, checked: bool
) -> dict[str, float]:
    """Return values that stand for a first measurement that failed: epoch -1, and uninformative values.

    A monitor of these keys would end the training run if they were missing, or not finite.

    Args:
        name: prefix of each key.
        sites: names of the sites that were to be measured.
        attributions: names of the scores.
        changing: whether clusters can change from epoch to epoch.
        checked: whether a check by ablation was asked for.
    """
    values = {tag(name, "measured_epoch"): -1.0}
    if changing:
        values[tag(name, "adjusted_rand_index")] = 0.0
    if checked:
        values[tag(name, "checked_epoch")] = -1.0
    for site in sites:
        for attribution in attributions:
            key = tag(name, site, *([attribution] if len(attributions) > 1 else []))
            values |= {f"{key}/reliability": 0.0, f"{key}/stability": 0.0}
            if checked:
                values |= {f"{key}/{kind}": value for kind, value in UNDEFINED.items()}
    return values


def cluster_scalars(results: Results, name: str) -> dict[str, float]:
    """Return the finite values of each cluster, for loggers only, in a group of their own.

    Args:
        results: the measurement.
        name: of the callback; the group is named after it.
    """
    table, group = results.clusters, f"{name}_clusters"
    values = {}
    for row, cluster in enumerate(cluster_tags(table)):
        values[tag(group, "size", cluster)] = float(table.size[row])
        values[tag(group, "accuracy", cluster)] = float(table.accuracy[row])
        for importance in results.importances:
            if importance.faithfulness is not None:
                key = site_tag(group, importance, results)
                values[f"{key}/gap/{cluster}"] = float(importance.faithfulness.gap[row])
                values[f"{key}/p_value/{cluster}"] = float(importance.faithfulness.p_value[row])
    return {key: value for key, value in values.items() if np.isfinite(value)}
