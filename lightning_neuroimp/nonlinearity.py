"""Nonlinearity: the elementwise function that takes a site's activations next, and what the derivative misses of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_PASSING = {"Alias", "Clone", "Permute", "Squeeze", "T", "ToCopy", "Transpose", "UnsafeView", "Unsqueeze", "View"}
"""Operations that hand values on as they are."""

_FUNCTIONS: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "Gelu": lambda node: lambda x: F.gelu(x, approximate=node._saved_approximate),
    "Hardsigmoid": lambda node: F.hardsigmoid,
    "Hardswish": lambda node: F.hardswish,
    "Hardtanh": lambda node: lambda x: F.hardtanh(x, float(node._saved_min_val), float(node._saved_max_val)),
    "LeakyRelu": lambda node: lambda x: F.leaky_relu(x, float(node._saved_negative_slope)),
    "LogSigmoid": lambda node: F.logsigmoid,
    "Mish": lambda node: F.mish,
    "Relu": lambda node: torch.relu,
    "Sigmoid": lambda node: torch.sigmoid,
    "Silu": lambda node: F.silu,
    "Tanh": lambda node: torch.tanh,
}


@dataclass(frozen=True)
class Nonlinearity:
    """An elementwise function.

    Attributes:
        name: in lower case, such as "tanh".
        function: itself.
    """

    name: str
    function: Callable[[Tensor], Tensor]

    def derivative_error(
        self, activation: Float[Tensor, "sample *rest"], deviation: Float[Tensor, "sample *rest"]
    ) -> tuple[float, float]:
        """Sums over samples and neurons: what the derivative misses of the function's change, and the change itself.

        The change is |f(h) - f(b)|; what is missed |f(h) - f(b) - (h - b) f'(h)|.

        Args:
            activation: what it is given, h.
            deviation: h - b.
        """
        with torch.enable_grad():
            here = activation.detach().requires_grad_()
            outcome = self.function(here)
            (slope,) = torch.autograd.grad(outcome.sum(), here)
        change = outcome.detach() - self.function(activation.detach() - deviation)
        missed = change - deviation * slope
        finite = change.isfinite() & missed.isfinite()
        return float(missed.where(finite, 0).abs().sum()), float(change.where(finite, 0).abs().sum())


def followed_by(outcome: Tensor, activations: dict[str, Tensor]) -> dict[str, Nonlinearity | None]:
    """The elementwise nonlinearity that each site's activations go through next, if that is all they go through.

    Args:
        outcome: computed from the activations, with its graph.
        activations: by site, inside that graph.
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
    found = []
    waiting = list(readers.get(node, ()))
    while waiting:
        reader = waiting.pop()
        name = reader.name().partition("Backward")[0]
        if name in _PASSING:
            waiting += readers.get(reader, ())
        else:
            found.append((name, reader))
    if len(found) != 1 or found[0][0] not in _FUNCTIONS:
        return None
    name, reader = found[0]
    return Nonlinearity(name.lower(), _FUNCTIONS[name](reader))
