"""Show progress bars and messages next to the Trainer's own bar."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_neuroimp.batches.progress import Progress, Tick, silent, tqdm_bar

_REDRAW = 0.2
"""Seconds between two refreshes of a Rich display."""


def say(trainer: "pl.Trainer", message: str) -> None:
    """Print a line on the first process, above the Trainer's bar if it shows one."""
    # a closed terminal must not stop the training run
    with suppress(OSError, ValueError):
        if not _has_bar(trainer):
            rank_zero_info(message)
        elif trainer.is_global_zero:
            trainer.progress_bar_callback.print(message)  # type: ignore[union-attr]


def trainer_progress(trainer: "pl.Trainer") -> Progress:
    """Return bars in the style of the Trainer's bar; silent ones if it shows none."""
    if not _has_bar(trainer) or not trainer.is_global_zero:
        return silent
    # two live displays on one console overwrite each other, so that our tasks are added to the Rich bar's own
    display = getattr(trainer.progress_bar_callback, "progress", None)
    return partial(_rich_bar, display) if hasattr(display, "add_task") else tqdm_bar


def _has_bar(trainer: "pl.Trainer") -> bool:
    """Tell whether the Trainer shows a progress bar."""
    bar = trainer.progress_bar_callback
    return bar is not None and not getattr(bar, "is_disabled", False)


@contextmanager
def _rich_bar(display: Any, description: str, total: int) -> Iterator[Tick]:
    """Show a task in a Rich display that is live already; yield the function that advances it."""
    task = display.add_task(description, total=total)
    drawn = time.monotonic()

    def tick() -> None:
        """Advance the task by one."""
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
