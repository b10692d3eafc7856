"""Suffix: what follows a site, to be run again with other activations there, for one batch."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.batches.structure import to_device
from lightning_neuroimp.capture.forward import Outcome, model_device
from lightning_neuroimp.capture.removal import BatchRemoval, remove
from lightning_neuroimp.capture.suffix.tape import Tape, TapeBroken
from lightning_neuroimp.site import Removal

if TYPE_CHECKING:
    from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder


class Suffix:
    """One batch, to be run again from the site on, until the model runs on something else: it may share memory with it.

    Attributes:
        activation: of the site, samples first; None where this batch does not reach the site.
        logits: with all neurons.
        classes: those that are explained; of the whole model, whatever is removed later.
    """

    def __init__(
        self,
        replayer: "SuffixRecorder",
        batch: Any,
        activation: Float[Tensor, "sample ..."] | None,
        outcome: Outcome,
        tape: Tape | None,
        given: list[tuple[Tensor, Tensor | None, np.ndarray]] | None = None,
    ) -> None:
        self._replayer, self._batch, self._tape = replayer, batch, tape
        self.activation, self.logits, self.classes = activation, outcome.logits.detach(), outcome.classes
        self._tokens, self._given = outcome.tokens, given
        self._copy: Any = None

    @cached_property
    def placed(self) -> BatchRemoval:
        """At which positions neurons are removed, and what other samples donate."""
        assert self.activation is not None
        return self._replayer.place(self.activation, self._tokens, self._given)

    def removed(self, mask: Bool[Tensor, "_ neuron"]) -> Tensor:
        """The activations without the masked neurons."""
        assert self.activation is not None
        return remove(self.activation, self._replayer.removal, mask, self.placed)

    @property
    def tape(self) -> Tape | None:
        """Runs what follows the site; None where each ablation is a full pass."""
        return self._tape if self._replayer.reason is None else None

    @property
    def differentiable(self) -> bool:
        """Whether gradients flow through it as through a full pass (found out on the first batch)."""
        return self.tape is not None and self._replayer.differentiable(self)

    def __call__(
        self, activation: Float[Tensor, "sample ..."]
    ) -> tuple[Float[Tensor, "sample class"], Int[Tensor, " sample"]]:
        """Logits and targets with other activations at the site, of the same shape.

        Where the activations require a gradient, the logits carry it.
        """
        if self.activation is None:
            return self.logits, self.classes
        like = self.activation
        if activation.shape != like.shape:
            raise ValueError(
                f"activations must have the shape of layer {self._replayer.removal.site!r}'s, {tuple(like.shape)}, got "
                f"{tuple(activation.shape)}"
            )
        if activation.dtype != like.dtype or activation.stride() != like.stride():
            activation = torch.empty_like(like).copy_(activation)
        gradients = torch.is_grad_enabled() and activation.requires_grad
        tape = self.tape
        if tape is not None and gradients and not self.differentiable:
            tape = None
        copied = tape is not None and (gradients or tape.overwrites)
        return self.either(
            tape, lambda: activation.clone() if copied else activation, lambda output: activation.clone()
        )

    def either(
        self, tape: Tape | None, activation: Callable[[], Tensor], replace: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What the tape gives; else, and without one, what a full pass gives."""
        if tape is not None:
            try:
                (logits,) = tape.run(activation())  # without a name, so that the run can let go of it
                return logits, self.classes
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                outcome = self.full_pass(replace)  # first: it may fail in the same way
                self._replayer.give_up(reason_of(error))
                return outcome
        return self.full_pass(replace)

    def full_pass(self, replace: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """What the whole model gives, with the site's output replaced by a hook."""
        device = model_device(self._replayer.model)
        if self._copy is None:
            self._copy = to_device(self._batch, device)  # once; then each pass gets a copy of its own
        with self._replayer.hooked(replace):
            return Outcome(*self._replayer.forward(to_device(self._copy, device))).logits, self.classes


def ablate(
    replay: Suffix, removal: Removal, mask: Bool[Tensor, "_ neuron"]
) -> tuple[Float[Tensor, "sample class"], Int[Tensor, " sample"]]:
    """Logits and classes with neurons removed.

    Args:
        replay: of a batch.
        removal: what it was recorded for.
        mask: True where a neuron is removed; one row per sample, or one for all.
    """
    activation = replay.activation
    if activation is None:
        return replay.logits, replay.classes
    return replay.either(
        replay.tape, lambda: replay.removed(mask), lambda output: remove(output, removal, mask, replay.placed)
    )


def reason_of(error: Exception) -> str:
    return str(error) if isinstance(error, TapeBroken) else f"replaying failed ({type(error).__name__}: {error})"
