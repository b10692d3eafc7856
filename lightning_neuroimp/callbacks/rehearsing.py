"""Rehearse a measurement in Lightning's sanity check, so that mistakes are shown before the first epoch is paid for."""

import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_neuroimp.batches.probe import EmptyProbeError, ProbeSampler
from lightning_neuroimp.callbacks.collecting import Collector
from lightning_neuroimp.callbacks.measuring import Measurer
from lightning_neuroimp.callbacks.options import RunOptions
from lightning_neuroimp.callbacks.processes import failing_together, gather_objects, out_of_memory
from lightning_neuroimp.errors import InvalidArgument, NonFiniteOutputs


class SanityRehearsal:
    """Draw the first batch of each validation loader in the sanity check, and rehearse a measurement on them.

    Nothing is kept of it but what the model's axes are, and nothing is logged.

    Args:
        options: the callback's validated arguments.
        measurer: runs the model.
    """

    def __init__(self, options: RunOptions, measurer: Measurer) -> None:
        self._options, self._measurer = options, measurer
        self._collector: Collector | None = None

    def open(self) -> None:
        """Begin to draw."""
        self._collector = Collector(self._new_sampler, self._options.dataloaders)
        self._collector.open()

    def _new_sampler(self) -> ProbeSampler:
        """Make a sampler that takes what comes: the first batch need not have a sample of every class."""
        sampler = self._options.new_sampler()
        sampler.classes = None
        return sampler

    def add(self, trainer: "pl.Trainer", batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        """Offer a batch; only the first one of a loader is taken.

        Args:
            trainer: in its sanity check.
            batch: before the validation step.
            batch_idx: its number in its loader.
            dataloader_idx: the loader's number.
        """
        if self._collector is not None and batch_idx == 0:
            self._collector.add(trainer, batch, batch_idx, dataloader_idx)

    def close(self, trainer: "pl.Trainer", module: "pl.LightningModule", *, first: bool) -> None:
        """Rehearse on what was drawn; every process must call this.

        Args:
            trainer: at the end of its sanity check.
            module: the model.
            first: whether a mistake stops the run: not one that goes on from a checkpoint.

        Raises:
            MisconfigurationException: for what the first measurement would refuse.
            Exception: any other error, with `on_error="raise"`.
        """
        collector, self._collector = self._collector, None
        # a process that has got no batch leaves the question to the first measurement, on all of them
        if collector is None or not all(gather_objects(collector.came)):
            return
        name = self._options.name
        try:
            with failing_together():
                probe = collector.close()
            doubts = self._measurer.rehearse(trainer, module, probe)
        except EmptyProbeError:
            return  # a first batch without labels says nothing of the others
        except InvalidArgument as error:
            if first:
                raise MisconfigurationException(f"NeuronImportance {name!r}: {error}{collector.hint()}") from error
            return  # the measurements warn
        except NonFiniteOutputs:
            return  # of a network that is not trained yet
        except Exception as error:
            if out_of_memory(error):
                return  # the first measurement makes its passes smaller
            if self._options.on_error == "raise":
                raise
            doubts = (f"{type(error).__name__}: {error}",)
        finally:
            collector.forget()
        for doubt in doubts:
            warnings.warn(f"NeuronImportance {name!r}, tried out on the first batch: {doubt}", stacklevel=2)
