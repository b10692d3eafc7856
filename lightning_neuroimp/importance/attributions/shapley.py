"""Score neurons by Shapley values of the game whose players are a site's neurons."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.built_in import BuiltInScore
from lightning_neuroimp.importance.attributions.masks import random_ranks
from lightning_neuroimp.importance.attributions.path import MaskedGradient
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch

_FIRST_DRAW = 2**20
"""Number of the first draw: others than those of masked gradients, which must not depend on them."""

_SURROGATE = MaskedGradient(
    points=4, q_max=0.75, intact=False
)  # of larger q_max, networks with norms make far too much


@dataclass(frozen=True)
class Shapley(BuiltInScore):
    """Score neurons by their Shapley values: the effect of removing one, averaged over how many others are gone.

    The game is m(h with a set of neurons at the baseline), at all positions that count. Values are in units of the
    target, and those of all neurons add up to m(h) - m(b), exactly. The estimate is unbiased, and each sample has draws
    of its own, which follow from its number: means over a cluster converge with its size as well, and neither batches
    nor epochs change what is drawn.

    By default neurons are removed one after the other in random orders, each order followed by its reverse, which is
    exact where the target has no interactions of more than two neurons. That takes a pass for each neuron and order.
    With `subsets`, the effects of random subsets and of their complements are measured instead, as many as are asked
    for: each one tells about all neurons, so that a wide layer can be scored with fewer passes than it has neurons. To
    make their variance small, what a surrogate predicts for a subset is subtracted from its effect, and the Shapley
    values of the surrogate are added again. That changes no expectation, whatever the surrogate is. It is the sum of
    masked gradients (4 points up to q_max = .75), plus an equal share for each neuron of what they lack of the effect
    of removing all. At the same number of passes, orders have the smaller variance: `subsets` are for fewer passes.

    Attributes:
        permutations: number of orders, in pairs of an order and its reverse; ignored with `subsets`.
        subsets: number of subsets, in pairs of a subset and its complement; 0: orders are used.
        surrogate: whether masked gradients are used with `subsets`; they need derivatives.

    Raises:
        InvalidArgument: if an option has no valid value.

    References:
        Castro, Gomez and Tejada, "Polynomial calculation of the Shapley value based on sampling", 2009; Mitchell et
        al., "Sampling permutations for Shapley value estimation", 2022, for the reverse orders; Witter, Liu and Musco,
        "Regression-adjusted Monte Carlo estimators for Shapley values and probabilistic values", 2025
        (arXiv 2506.11849), for the surrogate.

    >>> Shapley(permutations=8).name, Shapley(subsets=128).name
    ('shapley(permutations=8)', 'shapley(subsets=128)')
    """

    kind: ClassVar[str] = "shapley"
    permutations: int = 4
    subsets: int = 0
    surrogate: bool = True

    def __post_init__(self) -> None:
        for option, least in (("permutations", 2), ("subsets", 0)):
            number = _validate.integer(f"{option} of Shapley", getattr(self, option), least=least)
            if number % 2:
                raise InvalidArgument(
                    f"{option} of Shapley must be even, as they come in pairs, got {number}; use {number + 1}"
                )
            object.__setattr__(self, option, number)
        object.__setattr__(self, "surrogate", _validate.boolean("surrogate of Shapley", self.surrogate))

    @property
    def cost(self) -> str:
        """Return the passes that it takes at each layer in addition to those that all scores share, in words."""
        if not self.subsets:
            return f"1 forward pass, and {self.permutations} of what follows the layer for each neuron"
        gradients = f", and {_SURROGATE.points} forward and backward passes of that" if self.surrogate else ""
        return f"1 forward pass, and {self.subsets + 1} of what follows the layer{gradients}"

    def __call__(self, batch: SiteBatch, /) -> Float[Tensor, "sample neuron"]:
        """Compute the scores of one site on one batch.

        Args:
            batch: activations of the site.
        """
        everything = torch.ones(1, batch.n_neurons, dtype=torch.bool, device=batch.activation.device)
        whole = batch.suffix.effects(everything)[0]
        if batch.n_neurons == 1:
            return whole[:, None]
        return self._by_subsets(batch, whole) if self.subsets else self._by_orders(batch, whole)

    def _by_orders(self, batch: SiteBatch, whole: Float[Tensor, " sample"]) -> Float[Tensor, "sample neuron"]:
        """Average the effects of removing one neuron after the other, in several orders.

        Args:
            batch: activations of the site.
            whole: effect of removing all neurons.
        """
        n_neurons, total = batch.n_neurons, torch.zeros_like(whole[:, None].expand(-1, batch.n_neurons))
        for pair in range(self.permutations // 2):
            forward = random_ranks(batch, _FIRST_DRAW + pair)
            for ranks in (forward, n_neurons - 1 - forward):
                between = batch.suffix.own_effects(ranks < gone for gone in range(1, n_neurons))
                fallen = torch.cat([torch.zeros_like(whole[None]), between, whole[None]]).T
                total = total + fallen.gather(1, ranks + 1) - fallen.gather(1, ranks)
        return total / self.permutations

    def _by_subsets(self, batch: SiteBatch, whole: Float[Tensor, " sample"]) -> Float[Tensor, "sample neuron"]:
        """Return the surrogate's values plus an estimate of those of what it leaves, from random subsets.

        A subset of k of d neurons is drawn with a probability that depends on k alone, in proportion to
        sqrt(1/k + 1/(d - k)), by which the variance is least where the rests of all sizes are alike.

        Args:
            batch: activations of the site.
            whole: effect of removing all neurons.
        """
        n_neurons, n_pairs = batch.n_neurons, self.subsets // 2
        size_of = np.arange(1, n_neurons)
        chance = np.sqrt(1 / size_of + 1 / (n_neurons - size_of))
        chance /= chance.sum()
        surrogate = torch.zeros_like(whole[:, None].expand(-1, n_neurons))
        if self.surrogate:
            surrogate = _SURROGATE(batch).to(whole.dtype)
        surrogate = surrogate + ((whole - surrogate.sum(1)) / n_neurons)[:, None]
        drawn = list(self._drawn(batch, chance))

        def both() -> Iterator[Tensor]:
            for inside, _ in drawn:
                yield inside
                yield ~inside

        rest = batch.suffix.own_effects(both()).unflatten(0, (n_pairs, 2))
        total = torch.zeros_like(surrogate)
        for (inside, sizes), (gone, left) in zip(drawn, rest, strict=True):
            member = inside.to(total.dtype)
            expected = (surrogate * (2 * member - 1)).sum(1)
            weight = torch.from_numpy(chance).to(total)[sizes - 1]
            share = torch.where(inside, 1 / sizes[:, None], -1 / (n_neurons - sizes)[:, None])
            total += ((gone - left - expected) / weight)[:, None] * share
        return surrogate + total / self.subsets

    def _drawn(self, batch: SiteBatch, chance: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield masks of shape (sample, neuron), and the number of neurons in each sample's mask.

        Args:
            batch: activations of the site.
            chance: of each number of neurons, from 1.
        """
        limits, device = np.cumsum(chance)[:-1], batch.activation.device
        for pair in range(self.subsets // 2):
            seed = batch.seed + crc32(batch.where.key.encode())
            uniform = sample_keys(sample_keys(batch.index, seed).view(np.int64), _FIRST_DRAW - 1 - pair) / 2.0**64
            sizes = torch.from_numpy(np.searchsorted(limits, uniform, side="right") + 1).to(device)
            yield random_ranks(batch, _FIRST_DRAW + pair) < sizes[:, None], sizes
