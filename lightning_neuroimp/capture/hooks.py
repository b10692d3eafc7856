"""Hook one site of a model: call a function with what the module returns, or gets, in the site's call."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
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
        self._visit, self._single = visit, single
        self._model: nn.Module | None = None  # while the hook is held
        self._part = ""  # a part of the module that was called

    def reset(self) -> None:
        """Count calls from 0 again, as another forward pass begins."""
        self.calls = 0

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator["SiteHook"]:
        """Hold the hook inside this context."""
        module = nn.Module.get_submodule(model, self.site.name)
        with ExitStack() as stack:
            stack.callback(setattr, self, "_model", None)
            self._model, self._part = model, ""
            for name, part in () if self._single else parts_of(module, self.site.name):
                hook = partial(self._note_part, name)
                stack.callback(nn.Module.register_forward_hook(part, hook).remove)
            # of nn.Module, as scripted modules hide these methods, but call the hooks
            if self.site.side == "output":
                handle = nn.Module.register_forward_hook(
                    module, lambda module, args, output: self._called(module, output)
                )
            else:
                handle = nn.Module.register_forward_pre_hook(
                    module, lambda module, args, kwargs: self._called(module, Inputs(args, kwargs)), with_kwargs=True
                )
            stack.callback(handle.remove)
            yield self

    def _note_part(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Note that a part of the module was called."""
        self._part = name

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
            raise InvalidArgument(f"layer {name!r} was not called in the model's forward pass{self._why_not_called()}")
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
                f"layer {name!r} is called several times in one forward pass{self._other_names()}, and which call is "
                f"meant is not clear; "
                f"pass Site({name!r}, call=0) for the first, call=1 for the second, or choose a layer that is called "
                "once"
            )

    def _why_not_called(self) -> str:
        """Say why the module may not have been called, and what to pass instead; follows the statement that it was not.

        Known reasons are a scripted module or a graph around it, parts that were called by hand, and attention.
        """
        name, model = self.site.name, self._model
        if model is None:
            return f"; {_LISTED}"
        around = surrounding(model, name)
        if self._part:
            return (
                ", though its parts were: forward() goes through them one by one, or calls .forward(...) by hand, "
                f"where hooks do not run. Name a part, such as {self._part!r}, or call the layer itself, layer(x)"
            )
        graph = next((outer for outer, module in around if isinstance(module, torch.fx.GraphModule)), None)
        if graph is not None:
            return (
                f": it is inside {_called(graph, 'a graph of torch.fx or torch.export')}, which may run operations in "
                f"place of layers; {_LISTED}"
            )
        if isinstance(around[-1][1], nn.MultiheadAttention):
            return f"; {_LISTED}. nn.MultiheadAttention does not call its out_proj"
        module = model.get_submodule(name)
        own = any(True for _ in module.parameters(recurse=False))
        return f"; {_LISTED}" + (" (.forward(x), or its weights in a function, is no call)" if own else "")

    def _other_names(self) -> str:
        """Say under which names a model has the module, if there are several."""
        if self._model is None:
            return ""
        names = names_of(self._model, nn.Module.get_submodule(self._model, self.site.name))
        return f" (it has the names {' and '.join(map(repr, names[:3]))})" if len(names) > 1 else ""


_LISTED = "choose one that is: list_sites(model, batch) shows them"


def _called(name: str, what: str) -> str:
    """Name the module around a layer, for messages."""
    return f"{name!r}, {what}" if name else what


def surrounding(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return name and module of everything around a layer, the model first."""
    parts = name.split(".")
    names = [".".join(parts[:level]) for level in range(len(parts))]
    return [(outer, nn.Module.get_submodule(model, outer)) for outer in names]  # scripted ones hide it


def scripted_around(model: nn.Module, name: str) -> str | None:
    """Say that a layer is inside a scripted module, and what to name instead; None if it is not."""
    outer = next((outer for outer, each in surrounding(model, name) if isinstance(each, torch.jit.ScriptModule)), None)
    if outer is None:
        return None
    remedy = (
        f"name {outer!r} itself" if outer else "pass the model as it was before torch.jit.script or torch.jit.trace"
    )
    return f"is inside {_called(outer, 'a scripted or traced module')}, whose parts run without hooks: {remedy}"


def names_of(model: nn.Module, module: nn.Module) -> list[str]:
    """Return all names that a model has for one of its modules."""
    return [name for name, each in model.named_modules(remove_duplicate=False) if each is module and name]


def has_forward(module: nn.Module) -> bool:
    """Tell whether a module can be called; lists and dictionaries of modules cannot."""
    return (
        isinstance(module, torch.jit.ScriptModule)
        or "forward" in vars(module)
        or type(module).forward is not nn.Module.forward
    )


def parts_of(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of a layer's children; in place of those that cannot be called, of their children."""
    for child, part in module.named_children():
        full = f"{name}.{child}" if name else child
        if has_forward(part):
            yield full, part
        else:
            yield from parts_of(part, full)
