"""Archive: named arrays in one `.npz` file, read without trusting it.

What a file declares is compared with what it holds before anything is unpacked: reading takes no more memory than the
file and its declared arrays, whatever the file is.
"""

import errno
import io
import math
import os
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np
from jaxtyping import Shaped

from lightning_neuroimp._validate import shown

MAX_BYTES = 2**33
"""Upper bound on the size of all arrays of a file together."""

_RATIO = 1032  # more than this deflate cannot save
_PART = 2**16  # bytes of the beginning of an array, which holds its header
_NAME = ".npy"
_DTYPES = ("|b1", "|i1", "|u1", *(f"<{kind}{size}" for kind in "iuf" for size in (2, 4, 8)))


class BadArchive(Exception):
    """Say what is wrong with an archive."""


def write_archive(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> bytes:
    """Return the content of a file that holds arrays.

    Args:
        arrays: by name; of booleans or numbers.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_archive(raw: IO[bytes]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Return the arrays of a file by name.

    Args:
        raw: the file, opened for reading; it must be possible to seek in it.

    Raises:
        BadArchive: if it is no file of NumPy arrays, or declares other sizes than it holds.
        OSError: if the file cannot be read.
    """
    try:
        n_bytes = raw.seek(0, os.SEEK_END)
        with zipfile.ZipFile(raw) as file:
            members = file.infolist()
            _validate_members(members, n_bytes)
            return {member.filename.removesuffix(_NAME): _read_array(file, member) for member in members}
    except BadArchive:
        raise
    except Exception as error:
        # damaged files fail in any way inside zipfile, zlib and NumPy, also by seeking to where no file can be; errors
        # of the disk are another matter
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise BadArchive(f"{type(error).__name__}: {shown(str(error))}") from error


def _validate_members(members: list[zipfile.ZipInfo], n_bytes: int) -> None:
    """Refuse members that cannot be what they say they are, before any of them is unpacked."""
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise BadArchive("it holds two arrays of the same name")
    for member in members:
        if not member.filename.endswith(_NAME):
            raise BadArchive(f"it holds {shown(member.filename)}, which is no array")
        if member.flag_bits & 0x1:
            raise BadArchive(f"{shown(member.filename)} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadArchive(f"{shown(member.filename)} is compressed in a way that is not used here")
        most = member.compress_size * (_RATIO if member.compress_type == zipfile.ZIP_DEFLATED else 1)
        if member.file_size > most:
            raise BadArchive(f"{shown(member.filename)} says that {member.compress_size} bytes hold {member.file_size}")
    if sum(member.compress_size for member in members) > n_bytes:
        raise BadArchive("its arrays overlap")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise BadArchive(f"its arrays take {total} bytes, more than {MAX_BYTES}")


def _read_array(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Shaped[np.ndarray, "..."]:
    """Read one array, once its header declares as many bytes as there are."""
    name = shown(member.filename.removesuffix(_NAME))
    with file.open(member) as stream:
        start = io.BytesIO(stream.read(min(_PART, member.file_size)))
        version = np.lib.format.read_magic(start)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise BadArchive(f"array {name} is of a version of NumPy's format that is not used here")
        shape, fortran_order, dtype = readers[version](start)
        if dtype.str not in _DTYPES:
            raise BadArchive(f"array {name} holds {shown(str(dtype), 60)}, no numbers")
        if start.tell() + math.prod(shape) * dtype.itemsize != member.file_size or min(shape, default=0) < 0:
            raise BadArchive(f"array {name} has another size than its shape, {shown(shape, 60)}, says")
        array = np.empty(math.prod(shape), dtype)
        left = memoryview(array.view(np.uint8).data)
        for part in iter(lambda: start.read() or stream.read(_PART), b""):
            left[: len(part)] = part
            left = left[len(part) :]
    return array.reshape(shape, order="F" if fortran_order else "C")
