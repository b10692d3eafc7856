"""Publish measurements to loggers and files."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_neuroimp import _compat
from lightning_neuroimp.batches.description import DescribeFn, Description, describe_samples
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.callbacks.metrics import cluster_scalars
from lightning_neuroimp.callbacks.processes import gather_objects
from lightning_neuroimp.display.samples import shown_samples
from lightning_neuroimp.display.tensorboard.summaries import write_summaries
from lightning_neuroimp.results.history import Agreement
from lightning_neuroimp.results.measurement import Results


class Publisher:
    """Write measurements to a results file and to every logger of a trainer.

    Args:
        name: prefix of all tags, and name of the folder.
        results_dir: folder for results files; None: in the first logger's folder.
        describe_sample: gives a text or picture of a sample; None: pictures for inputs that look like some.
    """

    def __init__(self, name: str, results_dir: Any, describe_sample: DescribeFn | None) -> None:
        self.name, self.results_dir, self.describe_sample = name, results_dir, describe_sample

    def publish(
        self, trainer: "pl.Trainer", results: Results, history: Sequence[Agreement], probe: ProbeSet | None
    ) -> None:
        """Write a measurement on the first process; every process must call this.

        Args:
            trainer: its loggers are written to.
            results: the measurement.
            history: agreement in the measurements so far, this one included.
            probe: the samples, some of which are shown; None: none are.

        Raises:
            Exception: the first failure, after everything else has been written.
        """
        folder = self._folder(trainer)
        if trainer.is_global_zero and folder is not None:
            results.save_new(results_files(folder, results))
        described, problem = self._described(trainer, results, probe)
        if trainer.is_global_zero:
            log_everywhere(trainer, results, self.name, history, described)
        if problem is not None:
            raise problem

    def log_values(self, trainer: "pl.Trainer", values: Mapping[str, float]) -> None:
        """Log the headline values after the last validation run, where the module itself can no longer log.

        Args:
            trainer: its loggers are written to.
            values: the values by key.
        """
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(dict(values), step_of(trainer))

    def _described(
        self, trainer: "pl.Trainer", results: Results, probe: ProbeSet | None
    ) -> tuple[dict[int, Description], Exception | None]:
        """Describe the samples that are worth showing; return an error, rather than raise it before all is logged."""
        mine: dict[int, Description] = {}
        problem = None
        if probe is not None and takes_pictures(trainer):
            try:
                with isolate_rng():
                    mine = describe_samples(probe, shown_samples(results), self.describe_sample)
            except Exception as error:
                problem = error
        shares = gather_objects(mine)
        return {number: description for share in shares for number, description in share.items()}, problem

    def _folder(self, trainer: "pl.Trainer") -> Path | None:
        """Return the folder for results files; None without a logger, or in a `fast_dev_run`, which leaves none."""
        if self.results_dir is not None:
            return Path(self.results_dir) / self.name
        # what the first process has counts: others may have no logger at all
        mine = log_folder(trainer.loggers[0]) if trainer.loggers else None
        folder = gather_objects(mine)[0]
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        return None if folder is None else Path(folder) / "neuroimp" / self.name


def step_of(trainer: "pl.Trainer") -> int:
    """Return the step under which Lightning logs values now: the number of batches that stepped.

    The documented `global_step` counts the steps of every optimizer.
    """
    return _compat.batches_that_stepped(trainer)


def log_everywhere(
    trainer: "pl.Trainer",
    results: Results,
    name: str,
    history: Sequence[Agreement] = (),
    described: Mapping[int, Description] | None = None,
) -> None:
    """Log scalars per cluster to every logger; histograms, pictures and tables to those that take them.

    Args:
        trainer: its loggers are written to.
        results: the measurement, logged under its step.
        name: prefix of all tags.
        history: agreement in the measurements so far.
        described: texts and pictures of the samples that are shown, by sample number.

    Raises:
        Exception: the first failure of a logger, after all others have been written to.
    """
    problems: list[Exception] = []
    for logger in trainer.loggers:
        try:
            logger.log_metrics(cluster_scalars(results, name), results.step)
            writer = getattr(logger, "experiment", None)
            if _is_writer(writer):
                write_summaries(writer, results, name, results.step, history, described)
                flush = getattr(writer, "flush", None)
                if flush is not None:
                    flush()
        except Exception as error:
            problems.append(error)
    if problems:
        raise problems[0]


def takes_pictures(trainer: "pl.Trainer") -> bool:
    """Tell whether a logger of the first process takes pictures; every process must call this."""
    mine = any(_is_writer(getattr(logger, "experiment", None)) for logger in trainer.loggers)
    return bool(gather_objects(mine)[0])


def _is_writer(writer: Any) -> bool:
    """Tell whether a logger's backend writes pictures, histograms and texts as a TensorBoard writer does."""
    return all(hasattr(writer, kind) for kind in ("add_histogram", "add_image", "add_text"))


def log_folder(logger: Any) -> str | None:
    """Return the folder of a logger's current run; None for loggers without files.

    For loggers that name no such folder, it is the one where Lightning puts checkpoints.
    """
    if getattr(logger, "log_dir", None):
        return str(logger.log_dir)
    if not logger.save_dir:
        return None
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return str(Path(logger.save_dir) / str(logger.name) / version)


def results_files(folder: Path, results: Results) -> Iterator[Path]:
    """Yield candidate names for a measurement's file: the first is taken that no other run has taken.

    Args:
        folder: of the results files.
        results: the measurement.
    """
    name = f"epoch={results.epoch:04d}-step={results.step:07d}"
    for version in itertools.count():
        yield folder / f"{name}{f'-v{version}' if version else ''}.npz"
