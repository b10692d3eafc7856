"""Several processes: how objects are gathered from all of them."""

from collections.abc import Callable
from typing import Any

Gather = Callable[[Any], list[Any]]
"""All processes pass an object and get the list of everybody's, in rank order."""


def alone(value: Any) -> list[Any]:
    """The `gather` of a single process.

    >>> alone("mine")
    ['mine']
    """
    return [value]
