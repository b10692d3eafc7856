"""Replay: run a model again from a site on, with other activations there, at the cost of what follows the site.

The first pass over a batch is recorded (`recorder.py`) on a tape (`tape.py`). Per site and way through the model, the
first tape has to reproduce a random ablation that a plain hook makes in a full pass; where it does not, or cannot be
made, every ablation there is a full pass, and a warning says why.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lightning_neuroimp.batches.structure import to_device
from lightning_neuroimp.capture.donors import Donors, donate
from lightning_neuroimp.capture.forward import model_device
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.positions import chosen_positions
from lightning_neuroimp.capture.removal import BatchRemoval, remove
from lightning_neuroimp.capture.site_tensor import read, write
from lightning_neuroimp.capture.suffix.suffix import Outcome, Suffix, reason_of
from lightning_neuroimp.capture.suffix.tracing import TapeRecorder
from lightning_neuroimp.site import Removal

Forward = Callable[[Any], tuple[Any, ...]]
"""A batch on the model's device, which it may overwrite -> an `Outcome`, or its first parts."""


_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2  # of the largest change that an ablation makes: kernels may round differently


_DIFFERS = "a random ablation by it differs from the same in a full pass"


class SuffixRecorder:
    """Records passes over batches, to ablate neurons at one site.

    Attributes:
        reason: why each ablation is a full pass; None: it is not.

    Args:
        model: holds the removal's site.
        forward: a batch to logits and classes, by the model.
        removal: the site and the baseline.
        donors: for the baseline "resample".
        full_passes: never record; for comparison.
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
        self.model, self.forward, self.removal, self.donors = model, forward, removal, donors
        self.reason = "full passes were asked for" if full_passes else None
        # by the operations on a tape: a batch that goes another way through the model is tried again
        self._trusted: set[tuple[str, ...]] = set()
        self._differentiable: dict[tuple[str, ...], bool] = {}

    def record(self, batch: Any, numbers: Int[np.ndarray, " sample"] | None = None) -> Suffix:
        """One pass over a batch, and one over its samples' donors where there are any.

        Args:
            batch: on the host.
            numbers: of its samples in the stream, for the donors.

        Raises:
            ValueError: if the site is called several times.
        """
        with torch.no_grad():
            # before the recording, which may share memory with what the model writes in each pass
            given = self._give(numbers)
            if self.reason is not None:
                return self._record(batch, None, given)
            recorder = TapeRecorder()
            try:
                replay = self._record(batch, recorder, given)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                replay = self._record(batch, None, given)  # first: it may fail in the same way
                self.give_up(f"recording the forward pass failed ({type(error).__name__}: {error})")
                return replay
            tape = None if replay.activation is None else replay.tape
            if tape is not None and tape.signature not in self._trusted:
                recorder.reason = self._try(replay)
            if recorder.reason is not None:
                self.give_up(recorder.reason)
            return replay

    def _record(
        self, batch: Any, recorder: TapeRecorder | None, given: list[tuple[Tensor, Tensor | None, np.ndarray]] | None
    ) -> Suffix:
        device, tape = model_device(self.model), None
        found: list[Tensor] = []

        def start(output: Tensor) -> Tensor:
            found.append(output.detach().clone())  # a copy: what comes behind may overwrite the original
            activation = remove(found[0], self.removal, self._nothing(found[0]))  # as an ablation lays it out in memory
            if recorder is not None:
                recorder.start(activation)
            return activation

        with self.hooked(start):
            if recorder is None:
                outcome = Outcome(*self.forward(to_device(batch, device)))
            else:
                with recorder.watch():
                    outcome = Outcome(*self.forward(to_device(batch, device)))
                tape = recorder.finish((outcome.logits,))
        return Suffix(self, batch, found[0] if found else None, outcome, tape, given)

    def _give(self, numbers: np.ndarray | None) -> list[tuple[Tensor, Tensor | None, np.ndarray]] | None:
        """The activations of the samples' donors, their positions that count, and which samples they are for."""
        if self.donors is None:
            return None
        assert numbers is not None
        given = []
        for batch, places in self.donors.batches(numbers):
            found: list[Tensor] = []

            def keep(output: Tensor, found: list[Tensor] = found) -> Tensor:
                found.append(output.detach().clone())
                return output

            with self.hooked(keep):
                outcome = Outcome(*self.forward(to_device(batch, model_device(self.model))))
            if found:
                theirs = chosen_positions(self.removal.where, found[0], self.removal.axis, outcome.tokens)
                given.append((found[0], theirs, places))
        return given

    def place(
        self,
        activation: Tensor,
        tokens: Tensor | None,
        given: list[tuple[Tensor, Tensor | None, np.ndarray]] | None,
    ) -> BatchRemoval:
        """What the removal is for a batch with these activations."""
        positions = chosen_positions(self.removal.where, activation, self.removal.axis, tokens)
        return BatchRemoval(
            positions, None if given is None else donate(activation, self.removal.axis, positions, given)
        )

    def _nothing(self, activation: Tensor) -> Bool[Tensor, "1 neuron"]:
        return torch.zeros(1, self.removal.n_neurons, dtype=torch.bool, device=activation.device)

    def _some(self, activation: Tensor) -> Bool[Tensor, "sample neuron"]:
        """Half of the neurons, other ones for each sample; the same in every run."""
        shape = (len(activation), self.removal.n_neurons)
        some = torch.randint(2, shape, generator=torch.Generator().manual_seed(0), dtype=torch.bool)
        some[0, 0] |= not some.any()
        return some.to(activation.device)

    @contextmanager
    def hooked(self, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Replace the site's activations in the one forward pass inside this context."""
        site = self.removal.where

        def visit(module: nn.Module, value: Any) -> Any:
            return write(site, module, value, replace(read(site, module, value)))

        with SiteHook(site, visit, single=True).attach(self.model):
            yield

    def give_up(self, reason: str) -> None:
        """From now on each ablation is a full pass."""
        self.reason = reason
        warnings.warn(
            f"layer {self.removal.site!r}: each ablation runs the whole network instead of what follows the layer, "
            f"which is slower and gives the same: {reason}",
            stacklevel=2,
        )

    def _try(self, replay: Suffix) -> str | None:
        """Why a tape is not to be trusted; unchanged activations would prove nothing."""
        assert replay.activation is not None
        assert replay.tape is not None
        mask = self._some(replay.activation)
        try:
            logits, _ = replay.full_pass(lambda output: remove(output, self.removal, mask, replay.placed))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return f"a random ablation fails in a full pass ({type(error).__name__}: {error})"
        try:
            (found,) = replay.tape.run(replay.removed(mask))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return reason_of(error)
        if not _same(found, logits, replay.logits):
            return _DIFFERS
        if not torch.equal(logits, replay.logits):  # else the trial has proved nothing, and the next batch is tried too
            self._trusted.add(replay.tape.signature)
        return None

    def differentiable(self, replay: Suffix) -> bool:
        """Whether the gradient of a random ablation is that of a full pass; tried once for each way through."""
        assert replay.activation is not None
        tape = replay.tape
        assert tape is not None
        if tape.signature not in self._differentiable:
            point = replay.removed(self._some(replay.activation))
            expected = self._slope(point, lambda leaf: replay.full_pass(lambda output: leaf.clone()))
            reason: str | None
            try:
                found = self._slope(point, lambda leaf: tape.run(leaf.clone()))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                reason = reason_of(error)
            else:
                same = _same(found, expected, torch.zeros_like(expected))
                reason = None if same else "the gradient of a random ablation by it differs"
            warned = False in self._differentiable.values()
            self._differentiable[tape.signature] = reason is None
            if reason is not None and not warned:
                warnings.warn(
                    f"layer {self.removal.site!r}: each gradient runs the whole network instead of what follows the "
                    f"layer, which is slower and gives the same: {reason}",
                    stacklevel=2,
                )
        return self._differentiable[tape.signature]

    def _slope(self, point: Tensor, run: Callable[[Tensor], tuple[Any, ...]]) -> Tensor:
        """Derivative of a fixed random combination of the logits."""
        with torch.enable_grad():
            leaf = point.detach().clone().requires_grad_()
            logits = run(leaf)[0]
            weights = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
            if not logits.requires_grad:
                return torch.zeros_like(point)
            (slope,) = torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True)
        return torch.zeros_like(point) if slope is None else slope


def _same(found: Tensor, expected: Tensor, intact: Tensor) -> bool:
    """Whether they agree, as well as the difference between expected and intact can tell."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    half = expected.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(expected.device.type)
    change = (expected - intact).abs().nan_to_num(0.0, 0.0, 0.0)
    tolerance = (_HALF_TOLERANCE if half else _TOLERANCE) * float(change.max()) if change.numel() else 0.0
    if not half:  # single steps of the numbers themselves
        scale = float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max()) if expected.numel() else 0.0
        tolerance += 8 * torch.finfo(expected.dtype).eps * scale
    return torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)
