"""Verdict: whether ablation supports a ranking, and the thresholds by which that is decided."""

import math
from enum import StrEnum
from typing import NamedTuple

MIN_HALF = 16
"""Smallest number of ablated samples in a half of a cluster for which a verdict is given."""

LEVEL = 0.05
"""A gap differs from that of random orders where its p-value is at most this."""

WEAK = 0.05
"""A gap is weak where it is below this share of the accuracy that random removal leaves."""

HALF = 0.5
"""A gap is also weak where it is below this share of the gap that effects to first order reach."""

FLOOR = 0.005
"""Smallest gap, in accuracy, that makes a verdict: less is a few samples, whatever its p-value is."""

TIE = 0.02
"""Two gaps are considered equal where they differ by less than this accuracy."""

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Fractions of the neurons at which rankings are compared by default."""


class Verdict(StrEnum):
    """Say whether ablation supports a ranking; each value is the text that is shown."""

    FAITHFUL = "faithful"
    WEAK = "weak"
    MARGIN_ONLY = "better in margin only"
    NO_BETTER = "no better than random"
    WORSE = "worse than random"
    TOO_FEW = "too few samples to say"
    TOO_FEW_NEURONS = "too few neurons to say"


class GapTest(NamedTuple):
    """Hold a gap and its two randomisation p-values.

    Attributes:
        gap: mean over the points of (random removal - deletion curve).
        p_value: share of the random orders, counting the ranking itself, whose gap is at least as large.
        p_value_worse: share whose gap is at most as large.
    """

    gap: float
    p_value: float
    p_value_worse: float


def verdict(
    accuracy: GapTest,
    margin: GapTest,
    *,
    relative_gap: float,
    first_order_gap: float,
    smallest_half: int,
    smallest_p_value: float,
) -> Verdict:
    """Decide whether ablation supports a ranking.

    The margin's gap decides whether the ranking is right: it tells rankings apart also where accuracy hardly moves. The
    gap in accuracy decides whether any decision hangs on it.

    Args:
        accuracy: the gap in accuracy, 0 to 1.
        margin: the gap in margin, in logits; NaN where margins are not finite: accuracy decides alone then.
        relative_gap: gap in accuracy over the mean accuracy under random removal.
        first_order_gap: gap in accuracy of the ranking by effects to first order; NaN where it is not known.
        smallest_half: number of ablated samples in the smaller of the two halves.
        smallest_p_value: below which no ranking with these sets of neurons can come, however many orders are drawn.

    >>> right, left = GapTest(0.2, 0.05, 1.0), GapTest(0.0, 1.0, 1.0)
    >>> with_enough = {"smallest_half": 50, "smallest_p_value": 0.0, "first_order_gap": 0.2}
    >>> str(verdict(right, right, relative_gap=0.4, **with_enough))
    'faithful'
    >>> str(verdict(left, right, relative_gap=0.0, **with_enough))
    'better in margin only'
    """
    if smallest_half < MIN_HALF:
        return Verdict.TOO_FEW
    if smallest_p_value > LEVEL:
        return Verdict.TOO_FEW_NEURONS
    finite = not math.isnan(margin.p_value)
    ranks = margin if finite else accuracy
    if ranks.p_value > LEVEL:
        worse = ranks.p_value_worse <= LEVEL and accuracy.p_value_worse <= LEVEL and accuracy.gap <= -FLOOR
        return Verdict.WORSE if worse else Verdict.NO_BETTER
    if accuracy.gap < -TIE:
        return Verdict.NO_BETTER  # margins fall more than under random removal, and accuracy less
    if accuracy.p_value > LEVEL or accuracy.gap < FLOOR:
        return Verdict.MARGIN_ONLY if finite else Verdict.NO_BETTER
    # where random removal leaves no accuracy at all there is no relative gap, and no gap to be found either
    little = not relative_gap >= WEAK or accuracy.gap < HALF * first_order_gap
    return Verdict.WEAK if little else Verdict.FAITHFUL
