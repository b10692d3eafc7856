"""Pack and unpack the state in a checkpoint, so that a resumed run goes on as an uninterrupted one would.

Tensors and built-in types only, as `torch.load(weights_only=True)` reads them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from types import CodeType
from typing import Any
from zlib import crc32

import numpy as np
import torch

from lightning_neuroimp._validate import shown
from lightning_neuroimp.clusters.choice import describe_source
from lightning_neuroimp.results.history import Agreement
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement
from lightning_neuroimp.site import OWN, Site
from lightning_neuroimp.study.settings import ImportanceSettings

VERSION = 2

MAX_HISTORY = 100
"""Upper bound on the number of measurements whose agreement is kept; the older they are, the fewer of them are."""


@dataclass
class RunState:
    """Hold how far a run has come.

    Attributes:
        runs: number of validation runs.
        measured: number of measurements.
        metrics: values of the last measurement, by key.
        check_metrics: values of the last measurement that was checked by ablation, by key.
        history: agreement in each measurement, one entry per site and attribution.
        previous: what the next measurement needs of the last one; None: there was none.
    """

    runs: int = 0
    measured: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    check_metrics: dict[str, float] = field(default_factory=dict)
    history: list[list[Agreement]] = field(default_factory=list)
    previous: PreviousMeasurement | None = None

    def remember(self, agreements: Sequence[Agreement]) -> None:
        """Add a measurement's agreements to the history; drop every second of the older ones when it gets too long."""
        self.history.append(list(agreements))
        if len(self.history) > MAX_HISTORY:
            self.history = [*self.history[:-1][::2], self.history[-1]]

    @property
    def agreements(self) -> list[Agreement]:
        """Return the history as one list."""
        return [agreement for measurement in self.history for agreement in measurement]


