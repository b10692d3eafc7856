"""List a model's layers: which can be explained, and how to name them."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from lightning_neuroimp.batches.layout import read_batch
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.structure import copied_to
from lightning_neuroimp.capture.forward import ForwardFn, forward_logits, model_device
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.neuron_axis import AxisTracker
from lightning_neuroimp.capture.site_tensor import describe_shapes, read_activation
from lightning_neuroimp.capture.sites import site_of
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.trial import Trial, settle_sites
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


_WIDTH = 160  # of a printed table, in characters; names are never cut
_SHARE = (24, 32, 32)  # least number of characters that are left to the columns "kind", "output" and "note"


class SiteTable(tuple[SiteInfo, ...]):
    """Hold layers in the model's order; printed as a table, with long texts cut: those of the rows are whole."""

    def __repr__(self) -> str:
        kind, shape, note = self._widths()
        rows = [
            [
                row.name,
                _cut(row.kind, kind),
                _cut(row.shape, shape),
                "-" if row.neurons is None else row.neurons,
                row.calls,
                _cut(row.note, note),
            ]
            for row in self
        ]
        headers = ["name", "kind", "output", "neurons", "calls", "note"]
        return tabulate(rows, headers, "simple", colalign=("left", "left", "left", "right", "right", "left"))

    __str__ = __repr__

    def _widths(self) -> list[int]:
        """Return the widths of the columns "kind", "output" and "note" that fit into what is left beside the names."""
        longest = [max(map(len, column), default=0) for column in zip(*self._texts(), strict=True)] or [0, 0, 0]
        left = _WIDTH - max((len(row.name) for row in self), default=0) - len("  neurons  calls") - 5 * 2
        widths = [min(asked, least) for asked, least in zip(longest, _SHARE, strict=True)]
        for column in (2, 1, 0):  # what others do not need goes to the notes first
            widths[column] += max(0, min(longest[column] - widths[column], left - sum(widths)))
        return widths

    def _texts(self) -> list[tuple[str, str, str]]:
        return [(row.kind, row.shape, row.note) for row in self]


def _cut(text: str, longest: int) -> str:
    """Return a text that is not longer than a number of characters, with dots where it is cut."""
    return text if len(text) <= longest else f"{text[: longest - 3].rstrip()}..."


class _Listing:
    """Collect what each layer returns in its first call.

    Attributes:
        seen: shape, number of neurons and note of each layer that was called.
    """

    def __init__(self, n_samples: int, trial: Trial) -> None:
        self.seen: dict[str, tuple[str, int | None, str]] = {}
        self.tracker = AxisTracker()
        self._n_samples, self._trial = n_samples, trial

    def visit(self, site: Site, module: nn.Module, value: Any) -> None:
        """Note what a layer returns."""
        if site.name not in self.seen:
            self.seen[site.name] = (describe_shapes(value), *self._neurons(site, module, value))

    def _neurons(self, site: Site, module: nn.Module, value: Any) -> tuple[int | None, str]:
        """Return the number of neurons in an output, or None and the reason."""
        trial, site = self._trial, self._trial.sites.get(site.name, site)
        try:
            tensor = read_activation(site, module, value, self._n_samples)
            if site.name in trial.unsettled:
                raise InvalidArgument(trial.unsettled[site.name])
            axis = trial.axes.get(site.name, tensor.ndim)
            return tensor.shape[self.tracker.axis(site, module, tensor) if axis >= tensor.ndim else axis], ""
        except InvalidArgument as error:
            # the sentence after the layer's name, which is in the row
            reason = str(error).split(f"{site.name!r} ", 1)[-1]
            return None, reason.removeprefix(f"({type(module).__name__}) ")


def list_sites(
    model: nn.Module, batch: Any, *, forward_fn: ForwardFn | None = None, ignore_index: int | None = None
) -> SiteTable:
    """List the model's layers and the numbers of neurons in their outputs, by a few forward passes.

    Args:
        model: a classifier. It is left as it was found.
        batch: as the validation loader yields it.
        forward_fn: as in `neuron_importance`.
        ignore_index: as in `neuron_importance`.

    Returns:
        One row per named module; `print` it. The note of a row says what to pass in `layers` where the name alone is
        not enough; `table[3].note` is the whole of one that is cut in print.

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
    with undisturbed(model), torch.no_grad(), ExitStack() as stack:
        sites = [site_of(model, name) for name, _ in model.named_modules() if name]
        probe = ProbeSet.from_batches([batch], max_bytes=2**62)
        optional = {site.name: replace(site, optional=True) for site in sites}
        trial = settle_sites(Subject(model, probe, forward_fn, ignore_index=ignore_index), optional)
        listing = _Listing(read_batch(batch).size, trial)
        hooks = [stack.enter_context(SiteHook(site, partial(listing.visit, site)).attach(model)) for site in sites]
        stack.enter_context(listing.tracker.watch(model))
        forward_logits(model, copied_to(batch, model_device(model)), forward_fn, ignore_index=ignore_index)
    rows = []
    for hook in hooks:
        name = hook.site.name
        shape, neurons, note = listing.seen.get(name, ("", None, "not called"))
        if hook.calls > 1 and neurons is not None:
            note = f"Site({name!r}, call=0) to call={hook.calls - 1}"
        rows.append(
            SiteInfo(name, type(nn.Module.get_submodule(model, name)).__name__, shape, neurons, hook.calls, note)
        )
    return SiteTable(rows)
