"""What measurements cost, and whether the next check may run."""

import time
from collections.abc import Sequence

from lightning_neuroimp.ablation.settings import AblationFaithfulness


class CostKeeper:
    """Counts and times the passes.

    What is computed never depends on the clock, only whether a check runs.

    Args:
        settings: of the ablations; None: there are none.
        n_sites: explained layers.
        n_attributions: scores at each.
        max_samples: bound of the probe set.
        surveyed: whether a forward pass before is needed.
        gradients: whether a backward pass is.
        extra: what single scores take beside, in words.
    """

    def __init__(
        self,
        settings: AblationFaithfulness | None,
        n_sites: int,
        n_attributions: int,
        max_samples: int,
        *,
        surveyed: bool,
        gradients: bool,
        extra: Sequence[str] = (),
    ) -> None:
        self.extra = extra
        self.settings, self.n_sites, self.max_samples = settings, n_sites, max_samples
        self.n_attributions = n_attributions
        self.forward, self.backward = 2 if surveyed else 1, 1 if gradients else 0
        self.skipped = 0
        self._took: float | None = None
        self._since = time.monotonic()
        self._fastest: float | None = None  # seconds per sample of a validation step
        self._largest, self._opened = 1, 0.0

    def plan(self, every_n_epochs: int) -> str:
        """The passes of a measurement, in words."""
        when = "each validation run" if every_n_epochs == 1 else f"every {every_n_epochs} validation runs"
        text = f"{when}: {self.forward} forward"
        text += f" and {self.backward} backward" if self.backward else ""
        text += f" pass{'es' if self.forward + self.backward > 1 else ''} over at most {self.max_samples} samples"
        text += "".join(f"; {extra}" for extra in self.extra)
        if self.settings is None:
            return text + "; no ablation"
        passes = self.settings.forward_passes(self.n_attributions)
        limit = self.settings.max_overhead
        layers = "the layer" if self.n_sites == 1 else f"each of {self.n_sites} layers"
        return (
            f"{text}; ablation: at {layers} 1 forward pass over at most {self._ablated} of them, "
            f"and at most {passes - 1} of what follows the layer"
            + (f", skipped where that takes over {limit:.0%} of the time since the last" if limit is not None else "")
        )

    @property
    def _ablated(self) -> int:
        return 0 if self.settings is None else min(self.settings.max_samples, self.max_samples)

    def open_step(self) -> None:
        """A validation step begins."""
        self._opened = time.perf_counter()

    def close_step(self, n_samples: int) -> None:
        """A validation step over so many samples ended."""
        self._largest = max(self._largest, n_samples)
        each = (time.perf_counter() - self._opened) / max(n_samples, 1)
        self._fastest = each if self._fastest is None else min(each, self._fastest)

    def estimate(self, n_batches: float) -> str | None:
        """Seconds that a measurement will take, in words, from timed validation steps; None before any.

        Args:
            n_batches: validation batches, infinite where the loader has no length.
        """
        if self._fastest is None:
            return None
        n_validation = n_batches * self._largest
        probe = min(self.max_samples, n_validation)
        # a backward pass costs about two forward passes
        seconds = self._fastest * probe * (self.forward + 2 * self.backward)
        text = f"about {_time(seconds)} a measurement"
        if self.settings is None:
            return text
        passes = self.n_sites * self.settings.forward_passes(self.n_attributions)
        return text + f", {_time(self._fastest * min(self._ablated, n_validation) * passes)} an ablation check"

    def may_check(self) -> bool:
        """Whether a check of the last one's length stays within `max_overhead` of the time since the last one."""
        if self.settings is None or self.settings.max_overhead is None or self._took is None:
            return True
        return self._took <= self.settings.max_overhead * (time.monotonic() - self._since)

    def checked(self, seconds: float) -> None:
        """A check was made, and took so long."""
        self._took, self._since = seconds, time.monotonic()

    def skip(self) -> str:
        """A check is skipped; why, in words."""
        assert self.settings is not None
        self.skipped += 1
        elapsed = time.monotonic() - self._since
        return (
            f"ablation check skipped: it takes {_time(self._took or 0)}, more than max_overhead="
            f"{self.settings.max_overhead:.0%} of the {_time(elapsed)} since the last one, whose values are logged "
            "again; AblationFaithfulness(max_overhead=None) never skips"
        )


def _time(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
