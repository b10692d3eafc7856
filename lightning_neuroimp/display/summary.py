"""Put results into words: build the document once, and render it for a terminal or a page."""

from collections.abc import Sequence

import numpy as np

from lightning_neuroimp.display.console import to_console
from lightning_neuroimp.display.document import (
    Column,
    Document,
    FindingList,
    Lines,
    ListedFinding,
    Note,
    Section,
    Table,
)
from lightning_neuroimp.display.formats import counted, interval, probability, short_name, signed, some
from lightning_neuroimp.display.labels import baseline_label
from lightning_neuroimp.display.legend import legend
from lightning_neuroimp.display.markdown import to_markdown
from lightning_neuroimp.display.remarks import remarks
from lightning_neuroimp.results.faithfulness import Comparison, Faithfulness
from lightning_neuroimp.results.findings.finding import Finding
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results

N_TOP = 5
"""Number of top neurons in a row of a table."""

N_FINDINGS = 5
"""Kinds of findings that are displayed unless all are asked for."""

_N_NAMED = 5  # clusters that a finding names
_N_PLACES = 3  # other places that a finding names


def summary(results: Results, name: str = "", *, all_findings: bool = False) -> str:
    """Say in plain text what a measurement found.

    That is: what the clusters are; for each layer and score a table with each cluster's top neurons and, where ablation
    was run, gap, p-value and verdict; and the findings.

    Args:
        results: with or without faithfulness.
        name: of the measurement, for the title.
        all_findings: whether to list all findings rather than the five most important kinds.
    """
    return to_console(summary_document(results, name, all_findings))


def markdown(results: Results, name: str = "") -> str:
    """Say in Markdown what a measurement found, the findings first.

    Args:
        results: with or without faithfulness.
        name: of the measurement, for the title.
    """
    return to_markdown(summary_document(results, name))


def summary_document(results: Results, name: str = "", all_findings: bool = False) -> Document:
    """Build the document that says what a measurement found.

    Args:
        results: with or without faithfulness.
        name: of the measurement, for the title.
        all_findings: whether to list all findings rather than the five most important kinds.
    """
    sections = [Section("", (_cluster_table(results),))]
    for importance in results.importances:
        lines = Lines(tuple(remarks(results, importance)))
        sections.append(Section(_heading(importance), (_importance_table(results, importance), lines)))
    if results.comparisons:
        lines = Lines(tuple(map(_comparison, results.comparisons)))
        sections.append(Section("Which score is better?", (lines,)))
    if results.has_faithfulness:
        sections.append(Section("", (legend(results),)))
    sections += [Section("", (Note(note),)) for note in results.notes]
    return Document(_title(results, name), tuple(sections), _findings(results, all_findings))


def _title(results: Results, name: str) -> str:
    removal, table = results.importances[0].removal, results.clusters
    whose = {"label": "", "predicted": " of the predicted class"}
    pieces = [
        name,
        f"epoch {results.epoch}" if results.epoch >= 0 else "",
        f"{len(results.sample_index)} probe samples",
        f"clusters: {table.source}",
        f"target: {removal.target}{whose.get(str(removal.target_class), f' of class {removal.target_class}')}",
        f"baseline: {baseline_label(removal)}",
    ]
    # labels and loaders do not change, so that their agreement is no news
    if table.kind not in ("labels", "dataloaders") and not np.isnan(table.adjusted_rand_index):
        pieces.append(f"agreement with the last epoch's clusters: {table.adjusted_rand_index:.2f}")
    return " | ".join(piece for piece in pieces if piece)


def _cluster_table(results: Results) -> Table:
    table = results.clusters
    # a cluster of one label has one class
    mixed = table.kind != "labels"
    columns = [Column("cluster"), Column("size", numeric=True), Column("accuracy", numeric=True)]
    columns += [Column("classes")] if mixed else []
    columns += [Column("validation samples nearest to its centre")]
    rows = []
    for row, name in enumerate(table.names):
        cells = [short_name(name), str(table.size[row]), f"{table.accuracy[row]:.2f}"]
        cells += [composition(table.class_counts[row], table.class_names)] if mixed else []
        rows.append((*cells, " ".join(str(sample) for sample in table.exemplars[row] if sample >= 0)))
    return Table(tuple(columns), tuple(rows))


