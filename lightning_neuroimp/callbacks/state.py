"""What a checkpoint carries, so that a resumed run goes on as an uninterrupted one would: tensors and builtins only."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from lightning_neuroimp.results.history import Agreement
from lightning_neuroimp.results.previous import PreviousMeasurement

VERSION = 1


@dataclass
class RunState:
    """How far a run has come.

    Attributes:
        runs: validation runs seen.
        measured: measurements made.
        metrics: of the last measurement.
        check_metrics: of the last one that was checked by ablation.
        history: agreement in all measurements.
        earlier: what the next measurement has to know of the last one.
    """

    runs: int = 0
    measured: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    check_metrics: dict[str, float] = field(default_factory=dict)
    history: list[Agreement] = field(default_factory=list)
    earlier: PreviousMeasurement | None = None


def pack(run: RunState, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A state dictionary.

    Args:
        run: how far it has come.
        configuration: plain values that the state holds for.
    """
    earlier = run.earlier
    return {
        "version": VERSION,
        "configuration": dict(configuration),
        "runs": run.runs,
        "measured": run.measured,
        "metrics": {key: float(value) for key, value in run.metrics.items()},
        "check_metrics": {key: float(value) for key, value in run.check_metrics.items()},
        "history": [asdict(entry) for entry in run.history],
        "earlier": None
        if earlier is None
        else {
            "epoch": int(earlier.epoch),
            **{name: torch.tensor(getattr(earlier, name)) for name in _ARRAYS},
            "means": [[*key, torch.tensor(mean)] for key, mean in earlier.means.items()],
        },
    }


_ARRAYS = ("sample_index", "sample_fingerprint", "ids", "history")


def unpack(state: Mapping[str, Any], configuration: Mapping[str, Any]) -> tuple[RunState, Sequence[str]]:
    """What a state dictionary holds, and why parts of it are not taken over.

    Args:
        state: from `pack`.
        configuration: of now.
    """
    if state.get("version") != VERSION:
        return RunState(), [f"its state is of version {state.get('version')}, and this one reads version {VERSION}"]
    run = RunState(state["runs"], state["measured"])
    before = state["configuration"]
    changed = [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in configuration.items()
        if before.get(name) != value
    ]
    if changed:
        return RunState(), changed
    run.metrics, run.check_metrics = dict(state["metrics"]), dict(state["check_metrics"])
    run.history = [Agreement(**entry) for entry in state["history"]]
    if state["earlier"] is not None:
        arrays = {name: np.asarray(state["earlier"][name].cpu().numpy()) for name in _ARRAYS}
        means = {(site, name): mean.cpu().numpy() for site, name, mean in state["earlier"]["means"]}
        run.earlier = PreviousMeasurement(state["earlier"]["epoch"], means=means, **arrays)
    return run, []
