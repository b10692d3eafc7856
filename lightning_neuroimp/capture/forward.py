"""Run a model on a batch, and find the logits and targets of a classifier in what comes out.

`forward_logits` is the one way from a batch to logits: it takes batches and models as they are, applies the user's
`forward_fn` where one is given, and refuses outputs that are not a classifier's, with the remedy in the message.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.fields import REMEDY, find_tokens, split_batch
from lightning_neuroimp.batches.structure import describe, fields_of
from lightning_neuroimp.errors import InvalidArgument, NeuroimpError


@runtime_checkable
class ForwardFn(Protocol):
    """Run a model on a batch: `forward_fn(model, batch) -> (logits, targets)`, or `(logits, targets, tokens)`."""

    def __call__(self, model: Any, batch: Any, /) -> tuple[Any, ...]:
        """Return (sample, class) logits, (sample,) integer targets, and optionally a (sample, token) mask.

        The mask is True for non-padding tokens, or None.
        """


_WHOLE = ("batch", "data", "sample", "samples", "example", "examples")
"""A `forward` whose only argument has one of these names takes all inputs as a dictionary."""


class Outcome(NamedTuple):
    """Hold what a recorded forward pass gives: logits, and which class of each sample is explained.

    Attributes:
        logits: (sample, class).
        classes: class of each sample whose target is explained.
        tokens: True for non-padding tokens; None if there are no tokens, or none is padding.
    """

    logits: Tensor
    classes: Tensor
    tokens: Tensor | None = None


class Prediction(NamedTuple):
    """Hold what a model predicts for a batch, and what the data say.

    Attributes:
        logits: (sample, class), in at least float32.
        labels: the targets in the batch.
        tokens: True for non-padding tokens; None if no mask is known.
    """

    logits: Float[Tensor, "sample class"]
    labels: Int[Tensor, " sample"]
    tokens: Bool[Tensor, "sample token"] | None


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Return the model's output for a batch's inputs.

    Named inputs are passed by keyword where `forward` has arguments of these names; a single one is passed alone;
    otherwise a `forward` of one argument gets all of them as a dictionary. A sequence of inputs is passed as several
    arguments where `forward` needs several.

    Raises:
        InvalidArgument: if the names do not fit, the model has no `forward`, or it fails on the inputs.
    """
    args, kwargs = _arguments(model, inputs)
    try:
        return model(*args, **kwargs)
    except NeuroimpError:
        raise
    except _validate.MISTAKES as error:
        kind = type(model).__name__
        if isinstance(error, NotImplementedError) and "forward" in str(error):
            raise InvalidArgument(
                f"{kind} defines no forward(), so that it cannot be called with the inputs; define it, or "
                "pass forward_fn=lambda module, batch: (module.your_network(batch[0]), batch[1])"
            ) from error
        received = ", ".join([*map(describe, args), *(f"{key}={describe(part)}" for key, part in kwargs.items())])
        raise InvalidArgument(
            f"{kind} was called with {_cut(received, 90)}, and failed with {type(error).__name__}: "
            f"{_cut(str(error), 70)}; if it should be called otherwise, pass forward_fn="
        ) from error


def _cut(text: str, longest: int) -> str:
    """Return a text that is not longer than a number of characters, with dots where it is cut."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments by which a model takes a batch's inputs.

    Raises:
        InvalidArgument: if the names of the inputs are not those of the arguments.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    variadic = [one for one in parameters if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    required = [one for one in parameters if one.default is one.empty and one not in variadic]
    if not isinstance(inputs, dict):
        several = isinstance(inputs, tuple | list) and len([one for one in required if one in positional]) > 1
        return (tuple(inputs), {}) if several else ((inputs,), {})
    by_keyword = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    any_keyword = any(one.kind is one.VAR_KEYWORD for one in variadic)
    keywords = {
        key: part
        for key, part in inputs.items()
        if key in by_keyword or (any_keyword and isinstance(part, Tensor))  # others may be file names or the like
    }
    if keywords and {one.name for one in required} <= set(keywords):
        return (), keywords
    if len(required) == 1 or (not required and len(positional) == 1):
        return (_single_argument((required or positional)[0], inputs),), {}
    raise InvalidArgument(
        f"the batch holds {list(inputs)} in addition to the targets, but {type(model).__name__}.forward takes "
        f"{[one.name for one in parameters]}: the names must fit; otherwise {REMEDY}"
    )


def _single_argument(parameter: inspect.Parameter, inputs: dict[str, Any]) -> Any:
    """Return the only input, or all of them as a dictionary, for a `forward` of one argument."""
    annotation = getattr(parameter.annotation, "__origin__", parameter.annotation)
    tensors = [part for part in inputs.values() if isinstance(part, Tensor)]
    single = tensors if len(tensors) == 1 else list(inputs.values())
    if len(single) > 1 or parameter.name in _WHOLE or annotation in (dict, Mapping):
        return dict(inputs)
    return single[0]


def find_logits(output: Any) -> Any:
    """Return the logits in a model's output: its `logits`, its only field, the first item of a tuple, or itself."""
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


