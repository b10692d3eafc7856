"""Find the optimal baseline: one vector per site that keeps the loss least when random neurons are set to it.

References:
    Li and Janson, "Optimal ablation for interpretability", 2024 (the constant that minimises the expected loss; here
    one for all neurons of a site together, under random removals of any number of them).
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.batches.structure import to_numpy
from lightning_neuroimp.capture.gradients import differentiate, no_path
from lightning_neuroimp.capture.positions import sum_positions
from lightning_neuroimp.capture.removal import remove
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.suffix.suffix import Suffix
from lightning_neuroimp.capture.targets import log_probability
from lightning_neuroimp.capture.trial import Trial
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Removal, Site
from lightning_neuroimp.study.survey import Survey

STEPS = 32
"""Number of steps, each with one gradient over the whole probe set."""

RATE = 0.1
"""Length of the first steps, in standard deviations of each channel; it falls linearly to 0.

With these two the loss on held-out samples is within 1.1% (at most 3.9%) of what 200 steps reach, on 16 sites of digits
nets (ReLU, tanh, LayerNorm, convolutions); with half the steps or twice the length within 1.7 to 4% (7.7 to 9.4%).
"""

COST = f"{STEPS} forward passes, and {STEPS} forward and backward passes of what follows the layer"
"""What it takes at each site, in words."""

_DECAY = (0.9, 0.99)  # of the averages of gradients and their squares
_LEAST = 1e-6  # nats per standard deviation: a channel whose gradient is below that stays where it is


@dataclass(eq=False)
class _Optimum:
    """Hold the state of one site's optimisation, in units of each channel's standard deviation.

    Attributes:
        removal: of the site, with the mean as its baseline.
        spread: standard deviation of each channel; constant channels stay at their mean.
        recorder: runs what follows the site.
        moved: distance from the mean.
        average: moving averages of the gradients and of their squares.
    """

    removal: Removal
    spread: Float[np.ndarray, " channel"]
    recorder: SuffixRecorder
    moved: Float[np.ndarray, " channel"] = field(init=False)
    average: Float[np.ndarray, "2 channel"] = field(init=False)

    def __post_init__(self) -> None:
        self.moved = np.zeros(len(self.spread))
        self.average = np.zeros((2, len(self.spread)))

    @property
    def value(self) -> Float[np.ndarray, " channel"]:
        """Return the baseline so far."""
        return self.removal.baseline_value + self.spread * self.moved

    def step(self, number: int, gradient: Float[np.ndarray, " channel"]) -> None:
        """Take one step of Adam.

        Args:
            number: of the step, from 0.
            gradient: of the mean loss with respect to the baseline.
        """
        scaled = gradient * self.spread
        for row, (decay, part) in enumerate(zip(_DECAY, (scaled, scaled**2), strict=True)):
            self.average[row] = decay * self.average[row] + (1 - decay) * part
        first, second = (
            average / (1 - decay ** (number + 1)) for average, decay in zip(self.average, _DECAY, strict=True)
        )
        self.moved = self.moved - RATE * (1 - number / STEPS) * first / (np.sqrt(second) + _LEAST)


class OptimalBaselines:
    """Minimise the cross entropy of the explained classes under random removals over one vector per site.

    It begins at the mean. In each step every sample of the probe set has its own random neurons removed, at a rate that
    is uniform between 0 and 1, and Adam moves each channel by up to `RATE` of its standard deviation. Removals follow
    from the seed and the samples' numbers, and gradients are summed over processes: the same on any number of them.
    Samples without a label, and those whose outputs are not finite, do not count.

    Takes, at each site and step, one forward pass over the probe set, and one forward and backward pass of what follows
    the site.

    Args:
        subject: model and samples.
        sites: the sites by their text.
        trial: knows the axes of the sites' neurons.
        surveyed: means and standard deviations of the sites' channels.
        target_class: class whose loss is minimised.
        seed: of the random removals.
    """

    def __init__(
        self,
        subject: Subject,
        sites: Mapping[str, Site],
        trial: Trial,
        surveyed: Survey,
        target_class: str | int,
        seed: int,
    ) -> None:
        self._subject, self._seed = subject, seed
        self._samples = surveyed.samples
        self._counted = surveyed.samples.finite & ((surveyed.samples.label >= 0) | (target_class != "label"))
        self._optional = {name for name, site in sites.items() if site.optional}
        self._optima: dict[str, _Optimum] = {}
        for name, mean in surveyed.means.items():
            where = replace(sites[name], optional=False)
            removal = Removal(where, trial.axes[name], "optimal", mean, "log_probability", target_class)
            self._optima[name] = _Optimum(removal, surveyed.spreads[name], subject.recorder(removal))

    def find(self) -> dict[str, np.ndarray]:
        """Return the optimal value of each channel, by site; the mean where an optional site has no gradient.

        Raises:
            InvalidArgument: if no gradient leads from the loss to a site that is not optional.
        """
        start = time.perf_counter()
        with self._subject.progress("optimal baseline", STEPS * self._subject.count_batches()) as tick:
            for step in range(STEPS):
                self._step(step, tick)
        self._subject.seconds["optimal baseline"] = time.perf_counter() - start
        return {name: optimum.value for name, optimum in self._optima.items()}

    def _step(self, step: int, tick: Any) -> None:
        """Compute the gradients of all sites over all samples of all processes, and take one step along each."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        removals = {name: replace(one.removal, baseline_value=one.value) for name, one in self._optima.items()}
        for batch, index in self._subject.passes():
            counted = torch.from_numpy(self._counted[self._samples.rows(index)]).to(self._subject.device)
            for name, optimum in self._optima.items():
                suffix = optimum.recorder.record(batch, index)
                found = self._gradient(suffix, removals[name], self._mask(removals[name], index, step))
                if found is not None:
                    used = counted & found.isfinite().all(1)
                    sums[name] = sums.get(name, 0) + found.where(used[:, None], 0).sum(0)
                    counts[name] = counts.get(name, 0) + used.sum()
            tick()
        mine = {name: (to_numpy(total).astype(np.float64), int(counts[name])) for name, total in sums.items()}
        shares = self._subject.processes.gather(mine)
        for name, optimum in self._optima.items():
            found_here = [share[name] for share in shares if name in share]
            if not found_here and name not in self._optional:
                raise InvalidArgument(f"baseline='optimal' needs a gradient: {no_path(name).split(';')[0]}")
            count = sum(part[1] for part in found_here)
            if count:
                optimum.step(step, np.sum([part[0] for part in found_here], axis=0) / count)

    def _gradient(
        self, suffix: Suffix, removal: Removal, mask: Bool[Tensor, "sample neuron"]
    ) -> Float[Tensor, "sample channel"] | None:
        """Return the gradient of each sample's loss with respect to the baseline; None if there is none.

        Args:
            suffix: of one batch.
            removal: with the baseline so far.
            mask: True where a neuron is removed.
        """
        if suffix.activation is None:
            return None
        mask = mask.to(suffix.activation.device)
        with torch.enable_grad():
            point = remove(suffix.activation, removal, mask, suffix.batch_removal).requires_grad_()
            logits, classes = suffix(point)
            loss = -log_probability(logits, classes).sum()
            found = differentiate(loss, [point])[0] if loss.requires_grad else None
        if found is None:
            return None
        summed = sum_positions(
            found.to(torch.promote_types(found.dtype, torch.float32)), removal.axis, suffix.batch_removal.positions
        )
        gradient = summed * mask.repeat_interleave(removal.where.group, 1)
        return gradient.double() if gradient.device.type != "mps" else gradient

    def _mask(self, removal: Removal, index: Int[np.ndarray, " sample"], step: int) -> Bool[Tensor, "sample neuron"]:
        """Draw which neurons are removed from each sample in a step, whatever samples are in the batch with it."""
        n_neurons = removal.n_neurons
        sample = sample_keys(index, self._seed + crc32(removal.where.key.encode()))[:, None]
        pairs = (sample + np.arange(n_neurons + 1, dtype=np.uint64)).view(np.int64)
        uniform = sample_keys(pairs.reshape(-1), step).reshape(len(index), n_neurons + 1) / 2.0**64
        return torch.from_numpy(uniform[:, :-1] < uniform[:, -1:])
