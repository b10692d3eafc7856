"""Draw the probe set from the validation batches as they come."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_neuroimp.batches.layout import read_batch
from lightning_neuroimp.batches.probe import ProbeSampler, ProbeSet
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.callbacks.processes import gather_objects, sample_numbers
from lightning_neuroimp.errors import InvalidArgument

_MOST_NOTES = 5
"""Upper bound on the number of notes on batches that were left out."""


class Collector:
    """Draw a probe set in the first validation run.

    Attributes:
        probe: the probe set, once it is closed; None before.

    Args:
        new_sampler: makes a sampler of the probe set.
    """

    def __init__(self, new_sampler: Callable[[], ProbeSampler]) -> None:
        self.probe: ProbeSet | None = None
        self._new_sampler = new_sampler
        self._sampler: ProbeSampler | None = None
        self._lost: Exception | None = None  # why there is no probe set
        self._left_out: list[str] = []
        self._seen: dict[int, int] = {}  # samples of each loader

    def open(self) -> None:
        """Begin to draw in a validation run, unless there is a probe set already."""
        if self.probe is None:
            self._sampler, self._lost = self._new_sampler(), None
            self._seen, self._left_out = {}, []

    def add(self, trainer: "pl.Trainer", batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        """Offer a batch to the sampler; keep its errors for `close`, where all processes learn of them.

        Args:
            trainer: running a validation.
            batch: before the validation step, which may take it apart.
            batch_idx: its number in its loader.
            dataloader_idx: the loader's number.
        """
        if self._sampler is None:
            return
        start = self._seen.get(dataloader_idx, 0)
        try:
            with isolate_rng() if callable(self._sampler.stratify) else nullcontext():
                flat = read_batch(batch)
                self._sampler.add(flat, sample_numbers(trainer, dataloader_idx, start, flat.size))
        except Exception as error:
            if isinstance(error, InvalidArgument) and self._seen:
                self._left_out.append(f"batch {batch_idx} of the validation was left out: {error}")
                return
            self._sampler, self._lost = None, error.with_traceback(None)  # without the frames, which hold batches
            return
        self._seen[dataloader_idx] = start + flat.size

    def close(self) -> ProbeSet:
        """Return the probe set; every process must call this.

        Raises:
            Exception: the error that the batches raised, such as `InvalidArgument` or an error of a user's function.
        """
        if self.probe is None:
            if self._lost is not None:
                raise self._lost
            assert self._sampler is not None
            probe = self._sampler.close(Processes(gather_objects))
            gather_objects(None)  # raises here if another process failed, so that all have a probe set or none
            self.probe, self._sampler = probe, None
        return self.probe

    def notes(self) -> tuple[str, ...]:
        """Return notes on the batches that any process left out."""
        return tuple(note for share in gather_objects(self._left_out) for note in share)[:_MOST_NOTES]

    def forget(self) -> None:
        """Release the samples, which may take up to `max_bytes`."""
        self.probe = self._sampler = self._lost = None
