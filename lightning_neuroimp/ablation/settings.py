"""Set how importances are checked by ablation: AblationFaithfulness, for callbacks and functions alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_neuroimp import _validate, statistics
from lightning_neuroimp.ablation.control import number_of_draws
from lightning_neuroimp.results.verdict import FRACTIONS

MIN_RANDOM = 19
"""Smallest number of random orders with which a p-value can be .05 or less."""


@dataclass(frozen=True)
class AblationFaithfulness:
    """Set how an importance is checked by ablation.

    Attributes:
        n_random: number of random orders in the control; with 19 the smallest p-value is .05. Of four neurons or fewer
            all orders are tried.
        fractions: shares of the neurons to remove, each rounded up, without repeats.
        max_samples: upper bound on the number of samples on which neurons are removed, out of the probe set: 24 of each
            half of each cluster where there are so many, and the rest in proportion.
        every_n_epochs: check in every n-th measured epoch of the callback.
        max_overhead: skip a check that would take more than this share of the time since the last one; the first check,
            and one at the end of the training run, are always made. None: never skip.
        least_first: also remove the least important neurons first, for the symmetric relevance gain.
        keep_only: also keep only the most important neurons, and only random ones, in place of removing them.
        best_order: also remove neurons in a progressive order (see `ProgressiveGradient`), for the normalised gap; it
            takes a forward pass, and a forward and backward pass of what follows the site, at every fraction.
        specificity: also remove each cluster's top tenth of the neurons from all other clusters.
        randomise: also compute importances with randomised weights, on a copy of the model.
        false_discovery: how the rates of false discoveries are computed: "bh" (Benjamini-Hochberg) for tests that are
            independent or rise together, "by" (Benjamini-Yekutieli), which finds less, however they depend on one
            another.

    Raises:
        InvalidArgument: if a setting has no valid value.

    >>> AblationFaithfulness(n_random=99, fractions=[0.1, 0.5]).fractions
    (0.1, 0.5)
    """

    n_random: int = 19
    fractions: Sequence[float] = FRACTIONS
    max_samples: int = 512
    every_n_epochs: int = 1
    max_overhead: float | None = 0.1
    least_first: bool = False
    keep_only: bool = False
    best_order: bool = False
    specificity: bool = False
    randomise: bool = False
    false_discovery: Literal["bh", "by"] = "bh"

    def __post_init__(self) -> None:
        remedy = "with n random orders no p-value can be below 1 / (n + 1), and the verdict asks for .05"
        valid = {
            "n_random": _validate.integer("n_random", self.n_random, least=MIN_RANDOM, remedy=remedy),
            "fractions": _validate.fractions(self.fractions),
            "max_samples": _validate.integer("max_samples", self.max_samples, least=1),
            "every_n_epochs": _validate.integer("every_n_epochs", self.every_n_epochs, least=1),
            "false_discovery": _validate.choice("false_discovery", self.false_discovery, ("bh", "by")),
        }
        if self.max_overhead is not None:
            valid["max_overhead"] = _validate.number("max_overhead, where it is not None,", self.max_overhead, above=0)
        for name in ("least_first", "keep_only", "best_order", "specificity", "randomise"):
            valid[name] = _validate.boolean(name, getattr(self, name))
        for name, value in valid.items():
            object.__setattr__(self, name, value)

    def forward_passes(self, n_attributions: int, n_neurons: int | None = None) -> int:
        """Count the passes over the ablated samples at one site, an upper bound.

        One is a full forward pass, all others run what follows the site; sets of neurons that several rankings or
        random orders have in common in a cluster's half are run once. Each score has a random control of its own;
        scores with equal rankings share one. With more than 19 random orders there is another full pass for each round
        of them; `keep_only`, `best_order` and `specificity` come on top.

        Args:
            n_attributions: number of scores.
            n_neurons: number of neurons at the site; None: unknown, and an upper bound is returned.
        """
        n_points = len(self.fractions) if n_neurons is None else len(statistics.points(self.fractions, n_neurons))
        n_rankings = (3 if self.least_first else 2) * n_attributions + 2
        n_draws = self.n_random if n_neurons is None else number_of_draws(self.n_random, n_neurons)
        return 1 + n_points * (n_draws * n_attributions + n_rankings)
