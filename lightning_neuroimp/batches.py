"""How a batch becomes model inputs and class targets, and how single samples are taken out of it.

A batch is any nesting of mappings, sequences and tensors whose tensors share their first dimension, the samples.
"""

import copy
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

ForwardFn = Callable[[Any, Any], tuple[Any, Any]]
"""`forward_fn(model, batch) -> (logits, targets)`: (sample, class) logits and integer targets of shape (sample,)."""

_REMEDY = (
    "pass forward_fn=, a function (model, batch) -> (logits, targets) with logits of shape (sample, class) "
    "and integer class targets of shape (sample,)"
)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Split an `(inputs, targets)` sequence.

    Args:
        batch: what the validation loader yields.

    Returns:
        The inputs, which the model is called with as its only argument, and the targets.

    Raises:
        ValueError: if the batch is anything but a sequence of two.

    >>> split_batch(["inputs", "targets"])
    ('inputs', 'targets')
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise ValueError(
        f"cannot tell inputs from targets: expected a batch of the form (inputs, targets), got {_describe(batch)}; "
        + _REMEDY
    )


def forward_logits(
    model: nn.Module, batch: Any, forward_fn: ForwardFn | None, *, check: bool = True
) -> tuple[Float[Tensor, "sample class"], Int[Tensor, " sample"]]:
    """Run the model on a batch and check that the outcome is a classifier's.

    Args:
        model: called with the inputs, unless `forward_fn` is given.
        batch: one batch, on the model's device.
        forward_fn: `forward_fn(model, batch) -> (logits, targets)` in place of `(inputs, targets)` and `model(inputs)`.
        check: whether values are checked; not where the same batch has passed before and neurons are removed now.

    Returns:
        Logits in at least float32 (under mixed precision they come in half), and the target classes.

    Raises:
        ValueError: if the outputs are not logits of at least two classes, look like probabilities, or the targets
            are not classes.
    """
    if forward_fn is None:
        inputs, targets = split_batch(batch)
        try:
            logits = model(inputs)
        except NotImplementedError as error:
            if "forward" not in str(error):
                raise
            raise ValueError(
                f"{type(model).__name__} defines no forward(), so that it cannot be called with the inputs; define it, "
                "or pass forward_fn=lambda module, batch: (module.your_network(batch[0]), batch[1])"
            ) from error
    else:
        outcome = forward_fn(model, batch)
        if not isinstance(outcome, tuple) or len(outcome) != 2:
            raise ValueError(f"forward_fn must return a tuple (logits, targets), got {_describe(outcome)}")
        logits, targets = outcome
    _check_logits(logits)
    targets = _check_targets(targets, logits, check)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if check:
        _check_values(logits.detach())
    return logits, targets


def _check_logits(logits: Any) -> None:
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model's output must be a tensor of logits, got {_describe(logits)}; {_REMEDY}")
    if not logits.is_floating_point():
        raise ValueError(f"the model's output must be floating-point logits, got {_describe(logits)}; {_REMEDY}")
    if logits.ndim > 2:
        raise ValueError(
            f"the model's output must have shape (sample, class), got {_describe(logits)}: dense or sequence "
            f"outputs need one prediction per sample; {_REMEDY}, for instance those of one position"
        )
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(
            f"the model's output must have shape (sample, class) with at least two classes, got {_describe(logits)}. "
            "A binary classifier with one logit f has the logits (0, f): pass "
            "forward_fn=lambda model, batch: "
            "(torch.nn.functional.pad(model(batch[0]).reshape(-1, 1), (1, 0)), batch[1].long().reshape(-1)). "
            "A regression output has no classes to remove neurons for"
        )