def pack(run: RunState, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a run as a dictionary of tensors and built-in types.

    Args:
        run: the state.
        configuration: plain values under which the state is valid.
    """
    previous = run.previous
    return {
        "version": VERSION,
        "configuration": dict(configuration),
        "runs": run.runs,
        "measured": run.measured,
        "metrics": {key: float(value) for key, value in run.metrics.items()},
        "check_metrics": {key: float(value) for key, value in run.check_metrics.items()},
        "history": [[asdict(entry) for entry in measurement] for measurement in run.history],
        "previous": None
        if previous is None
        else {
            "epoch": int(previous.epoch),
            **{name: torch.tensor(getattr(previous, name)) for name in _ARRAYS},
            "means": [[*key, torch.tensor(mean)] for key, mean in previous.means.items()],
        },
    }


_ARRAYS = ("sample_index", "sample_fingerprint", "ids", "history")


def unpack(state: Mapping[str, Any], configuration: Mapping[str, Any]) -> tuple[RunState, Sequence[str]]:
    """Return the state in a dictionary, and the reasons for which it is not used.

    Args:
        state: from `pack`, of this version or an older one; whatever else it is, it is a reason not to use it.
        configuration: plain values of this run; other values than in the dictionary are reasons not to use it.

    Returns:
        The state, a new one if there are reasons; and the reasons in words.
    """
    try:
        return _unpacked(state, configuration)
    except Exception as error:  # a damaged state must not keep a training run from going on
        return RunState(), [f"its state cannot be read ({type(error).__name__}: {shown(str(error))})"]


def _unpacked(state: Mapping[str, Any], configuration: Mapping[str, Any]) -> tuple[RunState, Sequence[str]]:
    """Do what `unpack` does, and fail in any way where the state is damaged."""
    if state.get("version") == 1:
        state = _from_version_1(state)
    if state.get("version") != VERSION:
        return RunState(), [f"its state is of version {state.get('version')}, and this one reads version {VERSION}"]
    before = state["configuration"]
    names = before if state.get("names_only") else {**before, **configuration}
    changed = [
        f"{name} was {before.get(name)!r} and is {configuration.get(name)!r}"
        for name in names
        if before.get(name) != configuration.get(name)
    ]
    if changed:
        return RunState(), changed
    metrics = [
        {_plain_value(key, str): float(_plain_value(value, float, int)) for key, value in state[name].items()}
        for name in ("metrics", "check_metrics")
    ]
    run = RunState(_plain_value(state["runs"], int), _plain_value(state["measured"], int), metrics[0], metrics[1])
    run.history = [[_agreement(entry) for entry in measurement] for measurement in state["history"]]
    run.previous = None if state["previous"] is None else _previous(state["previous"])
    return run, []


def _plain_value(value: Any, *types: type) -> Any:
    """Return a value that is of one of some types; refuse any other one."""
    if type(value) not in types:
        raise ValueError(f"{shown(value, 60)} is no {types[0].__name__}")
    return value


def _agreement(entry: Mapping[str, Any]) -> Agreement:
    """Return one entry of the history, once its values are of the right types."""
    found = Agreement(**entry)
    for name, kind in (
        ("epoch", int),
        ("site", str),
        ("attribution", str),
        ("reliability", float),
        ("stability", float),
    ):
        _plain_value(getattr(found, name), kind)
    return found


def _previous(packed: Mapping[str, Any]) -> PreviousMeasurement:
    """Return what is needed of the measurement before, once its parts fit together."""
    arrays = {name: np.asarray(packed[name].cpu().numpy()) for name in _ARRAYS}
    means = {
        (_plain_value(site, str), _plain_value(name, str)): np.asarray(mean.cpu().numpy())
        for site, name, mean in packed["means"]
    }
    n_samples, n_clusters = len(arrays["sample_index"]), len(arrays["ids"])
    shapes: dict[str, tuple[int, ...]] = {
        "sample_index": (n_samples,),
        "sample_fingerprint": (n_samples,),
        "ids": (n_clusters,),
    }
    shapes["history"] = (len(arrays["history"]), 2)
    wrong = [name for name, array in arrays.items() if array.dtype != np.int64 or array.shape != shapes[name]]
    wrong += [site for (site, _), mean in means.items() if mean.dtype.kind != "f" or mean.shape[:-1] != (n_clusters,)]
    if wrong or len(np.unique(arrays["ids"])) < n_clusters or len(np.unique(arrays["sample_index"])) < n_samples:
        raise ValueError(f"the parts of the last measurement do not fit together: {shown(wrong, 60)}")
    return PreviousMeasurement(_plain_value(packed["epoch"], int), means=means, **arrays)


def _from_version_1(state: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade a state of version 1, in which the history was one list, and callables were known by name only."""
    history: list[list[dict[str, Any]]] = []
    for entry in state["history"]:
        known = {(last["site"], last["attribution"]) for last in history[-1]} if history else None
        if known is None or (entry["site"], entry["attribution"]) in known:
            history.append([])
        history[-1].append(entry)
    upgraded = {key: value for key, value in state.items() if key != "earlier"}
    return {**upgraded, "version": 2, "names_only": True, "history": history, "previous": state["earlier"]}


def configuration_of(
    settings: ImportanceSettings, max_samples: int, stratify: Any, dataloaders: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return the plain values under which the state in a checkpoint is valid.

    Args:
        settings: settings of the importance measurement.
        max_samples: upper bound on the number of samples in the probe set.
        stratify: how the samples are drawn, as in `NeuronImportance`.
        dataloaders: numbers of the validation loaders that they are drawn from; None: all.
    """
    clusters, removed_to = settings.clusters, settings.removed_to
    callables = {
        "the clusters callable": clusters if callable(clusters) else None,
        "the groups callable": settings.groups,
        "the stratify callable": stratify if callable(stratify) else None,
        "the target callable": settings.explained.function if settings.explained.kind == OWN else None,
        **{f"attribution {own.name}": own.score for own in settings.attributions if own.kind == OWN},
    }
    return {
        "layers": [layer.key if isinstance(layer, Site) else str(layer) for layer in settings.layers],
        "clusters": describe_source(clusters),
        "groups of labels": [[str(value) for value in pair] for pair in clusters.items()]
        if isinstance(clusters, Mapping)
        else None,
        "attribution": [attribution.name for attribution in settings.attributions],
        "target": settings.explained.name,
        "target_class": settings.target_class,
        "baseline": removed_to.identity,
        "classes": None if settings.classes is None else [str(label) for label in settings.classes],
        "class_names": list(settings.class_names),
        "max_samples": int(max_samples),
        "seed": settings.seed,
        "stratify": bool(stratify),
        "dataloaders": None if dataloaders is None else list(dataloaders),
        **{name: identify(function) for name, function in callables.items() if function is not None},
    }


def identify(function: Callable[..., Any]) -> str:
    """Identify a callable by its name, its code and the plain values that it holds.

    Two different lambdas get different texts, and a callable gets the same text in every process.

    >>> identify(lambda x: x + 1) == identify(lambda x: x + 2)
    False
    """
    if isinstance(function, partial):
        held = [_plain(value) for value in (*function.args, *sorted(function.keywords.items()))]
        return f"partial {identify(function.func)} {crc32(repr(held).encode()):08x}"
    owner = function if hasattr(function, "__code__") else type(function).__call__
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(owner, "__code__", None)
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if not _is_empty(cell)]
    values = [] if hasattr(function, "__code__") else sorted(getattr(function, "__dict__", {}).items())
    held = [_plain(value) for value in (*cells, *(getattr(owner, "__defaults__", None) or ()), *values)]
    content = (None if code is None else _content(code), held)
    return f"{name} {crc32(repr(content).encode()):08x}"


def _plain(value: Any) -> Any:
    """Return a value whose text is the same in every process; only the type's name for values of other types."""
    if isinstance(value, str | bytes | int | float | bool | type(None)):
        return value
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, frozenset | set):
        return sorted(repr(_plain(part)) for part in value)
    return _content(value) if isinstance(value, CodeType) else type(value).__qualname__


def _is_empty(cell: Any) -> bool:
    """Tell whether a closure's cell holds no value yet."""
    try:
        cell.cell_contents  # noqa: B018 (an empty one raises)
    except ValueError:
        return True
    return False


def _content(code: CodeType) -> list[Any]:
    """Return what distinguishes a function's code, without names of files and lines."""
    return [code.co_code, code.co_names, [_plain(constant) for constant in code.co_consts]]
