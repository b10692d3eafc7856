"""Storage: nested frozen dataclasses of arrays and plain values, in one `.npz` file without pickle."""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped


def save(value: Any, path: str | os.PathLike[str], kind: str, version: int) -> None:
    """Write a dataclass: arrays, and JSON for the rest. Atomic: never half a file.

    Args:
        value: of dataclasses, tuples, dicts, arrays and JSON's own types.
        path: the file; its folder is made where it is missing.
        kind: what it holds, for `load`.
        version: of its format.
    """
    arrays: dict[str, Shaped[np.ndarray, "..."]] = {}
    tree = _encode(value, arrays)
    header = json.dumps({"format": kind, "version": version, "results": tree}).encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, header=np.frombuffer(header, np.uint8), **arrays)
    _write_atomically(Path(path), buffer.getvalue())


def load(path: str | os.PathLike[str], kind: str, version: int, classes: Mapping[str, type]) -> Any:
    """Read what `save` wrote.

    Args:
        path: the file.
        kind: what it must hold.
        version: of the format that is read.
        classes: the dataclasses, by name.

    Raises:
        ValueError: if the file holds something else, or is of another version.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(arrays.pop("header").tobytes())
        found, number = header["format"], header["version"]
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise ValueError(f"{os.fspath(path)!r} does not hold results of lightning_neuroimp: {error}") from error
    if found != kind or number != version:
        raise ValueError(
            f"{os.fspath(path)!r} holds {found!r} of version {number}; this version of lightning_neuroimp reads "
            f"{kind!r} of version {version}"
        )
    return _decode(header["results"], arrays, classes)


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
    return value


def _decode(tree: Any, arrays: dict[str, Any], classes: Mapping[str, type]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return arrays[tree["array"]]
    if "tuple" in tree:
        return tuple(_decode(item, arrays, classes) for item in tree["tuple"])
    if "dict" in tree:
        return {key: _decode(item, arrays, classes) for key, item in tree["dict"].items()}
    return classes[tree["class"]](**{name: _decode(item, arrays, classes) for name, item in tree["fields"].items()})


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
