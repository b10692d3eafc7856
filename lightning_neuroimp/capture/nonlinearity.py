"""Find the elementwise function that takes a site's activations next, and what its gradient misses.

A site is often read just before its nonlinearity. Where the removal moves activations across a bend of that function,
the gradient at the activations does not see the change: that is a finding.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lightning_neuroimp import _compat

_PASSING = {"Alias", "Clone", "Permute", "Squeeze", "T", "ToCopy", "Transpose", "UnsafeView", "Unsqueeze", "View"}
"""Operations of a graph that hand values on as they are."""


# a node's parameters are read at once: to keep the node would keep all that it has saved for a backward pass
_FUNCTIONS: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "Gelu": lambda node: partial(F.gelu, approximate=_compat.saved_value(node, "approximate")),
    "Hardsigmoid": lambda node: F.hardsigmoid,
    "Hardswish": lambda node: F.hardswish,
    "Hardtanh": lambda node: partial(
        F.hardtanh,
        min_val=float(_compat.saved_value(node, "min_val")),
        max_val=float(_compat.saved_value(node, "max_val")),
    ),
    "LeakyRelu": lambda node: partial(F.leaky_relu, negative_slope=float(_compat.saved_value(node, "negative_slope"))),
    "LogSigmoid": lambda node: F.logsigmoid,
    "Mish": lambda node: F.mish,
    "Relu": lambda node: torch.relu,
    "Sigmoid": lambda node: torch.sigmoid,
    "Silu": lambda node: F.silu,
    "Tanh": lambda node: torch.tanh,
}
"""How a node of autograd's graph, by its name, becomes the function that it is the gradient of."""


@dataclass(frozen=True)
class Nonlinearity:
    """Hold an elementwise function.

    Attributes:
        name: in lower case, such as "tanh".
        function: of a tensor of any shape.
    """

    name: str
    function: Callable[[Tensor], Tensor]

    def derivative_error(
        self, activation: Float[Tensor, " sample *rest"], deviation: Float[Tensor, " sample *rest"]
    ) -> tuple[float, float]:
        """Return how much of the function's change its gradient misses, and that change, summed over all entries.

        The change is |f(h) - f(b)|; what the gradient misses is that minus |(h - b) f'(h)|, where that is less.

        Args:
            activation: what the function is given, h.
            deviation: activation minus baseline, h - b.
        """
        with torch.enable_grad():
            here = activation.detach().requires_grad_()
            outcome = self.function(here)
            (slope,) = torch.autograd.grad(outcome.sum(), here)
        change = outcome.detach() - self.function(activation.detach() - deviation)
        # all of these functions rise, except some near zero, so that both have one sign
        missed = (change.abs() - (deviation * slope).abs()).clamp_min(0)
        finite = change.isfinite() & missed.isfinite()
        return float(missed.where(finite, 0).sum()), float(change.where(finite, 0).abs().sum())


def followed_by(outcome: Tensor, activations: dict[str, Tensor]) -> dict[str, Nonlinearity | None]:
    """Return the elementwise nonlinearity that each site's activations go through next.

    Args:
        outcome: computed from the activations, with its graph.
        activations: by site, inside that graph.

    Returns:
        Per site; None where the activations go to anything else, or to several functions.
    """
    readers: dict[Any, list[Any]] = {}
    waiting = [outcome.grad_fn]
    seen = {outcome.grad_fn}
    while waiting:
        node = waiting.pop()
        for source, _ in getattr(node, "next_functions", ()):
            if source is None:
                continue
            readers.setdefault(source, []).append(node)
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return {name: _only_reader(activation.grad_fn, readers) for name, activation in activations.items()}


def _only_reader(node: Any, readers: dict[Any, list[Any]]) -> Nonlinearity | None:
    """Return the known function that is all that reads a node's values; None if there is no such one.

    Args:
        node: of the graph.
        readers: nodes that read each node's values.
    """
    found = []
    waiting = list(readers.get(node, ()))
    while waiting:
        reader = waiting.pop()
        # torch's own nodes are numbered; an autograd function of the user's may have any name
        numbered = re.fullmatch(r"(\w+)Backward\d+", reader.name())
        name = numbered[1] if numbered else ""
        if name in _PASSING:
            waiting += readers.get(reader, ())
        else:
            found.append((name, reader))
    if len(found) != 1 or found[0][0] not in _FUNCTIONS:
        return None
    name, reader = found[0]
    return Nonlinearity(name.lower(), _FUNCTIONS[name](reader))
