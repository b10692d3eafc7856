"""Compare two measurements: which neurons came and went, beyond what the halves of each measurement disagree about."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from lightning_neuroimp import statistics
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.record import Record

MIN_OVERLAP = 0.5
"""Smallest Jaccard index between the members of two clusters of KMeans that can be the same one."""


@dataclass(frozen=True, eq=False, repr=False)
class Change(Record):
    """Hold how the importances of one cluster at one site by one score differ between two measurements.

    Attributes:
        site: the site in words.
        attribution: name of the score.
        cluster: name of the cluster in the later measurement.
        k: number of top neurons that are compared: a tenth of the neurons, rounded up.
        correlation: rank correlation of the importances before and after, -1 to 1.
        expected: rank correlation that two measurements of one model would have on other samples: the geometric mean of
            the reliabilities. Measurements on the same samples may agree even better.
        overlap: Jaccard overlap of the top k neurons, 0 to 1.
        came: neurons among the top k of both halves after, and of neither half before; most important first.
        went: neurons among the top k of both halves before, and of neither half after; most important first.
        gap_before: gap of the ranking before, in accuracy (0 to 1); NaN where removal was not measured.
        gap_after: gap of the ranking after.

    References:
        Spearman, "The proof and measurement of association between two things", 1904 (attenuation by unreliability).

    >>> Change("1", "gradient", "label 0", 2, 0.5, 0.9, 0.0, (3,), (1,), 0.2, 0.3).changed
    True
    """

    site: str
    attribution: str
    cluster: str
    k: int
    correlation: float
    expected: float
    overlap: float
    came: tuple[int, ...]
    went: tuple[int, ...]
    gap_before: float
    gap_after: float

    @property
    def changed(self) -> bool:
        """Tell whether a neuron came or went, whichever half one looks at."""
        return bool(self.came or self.went)


@dataclass(frozen=True, eq=False, repr=False)
class Changes(Record):
    """Hold how two measurements differ.

    Attributes:
        changes: one for each site, score and cluster that both have.
        notes: what could not be compared, and what else differs, in words.

    >>> Changes((Change("1", "gradient", "label 0", 2, 0.5, 0.9, 0.0, (3,), (1,), 0.2, 0.3),), ()).changes[0].came
    (3,)
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def compare(before: Results, after: Results) -> Changes:
    """Compare two measurements, of two epochs, checkpoints or runs: which neurons came and went?

    Clusters are matched by name, those of KMeans by their members: they are the same where at least half of the samples
    of both together are in both.

    Args:
        before: one measurement.
        after: another one.

    Raises:
        InvalidArgument: if they have no site with the same score, or no cluster, in common.

    >>> import torch
    >>> from lightning_neuroimp import neuron_importance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> batches = [(torch.randn(20, 4), torch.arange(20) % 2)]
    >>> results = neuron_importance(model, batches, layers="1")
    >>> [round(change.correlation, 3) for change in compare(results, results).changes]
    [1.0, 1.0]
    """
    notes: list[str] = []
    both = [key for key in after if key in list(before)]
    if not both:
        raise InvalidArgument(
            f"the two measurements have no layer with the same score in common: {list(before)[:3]} and "
            f"{list(after)[:3]}; compare measurements of the same layers"
        )
    pairs = _matched_clusters(before, after)
    if not pairs:
        raise InvalidArgument(
            f"the two measurements have no cluster in common: {list(before.clusters.names[:3])} and "
            f"{list(after.clusters.names[:3])}; compare measurements with the same clusters"
        )
    notes += _unmatched("clusters", before.clusters.names, after.clusters.names, pairs)
    changes: list[Change] = []
    for key in both:
        one, other = before[key], after[key]
        if one.removal.n_neurons != other.removal.n_neurons:
            notes.append(f"{key[0]} has {one.removal.n_neurons} neurons before and {other.removal.n_neurons} after")
            continue
        changes += [_change(one, other, *pair, after.clusters.names[pair[1]]) for pair in pairs]
        notes += _other_meaning(one, other)
    if not changes:
        raise InvalidArgument(
            f"the two measurements have no layer of the same width in common: {notes[-1]}; compare measurements of the "
            "same model"
        )
    notes += _other_members(before, after, pairs)
    only = sorted({f"{site} ({score})" for site, score in {*before} ^ {*after}})
    notes += [f"measured only once: {', '.join(only[:5])}{' ...' if len(only) > 5 else ''}"] if only else []
    return Changes(tuple(changes), tuple(dict.fromkeys(notes)))


