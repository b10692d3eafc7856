"""Share what all figures need: a canvas, colours, labels, pixels."""

from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import UInt8

from lightning_neuroimp import _validate
from lightning_neuroimp.display.formats import one_line
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f5fbf", "#d1495b", "#2a9d5c", "#8f5bb5", "#b8860b")
"""Colours of attributions, in the order of the results."""

GREY = "#9a9a9a"
"""Colour of what an attribution is compared with."""


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure with a canvas of its own, which needs no display and leaves pyplot's state alone.

    Args:
        width: in inches.
        height: in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_image(figure: "Figure") -> UInt8[np.ndarray, "height width 3"]:
    """Return the pixels of a figure, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def importances_at(results: Results, site: str) -> list[Importance]:
    """Return the importances of a site, one per attribution.

    Raises:
        InvalidArgument: if the results have no such site.
    """
    if site not in results.sites:
        raise InvalidArgument(f"no layer {site!r} in these results: {_validate.closest(site, results.sites, 'layers')}")
    return [importance for importance in results.importances if importance.site == site]


def legend_label(name: str) -> str:
    """Return the label of a curve; Matplotlib would leave one that begins with an underscore out of the legend."""
    name = one_line(name)
    return f" {name}" if name.startswith("_") else name


def add_legend(panel: "Axes", place: Literal["lower left", "lower right"], size: int) -> None:
    """Add a legend whose names are never taken for formulas.

    Args:
        panel: with labelled curves.
        place: corner in which it stands.
        size: of the letters, in points.
    """
    for text in panel.legend(loc=place, fontsize=size, framealpha=0.8).get_texts():
        text.set_parse_math(False)


def colour_of(number: int) -> str:
    """Return the colour of an attribution by its number; after the last colour they begin again."""
    return COLOURS[number % len(COLOURS)]
