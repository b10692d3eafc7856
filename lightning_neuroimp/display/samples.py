"""Which samples are worth showing."""

import numpy as np

from lightning_neuroimp.results.measurement import Results

MAX_ROWS = 12


MAX_SITES = 16
"""The samples that drive top neurons are shown for so many layers."""


def top_neurons(results: Results, site: str, most: int = MAX_ROWS) -> dict[int, list[str]]:
    """The most important neuron of each of the largest clusters, and which clusters' it is.

    Args:
        results: one measurement.
        site: in words.
        most: at most so many neurons.
    """
    one, found = results[site], dict[int, list[str]]()
    for row in np.argsort(-results.clusters.size, kind="stable").tolist():
        for neuron in one.top(one.cluster_ids[row], 1).tolist():
            if neuron in found or len(found) < most:
                found.setdefault(neuron, []).append(results.clusters.names[row])
    return found


def shown_samples(results: Results) -> list[int]:
    """Numbers of the samples nearest to the clusters' centres, and of those that drive the top neurons most."""
    numbers = set(results.clusters.exemplars[_largest(results)].reshape(-1).tolist())
    for activity in results.activities[:MAX_SITES]:
        for neuron in top_neurons(results, activity.site):
            numbers |= set(activity.top_samples[neuron].tolist())
    return sorted(numbers - {-1})


def _largest(results: Results) -> np.ndarray:
    return np.sort(np.argsort(-results.clusters.size, kind="stable")[:MAX_ROWS])


def exemplar_rows(results: Results) -> list[tuple[str, list[int]]]:
    """The largest clusters, each with the numbers of the samples nearest to its centre."""
    table = results.clusters
    return [(table.names[row], _present(table.exemplars[row])) for row in _largest(results).tolist()]


def neuron_rows(results: Results, site: str) -> list[tuple[str, list[int]]]:
    """The clusters' top neurons, each with the numbers of the samples that drive it most."""
    activity = results.activity(site)
    return [
        (f"neuron {neuron}, top of {_some(names)}", _present(activity.top_samples[neuron]))
        for neuron, names in top_neurons(results, site).items()
    ]


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _present(numbers: np.ndarray) -> list[int]:
    return [number for number in numbers.tolist() if number >= 0]
