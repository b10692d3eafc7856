"""Measure, by the public API, how well scores predict the effects of removal and rank neurons by them.

All scores of a network, clusters and a baseline are computed in one `neuron_importance`, at all layers; in the same
pass a callable attribution removes random sets of neurons, by `SiteBatch.suffix`, and keeps the effects of each sample.
The scores of one half of each cluster are compared with the effects on the other half. A second call, whose target is
whether a sample is right, removes neurons in the order of each score.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neuroimp import (
    Attribution,
    KMeansClusters,
    ProbeSet,
    Results,
    Site,
    SiteBatch,
    linear_datamodeling_score,
    neuron_importance,
)

SHARES = (0.1, 0.3)
"""Shares of the neurons in the random sets."""

FRACTIONS = tuple(np.geomspace(0.03, 0.5, 6))
"""Shares of the neurons that are removed in the order of a score."""

MIN_CELL = 8
"""Fewest samples in a half of a cluster that is judged."""

MIN_GAP = 0.02
"""Shares of a best gap below this one are not reported: accuracy hardly hangs on the layer."""

CEILING = "the halves' own effects"


@dataclass(frozen=True)
class Score:
    """A score that is compared.

    Attributes:
        name: in tables.
        attribution: as `neuron_importance` takes it.
        passes: cost beside the one pass that all scores share, in passes of what follows the layer.
        ranks_only: whether it is an order, which predicts no effects.
        asks_for_norms: whether it is the product where a network has no norm over neurons, and refuses there.
    """

    name: str
    attribution: Any
    passes: str
    ranks_only: bool = False
    asks_for_norms: bool = False

    def of(self, model: nn.Module) -> Any:
        """The attribution for a network."""
        norms = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
        if self.asks_for_norms and not any(isinstance(module, norms) for module in model.modules()):
            return Attribution(self.name, lambda batch: batch.sum_positions(batch.deviation * batch.gradient))
        return self.attribution


@dataclass(frozen=True)
class Setting:
    """A network with layers, clusters and a baseline."""

    model: nn.Module
    x: Tensor
    y: Tensor
    sites: Sequence[str | Site]
    clusters: str
    baseline: str
    seed: int
    n_masks: int = 100
    n_random: int = 12

    def results(self, attribution: Sequence[Any], target: Any = "margin") -> Results:
        """Importance by these attributions, all samples in one batch."""
        probe = ProbeSet.from_batches([(self.x, self.y)], seed=self.seed)
        return neuron_importance(
            self.model,
            probe,
            layers=self.sites,
            clusters=KMeansClusters(3) if self.clusters == "KMeans" else self.clusters,
            attribution=attribution,
            target=target,
            baseline=self.baseline,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Cells:
    """The halves of the clusters, cell 2 c + h for half h of cluster c; -1 where a cluster has too few samples.

    Attributes:
        index: numbers of the samples in the stream, in rising order.
        cell: of each of them.
        n_clusters: number of clusters.
    """

    index: np.ndarray
    cell: np.ndarray
    n_clusters: int

    @classmethod
    def of(cls, results: Results) -> "Cells":
        """The cells of results."""
        order = np.argsort(results.sample_index)
        cluster, half = results.sample_cluster[order], results.sample_half[order]
        cell = np.full(len(order), -1)
        for row, number in enumerate(results.clusters.ids):
            here = cluster == number
            if min((here & (half == 0)).sum(), (here & (half == 1)).sum()) >= MIN_CELL:
                cell[here] = 2 * row + half[here]
        return cls(results.sample_index[order], cell, len(results.clusters.ids))

    def __iter__(self) -> Iterator[int]:
        return iter(np.unique(self.cell[self.cell >= 0]).tolist())

    def rows(self, index: np.ndarray) -> np.ndarray:
        """The cell of each sample of a batch."""
        return self.cell[np.searchsorted(self.index, index)]

    def means(self, values: np.ndarray) -> np.ndarray:
        """Means over the samples of each cell, NaN where there are none: (..., sample) to (..., cell)."""
        found = np.full((*values.shape[:-1], 2 * self.n_clusters), np.nan)
        for cell in self:
            found[..., cell] = values[..., self.cell == cell].mean(-1)
        return found


class Kept:
    """An attribution that keeps what a function makes of each layer's batch, and gives every neuron the score 0.

    All samples are in one batch.
    """

    def __init__(self, name: str, function: Callable[[SiteBatch], np.ndarray]) -> None:
        self.values: dict[str, np.ndarray] = {}  # of the samples by their number in the stream: (..., sample)
        self._function = function
        self.attribution = Attribution(name, self._keep, needs_gradient=False)

    def _keep(self, batch: SiteBatch) -> Tensor:
        """Keep the values of a layer."""
        assert batch.site not in self.values
        self.values[batch.site] = self._function(batch)[..., np.argsort(batch.index)]
        return torch.zeros(len(batch.activation), batch.n_neurons)


def without(batch: SiteBatch, removed: Tensor) -> Tensor:
    """Activations with other neurons removed from each sample: (sample, neuron) True where one is."""
    shape = [len(removed), *[1] * (batch.activation.ndim - 1)]
    shape[batch.axis] = removed.shape[1] * batch.group
    return batch.activation - removed.to(batch.activation).repeat_interleave(batch.group, 1).reshape(shape) * (
        batch.deviation
    )


def random_masks(n_neurons: int, n_masks: int, seed: int) -> np.ndarray:
    """Random sets of each share of the neurons: (share, mask, neuron)."""
    generator = np.random.default_rng([seed, 7])
    sizes = [int(np.ceil(share * n_neurons - 1e-9)) for share in SHARES]
    place = generator.random((len(SHARES), n_masks, n_neurons)).argsort(2).argsort(2)
    return np.stack([place[number] < size for number, size in enumerate(sizes)])


def correlations(scores: np.ndarray, masks: np.ndarray, effects: np.ndarray, cells: Cells) -> list[float]:
    """LDS at each share, over both halves of all clusters; a score that predicts nothing counts as 0.

    Args:
        scores: (cell, neuron).
        masks: (share, mask, neuron).
        effects: (share, mask, cell).
        cells: of the samples; each is judged on the other half of its cluster.
    """
    found: list[list[float]] = [[] for _ in masks]
    for cell in cells:
        for number, mask in enumerate(masks):
            measured = effects[number, :, cell ^ 1]
            if measured.std() < 1e-7 * (1 + np.abs(measured).max()):
                continue  # nothing is there to be predicted
            found[number].append(np.nan_to_num(linear_datamodeling_score(scores[cell], mask, measured)))
    return [float(np.mean(each)) if each else float("nan") for each in found]


def ceilings(effects: np.ndarray, cells: Cells) -> list[float]:
    """Correlation of the effects on both halves, at each share, over all clusters."""
    found = []
    for measured in effects:
        pairs = [(measured[:, cell], measured[:, cell ^ 1]) for cell in cells if cell % 2 == 0]
        found.append([np.corrcoef(*pair)[0, 1] for pair in pairs if min(part.std() for part in pair) > 1e-7])
    return [float(np.mean(each)) if each else float("nan") for each in found]


def accuracies(batch: SiteBatch, cells: Cells, orders: np.ndarray) -> np.ndarray:
    """Whether samples are right without the first neurons of the other half's order: (order, fraction, sample).

    Args:
        batch: whose target is whether a sample is right.
        cells: of the samples.
        orders: (order, cell, neuron).
    """
    rows = cells.rows(batch.index)
    place = np.argsort(orders, axis=2)[:, rows ^ 1]
    found = np.zeros((len(orders), len(FRACTIONS), len(rows)))
    for number, fraction in enumerate(FRACTIONS):
        count = int(np.ceil(fraction * batch.n_neurons))
        for order in range(len(orders)):
            removed = torch.from_numpy((place[order] < count) & (rows >= 0)[:, None])
            found[order, number] = batch.suffix.target(without(batch, removed)).detach().numpy()
    return found


def right(logits: Tensor, classes: Tensor) -> Tensor:
    """1 where the class is predicted, as a target."""
    return (logits.argmax(1) == classes).to(logits.dtype)


def gaps(setting: Setting, cells: Cells, orders: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How far accuracy falls below that of random orders, mean over the fractions, of each of (order, cell, neuron)."""
    every = {}
    for site, own in orders.items():
        generator = np.random.default_rng([setting.seed, crc32(site.encode()), 8])
        every[site] = np.concatenate([own, generator.random((setting.n_random, *own.shape[1:])).argsort(2)])
    curves = Kept("curves", lambda batch: accuracies(batch, cells, every[batch.site]))
    again = Cells.of(setting.results([curves.attribution], right))
    assert np.array_equal(again.cell, cells.cell)
    found = {}
    for site, own in orders.items():
        accuracy = curves.values[site][..., cells.cell >= 0].mean(2)
        found[site] = (accuracy[len(own) :].mean(0) - accuracy[: len(own)]).mean(1)
    return found


