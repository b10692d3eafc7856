"""Draw deletion curves against random removal: does a ranking find the neurons that matter?"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightning_neuroimp.display.figures.common import (
    GREY,
    add_legend,
    colour_of,
    importances_at,
    legend_label,
    new_figure,
)
from lightning_neuroimp.display.formats import one_line, short_name
from lightning_neuroimp.display.labels import baseline_label, reference_label
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.measurement import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 12
"""Panels of a figure: all clusters together, and the largest clusters."""

_BAND = (5, 95)  # percentiles of the random orders
_COLUMNS = 3
_TICKS = (1, 2, 5, 10, 20, 50, 100)  # percent of the neurons
_SMALL = 9  # points
_STYLES = ("--", "-.", (0, (5, 1, 1, 1, 1, 1)))  # of reference rankings


class _Ranking(NamedTuple):
    """Hold what is drawn of an attribution."""

    attribution: str
    faithfulness: Faithfulness
    colour: str


def deletion_figure(results: Results, site: str) -> "Figure":
    """Draw the deletion curves of a site against random removal: all clusters together, below them the largest ones.

    Args:
        results: with faithfulness.
        site: name of the site.

    Returns:
        A Matplotlib figure of at most 12 panels: accuracy against the percentage of neurons removed, most important
        first, with the mean and the 5-95% range of the random orders, and the reference rankings. The first panel can
        be read in a thumbnail.

    Raises:
        InvalidArgument: if there is no such site, or ablation was not run.
    """
    rankings = [
        _Ranking(importance.attribution, importance.faithfulness, colour_of(number))
        for number, importance in enumerate(importances_at(results, site))
        if importance.faithfulness is not None
    ]
    if not rankings or not rankings[0].faithfulness.samples.any():
        raise InvalidArgument(
            f"no deletion curves at {site!r}: run ablation_faithfulness on the results first, with at least two "
            "samples in a cluster"
        )
    rows = _drawn_clusters(results, rankings[0].faithfulness)
    n_rows = -(-len(rows) // _COLUMNS)
    # above each panel there is a line of text for each ranking
    heights = [3.9, *[1.55 + 0.17 * len(rankings)] * n_rows]
    figure = new_figure(8.0, sum(heights) + 0.4)
    grid = figure.add_gridspec(1 + n_rows, _COLUMNS, height_ratios=heights)
    whole = figure.add_subplot(grid[0, :])
    _draw_all_clusters(whole, results, site, rankings, n_left_out=len(results.clusters.ids) - len(rows))
    for number, row in enumerate(rows):
        panel = figure.add_subplot(grid[1 + number // _COLUMNS, number % _COLUMNS], sharey=whole)
        title = f"{short_name(results.clusters.names[row])} ({results.clusters.size[row]})"
        panel.set_title(title, fontsize=11, pad=4 + 11 * len(rankings), parse_math=False)
        _draw_curves(panel, rankings, row, results[site].removal.n_neurons, _SMALL)
        _label_outer_axes(panel, left=number % _COLUMNS == 0, bottom=number + _COLUMNS >= len(rows))
    return figure


def _drawn_clusters(results: Results, faithfulness: Faithfulness) -> list[int]:
    """Return the rows of the largest clusters of which samples were ablated, in the order of the cluster table."""
    ablated = faithfulness.samples[:, :-1].sum(0)
    largest = np.argsort(-results.clusters.size, kind="stable").tolist()
    return sorted([row for row in largest if ablated[row]][: MAX_PANELS - 1])


def _draw_all_clusters(
    panel: "Axes", results: Results, site: str, rankings: list[_Ranking], *, n_left_out: int
) -> None:
    removal = results[site].removal
    _draw_curves(panel, rankings, -1, removal.n_neurons, size=14)
    panel.set_xlabel(f"neurons removed (%), set to {baseline_label(removal)}, most important first", fontsize=14)
    panel.set_ylabel("accuracy", fontsize=14)
    when = f", epoch {results.epoch}" if results.epoch >= 0 else ""
    left_out = f" ({n_left_out} clusters not drawn)" if n_left_out else ""
    title = f"{one_line(site)}, all clusters{when}{left_out}"
    panel.set_title(title, fontsize=16, fontweight="bold", pad=8 + 17 * len(rankings), parse_math=False)
    add_legend(panel, "lower left", 12 if len(panel.lines) < 6 else 9)


def _label_outer_axes(panel: "Axes", *, left: bool, bottom: bool) -> None:
    """Label only the axes at the edge of the grid, as all panels share them."""
    panel.tick_params(labelleft=left, labelbottom=bottom)
    if left:
        panel.set_ylabel("accuracy", fontsize=_SMALL)
    if bottom:
        panel.set_xlabel("neurons removed (%)", fontsize=_SMALL)


def _draw_curves(panel: "Axes", rankings: list[_Ranking], row: int, n_neurons: int, size: int) -> None:
    """Draw the curves of one cluster, or for row -1 those of all clusters.

    Args:
        panel: to draw into.
        rankings: of one site; random orders and reference rankings are those of the first one.
        row: of the cluster.
        n_neurons: number of neurons at the site.
        size: of the letters, in points; lines are drawn in proportion.
    """
    first, width = rankings[0].faithfulness, size / _SMALL
    share = 100 * first.removed / n_neurons
    random = first.random_accuracy[:, row]
    low, high = np.percentile(random, _BAND, axis=0)
    panel.fill_between(share, low, high, color=GREY, alpha=0.35, linewidth=0)
    label = f"random orders: mean, {_BAND[0]}-{_BAND[1]}% of {len(random)}"
    panel.plot(share, random.mean(0), color="#6f6f6f", linewidth=1.4 * width, label=label)
    # effects to first order are drawn where they are another ranking than those that are judged
    known = [not any(np.array_equal(curve, each.faithfulness.accuracy) for each in rankings)
             and bool(np.isfinite(curve[-1]).all()) for curve in first.reference_accuracy]  # fmt: skip
    references = first.reference_accuracy[:, row]
    for style, reference, curve, shown in zip(_STYLES, first.references, references, known, strict=False):
        if not shown:
            continue
        label = reference_label(reference)
        panel.plot(share, curve, color="#444444", linewidth=0.8 * width, linestyle=style, label=label)
    for number, ranking in enumerate(rankings):
        _draw_ranking(panel, share, ranking, row, width)
        # one line of text per ranking above the panel
        above = 4 + 1.2 * size * (len(rankings) - 1 - number)
        placed: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center"}
        text = _judgement(ranking, row)
        panel.annotate(text, (0.5, 1), (0, above), color=ranking.colour, fontsize=size, **placed)
    panel.set_xscale("log")
    panel.set_xticks([tick for tick in _TICKS if share[0] * 0.8 <= tick <= share[-1] * 1.2])
    panel.xaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.set_ylim(-0.03, 1.03)
    panel.tick_params(labelsize=size)
    panel.grid(alpha=0.25)


def _draw_ranking(panel: "Axes", share: np.ndarray, ranking: _Ranking, row: int, width: float) -> None:
    faithfulness = ranking.faithfulness
    name = legend_label(ranking.attribution)
    style: dict[str, Any] = {"color": ranking.colour, "linewidth": 1.6 * width, "marker": "o", "markersize": 3 * width}
    panel.plot(share, faithfulness.accuracy[row], label=name, **style)
    if faithfulness.least_accuracy is not None:
        style = {"color": ranking.colour, "linewidth": width, "linestyle": ":"}
        panel.plot(share, faithfulness.least_accuracy[row], label=f"{name}, least important first", **style)


def _judgement(ranking: _Ranking, row: int) -> str:
    gap, interval = float(ranking.faithfulness.gap[row]), ranking.faithfulness.gap_interval[row]
    verdict = ranking.faithfulness.verdict[row]
    if row < 0 and not np.isnan(interval).any():
        return f"gap {gap:+.2f} (95%: {interval[0]:+.2f} to {interval[1]:+.2f}), {verdict}"
    return f"gap {round(gap, 2) + 0.0:+.2f}, {verdict}"
