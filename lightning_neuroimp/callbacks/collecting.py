"""Draw the probe set from the validation batches as they come."""

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_neuroimp import _validate
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
        dataloaders: numbers of the validation loaders that are drawn from; None: all.
    """

    def __init__(self, new_sampler: Callable[[], ProbeSampler], dataloaders: Collection[int] | None = None) -> None:
        self._dataloaders = dataloaders
        self._came: set[int] = set()  # numbers of the loaders of which there were batches
        self._sizes: dict[int, int] = {}  # samples of each loader that may be drawn
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
            self._came, self._sizes = set(), {}

    def require_loaders(self, trainer: "pl.Trainer") -> None:
        """Refuse numbers of validation loaders that do not exist.

        Args:
            trainer: whose loaders are known.

        Raises:
            InvalidArgument: if there are fewer loaders.
        """
        n_loaders = len(trainer.num_val_batches)
        wrong = [number for number in self._dataloaders or () if number >= n_loaders]
        if wrong:
            there = "is one validation loader, number 0"
            if n_loaders > 1:
                there = f"are {n_loaders} validation loaders, numbers 0 to {n_loaders - 1}"
            asked = _validate.shown(list(self._dataloaders or ()))
            raise InvalidArgument(f"dataloaders={asked} asks for loader {wrong[0]}, but there {there}")

    def add(self, trainer: "pl.Trainer", batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        """Offer a batch to the sampler; keep its errors for `close`, where all processes learn of them.

        Args:
            trainer: running a validation.
            batch: before the validation step, which may take it apart.
            batch_idx: its number in its loader.
            dataloader_idx: the loader's number.
        """
        self._came.add(dataloader_idx)
        if self._sampler is None or (self._dataloaders is not None and dataloader_idx not in self._dataloaders):
            return
        start = self._seen.get(dataloader_idx, 0)
        try:
            with isolate_rng() if callable(self._sampler.stratify) else nullcontext():
                flat = read_batch(batch)
                numbers = sample_numbers(trainer, dataloader_idx, start, flat.size)
                self._sampler.add(flat, numbers)
        except Exception as error:
            if isinstance(error, InvalidArgument) and self._seen:
                self._left_out.append(f"batch {batch_idx} of the validation was left out: {error}")
                return
            self._sampler, self._lost = None, error.with_traceback(None)  # without the frames, which hold batches
            return
        self._seen[dataloader_idx] = start + flat.size
        self._sizes[dataloader_idx] = self._sizes.get(dataloader_idx, 0) + int((numbers >= 0).sum())

    def close(self) -> ProbeSet:
        """Return the probe set; every process must call this.

        Raises:
            Exception: the error that the batches raised, such as `InvalidArgument` or an error of a user's function.
        """
        if self.probe is None:
            if self._lost is not None:
                raise self._lost
            self._require_batches()
            assert self._sampler is not None
            probe = self._sampler.close(Processes(gather_objects))
            gather_objects(None)  # raises here if another process failed, so that all have a probe set or none
            self.probe, self._sampler = probe, None
        return self.probe

    def _require_batches(self) -> None:
        """Refuse loaders of which no process has got a batch.

        Raises:
            InvalidArgument: if one of them was chosen.
        """
        came = set().union(*gather_objects(self._came))
        missing = [number for number in self._dataloaders or () if number not in came]
        if missing:
            raise InvalidArgument(
                f"no batch came from validation loader {missing[0]}, which dataloaders= asks for, only from "
                f"{sorted(came)}: it is empty, limit_val_batches leaves it out, or a CombinedLoader joins batches of "
                "several loaders (mode='sequential' keeps them apart)"
            )

    def notes(self, *, pooled: bool = True) -> tuple[str, ...]:
        """Return notes on loaders that were pooled, and on batches that any process left out.

        Args:
            pooled: whether samples of several loaders are in one cluster.
        """
        shares = gather_objects((self._left_out, self._sizes))
        left_out = tuple(note for share in shares for note in share[0])[:_MOST_NOTES]
        sizes: Counter[int] = Counter()
        for _, share in shares:
            sizes.update(share)
        if self._dataloaders is not None or not pooled or len(sizes) < 2:
            return left_out
        *first, last = [str(size) for _, size in sorted(sizes.items())]
        drawn = (
            f"samples are drawn from {len(sizes)} validation loaders, of {', '.join(first)} and {last} samples; "
            f"dataloaders={min(sizes)} takes the first only; clusters='dataloaders' makes a cluster of each"
        )
        return (drawn, *left_out)

    @property
    def came(self) -> bool:
        """Tell whether a batch was offered."""
        return bool(self._came)

    def hint(self) -> str:
        """Return what to add to a message on samples that cannot be worked with: from how many loaders they are."""
        if self._dataloaders is not None or len(self._came) < 2:
            return ""
        return f"; samples come from {len(self._came)} validation loaders: dataloaders=0 takes the first only"

    def forget(self) -> None:
        """Release the samples, which may take up to `max_bytes`."""
        self.probe = self._sampler = self._lost = None
