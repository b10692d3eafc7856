"""Measurements to loggers, metrics and files."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from lightning_neuroimp.batches.description import Description
from lightning_neuroimp.callbacks.processes import gather_objects
from lightning_neuroimp.display.tensorboard.summaries import write_summaries
from lightning_neuroimp.display.tensorboard.tags import cluster_tags, site_tag, tag
from lightning_neuroimp.results.history import Agreement, agreement
from lightning_neuroimp.results.measurement import Results


def metrics(results: Results, name: str) -> dict[str, float]:
    """The few, fixed values of a measurement that reach `trainer.callback_metrics`.

    Args:
        results: the measurement.
        name: first part of each key.
    """
    values = {tag(name, "measured_epoch"): float(results.epoch)}
    if results.clusters.source != "labels":
        # nothing to agree with in the first epoch: the clusters have not changed yet
        stable = results.clusters.adjusted_rand_index
        values[tag(name, "adjusted_rand_index")] = 1.0 if math.isnan(stable) else stable
    for one in results.importances:
        agreed, key = agreement(results, one), site_tag(name, one, results)
        values[f"{key}/reliability"] = 0.0 if math.isnan(agreed.reliability) else agreed.reliability
        # none yet in the first epoch: the least, so that a monitor does not take it for the best
        values[f"{key}/stability"] = 0.0 if math.isnan(agreed.stability) else agreed.stability
    return values


def check_metrics(results: Results, name: str) -> dict[str, float]:
    """Those of a measurement that was checked by ablation."""
    values = {tag(name, "checked_epoch"): float(results.epoch)}
    for one in results.importances:
        if one.faithfulness is not None:
            judged, key = one.faithfulness, site_tag(name, one, results)
            # a value that is not finite would end the training at a monitor: where there is none it says nothing
            found = {kind: float(getattr(judged, kind)[-1]) for kind in _NOTHING}
            values |= {
                f"{key}/{kind}": value if math.isfinite(value) else _NOTHING[kind] for kind, value in found.items()
            }
    return values


_NOTHING = {"gap": 0.0, "lds": 0.0, "p_value": 1.0, "relative_gap": 0.0}


def missing_metrics(
    name: str, sites: Sequence[str], attributions: Sequence[str], *, changing: bool, checked: bool
) -> dict[str, float]:
    """What stands for a measurement that failed, where there was none before: epoch -1, and values that say nothing.

    A monitor of these keys would end the training if they were missing, or not finite.

    Args:
        name: first part of each key.
        sites: names of what was to be measured.
        attributions: names of the scores.
        changing: whether clusters can change.
        checked: whether ablation was asked for.
    """
    values = {tag(name, "measured_epoch"): -1.0}
    if changing:
        values[tag(name, "adjusted_rand_index")] = 0.0
    if checked:
        values[tag(name, "checked_epoch")] = -1.0
    for site in sites:
        for attribution in attributions:
            key = tag(name, site, *([attribution] if len(attributions) > 1 else []))
            values |= {f"{key}/reliability": 0.0, f"{key}/stability": 0.0}
            if checked:
                values |= {f"{key}/{kind}": value for kind, value in _NOTHING.items()}
    return values


def cluster_scalars(results: Results, name: str) -> dict[str, float]:
    """Values per cluster, for loggers only, in a group of their own beside the headlines."""
    table, group = results.clusters, f"{name}_clusters"
    values = {}
    for row, cluster in enumerate(cluster_tags(table)):
        values[tag(group, "size", cluster)] = float(table.size[row])
        values[tag(group, "accuracy", cluster)] = float(table.accuracy[row])
        for one in results.importances:
            if one.faithfulness is not None:
                key = site_tag(group, one, results)
                values[f"{key}/gap/{cluster}"] = float(one.faithfulness.gap[row])
                values[f"{key}/p_value/{cluster}"] = float(one.faithfulness.p_value[row])
    return {key: value for key, value in values.items() if np.isfinite(value)}


def step_of(trainer: "pl.Trainer") -> int:
    """The step at which Lightning's own loggers put what is logged now.

    That is the number of batches that stepped, an attribute which Lightning's own callbacks also read; the documented
    `global_step` counts every optimizer.
    """
    loop = getattr(getattr(trainer, "fit_loop", None), "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def log_everywhere(
    trainer: "pl.Trainer",
    results: Results,
    name: str,
    step: int,
    history: Sequence[Agreement] = (),
    described: Mapping[int, Description] | None = None,
) -> None:
    """Scalars per cluster to every logger; histograms, pictures and tables to those that take them.

    One that fails does not keep the others from it; the first failure is raised at the end.
    """
    problems: list[Exception] = []
    for logger in trainer.loggers:
        try:
            logger.log_metrics(cluster_scalars(results, name), step)
            writer = getattr(logger, "experiment", None)
            if _is_writer(writer):
                write_summaries(writer, results, name, step, history, described)
                flush = getattr(writer, "flush", None)
                if flush is not None:
                    flush()
        except Exception as error:
            problems.append(error)
    if problems:
        raise problems[0]


def takes_pictures(trainer: "pl.Trainer") -> bool:
    """Whether a logger of the first process takes pictures."""
    mine = any(_is_writer(getattr(logger, "experiment", None)) for logger in trainer.loggers)
    return bool(gather_objects(mine)[0])


def _is_writer(writer: Any) -> bool:
    return all(hasattr(writer, kind) for kind in ("add_histogram", "add_image", "add_text"))


def log_folder(logger: Any) -> str | None:
    """The folder of a logger's present run; None for loggers without files.

    Loggers other than Lightning's own name no such folder: then it is the one where Lightning puts checkpoints.
    """
    if getattr(logger, "log_dir", None):
        return str(logger.log_dir)
    if not logger.save_dir:
        return None
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return str(Path(logger.save_dir) / str(logger.name) / version)


def results_file(folder: Path, results: Results) -> Path:
    """Where a measurement is kept: a name of its own, also where another run has used the folder."""
    name = f"epoch={results.epoch:04d}-step={results.step:07d}"
    versions = itertools.chain([""], (f"-v{number}" for number in itertools.count(1)))
    paths = (folder / f"{name}{version}.npz" for version in versions)
    return next(path for path in paths if not path.exists())
