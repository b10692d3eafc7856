"""Record forward passes over batches, to run what follows one site again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from lightning_neuroimp.capture.donors import DonorActivations, Donors
from lightning_neuroimp.capture.positions import chosen_positions
from lightning_neuroimp.capture.random_states import States, restore
from lightning_neuroimp.capture.removal import remove
from lightning_neuroimp.capture.suffix.passes import Forward, SitePasses
from lightning_neuroimp.capture.suffix.randomness import RandomSources, drawn_from
from lightning_neuroimp.capture.suffix.suffix import RecordedPass, Suffix
from lightning_neuroimp.capture.suffix.tracing import TapeRecorder
from lightning_neuroimp.capture.suffix.trust import CHANGING, DIFFERS, RANDOM, Trust
from lightning_neuroimp.site import Removal

_PYTHON = frozenset({"random"})
_FIRST_TRIALS, _MOST_TRIALS = 4, 12
"""Numbers of passes over the first batch, and over all, that tell whether Python's random numbers change the logits."""


class SuffixRecorder:
    """Record forward passes over batches, to ablate neurons at one site at the cost of what follows it.

    Example:
        recorder = SuffixRecorder(model, forward, removal)
        with undisturbed(model):
            for batch, numbers in probe.batches():
                logits, classes = recorder.record(batch, numbers).ablated(mask)

    Attributes:
        removal: the site and the baseline.
        gradient_asked: whether a gradient at the site has been asked for.
        gradient: whether there has been one that was not zero everywhere; None if there has been none at all.
        changed: holds True where the model changes what its backward pass needs; see `gradients.despite_changes`.

    Args:
        model: holds the removal's site.
        forward: a batch on the model's device, which it may overwrite, to an `Outcome` or its first parts.
        removal: the site and the baseline.
        donors: for the baseline "resample".
        full_passes: whether never to record a tape; for comparison.
        rows: gives the number of rows in a batch with a number of samples; None: as many.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        removal: Removal,
        *,
        donors: Donors | None = None,
        full_passes: bool = False,
        rows: Callable[[int], int] | None = None,
    ) -> None:
        self.removal = removal
        self.gradient_asked = False
        self.gradient: Tensor | None = None
        self.changed: list[bool] = []
        self._passes = SitePasses(model, forward, removal.where)
        self._donors, self._rows = donors, rows
        self._trust = Trust(removal.site, "full passes were asked for" if full_passes else None)
        self._trials = 0

    def note_gradient(self, gradient: Tensor) -> None:
        """Note a gradient at the site."""
        differs = gradient.detach().any()
        self.gradient = differs if self.gradient is None else self.gradient | differs

    @property
    def reason(self) -> str | None:
        """Return why each ablation is a full pass; None if tapes are used."""
        return self._trust.reason

    @property
    def random(self) -> RandomSources:
        """Return the random generators that a forward pass may draw from."""
        return self._passes.random

    @property
    def draws_random(self) -> bool:
        """Tell whether what a forward pass gives depends on random numbers, or changes from pass to pass.

        All passes of one batch draw the same ones.
        """
        return self._trust.draws_random

    def record(
        self, batch: Any, numbers: Int[np.ndarray, " sample"] | None = None, states: States | None = None
    ) -> Suffix:
        """Make one forward pass over a batch, and one over its samples' donors if there are any.

        Args:
            batch: on the host.
            numbers: sample numbers in the stream, for the donors.
            states: of the random generators, from which the pass begins; None: from those that they have.

        Raises:
            InvalidArgument: if the site is called several times and names no call.

        Warns:
            UserWarning: once, if ablations need full passes.
        """
        with torch.no_grad():
            # before the recording, which may share memory with what the model writes in each pass
            donor_activations, n_samples = self._run_donors(numbers), self._samples(numbers)
            if states is not None:
                restore(states)
            if self.reason is not None:
                suffix = self._record(batch, None, donor_activations, n_samples)
                self._random_reason(suffix)
                return suffix
            recorder = TapeRecorder()
            try:
                suffix = self._record(batch, recorder, donor_activations, n_samples)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                suffix = self._record(batch, None, donor_activations, n_samples)  # first: it may fail in the same way
                self._trust.give_up(f"recording the forward pass failed ({type(error).__name__}: {error})")
                return suffix
            reason = self._random_reason(suffix) or recorder.reason or suffix.try_tape()
            if reason == DIFFERS and not suffix.repeats():
                self._trust.draws_random, reason = True, CHANGING
            if reason is not None:
                self._trust.give_up(reason)
            return suffix

    def _random_reason(self, suffix: Suffix) -> str | None:
        """Say that random numbers change what a pass gives, once that is known; None if it draws none.

        Python's own also serve tools that only watch, such as type checkers: passes with other ones must differ.
        """
        if not suffix.drawn:
            return None
        if suffix.drawn <= _PYTHON and not self.draws_random:
            for _ in range(min(1 if self._trials else _FIRST_TRIALS, _MOST_TRIALS - self._trials)):
                self._trials += 1
                if not suffix.repeats(python_seed=self._trials):
                    break
            else:
                return None
        self._trust.draws_random = True
        return RANDOM

    def _samples(self, numbers: Int[np.ndarray, " sample"] | None) -> int | None:
        """Return the number of samples in a batch that holds copies after them; None for any other batch."""
        if numbers is None or self._rows is None or self._rows(len(numbers)) == len(numbers):
            return None
        return len(numbers)

    def _record(
        self,
        batch: Any,
        recorder: TapeRecorder | None,
        donor_activations: list[DonorActivations] | None,
        n_samples: int | None,
    ) -> Suffix:
        """Make one forward pass over a batch, with a tape if there is a recorder for it."""
        found: list[Tensor] = []
        states = [self._passes.random.states()]

        def start(output: Tensor) -> Tensor:
            found.append(output.detach().clone())  # a copy: what comes after it may overwrite the original
            no_neurons = torch.zeros(1, self.removal.n_neurons, dtype=torch.bool, device=output.device)
            activation = remove(found[0], self.removal, no_neurons)  # laid out in memory as by an ablation
            states.append(self._passes.random.states())
            if recorder is not None:
                recorder.start(activation)
            return activation

        inside = None if recorder is None else recorder.watch()
        outcome = self._passes.run(batch, start, inside, n_samples=n_samples)
        # from the site on, too: `forward` may put states back that are those at the end of the pass before
        after = self._passes.random.states()
        drawn = frozenset(name for before in states for name in drawn_from(before, after))
        tape = None if recorder is None else recorder.finish((outcome.logits,))
        activation = found[0] if found else None
        recorded = RecordedPass(
            batch, activation, outcome, tape, donor_activations, states[0] if drawn else None, drawn, n_samples
        )
        return Suffix(self.removal, self._passes, self._trust, recorded)

    def _run_donors(self, numbers: Int[np.ndarray, " sample"] | None) -> list[DonorActivations] | None:
        """Make a forward pass over the samples' donors, and return their activations; None without donors."""
        if self._donors is None:
            return None
        assert numbers is not None
        donor_activations: list[DonorActivations] = []
        for batch, places in self._donors.batches(numbers):
            found: list[Tensor] = []

            def keep(output: Tensor, found: list[Tensor] = found) -> Tensor:
                found.append(output.detach().clone())
                return output

            outcome = self._passes.run(batch, keep, n_samples=self._samples(places))
            if found:
                positions = chosen_positions(self.removal.where, found[0], self.removal.axis, outcome.tokens)
                donor_activations.append((found[0], positions, places))
        return donor_activations
