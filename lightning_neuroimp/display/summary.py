"""Results in words: tables for the console and for TensorBoard's text tab."""

import textwrap
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from lightning_neuroimp import statistics
from lightning_neuroimp.display.samples import top_neurons
from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.results.faithfulness import Comparison
from lightning_neuroimp.results.findings.finding import Finding
from lightning_neuroimp.results.history import agreement
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import LEVEL, MIN_HALF

TOP = 5


MOST_FINDINGS = 5


WIDTH = 118


def summary(results: Results, name: str = "", *, all_findings: bool = False) -> str:
    """What the clusters are, a table per site and attribution (top neurons, gap, p-value, verdict), and findings.

    Args:
        results: with or without faithfulness.
        name: whose results these are, for the heading.
        all_findings: rather than the weightiest ones.
    """
    parts = [_heading(results, name), _plain(*_cluster_table(results))]
    for one in results.importances:
        parts.append("\n".join([_title(one), _plain(*_table(results, one)), *_remarks(results, one)]))
    if results.comparisons:
        parts.append("\n".join(["Which score is better?", *map(_comparison, results.comparisons)]))
    if results.has_faithfulness:
        parts.append(explain(results))
    parts += [f"Note: {note}" for note in results.notes]
    headline, lines, rest = _findings(results, all_findings)
    parts.append("\n".join([headline, *map(_wrapped, lines), *([rest] if rest else [])]))
    return "\n\n".join(parts)


def markdown(results: Results, name: str = "") -> str:
    """The same as Markdown."""
    parts = [f"### {_heading(results, name)}", _github(*_cluster_table(results))]
    for one in results.importances:
        parts += [f"#### {_title(one)}", _github(*_table(results, one))]
        parts.append("  \n".join(_remarks(results, one)))
    if results.comparisons:
        parts += ["#### Which score is better?", "  \n".join(map(_comparison, results.comparisons))]
    if results.has_faithfulness:
        parts.append(explain(results).replace("\n", "  \n"))
    parts += [f"**Note:** {note}" for note in results.notes]
    headline, lines, rest = _findings(results, everything=False)
    # what is to be done first is read first
    parts.insert(1, "\n\n".join([f"**{headline}**", "  \n".join(lines), *([rest] if rest else [])]))
    return "\n\n".join(parts)


def _plain(headers: list[str], rows: list[list[str]]) -> str:
    align = ["right" if header in _NUMBERS else "left" for header in headers]
    return tabulate(rows, headers, "simple", disable_numparse=True, colalign=align)


def _github(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, "github", disable_numparse=True)


_NUMBERS = {"size", "accuracy", "gap", "p", "q"}


def _heading(results: Results, name: str) -> str:
    removal = results.importances[0].removal
    when = f"epoch {results.epoch}" if results.epoch >= 0 else ""
    stable = results.clusters.adjusted_rand_index
    pieces = [
        name,
        when,
        f"{len(results.sample_index)} probe samples",
        f"clusters: {results.clusters.source}",
        f"target: {removal.target}{_whose(removal.target_class)}",
        f"baseline: {removal.baseline}",
        # labels do not change, so that their agreement is no news
        "" if results.clusters.source == "labels" or np.isnan(stable) else f"agreement with last epoch: {stable:.2f}",
    ]
    return " | ".join(piece for piece in pieces if piece)


def _whose(target_class: str | int) -> str:
    if target_class == "label":
        return ""
    return " of the predicted class" if target_class == "predicted" else f" of class {target_class}"


def _title(one: Importance) -> str:
    verdict = f": {one.faithfulness.verdict[-1]}" if one.faithfulness is not None else ""
    return f"{one.site}, {one.removal.n_neurons} neurons, {one.attribution}{verdict}"


def _cluster_table(results: Results) -> tuple[list[str], list[list[str]]]:
    table = results.clusters
    mixed = table.source != "labels"
    headers = [
        "cluster",
        "size",
        "accuracy",
        *(["classes"] if mixed else []),
        "validation samples nearest to its centre",
    ]
    rows = []
    for row, name in enumerate(table.names):
        line = [name, str(table.size[row]), f"{table.accuracy[row]:.2f}"]
        line += [composition(table.class_counts[row], table.class_names)] if mixed else []
        rows.append([*line, " ".join(str(sample) for sample in table.exemplars[row] if sample >= 0)])
    return headers, rows


