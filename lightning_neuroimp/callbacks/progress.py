"""Progress bars next to the Trainer's own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_neuroimp.batches.progress import Progress, Tick, silent, tqdm_bar

_REDRAW = 0.2  # seconds


def say(trainer: "pl.Trainer", message: str) -> None:
    """Print a line on the first process, above the Trainer's bar where it shows one."""
    # a terminal that is gone is no reason to stop
    with suppress(OSError, ValueError):
        if not _has_bar(trainer):
            rank_zero_info(message)
        elif trainer.is_global_zero:
            trainer.progress_bar_callback.print(message)  # type: ignore[union-attr]


def trainer_progress(trainer: "pl.Trainer") -> Progress:
    """Return bars in the style of the Trainer's bar; none where it shows none."""
    if not _has_bar(trainer) or not trainer.is_global_zero:
        return silent
    # two live displays on one console overwrite each other: the Rich bar takes our tasks into its own
    display = getattr(trainer.progress_bar_callback, "progress", None)
    return partial(_rich_bar, display) if hasattr(display, "add_task") else tqdm_bar


def _has_bar(trainer: "pl.Trainer") -> bool:
    bar = trainer.progress_bar_callback
    return bar is not None and not getattr(bar, "is_disabled", False)


@contextmanager
def _rich_bar(display: Any, description: str, total: int) -> Iterator[Tick]:
    """Show a task in a Rich display that is live already."""
    task = display.add_task(description, total=total)
    drawn = time.monotonic()

    def tick() -> None:
        nonlocal drawn
        display.update(task, advance=1)
        # Lightning's display draws when it is told to
        if time.monotonic() - drawn > _REDRAW:
            display.refresh()
            drawn = time.monotonic()

    try:
        yield tick
    finally:
        display.update(task, visible=False)
        display.refresh()