def composition(counts: np.ndarray, names: Sequence[str] = (), most: int = 3) -> str:
    """Return the commonest classes of a cluster with their shares.

    Args:
        counts: samples of each class.
        names: of the classes; those without one are numbered.
        most: upper bound on the number of classes.

    >>> composition(np.array([10, 0, 30]), ["cat"])
    '2 (75%), cat (25%)'
    """
    order = [key for key in np.argsort(-counts, kind="stable")[:most] if counts[key]]
    shares = [(short_name(names[key]) if key < len(names) else key, counts[key] / counts.sum()) for key in order]
    return ", ".join(f"{name} ({share:.0%})" for name, share in shares)


def _heading(importance: Importance) -> str:
    verdict = "" if importance.faithfulness is None else f": {importance.faithfulness.verdict[-1]}"
    n_neurons = counted(importance.removal.n_neurons, "neuron")
    return f"{importance.site}, {n_neurons}, {importance.attribution}{verdict}"


def _importance_table(results: Results, importance: Importance) -> Table:
    table, faithfulness = results.clusters, importance.faithfulness
    columns = [Column("cluster"), Column("size", numeric=True), Column("top neurons")]
    if faithfulness is not None:
        columns += [Column("gap", numeric=True), Column("95% interval"), Column("p", numeric=True)]
        columns += [Column("p(m)", numeric=True), Column("q", numeric=True), Column("verdict")]
    rows = []
    for row, cluster in enumerate(table.ids.tolist()):
        top = " ".join(map(str, importance.top(cluster, N_TOP))) or "-"
        cells = () if faithfulness is None else _judgement(faithfulness, row)
        rows.append((short_name(table.names[row]), str(table.size[row]), top, *cells))
    if faithfulness is not None:
        rows.append(("all", str(table.size.sum()), "", *_judgement(faithfulness, -1)))
    return Table(tuple(columns), tuple(rows))


def _judgement(faithfulness: Faithfulness, row: int) -> tuple[str, ...]:
    """Return gap, interval, p, the margin's p, q and verdict of a cluster; of all clusters, without q, for row -1."""
    return (
        signed(faithfulness.gap[row]),
        interval(faithfulness.gap_interval[row]),
        probability(faithfulness.p_value[row]),
        probability(faithfulness.margin_p_value[row]),
        "" if row < 0 else probability(faithfulness.q_value[row], digits=2),
        str(faithfulness.verdict[row]),
    )


def _comparison(comparison: Comparison) -> str:
    first, second, better = comparison.first, comparison.second, comparison.better
    if better is None:
        difference = f"{signed(comparison.difference)} (95%: {interval(comparison.interval)})"
        return f"{comparison.site}: no clear difference; gap of {first} - gap of {second}: {difference}."
    sign, other = (1, second) if better == first else (-1, first)
    more = f"{sign * comparison.difference:.3f} (95%: {interval(np.sort(sign * comparison.interval), sign=False)})"
    return f"{comparison.site}: {better}; its gap exceeds that of {other} by {more}."


def _findings(results: Results, everything: bool) -> FindingList:
    kinds: dict[str, list[Finding]] = {}
    for finding in results.findings:
        kinds.setdefault(finding.id, []).append(finding)
    if not kinds:
        more = "" if results.has_faithfulness else "; most of them need ablation"
        return FindingList(f"Findings: none of those that are looked for (examples/findings.md{more}).", ())
    listed = list(kinds.values())[: None if everything else N_FINDINGS]
    n_left = len(kinds) - len(listed)
    rest = f"{n_left} more kind{'s' if n_left > 1 else ''}: summary(all_findings=True)" if n_left else ""
    headline = "Findings, weightiest first (examples/findings.md says what each one means):"
    return FindingList(headline, tuple(map(_listed, listed)), rest)


def _listed(same_kind: list[Finding]) -> ListedFinding:
    """Describe the weightiest finding of a kind, and say where else that kind was found."""
    first = same_kind[0]
    places = [place for place in dict.fromkeys(finding.where for finding in same_kind) if place != first.where]
    where = f"{first.where}; also at {some(places, _N_PLACES, '; ')}" if places else first.where
    text = f"{first.id} ({where}): {first.text}"
    if first.clusters:
        names = some([short_name(name) for name in first.clusters], _N_NAMED)
        text += f" Cluster{'s' if len(first.clusters) > 1 else ''}: {names}."
    return ListedFinding(text, f"To do: {first.remedy}.")
