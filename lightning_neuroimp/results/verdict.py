"""Verdict: whether ablation supports a ranking, and the thresholds by which that is decided."""

from enum import StrEnum

MIN_HALF = 16
"""Smallest number of ablated samples in a half of a cluster for which a verdict is given."""

LEVEL = 0.05
"""A gap differs from that of random orders where its p-value is at most this."""

WEAK = 0.05
"""A gap is weak where it is below this share of the accuracy that random removal leaves."""

TIE = 0.02
"""Two gaps are considered equal where they differ by less than this accuracy."""

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Fractions of the neurons at which rankings are compared by default."""


class Verdict(StrEnum):
    """Say whether ablation supports a ranking; each value is the text that is shown."""

    FAITHFUL = "faithful"
    WEAK = "weak"
    NO_BETTER = "no better than random"
    WORSE = "worse than random"
    TOO_FEW = "too few samples to say"


def verdict(p_value: float, p_value_worse: float, relative_gap: float, smallest_half: int) -> Verdict:
    """Decide whether ablation supports a ranking.

    Args:
        p_value: randomisation p-value of the gap.
        p_value_worse: its lower tail.
        relative_gap: gap over the mean accuracy under random removal.
        smallest_half: number of ablated samples in the smaller of the two halves.

    >>> str(verdict(0.01, 1.0, 0.4, 50))
    'faithful'
    >>> str(verdict(0.01, 1.0, 0.02, 50))
    'weak'
    """
    if smallest_half < MIN_HALF:
        return Verdict.TOO_FEW
    if p_value_worse <= LEVEL < p_value:
        return Verdict.WORSE
    if p_value > LEVEL:
        return Verdict.NO_BETTER
    # where random removal leaves no accuracy at all there is no relative gap, and no gap to be found either
    return Verdict.FAITHFUL if relative_gap >= WEAK else Verdict.WEAK
