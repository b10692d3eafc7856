"""Run a model on a batch, and find the logits and targets of a classifier in what comes out.

`forward_logits` is the one way from a batch to logits: it takes batches and models as they are, applies the user's
`forward_fn` where one is given, and refuses outputs that are not a classifier's, with the remedy in the message.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.fields import REMEDY, split_batch, tokens_and_doubt
from lightning_neuroimp.batches.masks import Reading
from lightning_neuroimp.batches.structure import describe
from lightning_neuroimp.capture.labels import UNLABELLED, as_tensor, class_numbers, require_range
from lightning_neuroimp.capture.outputs import find_logits, refuse_probabilities, require_logits
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
        labels: the targets in the batch; -1 for samples without a label.
        tokens: True for non-padding tokens; None if no mask is known.
        doubt: why a field of the batch that may be a mask is not used; empty if there is no doubt.
    """

    logits: Float[Tensor, "sample class"]
    labels: Int[Tensor, " sample"]
    tokens: Bool[Tensor, "sample token"] | None
    doubt: str = ""


_PREPARED = "if validation_step prepares the inputs, do the same in forward_fn"

_NO_MISTAKES = (
    *("out of memory", "can't allocate memory", "cuda error", "hip error", "device-side assert", "cublas_status"),
    *("cuda driver", "cufft", "cusolver", "triton"),
    *("cudnn_status", "cudnn error", "nccl", "gloo", "process group", "processgroup", "timed out", "timeout"),
    *("connection", "in-place", "inplace", "inference tensor", "leaf variable", "backward", "worker"),
)
"""Parts of the messages of RuntimeErrors for which inputs are not to blame: memory, devices, processes, autograd."""

_MISFITS = re.compile(
    r"\b(shapes?|sizes?|dim|dims|dimensions?|dtypes?|types?|channels?|elements?|expects?|expected|same device|match"
    r"|broadcast\w*|not implemented for|sorted|lengths|subscripts?|inputs?|arguments?|tensors?)\b",
    re.IGNORECASE,
)
"""What torch says in a RuntimeError where shapes, types or devices do not fit."""


def is_mistake(error: Exception) -> bool:
    """Tell whether an error of a model's call is that of its caller, such as shapes or types that do not fit.

    >>> is_mistake(RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 5x2)"))
    True
    >>> is_mistake(RuntimeError("CUDA error: device-side assert triggered"))
    False
    """
    if isinstance(error, _validate.MISTAKES):
        return True
    # its subclasses are those of memory, devices, processes and compilers
    if type(error) not in (RuntimeError, torch.jit.Error) or not _MISFITS.search(str(error)):
        return False
    return not any(part in str(error).lower() for part in _NO_MISTAKES)


@contextmanager
def _users_forward_fn() -> Iterator[None]:
    """Turn the mistakes of a forward_fn into `InvalidArgument`.

    Raises:
        InvalidArgument: for errors that are mistakes; others pass through.
    """
    try:
        yield
    except NeuroimpError:
        raise
    except Exception as error:
        if not is_mistake(error):
            raise
        hint = "" if isinstance(error, _validate.MISTAKES) else f"; {_PREPARED}"
        raise InvalidArgument(f"forward_fn failed with {type(error).__name__}: {_said(error, 160)}{hint}") from error


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
    except Exception as error:
        if not is_mistake(error):
            raise
        kind = type(model).__name__
        if isinstance(error, NotImplementedError) and "forward" in str(error):
            raise InvalidArgument(
                f"{kind} defines no forward(), so that it cannot be called with the inputs; define it, or "
                "pass forward_fn=lambda module, batch: (module.your_network(batch[0]), batch[1])"
            ) from error
        received = ", ".join([*map(describe, args), *(f"{key}={describe(part)}" for key, part in kwargs.items())])
        known, received = isinstance(error, _validate.MISTAKES), _cut(received, 90)
        raise InvalidArgument(
            f"{kind} was called with {received}, and failed with {type(error).__name__}: "
            f"{_said(error, 160 - len(received))}; "
            f"{'if it should be called otherwise, pass forward_fn=' if known else _PREPARED}"
        ) from error


def _said(error: Exception, longest: int) -> str:
    """Return what an error says in one line; a scripted module's says it last, after where it was."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[-1] if "TorchScript" in lines[0] else " ".join(line.strip() for line in lines)
    return _cut(text.removeprefix("RuntimeError: "), longest)


def _cut(text: str, longest: int) -> str:
    """Return a text that is not longer than a number of characters, with dots where it is cut."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments by which a model takes a batch's inputs.

    Raises:
        InvalidArgument: if the names of the inputs are not those of the arguments.
    """
    parameters = forward_parameters(model)
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


def forward_parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of a module's `forward`; those of traced and loaded modules are in its schema."""
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except ValueError:
        forward: Any = module.forward
        kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        return [
            inspect.Parameter(
                one.name.partition(".")[0], kind, default=one.default_value if one.has_default_value() else empty
            )
            for one in forward.schema.arguments[1:]
        ]


