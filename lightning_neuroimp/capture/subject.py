"""Subject: a model, the samples on which it is studied, and how it is run on them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.batches.progress import Progress, Tick, silent
from lightning_neuroimp.capture.donors import Donors
from lightning_neuroimp.capture.forward import ForwardFn, Outcome, Prediction, forward_logits, model_device
from lightning_neuroimp.capture.random_states import States, restore
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.targets import explained_classes
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Removal


class OutputsChangedError(InvalidArgument):
    """Say that a model gives another number of logits than before."""


@dataclass
class Subject:
    """Hold what every pass over a probe set needs: the model, the samples, and how the one is run on the others.

    Attributes:
        model: a classifier.
        probe: the samples of this process.
        forward_fn: gives logits and targets of a batch; None: they are inferred.
        batch_size: number of samples in our passes; None: that of the loader.
        processes: those that share the study.
        progress: opens a progress bar for a pass.
        seconds: duration of each kind of pass so far.
        n_classes: number of logits per sample, known after the first pass.
        states: states of the random generators in which each pass begins, so that a model that draws random numbers
            draws the same ones in all of them; None for a model that draws none.
        ignore_index: target of samples without a label, which count for nothing; None: all have one.

    Raises:
        InvalidArgument: if the batch size is no positive integer.
    """

    model: nn.Module
    probe: ProbeSet
    forward_fn: ForwardFn | None = None
    batch_size: int | None = None
    processes: Processes = Processes()  # noqa: RUF009 (frozen)
    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)
    n_classes: int | None = None
    states: States | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            self.batch_size = _validate.integer("batch_size", self.batch_size, least=1)

    def on(self, index: Int[np.ndarray, " chosen"]) -> "Subject":
        """Return the same study on those samples whose numbers are in `index`."""
        return replace(self, probe=self.probe.select(index))

    def of(self, model: nn.Module) -> "Subject":
        """Return the same study of another model."""
        return replace(self, model=model, seconds={}, n_classes=None)

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return model_device(self.model)

    def batches(self) -> Iterator[tuple[Any, Int[np.ndarray, " sample"]]]:
        """Yield batches on the host and their sample numbers."""
        yield from self.probe.batches(self.batch_size)

    def passes(self) -> Iterator[tuple[Any, Int[np.ndarray, " sample"]]]:
        """Yield batches on the host to run the model on, and their sample numbers.

        A batch may hold a copy of its only sample, without a number: see `rows`.
        """
        yield from self.probe.batches(self.batch_size, copies=True)

    def rows(self, n_samples: int) -> int:
        """Return the number of rows in a batch of `passes` with a number of samples."""
        return 2 if n_samples == 1 and self.probe.copied(self.batch_size) else n_samples

    def count_batches(self) -> int:
        """Return the number of batches that `batches` yields."""
        return self.probe.count_batches(self.batch_size)

    @contextmanager
    def timed(self, name: str) -> Iterator[Tick]:
        """Show a progress bar for one pass over all batches, and add its duration to `seconds`."""
        start = time.perf_counter()
        with self.progress(name, self.count_batches()) as tick:
            yield tick
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def predict(self, batch: Any, n_samples: int | None = None, *, validate: bool = True) -> Prediction:
        """Run the model on a batch.

        Args:
            batch: on the model's device; the model may work in place on it.
            n_samples: number of its samples, after which there may be a copy; None: all rows are samples.
            validate: whether values are validated; not where the same batch has passed before.

        Raises:
            InvalidArgument: if the outputs are no classifier's, or have another number of logits than before.
        """
        if self.states is not None:
            restore(self.states)
        prediction = forward_logits(
            self.model, batch, self.forward_fn, ignore_index=self.ignore_index, validate=validate
        )
        n_classes = prediction.logits.shape[1]
        if self.n_classes is None:
            self.n_classes = n_classes
        if n_classes != self.n_classes:
            raise OutputsChangedError(
                f"the model gave {self.n_classes} logits for each sample first, and {n_classes} later: their number "
                "must be the same each time that it is called"
            )
        if n_samples is None or self.rows(n_samples) == n_samples or len(prediction.logits) != self.rows(n_samples):
            return prediction
        tokens = None if prediction.tokens is None else prediction.tokens[:n_samples]
        return Prediction(prediction.logits[:n_samples], prediction.labels[:n_samples], tokens, prediction.doubt)

    def recorder(self, removal: Removal, donors: Donors | None = None) -> SuffixRecorder:
        """Return a recorder of what follows the removal's site.

        Args:
            removal: the site, the baseline, and the class that is explained.
            donors: for the baseline "resample".
        """

        def forward(batch: Any) -> Outcome:
            prediction = self.predict(batch, validate=False)
            classes = explained_classes(prediction.logits, prediction.labels, removal.target_class)
            return Outcome(prediction.logits, classes, prediction.tokens)

        return SuffixRecorder(self.model, forward, removal, donors=donors, rows=self.rows)

    def donors(self, baseline: str, seed: int) -> Donors | None:
        """Return which samples donate activations to which, for the baseline "resample"; None for all others."""
        return Donors(self.probe, seed, self.batch_size) if baseline == "resample" else None
