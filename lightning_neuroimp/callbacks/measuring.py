"""Measure importance and check it, inside a trainer."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from lightning_neuroimp.ablation.settings import AblationFaithfulness
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.callbacks.out_of_memory import PassSize
from lightning_neuroimp.callbacks.processes import failing_together, gather_objects
from lightning_neuroimp.callbacks.progress import trainer_progress
from lightning_neuroimp.callbacks.publishing import step_of
from lightning_neuroimp.capture.forward import ForwardFn
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.trial import Trial
from lightning_neuroimp.results.findings.diagnosis import diagnose
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement
from lightning_neuroimp.study.ablation import measure_faithfulness
from lightning_neuroimp.study.importance import measure_importance
from lightning_neuroimp.study.randomisation import measure_randomisation
from lightning_neuroimp.study.rehearsal import rehearse
from lightning_neuroimp.study.settings import ImportanceSettings
from lightning_neuroimp.study.trial import settle


@dataclass
class Measurer:
    """Measure a module in a trainer.

    Attributes:
        settings: settings of the importance measurement.
        check: settings of its check by ablation; None: no check is made.
        forward_fn: gives logits and targets of a batch; None: they are inferred.
        pass_size: number of samples in our passes; halved when memory runs out.
        check_seconds: duration of the last check, in seconds.
        trial: what small passes have settled in this run; None before any.
    """

    settings: ImportanceSettings
    check: AblationFaithfulness | None
    forward_fn: ForwardFn | None
    pass_size: PassSize
    check_seconds: float = 0.0
    trial: Trial | None = None

    def rehearse(self, trainer: "pl.Trainer", module: "pl.LightningModule", probe: ProbeSet) -> tuple[str, ...]:
        """Rehearse a measurement, and remember what was settled.

        Args:
            trainer: gives the precision.
            module: the model.
            probe: the samples of the first batches.

        Returns:
            What will go wrong unless the other batches are different, in words.

        Raises:
            Exception: the error of any process, on all of them.
        """
        with failing_together(), trainer.precision_plugin.forward_context(), _not_logging(module), undisturbed(module):
            subject = Subject(module, probe, self.forward_fn, self.pass_size.size, Processes(gather_objects))
            subject.ignore_index = self.settings.ignore_index
            rehearsal = rehearse(subject, self.settings)
        self.trial = rehearsal.trial
        return rehearsal.doubts

    def measure(
        self,
        trainer: "pl.Trainer",
        module: "pl.LightningModule",
        probe: ProbeSet,
        previous: PreviousMeasurement | None,
        *,
        checked: bool,
    ) -> Results:
        """Measure importance, and check it if asked for.

        Args:
            trainer: gives the precision, the epoch and the step.
            module: the model.
            probe: the samples.
            previous: the measurement before; None: there was none.
            checked: whether to check the importance by ablation.

        Raises:
            Exception: the error of any process, on all of them.
        """

        def once(subject: Subject) -> Results:
            """Measure with passes of one size."""
            self.trial = settle(subject, self.settings) if self.trial is None else self.trial
            epoch, step = trainer.current_epoch, step_of(trainer)
            results = measure_importance(subject, self.settings, previous, epoch, step, self.trial)
            return self._check(subject, results) if checked else results

        return self._run(trainer, module, probe, once)

    def check_again(
        self, trainer: "pl.Trainer", module: "pl.LightningModule", probe: ProbeSet, results: Results
    ) -> Results:
        """Check a measurement of the same weights that was made without a check.

        Args:
            trainer: gives the precision.
            module: the model.
            probe: the samples.
            results: the measurement.

        Raises:
            Exception: the error of any process, on all of them.
        """
        return self._run(trainer, module, probe, lambda subject: self._check(subject, results))

    def _check(self, subject: Subject, results: Results) -> Results:
        """Check a measurement by ablation, and by randomised weights if asked for; note how long it takes."""
        if self.check is None:
            return results
        start = time.monotonic()
        results = measure_faithfulness(subject, results, self.check)
        if self.check.randomise:
            attributions, target = self.settings.attributions, self.settings.explained
            results = measure_randomisation(subject, results, attributions, target, self.settings.seed)
        self.check_seconds = time.monotonic() - start
        return results

    def _run(
        self,
        trainer: "pl.Trainer",
        module: "pl.LightningModule",
        probe: ProbeSet,
        once: Callable[[Subject], Results],
    ) -> Results:
        """Measure with nothing disturbed and nothing logged, and add the findings.

        Args:
            trainer: gives the precision and the progress bar.
            module: the model.
            probe: the samples.
            once: measures with passes of one size.

        Raises:
            Exception: the error of any process, on all of them.
        """

        def work(batch_size: int | None) -> Results:
            """Measure with passes of one size; fail on all processes if it fails on one."""
            progress, processes = trainer_progress(trainer), Processes(gather_objects)
            with failing_together(), trainer.precision_plugin.forward_context(), _not_logging(module):
                with undisturbed(module):
                    subject = Subject(module, probe, self.forward_fn, batch_size, processes, progress)
                    subject.ignore_index = self.settings.ignore_index
                    results = once(subject)
                return results.replace(findings=diagnose(results))

        return self.pass_size.halving(probe, work)


@contextmanager
def _not_logging(module: "pl.LightningModule") -> Iterator[None]:
    """Discard what our own forward passes log."""

    def discard(*args: Any, **kwargs: Any) -> None:
        """Log nothing."""

    modules = [vars(part) for part in module.modules() if isinstance(part, pl.LightningModule)]
    names = [(values, name) for values in modules for name in ("log", "log_dict") if name not in values]
    try:
        for values, name in names:
            values[name] = discard
        yield
    finally:
        for values, name in names:
            values.pop(name, None)
