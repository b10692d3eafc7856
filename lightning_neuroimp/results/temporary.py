"""Write files under temporary names, and remove those that killed writers have left."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no such locks: what a killed writer leaves stays there
    fcntl = None  # type: ignore[assignment]

_PREFIX, _SUFFIX = ".neuroimp-", ".tmp"


@contextmanager
def temporary_file(folder: Path, content: bytes) -> Iterator[Path]:
    """Write a file of a unique name, and remove it at the end where it has not been moved.

    A lock is held on it meanwhile, which the system takes back when the process ends, however it does: what killed
    writers have left in the folder is removed first.

    Args:
        folder: made where it is missing.
        content: of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    path, file = _locked(folder)
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                yield path
        if fcntl is None:  # an open file cannot be moved there
            yield path
    finally:
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files of writers that live no more; others hold a lock on theirs.

    Args:
        folder: where they are.
    """
    if fcntl is None:
        return
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # locked, removed by somebody else, or on a file system without locks
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _locked(folder: Path) -> tuple[Path, IO[bytes]]:
    """Open a new file in a folder, and lock it."""
    while True:
        # not tempfile's, whose files nobody else may read
        path = folder / f"{_PREFIX}{uuid.uuid4().hex}{_SUFFIX}"
        file = open(path, "xb")  # noqa: SIM115
        if fcntl is None:
            return path, file
        with suppress(OSError):  # a file system without locks, where nothing is removed either
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():
            return path, file
        file.close()  # taken for abandoned in the moment before it was locked
