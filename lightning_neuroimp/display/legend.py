"""Explain how to read the tables of a measurement that was checked by ablation."""

import math

import numpy as np

from lightning_neuroimp.display.document import Terms
from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import FLOOR, LEVEL, MIN_HALF, TIE, WEAK, Verdict


def legend(results: Results) -> Terms:
    """Explain the columns and the verdicts of the tables.

    Args:
        results: with faithfulness.
    """
    removed: dict[int, str] = {}
    checked: list[Faithfulness] = []
    for importance in results.importances:
        if importance.faithfulness is not None:
            checked.append(importance.faithfulness)
            counts, n_neurons = importance.faithfulness.removed, importance.removal.n_neurons
            removed[n_neurons] = f"{', '.join(map(str, counts))} of {n_neurons}"
    n_samples = int(checked[-1].samples[:, :-1].sum())
    gap = (
        "accuracy left by random removal minus accuracy left by removing the top neurons, averaged over removing "
        f"{'; '.join(removed.values())} neurons, on {n_samples} samples; neurons are ranked on one half of a cluster "
        "and removed on the other."
    )
    p_value = (
        "fraction of the random orders (counting the ranking itself) whose gap is at least as large; a random order is "
        f"the ranking of every cluster with the names of the neurons permuted. {_resolution(results)}"
    )
    return Terms(
        (
            ("gap", gap),
            ("p", p_value),
            (
                "p(m)",
                "the same of the margin, which moves also where accuracy does not; accuracy has the gap, p and q.",
            ),
            ("q", _discoveries(results, checked)),
            ("95% interval", "over the samples (or their groups) and the random orders; the rankings stay fixed."),
            (
                Verdict.FAITHFUL,
                f"p(m) and p <= {LEVEL:g}, and a gap of at least {WEAK:.0%} of the accuracy left by random removal and "
                "half of the gap that effects to first order have.",
            ),
            (Verdict.WEAK, f"p(m) and p <= {LEVEL:g}, and a smaller gap, of at least {FLOOR:g}."),
            (
                Verdict.MARGIN_ONLY,
                f"p(m) <= {LEVEL:g}, but p > {LEVEL:g} or a gap below {FLOOR:g}: margins depend on the top neurons, "
                "but no decision hangs on them.",
            ),
            (Verdict.NO_BETTER, f"p(m) > {LEVEL:g}, or a gap below -{TIE:g}."),
            (
                Verdict.WORSE,
                f"even random orders do better (lower tails of both p(m) and p <= {LEVEL:g}, and a gap of at most "
                f"-{FLOOR:g}).",
            ),
            (Verdict.TOO_FEW, f"fewer than {MIN_HALF} ablated samples in a half of the cluster."),
            (
                Verdict.TOO_FEW_NEURONS,
                f"more than {LEVEL:.0%} of all orders remove the same neurons as the ranking, so that no p can be "
                f"{LEVEL:g}.",
            ),
        )
    )


def _numbers_of_draws(results: Results) -> list[int]:
    """Return the number of random orders at each site where these are not all that there are."""
    return [
        importance.faithfulness.n_draws
        for importance in results.importances
        if importance.faithfulness is not None
        and importance.faithfulness.n_draws != math.factorial(min(importance.removal.n_neurons, 20)) - 1
    ]


def _resolution(results: Results) -> str:
    """Say how small a p-value the random orders allow, and how many more would allow a smaller one."""
    numbers = _numbers_of_draws(results)
    if not numbers:
        return "So few neurons have few orders: all of them were tried."
    n_draws = min(numbers)
    text = f"{n_draws} random orders: the smallest possible p is {1 / (n_draws + 1):.2g}"
    more = next((number for number in (99, 999) if number > n_draws), None)
    return text + (f"; n_random={more} resolves {1 / (more + 1):g}." if more else ".")


def _discoveries(results: Results, checked: list[Faithfulness]) -> str:
    """Say how many gaps remain discoveries although many were tested, and whether they could have been more."""
    q_values = np.concatenate([faithfulness.q_value[:-1] for faithfulness in checked])
    n_tests = int(np.isfinite(q_values).sum())
    n_draws = min(_numbers_of_draws(results), default=0)
    n_found = int((q_values <= LEVEL).sum())
    text = (
        "smallest false discovery rate, over all clusters, layers and scores, at which the cluster's gap counts as "
        f"a discovery; {n_found} of {n_tests} do at {LEVEL:.0%}."
    )
    if n_draws and n_found < n_tests and n_tests / (n_draws + 1) > LEVEL:
        text += (
            f" With {n_draws} random orders p cannot be smaller than {1 / (n_draws + 1):.2g}, too large for a few of "
            f"{n_tests} tests to stand out alone: n_random={int(np.ceil(n_tests / LEVEL)) - 1} would let them."
        )
    return text
