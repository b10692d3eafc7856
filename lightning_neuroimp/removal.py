"""Removal: the target that is explained and the baseline that stands for a removed neuron.

`results.Removal` is the one object that scores and ablations share; here is how it is computed with.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_neuroimp.results import Removal
from lightning_neuroimp.sites import along_axis

TargetFn = Callable[..., Any]
"""`target(logits, classes) -> scalars`: (sample, class) logits and (sample,) classes to one scalar per sample."""

BASELINES = ("zero", "mean")

_SAME_SIZE = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


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


def check_baseline(baseline: str) -> str:
    """The name of a baseline.

    Raises:
        ValueError: if it is unknown.
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline must be one of {list(BASELINES)}, got {baseline!r}")
    return baseline


def remove(
    activation: Float[Tensor, "sample ..."], removal: Removal, mask: Bool[Tensor, "_ neuron"]
) -> Float[Tensor, "sample ..."]:
    """Activations with the masked neurons set to their baseline, at all positions; no gradient flows through.

    Args:
        activation: output of the removal's site.
        removal: which axis, which baseline.
        mask: True where a neuron is removed; one row per sample, or one for all.
    """
    activation = activation.detach()
    value = torch.as_tensor(removal.baseline_value, dtype=activation.dtype, device=activation.device)
    value = along_axis(value, removal.axis, activation.ndim)
    # laid out in memory as the activations are, whatever the mask is: layers behind may compute differently else
    result = torch.empty_like(activation)
    whole = _SAME_SIZE.get(activation.dtype)
    if whole is None:
        return torch.where(along_axis(mask, removal.axis, activation.ndim), value, activation, out=result)
    # choosing by bits is as exact, and on a CPU five times faster
    keep = along_axis(mask.to(whole) - 1, removal.axis, activation.ndim)  # all bits set where a neuron stays
    chosen = result.view(whole)
    torch.bitwise_and(activation.view(whole), keep, out=chosen)
    if removal.baseline_value.any():
        chosen.bitwise_or_(value.view(whole) & ~keep)
    return result
