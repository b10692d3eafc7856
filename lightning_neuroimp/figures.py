"""Figures of results. They are data until here; drawing imports Matplotlib inside the functions."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from lightning_neuroimp.results import Faithfulness, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 12
_COLOURS = ("#1f5fbf", "#d1495b", "#2a9d5c", "#8f5bb5", "#b8860b")
_BAND = (5, 95)


def deletion_figure(results: Results, site: str) -> "Figure":
    """Deletion curves of a site against random removal: all clusters together, then the largest clusters.

    Args:
        results: with faithfulness.
        site: name of the module.

    Returns:
        A Matplotlib figure of at most 12 panels: accuracy against the share of neurons removed, most important first,
        with the mean and the 5-95% range of the random orders, and the reference rankings.

    Raises:
        ValueError: if removal was not measured.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [(one.attribution, one.faithfulness) for one in results.importances if one.site == site]
    checked = [(name, faithfulness) for name, faithfulness in measured if faithfulness is not None]
    if not checked or not checked[0][1].samples.any():
        raise ValueError(
            f"no deletion curves at {site!r}: run ablation_faithfulness on the results first, with at least two "
            "samples in a cluster"
        )
    table = results.clusters
    ablated = checked[0][1].samples.sum(0)
    largest = [row for row in np.argsort(-table.size, kind="stable").tolist() if ablated[row]]
    rows = sorted(largest[: MAX_PANELS - 1])
    n_columns = min(4, len(rows) + 1)
    n_rows = -(-(len(rows) + 1) // n_columns)
    figure = Figure(figsize=(3.1 * n_columns, 2.5 * n_rows + 1.3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    n_neurons = results[site].removal.n_neurons
    for panel, row in zip(panels.flat, [None, *rows], strict=False):
        name = "all clusters" if row is None else table.names[row]
        _draw_panel(panel, name, checked, row, n_neurons)
    for panel in panels.flat[len(rows) + 1 :]:
        panel.set_axis_off()
    for number, panel in enumerate(panels.flat[: len(rows) + 1]):
        if number % n_columns == 0:
            panel.set_ylabel("accuracy")
        if number + n_columns > len(rows):
            panel.set_xlabel("neurons removed (%)")
            panel.tick_params(labelbottom=True)
    removal = results[site].removal
    left_out = len(table.ids) - len(rows)
    when = f", epoch {results.epoch}" if results.epoch >= 0 else ""
    more = f" ({left_out} clusters not drawn)" if left_out else ""
    figure.suptitle(
        f"{site}: accuracy after removing neurons (set to {removal.baseline}), most important first{when}{more}",
        fontsize=11,
    )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), fontsize=9, frameon=False)
    return figure


def _draw_panel(
    panel: "Axes", name: str, checked: list[tuple[str, Faithfulness]], row: int | None, n_neurons: int
) -> None:
    first = checked[0][1]
    share = 100 * first.removed / n_neurons
    random = first.overall.random_accuracy if row is None else first.random_accuracy[:, row]
    low, high = np.nanpercentile(random, _BAND, axis=0)
    label = f"random order: mean, {_BAND[0]}-{_BAND[1]}% of {len(random)}"
    panel.fill_between(share, low, high, color="#9a9a9a", alpha=0.35, linewidth=0)
    panel.plot(share, random.mean(0), color="#6f6f6f", linewidth=1.6, label=label)
    intact = first.overall.intact_accuracy if row is None else first.intact_accuracy[row]
    panel.axhline(intact, color="#6f6f6f", linewidth=0.8, linestyle=":", label="nothing removed")
    references = first.overall.reference_accuracy if row is None else first.reference_accuracy[:, row]
    for style, reference, curve in zip(("--", "-."), first.references, references, strict=True):
        panel.plot(share, curve, color="#444444", linewidth=1.0, linestyle=style, label=reference)
    words = []
    for colour, (attribution, faithfulness) in zip(_COLOURS * len(checked), checked, strict=False):
        curve = faithfulness.overall.accuracy if row is None else faithfulness.accuracy[row]
        panel.plot(share, curve, color=colour, linewidth=2.0, marker="o", markersize=3.5, label=attribution)
        gap, verdict = (
            (faithfulness.overall.gap, faithfulness.overall.verdict)
            if row is None
            else (float(faithfulness.gap[row]), faithfulness.verdict[row])
        )
        words.append((colour, f"gap {round(gap, 2) + 0.0:+.2f}, {verdict}"))
    panel.set_title(name, fontsize=10, fontweight="bold" if row is None else "normal", pad=4 + 10 * len(words))
    for line, (colour, text) in enumerate(reversed(words)):
        panel.annotate(
            text,
            (0.5, 1.0),
            (0, 3 + 10 * line),
            "axes fraction",
            "offset points",
            color=colour,
            ha="center",
            fontsize=8,
        )
    panel.set_xscale("log")
    panel.set_xticks([tick for tick in (1, 2, 5, 10, 20, 50, 100) if share[0] * 0.8 <= tick <= share[-1] * 1.2])
    panel.xaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.set_ylim(-0.03, 1.03)
    panel.tick_params(labelsize=9)
    panel.grid(alpha=0.25)


def to_image(figure: "Figure") -> UInt8[np.ndarray, "height width 3"]:
    """The figure's pixels, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
