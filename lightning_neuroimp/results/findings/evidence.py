"""Evidence: what the rules about one score look at, all of it from passes that were made anyway."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lightning_neuroimp import statistics
from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.verdict import FRACTIONS, WEAK

SHORT = 0.75
"""A ranking is poor where its gap is below this share of that of the effects to first order: in accuracy, and for
certain; or in margin, where accuracy hardly falls for these either."""

POOR = ((0.8, 0.05), (0.9, 0.25))
"""Where that gap was not measured: where the top neurons account for less than the first share of the achievable
effect, and the lower end of the interval of (LDS of the effects to first order - LDS) is above the second number; one
such pair is enough. Where removal was not measured at all, the first share decides."""

MUCH = 0.8
"""A score is beaten by another one where its gap is below this share of the other one's."""

KNOWN = 0.5
"""What random removals do is known well enough to be predicted where the ceiling of the LDS is above this."""

EFFECTS = (
    "gradient_x_activation",
    "layer_norm_rule",
    "blockwise_gradient",
    "masked_gradient",
    "integrated_gradients",
    "leave_one_out",
    "shapley",
    "regression",
)
"""Keys of the scores that estimate the effect of removal: their sums should predict it."""

FLAT = 0.3
"""A target is flat where less than this share of the samples carries the scores."""


class Alternative(NamedTuple):
    """Hold how another score of the same pass predicts removal, compared with the score in question.

    Attributes:
        lds: its linear datamodeling score; NaN where removal was not measured.
        gain: lower end of the 95% interval of (its LDS - LDS of the score in question); NaN likewise.
    """

    lds: float
    gain: float


