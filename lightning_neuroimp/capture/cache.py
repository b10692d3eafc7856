"""Cache the activations of sites in a forward pass, with or without a graph through them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.neuron_axis import AxisTracker
from lightning_neuroimp.capture.site_tensor import read_activation, write_activation
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Site


class ActivationCache:
    """Keep the activations of each site in the last forward pass, ready to be differentiated with respect to.

    Example:
        cache = ActivationCache(sites, gradients=True)
        with cache.attach(model):
            with cache.record(model, len(x)):
                logits = model(x)
            torch.autograd.grad(logits.sum(), list(cache.outputs.values()))

    Attributes:
        sites: by their text.
        outputs: activations of each site that the last pass reached, samples first, by the site's text.
        axes: neuron axis of each site that was reached at least once.
        skipped: optional sites that cannot be captured, and why.

    Args:
        sites: what is captured.
        gradients: whether the activations keep the model's graph; otherwise they are detached copies.
    """

    def __init__(self, sites: Sequence[Site], *, gradients: bool) -> None:
        self.sites = {str(site): site for site in sites}
        self.gradients = gradients
        self.outputs: dict[str, Tensor] = {}
        self.axes: dict[str, int] = {}
        self.skipped: dict[str, str] = {}
        self._n_samples = 0
        self._recording = False
        self._tracker = AxisTracker()
        self._hooks: dict[str, SiteHook] = {}

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Hold the hooks inside this context."""
        with ExitStack() as stack:
            stack.callback(self._hooks.clear)
            for name, site in self.sites.items():
                self._hooks[name] = stack.enter_context(SiteHook(site, partial(self._visit, name)).attach(model))
            stack.callback(self.outputs.clear)
            yield

    @contextmanager
    def record(self, model: nn.Module, n_samples: int) -> Iterator[None]:
        """Capture the activations of the one forward pass inside this context.

        Args:
            model: to which the cache is attached.
            n_samples: number of samples in the batch.

        Raises:
            InvalidArgument: if a site that is not optional was not called, was called several times, or has
                activations that cannot be explained.
        """
        self.outputs.clear()
        for hook in self._hooks.values():
            hook.reset()
        self._n_samples, self._recording = n_samples, True
        self._tracker = AxisTracker()
        known = all(name in self.axes or name in self.skipped for name in self.sites)
        try:
            with nullcontext() if known else self._tracker.watch(model):
                yield
        finally:
            self._recording = False
        for name, hook in self._hooks.items():
            if name not in self.outputs and name not in self.skipped:
                try:
                    hook.require_reached()
                except InvalidArgument as error:
                    self._skip(name, error)

    def _skip(self, name: str, error: InvalidArgument) -> None:
        """Note why an optional site is skipped; raise the error for any other one."""
        if not self.sites[name].optional:
            raise error
        self.skipped.setdefault(name, str(error))
        self.outputs.pop(name, None)

    def _visit(self, name: str, module: nn.Module, value: Any) -> Any:
        """Capture a site's activations; return what takes the place of the module's value, or None."""
        site = self.sites[name]
        if not self._recording or name in self.skipped:
            return None
        try:
            self._hooks[name].require_single()
            tensor = read_activation(site, module, value, self._n_samples)
            if name not in self.axes:
                self.axes[name] = self._tracker.axis(site, module, tensor)
            if self.gradients and not torch.is_grad_enabled():
                raise InvalidArgument(
                    f"layer {site.name!r} runs under torch.no_grad() inside the model's forward pass, so that no "
                    "gradient reaches it; use attribution='activation', or let the forward pass build its graph"
                )
        except InvalidArgument as error:
            self._skip(name, error)
            return None
        if not self.gradients:
            # a copy: an in-place layer after the site overwrites the original
            self.outputs[name] = tensor.detach().clone()
            return None
        # a leaf only where there is no graph yet: a leaf at every site would cut the graph between them. In any case a
        # new tensor: the one that was found may also be read elsewhere, where removal does not replace it
        if not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_()
        self.outputs[name] = tensor.clone() if site.side == "input" else tensor.view_as(tensor)
        # a copy, so that an in-place layer after it does not overwrite what is differentiated
        return write_activation(site, module, value, self.outputs[name].clone())