def _check_targets(targets: Any, logits: Tensor, check: bool) -> Tensor:
    if not isinstance(targets, Tensor):
        raise ValueError(f"targets must be a tensor of class numbers, got {_describe(targets)}; {_REMEDY}")
    if targets.ndim == 2 and targets.shape == logits.shape:
        raise ValueError(
            f"targets must be class numbers of shape (sample,), got {_describe(targets)}: for one-hot or soft labels "
            "return targets.argmax(1) from forward_fn; for multi-label data explain one label at a time, with "
            "forward_fn returning the logits (0, f) of that label"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(
            f"targets must be integer class numbers, got {_describe(targets)}: a regression target cannot be "
            f"explained by classes; {_REMEDY}"
        )
    if targets.shape != logits.shape[:1]:
        raise ValueError(
            f"targets must have shape ({logits.shape[0]},), one class per row of the logits {tuple(logits.shape)}, "
            f"got {_describe(targets)}; {_REMEDY}"
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


def batch_size(batch: Any) -> int:
    """Number of samples: the first dimension shared by all tensors of a batch.

    Raises:
        ValueError: if there is no tensor with a first dimension, or the first dimensions differ.

    >>> batch_size({"image": torch.zeros(3, 8), "label": torch.zeros(3)})
    3
    """
    sizes: set[int] = set()
    _collect_sizes(batch, sizes)
    if len(sizes) == 1:
        return sizes.pop()
    found = f"first dimensions {sorted(sizes)}" if sizes else "no tensor with a first dimension"
    raise ValueError(
        f"the tensors of a batch must share their first dimension, one entry per sample, got {found} in "
        f"{_describe(batch)}; let the loader's collate_fn return such batches"
    )


def take_rows(batch: Any, rows: Int[Tensor, " row"], size: int | None) -> Any:
    """The samples `rows` of a batch of `size` samples (None: of what `empty_rows` gave), copied to the host.

    What has no sample axis is kept as it is.
    """
    if isinstance(batch, Tensor):
        if not batch.ndim:
            return batch.detach().clone().cpu()
        return batch.detach()[rows.to(batch.device)].cpu()
    if isinstance(batch, np.ndarray) and batch.ndim:
        return batch[rows.numpy()]
    if _is_column(batch, size):
        return [batch[row] for row in rows.tolist()]
    return _map(lambda part: take_rows(part, rows, size), batch)


def empty_rows(batch: Any, size: int | None, n_rows: int) -> Any:
    """Room on the host for `n_rows` samples like those of a batch of `size` samples (None: of such a room)."""
    if isinstance(batch, Tensor):
        shape = (n_rows, *batch.shape[1:])
        return torch.empty(shape, dtype=batch.dtype) if batch.ndim else batch.detach().clone().cpu()
    if isinstance(batch, np.ndarray) and batch.ndim:
        return np.empty((n_rows, *batch.shape[1:]), batch.dtype)
    if _is_column(batch, size):
        return _Column([None] * n_rows)
    return _map(lambda part: empty_rows(part, size, n_rows), batch)


def set_row(rows: Any, place: int, batch: Any, row: int, size: int | None) -> None:
    """Copy one sample of a batch of `size` samples (None: of such a room) into a place of what `empty_rows` gave."""
    if isinstance(batch, Tensor | np.ndarray):
        if batch.ndim:
            rows[place] = batch[row]
    elif _is_column(batch, size):
        rows[place] = batch[row]
    elif isinstance(batch, Mapping):
        for key, part in batch.items():
            set_row(rows[key], place, part, row, size)
    elif _is_sequence(batch):
        for target, part in zip(rows, batch, strict=True):
            set_row(target, place, part, row, size)


def fingerprint(batch: Any) -> int:
    """A checksum of a batch's content, by which samples are told apart."""
    if isinstance(batch, Tensor):
        return crc32(batch.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(batch, np.ndarray):
        return crc32(batch.tobytes())
    if isinstance(batch, Mapping):
        return crc32(repr([(key, fingerprint(part)) for key, part in batch.items()]).encode())
    if _is_sequence(batch):
        return crc32(repr([fingerprint(part) for part in batch]).encode())
    return crc32(repr(batch).encode())


def signature(batch: Any, size: int) -> Hashable:
    """Two batches of equal signature can be joined along the samples."""
    if isinstance(batch, Tensor | np.ndarray):
        value = None if batch.ndim else batch.item()
        return (type(batch).__name__, str(batch.dtype), tuple(batch.shape[1:]), value)
    if _is_column(batch, size):
        return "column"
    if isinstance(batch, Mapping):
        return (type(batch).__name__, *((key, signature(part, size)) for key, part in batch.items()))
    if _is_sequence(batch):
        return (type(batch).__name__, *(signature(part, size) for part in batch))
    return (type(batch).__name__, repr(batch))


def bytes_per_sample(batch: Any) -> int:
    """Bytes of each sample in the tensors and arrays of a batch."""
    if isinstance(batch, Tensor | np.ndarray):
        return int(batch.nbytes) // max(1, int(batch.shape[0])) if batch.ndim else 0
    if isinstance(batch, Mapping):
        return sum(bytes_per_sample(part) for part in batch.values())
    if _is_sequence(batch):
        return sum(bytes_per_sample(part) for part in batch)
    return 0


def to_device(batch: Any, device: torch.device) -> Any:
    """A copy of the batch with its tensors on `device`: a model may work in place on what it gets."""
    if isinstance(batch, Tensor):
        return batch.to(device, copy=True)
    return _map(lambda part: to_device(part, device), batch)


def _collect_sizes(batch: Any, sizes: set[int]) -> None:
    if isinstance(batch, Tensor | np.ndarray):
        if batch.ndim:
            sizes.add(int(batch.shape[0]))
    elif isinstance(batch, Mapping):
        for part in batch.values():
            _collect_sizes(part, sizes)
    elif _is_sequence(batch):
        for part in batch:
            _collect_sizes(part, sizes)


def _is_sequence(batch: Any) -> bool:
    return isinstance(batch, tuple | list)


class _Column(list[Any]):
    """A stored list with one plain value per sample."""


def _is_column(batch: Any, size: int | None) -> bool:
    """A list with one plain value per sample, such as file names; without a size, only one that was stored as such."""
    if size is None:
        return isinstance(batch, _Column)
    return (
        _is_sequence(batch)
        and len(batch) == size
        and not any(isinstance(value, Tensor | np.ndarray | Mapping | tuple | list) for value in batch)
    )


def _map(function: Callable[[Any], Any], batch: Any) -> Any:
    if isinstance(batch, Mapping):
        parts = {key: function(part) for key, part in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return parts
        like = copy.copy(batch)  # a user's own kind of mapping, with whatever else it holds
        like.update(parts)
        return like
    if _is_sequence(batch):
        return _rebuild(batch, [function(part) for part in batch])
    return batch


def _rebuild(like: Any, parts: list[Any]) -> Any:
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)}"
    if _is_sequence(value):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def model_device(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_numpy(tensor: Shaped[Tensor, "..."]) -> Shaped[np.ndarray, "..."]:
    """A tensor as an array on the host; half precisions become float32, which NumPy can hold."""
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.cpu().numpy()
