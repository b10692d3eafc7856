"""Find out whether a tape can be trusted, and remember it.

A tape is compared with full passes on a random ablation: unchanged activations would prove nothing. The comparison is
made once for each way through the model, which the names of the operations on the tape tell apart.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lightning_neuroimp.capture.suffix.tape import Tape, TapeBroken

_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2  # of the largest change that an ablation makes: kernels may round differently

RANDOM = "the forward pass draws random numbers"

CHANGING = "the forward pass gives other outputs each time, also from the same random state"

DIFFERS = "a random ablation by it differs from the same in a full pass"

Logits = Callable[[Tensor], Tensor]
"""Activations of a site to the logits, by a tape or by a full pass."""


class Trust:
    """Remember, for one site, why there is no tape, and which tapes have reproduced full passes.

    Attributes:
        reason: why each ablation is a full pass; None while tapes are used.
        draws_random: whether what a pass gives depends on random numbers, or changes from pass to pass.

    Args:
        site: in words, for warnings.
        reason: why no tape is to be recorded; None: they are.
    """

    def __init__(self, site: str, reason: str | None = None) -> None:
        self.reason, self.draws_random = reason, False
        self._site = site
        self._values: set[tuple[str, ...]] = set()
        self._gradients: dict[tuple[str, ...], bool] = {}

    def give_up(self, reason: str) -> None:
        """Warn that from now on each ablation is a full pass.

        Args:
            reason: why.
        """
        self.reason = reason
        self._warn("ablation", reason)

    def _warn(self, what: str, reason: str) -> None:
        given = {
            RANDOM: "is slower; all passes of a batch draw the same ones",
            CHANGING: "is slower; effects hold its noise",
        }.get(reason, "is slower and gives the same")
        warnings.warn(
            f"layer {self._site!r}: each {what} runs the whole network instead of what follows the layer, which "
            f"{given}: {reason}",
            stacklevel=3,
        )

    def knows(self, tape: Tape) -> bool:
        """Tell whether a tape took a way through the model on which one has reproduced a full pass."""
        return tape.signature in self._values

    def try_values(
        self, tape: Tape, activation: Callable[[], Tensor], full_pass: Callable[[], Tensor], intact: Tensor
    ) -> str | None:
        """Compare a tape's logits with a full pass's, and remember if they agree.

        Args:
            tape: of the batch.
            activation: makes the site's activations after a random ablation.
            full_pass: gives the logits of a full pass with the same ablation.
            intact: logits without an ablation.

        Returns:
            Why the tape cannot be trusted; None if nothing was found.
        """
        try:
            expected = full_pass()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return f"a random ablation fails in a full pass ({type(error).__name__}: {error})"
        try:
            found = tape.run(activation())[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return reason_of(error)
        if not agree(found, expected, intact):
            return DIFFERS
        if not torch.equal(expected, intact):  # otherwise it has proved nothing, and the next batch is tried too
            self._values.add(tape.signature)
        return None

    def try_gradients(self, tape: Tape, activation: Tensor, by_tape: Logits, by_full_pass: Logits) -> bool:
        """Tell whether gradients flow through a tape as through a full pass; warn about the first that differs.

        Args:
            tape: of the batch.
            activation: the site's, after a random ablation.
            by_tape: logits by the tape.
            by_full_pass: logits by a full pass.
        """
        known = self._gradients.get(tape.signature)
        if known is not None:
            return known
        expected, reason = _gradient(by_full_pass, activation), None
        try:
            found = _gradient(by_tape, activation)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = reason_of(error)
        else:
            if not agree(found, expected, torch.zeros_like(expected)):
                reason = "the gradient of a random ablation by it differs"
        if reason is not None and False not in self._gradients.values():
            self._warn("gradient", reason)
        self._gradients[tape.signature] = reason is None
        return reason is None


def reason_of(error: Exception) -> str:
    """Say in words why a tape failed."""
    return str(error) if isinstance(error, TapeBroken) else f"running the tape failed ({type(error).__name__}: {error})"


def random_mask(activation: Tensor, n_neurons: int) -> Bool[Tensor, "sample neuron"]:
    """Return a mask of about half of the neurons, other ones for each sample; the same in every run."""
    shape = (len(activation), n_neurons)
    mask = torch.randint(2, shape, generator=torch.Generator().manual_seed(0), dtype=torch.bool)
    mask[0, 0] |= not mask.any()
    return mask.to(activation.device)


def agree(found: Tensor, expected: Tensor, intact: Tensor) -> bool:
    """Tell whether two results agree, as well as the difference between expected and intact can tell.

    Args:
        found: by a tape.
        expected: by a full pass.
        intact: without an ablation.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    half = expected.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(expected.device.type)
    change = (expected - intact).abs().nan_to_num(0.0, 0.0, 0.0)
    tolerance = (_HALF_TOLERANCE if half else _TOLERANCE) * float(change.max()) if change.numel() else 0.0
    if not half:  # single steps of the numbers themselves
        scale = float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max()) if expected.numel() else 0.0
        tolerance += 8 * torch.finfo(expected.dtype).eps * scale
    return torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


def alike(found: Tensor, expected: Tensor) -> bool:
    """Tell whether two passes over the same batch agree, up to what kernels may round differently."""
    if found.shape != expected.shape:
        return False
    half = expected.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(expected.device.type)
    finite = expected[expected.isfinite()].double()
    if not len(finite):
        return True
    scale = 8 * torch.finfo(expected.dtype).eps * float(finite.abs().max())
    tolerance = (_HALF_TOLERANCE if half else _TOLERANCE) * float(finite.std(correction=0))
    return torch.allclose(found, expected, rtol=0, atol=tolerance + scale, equal_nan=True)


def _gradient(logits_of: Logits, activation: Tensor) -> Tensor:
    """Return the gradient of a fixed random combination of the logits with respect to the activations."""
    with torch.enable_grad():
        leaf = activation.detach().clone().requires_grad_()
        logits: Any = logits_of(leaf)
        weights = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
        if not logits.requires_grad:
            return torch.zeros_like(activation)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True)
    return torch.zeros_like(activation) if gradient is None else gradient
