"""Cache the activations of sites in a forward pass, with or without a graph through them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.neuron_axis import AxisTracker, require_groups
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
        axes: neuron axis of each site for which it is known already.
        refused: why sites cannot be captured, by site, as far as that is known already; optional ones are skipped.
        replace: with `gradients`, a site's text and its activations to those that take their place; None: they stay.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        gradients: bool,
        axes: Mapping[str, int] | None = None,
        refused: Mapping[str, str] | None = None,
        replace: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        self.sites = {str(site): site for site in sites}
        self.gradients, self._replace = gradients, replace
        self.outputs: dict[str, Tensor] = {}
        self.axes: dict[str, int] = {}
        self._settled = dict(axes or {})
        self.skipped = {
            name: reason for name, reason in (refused or {}).items() if name in self.sites and self.sites[name].optional
        }
        self._n_samples = self._n_rows = 0
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
    def record(self, model: nn.Module, n_samples: int, n_rows: int | None = None) -> Iterator[None]:
        """Capture the activations of the one forward pass inside this context.

        Args:
            model: to which the cache is attached.
            n_samples: number of samples in the batch.
            n_rows: number of its rows, the first of which are the samples; None: as many.

        Raises:
            InvalidArgument: if a site that is not optional was not called, was called several times, or has
                activations that cannot be explained.
        """
        self.outputs.clear()
        for hook in self._hooks.values():
            hook.reset()
        self._n_samples, self._n_rows, self._recording = n_samples, n_rows or n_samples, True
        self._tracker = AxisTracker()
        known = all(name in {**self._settled, **self.axes, **self.skipped} for name in self.sites)
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

    def require_one(self) -> None:
        """Refuse sites all of which are skipped.

        Raises:
            InvalidArgument: if there are sites, and none is left.
        """
        if self.sites and len(self.skipped) == len(self.sites):
            reason = next(iter(self.skipped.values()))
            raise InvalidArgument(f"none of the layers can be explained; for instance, {reason}")

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
            tensor = read_activation(site, module, value, self._n_rows)
            if name not in self.axes:
                axis = self._settled.get(name, tensor.ndim)
                settled = axis < tensor.ndim
                self.axes[name] = (
                    require_groups(site, axis, tensor) if settled else self._tracker.axis(site, module, tensor)
                )
            if self.gradients and not torch.is_grad_enabled():
                raise InvalidArgument(
                    f"layer {site.name!r} runs under torch.no_grad() inside the model's forward pass, so that no "
                    "gradient reaches it; use attribution='activation', or let the forward pass build its graph"
                )
        except InvalidArgument as error:
            self._skip(name, error)
            return None
        tensor, copies = tensor[: self._n_samples], tensor[self._n_samples :].detach()
        if not self.gradients:
            # a copy: an in-place layer after the site overwrites the original
            self.outputs[name] = tensor.detach().clone()
            return None
        if self._replace is not None:
            tensor = self._replace(name, tensor)
        # a leaf only where there is no graph yet: a leaf at every site would cut the graph between them. In any case a
        # new tensor: the one that was found may also be read elsewhere, where removal does not replace it
        if not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_()
        self.outputs[name] = tensor.clone() if site.side == "input" else tensor.view_as(tensor)
        # a copy, so that an in-place layer after it does not overwrite what is differentiated
        written = self.outputs[name].clone()
        return write_activation(site, module, value, torch.cat([written, copies]) if len(copies) else written)
