"""Put results into data frames: one row for each neuron, cluster or layer, one column for each value."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import stats

from lightning_neuroimp import _validate, statistics
from lightning_neuroimp.errors import InvalidArgument, MissingPackage
from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results

if TYPE_CHECKING:
    import pandas as pd

Rows = Literal["neurons", "clusters", "layers"]
ROWS: tuple[Rows, ...] = ("neurons", "clusters", "layers")

_JUDGED: dict[str, Callable[[Faithfulness], np.ndarray]] = {
    "gap": lambda judged: judged.gap,
    "gap_lower": lambda judged: judged.gap_interval[:, 0],
    "gap_upper": lambda judged: judged.gap_interval[:, 1],
    "relative_gap": lambda judged: judged.relative_gap,
    "p_value": lambda judged: judged.p_value,
    "margin_gap": lambda judged: judged.margin_gap,
    "margin_p_value": lambda judged: judged.margin_p_value,
    "q_value": lambda judged: judged.q_value,
    "lds": lambda judged: judged.lds,
    "lds_ceiling": lambda judged: judged.lds_ceiling,
    "verdict": lambda judged: np.array([str(verdict) for verdict in judged.verdict], object),
}
"""What is told of faithfulness, with one value for each cluster and a last one for the layer."""


def to_frame(results: Results, rows: Rows = "neurons") -> "pd.DataFrame":
    """Return results as a tidy data frame of pandas.

    Args:
        results: one measurement.
        rows: "neurons": one row for each neuron of each site, score and cluster; "clusters": one for each site, score
            and cluster; "layers": one for each site and score.

    Returns:
        Columns `epoch`, `step`, `site`, `attribution`, `target`, `baseline`; for clusters `cluster` (its id),
        `cluster_name`, `cluster_size`; for neurons `neuron`, `importance` and its 95% interval over the samples
        `importance_lower` and `importance_upper` (NaN with `groups`, and for orders), `rank` (1 is the most important
        neuron of the cluster), `first_order` (effect of removal to first order, NaN where it is not known); and of the
        cluster (of the layer in rows of layers) `reliability`, `gap`, `gap_lower`, `gap_upper`, `relative_gap`,
        `p_value`, `margin_gap`, `margin_p_value`, `q_value`, `lds`, `lds_ceiling`, `verdict` (NaN and "" where removal
        was not measured).

    Raises:
        InvalidArgument: if `rows` has another value.
        MissingPackage: if pandas is not installed.
    """
    pandas = _pandas()
    kind = _validate.choice("rows", rows, ROWS)
    parts = [_part(results, importance, kind) for importance in results.importances]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    frame = pandas.DataFrame(columns)
    # names that are repeated in many rows are held once
    texts = ("site", "attribution", "target", "baseline", "cluster_name", "verdict")
    return frame.astype({name: "category" for name in texts if name in columns})


def load_history(folder: str | os.PathLike[str], rows: Rows = "clusters") -> "pd.DataFrame":
    """Return all measurements of a run as one data frame, in the order in which they were made.

    Args:
        folder: of the results files of one run, such as `logs/version_0/neuroimp/labels`.
        rows: as in `to_frame`.

    Returns:
        The columns of `to_frame`, and `file`, the name of the file that each row is from. Of several files of one epoch
        and step the last one is taken.

    Raises:
        InvalidArgument: if there is no results file in the folder.
        FileFormatError: if a file does not hold valid results.
        MissingPackage: if pandas is not installed.

    >>> import tempfile, torch
    >>> from lightning_neuroimp import neuron_importance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> results = neuron_importance(model, [(torch.randn(20, 4), torch.arange(20) % 2)], layers="1", epoch=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results.save(f"{folder}/epoch=3.npz")
    ...     load_history(folder)[["epoch", "cluster_name"]].values.tolist()
    [[3, 'label 0'], [3, 'label 1']]
    """
    pandas = _pandas()
    frames = []
    for path, results in measurements(folder):
        frame = to_frame(results, rows)
        frame["file"] = path.name
        frames.append(frame)
    together = pandas.concat(frames, ignore_index=True)
    texts = ("site", "attribution", "target", "baseline", "cluster_name", "verdict", "file")
    return together.astype({name: "category" for name in texts if name in together})


def measurements(folder: str | os.PathLike[str]) -> Iterator[tuple[Path, Results]]:
    """Yield the results files of a folder with what they hold, by epoch and step; the last one of each step.

    Args:
        folder: of the results files of one run.

    Raises:
        InvalidArgument: if there is none.
        FileFormatError: if a file does not hold valid results.
    """
    paths = sorted(Path(folder).glob("*.npz"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not paths:
        inside = sorted({path.parent.name for path in Path(folder).glob("*/*.npz")})
        hint = f"; there are some in its folders {inside[:5]}" if inside else ""
        raise InvalidArgument(f"there is no results file (*.npz) in {os.fspath(folder)!r}{hint}")
    last: dict[tuple[int, int], tuple[Path, Results]] = {}
    for path in paths:
        results = Results.load(path)
        last[results.epoch, results.step] = path, results
    yield from (last[when] for when in sorted(last))


def _pandas() -> Any:
    """Import pandas, or say how to install it."""
    try:
        import pandas
    except ImportError as error:
        raise MissingPackage("data frames need pandas: pip install pandas") from error
    return pandas


def _part(results: Results, importance: Importance, rows: Rows) -> dict[str, np.ndarray]:
    """Return the columns of one score at one site."""
    table, removal = results.clusters, importance.removal
    n_clusters, n_neurons = len(table.ids), removal.n_neurons
    every = np.arange(n_clusters) if rows != "layers" else np.array([-1])
    shared = {
        "epoch": results.epoch,
        "step": results.step,
        "site": importance.site,
        "attribution": importance.attribution,
        "target": removal.target,
        "baseline": removal.baseline,
    }
    columns: dict[str, Any] = {name: np.full(len(every), value) for name, value in shared.items()}
    if rows != "layers":
        columns |= {"cluster": table.ids, "cluster_name": np.array(table.names, object), "cluster_size": table.size}
    later = {"reliability": _reliability(importance, table.size)[every], **_judgement(importance, every)}
    if rows != "neurons":
        return columns | later
    repeated = {name: np.repeat(values, n_neurons) for name, values in columns.items()}
    return (
        repeated
        | {"neuron": np.tile(np.arange(n_neurons), n_clusters)}
        | {
            name: values.reshape(-1)
            for name, values in _of_neurons(importance, results.sample_group is not None).items()
        }
        | {name: np.repeat(values, n_neurons) for name, values in later.items()}
    )


def _reliability(importance: Importance, size: np.ndarray) -> np.ndarray:
    """Return the reliability of each cluster, and last their mean by size."""
    each = importance.reliability.split_half
    return np.append(each, statistics.weighted_mean(each, size))


def _judgement(importance: Importance, rows: np.ndarray) -> dict[str, np.ndarray]:
    judged = importance.faithfulness
    if judged is not None:
        return {name: value(judged)[rows] for name, value in _JUDGED.items()}
    unknown = np.full(len(rows), np.nan)
    return {name: np.full(len(rows), "", object) if name == "verdict" else unknown for name in _JUDGED}


def _of_neurons(importance: Importance, grouped: bool) -> dict[str, np.ndarray]:
    """Return what is known of each neuron of each cluster, (cluster, neuron).

    Args:
        importance: of one score at one site.
        grouped: whether samples come in groups, whose spread is not known: there are no intervals then.
    """
    mean, count = importance.mean, importance.count.sum(0)[:, None]
    reach = stats.t.ppf(0.975, np.maximum(count - 1, 1)) * (np.nan if grouped else importance.stderr)
    place = np.argsort(np.argsort(-mean, axis=1, kind="stable"), axis=1)
    first_order = importance.first_order
    return {
        "importance": mean,
        "importance_lower": mean - reach,
        "importance_upper": mean + reach,
        "rank": np.where(np.isfinite(mean).all(1, keepdims=True), place + 1.0, np.nan),
        "first_order": np.full(mean.shape, np.nan) if first_order is None else first_order,
    }
