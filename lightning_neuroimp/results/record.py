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
        return _same_fields(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts = [f"{field.name}={_short(getattr(self, field.name))}" for field in fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(parts)})"


def same(first: Any, second: Any) -> bool:
    """Tell whether two values of records are equal, NaN being equal to NaN.

    Types must be the same, except that NumPy's float64 is a float.

    >>> same((1.0, np.array([np.nan])), (1.0, np.array([np.nan])))
    True
    """
    if isinstance(first, float) and isinstance(second, float):
        return bool(first == second or (first != first and second != second))
    if type(first) is not type(second):
        return False
    if isinstance(first, np.ndarray):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        return bool(np.array_equal(first, second, equal_nan=first.dtype.kind == "f"))
    if is_dataclass(first):
        return _same_fields(first, second)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    return bool(first == second)


def _same_fields(first: Any, second: Any) -> bool:
    return all(same(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, tuple) and any(is_dataclass(item) for item in value):
        return f"<{len(value)} of {type(value[0]).__name__}>"
    if isinstance(value, Record):
        return f"<{type(value).__name__}>"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
