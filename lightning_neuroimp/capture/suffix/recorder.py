"""Record forward passes over batches, to run what follows one site again."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from lightning_neuroimp.capture.donors import DonorActivations, Donors
from lightning_neuroimp.capture.positions import chosen_positions
from lightning_neuroimp.capture.removal import remove
from lightning_neuroimp.capture.suffix.passes import Forward, SitePasses
from lightning_neuroimp.capture.suffix.suffix import RecordedPass, Suffix
from lightning_neuroimp.capture.suffix.tracing import TapeRecorder
from lightning_neuroimp.capture.suffix.trust import Trust
from lightning_neuroimp.site import Removal


class SuffixRecorder:
    """Record forward passes over batches, to ablate neurons at one site at the cost of what follows it.

    Example:
        recorder = SuffixRecorder(model, forward, removal)
        with undisturbed(model):
            for batch, numbers in probe.batches():
                logits, classes = recorder.record(batch, numbers).ablated(mask)

    Attributes:
        removal: the site and the baseline.

    Args:
        model: holds the removal's site.
        forward: a batch on the model's device, which it may overwrite, to an `Outcome` or its first parts.
        removal: the site and the baseline.
        donors: for the baseline "resample".
        full_passes: whether never to record a tape; for comparison.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        removal: Removal,
        *,
        donors: Donors | None = None,
        full_passes: bool = False,
    ) -> None:
        self.removal = removal
        self._passes = SitePasses(model, forward, removal.where)
        self._donors = donors
        self._trust = Trust(removal.site, "full passes were asked for" if full_passes else None)

    @property
    def reason(self) -> str | None:
        """Return why each ablation is a full pass; None if tapes are used."""
        return self._trust.reason

    def record(self, batch: Any, numbers: Int[np.ndarray, " sample"] | None = None) -> Suffix:
        """Make one forward pass over a batch, and one over its samples' donors if there are any.

        Args:
            batch: on the host.
            numbers: sample numbers in the stream, for the donors.

        Raises:
            InvalidArgument: if the site is called several times and names no call.

        Warns:
            UserWarning: once, if ablations need full passes.
        """
        with torch.no_grad():
            # before the recording, which may share memory with what the model writes in each pass
            donor_activations = self._run_donors(numbers)
            if self.reason is not None:
                return self._record(batch, None, donor_activations)
            recorder = TapeRecorder()
            try:
                suffix = self._record(batch, recorder, donor_activations)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                suffix = self._record(batch, None, donor_activations)  # first: it may fail in the same way
                self._trust.give_up(f"recording the forward pass failed ({type(error).__name__}: {error})")
                return suffix
            reason = recorder.reason or suffix.try_tape()
            if reason is not None:
                self._trust.give_up(reason)
            return suffix

    def _record(
        self, batch: Any, recorder: TapeRecorder | None, donor_activations: list[DonorActivations] | None
    ) -> Suffix:
        """Make one forward pass over a batch, with a tape if there is a recorder for it."""
        found: list[Tensor] = []

        def start(output: Tensor) -> Tensor:
            found.append(output.detach().clone())  # a copy: what comes after it may overwrite the original
            no_neurons = torch.zeros(1, self.removal.n_neurons, dtype=torch.bool, device=output.device)
            activation = remove(found[0], self.removal, no_neurons)  # laid out in memory as by an ablation
            if recorder is not None:
                recorder.start(activation)
            return activation

        outcome = self._passes.run(batch, start, None if recorder is None else recorder.watch())
        tape = None if recorder is None else recorder.finish((outcome.logits,))
        recorded = RecordedPass(batch, found[0] if found else None, outcome, tape, donor_activations)
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

            outcome = self._passes.run(batch, keep)
            if found:
                positions = chosen_positions(self.removal.where, found[0], self.removal.axis, outcome.tokens)
                donor_activations.append((found[0], positions, places))
        return donor_activations
