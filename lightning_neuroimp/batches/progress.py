"""Show progress bars for passes over the probe set."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm.auto import tqdm

from lightning_neuroimp import _validate

Tick = Callable[[], None]
"""Moves a progress bar on by one pass."""

Progress = Callable[[str, int], AbstractContextManager[Tick]]
"""`progress(description, total)` opens a bar for `total` passes and gives the function that moves it on by one."""


@contextmanager
def silent(description: str, total: int) -> Iterator[Tick]:
    """Show nothing.

    Args:
        description: what the bar would say.
        total: number of passes.
    """
    yield lambda: None


@contextmanager
def tqdm_bar(description: str, total: int) -> Iterator[Tick]:
    """Show a bar that goes away when it is done.

    Args:
        description: what the bar says.
        total: number of passes.
    """
    with tqdm(total=total, desc=description, unit="pass", leave=False, dynamic_ncols=True) as bar:

        def tick() -> None:
            bar.update()

        yield tick


def resolve_progress(progress: bool | Progress) -> Progress:
    """Return how progress is shown.

    Args:
        progress: True for tqdm, False for none, or another `Progress`.

    Raises:
        InvalidArgument: if it is something else.
    """
    if callable(progress):
        return progress
    return tqdm_bar if _validate.boolean("progress", progress) else silent
