"""Files: nested frozen dataclasses of arrays and plain values, in one `.npz` file without pickle.

The header, an array of bytes, is strict JSON: `{"format": ..., "version": ..., "results": tree}`. In the tree a record
is `{"class": name, "fields": {...}}`, an array `{"array": key}`, a tuple `{"tuple": [...]}`, a dictionary
`{"dict": {...}}`, an infinity `{"float": "Infinity"}`, and NaN is null.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Shaped

from lightning_neuroimp._validate import shown
from lightning_neuroimp.errors import FileFormatError
from lightning_neuroimp.results.archive import read_archive, write_archive
from lightning_neuroimp.results.decoding import Malformed, Node, build, parse
from lightning_neuroimp.results.temporary import temporary_file

T = TypeVar("T")

_MOST_PARTS = 2**18
"""Upper bound on the number of values in a header, which take more memory than their text: there are about a hundred
for each layer and score."""

Upgrades = Mapping[int, Callable[[Node], None]]
"""For each older version that can be read, the function that turns its tree into one of the next version, in place."""


def save(value: Any, path: str | os.PathLike[str], kind: str, version: int) -> None:
    """Write a record to a file, atomically: there is never half a file, and a failure leaves the old one.

    Args:
        value: made of dataclasses, tuples, dictionaries with strings as keys, arrays, and JSON's own types.
        path: path of the file; its folder is made where it is missing.
        kind: what the file holds, for `load`.
        version: version of its format.
    """
    with temporary_file(Path(path).parent, _content(value, kind, version)) as temporary:
        os.replace(temporary, path)


def save_new(value: Any, candidates: Iterable[str | os.PathLike[str]], kind: str, version: int) -> Path:
    """Write a record to the first path at which there is no file yet, also while other processes do the same.

    Args:
        value: as in `save`.
        candidates: paths in one folder, in the order in which they are tried; may be endless.
        kind: as in `save`.
        version: as in `save`.

    Returns:
        The path that was taken.

    Raises:
        FileExistsError: if there is a file at each of the candidates.
    """
    paths = map(Path, candidates)
    first = next(paths, None)
    if first is None:
        raise FileExistsError("no path was given to write to")
    with temporary_file(first.parent, _content(value, kind, version)) as temporary:
        last = first
        for path in _chain(first, paths):
            if _claim(temporary, path):
                return path
            last = path
    raise FileExistsError(f"there are files at all paths that were given, the last of which is {str(last)!r}")


def load(path: str | os.PathLike[str], kind: str, version: int, record: type[T], upgrades: Upgrades) -> T:
    """Read what `save` wrote, now or in an older version.

    Args:
        path: path of the file.
        kind: what it must hold.
        version: version of the format to which older files are upgraded.
        record: class of what it must hold.
        upgrades: how files of older versions are read.

    Raises:
        FileFormatError: if the file holds anything else, or comes from a newer version.
        OSError: if it cannot be opened or read.
    """
    name = os.fspath(path)
    try:
        header, arrays = _read(name)
        found, number = header.get("format"), header.get("version")
    except Exception as error:
        # foreign headers fail in any way inside JSON; errors of the disk are another matter
        if isinstance(error, MemoryError | OSError):
            raise
        raise FileFormatError(f"{name!r} does not hold results of lightning_neuroimp: {shown(error)}") from error
    known = [*sorted(upgrades), version]
    if found != kind or type(number) is not int or number not in known:
        older = f"versions {known[0]} to" if upgrades else "version"
        raise FileFormatError(
            f"{name!r} holds {shown(found)} of version {shown(number)}; this version of lightning_neuroimp reads "
            f"{kind!r} of {older} {version}"
        )
    try:
        tree = parse(header.get("results"), arrays)
        for older_version in range(number, version):
            _upgrade(tree, older_version, upgrades)
        result: T = build(tree, record, "results")
        if arrays:
            raise Malformed(f"it holds arrays that its header does not refer to: {shown(sorted(arrays), 60)}")
        return result
    except (Malformed, RecursionError) as error:
        raise FileFormatError(f"{name!r} is not a valid file of version {number}: {error}") from error


def _read(path: str | bytes) -> tuple[dict[str, Any], dict[str, Shaped[np.ndarray, "..."]]]:
    with open(path, "rb") as raw:
        arrays = read_archive(raw)
    if "header" not in arrays:
        raise Malformed(f"it has no header, only {shown(sorted(arrays))}")
    text = arrays.pop("header").tobytes()
    if max(text.count(part) for part in (b"{", b"[", b",")) > _MOST_PARTS:
        raise Malformed("its header has more parts than that of any results")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise Malformed(f"its header must be an object, found {shown(header)}")
    return header, arrays


def _upgrade(tree: Any, version: int, upgrades: Upgrades) -> None:
    """Turn the tree of one version into that of the next; what it needs is not validated before, but by failing."""
    try:
        upgrades[version](tree)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise Malformed(f"it cannot be upgraded to version {version + 1} ({reason})") from error


def _content(value: Any, kind: str, version: int) -> bytes:
    arrays: dict[str, Shaped[np.ndarray, "..."]] = {}
    tree = _encode(value, arrays)
    header = json.dumps({"format": kind, "version": version, "results": tree}, allow_nan=False).encode()
    return write_archive({"header": np.frombuffer(header, np.uint8), **arrays})


def _encode(value: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(value, np.ndarray):
        key = f"a{len(arrays)}"
        arrays[key] = value
        return {"array": key}
    if is_dataclass(value):
        content = {field.name: _encode(getattr(value, field.name), arrays) for field in fields(value)}
        return {"class": type(value).__name__, "fields": content}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {"dict": {key: _encode(item, arrays) for key, item in value.items()}}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else {"float": "Infinity" if value > 0 else "-Infinity"}
    return value


def _claim(temporary: Path, path: Path) -> bool:
    """Give a file a name that no other has; return False where it is taken."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError:
        pass  # no hard links on this file system: an empty file reserves the name
    try:
        with open(path, "xb"):
            pass
    except FileExistsError:
        return False
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _chain(first: Path, rest: Iterable[Path]) -> Iterator[Path]:
    yield first
    yield from rest
