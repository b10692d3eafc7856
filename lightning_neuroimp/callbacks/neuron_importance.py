"""NeuronImportance: importance and its faithfulness at validation epochs."""

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.memory import garbage_collection_cuda
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from lightning_neuroimp.ablation.settings import AblationFaithfulness
from lightning_neuroimp.batches.description import Description, describe_samples
from lightning_neuroimp.batches.probe import ProbeSampler, ProbeSet
from lightning_neuroimp.batches.structure import batch_size as samples_in
from lightning_neuroimp.batches.structure import unpacked
from lightning_neuroimp.callbacks.bars import say, trainer_progress
from lightning_neuroimp.callbacks.cost import CostKeeper
from lightning_neuroimp.callbacks.loggers import (
    check_metrics,
    log_everywhere,
    log_folder,
    metrics,
    missing_metrics,
    results_file,
    step_of,
    takes_pictures,
)
from lightning_neuroimp.callbacks.processes import (
    MISTAKES,
    failing_together,
    gather_objects,
    out_of_memory,
    sample_numbers,
)
from lightning_neuroimp.callbacks.state import RunState, pack, unpack
from lightning_neuroimp.capture.removal import check_baseline, describe_baseline
from lightning_neuroimp.capture.sites import check_layers, find_sites
from lightning_neuroimp.capture.targets import check_target, check_target_class
from lightning_neuroimp.clusters.choice import check_clusters, describe_source
from lightning_neuroimp.clusters.classes import ClassClusters, check_class_names, class_numbers
from lightning_neuroimp.clusters.kmeans import KMeansClusters
from lightning_neuroimp.display.samples import shown_samples
from lightning_neuroimp.display.summary import summary as write_summary
from lightning_neuroimp.importance.attributions.base import resolve_attributions
from lightning_neuroimp.results.history import agreement
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.previous import PreviousMeasurement
from lightning_neuroimp.site import Site
from lightning_neuroimp.study.ablation import ablation_faithfulness
from lightning_neuroimp.study.importance import neuron_importance
from lightning_neuroimp.study.randomisation import weight_randomisation

_MOST_LEFT_OUT = 5  # notes on batches