def _table(results: Results, one: Importance) -> tuple[list[str], list[list[str]]]:
    table, faithfulness = results.clusters, one.faithfulness
    columns = ["gap", "95% interval", "p", "q", "verdict"] if faithfulness is not None else []
    headers = ["cluster", "size", "top neurons", *columns]
    rows = []
    for row, cluster in enumerate(table.ids.tolist()):
        line = [table.names[row], str(table.size[row]), " ".join(map(str, one.top(cluster, TOP))) or "-"]
        if faithfulness is not None:
            line += [_signed(faithfulness.gap[row]), _interval(faithfulness.gap_interval[row])]
            line += [_p(faithfulness.p_value[row]), _p(faithfulness.q_value[row]), faithfulness.verdict[row]]
        rows.append(line)
    if faithfulness is not None:
        whole = [
            _signed(faithfulness.gap[-1]),
            _interval(faithfulness.gap_interval[-1]),
            _p(faithfulness.p_value[-1]),
            "",
            faithfulness.verdict[-1],
        ]
        rows.append(["all", str(table.size.sum()), "", *whole])
    return headers, rows


def composition(counts: np.ndarray, names: Sequence[str] = (), most: int = 3) -> str:
    """The commonest classes with their shares.

    >>> composition(np.array([10, 0, 30]))
    '2 75%, 0 25%'
    """
    order = np.argsort(-counts, kind="stable")[:most]
    shares = [(names[key] if key < len(names) else key, counts[key] / counts.sum()) for key in order if counts[key]]
    return ", ".join(f"{name} {share:.0%}" for name, share in shares)


def _remarks(results: Results, one: Importance) -> list[str]:
    lines = []
    if one.faithfulness is not None:
        faithfulness = one.faithfulness
        others = ", ".join(
            f"{name} {_signed(gap)}"
            for name, gap in zip(faithfulness.references, faithfulness.reference_gap[:, -1], strict=True)
        )
        lds = (
            "not defined"
            if np.isnan(faithfulness.lds[-1])
            else f"{faithfulness.lds[-1]:.2f} ({_interval(faithfulness.lds_interval[-1], 2)})"
        )
        lines += [
            f"Gaps of simpler rankings, to compare with {_signed(faithfulness.gap[-1])}: {others}.",
            f"Scores against measured effects of random removals (LDS, 1 is perfect): {lds}.",
        ]
        if faithfulness.least_accuracy is not None:
            lines.append(
                f"Symmetric relevance gain (least important first - most important first): {_signed(faithfulness.srg[-1])} "
                f"({_interval(faithfulness.srg_interval[-1])})."
            )
        if faithfulness.greedy_accuracy is not None:
            lines.append(
                f"Share of the gap of a greedy order (normalised gap): {_share(faithfulness.normalised_gap[-1])}."
            )
        if faithfulness.specificity is not None:
            specificity = faithfulness.specificity
            lines.append(
                f"Specificity, of removing {specificity.removed} neurons: a cluster's own top neurons cost it "
                f"{_signed(specificity.value)} more accuracy than those of other clusters, p {_p(specificity.p_value)}."
            )
            before, after = (
                statistics.weighted_mean(row, results.clusters.size) for row in specificity.balanced_accuracy
            )
            if not np.isnan(before):
                lines.append(
                    f"Balanced accuracy of telling a label from all others: {before:.2f}, without its top neurons "
                    f"{after:.2f}."
                )
    agreed = agreement(results, one)
    if not np.isnan(agreed.reliability):
        needed = one.reliability.samples_needed[np.isfinite(one.reliability.samples_needed)]
        most = f"; .9 takes about {int(np.ceil(np.median(needed)))} samples a cluster" if len(needed) else ""
        lines.append(f"Reliability, by which a cluster's halves agree on its neurons: {agreed.reliability:.2f}{most}.")
        overlap = float(statistics.weighted_mean(one.reliability.top_overlap, results.clusters.size))
        lines[-1] += (
            f" Their top {one.reliability.k} overlap by {overlap:.2f} (by chance {one.reliability.top_chance:.2f})."
        )
    lines += _activity_remarks(results, one)
    for randomised in results.randomisations:
        if (randomised.site, randomised.attribution) == (one.site, one.attribution):
            mean = statistics.weighted_mean(randomised.rank_correlation, results.clusters.size)
            steps = ", ".join(f"{value:.2f}" for value in mean)
            lines.append(
                f"Rank correlation with randomised weights, from the output to all modules (near 0 is sane): {steps}."
            )
    if one.drift is not None and not np.isnan(agreed.stability):
        lines.append(f"Rank correlation with epoch {one.drift.epoch}: {agreed.stability:.2f}.")
    return lines


def _activity_remarks(results: Results, one: Importance) -> list[str]:
    """Which samples drive the top neurons, and whether the baseline lies among the activations; once per site."""
    if results[one.site] is not one or one.site not in [activity.site for activity in results.activities]:
        return []
    activity, lines = results.activity(one.site), []
    driven = [
        f"{neuron}: {' '.join(map(str, _driving(activity, neuron)))}" for neuron in top_neurons(results, one.site, TOP)
    ]
    if driven:
        lines.append(f"Samples that drive top neurons most: {'; '.join(driven)}.")
    return lines


