"""Run a model on a batch, and find the logits and targets of a classifier."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_neuroimp.batches.fields import REMEDY, find_tokens, split_batch
from lightning_neuroimp.batches.structure import describe, fields_of
from lightning_neuroimp.capture.targets import explained_classes

ForwardFn = Callable[[Any, Any], tuple[Any, ...]]
"""`forward_fn(model, batch) -> (logits, targets)`: (sample, class) logits and integer targets of shape (sample,); or
`(logits, targets, tokens)` with tokens of shape (sample, token), True where a token is no padding."""


_WHOLE = ("batch", "data", "sample", "samples", "example", "examples")
"""A `forward` whose argument is called so takes a dictionary."""


class Outcome(NamedTuple):
    """What a model says of a batch.

    Attributes:
        logits: (sample, class).
        classes: the class of each sample that is explained.
        tokens: True where a token is no padding; None where there are none, or none is padded.
    """

    logits: Tensor
    classes: Tensor
    tokens: Tensor | None = None


class Prediction(NamedTuple):
    """What a model says of a batch.

    Attributes:
        logits: (sample, class), in at least float32.
        labels: the targets.
        tokens: True where a token is no padding; None where nothing tells.
    """

    logits: Float[Tensor, "sample class"]
    labels: Int[Tensor, " sample"]
    tokens: Bool[Tensor, "sample token"] | None


def call_model(model: nn.Module, inputs: Any) -> Any:
    """The model's output for a batch's inputs.

    Named inputs are passed by keyword where `forward` has arguments of these names; a single one is passed alone; else
    a `forward` of one argument gets all of them as a dictionary. A sequence of inputs is passed as several arguments
    where `forward` needs several.

    Raises:
        ValueError: if the names do not fit, the model has no `forward`, or it cannot take what it is given.
    """
    args, kwargs = _arguments(model, inputs)
    try:
        return model(*args, **kwargs)
    except NotImplementedError as error:
        if "forward" not in str(error):
            raise
        raise ValueError(
            f"{type(model).__name__} defines no forward(), so that it cannot be called with the inputs; define it, "
            "or pass forward_fn=lambda module, batch: (module.your_network(batch[0]), batch[1])"
        ) from error
    except (TypeError, LookupError, AttributeError) as error:
        given = [describe(part) for part in args] + [f"{key}= {describe(part)}" for key, part in kwargs.items()]
        raise ValueError(
            f"{type(model).__name__} was called with {', '.join(given)}, and failed with {type(error).__name__}: "
            f"{error}; if it should be called otherwise, {REMEDY}"
        ) from error


def _arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How to call the model."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    by_name = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    variadic = [one for one in parameters if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    needed = [one for one in parameters if one.default is one.empty and one not in variadic]
    if not isinstance(inputs, dict):
        several = isinstance(inputs, tuple | list) and len([one for one in needed if one in positional]) > 1
        return (tuple(inputs), {}) if several else ((inputs,), {})
    anything = any(one.kind is one.VAR_KEYWORD for one in variadic)
    given = {key: part for key, part in inputs.items() if key in by_name or (anything and isinstance(part, Tensor))}
    if given and {one.name for one in needed} <= set(given):
        return (), given
    if len(needed) == 1 or (not needed and len(positional) == 1):
        only = (needed or positional)[0]
        whole = only.name in _WHOLE or getattr(only.annotation, "__origin__", only.annotation) in (dict, Mapping)
        tensors = [part for part in inputs.values() if isinstance(part, Tensor)]
        single = tensors if len(tensors) == 1 else list(inputs.values())
        return ((dict(inputs),), {}) if whole or len(single) > 1 else ((single[0],), {})
    raise ValueError(
        f"the batch holds {list(inputs)} beside the targets, but {type(model).__name__}.forward takes "
        f"{[one.name for one in parameters]}: the names must fit; else " + REMEDY
    )


def find_logits(output: Any) -> Any:
    """The logits in a model's output: itself, its `logits`, or the first item of a tuple."""
    named = fields_of(output)
    if named is not None and "logits" in named:
        return named["logits"]
    if named is None and isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, tuple | list) and output:
        return output[0]
    if named is not None and len(named) == 1:
        return next(iter(named.values()))
    return output


def forward_logits(model: nn.Module, batch: Any, forward_fn: ForwardFn | None, *, check: bool = True) -> Prediction:
    """Run the model on a batch and check that the outcome is a classifier's.

    One logit per sample with targets 0 and 1 is a binary classifier's: its logits are (0, f).

    Args:
        model: called with the inputs, unless `forward_fn` is given.
        batch: one batch, on the model's device.
        forward_fn: what gives logits and targets in place of `call_model` and `split_batch`.
        check: whether values are checked; not where the same batch has passed before and neurons are removed now.

    Returns:
        Logits in at least float32 (under mixed precision they come in half), the labels, and the tokens' mask.

    Raises:
        ValueError: if the outputs are not logits, look like probabilities, or the targets are not classes.
    """
    tokens = find_tokens(batch)
    if forward_fn is None:
        inputs, targets = split_batch(batch)
        output = call_model(model, inputs)
    else:
        outcome = forward_fn(model, batch)
        if not isinstance(outcome, tuple) or len(outcome) not in (2, 3):
            raise ValueError(
                "forward_fn must return a tuple (logits, targets), or (logits, targets, tokens) with tokens true where "
                f"a token is no padding, got {describe(outcome)}"
            )
        output, targets = outcome[:2]
        tokens = _check_tokens(outcome[2]) if len(outcome) == 3 else tokens
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "biuf":
        targets = torch.from_numpy(targets)
    if isinstance(targets, list | tuple) and targets and all(isinstance(one, bool | int | float) for one in targets):
        targets = torch.tensor(targets)
    logits = find_logits(output)
    if isinstance(targets, Tensor) and isinstance(logits, Tensor):
        targets = targets.to(logits.device)
    logits, targets = _binary(logits, targets, check)
    _check_logits(logits)
    labels = _check_targets(targets, logits, check)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if check:
        _check_values(logits.detach())
    return Prediction(logits, labels, tokens)


