"""Upgrades: read results files of older versions, one step from each version to the next.

Each step changes a parsed tree (`decoding.Node`) in place; it relies on the tree being well-formed, and `files.load`
turns its failures into a `FileFormatError`. What a version did not hold becomes NaN, -1, or a kind that is told from
its name. Add a step, never change one, when `measurement.VERSION` grows.
"""

import re
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_neuroimp import statistics
from lightning_neuroimp.results.decoding import Node, build
from lightning_neuroimp.site import OWN, Site

_TARGETS = ("margin", "logit", "log_probability", "probability")
_ATTRIBUTIONS = (
    "gradient_x_activation",
    "gradient",
    "activation",
    "integrated_gradients",
    "masked_gradient",
    "leave_one_out",
    "random",
)
_KEYS = {
    "activation size": "activation_size",
    "one ranking for all clusters": "shared_ranking",
    "absolute values": "absolute_values",
    "activation x derivative": "first_order",
}


def from_version_4(results: Node) -> None:
    """Turn a tree of version 4 into one of version 5.

    New in version 5: faithfulness has all clusters in its last row (before: in a record `Overall`) with intervals for
    each cluster; kinds of clusters, attributions, targets and baselines; predicted classes and margins of the samples;
    keys for reference rankings and alternative scores; sites whose text names their axis.
    """
    content = results.fields
    n_samples = len(content["sample_index"])
    content["sample_predicted"] = np.full(n_samples, -1, np.int64)
    content["sample_margin"] = np.full(n_samples, np.nan)
    table = content["clusters"].fields
    table["kind"] = _cluster_kind(table["source"])
    renamed: dict[str, str] = {}
    for importance in content["importances"]:
        name = importance.fields["attribution"]
        importance.fields["attribution_kind"] = name if name in _ATTRIBUTIONS else OWN
        removal = importance.fields["removal"].fields
        removal["target_kind"] = removal["target"] if removal["target"] in _TARGETS else OWN
        removal["baseline"] = removal["baseline"].partition(" ")[0]  # it was "constant 0.5"
        site: Site = build(removal["where"], Site, "where")
        renamed[str(replace(site, axis=None))] = str(site)
        if importance.fields["faithfulness"] is not None:
            _upgrade_faithfulness(importance.fields["faithfulness"].fields)
    for record in (*content["comparisons"], *content["randomisations"], *content["activities"], *content["findings"]):
        record.fields["site"] = renamed.get(record.fields["site"], record.fields["site"])


def _cluster_kind(source: str) -> str:
    if source in ("labels", "predictions"):
        return source
    if re.fullmatch(r"groups of \d+ labels", source):
        return "groups"
    return "kmeans" if source.startswith("KMeans(") else OWN


def _upgrade_faithfulness(content: dict[str, Any]) -> None:
    """Append what held for all clusters as a last row."""
    overall, size = content.pop("overall").fields, content["samples"].sum(0)
    content["samples"] = np.append(content["samples"], content["samples"].sum(1, keepdims=True), 1)
    content["q_value"] = np.append(content["q_value"], np.nan)
    content["verdict"] = (*content["verdict"], overall["verdict"])
    for name, axis in (("intact_margin", 0), ("margin", 0), ("random_margin", 1)):
        _append(content, name, statistics.weighted_mean(np.moveaxis(content[name], axis, -1), size), axis)
    for name, axis in (
        *((name, 0) for name in ("intact_accuracy", "accuracy", "gap", "relative_gap", "p_value", "p_value_worse")),
        *((name, 0) for name in ("lds", "gap_interval", "lds_interval", "least_accuracy", "srg", "srg_interval")),
        *((name, 0) for name in ("greedy_accuracy", "normalised_gap")),
        *((name, 1) for name in ("random_accuracy", "reference_accuracy", "reference_gap", "alternative_lds")),
    ):
        if content[name] is not None:
            _append(content, name, overall[name], axis)
    for name in ("reference_interval", "alternative_interval"):  # which were not computed for single clusters
        content[name] = np.full((len(overall[name]), len(size), 2), np.nan)
        _append(content, name, overall[name], 1)
    for name in ("references", "alternatives"):
        content[name] = tuple(_KEYS[text] for text in content[name])
    if content["specificity"] is not None:
        specificity = content["specificity"].fields
        specificity["accuracy_drop"] = specificity.pop("damage")


def _append(content: dict[str, Any], name: str, row: Any, axis: int) -> None:
    content[name] = np.concatenate([content[name], np.expand_dims(np.asarray(row, float), axis)], axis)


def from_version_5(results: Node) -> None:
    """Turn a tree of version 5 into one of version 6, which says under which conditions the model was measured."""
    unknown = {"batch_dependence": np.nan, "random_spread": np.nan, "bounded_outputs": False, "flat_sites": ()}
    results.fields["conditions"] = Node("Conditions", unknown)


def from_version_6(results: Node) -> None:
    """Turn a tree of version 6 into one of version 7.

    New in version 7: faithfulness has tests of the margin's gap, the ceiling of the LDS, accuracies with only the most
    important neurons left, and a progressive order in place of the greedy one; activities say how a ranking would
    change with another baseline; importances know the names of the clusters.
    """
    for activity in results.fields["activities"]:
        activity.fields |= {"other_baseline": "", "baseline_agreement": np.nan}
    for importance in results.fields["importances"]:
        importance.fields["cluster_names"] = results.fields["clusters"].fields["names"]
        if importance.fields["faithfulness"] is not None:
            content = importance.fields["faithfulness"].fields
            unknown = np.full(len(content["gap"]), np.nan)
            for name in ("margin_gap", "margin_p_value", "margin_p_value_worse", "lds_ceiling"):
                content[name] = unknown
            content["best_accuracy"] = content.pop("greedy_accuracy")
            content["kept_accuracy"] = content["random_kept_accuracy"] = None
            content["reference_margin_gap"] = np.full(np.shape(content["reference_gap"]), np.nan)
