"""Run what follows a site again, with other activations there, for one batch."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.batches.structure import to_device
from lightning_neuroimp.capture.donors import DonorActivations, donate
from lightning_neuroimp.capture.forward import Outcome
from lightning_neuroimp.capture.positions import chosen_positions
from lightning_neuroimp.capture.random_states import States
from lightning_neuroimp.capture.removal import BatchRemoval, remove
from lightning_neuroimp.capture.suffix.passes import Replace, SitePasses
from lightning_neuroimp.capture.suffix.tape import Tape
from lightning_neuroimp.capture.suffix.trust import Trust, alike, random_mask, reason_of
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Removal


@dataclass(frozen=True, eq=False)
class RecordedPass:
    """Hold what one forward pass over a batch has left.

    Attributes:
        batch: on the host.
        activation: at the site, samples first; None if the pass did not reach it.
        outcome: with all neurons.
        tape: leads from the activations to the logits; None if it could not be recorded.
        donor_activations: of the samples' donors; None for baselines other than "resample".
        states: of the random generators before the pass; None if it drew no random numbers.
        drawn: names of the generators that it drew from.
        n_samples: number of samples in the batch, where rows after them are copies; None: all rows are.
    """

    batch: Any
    activation: Float[Tensor, "sample ..."] | None
    outcome: Outcome
    tape: Tape | None = None
    donor_activations: list[DonorActivations] | None = None
    states: States | None = None
    drawn: frozenset[str] = frozenset()
    n_samples: int | None = None


class Suffix:
    """Run one batch again from the site on, or in full passes where there is no tape that can be trusted.

    It is valid until the model runs on something else, with which it may share memory.

    Example:
        suffix = recorder.record(batch)
        logits, classes = suffix.ablated(mask)
        logits, classes = suffix(suffix.activation * 0.5)

    Attributes:
        activation: at the site, samples first; None if this batch does not reach the site.
        logits: with all neurons.
        classes: class of each sample whose target is explained; of the whole model, whatever is removed later.

    Args:
        removal: the site and the baseline.
        passes: makes full passes.
        trust: shared by all suffixes of the site.
        recorded: the pass that is run again.
    """

    def __init__(self, removal: Removal, passes: SitePasses, trust: Trust, recorded: RecordedPass) -> None:
        self.activation = recorded.activation
        self.logits, self.classes = recorded.outcome.logits.detach(), recorded.outcome.classes
        self._removal, self._passes, self._trust, self._recorded = removal, passes, trust, recorded
        self._device_batch: Any = None

    @property
    def tape(self) -> Tape | None:
        """Return the tape of what follows the site; None if each ablation is a full pass."""
        return self._recorded.tape if self._trust.reason is None else None

    @cached_property
    def batch_removal(self) -> BatchRemoval:
        """Return at which positions neurons are removed, and what other samples donate."""
        assert self.activation is not None
        where, axis, donors = self._removal.where, self._removal.axis, self._recorded.donor_activations
        positions = chosen_positions(where, self.activation, axis, self._recorded.outcome.tokens)
        return BatchRemoval(positions, None if donors is None else donate(self.activation, axis, positions, donors))

    def removed(self, mask: Bool[Tensor, "_ neuron"]) -> Float[Tensor, "sample ..."]:
        """Return the activations without the masked neurons.

        Args:
            mask: True where a neuron is removed; one row per sample, or one for all.
        """
        assert self.activation is not None
        return remove(self.activation, self._removal, mask, self.batch_removal)

    def ablated(self, mask: Bool[Tensor, "_ neuron"]) -> tuple[Float[Tensor, "sample class"], Int[Tensor, " sample"]]:
        """Return logits and classes with neurons removed.

        Args:
            mask: True where a neuron is removed; one row per sample, or one for all.
        """
        if self.activation is None:
            return self.logits, self.classes
        return self._run(self.tape, lambda: self.removed(mask), self._removing(mask))

    def _removing(self, mask: Bool[Tensor, "_ neuron"]) -> Replace:
        """Return what a hook does to the site's activations to remove the masked neurons."""
        return lambda activation: remove(activation, self._removal, mask, self.batch_removal)

    def __call__(
        self, activation: Float[Tensor, "sample ..."]
    ) -> tuple[Float[Tensor, "sample class"], Int[Tensor, " sample"]]:
        """Return logits and classes with other activations at the site.

        Args:
            activation: of the site's shape; where it requires a gradient, the logits carry it.

        Raises:
            InvalidArgument: if the shape is another one.
        """
        if self.activation is None:
            return self.logits, self.classes
        like = self.activation
        if activation.shape != like.shape:
            raise InvalidArgument(
                f"activations must have the shape of layer {self._removal.site!r}'s, {tuple(like.shape)}, got "
                f"{tuple(activation.shape)}"
            )
        if activation.dtype != like.dtype or activation.stride() != like.stride():
            activation = torch.empty_like(like).copy_(activation)
        gradients = torch.is_grad_enabled() and activation.requires_grad
        tape = self.tape
        if tape is not None and gradients and not self.differentiable:
            tape = None
        copied = tape is not None and (gradients or tape.overwrites)
        return self._run(tape, lambda: activation.clone() if copied else activation, lambda output: activation.clone())

    @property
    def differentiable(self) -> bool:
        """Tell whether gradients flow through the tape as through a full pass (found out on the first batch)."""
        tape = self.tape
        if tape is None:
            return False
        assert self.activation is not None
        return self._trust.try_gradients(
            tape,
            self.removed(random_mask(self.activation, self._removal.n_neurons)),
            lambda leaf: tape.run(leaf.clone())[0],
            lambda leaf: self._full_pass(lambda output: leaf.clone())[0],
        )

    @property
    def drawn(self) -> frozenset[str]:
        """Return the names of the random generators that the recorded pass drew from."""
        return self._recorded.drawn

    def repeats(self, python_seed: int | None = None) -> bool:
        """Tell whether another full pass gives the same logits, from the same random state.

        Args:
            python_seed: seed of Python's generator in that pass; None: its state is the same as well.
        """
        states = self._recorded.states
        if python_seed is not None and states is not None:
            states = {**states, "random": (b"", partial(random.seed, python_seed))}
        if self.activation is None:
            replace: Replace = lambda output: output  # noqa: E731
        else:  # laid out in memory as in the recorded pass
            replace = self._removing(
                torch.zeros(1, self._removal.n_neurons, dtype=torch.bool, device=self.activation.device)
            )
        return alike(self._full_pass(replace, states)[0], self.logits)

    def try_tape(self) -> str | None:
        """Return why the tape, of a way through the model that is new, cannot be trusted; None if it can."""
        tape = self.tape
        if tape is None or self.activation is None or self._trust.knows(tape):
            return None
        mask = random_mask(self.activation, self._removal.n_neurons)
        full_pass = lambda: self._full_pass(self._removing(mask))[0]  # noqa: E731
        return self._trust.try_values(tape, lambda: self.removed(mask), full_pass, self.logits)

    def _run(self, tape: Tape | None, activation: Callable[[], Tensor], replace: Replace) -> tuple[Tensor, Tensor]:
        """Run the tape; make a full pass if there is none, or if it fails, and from then on.

        Args:
            tape: None: a full pass is made.
            activation: makes what the tape is run on, so that the run holds the only reference to it.
            replace: does the same in a full pass.
        """
        if tape is None:
            return self._full_pass(replace)
        try:
            return tape.run(activation())[0], self.classes
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            outcome = self._full_pass(replace)  # first: it may fail in the same way
            self._trust.give_up(reason_of(error))
            return outcome

    def _full_pass(self, replace: Replace, states: States | None = None) -> tuple[Tensor, Tensor]:
        """Return what the whole model gives with the site's activations replaced by a hook.

        Args:
            replace: makes the other activations.
            states: of the random generators, from which it begins; None: as the recorded pass did.
        """
        if self._device_batch is None:
            self._device_batch = to_device(self._recorded.batch, self._passes.device)  # once for all passes
        states = self._recorded.states if states is None else states
        n_samples = self._recorded.n_samples
        outcome = self._passes.run(self._device_batch, replace, states=states, n_samples=n_samples)
        return outcome.logits, self.classes
