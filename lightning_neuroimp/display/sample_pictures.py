"""Pictures of samples, in rows: what is this cluster, what is this neuron?"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Description = str | UInt8[np.ndarray, "height width 3"]
"""What a sample looks like: words or a picture."""

_CELL = 96  # pixels


_GAP = 8


def samples_figure(
    title: str, rows: Sequence[tuple[str, Sequence[int]]], described: Mapping[int, Description]
) -> "Figure | None":
    """Samples as pictures.

    Args:
        title: above them.
        rows: what each row shows, and the numbers of its samples.
        described: what they look like.

    Returns:
        A Matplotlib figure; None where no sample is a picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [(name, [number for number in numbers if _is_picture(described.get(number))]) for name, numbers in rows]
    columns = max((len(numbers) for _, numbers in shown), default=0)
    if not columns:
        return None
    size = _CELL + _GAP
    canvas = np.full((len(shown) * size, columns * size, 3), 255, np.uint8)
    for row, (_, numbers) in enumerate(shown):
        for column, number in enumerate(numbers):
            cell = _fitted(described[number])
            canvas[row * size :, column * size :][: cell.shape[0], : cell.shape[1]] = cell
    width, height = 2.6 + columns * 1.05, 0.7 + len(shown) * 1.15
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(canvas, interpolation="nearest", aspect="equal")
    axes.set_title(title, fontsize=12, fontweight="bold", parse_math=False)
    axes.set_xticks([])
    axes.set_yticks(
        [row * size + _CELL / 2 for row in range(len(shown))], [_wrapped(name) for name, _ in shown], parse_math=False
    )
    axes.tick_params(left=False, labelsize=10)
    for side in axes.spines.values():
        side.set_visible(False)
    for row, (_, numbers) in enumerate(shown):
        for column, number in enumerate(numbers):
            box = {"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0}
            axes.text(column * size + 3, row * size + 3, str(number), fontsize=7, color="#ffd000", va="top", bbox=box)
    return figure


def samples_markdown(rows: Sequence[tuple[str, Sequence[int]]], described: Mapping[int, Description]) -> str:
    """Samples in words, as a Markdown table; empty where all are pictures.

    Args:
        rows: what each row shows, and the numbers of its samples.
        described: what they look like.
    """
    lines = []
    for name, numbers in rows:
        texts = [(number, described[number]) for number in numbers if isinstance(described.get(number), str)]
        if texts:
            cells = "<br>".join(f"**{number}** {_escaped(str(text))}" for number, text in texts)
            lines.append(f"| {_escaped(name)} | {cells} |")
    return "\n".join(["| | samples |", "|---|---|", *lines]) if lines else ""


def _is_picture(description: Any) -> bool:
    return isinstance(description, np.ndarray)


def _fitted(picture: Any) -> np.ndarray:
    times = max(1, _CELL // max(picture.shape[:2]))
    return picture.repeat(times, 0).repeat(times, 1)[:_CELL, :_CELL]


def _wrapped(name: str, width: int = 24) -> str:
    return "\n".join(textwrap.wrap(name, width)[:4])


def _escaped(text: str) -> str:
    text = text[:200]
    for mark in ("\\", "|", "<", "*", "_", "`"):
        text = text.replace(mark, "&#" + str(ord(mark)) + ";")
    return text.replace("\r", " ").replace("\n", " ")
