"""Find the logits in what a model returns, and refuse probabilities in their place."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp.batches.fields import REMEDY
from lightning_neuroimp.batches.structure import describe, fields_of
from lightning_neuroimp.errors import InvalidArgument

_SQUASHED = {"Sigmoid": "sigmoid", "Hardsigmoid": "sigmoid", "Softmax": "softmax", "SparseSoftmax": "softmax"}
"""Operations, as autograd's graph names them, that give probabilities."""

_LOGARITHMS = {"LogSoftmax": "softmax", "LogSigmoid": "sigmoid"}  # probabilities, where exp() follows

_NAMES = (
    "View UnsafeView ReshapeAlias Squeeze Unsqueeze Select Slice Index IndexSelect Gather Permute Transpose T Expand "
    "Alias Clone ToCopy Cat Stack Split SplitWithSizes Unbind Flip Roll Repeat AsStrided CopySlices Mul Div Add Sub "
    "Rsub Neg Mean Sum Prod Clamp ClampMin ClampMax Pow Sqrt Minimum Maximum Max Min Amax Amin Sort Topk Where "
    "MaskedFill Lerp AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MaxPool2DWithIndices MaxPool3DWithIndices "
    "AdaptiveMaxPool2D AdaptiveMaxPool3D NativeDropout"
)
_PASSED = frozenset(_NAMES.split())
"""Operations that work element by element, or change only the shape or the type."""

_LONGEST_WALK = 300  # nodes of a graph


def find_logits(output: Any, n_samples: int | None = None) -> Any:
    """Return the logits in a model's output: its `logits`, its only field, the first item of a tuple, or itself.

    Args:
        output: of the model. The first item of a sequence counts only where no other tensor in it may be the logits.
        n_samples: number of targets; tensors with another number of rows are no logits. None: it is not known.

    Raises:
        InvalidArgument: if several tensors may be the logits, or only one that is not first.

    >>> logits, attention = torch.zeros(4, 3), torch.zeros(4, 2, 5, 5)
    >>> find_logits((logits, attention)) is logits
    True
    """
    named = fields_of(output)
    if named is not None and "logits" in named:
        return named["logits"]
    if named is None and isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if named is not None and len(named) == 1:
        return next(iter(named.values()))
    if isinstance(output, Tensor) or (named is None and not isinstance(output, tuple | list)) or not output:
        return output
    found = dict(_candidates(output, n_samples))
    first = output[0] if isinstance(output, tuple | list) else None
    if not found or (len(found) == 1 and first is next(iter(found.values()))):
        return output if first is None else first
    places = list(found)
    shapes = ", ".join(f"output{place} {tuple(found[place].shape)}" for place in places[:4])
    what = "several tensors that may be the logits" if len(found) > 1 else "a tensor that may be the logits"
    raise InvalidArgument(
        f"the model returns a {type(output).__name__} with {what}: {shapes}{', ...' if len(found) > 4 else ''}; say "
        f"which is: forward_fn=lambda model, batch: (model(batch[0]){places[-1]}, batch[1])"
        + (f", or {places[0]}" if len(places) > 1 else "")
    )


