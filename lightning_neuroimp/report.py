"""Results in words: tables for the console and for TensorBoard's text tab."""

import numpy as np
from tabulate import tabulate

from lightning_neuroimp.results import Faithfulness, Importance, Results

TOP = 5


def summary(results: Results, name: str = "") -> str:
    """A table per site and attribution: each cluster's top neurons, gap, p-value and verdict.

    Args:
        results: with or without faithfulness.
        name: whose results these are, for the heading.
    """
    parts = [_heading(results, name)]
    for one in results.importances:
        headers, rows = _table(results, one)
        align = ["right" if header in _NUMBERS else "left" for header in headers]
        parts.append(f"{_title(one)}\n" + tabulate(rows, headers, "simple", disable_numparse=True, colalign=align))
        if one.faithfulness is not None:
            parts[-1] += "\n" + "\n".join(_remarks(one.faithfulness))
    if results.has_faithfulness:
        parts.append(explain(results))
    parts += [f"Note: {note}" for note in results.notes]
    return "\n\n".join(parts)


def markdown(results: Results, name: str = "") -> str:
    """The same as Markdown."""
    parts = [f"### {_heading(results, name)}"]
    for one in results.importances:
        headers, rows = _table(results, one)
        parts.append(f"#### {_title(one)}\n\n" + tabulate(rows, headers, "github", disable_numparse=True))
        if one.faithfulness is not None:
            parts.append("  \n".join(_remarks(one.faithfulness)))
    if results.has_faithfulness:
        parts.append(explain(results).replace("\n", "  \n"))
    parts += [f"**Note:** {note}" for note in results.notes]
    return "\n\n".join(parts)


_NUMBERS = {"size", "accuracy", "gap", "p"}


def _heading(results: Results, name: str) -> str:
    removal = results.importances[0].removal
    when = f"epoch {results.epoch}" if results.epoch >= 0 else ""
    stable = results.clusters.adjusted_rand_index
    pieces = [
        name,
        when,
        f"{len(results.sample_index)} probe samples",
        f"clusters: {results.clusters.source}",
        f"target: {removal.target}",
        f"baseline: {removal.baseline}",
        # labels do not change, so that their agreement is no news
        "" if results.clusters.source == "labels" or np.isnan(stable) else f"agreement with last epoch: {stable:.2f}",
    ]
    return " | ".join(piece for piece in pieces if piece)


def _title(one: Importance) -> str:
    verdict = f": {one.faithfulness.overall.verdict}" if one.faithfulness is not None else ""
    return f"{one.site}, {one.removal.n_neurons} neurons, {one.attribution}{verdict}"


def _table(results: Results, one: Importance) -> tuple[list[str], list[list[str]]]:
    table, faithfulness = results.clusters, one.faithfulness
    mixed = table.source != "labels"
    headers = ["cluster", "size", "accuracy", *(["mostly class"] if mixed else []), "top neurons"]
    headers += ["gap", "p", "verdict"] if faithfulness is not None else []
    rows = []
    for row, cluster in enumerate(table.ids.tolist()):
        line = [table.names[row], str(table.size[row]), f"{table.accuracy[row]:.2f}"]
        line += [composition(table.class_counts[row])] if mixed else []
        line += [" ".join(map(str, one.top(cluster, TOP))) or "-"]
        if faithfulness is not None:
            line += [_signed(faithfulness.gap[row]), _p(faithfulness.p_value[row]), faithfulness.verdict[row]]
        rows.append(line)
    if faithfulness is not None:
        overall = faithfulness.overall
        share = f"{np.average(table.accuracy, weights=table.size):.2f}"
        line = ["all", str(table.size.sum()), share, *([""] if mixed else []), ""]
        rows.append([*line, _signed(overall.gap), _p(overall.p_value), overall.verdict])
    return headers, rows


def composition(counts: np.ndarray, most: int = 3) -> str:
    """The commonest classes with their shares.

    >>> composition(np.array([10, 0, 30]))
    '2 75%, 0 25%'
    """
    order = np.argsort(-counts, kind="stable")[:most]
    return ", ".join(f"{key} {counts[key] / counts.sum():.0%}" for key in order if counts[key])


def _remarks(faithfulness: Faithfulness) -> list[str]:
    overall = faithfulness.overall
    others = ", ".join(
        f"{name} {_signed(gap)}" for name, gap in zip(faithfulness.references, overall.reference_gap, strict=True)
    )
    lds = "not defined" if np.isnan(overall.lds) else f"{overall.lds:.2f}"
    return [
        f"Gaps of simpler rankings, to compare with {_signed(overall.gap)}: {others}.",
        f"Scores against measured effects of random removals (LDS, 1 is perfect): {lds}.",
    ]


def explain(results: Results) -> str:
    """How to read the tables."""
    removed = {}
    for one in results.importances:
        if one.faithfulness is not None:
            counts = ", ".join(map(str, one.faithfulness.removed))
            removed[one.removal.n_neurons] = f"{counts} of {one.removal.n_neurons}"
            n_draws, n_samples = len(one.faithfulness.random_accuracy), int(one.faithfulness.samples.sum())
    return (
        "gap: accuracy left by random removal minus accuracy left by removing the top neurons, mean over removing\n"
        f"     {'; '.join(removed.values())} neurons; on {n_samples} samples, ranked on one half of a cluster and "
        "removed on the other.\n"
        f"p:   share of {n_draws} random orders, and the ranking itself, with a gap as large "
        f"(smallest possible: {1 / (n_draws + 1):.2g}).\n"
        "faithful: p <= .05 and a gap of at least 5% of the accuracy left by random removal; weak: a smaller gap."
    )


def _signed(value: float) -> str:
    return "-" if np.isnan(value) else f"{round(float(value), 3) + 0.0:+.3f}"


def _p(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"
