"""Compute the target as a function of a site's activations, for one batch."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.capture.gradients import despite_changes, differentiate
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.suffix.suffix import Suffix
from lightning_neuroimp.capture.targets import Target

MAX_LOGITS = 2**20
"""Upper bound on the number of logits that are kept before their targets are computed."""


class SuffixTarget:
    """Compute the target from other activations at a site, by running what follows the site.

    The forward pass that records what follows is made on first use.

    Attributes:
        index: numbers of the batch's samples in the stream.

    Args:
        recorder: of the model and the removal.
        batch: the batch on the host.
        target: the scalar that is explained per sample.
        index: numbers of the samples in the stream, for their donors.
    """

    def __init__(self, recorder: SuffixRecorder, batch: Any, target: Target, index: Int[np.ndarray, " sample"]) -> None:
        self._recorder, self._batch, self._target, self.index = recorder, batch, target, index

    @cached_property
    def _suffix(self) -> Suffix:
        """Record what follows the site, once."""
        return self._recorder.record(self._batch, self.index)

    def target(self, activation: Float[Tensor, " sample *rest"]) -> Float[Tensor, " sample"]:
        """Return each sample's target with other activations; differentiable if these require a gradient.

        Args:
            activation: other activations, of the shape of those at the site.
        """
        return self._target.values(*self._suffix(activation))

    def gradient(self, activation: Float[Tensor, " sample *rest"]) -> Float[Tensor, " sample *rest"]:
        """Return the gradient of each sample's own target at other activations.

        It is zero where the target does not depend on them; the recorder notes whether it ever does.

        Args:
            activation: other activations, of the shape of those at the site.

        Raises:
            InvalidArgument: if an operation after the site has no derivative.
        """
        point, _ = activation.detach().requires_grad_(), self._suffix  # recorded before gradients are enabled

        def compute() -> Tensor | None:
            with torch.enable_grad():
                total = self.target(point).sum()
                return differentiate(total, [point])[0] if total.requires_grad else None

        found = despite_changes(compute, self._recorder.changed)
        self.note_gradient(found)
        return torch.zeros_like(point) if found is None else found

    def note_gradient(self, gradient: Float[Tensor, " sample *rest"] | None) -> None:
        """Note that a gradient at the site was asked for, so that one that never leads there is told.

        Args:
            gradient: None: none leads there.
        """
        self._recorder.gradient_asked = True
        if gradient is not None:
            self._recorder.note_gradient(gradient)

    def effects(self, masks: Bool[Tensor, "variant neuron"]) -> Float[Tensor, "variant sample"]:
        """Return how much each sample's target falls when neurons are removed: m(h) - m(h with them at the baseline).

        Args:
            masks: True where a neuron is removed; each row is removed from all samples.
        """
        return self.own_effects(mask[None] for mask in masks)

    def own_effects(self, masks: Iterable[Bool[Tensor, "_ neuron"]]) -> Float[Tensor, "variant sample"]:
        """Return how much each sample's target falls when other neurons are removed from each sample.

        Args:
            masks: for each variant, True where a neuron is removed, in one row per sample (or one row for all).
        """
        with torch.no_grad():
            suffix = self._suffix
            intact = self._target.values(suffix.logits, suffix.classes)
            left: list[Tensor] = []
            waiting: list[tuple[Tensor, Tensor]] = []

            def take() -> None:
                """Compute the targets of the waiting logits and let go of these."""
                logits, classes = (torch.cat(part) for part in zip(*waiting, strict=True))
                left.append(self._target.values(logits, classes).reshape(len(waiting), -1))
                waiting.clear()

            for mask in masks:
                waiting.append(suffix.ablated(mask))
                if len(waiting) * intact.numel() * suffix.logits.shape[1] >= MAX_LOGITS:
                    take()
            if waiting:
                take()
            return intact - torch.cat(left)
