"""Progress bars for passes over the probe set."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm.auto import tqdm

Tick = Callable[[], None]


Progress = Callable[[str, int], AbstractContextManager[Tick]]
"""`progress(description, total)` opens a bar and gives the function that moves it on by one."""


@contextmanager
def silent(description: str, total: int) -> Iterator[Tick]:
    """No bar."""
    yield lambda: None


@contextmanager
def tqdm_bar(description: str, total: int) -> Iterator[Tick]:
    """A bar that goes away when it is done."""
    with tqdm(total=total, desc=description, unit="pass", leave=False, dynamic_ncols=True) as bar:

        def tick() -> None:
            bar.update()

        yield tick


def resolve_progress(progress: bool | Progress) -> Progress:
    """True: tqdm; False: none."""
    if callable(progress):
        return progress
    return tqdm_bar if progress else silent
