"""Donors: for the baseline "resample", which sample's activations stand in for which.

Every sample has one donor, for all neurons, sites and passes: the next one in an order of fixed pseudo-random keys, so
that nobody is its own donor. With several processes each takes donors among its own samples.

Source of resampled baselines: Chan et al., "Causal scrubbing", 2022.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.capture.positions import token_axis

_SEED = 0x5EED


class Donors:
    """A derangement of a probe set.

    Args:
        probe: all samples of this process.
        seed: another seed gives other donors.

    Raises:
        ValueError: if there is only one sample.
    """

    def __init__(self, probe: ProbeSet, seed: int) -> None:
        index = probe.index
        if len(index) == 1:
            raise ValueError("baseline='resample' takes another sample's activations, but the probe set holds only one")
        order = index[np.argsort(sample_keys(index, seed + _SEED), kind="stable")]
        self.of = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
        self._probe = probe

    def batches(self, numbers: Int[np.ndarray, " sample"]) -> Iterator[tuple[Any, Int[np.ndarray, " donor"]]]:
        """The donors of some samples, in batches that can be run, and for which of the samples each one is."""
        place_of = {self.of[number]: place for place, number in enumerate(numbers.tolist())}
        for batch, index in self._probe.select(np.array(list(place_of), np.int64)).batches(len(numbers)):
            yield batch, np.array([place_of[number] for number in index.tolist()], np.int64)


def donate(
    activation: Float[Tensor, "sample ..."],
    axis: int,
    positions: Bool[Tensor, "sample token"] | None,
    given: Sequence[tuple[Tensor, Tensor | None, Int[np.ndarray, " donor"]]],
) -> Float[Tensor, "sample ..."]:
    """What is put in place of each sample's activations, of the same shape.

    Where donors have other tokens, a sample's n-th token that counts gets the donor's n-th one, over again from the
    first one where it has fewer. So padding does not matter.

    Args:
        activation: that is replaced.
        axis: of its neurons.
        positions: which of its positions count; None: all.
        given: the donors' activations, which of their positions count, and for which samples they are.

    Raises:
        ValueError: if the donors' activations have other sizes along several axes.
    """
    result = activation.clone()
    tokens = token_axis(activation.ndim, axis)
    for theirs, counted, places in given:
        rows = torch.from_numpy(places).to(activation.device)
        if positions is None and counted is None and theirs.shape[1:] == activation.shape[1:]:
            result[rows] = theirs
            continue
        if tokens is None or theirs.ndim != activation.ndim or theirs.shape[axis] != activation.shape[axis]:
            raise ValueError(
                f"baseline='resample' needs activations of one size, got {tuple(activation.shape[1:])} and "
                f"{tuple(theirs.shape[1:])} for single samples; use baseline='mean', or inputs of one size"
            )
        source, mine = theirs.movedim(tokens, 1), result.movedim(tokens, 1)  # views: samples, tokens, neurons
        for donor, place in enumerate(places.tolist()):
            to = _counting(mine, positions, place)
            of = _counting(source, counted, donor)
            if len(to) and len(of):
                mine[place, to] = source[donor, of[torch.arange(len(to), device=of.device) % len(of)]]
    return result


def _counting(values: Tensor, positions: Tensor | None, row: int) -> Tensor:
    if positions is None:
        return torch.arange(values.shape[1], device=values.device)
    return positions[row].nonzero()[:, 0]
