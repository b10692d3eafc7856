"""Settings of a check by ablation."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_neuroimp import statistics
from lightning_neuroimp.results.verdict import FRACTIONS


@dataclass(frozen=True)
class AblationFaithfulness:
    """How removal is measured.

    Attributes:
        n_random: random orders in the control; with 19 the smallest p-value is .05.
        fractions: shares of the neurons to remove, each rounded up, without repeats.
        max_samples: at most so many samples of the probe set.
        every_n_epochs: measure in every n-th measured epoch of the callback.
        least_first: also remove the least important neurons first, for the symmetric relevance gain.
        greedy: also remove neurons in an order found greedily, for the normalised gap; takes a pass of what follows the
            site for each neuron at each fraction.
        specificity: also remove each cluster's top tenth of the neurons from all other clusters.
        randomise: also compute importances with randomised weights, on a copy of the model.
        max_overhead: skip a check that would take more than this share of the time since the last one; the first one,
            and the one at the end of the last epoch, are always made. None: never skip.
    """

    n_random: int = 19
    fractions: Sequence[float] = FRACTIONS
    max_samples: int = 512
    every_n_epochs: int = 1
    max_overhead: float | None = 0.1
    least_first: bool = False
    greedy: bool = False
    specificity: bool = False
    randomise: bool = False

    def __post_init__(self) -> None:
        # a list is what YAML and the command line give
        object.__setattr__(self, "fractions", tuple(self.fractions))
        if self.n_random < 19:
            raise ValueError(
                f"n_random must be at least 19, got {self.n_random}: with n random orders no p-value can be below "
                "1 / (n + 1), and the verdict asks for .05"
            )
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"fractions must be numbers above 0 and up to 1, got {self.fractions}")
        for name in ("max_samples", "every_n_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_overhead is not None and not self.max_overhead > 0:
            raise ValueError(f"max_overhead must be positive, or None for no limit, got {self.max_overhead}")

    def forward_passes(self, n_attributions: int, n_neurons: int | None = None) -> int:
        """Passes over the samples at one site, without its number of neurons at most.

        One is a whole forward pass, all others run what follows the site. With more than 19 random orders there is
        another whole pass for each round of them; `greedy` and `specificity` come on top.
        """
        n_points = len(self.fractions) if n_neurons is None else len(statistics.points(self.fractions, n_neurons))
        n_rankings = (3 if self.least_first else 2) * n_attributions + 1
        return 1 + n_points * (self.n_random + n_rankings)
