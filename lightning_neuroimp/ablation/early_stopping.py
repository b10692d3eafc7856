"""Stop the random control early: draw random orders in rounds, until no p-value can reach the level any more.

Takes accuracies after removals, gives p-values or None; `Judge` asks after each round.
"""

import math

import numpy as np
from jaxtyping import Bool, Float

from lightning_neuroimp.ablation.settings import MIN_RANDOM
from lightning_neuroimp.statistics import ROUNDING


def rounds(n_draws: int) -> list[int]:
    """Return the number of random orders that have been drawn after each round.

    Args:
        n_draws: number of orders that were asked for, at least 19.

    >>> rounds(19), rounds(99)
    ([19], [19, 39, 79, 99])
    """
    drawn = [MIN_RANDOM]
    while drawn[-1] < n_draws:
        drawn.append(min(2 * drawn[-1] + 1, n_draws))
    return drawn


def sequential_p_value(exceeded: Bool[np.ndarray, " draw"], n_draws: int, level: float = 0.05) -> float | None:
    """Compute the p-value of a ranking that enough random orders have already beaten.

    Once h = level * (n_draws + 1) orders have, the p-value of all draws would be above the level, whatever follows.

    Args:
        exceeded: whether each order so far has a gap at least as large.
        n_draws: number of orders that were asked for.
        level: of the decision.

    Returns:
        h over the number of draws until the h-th; None while fewer orders have beaten the ranking.

    References:
        Besag and Clifford, "Sequential Monte Carlo p-values", Biometrika 78 (1991).
    """
    enough = math.floor(level * (n_draws + 1) + 1e-9)
    (beaten,) = np.nonzero(exceeded)
    return enough / (int(beaten[enough - 1]) + 1) if 0 < enough <= len(beaten) else None


def sequential_gap_p_values(
    curve: Float[np.ndarray, " point"],
    control: Float[np.ndarray, "draw point"],
    n_draws: int,
    rounding: float = ROUNDING,
) -> tuple[float | None, float | None]:
    """Compute both p-values of a gap, as `statistics.gap_p_values` does; None where they are not decided yet.

    Args:
        curve: accuracy after removing the most important neurons.
        control: accuracy after removing as many neurons in each random order so far.
        n_draws: number of orders that were asked for.
        rounding: gaps that differ by less are equal.
    """
    level, null = -curve.mean(-1), -control.mean(-1)
    return (
        sequential_p_value(null >= level - rounding, n_draws),
        sequential_p_value(null <= level + rounding, n_draws),
    )
