"""List a model's layers: which can be explained, and how to name them."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from lightning_neuroimp.batches.layout import read_batch
from lightning_neuroimp.batches.structure import copied_to
from lightning_neuroimp.capture.forward import ForwardFn, forward_logits, model_device
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.neuron_axis import AxisTracker
from lightning_neuroimp.capture.site_tensor import describe_shapes, read_activation
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Site


@dataclass(frozen=True)
class SiteInfo:
    """Describe one layer in one forward pass.

    Attributes:
        name: as in `model.named_modules()`.
        kind: its class.
        shape: types and sizes of what it returned in its first call.
        neurons: number of neurons in its output; None where it cannot be explained as it is.
        calls: number of its calls.
        note: what to pass instead of the name, or why it cannot be explained; empty where the name is enough.
    """

    name: str
    kind: str
    shape: str
    neurons: int | None
    calls: int
    note: str


class SiteTable(tuple[SiteInfo, ...]):
    """Hold layers in the model's order; printed as a table."""

    def __repr__(self) -> str:
        rows = [
            [row.name, row.kind, row.shape, "-" if row.neurons is None else row.neurons, row.calls, row.note]
            for row in self
        ]
        headers = ["name", "kind", "output", "neurons", "calls", "note"]
        return tabulate(rows, headers, "simple", colalign=("left", "left", "left", "right", "right", "left"))

    __str__ = __repr__


class _Listing:
    """Collect what each layer returns in its first call.

    Attributes:
        seen: shape, number of neurons and note of each layer that was called.
    """

    def __init__(self, n_samples: int) -> None:
        self.seen: dict[str, tuple[str, int | None, str]] = {}
        self.tracker = AxisTracker()
        self._n_samples = n_samples

    def visit(self, site: Site, module: nn.Module, value: Any) -> None:
        """Note what a layer returns."""
        if site.name not in self.seen:
            self.seen[site.name] = (describe_shapes(value), *self._neurons(site, module, value))

    def _neurons(self, site: Site, module: nn.Module, value: Any) -> tuple[int | None, str]:
        """Return the number of neurons in an output, or None and the reason."""
        try:
            tensor = read_activation(site, module, value, self._n_samples)
            return tensor.shape[self.tracker.axis(site, module, tensor)], ""
        except InvalidArgument as error:
            # the sentence after the layer's name, which is in the row
            reason = str(error).split(f"{site.name!r} ", 1)[-1]
            return None, reason.removeprefix(f"({type(module).__name__}) ")


def list_sites(model: nn.Module, batch: Any, *, forward_fn: ForwardFn | None = None) -> SiteTable:
    """List the model's layers and the numbers of neurons in their outputs, by one forward pass.

    Args:
        model: a classifier. It is left as it was found.
        batch: as the validation loader yields it.
        forward_fn: as in `neuron_importance`.

    Returns:
        One row per named module; `print` it. The note of a row says what to pass in `layers` where the name alone is
        not enough.

    Raises:
        InvalidArgument: if the model cannot be run on the batch, or gives no logits.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> print(list_sites(model, (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))))
    name    kind    output          neurons    calls  note
    ------  ------  ------------  ---------  -------  ------
    0       Linear  Tensor 4 x 3          3        1
    1       ReLU    Tensor 4 x 3          3        1
    2       Linear  Tensor 4 x 2          2        1
    """
    listing = _Listing(read_batch(batch).size)
    with undisturbed(model), torch.no_grad(), ExitStack() as stack:
        sites = [find_sites(model, name)[0] for name, _ in model.named_modules() if name]
        hooks = [stack.enter_context(SiteHook(site, partial(listing.visit, site)).attach(model)) for site in sites]
        stack.enter_context(listing.tracker.watch(model))
        forward_logits(model, copied_to(batch, model_device(model)), forward_fn)
    rows = []
    for hook in hooks:
        name = hook.site.name
        shape, neurons, note = listing.seen.get(name, ("", None, "not called"))
        if hook.calls > 1 and neurons is not None:
            note = f"Site({name!r}, call=0) to call={hook.calls - 1}"
        rows.append(SiteInfo(name, type(model.get_submodule(name)).__name__, shape, neurons, hook.calls, note))
    return SiteTable(rows)