def forward_logits(model: nn.Module, batch: Any, forward_fn: ForwardFn | None, *, validate: bool = True) -> Prediction:
    """Run the model on a batch, and return the logits and labels of a classifier.

    One logit per sample with targets 0 and 1 is a binary classifier's: its logits are (0, f).

    Args:
        model: called with the inputs, unless `forward_fn` is given.
        batch: one batch, on the model's device.
        forward_fn: gives logits and targets in place of `call_model` and `split_batch`.
        validate: whether to look at values. Not needed where the same batch has passed before and neurons are removed
            now: it makes the device wait.

    Returns:
        Logits in at least float32 (under mixed precision the model's are in half), the labels, and the tokens' mask.

    Raises:
        InvalidArgument: if the model or `forward_fn` fails, the outputs are not logits or look like probabilities, or
            the targets are not classes.
    """
    output, targets, tokens = _run(model, batch, forward_fn)
    logits = find_logits(output)
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "biuf":
        targets = torch.from_numpy(targets)
    if isinstance(targets, list | tuple) and targets and all(isinstance(one, bool | int | float) for one in targets):
        targets = torch.tensor(targets)
    if isinstance(targets, Tensor) and isinstance(logits, Tensor):
        targets = targets.to(logits.device)
    if _is_binary(logits, targets):
        logits, targets = _two_logits(logits, targets, validate)
    _require_logits(logits)
    labels = _labels(targets, logits, validate)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if validate:
        _refuse_probabilities(logits.detach())
    return Prediction(logits, labels, tokens)


def _run(model: nn.Module, batch: Any, forward_fn: ForwardFn | None) -> tuple[Any, Any, Tensor | None]:
    """Return the model's output, the targets as they are in the batch, and the tokens' mask.

    Raises:
        InvalidArgument: if the model or `forward_fn` fails, or does not return what it must.
    """
    tokens = find_tokens(batch)  # first: the model or forward_fn may change the batch
    if forward_fn is None:
        inputs, targets = split_batch(batch)
        return call_model(model, inputs), targets, tokens
    with _validate.users_function("forward_fn"):
        outcome = forward_fn(model, batch)
    if not isinstance(outcome, tuple) or len(outcome) not in (2, 3):
        raise InvalidArgument(
            "forward_fn must return a tuple (logits, targets), or (logits, targets, tokens) with tokens True for "
            f"non-padding tokens, got {describe(outcome)}"
        )
    if len(outcome) == 2:
        return *outcome, tokens
    output, targets, mask = outcome
    if mask is None:
        return output, targets, None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise InvalidArgument(
            f"the third value of forward_fn must be a mask of tokens of shape (sample, token), got {describe(mask)}"
        )
    return output, targets, mask != 0


def _is_binary(logits: Any, targets: Any) -> bool:
    """Tell whether there is one number per sample and as many targets, as for a binary classifier."""
    return (
        isinstance(logits, Tensor)
        and logits.is_floating_point()
        and logits.ndim in (1, 2)
        and logits.shape[1:] in ((), (1,))
        and isinstance(targets, Tensor)
        and targets.shape in (logits.shape[:1], (len(logits), 1))
    )


def _two_logits(logits: Tensor, targets: Tensor, validate: bool) -> tuple[Tensor, Tensor]:
    """Return the logits (0, f) and the integer targets of a binary classifier with one output f.

    Raises:
        InvalidArgument: if a target is neither 0 nor 1, or the output is a probability.
    """
    if validate and not bool(((targets == 0) | (targets == 1)).all()):
        found = sorted(set(targets.reshape(-1).tolist()))
        some = ", ".join(f"{value:g}" for value in found[:4])
        raise InvalidArgument(
            f"the model gives one number per sample, as a binary classifier with targets 0 and 1 does, but the targets "
            f"are {some}{', ...' if len(found) > 4 else ''}: a regression output has no classes; pass forward_fn=, a "
            "function (model, batch) -> (logits, targets)"
        )
    if validate and _ends_in_sigmoid(logits):
        raise InvalidArgument(
            "the model's output is a sigmoid's, a probability, but logits are needed. Explain the model before its "
            "sigmoid, or pass forward_fn=lambda model, batch: (model(batch[0]).logit(eps=1e-6), batch[1])"
        )
    return torch.nn.functional.pad(logits.reshape(-1, 1), (1, 0)), targets.reshape(-1).to(torch.int64)


