"""Show samples in rows, as pictures or in words: what is this cluster, what is this neuron?"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from lightning_neuroimp.display.figures.common import new_figure
from lightning_neuroimp.display.formats import one_line
from lightning_neuroimp.display.markdown import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Description = str | UInt8[np.ndarray, "height width 3"]
"""What a sample looks like: words or a picture."""

_CELL = 96  # pixels
_GAP = 8  # pixels
_MAX_WORDS = 200  # characters of a description


def samples_figure(
    title: str, rows: Sequence[tuple[str, Sequence[int]]], described: Mapping[int, Description]
) -> "Figure | None":
    """Draw samples as pictures, each with its number.

    Args:
        title: above them.
        rows: what each row displays, and the numbers of its samples.
        described: samples by their numbers; those in words are skipped.

    Returns:
        A Matplotlib figure; None where no sample is a picture.
    """
    drawn = [(name, [number for number in numbers if _is_picture(described.get(number))]) for name, numbers in rows]
    n_columns = max((len(numbers) for _, numbers in drawn), default=0)
    if not n_columns:
        return None
    figure = new_figure(2.6 + n_columns * 1.05, 0.7 + len(drawn) * 1.15)
    axes = figure.add_subplot()
    axes.imshow(_pasted(drawn, n_columns, described), interpolation="nearest", aspect="equal")
    axes.set_title(one_line(title), fontsize=12, fontweight="bold", parse_math=False)
    axes.set_xticks([])
    middles = [row * (_CELL + _GAP) + _CELL / 2 for row in range(len(drawn))]
    axes.set_yticks(middles, [_wrapped(name) for name, _ in drawn], parse_math=False)
    axes.tick_params(left=False, labelsize=10)
    for side in axes.spines.values():
        side.set_visible(False)
    _write_numbers(axes, [numbers for _, numbers in drawn])
    return figure


def samples_markdown(rows: Sequence[tuple[str, Sequence[int]]], described: Mapping[int, Description]) -> str:
    """Return samples in words as a Markdown table, each with its number; empty where all are pictures.

    Args:
        rows: what each row displays, and the numbers of its samples.
        described: samples by their numbers; pictures are skipped.
    """
    lines = []
    for name, numbers in rows:
        texts = [(number, str(described[number])) for number in numbers if isinstance(described.get(number), str)]
        if texts:
            cells = "<br>".join(f"**{number}** {escape(text[:_MAX_WORDS])}" for number, text in texts)
            lines.append(f"| {escape(name)} | {cells} |")
    return "\n".join(["| | samples |", "|---|---|", *lines]) if lines else ""


def _is_picture(description: Any) -> bool:
    return isinstance(description, np.ndarray)


def _pasted(
    drawn: list[tuple[str, list[int]]], n_columns: int, described: Mapping[int, Description]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Paste all pictures into a white one, in cells of equal size."""
    size = _CELL + _GAP
    canvas = np.full((len(drawn) * size, n_columns * size, 3), 255, np.uint8)
    for row, (_, numbers) in enumerate(drawn):
        for column, number in enumerate(numbers):
            cell = _fitted(described[number])
            canvas[row * size :, column * size :][: cell.shape[0], : cell.shape[1]] = cell
    return canvas


def _fitted(picture: Any) -> UInt8[np.ndarray, "rows columns 3"]:
    """Enlarge a picture by a whole number so that it fills a cell, and cut what does not fit."""
    times = max(1, _CELL // max(picture.shape[:2]))
    return picture.repeat(times, 0).repeat(times, 1)[:_CELL, :_CELL]


def _write_numbers(axes: "Axes", rows: list[list[int]]) -> None:
    box = {"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0}
    for row, numbers in enumerate(rows):
        for column, number in enumerate(numbers):
            x, y = column * (_CELL + _GAP) + 3, row * (_CELL + _GAP) + 3
            axes.text(x, y, str(number), fontsize=7, color="#ffd000", va="top", bbox=box)


def _wrapped(name: str, width: int = 24, most: int = 4) -> str:
    return "\n".join(textwrap.wrap(one_line(name), width)[:most])