def _check_tokens(tokens: Any) -> Tensor | None:
    if tokens is None:
        return None
    if not isinstance(tokens, Tensor) or tokens.ndim != 2:
        raise ValueError(
            f"the third value of forward_fn must be a mask of tokens of shape (sample, token), got {describe(tokens)}"
        )
    return tokens != 0


def _binary(logits: Any, targets: Any, check: bool) -> tuple[Any, Any]:
    """Two logits and integer targets for a model with one logit and targets 0 and 1; else both unchanged."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not isinstance(targets, Tensor):
        return logits, targets
    if logits.ndim not in (1, 2) or logits.shape[1:] not in ((), (1,)):
        return logits, targets
    if targets.shape not in (logits.shape[:1], (len(logits), 1)):
        return logits, targets
    if check and not bool(((targets == 0) | (targets == 1)).all()):
        found = sorted(set(targets.reshape(-1).tolist()))
        some = ", ".join(f"{value:g}" for value in found[:4])
        raise ValueError(
            f"the model gives one number per sample, as a binary classifier with targets 0 and 1 does, but the targets "
            f"are {some}{', ...' if len(found) > 4 else ''}: a regression output has no classes to remove neurons for; "
            f"{REMEDY}"
        )
    if check and _ends_in_sigmoid(logits):
        raise ValueError(
            "the model's output is a sigmoid's, a probability, but logits are needed. Explain the model before its "
            "sigmoid, or pass forward_fn=lambda model, batch: (model(batch[0]).logit(eps=1e-6), batch[1])"
        )
    return torch.nn.functional.pad(logits.reshape(-1, 1), (1, 0)), targets.reshape(-1).to(torch.int64)


def _ends_in_sigmoid(logits: Tensor) -> bool:
    """Whether a sigmoid gave it, up to changes of shape; known only where a graph was built."""
    node = logits.grad_fn
    while node is not None and node.name().startswith(("Squeeze", "View", "Reshape", "Unsqueeze", "Select", "Alias")):
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None and node.name().startswith("SigmoidBackward")


def _check_logits(logits: Any) -> None:
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model's output must be a tensor of logits, got {describe(logits)}; {REMEDY}")
    if not logits.is_floating_point():
        raise ValueError(f"the model's output must be floating-point logits, got {describe(logits)}; {REMEDY}")
    if logits.ndim > 2:
        raise ValueError(
            f"the model's output must have shape (sample, class), got {describe(logits)}: dense or sequence "
            f"outputs need one prediction per sample; {REMEDY}, for instance those of one position"
        )
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(
            f"the model's output must have shape (sample, class) with at least two classes, or one logit per sample "
            f"with targets 0 and 1, got {describe(logits)}; {REMEDY}"
        )


def _check_targets(targets: Any, logits: Tensor, check: bool) -> Tensor:
    if not isinstance(targets, Tensor):
        raise ValueError(f"targets must be a tensor of class numbers, got {describe(targets)}; {REMEDY}")
    if targets.ndim == 2 and targets.shape == logits.shape:
        raise ValueError(
            f"targets must be class numbers of shape (sample,), got {describe(targets)}: for one-hot or soft labels "
            "return targets.argmax(1) from forward_fn; for multi-label data explain one label at a time, with "
            "forward_fn returning the logits (0, f) of that label"
        )
    if targets.dtype == torch.bool and targets.ndim == 1 and logits.shape[1] == 2:
        targets = targets.to(torch.int64)
    if targets.ndim == 2 and targets.shape[1] == 1 and not targets.is_floating_point():
        targets = targets[:, 0]
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(
            f"targets must be integer class numbers, got {describe(targets)}: a regression target cannot be "
            f"explained by classes; {REMEDY}"
        )
    if targets.shape != logits.shape[:1]:
        raise ValueError(
            f"targets must have shape ({logits.shape[0]},), one class per row of the logits {tuple(logits.shape)}, "
            f"got {describe(targets)}; {REMEDY}"
        )
    targets = targets.to(torch.int64)
    if check and len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < logits.shape[1]):
        raise ValueError(
            f"targets must lie in 0..{logits.shape[1] - 1} for {logits.shape[1]} logits, got values from "
            f"{int(targets.min())} to {int(targets.max())}; drop ignored samples in the loader"
        )
    return targets


def _check_values(logits: Tensor) -> None:
    rows = logits[logits.isfinite().all(1)]
    # rows of zeros and a one may as well be the logits of a hand-made network
    soft = len(rows) > 0 and bool((rows.amax(1) < 1).any())
    if soft and bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError(
            "the model's outputs are non-negative and each row sums to 1: these look like probabilities, but logits "
            "are needed. Explain the model before its softmax, or pass "
            "forward_fn=lambda model, batch: (model(batch[0]).clamp_min(1e-12).log(), batch[1])"
        )


def model_device(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def predict(model: nn.Module, batch: Any, forward_fn: ForwardFn | None, target_class: str | int) -> Outcome:
    """What the model says of a batch that has been checked before, and the classes that are explained."""
    said = forward_logits(model, batch, forward_fn, check=False)
    return Outcome(said.logits, explained_classes(said.logits, said.labels, target_class), said.tokens)