def _change(one: Importance, other: Importance, row: int, other_row: int, name: str) -> Change:
    """Compare the importances of one cluster.

    Args:
        one: before.
        other: after.
        row: of the cluster before.
        other_row: of the cluster after.
        name: of the cluster.
    """
    k = other.reliability.k
    was, now = one.mean[row], other.mean[other_row]
    tops_before, tops_after = _tops(one.half_mean[:, row], k), _tops(other.half_mean[:, other_row], k)
    reliabilities = float(one.reliability.split_half[row]), float(other.reliability.split_half[other_row])
    product = reliabilities[0] * reliabilities[1]
    return Change(
        other.site,
        other.attribution,
        name,
        k,
        statistics.rank_correlation(was, now),
        float(np.sqrt(product)) if min(reliabilities) > 0 else float("nan"),
        statistics.top_overlap(was, now, k)[0],
        _sure(tops_after, tops_before, now),
        _sure(tops_before, tops_after, was),
        float("nan") if one.faithfulness is None else float(one.faithfulness.gap[row]),
        float("nan") if other.faithfulness is None else float(other.faithfulness.gap[other_row]),
    )


def _tops(half_mean: Float[np.ndarray, "half neuron"], k: int) -> list[set[int]]:
    """Return the top k neurons of each half; none of halves whose values are not finite."""
    return [
        set(np.argsort(-scores, kind="stable")[:k].tolist()) if np.isfinite(scores).all() else set()
        for scores in half_mean
    ]


def _sure(tops: list[set[int]], others: list[set[int]], mean: Float[np.ndarray, " neuron"]) -> tuple[int, ...]:
    """Return the neurons that are in both of some tops, and in none of others, most important first."""
    if not all(tops) or not all(others):
        return ()
    found = set.intersection(*tops).difference(*others)
    return tuple(sorted(found, key=lambda neuron: (-mean[neuron], neuron)))


def _matched_clusters(before: Results, after: Results) -> list[tuple[int, int]]:
    """Return the rows of the clusters that are the same, before and after."""
    if "kmeans" not in (before.clusters.kind, after.clusters.kind):
        rows = {name: row for row, name in enumerate(before.clusters.names)}
        return [(rows[name], row) for row, name in enumerate(after.clusters.names) if name in rows]
    members = [
        [set(each.sample_fingerprint[each.sample_cluster == cluster].tolist()) for cluster in each.clusters.ids]
        for each in (before, after)
    ]
    overlap = np.array([[len(one & other) / max(len(one | other), 1) for other in members[1]] for one in members[0]])
    overlap[overlap < MIN_OVERLAP] = 0.0  # or two poor pairs could outweigh one good pair
    pairs = zip(*linear_sum_assignment(-overlap), strict=True)
    return sorted(((int(row), int(other)) for row, other in pairs if overlap[row, other]), key=lambda pair: pair[1])


def _unmatched(
    what: str, before: tuple[str, ...], after: tuple[str, ...], pairs: list[tuple[int, int]]
) -> Iterator[str]:
    """Say which clusters are in one measurement only."""
    gone = [name for row, name in enumerate(before) if row not in [pair[0] for pair in pairs]]
    new = [name for row, name in enumerate(after) if row not in [pair[1] for pair in pairs]]
    for names, when in ((gone, "before"), (new, "after")):
        if names:
            yield f"{what} that are only in the measurement {when}: {', '.join(names[:5])}"


def _other_meaning(one: Importance, other: Importance) -> Iterator[str]:
    """Say where scores of the same name mean something else."""
    for what in ("target", "target_class", "baseline"):
        pair = getattr(one.removal, what), getattr(other.removal, what)
        if pair[0] != pair[1]:
            yield f"{one.site}: the {what.replace('_', ' ')} is {pair[0]!r} before and {pair[1]!r} after"
    given = one.removal.baseline == other.removal.baseline and one.removal.baseline in ("constant", "vector")
    if given and not np.array_equal(one.removal.baseline_value, other.removal.baseline_value):
        yield f"{one.site}: the {one.removal.baseline} baseline has other values before and after"


def _other_members(before: Results, after: Results, pairs: list[tuple[int, int]]) -> Iterator[str]:
    """Say which clusters of one name hold mostly other samples, of those that both measurements have."""
    both = np.intersect1d(before.sample_fingerprint, after.sample_fingerprint)
    for row, other in pairs:
        members = [
            set(each.sample_fingerprint[each.sample_cluster == each.clusters.ids[place]].tolist()) & set(both.tolist())
            for each, place in ((before, row), (after, other))
        ]
        if len(members[0] & members[1]) < MIN_OVERLAP * len(members[0] | members[1]):
            yield f"cluster {after.clusters.names[other]!r} holds mostly other samples before and after"
