"""Define NeuronImportance, the callback: its arguments and Lightning's hooks; `MeasuredRun` does the work."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_neuroimp.ablation.settings import AblationFaithfulness
from lightning_neuroimp.batches.layout import read_batch
from lightning_neuroimp.callbacks.options import RunOptions, options_of, refuse_sharded
from lightning_neuroimp.callbacks.run import MeasuredRun
from lightning_neuroimp.callbacks.state import RunState, configuration_of, pack, unpack
from lightning_neuroimp.capture.baselines import BaselineLike
from lightning_neuroimp.clusters.kmeans import KMeansClusters
from lightning_neuroimp.display.summary import summary as write_summary
from lightning_neuroimp.errors import InvalidArgument, MeasurementFailed
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.site import Site


class NeuronImportance(Callback):
    """Measure the importance of every neuron for every cluster of validation samples, and check it by ablation.

    In the first validation run a bounded probe set is drawn from the validation batches. At the end of each validation
    run (that is, `validation epoch`) the importance of the layers' neurons is computed on it and checked by ablation;
    the model and the training run are left bit for bit as they were. Nothing is done during the sanity check.

    Metrics that can be monitored (they are logged again, unchanged, if a measurement is left out; if the first one
    failed, epochs are -1, p-values 1 and all others 0):
    ``<name>/measured_epoch``, and with ablations ``<name>/checked_epoch``, ``<name>/<layer>/gap``, ``/lds``,
    ``/p_value``, ``/relative_gap`` (``<name>/<layer>/<attribution>/gap``, ... for several attributions), and
    ``<name>/adjusted_rand_index`` where clusters can change.

    A checkpoint carries the clusters' identities, the last importances and values, and the schedule, so that a resumed
    run goes on as an uninterrupted one would. If memory runs out, the passes are halved.

    Args:
        layers: names or globs (`*` one level, `**` all) as in `model.named_modules()`; their outputs' channels are the
            neurons. Choose activations rather than the linear layers before them.
        clusters: "labels", "predictions", a mapping from classes to groups, `KMeansClusters(...)`, "dataloaders" (those
            of each validation loader), or a callable `batch -> one integer or string per sample`.
        attribution: "blockwise_gradient", "gradient_x_activation", "layer_norm_rule", "masked_gradient",
            "integrated_gradients", "leave_one_out", "shapley", "regression", "progressive_gradient", "conductance",
            "internal_influence", "taylor", "gradient", "activation", "random", a method of Captum such as
            "captum.attr.DeepLift", a callable `SiteBatch -> (sample, neuron) scores`, or several of these; with options
            as in "masked_gradient(points=2)" or `MaskedGradient(points=2)`.
        target: scalar explained per sample: "margin", "logit", "log_probability", "probability", or a callable
            `(logits, classes) -> (sample,)`.
        baseline: what a removed neuron is set to: "zero", "mean" over the probe set, "resample" (what another sample
            has), "optimal" (one vector per layer that keeps the cross entropy least under random removals; it takes,
            for each layer, 32 times a forward pass, and a forward and backward pass of what follows it), a number, a
            vector with one number per channel, a mapping from layers to "zero", "mean", numbers or vectors, or
            `ReferenceInput(...)`, which only Python can pass; all others can be written in YAML.
        faithfulness: how importance is checked by ablation; None: no ablation.
        forward_fn: `forward_fn(module, batch) -> (logits, targets)`, when inputs, targets and logits cannot be
            inferred; or `-> (logits, targets, tokens)`, where `tokens` is True for non-padding tokens.
        max_samples: upper bound on the number of samples in the probe set, over all processes.
        max_bytes: upper bound on the memory of the probe set on the host, per process.
        batch_size: number of samples in our passes; by default that of the validation loader.
        every_n_epochs: measure in every n-th validation run, beginning with the first.
        name: prefix of all keys, tags and file names, and of the state in checkpoints; several callbacks need
            different ones.
        seed: seed of the probe set, KMeans and random orders; the global random state is neither read nor changed.
        on_error: reaction to an exception in a measurement: "warn" continues the training run without the measurement,
            "raise" stops it. An invalid argument stops it in any case, at the latest in the first measurement.
        results_dir: folder for a results file per measurement; by default `neuroimp` in the first logger's folder.
        target_class: class whose target is explained: each sample's "label", the class "predicted" for it, or one
            class for all, by its number.
        classes: labels (numbers, or names in `class_names`) of the samples that are drawn and clustered; None: all.
        class_names: names of all classes, for tables.
        groups: `batch -> one integer or string per sample`; samples with equal values, such as patients, are never
            divided between the halves of a cluster.
        stratify: True: the probe set holds as many samples of each label as there is room for; or a callable,
            `batch -> one integer or string per sample`.
        describe_sample: `sample -> text or picture` for the samples that are shown; by default pictures for inputs
            that look like some, values for others. Pictures are arrays or tensors, (height, width) or with channels.
        dataloaders: number of the validation loader, or numbers of those, whose samples are drawn, 0 for the first;
            None: all. Of several loaders that are different data sets, choose one, or make a cluster of each.
        ignore_index: label of samples without one, such as -1 or 255, which are left out; None: all have one.

    Raises:
        MisconfigurationException: if an argument is invalid.

    Example::

        importance = NeuronImportance(layers=["encoder.1", "encoder.3"], clusters=KMeansClusters(8))
        trainer = Trainer(callbacks=[importance])
        trainer.fit(model, datamodule=data)
        print(importance.summary())

    >>> NeuronImportance(layers="encoder.1", clusters=KMeansClusters(8)).summary()
    'neuroimp: nothing measured yet'
    """

    def __init__(
        self,
        layers: str | Site | Sequence[str | Site],
        clusters: str | KMeansClusters | dict[int | str, int | str] | Callable[..., Any] = "labels",
        attribution: str | Sequence[str | Callable[..., Any]] | Callable[..., Any] = "blockwise_gradient",
        target: str | Callable[..., Any] = "margin",
        baseline: BaselineLike = "zero",
        faithfulness: AblationFaithfulness | None = AblationFaithfulness(),  # noqa: B008 (frozen)
        forward_fn: Callable[..., Any] | None = None,
        max_samples: int = 1024,
        max_bytes: int = 2**30,
        batch_size: int | None = None,
        every_n_epochs: int = 1,
        name: str = "neuroimp",
        seed: int = 0,
        on_error: str = "warn",
        results_dir: str | os.PathLike[str] | None = None,
        target_class: str | int = "label",
        classes: Sequence[int | str] | None = None,
        class_names: Sequence[str] = (),
        groups: Callable[..., Any] | None = None,
        stratify: bool | Callable[..., Any] = False,
        describe_sample: Callable[..., Any] | None = None,
        dataloaders: int | Sequence[int] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.clusters, self.attribution = layers, clusters, attribution
        self.target, self.baseline, self.faithfulness = target, baseline, faithfulness
        self.forward_fn, self.max_samples, self.max_bytes = forward_fn, max_samples, max_bytes
        self.batch_size, self.every_n_epochs, self.name = batch_size, every_n_epochs, name
        self.seed, self.on_error, self.results_dir = seed, on_error, results_dir
        self.target_class, self.classes, self.class_names = target_class, classes, class_names
        self.groups, self.stratify, self.describe_sample = groups, stratify, describe_sample
        self.dataloaders, self.ignore_index = dataloaders, ignore_index
        self._options = self._validated()
        self._run = MeasuredRun(self._options, RunState())
        self._enabled = False

    def _validated(self) -> RunOptions:
        """Validate the arguments, as the attributes hold them now.

        Raises:
            MisconfigurationException: if one of them is invalid.
        """
        try:
            return options_of(self)
        except InvalidArgument as error:
            raise MisconfigurationException(f"NeuronImportance: {error}") from error

    @property
    def results(self) -> Results:
        """Return the last measurement.

        Raises:
            MeasurementFailed: before the first one, and after those that failed.
        """
        if self._run.results is None:
            why = self._run.failure or "run trainer.fit() first"
            raise MeasurementFailed(f"NeuronImportance {self.name!r} has measured nothing yet: {why}")
        return self._run.results

    def summary(self, *, all_findings: bool = False) -> str:
        """Describe the last measurement that was checked by ablation (the last one if none was) in tables and words.

        Args:
            all_findings: whether to list all findings, rather than the most important ones.
        """
        last, checked = self._run.results, self._run.checked
        if last is None:
            return f"{self.name}: nothing measured yet"
        shown = last if checked is None else checked
        text = write_summary(shown, self.name, all_findings=all_findings)
        if shown is not last:
            text = (
                f"Note: this is the last check, of epoch {shown.epoch}. Epoch {last.epoch} was measured without one, "
                "because of every_n_epochs or max_overhead; AblationFaithfulness(max_overhead=None) checks whatever it "
                f"costs.\n\n{text}"
            )
        return text

    @property
    @override
    def state_key(self) -> str:
        """Return the key of this callback's state in checkpoints, which holds its name."""
        return self._generate_state_key(name=self.name)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return pack(self._run.state, self._configuration())

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state in a checkpoint, or warn why it does not fit."""
        self._run.state, reasons = unpack(state_dict, self._configuration())
        if self.faithfulness is None:
            self._run.state.check_metrics = {}
        if reasons:
            rank_zero_warn(
                f"NeuronImportance {self.name!r}: the checkpoint does not fit: {'; '.join(reasons)}. Cluster "
                "identities, drift and the values of the last measurement start anew"
            )

    def _configuration(self) -> dict[str, Any]:
        """Return the plain values under which the state in a checkpoint is valid."""
        return configuration_of(
            self._options.settings, self._options.max_samples, self.stratify, self._options.dataloaders
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the probe set, and the model that Lightning binds to `log`, out of copies and pickles."""
        kept = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict", "_run")}
        return {**kept, "_carried": (self._run.state, self._run.results, self._run.checked)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, with a new run that carries the results on."""
        carried = state.pop("_carried")
        vars(self).update(state)
        self._run = MeasuredRun(self._options, *carried)

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Prepare a run of the trainer, and refuse one in which nothing could be measured."""
        self._options = self._validated()  # an attribute may have been changed since
        # results stay; clusters keep their identities in another run if it is on the same samples
        before = self._run
        self._run = MeasuredRun(self._options, RunState(previous=before.state.previous), before.results, before.checked)
        self._enabled = stage in ("fit", "validate") and self._has_validation(trainer, stage)
        if not self._enabled:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        ours = [callback for callback in callbacks if isinstance(callback, NeuronImportance)]
        if [callback.name for callback in ours].count(self.name) > 1:
            raise MisconfigurationException(
                f"two NeuronImportance callbacks are named {self.name!r}, so that their values would overwrite each "
                "other; give each its own name="
            )
        refuse_sharded(trainer.strategy, self.name)
        # ours come first, as callbacks such as weight averaging swap the validated weights out at the epoch's end
        rest = [callback for callback in callbacks if not isinstance(callback, NeuronImportance)]
        trainer.callbacks = [*ours, *rest]  # type: ignore[attr-defined]

    def _has_validation(self, trainer: "pl.Trainer", stage: str) -> bool:
        """Tell whether validation runs; refuse a trainer that lacks the data or the step for them."""
        if stage != "fit" or trainer.enable_validation:
            return True
        if trainer.limit_val_batches == 0:
            rank_zero_warn(f"NeuronImportance {self.name!r} does nothing: limit_val_batches=0 turns validation off")
            return False
        raise MisconfigurationException(
            f"NeuronImportance {self.name!r} measures on validation data, but there is no validation loader (or no "
            "validation_step); pass val_dataloaders to trainer.fit, or define val_dataloader"
        )

    @override
    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Plan the passes."""
        self._open(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Stop a run whose first measurement has found a mistake in the arguments."""
        self._run.begin_epoch()

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Plan the passes if `fit` has not, and begin to draw the probe set."""
        self._open(trainer, pl_module)
        if self._enabled:
            self._run.open_validation(trainer)

    def _open(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Plan the passes once the module has made all of its layers, and announce them."""
        if not self._enabled or self._run.schedule is not None:
            return
        try:
            schedule = self._run.open(trainer, pl_module)
        except InvalidArgument as error:
            raise MisconfigurationException(f"NeuronImportance {self.name!r}: {error}") from error
        rank_zero_info(f"NeuronImportance {self.name!r}, {schedule}")

    @override
    def on_validation_batch_start(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Offer the batch to the probe set; in the sanity check, start timing the step."""
        schedule = self._run.schedule
        if schedule is None:
            return
        if trainer.sanity_checking:
            self._run.rehearsal.add(trainer, batch, batch_idx, dataloader_idx)
            schedule.open_step()
        else:
            self._run.collector.add(trainer, batch, batch_idx, dataloader_idx)

    @override
    def on_validation_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop timing the step, in the sanity check."""
        schedule = self._run.schedule
        if trainer.sanity_checking and schedule is not None:
            try:
                schedule.close_step(read_batch(batch).size)
            except Exception:
                return  # the first real validation run will report the mistake

    @override
    def on_sanity_check_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Rehearse a measurement on the first batch, and announce how long one will take."""
        schedule = self._run.schedule
        if schedule is not None:
            self._run.rehearse(trainer, pl_module)
        if schedule is not None and (estimate := schedule.estimate(sum(trainer.num_val_batches))):
            rank_zero_info(f"NeuronImportance {self.name!r}, estimated from the sanity check: at most {estimate}")

    @override
    def on_validation_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Measure if it is due, and log the headline values."""
        if trainer.sanity_checking or self._run.schedule is None:
            return
        values = self._run.end_validation(trainer, pl_module)
        if values:
            # every process has computed the same values and logs the same keys in the same order
            pl_module.log_dict(dict(sorted(values.items())), on_step=False, on_epoch=True, sync_dist=True)

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Compare the measurement with the accuracy that the validation run has logged."""
        if not trainer.sanity_checking and self._run.schedule is not None:
            self._run.close_validation(trainer)

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Make the last check if it was skipped."""
        self._run.end_training(trainer, pl_module)

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Release the samples."""
        self._run.collector.forget()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Release the samples, and keep what ended the run."""
        self._run.collector.forget()  # there will be no teardown
        self._run.failure = self._run.failure or f"the run was ended by {type(exception).__name__}: {exception}"
