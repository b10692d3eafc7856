"""Verdicts: whether removal bears a ranking out, in words."""

from typing import Literal

Verdict = Literal["faithful", "weak", "no better than random", "worse than random", "too few samples to say"]


MIN_HALF = 16
"""Fewer samples in a half than this, and no verdict is given."""


LEVEL, WEAK = 0.05, 0.05


TIE = 0.02
"""Gaps are the same where they differ by less than this."""


def verdict(p_value: float, p_value_worse: float, relative_gap: float, smallest_half: int) -> Verdict:
    """Whether removal bears a ranking out.

    Args:
        p_value: randomisation p-value of the gap.
        p_value_worse: its lower tail.
        relative_gap: gap over the mean accuracy under random removal.
        smallest_half: ablated samples in the smaller of the two halves.

    >>> verdict(0.01, 1.0, 0.4, 50)
    'faithful'
    >>> verdict(0.01, 1.0, 0.02, 50)
    'weak'
    """
    if smallest_half < MIN_HALF:
        return "too few samples to say"
    if p_value_worse <= LEVEL < p_value:
        return "worse than random"
    if p_value > LEVEL:
        return "no better than random"
    # where random removal leaves no accuracy at all there is no relative gap, and no gap to be found either
    return "faithful" if relative_gap >= WEAK else "weak"


FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of the neurons at which rankings are compared where none were removed."""
