"""Figures of results. They are data until here; drawing imports Matplotlib inside the functions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.history import Agreement
from lightning_neuroimp.results.measurement import Results

MAX_PANELS = 12


_COLOURS = ("#1f5fbf", "#d1495b", "#2a9d5c", "#8f5bb5", "#b8860b")


_BAND = (5, 95)


_COLUMNS = 3


def deletion_figure(results: Results, site: str) -> "Figure":
    """Deletion curves of a site against random removal: all clusters together, below them the largest clusters.

    Args:
        results: with faithfulness.
        site: name of the module.

    Returns:
        A Matplotlib figure of at most 12 panels: accuracy against the share of neurons removed, most important first,
        with the mean and the 5-95% range of the random orders, and the reference rankings. The first panel can be read
        in a thumbnail.

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
    ablated = checked[0][1].samples[:, :-1].sum(0)
    largest = [row for row in np.argsort(-table.size, kind="stable").tolist() if ablated[row]]
    rows = sorted(largest[: MAX_PANELS - 1])
    n_rows = -(-len(rows) // _COLUMNS)
    words = 0.17 * len(checked)
    heights = [3.9, *[1.55 + words] * n_rows]
    figure = Figure(figsize=(8.0, sum(heights) + 0.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + n_rows, _COLUMNS, height_ratios=heights)
    removal = results[site].removal
    whole = figure.add_subplot(grid[0, :])
    _draw_panel(whole, checked, -1, removal.n_neurons, size=14)
    whole.set_xlabel(f"neurons removed (%), set to {removal.baseline}, most important first", fontsize=14)
    whole.set_ylabel("accuracy", fontsize=14)
    when = f", epoch {results.epoch}" if results.epoch >= 0 else ""
    left_out = len(table.ids) - len(rows)
    more = f" ({left_out} clusters not drawn)" if left_out else ""
    pad = 8 + 17 * len(checked)
    whole.set_title(f"{site}, all clusters{when}{more}", fontsize=16, fontweight="bold", pad=pad, parse_math=False)
    whole.legend(loc="lower left", fontsize=12 if len(whole.lines) < 6 else 9, framealpha=0.8)
    for number, row in enumerate(rows):
        panel = figure.add_subplot(grid[1 + number // _COLUMNS, number % _COLUMNS], sharey=whole)
        _draw_panel(panel, checked, row, removal.n_neurons, size=9)
        panel.set_title(
            f"{table.names[row]} ({table.size[row]})", fontsize=11, pad=4 + 11 * len(checked), parse_math=False
        )
        if number % _COLUMNS:
            panel.tick_params(labelleft=False)
        else:
            panel.set_ylabel("accuracy", fontsize=9)
        if number + _COLUMNS < len(rows):
            panel.tick_params(labelbottom=False)
        else:
            panel.set_xlabel("neurons removed (%)", fontsize=9)
    return figure


def _draw_panel(
    panel: "Axes", checked: list[tuple[str, Faithfulness]], row: int, n_neurons: int, size: int
) -> None:
    """Draw one cluster's curves, or for row -1 all clusters'; `size` is that of the letters, in points."""
    first = checked[0][1]
    share = 100 * first.removed / n_neurons
    width = size / 9
    random = first.random_accuracy[:, row]
    low, high = np.percentile(random, _BAND, axis=0)
    label = f"random orders: mean, {_BAND[0]}-{_BAND[1]}% of {len(random)}"
    panel.fill_between(share, low, high, color="#9a9a9a", alpha=0.35, linewidth=0)
    panel.plot(share, random.mean(0), color="#6f6f6f", linewidth=1.4 * width, label=label)
    references = first.reference_accuracy[:, row]
    for style, reference, curve in zip(("--", "-."), first.references, references, strict=True):
        panel.plot(share, curve, color="#444444", linewidth=0.8 * width, linestyle=style, label=reference)
    for line, (attribution, faithfulness) in enumerate(checked):
        colour = _COLOURS[line % len(_COLOURS)]
        curve = faithfulness.accuracy[row]
        panel.plot(
            share, curve, color=colour, linewidth=1.6 * width, marker="o", markersize=3 * width, label=attribution
        )
        gap = float(faithfulness.gap[row])
        verdict = faithfulness.verdict[row]
        if faithfulness.least_accuracy is not None:
            curve = faithfulness.least_accuracy[row]
            panel.plot(
                share,
                curve,
                color=colour,
                linewidth=width,
                linestyle=":",
                label=f"{attribution}, least important first",
            )
        # one line per attribution above the panel, in the colour of its curve
        above = 4 + 1.2 * size * (len(checked) - 1 - line)
        interval = faithfulness.gap_interval[row]
        words = f"gap {round(gap, 2) + 0.0:+.2f}, {verdict}"
        if row < 0 and not np.isnan(interval).any():
            words = f"gap {gap:+.2f} (95%: {interval[0]:+.2f} to {interval[1]:+.2f}), {verdict}"
        panel.annotate(
            words, (0.5, 1), (0, above), "axes fraction", "offset points", color=colour, ha="center", fontsize=size
        )
    panel.set_xscale("log")
    panel.set_xticks([tick for tick in (1, 2, 5, 10, 20, 50, 100) if share[0] * 0.8 <= tick <= share[-1] * 1.2])
    panel.xaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.set_ylim(-0.03, 1.03)
    panel.tick_params(labelsize=size)
    panel.grid(alpha=0.25)


def specificity_figure(results: Results, site: str) -> "Figure":
    """What removing each cluster's top neurons costs each cluster: one matrix per attribution.

    Args:
        results: with faithfulness that measured specificity.
        site: name of the module.

    Returns:
        A Matplotlib figure; rows are the clusters that are hurt, columns those whose neurons are removed, colours the
        fall of the accuracy. A specific ranking has its largest values on the diagonal.

    Raises:
        ValueError: if specificity was not measured.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [
        (one.attribution, one.faithfulness.specificity)
        for one in results.importances
        if one.site == site and one.faithfulness is not None and one.faithfulness.specificity is not None
    ]
    if not measured:
        raise ValueError(f"no specificity at {site!r}: measure with AblationFaithfulness(specificity=True)")
    names, n = results.clusters.names, len(results.clusters.ids)
    side = 2.4 + 0.34 * n
    figure = Figure(figsize=(side * len(measured) + 0.8, side + 0.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    limit = max(0.05, *(float(np.nanmax(np.abs(one.accuracy_drop), initial=0.0)) for _, one in measured))
    for number, (attribution, one) in enumerate(measured):
        panel = figure.add_subplot(1, len(measured), number + 1)
        image = panel.imshow(one.accuracy_drop, cmap="RdBu_r", vmin=-limit, vmax=limit)
        panel.set_xticks(range(n), names, rotation=90, fontsize=9, parse_math=False)
        panel.set_yticks(range(n), names if number == 0 else [""] * n, fontsize=9, parse_math=False)
        panel.set_xlabel(f"top {one.removed} neurons of this cluster removed", fontsize=10)
        if number == 0:
            panel.set_ylabel("accuracy lost by this cluster", fontsize=10)
        p_value = "" if np.isnan(one.p_value) else f", p {one.p_value:.3g}"
        value = "too few clusters" if np.isnan(one.value) else f"own - others {one.value:+.2f}{p_value}"
        panel.set_title(f"{site}\n{attribution}\n{value}", fontsize=11, parse_math=False)
    figure.colorbar(image, ax=figure.axes, shrink=0.8, label="fall of the accuracy")
    return figure


def agreement_figure(history: Sequence[Agreement], site: str) -> "Figure":
    """Reliability and stability of a site's scores over epochs.

    Args:
        history: one entry per measurement, site and attribution.
        site: name of the module.

    Returns:
        A Matplotlib figure: agreement of a cluster's two halves (lines), and of each epoch with the one measured before
        (dashes), by epoch, one colour per attribution.

    Raises:
        ValueError: if the history has nothing of this site.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    entries = [entry for entry in history if entry.site == site]
    if not entries:
        raise ValueError(f"no history of {site!r}: it has {sorted({entry.site for entry in history})}")
    figure = Figure(figsize=(7.0, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.add_subplot()
    for line, attribution in enumerate(dict.fromkeys(entry.attribution for entry in entries)):
        colour = _COLOURS[line % len(_COLOURS)]
        mine = [entry for entry in entries if entry.attribution == attribution]
        epochs = [entry.epoch for entry in mine]
        halves, before = [one.reliability for one in mine], [one.stability for one in mine]
        panel.plot(epochs, halves, color=colour, marker="o", label=f"{attribution}: two halves")
        panel.plot(
            epochs, before, color=colour, marker="s", linestyle="--", label=f"{attribution}: with the epoch before"
        )
    values = [value for entry in entries for value in (entry.reliability, entry.stability)]
    panel.set_ylim(min(-0.03, float(np.nanmin(values, initial=0.0)) - 0.03), 1.03)
    panel.axhline(0.9, color="#9a9a9a", linewidth=0.8)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("epoch", fontsize=12)
    panel.set_ylabel("rank correlation", fontsize=12)
    panel.set_title(f"{site}: do importances agree?", fontsize=14, fontweight="bold", parse_math=False)
    panel.legend(loc="lower right", fontsize=10)
    panel.grid(alpha=0.25)
    return figure


def to_image(figure: "Figure") -> UInt8[np.ndarray, "height width 3"]:
    """The figure's pixels, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
