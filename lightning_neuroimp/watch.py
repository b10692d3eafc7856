"""Watch: the outputs of sites in a forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_neuroimp.sites import AxisTracker, Site, check_output


class Watch:
    """Keeps the output of each site in the last forward pass, ready to be differentiated with respect to.

    Attributes:
        outputs: the output of each site that was reached, by name.
        axes: the neuron axis of each site that was reached at least once.
        skipped: optional sites that cannot be watched, and why.
    """

    def __init__(self, sites: Sequence[Site], *, gradients: bool) -> None:
        self.sites = {site.name: site for site in sites}
        self.gradients = gradients
        self.outputs: dict[str, Tensor] = {}
        self.axes: dict[str, int] = {}
        self.skipped: dict[str, str] = {}
        self._calls: dict[str, int] = {}
        self._n_samples = 0
        self._recording = False

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Hold the hooks inside this context."""
        handles = []
        try:
            for name in self.sites:
                handles.append(model.get_submodule(name).register_forward_hook(self._hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.outputs.clear()

    @contextmanager
    def record(self, model: nn.Module, n_samples: int) -> Iterator[None]:
        """One forward pass over `n_samples` samples.

        Raises:
            ValueError: if a site was not called, was called several times, or has an unfit output.
        """
        self.outputs.clear()
        self._calls.clear()
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
        for name, site in self.sites.items():
            if name not in self._calls:
                message = f"layer {name!r} was not called in the model's forward pass; choose one that is"
                self._pass_over(site, message)

    def _pass_over(self, site: Site, message: str) -> None:
        if not site.optional:
            raise ValueError(message)
        self.skipped.setdefault(site.name, message)
        self.outputs.pop(site.name, None)

    def _hook(self, name: str):  # type: ignore[no-untyped-def]  # torch's own hook signature is Any
        site = self.sites[name]

        def hook(module: nn.Module, args: object, output: object) -> object:
            if not self._recording or name in self.skipped:
                return None
            self._calls[name] = self._calls.get(name, 0) + 1
            if self._calls[name] > 1:
                self._pass_over(
                    site,
                    f"layer {name!r} is called several times in one forward pass, and which call is meant is not "
                    "clear; choose a layer that is called once, such as the layers around it",
                )
                return None
            try:
                tensor = check_output(site, module, output, self._n_samples)
                if name not in self.axes:
                    self.axes[name] = self._tracker.axis(site, module, tensor)
            except ValueError as error:
                self._pass_over(site, str(error))
                return None
            if not self.gradients:
                # a copy: an in-place layer behind the site overwrites the original
                self.outputs[name] = tensor.detach().clone()
                return None
            if not torch.is_grad_enabled():
                self._pass_over(
                    site,
                    f"layer {name!r} runs under torch.no_grad() inside the model's forward pass, so that no gradient "
                    "reaches it; use attribution='activation', or let the forward pass build its graph",
                )
                return None
            # a leaf only where there is no graph yet: a leaf at every site would cut the graph between them
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
            self.outputs[name] = tensor
            return tensor.clone()  # so that an in-place layer behind it does not overwrite what is differentiated

        return hook
