"""Lead one run of a trainer from its validation batches to published measurements."""

import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_neuroimp.callbacks.collecting import Collector
from lightning_neuroimp.callbacks.logged_accuracy import LoggedAccuracy
from lightning_neuroimp.callbacks.measuring import Measurer
from lightning_neuroimp.callbacks.metrics import check_metrics, metrics, missing_metrics
from lightning_neuroimp.callbacks.options import RunOptions
from lightning_neuroimp.callbacks.out_of_memory import PassSize
from lightning_neuroimp.callbacks.processes import failing_together, gather_objects
from lightning_neuroimp.callbacks.progress import say
from lightning_neuroimp.callbacks.publishing import Publisher
from lightning_neuroimp.callbacks.rehearsing import SanityRehearsal
from lightning_neuroimp.callbacks.schedule import PassCount, Schedule
from lightning_neuroimp.callbacks.state import RunState
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.clusters.choice import FIXED, kind_of
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.history import agreement
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement
from lightning_neuroimp.study.optimal_baseline import COST


class MeasuredRun:
    """Measure, keep and publish importances in one run of a trainer.

    Attributes:
        state: how far the run has come; a checkpoint carries it.
        collector: draws the probe set.
        rehearsal: tries a measurement out in the sanity check.
        schedule: when measurements are due; None until the run is open, and if nothing is measured.
        results: the last measurement; None before the first one.
        checked: the last measurement that was checked by ablation; None before the first one.
        failure: what the last measurement that failed ended in, in words; None while none has failed.

    Args:
        options: the callback's validated arguments.
        state: the state to begin with.
        results: last measurement of the run before; None: there was none.
        checked: last checked measurement of the run before; None: there was none.
    """

    def __init__(
        self, options: RunOptions, state: RunState, results: Results | None = None, checked: Results | None = None
    ) -> None:
        self.options, self.state = options, state
        self.results, self.checked = results, checked
        self.collector = Collector(options.new_sampler, options.dataloaders)
        self.schedule: Schedule | None = None
        self.failure: str | None = None
        self._logged_accuracy = LoggedAccuracy(options)
        self._measured_now = False  # whether this validation run was measured
        self._measurer = Measurer(
            options.settings, options.check, options.forward_fn, PassSize(options.name, options.batch_size)
        )
        self.rehearsal = SanityRehearsal(options, self._measurer)
        self._mistake: MisconfigurationException | None = None  # is raised once the epoch's checkpoint is written
        self._publisher = Publisher(options.name, options.results_dir, options.describe_sample)
        self._missing: dict[str, float] = {}  # stands for a measurement that failed
        self._proved = False  # whether a measurement of this run has succeeded
        self._weights = -1  # global step of the weights that were measured last

    def open(self, trainer: "pl.Trainer", module: "pl.LightningModule") -> Schedule:
        """Look the layers up, and plan the passes.

        Args:
            trainer: the trainer of the run.
            module: the model, once it has made all of its layers.

        Raises:
            InvalidArgument: if a layer does not exist.
        """
        settings = self.options.settings
        sites = find_sites(module, settings.layers)
        self._missing = missing_metrics(
            self.options.name,
            [str(site) for site in sites],
            [attribution.name for attribution in settings.attributions],
            changing=kind_of(settings.clusters) not in FIXED,
            checked=self.options.check is not None,
        )
        passes = PassCount(
            len(sites),
            len(settings.attributions),
            self.options.max_samples,
            surveyed=settings.kmeans is not None
            or bool(settings.removed_to.kinds & {"mean", "resample", "optimal"})
            or trainer.world_size > 1,
            gradients=any(attribution.needs_gradient for attribution in settings.attributions),
            extra=[
                *(f"baseline, at each layer: {COST}" for _ in settings.removed_to.kinds & {"optimal"}),
                *(f"{each.name}, at each layer: {each.cost}" for each in settings.attributions if each.cost),
            ],
        )
        self.schedule = Schedule(self.options.check, passes, self.options.every_n_epochs)
        return self.schedule

    def open_validation(self, trainer: "pl.Trainer") -> None:
        """Begin to draw the probe set, unless it is the sanity check.

        Args:
            trainer: at the start of a validation run.

        Raises:
            MisconfigurationException: if a validation loader that was chosen does not exist.
        """
        self._measured_now = False
        try:
            self.collector.require_loaders(trainer)
        except InvalidArgument as error:
            raise MisconfigurationException(f"NeuronImportance {self.options.name!r}: {error}") from error
        if trainer.sanity_checking:
            self.rehearsal.open()
        else:
            self.collector.open()

    def close_validation(self, trainer: "pl.Trainer") -> None:
        """Compare a measurement of this validation run with what the run has logged.

        Args:
            trainer: at the end of the run, all of whose metrics are complete.
        """
        before = self.results
        if not self._measured_now or before is None:
            return
        self.results = self._logged_accuracy.at_the_end(trainer, before)
        if self.checked is before:
            self.checked = self.results

    def end_validation(self, trainer: "pl.Trainer", module: "pl.LightningModule") -> dict[str, float]:
        """Measure if it is due; return the values to log, the same on every process.

        Args:
            trainer: the trainer of the run.
            module: the model.

        Raises:
            MisconfigurationException: if an argument proves invalid in the first measurement of the run.
            Exception: any error in a measurement, with `on_error="raise"`.
        """
        assert self.schedule is not None
        first = not self.state.runs and not self.state.measured  # also of a run that goes on from a checkpoint
        due = self.schedule.measurement_is_due(self.state.runs, alone=trainer.state.fn == "validate")
        self.state.runs += 1
        if due and self._mistake is None:
            self._measure(trainer, module, first)
        return (self.state.metrics or self._missing) | self.state.check_metrics

    def rehearse(self, trainer: "pl.Trainer", module: "pl.LightningModule") -> None:
        """Try a measurement out at the end of the sanity check.

        Args:
            trainer: the trainer of the run.
            module: the model.

        Raises:
            MisconfigurationException: if an argument proves invalid.
        """
        self.rehearsal.close(trainer, module, first=not self.state.runs and not self.state.measured)

    def begin_epoch(self) -> None:
        """Stop the training run if the first measurement has found a mistake: by now the checkpoint is written.

        Raises:
            MisconfigurationException: that names the mistake.
        """
        if self._mistake is not None:
            raise self._mistake

    def end_training(self, trainer: "pl.Trainer", module: "pl.LightningModule") -> None:
        """Make the last check if it was skipped: only now is it known that no validation run follows.

        Args:
            trainer: the trainer of the run.
            module: the model.
        """
        if self.schedule is None or not self.schedule.pending or self.collector.probe is None:
            return
        before = self.results
        # gathered, as every process must take the same branch
        if all(gather_objects(self._weights == trainer.global_step)):
            self._check_last(trainer, module)
        else:
            self._measure(trainer, module, first=False, last=True)
        if self.results is not before:
            values = self.state.metrics | self.state.check_metrics
            tensors = {key: torch.tensor(value, device=module.device) for key, value in values.items()}
            trainer.callback_metrics.update(tensors)
            self._publisher.log_values(trainer, values)

    def _measure(self, trainer: "pl.Trainer", module: "pl.LightningModule", first: bool, *, last: bool = False) -> None:
        """Measure, keep the results and publish them.

        Args:
            trainer: the trainer of the run.
            module: the model.
            first: whether an invalid argument stops the training run.
            last: whether the training run is over, so that a check is made whatever it costs.
        """
        try:
            with failing_together():
                probe = self.collector.close()
                checked = last or self._check_is_due(trainer)
            results = self._measurer.measure(trainer, module, probe, self.state.previous, checked=checked)
            pooled = kind_of(self.options.settings.clusters) != "dataloaders"
            results = results.replace(notes=(*results.notes, *self.collector.notes(pooled=pooled)))
            results = self._logged_accuracy.before_publishing(results)
        except Exception as error:
            self.failure = (
                f"the measurement of epoch {trainer.current_epoch} failed with {type(error).__name__}: {error}"
            )
            if isinstance(error, InvalidArgument) and first:
                self._stop(trainer, f"NeuronImportance {self.options.name!r}: {error}{self.collector.hint()}", error)
                return
            self._fail(f"has no measurement of epoch {trainer.current_epoch}", error)
            return
        self._keep(trainer, results)
        self._publish(trainer, results)

    def _stop(self, trainer: "pl.Trainer", message: str, error: InvalidArgument) -> None:
        """Stop the run for a mistake in the arguments: at once, or where an epoch would be lost, after its checkpoint.

        Args:
            trainer: the trainer of the run.
            message: what is wrong.
            error: the mistake.
        """
        mistake = MisconfigurationException(message)
        mistake.__cause__ = error.with_traceback(None)  # without the frames, which hold batches
        if trainer.state.fn != "fit" or self.options.on_error == "raise":
            raise mistake
        self._mistake = mistake
        self.collector.forget()
        warnings.warn(f"{message}. The training run stops before its next epoch; this one is kept", stacklevel=2)

    def _check_last(self, trainer: "pl.Trainer", module: "pl.LightningModule") -> None:
        """Check the last measurement, since which no step was taken, and publish it."""
        assert self.results is not None
        try:
            results = self._measurer.check_again(trainer, module, self.collector.close(), self.results)
        except Exception as error:
            self._fail(f"has no check of epoch {self.results.epoch}", error)
            return
        self.results = results = self._logged_accuracy.before_publishing(results)
        self._keep_check(results)
        self._publish(trainer, results)

    def _publish(self, trainer: "pl.Trainer", results: Results) -> None:
        """Write a measurement to files and loggers, on all processes or none."""
        try:
            with failing_together():
                self._publisher.publish(trainer, results, self.state.agreements, self.collector.probe)
        except Exception as error:
            self._fail(f"could not write its measurement of epoch {results.epoch}", error)

    def _fail(self, what: str, error: Exception) -> None:
        """Warn of a failure, or raise it with `on_error="raise"`.

        Args:
            what: what failed, for the message.
            error: the failure.
        """
        if self.options.on_error == "raise":
            raise error
        message = f"{what}; training goes on. {type(error).__name__}: {error}"
        warnings.warn(f"NeuronImportance {self.options.name!r} {message}", stacklevel=2)

    def _keep(self, trainer: "pl.Trainer", results: Results) -> None:
        """Keep a measurement, its metrics and what the next one needs of it."""
        state, name = self.state, self.options.name
        self.results, self._weights, self._measured_now = results, trainer.global_step, True
        if results.has_faithfulness:
            self._keep_check(results)
        elif not self._proved:
            self.checked = None  # the check of a run before says nothing about this run
        state.metrics, state.previous = metrics(results, name), PreviousMeasurement.of(results)
        state.remember([agreement(results, importance) for importance in results.importances])
        state.measured += 1
        if not self._proved:
            took = ", ".join(f"{part} {seconds:.2g} s" for part, seconds in results.seconds.items())
            say(trainer, f"NeuronImportance {name!r}, first measurement took: {took}")
        self._proved = True

    def _keep_check(self, results: Results) -> None:
        """Keep a checked measurement, its metrics and the duration of the check."""
        assert self.schedule is not None
        self.checked = results
        self.schedule.checked(self._measurer.check_seconds)
        self.state.check_metrics = check_metrics(results, self.options.name)

    def _check_is_due(self, trainer: "pl.Trainer") -> bool:
        """Tell whether to check this measurement by ablation; every process decides as the first one does."""
        assert self.schedule is not None
        alone, before = trainer.state.fn == "validate", bool(self.state.check_metrics)
        if not self.schedule.check_is_due(self.state.measured, alone=alone, checked_before=before):
            return False
        may = bool(gather_objects(self.schedule.may_check() or _is_last(trainer))[0])
        if not may:
            message = self.schedule.skip()
            if self.schedule.skipped == 1:
                say(trainer, f"NeuronImportance {self.options.name!r}, {message} (said once)")
        return may


def _is_last(trainer: "pl.Trainer") -> bool:
    """Tell whether this is the validation at the end of the last epoch that was asked for.

    If a training run ends otherwise, by `max_steps`, `max_time` or EarlyStopping, `end_training` makes the check.
    """
    last = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
    return trainer.state.fn == "fit" and last and trainer.is_last_batch
