"""Choose donors: for the baseline "resample", the sample whose activations stand in for those of another.

Every sample has one donor, for all neurons, sites and passes: the next one in an order of fixed pseudo-random keys, so
that no sample is its own donor. With several processes each takes donors among its own samples.

References:
    Resampled baselines: Chan et al., "Causal scrubbing", 2022.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.batches.numbers import rows_of, sample_keys
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.capture.positions import token_axis
from lightning_neuroimp.errors import InvalidArgument

_SEED = 0x5EED  # other keys than those by which samples are drawn

DonorActivations = tuple[Tensor, Tensor | None, np.ndarray]
"""Activations of a batch of donors, which of their positions count (None: all), and which samples they are for."""


class Donors:
    """Assign each sample of a probe set another sample as its donor; each sample is the donor of one.

    Args:
        probe: all samples of this process.
        seed: another seed gives other donors.
        batch_size: number of samples in our passes; None: that of the loader.

    Raises:
        InvalidArgument: if there is only one sample.
    """

    def __init__(self, probe: ProbeSet, seed: int, batch_size: int | None = None) -> None:
        index = probe.index
        if len(index) == 1:
            raise InvalidArgument(
                "baseline='resample' takes another sample's activations, but the probe set holds only one"
            )
        self._probe, self._batch_size = probe, batch_size
        self._order = index[np.argsort(sample_keys(index, seed + _SEED), kind="stable")]
        self._next = np.roll(self._order, -1)

    def of(self, numbers: Int[np.ndarray, " sample"]) -> Int[np.ndarray, " sample"]:
        """Return the number of each sample's donor.

        Args:
            numbers: of samples in the probe set.

        Raises:
            KeyError: if a sample is not in the probe set.
        """
        return self._next[rows_of(self._order, numbers)]

    def batches(self, numbers: Int[np.ndarray, " sample"]) -> Iterator[tuple[Any, Int[np.ndarray, " donor"]]]:
        """Yield the donors of some samples in batches on the host, and which of the samples each donor is for.

        A batch may hold a copy of its only sample, as those of `Subject.passes`.

        Args:
            numbers: of samples in the probe set, each once.
        """
        donors = self.of(numbers)
        copies = self._probe.copied(self._batch_size)
        size = max(2, len(numbers)) if copies else len(numbers)
        for batch, index in self._probe.select(donors).batches(size, copies=copies):
            yield batch, rows_of(donors, index)


def donate(
    activation: Float[Tensor, "sample ..."],
    axis: int,
    positions: Bool[Tensor, " sample *position"] | None,
    donor_activations: Sequence[DonorActivations],
) -> Float[Tensor, "sample ..."]:
    """Return what takes the place of each sample's activations, in the same shape.

    Where donors have other tokens, the n-th token of a sample that counts gets the n-th one of its donor, which starts
    again from the first one where it has fewer. So padding does not matter.

    Args:
        activation: is replaced; samples first.
        axis: axis of its neurons.
        positions: which of its positions count; None: all.
        donor_activations: of all donors, in any number of batches.

    Raises:
        InvalidArgument: if the donors' activations have other sizes along several axes, or there are several axes of
            positions, some of which are padding.
    """
    result = activation.clone()
    where = token_axis(activation.ndim, axis)
    for donated, counted, places in donor_activations:
        rows = torch.from_numpy(places).to(activation.device)
        if positions is None and counted is None and donated.shape[1:] == activation.shape[1:]:
            result[rows] = donated
            continue
        if where is None and donated.shape[1:] == activation.shape[1:]:
            raise InvalidArgument(
                f"baseline='resample' needs one axis of positions where tokens are padded, got activations of shape "
                f"{tuple(activation.shape)}; use baseline='mean'"
            )
        if where is None or donated.ndim != activation.ndim or donated.shape[axis] != activation.shape[axis]:
            raise InvalidArgument(
                f"baseline='resample' needs activations of one size, got {tuple(activation.shape[1:])} and "
                f"{tuple(donated.shape[1:])} for single samples; use baseline='mean', or inputs of one size"
            )
        source, own = donated.movedim(where, 1), activation[rows].movedim(where, 1)  # samples, tokens, neurons
        mine = _counted(own, None if positions is None else positions[rows])
        tokens = _nth_token(mine, _counted(source, counted))
        filled = source.gather(1, tokens.clamp_min(0)[:, :, None].expand_as(own))
        result[rows] = torch.where((mine & (tokens >= 0))[:, :, None], filled, own).movedim(1, where)
    return result


def _counted(values: Tensor, positions: Tensor | None) -> Bool[Tensor, "sample token"]:
    """Return which tokens of (sample, token, neuron) activations count."""
    if positions is None:
        return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    return positions


def _nth_token(
    counted: Bool[Tensor, "sample token"], donor_counted: Bool[Tensor, "sample donor_token"]
) -> Int[Tensor, "sample token"]:
    """Return which token of the donor goes to each token that counts, in order and over again; -1 without any."""
    n_tokens = donor_counted.sum(1, keepdim=True)
    first = torch.argsort((~donor_counted).to(torch.int8), dim=1, stable=True)  # those that count come first
    number = (counted.cumsum(1) - 1).clamp_min(0) % n_tokens.clamp_min(1)
    return first.gather(1, number).where(n_tokens > 0, -1)