def _ends_in_sigmoid(logits: Tensor) -> bool:
    """Tell whether a sigmoid made the tensor, up to changes of shape; known only where a graph was built."""
    node = logits.grad_fn
    while node is not None and node.name().startswith(("Squeeze", "View", "Reshape", "Unsqueeze", "Select", "Alias")):
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None and node.name().startswith("SigmoidBackward")


def _require_logits(logits: Any) -> None:
    """Refuse what has not the type and shape of logits.

    Raises:
        InvalidArgument: if it is no floating-point tensor of shape (sample, class) with at least two classes.
    """
    if not isinstance(logits, Tensor):
        raise InvalidArgument(f"the model's output must be a tensor of logits, got {describe(logits)}; {REMEDY}")
    if not logits.is_floating_point():
        raise InvalidArgument(f"the model's output must be floating-point logits, got {describe(logits)}; {REMEDY}")
    if logits.ndim > 2:
        raise InvalidArgument(
            f"the model's output must have shape (sample, class), got {describe(logits)}: dense or sequence outputs "
            "need one prediction per sample; let forward_fn=(model, batch) -> (logits, targets) return, for instance, "
            "those of one position"
        )
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise InvalidArgument(
            f"the model's output must have shape (sample, class) with at least two classes, or one logit per sample "
            f"with targets 0 and 1, got {describe(logits)}; pass forward_fn=, a function (model, batch) -> "
            "(logits, targets)"
        )


def _labels(targets: Any, logits: Tensor, validate: bool) -> Tensor:
    """Return the targets as integer class numbers, one per row of the logits.

    Raises:
        InvalidArgument: if they are something else.
    """
    if not isinstance(targets, Tensor):
        raise InvalidArgument(f"targets must be a tensor of class numbers, got {describe(targets)}; {REMEDY}")
    if targets.ndim == 2 and targets.shape == logits.shape:
        raise InvalidArgument(
            f"targets must be class numbers of shape (sample,), got {describe(targets)}: for one-hot or soft labels "
            "return targets.argmax(1) from forward_fn; for multi-label data explain one label at a time, with "
            "forward_fn returning the logits (0, f) of that label"
        )
    if targets.dtype == torch.bool and targets.ndim == 1 and logits.shape[1] == 2:
        targets = targets.to(torch.int64)
    if targets.ndim == 2 and targets.shape[1] == 1 and not targets.is_floating_point():
        targets = targets[:, 0]
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InvalidArgument(
            f"targets must be integer class numbers, got {describe(targets)}: a regression target cannot be "
            f"explained by classes; {REMEDY}"
        )
    if targets.shape != logits.shape[:1]:
        raise InvalidArgument(
            f"targets must have shape ({logits.shape[0]},), one class per row of the logits {tuple(logits.shape)}, "
            f"got {describe(targets)}; {REMEDY}"
        )
    targets = targets.to(torch.int64)
    if validate and len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < logits.shape[1]):
        raise InvalidArgument(
            f"targets must lie in 0..{logits.shape[1] - 1} for {logits.shape[1]} logits, got values from "
            f"{int(targets.min())} to {int(targets.max())}; drop ignored samples in the loader"
        )
    return targets


def _refuse_probabilities(logits: Tensor) -> None:
    """Refuse outputs whose rows are distributions over the classes.

    Raises:
        InvalidArgument: if no output is negative and each row sums to 1.
    """
    rows = logits[logits.isfinite().all(1)]
    # rows of zeros and a single one may as well be the logits of a hand-made network
    soft = len(rows) > 0 and bool((rows.amax(1) < 1).any())
    if soft and bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all()):
        raise InvalidArgument(
            "the model's outputs are non-negative and each row sums to 1: these look like probabilities, but logits "
            "are needed. Explain the model before its softmax, or pass "
            "forward_fn=lambda model, batch: (model(batch[0]).clamp_min(1e-12).log(), batch[1])"
        )


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