class NeuronImportance(Callback):
    """Importance of every neuron for every cluster of validation samples, and whether it can be believed.

    In the first validation run a bounded probe set is drawn from the validation batches. At the end of each validation
    run (that is, `validation epoch`) the importance of the layers' neurons is computed on it and checked by ablation;
    the model and the training are left bit for bit as they were. Nothing is done during the sanity check.

    Metrics that can be monitored (they are logged again, unchanged, where a measurement is left out; where the first
    one failed, epochs are -1, p-values 1 and all others 0):
    ``<name>/measured_epoch``, and with ablations ``<name>/checked_epoch``, ``<name>/<layer>/gap``, ``/lds``,
    ``/p_value``, ``/relative_gap`` (``<name>/<layer>/<attribution>/gap``, ... for several attributions), and
    ``<name>/adjusted_rand_index`` where clusters can change.

    A checkpoint carries the clusters' identities, the last importances and values, and the schedule, so that a resumed
    run goes on as an uninterrupted one would. Where memory runs out, the passes are halved.

    Args:
        layers: names or globs (`*` one level, `**` all) as in `model.named_modules()`; their outputs' channels are the
            neurons. Choose activations rather than the linear layers before them.
        clusters: "labels", "predictions", a mapping from classes to groups, `KMeansClusters(...)`, or a callable
            `batch -> one integer or string per sample`.
        attribution: "gradient_x_activation", "gradient", "activation", "integrated_gradients", "masked_gradient",
            "leave_one_out", "random", a callable `SiteBatch -> (sample, neuron) scores`, or several of these.
        target: scalar explained per sample: "margin", "logit", "log_probability", "probability", or a callable
            `(logits, classes) -> (sample,)`.
        baseline: what a removed neuron is set to: "zero", "mean" over the probe set, "resample" (what another sample
            has), or a number.
        faithfulness: how ablation is measured; None: no ablation.
        forward_fn: `forward_fn(module, batch) -> (logits, targets)` for batches and models that cannot be told apart;
            or `-> (logits, targets, tokens)`, with tokens true where a token is no padding.
        max_samples: bound of the probe set, over all processes.
        max_bytes: bound of the probe set in host memory, per process.
        batch_size: of our passes; by default that of the validation loader.
        every_n_epochs: measure in every n-th validation run, beginning with the first.
        name: begins all keys, tags and file names, and that of the state in checkpoints; several callbacks need
            different ones.
        seed: of the probe set, KMeans, random orders; the global random state is neither read nor changed.
        on_error: what an exception in a measurement does: "warn" goes on training and marks the measurement as
            missing, "raise" stops. Mistakes in the arguments stop in any case, at the latest in the first measurement.
        results_dir: folder for a results file per measurement; by default `neuroimp` in the first logger's folder.
        target_class: whose target is explained: of each sample's "label", of the class "predicted" for it, or of one
            class for all, by its number.
        classes: only samples with these labels (numbers, or names in `class_names`) are drawn and clustered.
        class_names: of all classes, for tables.
        groups: `batch -> one integer or string per sample`; samples with equal values, such as patients, are never
            divided between the halves of a cluster.
        stratify: True: the probe set holds as many samples of each label as there is room for; or a callable,
            `batch -> one integer or string per sample`.
        describe_sample: `sample -> text or picture` for the samples that are shown; by default pictures for inputs
            that look like some, values for others. Pictures are arrays or tensors, (height, width) or with channels.

    Raises:
        MisconfigurationException: if an argument is invalid.

    Example::

        importance = NeuronImportance(layers=["encoder.1", "encoder.3"], clusters=KMeansClusters(8))
        trainer = Trainer(callbacks=[importance])
        trainer.fit(model, datamodule=data)
        print(importance.summary())
    """

    def __init__(
        self,
        layers: str | Site | Sequence[str | Site],
        clusters: str | KMeansClusters | dict[int | str, int | str] | Callable[..., Any] = "labels",
        attribution: str | Sequence[str | Callable[..., Any]] | Callable[..., Any] = "gradient_x_activation",
        target: str | Callable[..., Any] = "margin",
        baseline: str | float = "zero",
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
    ) -> None:
        super().__init__()
        self.layers, self.clusters, self.attribution = layers, clusters, attribution
        self.target, self.baseline, self.faithfulness = target, baseline, faithfulness
        self.forward_fn, self.max_samples, self.max_bytes = forward_fn, max_samples, max_bytes
        self.batch_size, self.every_n_epochs, self.name = batch_size, every_n_epochs, name
        self.seed, self.on_error, self.results_dir = seed, on_error, results_dir
        self.target_class, self.classes, self.class_names = target_class, classes, class_names
        self.groups, self.stratify, self.describe_sample = groups, stratify, describe_sample
        try:
            self._check_arguments()
        except (ValueError, TypeError) as error:
            raise MisconfigurationException(f"NeuronImportance: {error}") from error
        self._results: Results | None = None
        self._checked: Results | None = None
        self._enabled = False
        self._run = RunState()
        self._reset()

    def _check_arguments(self) -> None:
        check_layers(self.layers)
        check_clusters(self.clusters)
        attributions = resolve_attributions(self.attribution)
        check_target(self.target)
        check_baseline(self.baseline)
        check_target_class(self.target_class)
        check_class_names(self.class_names)
        class_numbers(self.classes, self.class_names)
        self._new_sampler()
        if isinstance(self.clusters, str | Mapping):
            ClassClusters(self.clusters, self.class_names)
        for name, function in (("groups", self.groups), ("describe_sample", self.describe_sample)):
            if function is not None and not callable(function):
                raise ValueError(f"{name} must be a callable, got {function!r}")
        if self.faithfulness is not None and not isinstance(self.faithfulness, AblationFaithfulness):
            raise ValueError(f"faithfulness must be AblationFaithfulness(...) or None, got {self.faithfulness!r}")
        for name, value in (("every_n_epochs", self.every_n_epochs), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not re.fullmatch(r"[-\w.]+", self.name) or not self.name.strip("."):
            raise ValueError(f"name must be of letters, digits, '_', '-' and '.', as it begins tags, got {self.name!r}")
        if self.on_error not in ("warn", "raise"):
            raise ValueError(f"on_error must be 'warn' or 'raise', got {self.on_error!r}")
        self._gradients = any(attribution.needs_gradient for attribution in attributions)
        self._n_attributions = len(attributions)
        self._extra = [f"{one.name}, at each layer: {one.cost}" for one in attributions if one.cost]

    def _new_sampler(self) -> ProbeSampler:
        return ProbeSampler(
            self.max_samples,
            self.max_bytes,
            self.seed,
            stratify=self.stratify,
            # labels that only forward_fn knows cannot be told before
            classes=None if self.forward_fn is not None else class_numbers(self.classes, self.class_names),
        )

    def _reset(self) -> None:
        """Forget the run, not its results."""
        self._sampler: ProbeSampler | None = None
        self._lost: Exception | None = None  # why there is no probe set
        self._left_out: list[str] = []  # batches that do not fit
        self._probe: ProbeSet | None = None
        self._seen: dict[int, int] = {}
        # clusters go on in another run, as far as it is on the same samples
        self._run = RunState(earlier=self._run.earlier)
        self._size = self.batch_size  # of our passes; halved when memory runs out
        self._missing: dict[str, float] = {}  # stands for a measurement that failed
        self._proved = False  # whether a measurement of this run has succeeded
        self._cost: CostKeeper | None = None

    @property
    def results(self) -> Results:
        """The last measurement.

        Raises:
            RuntimeError: before the first one.
        """
        if self._results is None:
            raise RuntimeError(f"NeuronImportance {self.name!r} has measured nothing yet: run trainer.fit() first")
        return self._results

    def summary(self, *, all_findings: bool = False) -> str:
        """The last measurement that was checked by ablation (else the last one) as tables in plain words.

        Args:
            all_findings: what speaks against the scores, all of it rather than the weightiest.
        """
        if self._results is None:
            return f"{self.name}: nothing measured yet"
        if self._checked is None:
            return write_summary(self._results, self.name, all_findings=all_findings)
        text = write_summary(self._checked, self.name, all_findings=all_findings)
        if self._checked is not self._results:
            text = (
                f"Note: this is the last check, of epoch {self._checked.epoch}. Epoch {self._results.epoch} was "
                "measured without one, because of every_n_epochs or max_overhead; "
                f"AblationFaithfulness(max_overhead=None) checks whatever it costs.\n\n{text}"
            )
        return text

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @override
    def state_dict(self) -> dict[str, Any]:
        return pack(self._run, self._configuration())

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._run, reasons = unpack(state_dict, self._configuration())
        if self.faithfulness is None:
            self._run.check_metrics = {}
        if reasons:
            rank_zero_warn(
                f"NeuronImportance {self.name!r}: the checkpoint does not fit: {'; '.join(reasons)}. Cluster "
                "identities, drift and the values of the last measurement start anew"
            )

    def _configuration(self) -> dict[str, Any]:
        """What a checkpoint's state holds for."""
        layers = [self.layers] if isinstance(self.layers, str | Site) else list(self.layers)
        return {
            "layers": [str(layer) for layer in layers],
            "clusters": describe_source(self.clusters),
            "groups of labels": [[str(one) for one in pair] for pair in self.clusters.items()]
            if isinstance(self.clusters, Mapping)
            else None,
            "attribution": [one.name for one in resolve_attributions(self.attribution)],
            "target": check_target(self.target)[0],
            "target_class": check_target_class(self.target_class),
            "baseline": describe_baseline(check_baseline(self.baseline)),
            "classes": None if self.classes is None else [str(one) for one in self.classes],
            "class_names": [str(one) for one in self.class_names],
            "max_samples": int(self.max_samples),
            "seed": int(self.seed),
            "stratify": bool(self.stratify),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave behind the probe set, and the model that Lightning binds to `log`."""
        kept = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        return kept | {"_sampler": None, "_probe": None, "_lost": None, "_left_out": []}

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._reset()
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
        _check_strategy(trainer.strategy, self.name)
        # in front: a callback such as weight averaging swaps the validated weights away in its own epoch end
        rest = [callback for callback in callbacks if not isinstance(callback, NeuronImportance)]
        trainer.callbacks = [*ours, *rest]  # type: ignore[attr-defined]

    def _has_validation(self, trainer: "pl.Trainer", stage: str) -> bool:
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
        self._open(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._open(trainer, pl_module)
        if self._enabled and self._probe is None and not trainer.sanity_checking:
            self._sampler, self._lost = self._new_sampler(), None
            self._seen, self._left_out = {}, []

    def _open(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Look the layers up, once the module has made all of them, and say what is going to be done."""
        if not self._enabled or self._cost is not None:
            return
        try:
            sites = find_sites(pl_module, self.layers)
        except ValueError as error:
            raise MisconfigurationException(f"NeuronImportance {self.name!r}: {error}") from error
        self._missing = missing_metrics(
            self.name,
            [str(site) for site in sites],
            [one.name for one in resolve_attributions(self.attribution)],
            changing=describe_source(self.clusters) != "labels",
            checked=self.faithfulness is not None,
        )
        self._cost = CostKeeper(
            self.faithfulness,
            len(sites),
            self._n_attributions,
            self.max_samples,
            surveyed=isinstance(self.clusters, KMeansClusters)
            or self.baseline in ("mean", "resample")
            or trainer.world_size > 1,
            gradients=self._gradients,
            extra=self._extra,
        )
        rank_zero_info(f"NeuronImportance {self.name!r}, {self._cost.plan(self.every_n_epochs)}")

    @override
    def on_validation_batch_start(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._cost is None:
            return
        if trainer.sanity_checking:
            self._cost.open_step()
        elif self._sampler is not None:
            # before the step, which may take the batch apart
            start = self._seen.get(dataloader_idx, 0)
            try:
                size = samples_in(unpacked(batch))
                with isolate_rng() if callable(self.stratify) else nullcontext():
                    self._sampler.add(batch, sample_numbers(trainer, dataloader_idx, start, size))
            except Exception as error:
                if isinstance(error, ValueError) and self._seen:
                    self._left_out.append(f"batch {batch_idx} of the validation was left out: {error}")
                    return
                # kept for the end of the epoch, where all processes hear of it; without the frames, which hold batches
                self._sampler, self._lost = None, error.with_traceback(None)
                return
            self._seen[dataloader_idx] = start + size

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
        if trainer.sanity_checking and self._cost is not None:
            try:
                self._cost.close_step(samples_in(unpacked(batch)))
            except Exception:
                return  # the first real validation will say what is wrong with the batch

    @override
    def on_sanity_check_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if self._cost is not None and (estimate := self._cost.estimate(sum(trainer.num_val_batches))):
            rank_zero_info(f"NeuronImportance {self.name!r}, estimated from the sanity check: at most {estimate}")

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._forget_samples()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        self._forget_samples()  # there will be no teardown

    def _forget_samples(self) -> None:
        self._sampler = self._probe = self._lost = None  # up to max_bytes

    @override
    def on_validation_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.sanity_checking or self._cost is None:
            return
        first = not self._run.runs and not self._run.measured  # also of a run that goes on from a checkpoint
        due = trainer.state.fn == "validate" or self._run.runs % self.every_n_epochs == 0
        self._run.runs += 1
        if due:
            try:
                results = self._measure(trainer, pl_module)
            except Exception as error:
                if isinstance(error, MISTAKES) and first:
                    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                    raise MisconfigurationException(f"NeuronImportance {self.name!r}: {kind}{error}") from error
                self._fail(f"has no measurement of epoch {trainer.current_epoch}", error)
            else:
                self._keep(trainer, results)
                try:
                    with failing_together():
                        self._write(trainer, results)
                except Exception as error:
                    self._fail(f"could not write its measurement of epoch {trainer.current_epoch}", error)
        values = (self._run.metrics or self._missing) | self._run.check_metrics
        if values:
            # every process has computed the same values and logs the same keys in the same order
            pl_module.log_dict(dict(sorted(values.items())), on_step=False, on_epoch=True, sync_dist=True)

    def _fail(self, what: str, error: Exception) -> None:
        if self.on_error == "raise":
            raise error
        message = f"{what}; training goes on. {type(error).__name__}: {error}"
        warnings.warn(f"NeuronImportance {self.name!r} {message}", stacklevel=2)

    def _measure(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> Results:
        """A measurement, with smaller and smaller passes while memory runs out."""
        while True:
            try:
                with failing_together(), trainer.precision_plugin.forward_context(), _not_logging(pl_module):
                    return self._measure_once(trainer, pl_module)
            except Exception as error:
                if not out_of_memory(error) or self._probe is None:
                    raise
                message = f"{type(error).__name__}: {error}"
            # outside of the clause, as the exception holds on to what filled the memory
            garbage_collection_cuda()
            size = self._size or max(gather_objects(self._probe.batch_size))
            if size == 1:
                raise RuntimeError(
                    f"memory ran out with one sample in a pass ({message}): explain fewer layers in one callback, or "
                    "leave the accelerator more room"
                )
            self._size = size // 2
            rank_zero_warn(
                f"NeuronImportance {self.name!r}: memory ran out in passes of {size} samples; they are of {self._size} "
                "from now on. batch_size= sets that at once"
            )

    def _measure_once(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> Results:
        assert self._cost is not None
        if self._probe is None:
            if self._lost is not None:
                raise self._lost
            assert self._sampler is not None
            probe = self._sampler.close(gather_objects)
            gather_objects(None)  # all have one, or none
            self._probe, self._sampler = probe, None
        progress = trainer_progress(trainer)
        results = neuron_importance(
            pl_module,
            self._probe,
            layers=self.layers,
            clusters=self.clusters,
            attribution=self.attribution,
            target=self.target,
            target_class=self.target_class,
            baseline=self.baseline,
            classes=self.classes,
            class_names=self.class_names,
            groups=self.groups,
            forward_fn=self.forward_fn,
            batch_size=self._size,
            seed=self.seed,
            previous=self._run.earlier,
            gather=gather_objects,
            progress=progress,
            epoch=trainer.current_epoch,
            step=step_of(trainer),
        )
        if self._check_is_due(trainer):
            start = time.monotonic()
            results = ablation_faithfulness(
                pl_module,
                self._probe,
                results,
                self.faithfulness,
                forward_fn=self.forward_fn,
                batch_size=self._size,
                gather=gather_objects,
                progress=progress,
            )
            if self.faithfulness is not None and self.faithfulness.randomise:
                results = weight_randomisation(
                    pl_module,
                    self._probe,
                    results,
                    attribution=resolve_attributions(self.attribution),
                    target=self.target,
                    forward_fn=self.forward_fn,
                    batch_size=self._size,
                    seed=self.seed,
                    gather=gather_objects,
                    progress=progress,
                )
            self._cost.checked(time.monotonic() - start)
        left_out = [note for share in gather_objects(self._left_out) for note in share]
        return results.replace(notes=(*results.notes, *left_out[:_MOST_LEFT_OUT])) if left_out else results

    def _keep(self, trainer: "pl.Trainer", results: Results) -> None:
        run, self._results = self._run, results
        if results.has_faithfulness:
            self._checked = results
            run.check_metrics = check_metrics(results, self.name)
        elif not self._proved:
            self._checked = None  # an earlier run's check says nothing of this one
        run.metrics, run.earlier = metrics(results, self.name), PreviousMeasurement.of(results)
        run.history += [agreement(results, one) for one in results.importances]
        run.measured += 1
        if not self._proved:
            took = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in results.seconds.items())
            say(trainer, f"NeuronImportance {self.name!r}, first measurement took: {took}")
        self._proved = True

    def _write(self, trainer: "pl.Trainer", results: Results) -> None:
        folder = self._folder(trainer)
        if trainer.is_global_zero and folder is not None:
            results.save(results_file(folder, results))
        described, problem = self._described(trainer, results)
        if trainer.is_global_zero:
            log_everywhere(trainer, results, self.name, results.step, self._run.history, described)
        if problem is not None:
            raise problem

    def _described(self, trainer: "pl.Trainer", results: Results) -> tuple[dict[int, Description], Exception | None]:
        """What the samples look like that are worth showing, and what went wrong: all else is logged all the same."""
        mine: dict[int, Description] = {}
        problem = None
        if self._probe is not None and takes_pictures(trainer):
            try:
                with isolate_rng():
                    mine = describe_samples(self._probe, shown_samples(results), self.describe_sample)
            except Exception as error:
                problem = error
        return {number: one for share in gather_objects(mine) for number, one in share.items()}, problem

    def _check_is_due(self, trainer: "pl.Trainer") -> bool:
        """Whether this measurement is checked by ablation; every process decides as the first one does."""
        assert self._cost is not None
        if self.faithfulness is None:
            return False
        due = self._run.measured % self.faithfulness.every_n_epochs == 0
        # asked for by itself, or by a resumed run whose checkpoint knows of no check
        if not due and trainer.state.fn != "validate" and self._run.check_metrics:
            return False
        may = bool(gather_objects(self._cost.may_check() or _is_last(trainer))[0])
        if not may:
            message = self._cost.skip()
            if self._cost.skipped == 1:
                say(trainer, f"NeuronImportance {self.name!r}, {message} (said once)")
        return may

    def _folder(self, trainer: "pl.Trainer") -> Path | None:
        """Where results files go; None where there is no logger, or nothing shall stay (`fast_dev_run`)."""
        if self.results_dir is not None:
            return Path(self.results_dir) / self.name
        if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        folder = gather_objects(log_folder(trainer.loggers[0]))[0]
        return None if folder is None else Path(folder) / "neuroimp" / self.name


@contextmanager
def _not_logging(pl_module: "pl.LightningModule") -> Iterator[None]:
    """What a forward pass logs is the training's business, not that of a pass of ours."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        """Log nothing."""

    modules = [vars(module) for module in pl_module.modules() if isinstance(module, pl.LightningModule)]
    names = [(values, name) for values in modules for name in ("log", "log_dict") if name not in values]
    try:
        for values, name in names:
            values[name] = nothing
        yield
    finally:
        for values, name in names:
            values.pop(name, None)


def _check_strategy(strategy: Any, name: str) -> None:
    """Refuse strategies under which no process has the whole weights."""
    kinds = {kind.__name__ for kind in type(strategy).__mro__}
    sharded = kinds & {"FSDPStrategy", "ModelParallelStrategy"} or getattr(strategy, "zero_stage_3", False)
    if sharded:
        raise MisconfigurationException(
            f"NeuronImportance {name!r} does not work with {type(strategy).__name__}, under which no process has the "
            "whole weights of a layer; use strategy='ddp', or call neuron_importance() on the model of a checkpoint"
        )


def _is_last(trainer: "pl.Trainer") -> bool:
    """Whether this is the validation at the end of the last epoch that was asked for."""
    last = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
    return trainer.state.fn == "fit" and last and trainer.is_last_batch
