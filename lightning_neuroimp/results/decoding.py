"""Decoding: from the header and the arrays of a results file to records, validated against their annotations.

Reading goes in two steps, so that files of older versions can be upgraded in between: `parse` turns JSON into a tree of
`Node`s, whose classes and fields need not exist any more; `build` turns the tree into records, or raises `Malformed`.
"""

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import AbstractArray, Shaped, jaxtyped

from lightning_neuroimp import _validate
from lightning_neuroimp._validate import shown
from lightning_neuroimp.errors import NeuroimpError

_LONGEST = 60  # characters of a value in a message
_INFINITIES = {"Infinity": float("inf"), "-Infinity": float("-inf")}


class Malformed(Exception):
    """Say where a file does not hold what it should, what was expected there, and what was found."""


@dataclass
class Node:
    """Hold a record as it stands in a file, before it is validated.

    Attributes:
        kind: name of its class.
        fields: its fields: plain values, arrays, tuples, dictionaries and other nodes.
    """

    kind: str
    fields: dict[str, Any]


def parse(tree: Any, arrays: dict[str, Shaped[np.ndarray, "..."]]) -> Any:
    """Turn the JSON of a header into nodes, tuples, dictionaries, arrays and plain values.

    Args:
        tree: a value that JSON can hold.
        arrays: the arrays that it refers to, by key; each is taken out when it is referred to, which must happen once.

    Raises:
        Malformed: if the tree is not made of what is written by `files.save`.
    """
    if not isinstance(tree, dict | list):
        return tree
    match tree:
        case {"array": str(key), **rest} if not rest:
            if key not in arrays:
                raise Malformed(
                    f"the header refers to an array {shown(key, _LONGEST)} that the file does not hold, or refers to "
                    "it twice"
                )
            return arrays.pop(key)
        case {"tuple": list(items), **rest} if not rest:
            return tuple(parse(item, arrays) for item in items)
        case {"dict": dict(items), **rest} if not rest:
            return {key: parse(item, arrays) for key, item in items.items()}
        case {"class": str(kind), "fields": dict(items), **rest} if not rest:
            return Node(kind, {key: parse(item, arrays) for key, item in items.items()})
        case {"float": str(text), **rest} if not rest and text in _INFINITIES:
            return _INFINITIES[text]
    raise Malformed(f"the header holds {shown(tree, _LONGEST)}, which stands for nothing")


def build(value: Any, hint: Any, where: str) -> Any:
    """Turn a parsed value into one of the annotated type.

    Args:
        value: from `parse`.
        hint: annotation of a field: a record, an array of jaxtyping, `tuple[X, ...]`, `dict[str, X]`, a union, an enum,
            `int`, `float`, `str` or `bool`.
        where: path of the value, for messages.

    Raises:
        Malformed: if the value is of another type, or has the wrong shape.
    """
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _one_of(value, options, where)
    if origin is tuple:
        if not isinstance(value, tuple):
            raise _mismatch(where, "a tuple", value)
        return tuple(build(item, options[0], f"{where}[{number}]") for number, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(where, "a dictionary", value)
        return {key: build(item, options[1], f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(value, hint, where)
    if issubclass(hint, AbstractArray):
        if not isinstance(value, hint):
            raise _mismatch(where, _described(hint), value)
        return value
    if issubclass(hint, Enum):
        if not isinstance(value, str) or value not in [member.value for member in hint]:
            raise _mismatch(where, _validate.one_of([repr(member.value) for member in hint]), value)
        return hint(value)
    return _plain(value, hint, where)


def _one_of(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if NoneType in options and value is None:
        return None
    options = tuple(option for option in options if option is not NoneType)
    if len(options) == 1:
        return build(value, options[0], where)  # with its own message, which may be about something inside
    for option in options:
        try:
            return build(value, option, where)
        except Malformed:
            continue
    raise _mismatch(where, " or ".join(map(_described, options)), value)


def _plain(value: Any, hint: type, where: str) -> Any:
    if hint is float and value is None:
        return float("nan")  # which JSON does not have
    if hint is float and (type(value) is int or isinstance(value, float)):
        try:
            return float(value)
        except OverflowError as error:
            raise _mismatch(where, "a number", value) from error
    if type(value) is not hint:
        raise _mismatch(where, _described(hint), value)
    return value


def _record(value: Any, cls: type, where: str) -> Any:
    if not isinstance(value, Node) or value.kind != cls.__name__:
        raise _mismatch(where, f"a {cls.__name__}", value)
    hints, names = _hints(cls), [field.name for field in fields(cls)]
    unknown, missing = sorted(value.fields.keys() - set(names)), sorted(set(names) - value.fields.keys())
    if unknown or missing:
        wrong = [*(f"no {name}" for name in missing), *(f"an unknown {shown(name, _LONGEST)}" for name in unknown)]
        raise Malformed(f"{where} must have the fields of a {cls.__name__}, found {' and '.join(wrong[:3])}")
    content = {name: build(value.fields[name], hints[name], f"{where}.{name}") for name in names}
    # a named dimension has one size in all arrays of a record
    with jaxtyped("context"):
        for name, item in content.items():
            if isinstance(item, np.ndarray) and not isinstance(item, hints[name]):
                array = next(option for option in (*get_args(hints[name]), hints[name]) if option is not NoneType)
                raise _mismatch(f"{where}.{name}", f"{_described(array)}, as large as the other arrays", item)
    try:
        return cls(**content)
    except NeuroimpError as error:
        raise Malformed(f"{where} is no valid {cls.__name__}: {error}") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _mismatch(where: str, expected: str, value: Any) -> Malformed:
    return Malformed(f"{where} must be {expected}, found {_found(value)}")


def _described(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return hint.__name__
    names: dict[Any, str] = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return names.get(hint, "a tuple" if get_origin(hint) is tuple else f"a {getattr(hint, '__name__', hint)}")


def _found(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, Node):
        return f"a {shown(value.kind, _LONGEST)}"
    return shown(value, _LONGEST)