def _driving(activity: SiteActivity, neuron: int) -> list[int]:
    return [sample for sample in activity.top_samples[neuron].tolist() if sample >= 0][:3]


def _findings(results: Results, everything: bool) -> tuple[str, list[str], str]:
    """A headline, a line (and what to do) for each kind of finding, weightiest first, and what is left out."""
    kinds: dict[str, list[Finding]] = {}
    for finding in results.findings:
        kinds.setdefault(finding.id, []).append(finding)
    if not kinds:
        few = "" if results.has_faithfulness else "; most of them need ablation"
        return f"Findings: none of those that are looked for (examples/findings.md{few}).", [], ""
    shown = list(kinds.values())[: None if everything else MOST_FINDINGS]
    lines = []
    for number, same in enumerate(shown, 1):
        first = same[0]
        others = [where for where in dict.fromkeys(one.where for one in same) if where != first.where]
        more = f"; also at {'; '.join(others[:3])}" if others else ""
        more += f" and {len(others) - 3} more" if len(others) > 3 else ""
        about = f" [{', '.join(first.clusters[:5])}{', ...' if len(first.clusters) > 5 else ''}]"
        text = f"{number}. {first.id} ({first.where}{more}): {first.text}{about if first.clusters else ''}"
        lines += [text, f"   To do: {first.remedy}."]
    left = len(kinds) - len(shown)
    rest = f"{left} more kinds: summary(all_findings=True)" if left else ""
    return "Findings, weightiest first (examples/findings.md says what each one means):", lines, rest


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)


def _comparison(one: Comparison) -> str:
    difference = f"{_signed(one.difference)} ({_interval(one.interval)})"
    if one.better is None:
        return f"{one.site}: no certain difference; gap of {one.first} - gap of {one.second}: {difference}."
    return f"{one.site}: {one.better}; gap of {one.first} - gap of {one.second}: {difference}."


def discoveries(results: Results) -> str:
    """How many clusters' gaps hold once it is taken into account that many were tested, and whether they could."""
    checked = [one.faithfulness for one in results.importances if one.faithfulness is not None]
    q_values = np.concatenate([one.q_value[:-1] for one in checked])
    n_tests, n_draws = int(np.isfinite(q_values).sum()), min(one.n_draws for one in checked)
    found = int((q_values <= LEVEL).sum())
    text = f"q:   smallest false discovery rate at which a cluster counts; {found} of {n_tests} do at {LEVEL:.0%}."
    if n_tests / (n_draws + 1) > LEVEL:
        text += f" With {n_draws} random orders p cannot go\n     below {1 / (n_draws + 1):.2g}, so that a few of "
        text += f"{n_tests} tests cannot stand out alone: n_random={int(np.ceil(n_tests / LEVEL)) - 1} would let them."
    return text


def explain(results: Results) -> str:
    """How to read the tables."""
    removed: dict[int, str] = {}
    for one in results.importances:
        if one.faithfulness is not None:
            counts = ", ".join(map(str, one.faithfulness.removed))
            removed[one.removal.n_neurons] = f"{counts} of {one.removal.n_neurons}"
            n_draws, n_samples = one.faithfulness.n_draws, int(one.faithfulness.samples[:, -1].sum())
    return (
        "gap: accuracy left by random removal minus accuracy left by removing the top neurons, mean over removing\n"
        f"     {'; '.join(removed.values())} neurons; on {n_samples} samples, ranked on one half of a cluster and "
        "removed on the other.\n"
        f"p:   share of {n_draws} random orders, and the ranking itself, with a gap as large "
        f"(smallest possible: {1 / (n_draws + 1):.2g}).\n"
        f"{discoveries(results)}\n"
        "95% interval: with samples and random orders drawn again, the rankings fixed.\n"
        "faithful: p <= .05 and a gap of at least 5% of the accuracy left by random removal; weak: a smaller gap;\n"
        f"     too few samples to say: fewer than {MIN_HALF} removed samples in a half of a cluster."
    )


def _signed(value: float) -> str:
    return "-" if np.isnan(value) else f"{round(float(value), 3) + 0.0:+.3f}"


def _p(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"


def _interval(interval: np.ndarray, digits: int = 3) -> str:
    if np.isnan(interval).any():
        return "-"
    low, high = (round(float(end), digits) + 0.0 for end in interval)
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


def _share(value: float) -> str:
    return "not defined" if np.isnan(value) else f"{value:.0%}"
