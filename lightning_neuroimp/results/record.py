"""Record: frozen dataclasses of arrays and plain values that can be compared and printed."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

_LONGEST = 60  # characters of a value in a repr


class Record:
    """Give a frozen dataclass equality by value, arrays included, and a repr of one line.

    Two records are equal where all fields are: arrays in type, shape and values, NaN being equal to NaN. Declare
    subclasses with `@dataclass(frozen=True, eq=False, repr=False)`.
    """

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(same(getattr(self, one.name), getattr(other, one.name)) for one in fields(self))  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts = [f"{one.name}={_short(getattr(self, one.name))}" for one in fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(parts)})"


def same(one: Any, other: Any) -> bool:
    """Tell whether two values of records are equal, NaN being equal to NaN.

    >>> same((1.0, np.array([np.nan])), (1.0, np.array([np.nan])))
    True
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    if isinstance(one, float):
        return one == other or (one != one and other != other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, tuple) and any(is_dataclass(one) for one in value):
        return f"<{len(value)} of {type(value[0]).__name__}>"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
