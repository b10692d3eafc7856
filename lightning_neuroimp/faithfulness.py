"""Faithfulness: rankings to ablate by, and what their outcomes say against random removal."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lightning_neuroimp import statistics
from lightning_neuroimp.deletion import Outcomes
from lightning_neuroimp.diagnosis import verdict
from lightning_neuroimp.probe import sample_keys
from lightning_neuroimp.results import Faithfulness, Importance, Overall, Results

REFERENCES = ("activation size", "one ranking for all clusters")
"""Rankings that a score should beat: mean |activation - baseline|, and the same score's mean over all clusters."""

LDS_FRACTION = 0.1


@dataclass(frozen=True)
class AblationFaithfulness:
    """How removal is measured.

    Attributes:
        n_random: random orders in the control; with 19 the smallest p-value is .05.
        fractions: shares of the neurons to remove, each rounded up, without repeats.
        max_samples: at most so many samples of the probe set.
        every_n_epochs: measure in every n-th measured epoch of the callback.
        max_overhead: skip a check that would take more than this share of the time since the last one; the first one,
            and the one at the end of the last epoch, are always made. None: never skip.
    """

    n_random: int = 19
    fractions: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    max_samples: int = 512
    every_n_epochs: int = 1
    max_overhead: float | None = 0.1

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

        One is a whole forward pass, all others run what follows the site.
        """
        n_points = len(self.fractions) if n_neurons is None else len(statistics.points(self.fractions, n_neurons))
        return 1 + n_points * (self.n_random + 2 * n_attributions + 1)


def choose_samples(results: Results, max_samples: int) -> Int[np.ndarray, " chosen"]:
    """Positions of the samples to ablate: those with the smallest keys among the members of clusters."""
    member = np.flatnonzero(results.sample_half >= 0)
    keys = sample_keys(results.sample_index[member], results.seed)
    return member[np.argsort(keys, kind="stable")[:max_samples]]


def rankings(ones: Sequence[Importance]) -> list[Int[np.ndarray, "group neuron"]]:
    """Orders of removal per group (cluster and half), each from the other half's scores, most important first.

    First each attribution's, then that of the activations' size, then each attribution's one order for all clusters.
    """
    own = [_orders(one.half_mean) for one in ones]
    size = _orders(ones[0].half_deviation)
    shared = []
    for one in ones:
        weight = one.count / np.maximum(one.count.sum(1, keepdims=True), 1)
        mean = (weight[..., None] * np.nan_to_num(one.half_mean)).sum(1, keepdims=True)
        shared.append(_orders(np.repeat(mean, one.half_mean.shape[1], axis=1)))
    return [*own, size, *shared]


def _orders(half_scores: Float[np.ndarray, "half cluster neuron"]) -> Int[np.ndarray, "group neuron"]:
    swapped = half_scores[::-1].transpose(1, 0, 2)  # (cluster, half, neuron): the scores of the other half
    return np.argsort(-swapped, axis=-1, kind="stable").reshape(-1, half_scores.shape[-1])


def judge(
    importance: Importance,
    outcomes: Outcomes,
    removed: Int[np.ndarray, " point"],
    control: Int[np.ndarray, "draw neuron"],
    position: int,
    n_attributions: int,
) -> Faithfulness:
    """Curves, gaps, p-values, datamodeling scores and verdicts from ablation outcomes.

    Args:
        importance: whose ranking is judged.
        outcomes: orders as `rankings` lists them, then the random control; groups are clusters and halves.
        removed: the points of the curves.
        control: the random orders.
        position: which of the attributions this one is.
        n_attributions: how many there are.
    """
    samples = outcomes.samples.reshape(-1, 2)
    # a half without samples in the other half has no ranking: its samples say nothing
    ranked = (importance.count[::-1].T > 0) & (samples > 0)
    samples = np.where(ranked, samples, 0)
    size = samples.sum(1)

    def pooled(sums: Float[np.ndarray, "*rest group"]) -> Float[np.ndarray, "*rest cluster"]:
        total = np.where(ranked, sums.reshape(*sums.shape[:-1], -1, 2), 0.0).sum(-1)
        return np.divide(total, size, out=np.full(total.shape, np.nan), where=size > 0)

    accuracy = pooled(outcomes.correct).swapaxes(1, 2)  # (order, cluster, point)
    margin = pooled(outcomes.margin).swapaxes(1, 2)
    n_rankings = 2 * n_attributions + 1
    curve, control_curves = accuracy[position], accuracy[n_rankings:]
    references = accuracy[[n_attributions, n_attributions + 1 + position]]
    p_value, p_worse = statistics.gap_p_values(curve, control_curves)
    lds = _lds(importance, outcomes, samples, removed, control, n_rankings)
    gap, relative = statistics.gap(curve, control_curves), statistics.relative_gap(curve, control_curves)
    reference_gap = np.stack([statistics.gap(one, control_curves) for one in references])

    smallest = samples.min(1)
    intact = pooled(outcomes.intact_correct)
    return Faithfulness(
        removed=removed,
        samples=samples.T,
        intact_accuracy=intact,
        intact_margin=pooled(outcomes.intact_margin),
        accuracy=curve,
        margin=margin[position],
        random_accuracy=control_curves,
        random_margin=margin[n_rankings:],
        references=REFERENCES,
        reference_accuracy=references,
        gap=gap,
        relative_gap=relative,
        p_value=p_value,
        p_value_worse=p_worse,
        lds=lds,
        reference_gap=reference_gap,
        verdict=tuple(
            verdict(float(p_value[row]), float(p_worse[row]), float(relative[row]), int(smallest[row]))
            for row in range(len(size))
        ),
        overall=_overall(curve, control_curves, references, intact, lds, samples),
    )


def _overall(
    curve: Float[np.ndarray, "cluster point"],
    control: Float[np.ndarray, "draw cluster point"],
    references: Float[np.ndarray, "reference cluster point"],
    intact: Float[np.ndarray, " cluster"],
    lds: Float[np.ndarray, " cluster"],
    samples: Int[np.ndarray, "cluster half"],
) -> Overall:
    """All clusters together: curves weighted by size first, statistics of them after."""
    size = samples.sum(1)

    def together(curves: Float[np.ndarray, "*some cluster point"]) -> Float[np.ndarray, "*some point"]:
        return np.asarray(statistics.weighted_mean(curves.swapaxes(-1, -2), size))

    curve, control, references = together(curve), together(control), together(references)
    p_value, p_worse = map(float, statistics.gap_p_values(curve, control))
    relative = float(statistics.relative_gap(curve, control))
    return Overall(
        intact_accuracy=float(statistics.weighted_mean(intact, size)),
        accuracy=curve,
        random_accuracy=control,
        reference_accuracy=references,
        gap=float(statistics.gap(curve, control)),
        relative_gap=relative,
        p_value=p_value,
        p_value_worse=p_worse,
        lds=float(statistics.weighted_mean(lds, size)),
        verdict=verdict(p_value, p_worse, relative, int(samples.sum(0).min())),
        reference_gap=np.stack([statistics.gap(one, control) for one in references]),
    )


def _lds(
    importance: Importance,
    outcomes: Outcomes,
    samples: Int[np.ndarray, "cluster half"],
    removed: Int[np.ndarray, " point"],
    control: Int[np.ndarray, "draw neuron"],
    n_rankings: int,
) -> Float[np.ndarray, " cluster"]:
    """Linear datamodeling score from the control's masks nearest to 10%, mean of the two halves."""
    point = int(np.abs(removed - LDS_FRACTION * control.shape[1]).argmin())
    masks: Bool[np.ndarray, "draw neuron"] = np.argsort(control, axis=1) < removed[point]
    intact = outcomes.intact_margin.reshape(-1, 2)
    margins = outcomes.margin[n_rankings:, point].reshape(len(control), -1, 2)
    score = np.full(samples.shape, np.nan)
    for cluster, half in zip(*np.nonzero(samples), strict=True):
        effects = (intact[cluster, half] - margins[:, cluster, half]) / samples[cluster, half]
        scores = importance.half_mean[1 - half, cluster]
        score[cluster, half] = statistics.linear_datamodeling_score(scores, masks, effects)
    return np.asarray(statistics.weighted_mean(score, np.ones(2)))
