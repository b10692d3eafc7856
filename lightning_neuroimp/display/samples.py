"""Choose the samples that are worth showing: those nearest to clusters' centres, those that drive top neurons."""

import numpy as np
from jaxtyping import Int

from lightning_neuroimp.display.formats import some
from lightning_neuroimp.results.measurement import Results

MAX_ROWS = 12
"""Rows of a picture or table of samples: one per cluster, or per neuron."""

MAX_SITES = 16
"""Number of layers for which the samples that drive top neurons are displayed."""

_N_NAMED = 3  # clusters that a row names


def largest_clusters(results: Results, most: int) -> list[int]:
    """Return the rows of the largest clusters in the cluster table, in its order.

    Args:
        results: one measurement.
        most: upper bound on the number of clusters.
    """
    return sorted(np.argsort(-results.clusters.size, kind="stable")[:most].tolist())


def top_neurons(results: Results, site: str, most: int = MAX_ROWS) -> dict[int, list[str]]:
    """Return the most important neuron of each cluster, with the names of all clusters whose top neuron it is.

    Args:
        results: one measurement.
        site: in words.
        most: upper bound on the number of neurons; those of the largest clusters are preferred.
    """
    importance, found = results[site], dict[int, list[str]]()
    for row in np.argsort(-results.clusters.size, kind="stable").tolist():
        for neuron in importance.top(importance.cluster_ids[row], 1).tolist():
            if neuron in found or len(found) < most:
                found.setdefault(neuron, []).append(results.clusters.names[row])
    return found


def shown_samples(results: Results) -> list[int]:
    """Return the numbers of the samples that are worth describing: all that the rows below name, in order.

    Args:
        results: one measurement.
    """
    numbers = set(results.clusters.exemplars[largest_clusters(results, MAX_ROWS)].reshape(-1).tolist())
    for activity in results.activities[:MAX_SITES]:
        for neuron in top_neurons(results, activity.site):
            numbers |= set(activity.top_samples[neuron].tolist())
    return sorted(numbers - {-1})


def exemplar_rows(results: Results) -> list[tuple[str, list[int]]]:
    """Return the names of the largest clusters, each with the numbers of the samples nearest to its centre.

    Args:
        results: one measurement.
    """
    table = results.clusters
    return [(table.names[row], present(table.exemplars[row])) for row in largest_clusters(results, MAX_ROWS)]


def neuron_rows(results: Results, site: str) -> list[tuple[str, list[int]]]:
    """Return the top neurons of the clusters, each with the numbers of the samples that drive it most.

    Args:
        results: one measurement.
        site: in words.
    """
    activity = results.activity(site)
    return [
        (f"neuron {neuron}, top of {some(names, _N_NAMED)}", present(activity.top_samples[neuron]))
        for neuron, names in top_neurons(results, site).items()
    ]


def present(numbers: Int[np.ndarray, " sample"]) -> list[int]:
    """Return sample numbers without the -1 of places that are empty."""
    return [number for number in numbers.tolist() if number >= 0]
