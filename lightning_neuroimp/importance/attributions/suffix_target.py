"""SuffixTarget: what follows a site, as a function of the site's activations, for one batch."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.suffix.suffix import Suffix, ablate
from lightning_neuroimp.capture.targets import TargetFn, target_values

MAX_LOGITS = 2**20
"""So many logits are kept before their targets are taken."""


class SuffixTarget:
    """The target as a function of the site's activations, at the cost of what follows the site.

    The pass that this takes is made when it is first used.

    Args:
        replayer: of the model and the removal.
        batch: on the host.
        target: the scalar explained per sample.
        numbers: of the samples in the stream, for their donors.
    """

    def __init__(
        self, replayer: SuffixRecorder, batch: Any, target: TargetFn, numbers: Int[np.ndarray, " sample"] | None = None
    ) -> None:
        self._replayer, self._batch, self._target, self._numbers = replayer, batch, target, numbers

    @cached_property
    def _replay(self) -> Suffix:
        return self._replayer.record(self._batch, self._numbers)

    def target(self, activation: Float[Tensor, " sample *rest"]) -> Float[Tensor, " sample"]:
        """Each sample's target with other activations; differentiable where these require a gradient."""
        return target_values(self._target, *self._replay(activation))

    def effects(self, masks: Bool[Tensor, "variant neuron"]) -> Float[Tensor, "variant sample"]:
        """How much each sample's target falls when neurons are removed: m(h) - m(h with them at the baseline).

        Args:
            masks: True where a neuron is removed; each row is removed from all samples.
        """
        with torch.no_grad():
            replay = self._replay
            intact = target_values(self._target, replay.logits, replay.classes)
            left: list[Tensor] = []
            waiting: list[tuple[Tensor, Tensor]] = []

            def take() -> None:
                logits, classes = (torch.cat(part) for part in zip(*waiting, strict=True))
                left.append(target_values(self._target, logits, classes).reshape(len(waiting), -1))
                waiting.clear()

            for mask in masks:
                waiting.append(ablate(replay, self._replayer.removal, mask[None]))
                if len(waiting) * intact.numel() * replay.logits.shape[1] >= MAX_LOGITS:
                    take()
            if waiting:
                take()
            return intact - torch.cat(left)
