"""Validate arguments: the one border behind which values have the types and ranges that they should have.

Every function takes the argument's name first, returns the value in its plain type (a NumPy integer becomes an `int`),
and raises `InvalidArgument` with what was expected, what was received and, where it is known, what to do.
"""

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeVar

from lightning_neuroimp.errors import InvalidArgument, NeuroimpError

T = TypeVar("T")

MISTAKES = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
"""What a function of the user's ends in when it does not fit what it is given."""

_LONGEST = 120  # characters of a received value in a message


def integer(name: str, value: Any, *, least: int | None = None, most: int | None = None, remedy: str = "") -> int:
    """Return an integer within bounds; NumPy's integers count, booleans and floats do not.

    Args:
        name: of the argument.
        value: what was received.
        least: smallest valid value.
        most: largest valid value.
        remedy: what to do, appended to the message.

    Raises:
        InvalidArgument: if it is no integer, or out of bounds.

    >>> integer("batch_size", 32, least=1)
    32
    """
    valid = isinstance(value, Integral) and not isinstance(value, bool)
    if not valid:
        raise InvalidArgument(f"{name} must be an integer{_bounds(least, most)}, got {shown(value)}{_and(remedy)}")
    if (least is not None and value < least) or (most is not None and value > most):
        raise InvalidArgument(f"{name} must be{_bounds(least, most)}, got {int(value)}{_and(remedy)}")
    return int(value)


def number(
    name: str, value: Any, *, least: float | None = None, above: float | None = None, most: float | None = None
) -> float:
    """Return a finite real number within bounds; booleans do not count.

    Args:
        name: of the argument.
        value: what was received.
        least: smallest valid value.
        above: largest value that is too small.
        most: largest valid value.

    Raises:
        InvalidArgument: if it is no finite number, or out of bounds.
    """
    bounds = f" above {above:g}{'' if most is None else f' and up to {most:g}'}" if above is not None else ""
    bounds = bounds or _bounds(least, most)
    valid = isinstance(value, Real) and not isinstance(value, bool)
    if (
        not valid
        or not float("-inf") < value < float("inf")
        or (least is not None and value < least)
        or (above is not None and value <= above)
        or (most is not None and value > most)
    ):
        raise InvalidArgument(f"{name} must be a number{bounds}, got {shown(value)}")
    return float(value)


def boolean(name: str, value: Any) -> bool:
    """Return True or False; nothing else counts as either, except NumPy's booleans.

    Raises:
        InvalidArgument: if it is something else.
    """
    if type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise InvalidArgument(f"{name} must be True or False, got {shown(value)}")


def choice(name: str, value: Any, options: Sequence[T], more: Sequence[str] = ()) -> T:
    """Return one of the options.

    Args:
        name: of the argument.
        value: what was received.
        options: the valid values.
        more: what else the caller takes, in words, for the message.

    Raises:
        InvalidArgument: if it is none of them; strings that are close to one are suggested.
    """
    for option in options:
        if type(option) is type(value) and option == value:
            return option
    close = difflib.get_close_matches(value, [str(one) for one in options], n=1) if isinstance(value, str) else []
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InvalidArgument(f"{name} must be {one_of([*map(repr, options), *more])}, got {shown(value)}{hint}")


def function(name: str, value: Any, signature: str) -> Callable[..., Any]:
    """Return a callable; classes do not count, as calling them would make an instance.

    Args:
        name: of the argument.
        value: what was received.
        signature: how it is called, for the message, such as `(batch) -> one value per sample`.

    Raises:
        InvalidArgument: if it cannot be called.
    """
    if not callable(value) or isinstance(value, type):
        raise InvalidArgument(f"{name} must be a callable {signature}, got {shown(value)}")
    return value


def fractions(value: Any) -> tuple[float, ...]:
    """Return shares of the neurons of a layer as a tuple.

    Args:
        value: shares, in any iterable; a list is what YAML and the command line give.

    Raises:
        InvalidArgument: if there are none, or they are no numbers above 0 and up to 1.
    """
    several = not isinstance(value, str) and hasattr(value, "__iter__")
    if not several or not tuple(value):
        raise InvalidArgument(
            f"fractions must be numbers above 0 and up to 1, got {shown(value)}; pass a list such as [0.1, 0.5]"
        )
    return tuple(number("each of fractions", fraction, above=0, most=1) for fraction in value)


def one_per_sample(values: Any, n_samples: int, of: str) -> list[int | str]:
    """Return what a callable gave for one batch as a list with one integer or string per sample.

    Args:
        values: what it gave: a tensor, an array or a list.
        n_samples: of the batch.
        of: whose values they are, for the message.

    Raises:
        InvalidArgument: if there is not one integer or string per sample.
    """
    plain = values.tolist() if hasattr(values, "tolist") else values
    if (
        isinstance(plain, list | tuple)
        and len(plain) == n_samples
        and all(isinstance(value, Integral | str) for value in plain)
    ):
        return [value if isinstance(value, str) else int(value) for value in plain]
    raise InvalidArgument(
        f"{of} must return one integer or string for each of the {n_samples} samples of a batch, got "
        f"a {type(values).__name__}: {shown(values, 80)}"
    )


@contextmanager
def users_function(what: str) -> Iterator[None]:
    """Turn the mistakes of a function that the user passed into `InvalidArgument`, which names the function.

    Errors of this package and those that are no mistakes, such as memory that runs out, pass through.

    Args:
        what: the function, for the message, such as "forward_fn".
    """
    try:
        yield
    except NeuroimpError:
        raise
    except MISTAKES as error:
        raise InvalidArgument(f"{what} failed with {type(error).__name__}: {str(error)[:200]}") from error


def closest(name: str, names: Collection[str], what: str) -> str:
    """Say which of the known names a wrong one may stand for, or else list some of them.

    Args:
        name: the wrong one.
        names: the known ones.
        what: what they are names of, such as "layers".
    """
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    some = [repr(one) for one in list(names)[:8]]
    return f"the {what} are {', '.join(some)}{', ...' if len(names) > 8 else ''}"


def one_of(options: Sequence[str]) -> str:
    """List options in words.

    >>> one_of(["a name", "a number", "None"])
    'a name, a number or None'
    """
    *first, last = options
    return f"{', '.join(first)} or {last}" if first else last


def shown(value: Any, longest: int = _LONGEST) -> str:
    """Show a received value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f" at least {least}"
    return "" if most is None else f" at most {most}"


def _and(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""