def _candidates(output: Any, n_samples: int | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a container that may be logits, by the code that gets them from it."""
    named = fields_of(output)
    attributes = named is not None and not isinstance(output, Mapping)
    for name, part in enumerate(output) if named is None else named.items():
        place = f".{name}" if attributes else f"[{name!r}]"
        if isinstance(part, Tensor):
            fits = part.ndim in (1, 2) and n_samples in (None, len(part))
            if fits and part.is_floating_point() and part.numel():
                yield place, part
        elif isinstance(part, tuple | list) or fields_of(part) is not None:
            yield from ((place + inner, tensor) for inner, tensor in _candidates(part, n_samples))


def require_logits(logits: Any) -> None:
    """Refuse what has not the type and shape of logits.

    Raises:
        InvalidArgument: if it is no floating-point tensor of shape (sample, class) with at least two classes.
    """
    if not isinstance(logits, Tensor):
        raise InvalidArgument(f"the model's output must be a tensor of logits, got {describe(logits)}; {REMEDY}")
    if logits.is_complex():
        raise InvalidArgument(
            f"the model's output must be real logits, got {describe(logits)}; pass what the loss takes: "
            "forward_fn=lambda model, batch: (model(batch[0]).abs(), batch[1]), or .real in place of .abs()"
        )
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


def refuse_probabilities(output: Float[Tensor, " sample *class"]) -> None:
    """Refuse outputs that are probabilities: distributions over the classes, or what a sigmoid or softmax gives.

    Args:
        output: of the model, in its own type, with its graph.

    Raises:
        InvalidArgument: if rows are distributions; or if autograd's graph shows a sigmoid or softmax after the last
            layer, and all values lie between 0 and 1.
    """
    values = output.detach()
    log = "forward_fn=lambda model, batch: (model(batch[0]).clamp_min(1e-12).log(), batch[1])"
    if values.ndim == 2 and values.shape[1] > 1 and _are_distributions(values):
        raise InvalidArgument(
            "the model's outputs are non-negative and each row sums to 1: these look like probabilities, but logits "
            f"are needed. Explain the model before its softmax, or pass {log}"
        )
    made_by = _made_by(output)
    if made_by not in ("sigmoid", "softmax") or not _between_0_and_1(values):
        return
    if made_by == "softmax":
        raise InvalidArgument(
            "the model's outputs lie between 0 and 1 and come from a softmax: these are probabilities, but logits are "
            f"needed. Explain the model before its softmax, or pass {log}"
        )
    raise InvalidArgument(
        "the model's output is a sigmoid's, a probability, but logits are needed. Explain the model before its "
        "sigmoid, or pass forward_fn=lambda model, batch: (model(batch[0]).logit(eps=1e-6), batch[1])"
    )


def look_like_probabilities(logits: Float[Tensor, "sample class"]) -> bool:
    """Tell whether all values lie between 0 and 1, not only at the ends, and no graph shows that they are logits.

    For outputs without a graph, of which nothing tells what made them.

    Args:
        logits: as `forward_logits` returns them.

    >>> look_like_probabilities(torch.tensor([[0.2, 0.9], [0.6, 0.7]]))
    True
    >>> look_like_probabilities(torch.nn.Linear(2, 2)(torch.zeros(3, 2)))
    False
    """
    return _made_by(logits) != "other" and _between_0_and_1(logits.detach())


def may_be_probabilities(logits: Float[Tensor, "sample class"]) -> bool:
    """Tell whether all values lie between 0 and 1, unless a product with weights has just made them.

    Args:
        logits: as `forward_logits` returns them.
    """
    products = ("AddmmBackward", "MmBackward", "BmmBackward", "LinearBackward", "ConvolutionBackward")
    last = "" if logits.grad_fn is None else logits.grad_fn.name()
    return not last.startswith(products) and _between_0_and_1(logits.detach())


def _between_0_and_1(values: Tensor) -> bool:
    """Tell whether the finite values lie between 0 and 1, and some of them inside."""
    finite = values.isfinite()
    inside = ((values >= 0) & (values <= 1)) | ~finite
    return bool(inside.all() & (finite & (values > 0) & (values < 1)).any())


def _are_distributions(values: Float[Tensor, "sample class"]) -> bool:
    """Tell whether all finite rows are distributions over the classes, within what rounding leaves."""
    rows = values[values.isfinite().all(1)]
    # rows of zeros and a single one may as well be the logits of a hand-made network
    if not len(rows) or not bool((rows >= 0).all() & (rows.amax(1) < 1).any()):
        return False
    precise = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    error = float((precise.sum(1) - 1).abs().max())
    if error < _tolerance(rows.dtype, rows.shape[1]):
        return True
    # half-precision probabilities may have been converted since
    return any(
        error < _tolerance(half, rows.shape[1]) and bool((rows == rows.to(half).to(rows.dtype)).all())
        for half in (torch.bfloat16, torch.float16)
    )


def _tolerance(dtype: torch.dtype, n_classes: int) -> float:
    """Return how far from 1 rounding moves the sum of probabilities of a type."""
    info = torch.finfo(dtype)
    return max(1e-3, 2 * info.eps + n_classes * info.tiny * info.eps)


def _made_by(output: Tensor) -> str:
    """Return which operation made a tensor's values, up to arithmetic and changes of shape.

    Returns:
        "sigmoid" or "softmax"; "other" where another operation made some of them, such as a matrix product; "unknown"
        where autograd's graph does not show it: none was built, or a scripted, compiled or user's function is in it.
    """
    found: set[str] = set()
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name, before = _operation(node), [one for one, _ in node.next_functions]
        if name == "Exp" and before and before[0] is not None:
            found.add(_LOGARITHMS.get(_operation(before[0]), "other"))
        elif name in _SQUASHED:
            found.add(_SQUASHED[name])
        elif name in _PASSED and len(seen) < _LONGEST_WALK:
            waiting += before
        else:  # operations of torch have a number, and parameters are accumulated
            found.add("other" if node.name()[-1].isdigit() or name == "AccumulateGrad" else "unknown")
    return next((kind for kind in ("unknown", "other", "sigmoid", "softmax") if kind in found), "unknown")


def _operation(node: Any) -> str:
    """Return the name of a node of autograd's graph, without what all of them have in common."""
    return re.sub(r"Backward\d*$", "", node.name().rsplit("::", 1)[-1])
