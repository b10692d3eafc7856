"""Hook one site of a model: call a function with what the module returns, or gets, in the site's call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_neuroimp.capture.site_tensor import Inputs
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Site


class SiteHook:
    """Call a function each time that a forward pass comes to a site.

    Example:
        with SiteHook(site, visit).attach(model) as hook:
            model(x)
        hook.require_reached()

    Attributes:
        site: where it is.
        calls: number of the module's calls since the last `reset`.

    Args:
        site: which module, which side, which call.
        visit: called with the module and its output, or its `Inputs`; what it returns takes their place (None: they
            stay). Where the site names no call, it is called in each one.
        single: whether to refuse a second call between two resets where the site names none.
    """

    def __init__(self, site: Site, visit: Callable[[nn.Module, Any], Any], *, single: bool = False) -> None:
        self.site, self.calls = site, 0
        self._visit, self._single, self._in_attention = visit, single, False

    def reset(self) -> None:
        """Count calls from 0 again, as another forward pass begins."""
        self.calls = 0

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator["SiteHook"]:
        """Hold the hook inside this context."""
        module = model.get_submodule(self.site.name)
        parent = model.get_submodule(self.site.name.rpartition(".")[0])
        self._in_attention = isinstance(parent, nn.MultiheadAttention)
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
            self.require_single()
        if self.site.call is None or self.calls == self.site.call + 1:
            return self._visit(module, value)
        return None

    def require_reached(self) -> None:
        """Refuse, after a forward pass, a site that the pass did not come to.

        Raises:
            InvalidArgument: if the module was not called, or fewer times than the site's call needs.
        """
        name = self.site.name
        if not self.calls:
            raise InvalidArgument(
                f"layer {name!r} was not called in the model's forward pass; choose one that is: "
                "list_sites(model, batch) shows them"
                + (". nn.MultiheadAttention does not call its out_proj" if self._in_attention else "")
            )
        if self.site.call is not None and self.calls <= self.site.call:
            raise InvalidArgument(
                f"layer {name!r} was called {self.calls} times in the model's forward pass, so that there is no "
                f"call={self.site.call}; the first one is call=0"
            )

    def require_single(self) -> None:
        """Refuse, in a forward pass, another call of a module whose site names none.

        Raises:
            InvalidArgument: if the module is called again.
        """
        if self.site.call is None and self.calls > 1:
            name = self.site.name
            raise InvalidArgument(
                f"layer {name!r} is called several times in one forward pass, and which call is meant is not clear; "
                f"pass Site({name!r}, call=0) for the first, call=1 for the second, or choose a layer that is called "
                "once"
            )
