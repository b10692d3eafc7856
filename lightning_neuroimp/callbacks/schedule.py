"""Schedule measurements and their checks: when they are due, what they cost, and whether a check may be made."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_neuroimp.ablation.settings import AblationFaithfulness


@dataclass(frozen=True)
class PassCount:
    """Count the passes of an importance measurement.

    Attributes:
        n_sites: number of explained layers.
        n_attributions: number of scores at each layer.
        max_samples: upper bound on the number of samples in the probe set.
        surveyed: whether a forward pass is made before the importance pass.
        gradients: whether a backward pass is made.
        extra: passes that single scores take in addition, in words.
    """

    n_sites: int
    n_attributions: int
    max_samples: int
    surveyed: bool
    gradients: bool
    extra: Sequence[str] = ()

    @property
    def forward(self) -> int:
        """Return the number of forward passes."""
        return 2 if self.surveyed else 1

    @property
    def backward(self) -> int:
        """Return the number of backward passes."""
        return 1 if self.gradients else 0

    def __str__(self) -> str:
        passes = f"{self.forward} forward"
        passes += f" and {self.backward} backward" if self.backward else ""
        several = self.forward > 1 or self.backward > 1
        passes += f" pass{'es' if several else ''} over at most {self.max_samples} samples"
        return passes + "".join(f"; {extra}" for extra in self.extra)


class Schedule:
    """Count and time the passes of a run, and decide whether the next check may be made.

    Whether a check is made may depend on the clock; its outcome never does.

    Attributes:
        skipped: number of checks that were skipped.
        pending: whether the last measurement's check was skipped.

    Args:
        settings: settings of the checks; None: no checks are made.
        passes: passes of a measurement.
        every_n_epochs: measure in every n-th validation run.
    """

    def __init__(self, settings: AblationFaithfulness | None, passes: PassCount, every_n_epochs: int) -> None:
        self.settings, self.passes, self.every_n_epochs = settings, passes, every_n_epochs
        self.skipped, self.pending = 0, False
        self._took: float | None = None
        self._since = time.monotonic()
        self._fastest: float | None = None  # seconds per sample of a validation step
        self._largest, self._opened = 1, 0.0

    def __str__(self) -> str:
        every = self.every_n_epochs
        when = "each validation run" if every == 1 else f"every {every} validation runs"
        text = f"{when}: {self.passes}"
        if self.settings is None:
            return text + "; no ablation"
        n_passes = self.settings.forward_passes(self.passes.n_attributions)
        limit = self.settings.max_overhead
        layers = "the layer" if self.passes.n_sites == 1 else f"each of {self.passes.n_sites} layers"
        return (
            f"{text}; ablation: at {layers} 1 forward pass over at most {self._ablated} of them, "
            f"and at most {n_passes - 1} of what follows the layer"
            + (f", skipped where that takes over {limit:.0%} of the time since the last" if limit is not None else "")
        )

    @property
    def _ablated(self) -> int:
        """Return an upper bound on the number of ablated samples."""
        return 0 if self.settings is None else min(self.settings.max_samples, self.passes.max_samples)

    def open_step(self) -> None:
        """Start timing a validation step."""
        self._opened = time.perf_counter()

    def close_step(self, n_samples: int) -> None:
        """Stop timing a validation step over `n_samples` samples."""
        self._largest = max(self._largest, n_samples)
        each = (time.perf_counter() - self._opened) / max(n_samples, 1)
        self._fastest = each if self._fastest is None else min(each, self._fastest)

    def estimate(self, n_batches: float) -> str | None:
        """Estimate, in words, how long a measurement will take, from timed validation steps; None before any.

        Args:
            n_batches: number of validation batches; infinite if the loader has no length.
        """
        if self._fastest is None:
            return None
        n_validation = n_batches * self._largest
        probe = min(self.passes.max_samples, n_validation)
        # a backward pass costs about two forward passes
        seconds = self._fastest * probe * (self.passes.forward + 2 * self.passes.backward)
        text = f"about {_time(seconds)} a measurement"
        if self.settings is None:
            return text
        n_passes = self.passes.n_sites * self.settings.forward_passes(self.passes.n_attributions)
        return text + f", {_time(self._fastest * min(self._ablated, n_validation) * n_passes)} an ablation check"

    def measurement_is_due(self, runs: int, *, alone: bool) -> bool:
        """Tell whether to measure in a validation run.

        Args:
            runs: number of validation runs before it.
            alone: whether it is not part of a training run.
        """
        return alone or runs % self.every_n_epochs == 0

    def check_is_due(self, measured: int, *, alone: bool, checked_before: bool) -> bool:
        """Tell whether a check of a measurement is due, whatever it costs.

        Args:
            measured: number of measurements before it.
            alone: whether it is not part of a training run.
            checked_before: whether the run has had a check; the checkpoint of a resumed run may hold none.
        """
        if self.settings is None:
            return False
        return alone or not checked_before or measured % self.settings.every_n_epochs == 0

    def may_check(self) -> bool:
        """Tell whether a check as long as the last one stays within `max_overhead` of the time since then."""
        if self.settings is None or self.settings.max_overhead is None or self._took is None:
            return True
        return self._took <= self.settings.max_overhead * (time.monotonic() - self._since)

    def checked(self, seconds: float) -> None:
        """Note that a check was made, and how many seconds it took."""
        self._took, self._since, self.pending = seconds, time.monotonic(), False

    def skip(self) -> str:
        """Note that a check is skipped; return the reason in words."""
        assert self.settings is not None
        self.skipped, self.pending = self.skipped + 1, True
        elapsed = time.monotonic() - self._since
        return (
            f"ablation check skipped: it takes {_time(self._took or 0)}, more than max_overhead="
            f"{self.settings.max_overhead:.0%} of the {_time(elapsed)} since the last one, whose values are logged "
            "again; AblationFaithfulness(max_overhead=None) never skips"
        )


def _time(seconds: float) -> str:
    """Format a duration, in seconds or minutes."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
