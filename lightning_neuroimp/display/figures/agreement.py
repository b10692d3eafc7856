"""Draw how far importances agree, between halves and between epochs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_neuroimp.display.figures.common import GREY, add_legend, colour_of, legend_label, new_figure
from lightning_neuroimp.display.formats import one_line
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.history import Agreement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HIGH = 0.9  # agreement at which a line is drawn


def agreement_figure(history: Sequence[Agreement], site: str) -> "Figure":
    """Draw the reliability and stability of the scores of a site over epochs.

    Args:
        history: one entry per measurement, site and attribution.
        site: name of the site.

    Returns:
        A Matplotlib figure: rank correlation of a cluster's two halves (lines), and of each epoch with the one measured
        before (dashes), by epoch, one colour per attribution.

    Raises:
        InvalidArgument: if the history has nothing of this site.
    """
    from matplotlib.ticker import MaxNLocator

    entries = [entry for entry in history if entry.site == site]
    if not entries:
        raise InvalidArgument(f"no history of {site!r}: it has {sorted({entry.site for entry in history})}")
    figure = new_figure(7.0, 4.2)
    panel = figure.add_subplot()
    for number, attribution in enumerate(dict.fromkeys(entry.attribution for entry in entries)):
        colour, name = colour_of(number), legend_label(attribution)
        of_attribution = [entry for entry in entries if entry.attribution == attribution]
        epochs = [entry.epoch for entry in of_attribution]
        reliability = [entry.reliability for entry in of_attribution]
        stability = [entry.stability for entry in of_attribution]
        panel.plot(epochs, reliability, color=colour, marker="o", label=f"{name}: two halves")
        panel.plot(epochs, stability, color=colour, marker="s", linestyle="--", label=f"{name}: with the epoch before")
    values = [value for entry in entries for value in (entry.reliability, entry.stability)]
    panel.set_ylim(min(-0.03, float(np.nanmin(values, initial=0.0)) - 0.03), 1.03)
    panel.axhline(_HIGH, color=GREY, linewidth=0.8)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("epoch", fontsize=12)
    panel.set_ylabel("rank correlation", fontsize=12)
    panel.set_title(f"{one_line(site)}: do importances agree?", fontsize=14, fontweight="bold", parse_math=False)
    add_legend(panel, "lower right", 10)
    panel.grid(alpha=0.25)
    return figure
