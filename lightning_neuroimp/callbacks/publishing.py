"""Publishing: a measurement to loggers and files."""

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
        describe_sample: shows what a sample looks like; None: by default.
    """

    def __init__(self, name: str, results_dir: Any, describe_sample: DescribeFn | None) -> None:
        self.name, self.results_dir, self.describe_sample = name, results_dir, describe_sample

    def publish(
        self, trainer: "pl.Trainer", results: Results, history: Sequence[Agreement], probe: ProbeSet | None
    ) -> None:
        """Write a measurement, on the first process; all processes must call it.

        Args:
            trainer: whose loggers.
            results: the measurement.
            history: agreement in the measurements so far, this one included.
            probe: for the samples that are shown; None: none are.

        Raises:
            Exception: the first failure, after everything else was written.
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
        """Log the headline values where the module cannot do it any more: after the last validation run.

        Args:
            trainer: whose loggers.
            values: by key.
        """
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(dict(values), step_of(trainer))

    def _described(
        self, trainer: "pl.Trainer", results: Results, probe: ProbeSet | None
    ) -> tuple[dict[int, Description], Exception | None]:
        """Describe the samples that are worth showing; return what went wrong too, so that all else is still logged."""
        mine: dict[int, Description] = {}
        problem = None
        if probe is not None and takes_pictures(trainer):
            try:
                with isolate_rng():
                    mine = describe_samples(probe, shown_samples(results), self.describe_sample)
            except Exception as error:
                problem = error
        return {number: one for share in gather_objects(mine) for number, one in share.items()}, problem

    def _folder(self, trainer: "pl.Trainer") -> Path | None:
        """Return where results files go; None without a logger, or where nothing must stay (`fast_dev_run`)."""
        if self.results_dir is not None:
            return Path(self.results_dir) / self.name
        if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        folder = gather_objects(log_folder(trainer.loggers[0]))[0]
        return None if folder is None else Path(folder) / "neuroimp" / self.name


def step_of(trainer: "pl.Trainer") -> int:
    """Return the step at which Lightning's own loggers put what is logged now.

    That is the number of batches that stepped; the documented `global_step` counts every optimizer.
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

    One that fails does not keep the others from it; the first failure is raised at the end.

    Args:
        trainer: whose loggers.
        results: the measurement; its step is that of the loggers.
        name: prefix of all tags.
        history: agreement in the measurements so far.
        described: what the samples look like that are worth showing.
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
    """Tell whether a logger of the first process takes pictures."""
    mine = any(_is_writer(getattr(logger, "experiment", None)) for logger in trainer.loggers)
    return bool(gather_objects(mine)[0])


def _is_writer(writer: Any) -> bool:
    return all(hasattr(writer, kind) for kind in ("add_histogram", "add_image", "add_text"))


def log_folder(logger: Any) -> str | None:
    """Return the folder of a logger's present run; None for loggers without files.

    Loggers other than Lightning's own name no such folder: then it is the one where Lightning puts checkpoints.
    """
    if getattr(logger, "log_dir", None):
        return str(logger.log_dir)
    if not logger.save_dir:
        return None
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return str(Path(logger.save_dir) / str(logger.name) / version)


def results_files(folder: Path, results: Results) -> Iterator[Path]:
    """Yield names for a measurement's file: the first that does not exist is its own, also beside another run's."""
    name = f"epoch={results.epoch:04d}-step={results.step:07d}"
    for version in itertools.count():
        yield folder / f"{name}{f'-v{version}' if version else ''}.npz"
