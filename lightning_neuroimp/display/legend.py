"""Explain how to read the tables of a measurement that was checked by ablation."""

import numpy as np

from lightning_neuroimp.display.document import Terms
from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import LEVEL, MIN_HALF, WEAK, Verdict


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
    n_draws, n_samples = checked[-1].n_draws, int(checked[-1].samples[:, -1].sum())
    gap = (
        "accuracy left by random removal minus accuracy left by removing the top neurons, averaged over removing "
        f"{'; '.join(removed.values())} neurons, on {n_samples} samples; neurons are ranked on one half of a cluster "
        "and removed on the other."
    )
    p_value = (
        "fraction of the random orders (counting the ranking itself) whose gap is at least as large; a random order is "
        f"the ranking of every cluster with the names of the neurons permuted. {_resolution(n_draws)}"
    )
    return Terms(
        (
            ("gap", gap),
            ("p", p_value),
            ("q", _discoveries(checked)),
            ("95% interval", "over the samples (or their groups) and the random orders; the rankings stay fixed."),
            (
                Verdict.FAITHFUL,
                f"p <= {LEVEL:g} and a gap of at least {WEAK:.0%} of the accuracy left by random removal.",
            ),
            (Verdict.WEAK, f"p <= {LEVEL:g} and a smaller gap."),
            (Verdict.NO_BETTER, f"p > {LEVEL:g}."),
            (Verdict.WORSE, f"even random orders do better (lower-tail p <= {LEVEL:g})."),
            (Verdict.TOO_FEW, f"fewer than {MIN_HALF} ablated samples in a half of the cluster."),
        )
    )


def _resolution(n_draws: int) -> str:
    """Say how small a p-value the random orders allow, and how many more would allow a smaller one."""
    text = f"{n_draws} random orders: the smallest possible p is {1 / (n_draws + 1):.2g}"
    more = next((number for number in (99, 999) if number > n_draws), None)
    return text + (f"; n_random={more} resolves {1 / (more + 1):g}." if more else ".")


def _discoveries(checked: list[Faithfulness]) -> str:
    """Say how many gaps remain discoveries although many were tested, and whether they could have been more."""
    q_values = np.concatenate([faithfulness.q_value[:-1] for faithfulness in checked])
    n_tests = int(np.isfinite(q_values).sum())
    n_draws = min(faithfulness.n_draws for faithfulness in checked)
    n_found = int((q_values <= LEVEL).sum())
    text = (
        "smallest false discovery rate, over all clusters, layers and scores, at which the cluster's gap counts as "
        f"a discovery; {n_found} of {n_tests} do at {LEVEL:.0%}."
    )
    if n_found < n_tests and n_tests / (n_draws + 1) > LEVEL:
        text += (
            f" With {n_draws} random orders p cannot be smaller than {1 / (n_draws + 1):.2g}, too large for a few of "
            f"{n_tests} tests to stand out alone: n_random={int(np.ceil(n_tests / LEVEL)) - 1} would let them."
        )
    return text
