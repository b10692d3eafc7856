"""SiteHook: a hook at one site of a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_neuroimp.capture.site_tensor import Inputs
from lightning_neuroimp.site import Site


class SiteHook:
    """A hook at one site.

    Attributes:
        calls: how often the module was called since the last `reset`.

    Args:
        site: which module, which side, which call.
        visit: is given the module and its output, or its `Inputs`, and returns what shall take their place (None: they
            stay). Where the site names no call, it is called each time.
        single: refuse a second call between two resets where the site names none.
    """

    def __init__(self, site: Site, visit: Callable[[nn.Module, Any], Any], *, single: bool = False) -> None:
        self.site, self.calls = site, 0
        self._visit, self._single, self._passed_by = visit, single, False

    def reset(self) -> None:
        """Another forward pass begins."""
        self.calls = 0

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator["SiteHook"]:
        """Hold the hook inside this context."""
        module = model.get_submodule(self.site.name)
        around = model.get_submodule(self.site.name.rpartition(".")[0])
        self._passed_by = isinstance(around, nn.MultiheadAttention)
        if self.site.side == "output":
            handle = module.register_forward_hook(lambda module, args, output: self._called(module, output))
        else:
            handle = module.register_forward_pre_hook(
                lambda module, args, kwargs: self._called(module, Inputs(args, kwargs)), with_kwargs=True
            )
        try:
            yield self
        finally:
            handle.remove()

    def _called(self, module: nn.Module, value: Any) -> Any:
        self.calls += 1
        if self._single:
            self.check_single()
        if self.site.call is None or self.calls == self.site.call + 1:
            return self._visit(module, value)
        return None

    def check_reached(self) -> None:
        """After a forward pass.

        Raises:
            ValueError: if the module was not called, or not so often.
        """
        name = self.site.name
        if not self.calls:
            raise ValueError(
                f"layer {name!r} was not called in the model's forward pass; choose one that is: "
                "list_sites(model, batch) shows them"
                + (". nn.MultiheadAttention does not call its out_proj" if self._passed_by else "")
            )
        if self.site.call is not None and self.calls <= self.site.call:
            raise ValueError(
                f"layer {name!r} was called {self.calls} times in the model's forward pass, so that there is no "
                f"call={self.site.call}; the first one is call=0"
            )

    def check_single(self) -> None:
        """In a forward pass.

        Raises:
            ValueError: if the module is called again and the site names no call.
        """
        if self.site.call is None and self.calls > 1:
            raise ValueError(several_calls(self.site))


def several_calls(site: Site) -> str:
    """The mistake, in words."""
    return (
        f"layer {site.name!r} is called several times in one forward pass, and which call is meant is not clear; pass "
        f"Site({site.name!r}, call=0) for the first, call=1 for the second, or choose a layer that is called once"
    )
