"""Targets: the scalar of each sample that is explained."""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

TargetFn = Callable[..., Any]
"""`target(logits, classes) -> scalars`: (sample, class) logits and (sample,) classes to one scalar per sample."""


TARGET_CLASSES = ("label", "predicted")


def margin(logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """Logit of the class minus the log-sum-exp of all others, in logits; with two classes, the log odds.

    It does not saturate where the probability does, and its sign is the decision for two classes.
    """
    own = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], float("-inf"))
    return own[:, 0] - others.logsumexp(1)


def logit(logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """Logit of the class."""
    return logits.gather(1, classes[:, None])[:, 0]


def log_probability(logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """Log-probability of the class."""
    return logits.log_softmax(1).gather(1, classes[:, None])[:, 0]


def probability(logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """Probability of the class."""
    return logits.softmax(1).gather(1, classes[:, None])[:, 0]


TARGETS: dict[str, TargetFn] = {
    function.__name__: function for function in (margin, logit, log_probability, probability)
}


def margin_slope(
    target: TargetFn, logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]
) -> Float[Tensor, " sample"] | None:
    """Derivative of a target with respect to the margin; None where it is not a function of the margin alone.

    The probability is the logistic function of the margin, and the log-probability its logarithm.
    """
    if target is margin:
        return torch.ones_like(logits[:, 0])
    if target is log_probability:
        return torch.sigmoid(-margin(logits, classes))
    if target is probability:
        value = margin(logits, classes)
        return torch.sigmoid(value) * torch.sigmoid(-value)
    return None


def check_target(target: str | TargetFn) -> tuple[str, TargetFn]:
    """Name and function of a target.

    Raises:
        ValueError: if it is neither a known name nor a callable.
    """
    if isinstance(target, str):
        if target in TARGETS:
            return target, TARGETS[target]
    elif callable(target):
        return getattr(target, "__name__", type(target).__name__), target
    raise ValueError(
        f"target must be one of {sorted(TARGETS)} or a callable (logits, classes) -> one scalar per sample, "
        f"got {target!r}"
    )


def target_values(
    target: TargetFn, logits: Float[Tensor, "sample class"], classes: Int[Tensor, " sample"]
) -> Float[Tensor, " sample"]:
    """The explained scalar of each sample.

    Raises:
        ValueError: if a callable target does not return one scalar per sample.
    """
    values = target(logits, classes)
    if not isinstance(values, Tensor) or values.shape != classes.shape:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(f"target must return one scalar per sample, shape ({len(classes)},), got {got}")
    return values


def check_target_class(target_class: Any) -> str | int:
    """Whose target: "label", "predicted", or a class number.

    Raises:
        ValueError: if it is none of these.
    """
    number = isinstance(target_class, Integral) and not isinstance(target_class, bool)
    if number and int(target_class) >= 0:
        return int(target_class)
    if target_class in TARGET_CLASSES:
        return str(target_class)
    raise ValueError(f"target_class must be 'label', 'predicted' or the number of a class, got {target_class!r}")


def explained_classes(
    logits: Float[Tensor, "sample class"], labels: Int[Tensor, " sample"], target_class: str | int
) -> Int[Tensor, " sample"]:
    """The class of each sample whose target is explained.

    Raises:
        ValueError: if a class is asked for that the model does not have.
    """
    if target_class == "label":
        return labels
    if target_class == "predicted":
        return logits.detach().argmax(1)
    if int(target_class) >= logits.shape[1]:
        raise ValueError(f"target_class={target_class} is not among the classes 0..{logits.shape[1] - 1} of the model")
    return torch.full_like(labels, int(target_class))
