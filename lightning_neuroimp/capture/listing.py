"""list_sites(model, batch): which layers can be explained, and how to name them."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from lightning_neuroimp.batches.structure import batch_size, to_device, unpacked
from lightning_neuroimp.capture.axes import AxisTracker
from lightning_neuroimp.capture.forward import ForwardFn, forward_logits, model_device
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.site_tensor import describe, read
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.site import Site


@dataclass(frozen=True)
class SiteInfo:
    """One layer in one forward pass.

    Attributes:
        name: as in `model.named_modules()`.
        kind: its class.
        shape: what it returned in its first call: types and sizes.
        neurons: how many neurons its output has; None where it cannot be explained as it is.
        calls: how often it was called.
        note: what to pass instead of the name, or why it cannot be explained; empty where the name will do.
    """

    name: str
    kind: str
    shape: str
    neurons: int | None
    calls: int
    note: str


class SiteTable(tuple[SiteInfo, ...]):
    """Layers in the model's order; its text is a table."""

    def __repr__(self) -> str:
        rows = [
            [one.name, one.kind, one.shape, "-" if one.neurons is None else one.neurons, one.calls, one.note]
            for one in self
        ]
        headers = ["name", "kind", "output", "neurons", "calls", "note"]
        return tabulate(rows, headers, "simple", colalign=("left", "left", "left", "right", "right", "left"))

    __str__ = __repr__


def list_sites(model: nn.Module, batch: Any, *, forward_fn: ForwardFn | None = None) -> SiteTable:
    """The model's layers, with the neurons of their outputs, in one forward pass.

    Args:
        model: a classifier. Left as it was found.
        batch: as the validation loader yields it.
        forward_fn: as in `neuron_importance`.

    Returns:
        One row per named module; `print` it. The note of a row says what to pass in `layers` where the name alone will
        not do.

    Raises:
        ValueError: if the model cannot be run on the batch, or gives no logits.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> print(list_sites(model, (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))))
    name    kind    output          neurons    calls  note
    ------  ------  ------------  ---------  -------  ------
    0       Linear  Tensor 4 x 3          3        1
    1       ReLU    Tensor 4 x 3          3        1
    2       Linear  Tensor 4 x 2          2        1
    """
    names = [name for name, _ in model.named_modules() if name]
    seen: dict[str, tuple[str, int | None, str]] = {}
    tracker = AxisTracker()
    size = batch_size(unpacked(batch))

    def visit(site: Site, module: nn.Module, value: Any) -> None:
        if site.name not in seen:
            seen[site.name] = (describe(value), *_neurons(site, module, value, size, tracker))

    with undisturbed(model), torch.no_grad(), ExitStack() as stack:
        sites = [find_sites(model, name)[0] for name in names]
        taps = [stack.enter_context(_tap(site, visit).attach(model)) for site in sites]
        stack.enter_context(tracker.watch(model))
        forward_logits(model, to_device(batch, model_device(model)), forward_fn)
    rows = []
    for tap in taps:
        name = tap.site.name
        shape, neurons, note = seen.get(name, ("", None, "not called"))
        if tap.calls > 1 and neurons is not None:
            note = f"Site({name!r}, call=0) to call={tap.calls - 1}"
        rows.append(SiteInfo(name, type(model.get_submodule(name)).__name__, shape, neurons, tap.calls, note))
    return SiteTable(rows)


def _tap(site: Site, visit: Callable[[Site, nn.Module, Any], None]) -> SiteHook:
    return SiteHook(site, partial(visit, site))


def _neurons(site: Site, module: nn.Module, value: Any, n_samples: int, tracker: AxisTracker) -> tuple[int | None, str]:
    """How many neurons an output has, and a note."""
    try:
        tensor = read(site, module, value, n_samples)
        return tensor.shape[tracker.axis(site, module, tensor)], ""
    except ValueError as error:
        message = str(error)
        # the sentence behind the layer's name, which stands in the row
        return None, message.split(f"{site.name!r} ", 1)[-1].removeprefix(f"({type(module).__name__}) ")
