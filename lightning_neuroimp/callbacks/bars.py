"""Progress bars beside the Trainer's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl

from lightning_neuroimp.progress import Progress, Tick, silent, tqdm_bar


def trainer_progress(trainer: "pl.Trainer") -> Progress:
    """Bars in the style of the Trainer's bar; none where it shows none."""
    bar = trainer.progress_bar_callback
    if bar is None or getattr(bar, "is_disabled", False) or not trainer.is_global_zero:
        return silent
    # two live displays on one console overwrite each other: the Rich bar takes our tasks into its own
    display = getattr(bar, "progress", None)
    return partial(_rich_bar, display) if hasattr(display, "add_task") else tqdm_bar


@contextmanager
def _rich_bar(display: Any, description: str, total: int) -> Iterator[Tick]:
    task = display.add_task(description, total=total)
    try:
        yield lambda: display.update(task, advance=1)
    finally:
        display.update(task, visible=False)
        display.refresh()
