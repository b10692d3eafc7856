"""Watch: the activations of sites in a forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neuroimp.capture.axes import AxisTracker
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.site_tensor import read, write
from lightning_neuroimp.site import Site


class ActivationCache:
    """Keeps the activations of each site in the last forward pass, ready to be differentiated with respect to.

    Attributes:
        sites: by name.
        outputs: the activations of each site that was reached, samples first, by name.
        axes: the neuron axis of each site that was reached at least once.
        skipped: optional sites that cannot be watched, and why.
    """

    def __init__(self, sites: Sequence[Site], *, gradients: bool) -> None:
        self.sites = {str(site): site for site in sites}
        self.gradients = gradients
        self.outputs: dict[str, Tensor] = {}
        self.axes: dict[str, int] = {}
        self.skipped: dict[str, str] = {}
        self._n_samples = 0
        self._recording = False
        self._taps: dict[str, SiteHook] = {}

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Hold the hooks inside this context."""
        with ExitStack() as stack:
            stack.callback(self._taps.clear)
            for name, site in self.sites.items():
                self._taps[name] = stack.enter_context(SiteHook(site, partial(self._visit, name)).attach(model))
            stack.callback(self.outputs.clear)
            yield

    @contextmanager
    def record(self, model: nn.Module, n_samples: int) -> Iterator[None]:
        """One forward pass over `n_samples` samples.

        Raises:
            ValueError: if a site was not called, was called several times, or has unfit activations.
        """
        self.outputs.clear()
        for tap in self._taps.values():
            tap.reset()
        self._n_samples = n_samples
        self._recording = True
        self._tracker = AxisTracker()
        known = all(name in self.axes or name in self.skipped for name in self.sites)
        try:
            if known:
                yield
            else:
                with self._tracker.watch(model):
                    yield
        finally:
            self._recording = False
        for name, tap in self._taps.items():
            if name not in self.outputs and name not in self.skipped:
                try:
                    tap.check_reached()
                except ValueError as error:
                    self._pass_over(name, error)

    def _pass_over(self, name: str, error: ValueError) -> None:
        if not self.sites[name].optional:
            raise error
        self.skipped.setdefault(name, str(error))
        self.outputs.pop(name, None)

    def _visit(self, name: str, module: nn.Module, value: Any) -> Any:
        site = self.sites[name]
        if not self._recording or name in self.skipped:
            return None
        try:
            self._taps[name].check_single()
            tensor = read(site, module, value, self._n_samples)
            if name not in self.axes:
                self.axes[name] = self._tracker.axis(site, module, tensor)
            if self.gradients and not torch.is_grad_enabled():
                raise ValueError(
                    f"layer {site.name!r} runs under torch.no_grad() inside the model's forward pass, so that no "
                    "gradient reaches it; use attribution='activation', or let the forward pass build its graph"
                )
        except ValueError as error:
            self._pass_over(name, error)
            return None
        if not self.gradients:
            # a copy: an in-place layer behind the site overwrites the original
            self.outputs[name] = tensor.detach().clone()
            return None
        # a leaf only where there is no graph yet: a leaf at every site would cut the graph between them. A tensor of
        # its own in any case: the one that was found may be read elsewhere too, past what removal replaces
        if not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_()
        self.outputs[name] = tensor.clone() if site.side == "input" else tensor.view_as(tensor)
        # a copy, so that an in-place layer behind it does not overwrite what is differentiated
        return write(site, module, value, self.outputs[name].clone())