def measure(setting: Setting, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Rows of one setting, one per layer and score: site, score, passes, lds10, lds30, gap, share.

    Args:
        setting: a network with layers, clusters and a baseline.
        scores: what is compared.
    """
    masks: dict[str, np.ndarray] = {}

    def effects_of(batch: SiteBatch) -> np.ndarray:
        chosen = random_masks(batch.n_neurons, setting.n_masks, setting.seed + crc32(batch.site.encode()))
        masks[batch.site] = chosen
        found = batch.suffix.effects(torch.from_numpy(chosen).flatten(0, 1))
        return found.reshape(*chosen.shape[:2], -1).numpy()

    kept = Kept("effects", effects_of)
    results = setting.results([*(score.of(setting.model) for score in scores), kept.attribution])
    cells = Cells.of(results)
    by_cell = {}
    for site in results.sites:
        found = [each.half_mean for each in results.importances if each.site == site][:-1]  # (half, cluster, neuron)
        by_cell[site] = np.nan_to_num(
            np.stack([each.transpose(1, 0, 2).reshape(2 * cells.n_clusters, -1) for each in found])
        )
    gap = gaps(setting, cells, {site: np.argsort(-own, axis=2, kind="stable") for site, own in by_cell.items()})
    rows: list[dict[str, Any]] = []
    nan = float("nan")
    for site in results.sites:
        best, means = gap[site].max(), cells.means(kept.values[site])
        share = gap[site] / best if best >= MIN_GAP else np.full(len(scores), nan)
        for number, score in enumerate(scores):
            ranks = score.ranks_only
            lds = (nan, nan) if ranks else correlations(by_cell[site][number], masks[site], means, cells)
            rows.append(_row(site, score.name, score.passes, *lds, gap[site][number], share[number]))
        rows.append(_row(site, CEILING, "", *ceilings(means, cells), nan, nan))
    return rows


def _row(site: str, score: str, passes: str, lds10: float, lds30: float, gap: float, share: float) -> dict[str, Any]:
    """One row, numbers rounded."""
    numbers = {"lds10": lds10, "lds30": lds30, "gap": gap, "share": share}
    rounded = {name: round(float(value), 4) for name, value in numbers.items()}
    return {"site": site, "score": score, "passes": passes} | rounded
