"""Nonlinearity: the elementwise function that takes a site's activations next, and what the derivative misses of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_PASSING = {"Alias", "Clone", "Permute", "Squeeze", "T", "ToCopy", "Transpose", "UnsafeView", "Unsqueeze", "View"}
"""Operations that hand values on as they are."""


# what a node knows is read at once: to hold on to it would keep all that it has saved for a backward pass
_FUNCTIONS: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "Gelu": lambda node: partial(F.gelu, approximate=node._saved_approximate),
    "Hardsigmoid": lambda node: F.hardsigmoid,
    "Hardswish": lambda node: F.hardswish,
    "Hardtanh": lambda node: partial(
        F.hardtanh, min_val=float(node._saved_min_val), max_val=float(node._saved_max_val)
    ),
    "LeakyRelu": lambda node: partial(F.leaky_relu, negative_slope=float(node._saved_negative_slope)),
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
        self, activation: Float[Tensor, " sample *rest"], deviation: Float[Tensor, " sample *rest"]
    ) -> tuple[float, float]:
        """Sums over samples and neurons: what the derivative does not see of the function's change, and that change.

        The change is |f(h) - f(b)|; what is not seen is that minus |(h - b) f'(h)|, where that is less.

        Args:
            activation: what it is given, h.
            deviation: h - b.
        """
        with torch.enable_grad():
            here = activation.detach().requires_grad_()
            outcome = self.function(here)
            (slope,) = torch.autograd.grad(outcome.sum(), here)
        change = outcome.detach() - self.function(activation.detach() - deviation)
        # all of these functions but some near zero rise, so that both have one sign
        missed = (change.abs() - (deviation * slope).abs()).clamp_min(0)
        finite = change.isfinite() & missed.isfinite()
        return float(missed.where(finite, 0).sum()), float(change.where(finite, 0).abs().sum())


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
        # torch's own nodes are numbered; an autograd function of the user's may have any name
        own = re.fullmatch(r"(\w+)Backward\d+", reader.name())
        name = own[1] if own else ""
        if name in _PASSING:
            waiting += readers.get(reader, ())
        else:
            found.append((name, reader))
    if len(found) != 1 or found[0][0] not in _FUNCTIONS:
        return None
    name, reader = found[0]
    return Nonlinearity(name.lower(), _FUNCTIONS[name](reader))