class Loss(NamedTuple):
    """Hold what a ranking loses against the one by effects to first order.

    Attributes:
        gap: of the ranking.
        rival: gap of the other one.
        is_much: whether the loss is large, and certain.
        unit: what the gaps are in, in words; "" for accuracy.
    """

    gap: float
    rival: float
    is_much: bool
    unit: str

    @property
    def share(self) -> float:
        """Return the lost share, 0 to 1."""
        return float(np.clip(1 - self.gap / self.rival, 0.0, 1.0)) if self.rival > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Evidence:
    """Collect what is known about the ranking of one score at one site.

    Attributes:
        results: the measurement.
        importance: the importances by which neurons are ranked.
        activity: what the activations of the site are like; None where that is not known.
    """

    results: Results
    importance: Importance
    activity: SiteActivity | None

    @property
    def kind(self) -> str:
        """Return the key of the built-in score; "own" for a user's function."""
        return self.importance.attribution_kind

    @cached_property
    def reliability(self) -> float:
        """Return the split-half reliability, all clusters together."""
        return float(statistics.weighted_mean(self.importance.reliability.split_half, self.results.clusters.size))

    @cached_property
    def carried_by(self) -> float:
        """Return the share of the samples that carries the scores: effective samples over samples, 0 to 1."""
        share = self.importance.effective_samples / np.maximum(self.importance.count.sum(0), 1)
        return float(statistics.weighted_mean(share, self.results.clusters.size))

    @property
    def is_flat(self) -> bool:
        """Tell whether the target is flat for all but a few samples."""
        saturates = self.importance.removal.target_kind in ("probability", "log_probability")
        return saturates and self.carried_by < FLAT

    @cached_property
    def captured(self) -> float:
        """Return the share of the achievable effect that the top neurons account for; see `captured_effect`."""
        return captured_effect(self.importance)

    @cached_property
    def is_poor(self) -> bool:
        """Tell whether the ranking is clearly worse than the one by effects to first order (see `SHORT`)."""
        loss = self.measured_loss
        if loss is not None:
            return loss.is_much
        return self.beaten_by("gradient_x_activation") is not None or self.accounts_for_less

    @cached_property
    def accounts_for_less(self) -> bool:
        """Tell whether the top neurons account for clearly less than those by effects to first order (see `POOR`)."""
        gain = self.alternative("first_order").gain
        if np.isnan(gain):
            return self.captured < POOR[0][0]
        return any(self.captured < share and gain > bound for share, bound in POOR)

    @cached_property
    def measured_loss(self) -> "Loss | None":
        """Return what the ranking loses against the one by effects to first order; None where it was not measured."""
        judged = self.importance.faithfulness
        if judged is None or "first_order" not in judged.references:
            return None
        row = judged.references.index("first_order")
        gap, rival = float(judged.gap[-1]), float(judged.reference_gap[row, -1])
        if np.isnan(rival):
            return None
        level = float(judged.random_accuracy[:, -1].mean())
        if rival >= WEAK * level:
            return Loss(gap, rival, bool(gap < SHORT * rival and judged.reference_interval[row, -1, 1] < 0), "")
        gap, rival = float(judged.margin_gap[-1]), float(judged.reference_margin_gap[row, -1])
        return Loss(gap, rival, bool(gap < SHORT * rival), " in margin")

    @cached_property
    def predicted(self) -> float:
        """Return the LDS as a share of its ceiling; NaN where either is not known."""
        judged = self.importance.faithfulness
        if judged is None or not judged.lds_ceiling[-1] > KNOWN:
            return float("nan")
        return float(judged.lds[-1] / judged.lds_ceiling[-1])

    @cached_property
    def surviving(self) -> float:
        """Return the share of the scores' magnitude that is left in their means, 0 to 1; NaN where all are zero."""
        count = self.importance.count.sum(0)
        left, total = np.abs(self.importance.mean).sum(1) @ count, self.importance.abs_mean.sum(1) @ count
        return float(left / total) if total > 0 else float("nan")

    @cached_property
    def hidden_negative(self) -> float:
        """Return the share of negative effects to first order, by magnitude; 0 where scores have a sign themselves."""
        effects = self.importance.first_order
        signed = (self.importance.half_mean < 0).any() or not self.surviving > 1 - 1e-6
        if signed or effects is None or self.importance.removal.n_neurons < 2:
            return 0.0
        magnitude = np.nansum(np.abs(effects))
        return float(-np.nansum(np.minimum(effects, 0)) / magnitude) if magnitude > 0 else 0.0

    @property
    def lost(self) -> float:
        """Return the share of the achievable effect that the ranking misses, 0 to 1.

        Of the gap that effects to first order have, where it was measured. A half where neither is known, and a
        comparison has shown that much is missed.
        """
        if self.measured_loss is not None and self.measured_loss.is_much:
            return self.measured_loss.share
        return 0.5 if np.isnan(self.captured) else 1 - self.captured

    def alternative(self, key: str) -> Alternative:
        """Return how another score of the same pass predicts removal.

        Args:
            key: one of `Faithfulness.alternatives`.
        """
        judged = self.importance.faithfulness
        if judged is None or key not in judged.alternatives:
            return Alternative(float("nan"), float("nan"))
        row = judged.alternatives.index(key)
        return Alternative(float(judged.alternative_lds[row, -1]), float(judged.alternative_interval[row, -1, 0]))

    def beaten_by(self, *kinds: str) -> str | None:
        """Name a built-in score at the site whose gap is certainly and much larger; None where there is none.

        Args:
            kinds: keys of built-in scores, in the order in which they are tried.
        """
        at_site = [each for each in self.results.importances if each.site == self.importance.site]
        for kind in kinds:
            rival = next((each for each in at_site if each.attribution_kind == kind), None)
            if rival is not None and self._is_beaten(rival):
                return rival.attribution
        return None

    def _is_beaten(self, rival: Importance) -> bool:
        own, judged = self.importance.faithfulness, rival.faithfulness
        if rival is self.importance or own is None or judged is None:
            return False
        pair = {self.importance.attribution, rival.attribution}
        better = [
            each.better
            for each in self.results.comparisons
            if each.site == self.importance.site and {each.first, each.second} == pair
        ]
        return better[:1] == [rival.attribution] and bool(own.gap[-1] < MUCH * judged.gap[-1])

    def top_neurons(self) -> str:
        """Say what the ranking loses, as measured; otherwise what the score's top neurons account for."""
        loss = self.measured_loss
        if loss is not None and loss.is_much:
            gaps = f"{loss.gap:+.3f}{loss.unit}", f"{loss.rival:+.3f}"
            return f"its gap is {gaps[0]}, that of the ranking by effects to first order {gaps[1]}"
        return self.accounted()

    def accounted(self) -> str:
        """Say what the score's top neurons account for."""
        if np.isnan(self.captured):
            return "the top neurons account for less than those of other scores"
        if self.captured <= 0:
            return "the top neurons account for none of the achievable effect: removing them helps rather than hurts"
        return f"the top neurons account for {self.captured:.0%} of the achievable effect"

    def lds_against(self, what: str) -> str:
        """Say how the score and the effects to first order predict removal; "" where it was not measured.

        Args:
            what: the effects to first order, in words.
        """
        if self.importance.faithfulness is None:
            return ""
        own = self.importance.faithfulness.lds[-1]
        return (
            f"; LDS {'undefined' if np.isnan(own) else f'{own:.2f}'}, {what} {self.alternative('first_order').lds:.2f}"
        )

    def lds_figures(self, key: str) -> dict[str, float]:
        """Return the LDS of the score and of another one of the same pass; empty where removal was not measured.

        Args:
            key: one of `Faithfulness.alternatives`.
        """
        if self.importance.faithfulness is None:
            return {}
        return {"lds": self.importance.faithfulness.lds[-1], f"lds of {key}": self.alternative(key).lds}


def captured_effect(importance: Importance) -> float:
    """Return the share of the achievable effect that a ranking's top neurons account for.

    The effects to first order, (activation - baseline) x gradient, of the top neurons of one half of each cluster are
    summed on the other half, both ways, at each fraction and over all clusters' samples; what is achievable is the sum
    for the ranking by those effects themselves. It takes no removal, and holds as far as first order does.

    Args:
        importance: the importances.

    Returns:
        1: the ranking is as good as one by those effects, or better; 0: removing its top neurons helps rather than
        hurts; NaN where the effects are not known.
    """
    effects, judged = importance.half_first_order, importance.faithfulness
    if effects is None:
        return float("nan")
    removed = statistics.points(FRACTIONS, importance.removal.n_neurons) if judged is None else judged.removed

    def summed(ranking: Float[np.ndarray, "half cluster neuron"]) -> float:
        order = np.argsort(-ranking, axis=-1, kind="stable")
        sums = np.take_along_axis(effects[::-1], order, -1).cumsum(-1)[..., removed - 1].sum(2)
        known = np.isfinite(sums).all(0)
        return float(sums.sum(0)[known] @ importance.count.sum(0)[known])

    achievable = summed(effects)
    return float(np.clip(summed(importance.half_mean) / achievable, 0.0, 1.0)) if achievable > 0 else float("nan")