def _single_argument(parameter: inspect.Parameter, inputs: dict[str, Any]) -> Any:
    """Return the only input, or all of them as a dictionary, for a `forward` of one argument."""
    annotation = getattr(parameter.annotation, "__origin__", parameter.annotation)
    tensors = [part for part in inputs.values() if isinstance(part, Tensor)]
    single = tensors if len(tensors) == 1 else list(inputs.values())
    if len(single) > 1 or parameter.name in _WHOLE or annotation in (dict, Mapping):
        return dict(inputs)
    return single[0]


def forward_logits(
    model: nn.Module,
    batch: Any,
    forward_fn: ForwardFn | None,
    *,
    ignore_index: int | None = None,
    validate: bool = True,
) -> Prediction:
    """Run the model on a batch, and return the logits and labels of a classifier.

    One logit per sample with targets 0 and 1 is a binary classifier's: its logits are (0, f).

    Args:
        model: called with the inputs, unless `forward_fn` is given.
        batch: one batch, on the model's device.
        forward_fn: gives logits and targets in place of `call_model` and `split_batch`.
        ignore_index: target of samples without a label, whose label becomes -1; None: all have one.
        validate: whether to look at values. Not needed where the same batch has passed before and neurons are removed
            now: it makes the device wait.

    Returns:
        Logits in at least float32 (under mixed precision the model's are in half), the labels, and the tokens' mask.

    Raises:
        InvalidArgument: if the model or `forward_fn` fails, the outputs are not logits or look like probabilities, or
            the targets are not classes.
    """
    output, targets, reading = _run(model, batch, forward_fn)
    targets = as_tensor(targets)
    logits = find_logits(output, len(targets) if isinstance(targets, Tensor) and targets.ndim else None)
    if isinstance(targets, Tensor) and isinstance(logits, Tensor):
        targets = class_numbers(targets.to(logits.device), logits, validate)
    binary = _is_binary(logits, targets)
    if not binary:
        require_logits(logits)
    labels = _labels(targets, logits, ignore_index, validate)
    if validate:
        refuse_probabilities(logits)
    if binary:
        logits = torch.nn.functional.pad(logits.reshape(-1, 1), (1, 0))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tokens = None if reading.tokens is None else reading.tokens.to(logits.device)
    return Prediction(logits, labels, tokens, reading.doubt)


def _run(model: nn.Module, batch: Any, forward_fn: ForwardFn | None) -> tuple[Any, Any, Reading]:
    """Return the model's output, the targets as they are in the batch, and the tokens' mask.

    Raises:
        InvalidArgument: if the model or `forward_fn` fails, or does not return what it must.
    """
    reading = tokens_and_doubt(batch)  # first: the model or forward_fn may change the batch
    if forward_fn is None:
        inputs, targets = split_batch(batch)
        return call_model(model, inputs), targets, reading
    with _users_forward_fn():
        outcome = forward_fn(model, batch)
    if not isinstance(outcome, tuple) or len(outcome) not in (2, 3):
        raise InvalidArgument(
            "forward_fn must return a tuple (logits, targets), or (logits, targets, tokens) with tokens True for "
            f"non-padding tokens, got {describe(outcome)}"
        )
    if len(outcome) == 2:
        return *outcome, reading
    output, targets, mask = outcome
    if mask is None:
        return output, targets, Reading(None)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise InvalidArgument(
            f"the third value of forward_fn must be a mask of tokens of shape (sample, token), got {describe(mask)}"
        )
    return output, targets, Reading(mask != 0)


def _is_binary(logits: Any, targets: Any) -> bool:
    """Tell whether there is one number per sample and as many targets, as for a binary classifier."""
    return (
        isinstance(logits, Tensor)
        and logits.is_floating_point()
        and logits.ndim in (1, 2)
        and logits.shape[1:] in ((), (1,))
        and isinstance(targets, Tensor)
        and targets.shape == logits.shape[:1]
    )


def _labels(targets: Any, logits: Tensor, ignore_index: int | None, validate: bool) -> Tensor:
    """Return the targets as integer class numbers, one per row of the logits; -1 for samples without a label.

    Raises:
        InvalidArgument: if they are something else.
    """
    n_classes = logits.shape[1] if logits.ndim == 2 else 1
    if not isinstance(targets, Tensor):
        raise InvalidArgument(f"targets must be a tensor of class numbers, got {describe(targets)}; {REMEDY}")
    if targets.dtype == torch.bool and targets.ndim == 1 and n_classes <= 2:
        targets = targets.to(torch.int64)
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise InvalidArgument(f"targets must be integer class numbers, got {describe(targets)}; {REMEDY}")
    if targets.shape != logits.shape[:1]:
        raise InvalidArgument(
            f"targets must have shape ({logits.shape[0]},), one class per row of the logits {tuple(logits.shape)}, "
            f"got {describe(targets)}; {REMEDY}"
        )
    targets = targets.to(torch.int64)
    if validate:
        require_range(targets, n_classes, ignore_index)
    return targets if ignore_index is None else targets.masked_fill(targets == ignore_index, UNLABELLED)


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
