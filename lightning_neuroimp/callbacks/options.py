"""Turn the callback's arguments into the options of a run, and refuse what no run can work with."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_neuroimp import _validate
from lightning_neuroimp.ablation.settings import AblationFaithfulness
from lightning_neuroimp.batches.description import DescribeFn
from lightning_neuroimp.batches.probe import ProbeSampler
from lightning_neuroimp.capture.forward import ForwardFn
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.study.settings import ImportanceSettings


@dataclass(frozen=True, eq=False)
class RunOptions:
    """Hold the callback's validated arguments, which it documents.

    Attributes:
        name: prefix of all keys, tags and file names.
        settings: settings of the importance measurement.
        check: settings of its check by ablation; None: no check is made.
        forward_fn: gives logits and targets of a batch; None: they are inferred.
        new_sampler: makes a sampler of the probe set.
        max_samples: upper bound on the number of samples in the probe set.
        batch_size: number of samples in our passes; None: that of the loader.
        every_n_epochs: measure in every n-th validation run.
        on_error: "warn" or "raise".
        results_dir: folder for results files; None: in the first logger's folder.
        describe_sample: gives a text or picture of a sample; None: pictures for inputs that look like some.
        stratify: how the samples are drawn.
        dataloaders: numbers of the validation loaders that are drawn from; None: all.
    """

    name: str
    settings: ImportanceSettings
    check: AblationFaithfulness | None
    forward_fn: ForwardFn | None
    new_sampler: Callable[[], ProbeSampler]
    max_samples: int
    batch_size: int | None
    every_n_epochs: int
    on_error: str
    results_dir: Any
    describe_sample: DescribeFn | None
    stratify: Any = False
    dataloaders: tuple[int, ...] | None = None


def options_of(callback: Any) -> RunOptions:
    """Turn the arguments of the callback, as its attributes hold them now, into the options of a run.

    Args:
        callback: a `NeuronImportance`.

    Raises:
        InvalidArgument: if one of them is invalid.
    """
    settings = ImportanceSettings(
        callback.layers,
        callback.clusters,
        callback.attribution,
        callback.target,
        callback.target_class,
        callback.baseline,
        callback.classes,
        callback.class_names,
        callback.groups,
        callback.seed,
        callback.ignore_index,
    )
    _refuse_other_types(callback)
    # labels that only forward_fn can tell are not known yet
    classes = settings.classes if callback.forward_fn is None else None
    new_sampler = partial(
        ProbeSampler,
        callback.max_samples,
        callback.max_bytes,
        settings.seed,
        stratify=callback.stratify,
        classes=classes,
        ignore_index=settings.ignore_index,
    )
    return RunOptions(
        callback.name,
        settings,
        callback.faithfulness,
        callback.forward_fn,
        new_sampler,
        new_sampler().max_samples,
        None if callback.batch_size is None else _validate.integer("batch_size", callback.batch_size, least=1),
        _validate.integer("every_n_epochs", callback.every_n_epochs, least=1),
        _validate.choice("on_error", callback.on_error, ("warn", "raise")),
        callback.results_dir,
        callback.describe_sample,
        callback.stratify,
        _loader_numbers(callback.dataloaders),
    )


def _refuse_other_types(callback: Any) -> None:
    """Refuse functions, a check or a name that are none.

    Args:
        callback: a `NeuronImportance`.

    Raises:
        InvalidArgument: if one of them is something else.
    """
    for name in ("forward_fn", "describe_sample"):
        if getattr(callback, name) is not None:
            _validate.function(name, getattr(callback, name), "or None")
    if callback.faithfulness is not None and not isinstance(callback.faithfulness, AblationFaithfulness):
        raise InvalidArgument(
            f"faithfulness must be AblationFaithfulness(...) or None, got {_validate.shown(callback.faithfulness)}"
        )
    if (
        not isinstance(callback.name, str)
        or not re.fullmatch(r"[-\w.]+", callback.name)
        or not callback.name.strip(".")
    ):
        raise InvalidArgument(
            f"name must be of letters, digits, '_', '-' and '.', as it begins tags, got "
            f"{_validate.shown(callback.name)}"
        )


def _loader_numbers(dataloaders: Any) -> tuple[int, ...] | None:
    """Return the numbers of validation loaders in order; None for None."""
    if dataloaders is None:
        return None
    several = isinstance(dataloaders, Iterable) and not isinstance(dataloaders, str)
    numbers = list(dataloaders) if several else [dataloaders]
    if not numbers:
        raise InvalidArgument(
            "dataloaders is empty: name at least one validation loader, such as dataloaders=0, or None"
        )
    name = "each of dataloaders" if several else "dataloaders"
    return tuple(sorted({_validate.integer(name, number, least=0) for number in numbers}))


def refuse_sharded(strategy: Any, name: str) -> None:
    """Refuse strategies under which no process has the whole weights of a layer.

    Args:
        strategy: of the trainer.
        name: name of the callback, for the message.

    Raises:
        MisconfigurationException: if it is one of them.
    """
    kinds = {kind.__name__ for kind in type(strategy).__mro__}
    sharded = kinds & {"FSDPStrategy", "ModelParallelStrategy"} or getattr(strategy, "zero_stage_3", False)
    if sharded:
        raise MisconfigurationException(
            f"NeuronImportance {name!r} does not work with {type(strategy).__name__}, under which no process has the "
            "whole weights of a layer; use strategy='ddp', or call neuron_importance() on the model of a checkpoint"
        )
