"""Format numbers and names, the same way in every table, line and figure."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

MAX_NAME = 40
"""Longest name in a table or above a panel, in characters; longer ones are shortened in the middle."""

_LINE_BREAKS = re.compile(r"[\t-\r\x1c-\x1e\x85\u2028\u2029]+")
# control characters, halves of surrogate pairs, and marks that turn the direction of what follows them
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    r"""Return a text without what would tear a line or a table apart; everything else stays as it is.

    Line breaks and tabs become spaces, control characters escapes as in Python.

    >>> one_line("two\nlines, \x1b[31mred")
    'two lines, \\x1b[31mred'
    """
    text = _LINE_BREAKS.sub(" ", text)
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def short_name(name: str, longest: int = MAX_NAME) -> str:
    """Return a name on one line, shortened in the middle, as long names often differ at their ends.

    Args:
        name: of a cluster or a class.
        longest: length of what is returned, at least 6 characters.

    >>> short_name("golden retriever, standing on grass", 20)
    'golden retri...grass'
    """
    name = one_line(name)
    if len(name) <= longest:
        return name
    last = (longest - 3) // 3
    return f"{name[: longest - 3 - last]}...{name[-last:]}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it must be.

    >>> counted(1, "sample"), counted(2, "sample")
    ('1 sample', '2 samples')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def some(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return the first names, and how many more there are.

    >>> some(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign, "-" for NaN; zero is never negative.

    >>> signed(-0.00001), signed(0.25)
    ('+0.000', '+0.250')
    """
    return "-" if np.isnan(value) else f"{_rounded(value, digits):+.{digits}f}"


def fixed(value: float, digits: int = 2) -> str:
    """Return a number without a plus sign, "not defined" for NaN; zero is never negative.

    >>> fixed(-0.001), fixed(0.25)
    ('0.00', '0.25')
    """
    return "not defined" if np.isnan(value) else f"{_rounded(value, digits):.{digits}f}"


def probability(value: float, digits: int = 3) -> str:
    """Return a p-value or a rate with three significant digits, or another number of them; "-" for NaN."""
    return "-" if np.isnan(value) else f"{value:.{digits}g}"


def percentage(share: float) -> str:
    """Return a share as a percentage, "not defined" for NaN.

    >>> percentage(0.125), percentage(float("nan"))
    ('12%', 'not defined')
    """
    return "not defined" if np.isnan(share) else f"{share:.0%}"


def interval(ends: Float[np.ndarray, "2"], digits: int = 3, *, sign: bool = True) -> str:
    """Return an interval in words, "-" where an end is NaN.

    Args:
        ends: lower and upper end.
        digits: decimals.
        sign: whether positive numbers have one, as differences should.

    >>> interval(np.array([-0.1, 0.25]), 2)
    '-0.10 to +0.25'
    """
    if np.isnan(ends).any():
        return "-"
    low, high = (f"{_rounded(end, digits):{'+' if sign else ''}.{digits}f}" for end in ends)
    return f"{low} to {high}"


def _rounded(value: float, digits: int) -> float:
    # adding zero turns -0.0 into 0.0
    return round(float(value), digits) + 0.0
