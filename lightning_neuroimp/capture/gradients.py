"""Differentiate a target with respect to activations, and say in words where that is not possible."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lightning_neuroimp.errors import InvalidArgument

T = TypeVar("T")

_NO_DERIVATIVE = (
    "not implemented",
    "does not require grad",
    "no grad",
    "checkpoint",
    "inplace operation",
    "derivative",
)
"""What the messages say that torch raises where operations have no derivative."""


def differentiate(total: Tensor, activations: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradient of a sum at each of several activations; None where it does not depend on them.

    Args:
        total: one number, computed from the activations, with its graph.
        activations: inside that graph.

    Raises:
        InvalidArgument: if torch cannot differentiate what is in between.
    """
    try:
        return list(torch.autograd.grad(total, list(activations), allow_unused=True))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, TypeError, ValueError, LookupError, AttributeError) as error:
        # what a user's own backward raises is of any kind; other runtime errors are those of the device
        known = not isinstance(error, RuntimeError) or isinstance(error, NotImplementedError)
        if not known and not any(text in str(error) for text in _NO_DERIVATIVE):
            raise
        raise InvalidArgument(
            f"torch cannot differentiate the model's outputs: {type(error).__name__} {str(error)[:100]}; use "
            "attribution='leave_one_out' or 'activation', which need no gradient"
        ) from error


def despite_changes(compute: Callable[[], T], changed: list[bool]) -> T:
    """Compute something with gradients, also where the model changes what its backward pass needs.

    That happens where an operation in place follows a layer that is the identity in evaluation mode, such as dropout.
    Then what is changed is copied first.

    Args:
        compute: builds a graph and differentiates it.
        changed: holds True once it was seen that copies are needed; filled here.
    """
    if not changed:
        try:
            return compute()
        except (InvalidArgument, RuntimeError) as error:
            if "modified by an inplace operation" not in f"{error} {error.__cause__}":
                raise
            changed.append(True)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        return compute()


def no_path(site: str) -> str:
    """Say that no gradient leads from the logits to a site, what may be the cause, and what works.

    Args:
        site: in words.
    """
    return (
        f"layer {site!r} has no gradient: in no batch does autograd lead from the logits to it (a detach(), no_grad(), "
        "integers or an exit before it?); use attribution='leave_one_out' or 'activation', or a layer that the logits "
        "are computed from"
    )
