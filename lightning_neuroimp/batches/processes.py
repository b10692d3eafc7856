"""Exchange values between the processes that share a study."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Gather = Callable[[Any], list[Any]]
"""All processes pass an object and get the list of all processes' objects, in rank order."""


def alone(value: Any) -> list[Any]:
    """Gather the value of a single process.

    >>> alone("mine")
    ['mine']
    """
    return [value]


@dataclass(frozen=True)
class Processes:
    """Exchange values between the processes that share a study, each with a part of its samples.

    Each method is collective: all processes must call it, in the same order.

    Attributes:
        gather: takes an object, and returns the list of all processes' objects in rank order.

    >>> Processes().union({"mine": 1})
    {'mine': 1}
    """

    gather: Gather = alone

    def from_first(self, value: Any) -> Any:
        """Return the first process's value on all processes, as the same code may round differently on others."""
        return self.gather(value)[0]

    def union(self, part: dict[Any, Any]) -> dict[Any, Any]:
        """Merge the dictionaries of all processes, in rank order."""
        return {key: value for share in self.gather(part) for key, value in share.items()}

    def chain(self, part: Iterable[Any]) -> list[Any]:
        """Concatenate the lists of all processes, in rank order."""
        return [value for share in self.gather(list(part)) for value in share]
