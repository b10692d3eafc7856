"""Turn targets into class numbers, one per sample, or say what turns them into class numbers."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.fields import REMEDY
from lightning_neuroimp.batches.structure import describe
from lightning_neuroimp.errors import InvalidArgument

UNLABELLED = -1
"""Label of a sample whose target is `ignore_index`."""

_IGNORED = (-1, 255, -100)  # what data sets and losses use for samples without a label


def as_tensor(targets: Any) -> Any:
    """Return targets as a tensor where they are an array or a list of numbers; anything else as it is.

    Raises:
        InvalidArgument: if they are strings.
    """
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "biufc":
        return torch.from_numpy(targets)
    if isinstance(targets, list | tuple) and targets:
        if all(isinstance(one, Tensor) and one.ndim == 0 for one in targets):
            return torch.stack(tuple(targets))
        if all(isinstance(one, bool | int | float | complex | np.number | np.bool_) for one in targets):
            return torch.as_tensor(np.array(targets))
    texts = targets.reshape(-1).tolist() if isinstance(targets, np.ndarray) else targets
    if isinstance(texts, list | tuple) and texts and all(isinstance(one, str) for one in texts):
        raise InvalidArgument(
            f"targets must be class numbers, got the names {_validate.shown(list(texts[:3]), 40)}; with names, the "
            "list of classes in the order of the logits, pass forward_fn=lambda model, batch: (model(batch[0]), "
            "torch.tensor([names.index(one) for one in batch[1]]))"
        )
    return targets


def class_numbers(targets: Tensor, output: Tensor, validate: bool) -> Tensor:
    """Return one class number per sample for targets that stand for classes without doubt.

    These are one-hot rows, whole numbers in floating point, and columns of class numbers.

    Args:
        targets: as `as_tensor` returns them, on the output's device.
        output: of the model, of shape (sample, class), (sample, 1) or (sample,).
        validate: whether to look at values.

    Returns:
        Targets of shape (sample,), with the values that they had; other targets as they are.

    Raises:
        InvalidArgument: if rows or numbers stand for something else, such as ordinal levels, several labels, or
            a regression's targets.
    """
    if targets.is_complex():
        raise InvalidArgument(
            f"targets must be integer class numbers, got {describe(targets)}; pass "
            "forward_fn=lambda model, batch: (model(batch[0]), batch[1].real.long()) if their real parts are"
        )
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    n_classes = output.shape[1] if output.ndim == 2 else 1
    if targets.ndim == 2 and targets.shape[1] == max(2, n_classes):
        return _class_of_rows(targets, n_classes, validate)
    if targets.is_floating_point() and targets.ndim == 1:
        if validate:
            _require_whole(targets, n_classes)
        return targets.to(torch.int64)
    return targets


def _class_of_rows(rows: Tensor, n_classes: int, validate: bool) -> Tensor:
    """Return the classes of one-hot rows.

    Raises:
        InvalidArgument: if they are something else.
    """
    if not validate:
        return rows.to(torch.float32).argmax(1)
    values = rows.to(torch.float64 if rows.device.type != "mps" else torch.float32)
    ones = values == 1
    if bool((ones.sum(1) == 1).all() & (ones | (values == 0)).all()):
        return values.argmax(1)
    if bool((ones | (values == 0)).all()):
        raise InvalidArgument(_several_labels(ones, n_classes))
    if bool((ones | (values == -1)).all() & (ones.sum(1) == 1).all()):
        raise InvalidArgument(
            f"targets must be class numbers, got {describe(rows)} with one 1 and else -1 in each row; pass "
            "forward_fn=lambda model, batch: (model(batch[0]), batch[1].argmax(1))"
        )
    if bool((values >= 0).all() & ((values.sum(1) - 1).abs() < 1e-2).all()):
        raise InvalidArgument(
            f"targets must be class numbers, got {describe(rows)} whose rows sum to 1: smoothed or soft labels. To "
            "take the class with the largest share, pass forward_fn=lambda model, batch: (model(batch[0]), "
            "batch[1].argmax(1))"
        )
    raise InvalidArgument(
        f"targets must be class numbers of shape (sample,), got {describe(rows)} that are neither one-hot rows nor "
        f"soft labels; {REMEDY}"
    )


def _several_labels(ones: Tensor, n_classes: int) -> str:
    """Say what to do about rows of 0 and 1 that are not one-hot."""
    found = f"targets must be class numbers, got {tuple(ones.shape)} rows of 0 and 1, "
    if n_classes > 1:
        if bool((ones[:, 1:] <= ones[:, :-1]).all()):
            return (
                f"{found}ones first: ordinal levels? If so, pass forward_fn=lambda model, batch: (torch.nn.functional"
                ".pad(model(batch[0]).cumsum(1), (1, 0)), batch[1].sum(1).long()); argmax would be wrong. For single "
                "labels: (model(batch[0])[:, 0], batch[1][:, 0])"
            )
        if bool((ones[:, 1:] >= ones[:, :-1]).all()):
            return (
                f"{found}ones last: ordinal levels? If so, pass forward_fn=lambda model, batch: (torch.nn.functional"
                ".pad(-model(batch[0]).cumsum(1), (1, 0)), (batch[1] == 0).sum(1)). For single labels: "
                "(model(batch[0])[:, 0], batch[1][:, 0])"
            )
    return (
        f"{found}not one-hot: multi-label data. Explain one label at a time; for the first, pass "
        "forward_fn=lambda model, batch: (model(batch[0])[:, 0], batch[1][:, 0])"
    )


def _require_whole(targets: Tensor, n_classes: int) -> None:
    """Refuse numbers that stand for no classes.

    Raises:
        InvalidArgument: if they are not whole.
    """
    missing = targets.isnan()
    if bool(((targets % 1 == 0) | missing).all()) and bool(missing.any()):
        raise InvalidArgument(
            f"targets must be class numbers, got NaN for {int(missing.sum())} of {len(targets)} samples; if they have "
            "no label, pass forward_fn=lambda model, batch: (model(batch[0]), batch[1].nan_to_num(nan=-1)) and "
            "ignore_index=-1"
        )
    if bool((targets % 1 != 0).any()):
        found = sorted(set(targets[:64].tolist()))
        some = ", ".join(f"{value:g}" for value in found[:4]) + (", ..." if len(found) > 4 else "")
        if n_classes == 1:
            raise InvalidArgument(_regression(some))
        raise InvalidArgument(
            f"targets must be integer class numbers, got {describe(targets)}, such as {some}: a regression target "
            f"cannot be explained by classes; {REMEDY}"
        )


def _regression(targets: str) -> str:
    return (
        "the model gives one number per sample, as a binary classifier with targets 0 and 1 does, but the targets are "
        f"{targets}: a regression output has no classes; pass forward_fn=, a function (model, batch) -> (logits, "
        "targets)"
    )


def require_range(targets: Int[Tensor, " sample"], n_classes: int, ignore_index: int | None) -> None:
    """Refuse class numbers that the logits do not have.

    Args:
        targets: of the samples, those to be ignored among them.
        n_classes: number of logits; 1: one number per sample, as a binary classifier gives it.
        ignore_index: what marks samples without a label; None: nothing does.

    Raises:
        InvalidArgument: if a number is below 0 or too large.
    """
    counted = targets if ignore_index is None else targets[targets != ignore_index]
    most = max(2, n_classes) - 1
    if not len(counted) or bool((counted.amin() >= 0) & (counted.amax() <= most)):
        return
    found = sorted(set(counted.tolist()))
    some = ", ".join(map(str, found[:4])) + (", ..." if len(found) > 4 else "")
    logits = f"{n_classes} logits" if n_classes > 1 else "one logit per sample"
    line = "pass forward_fn=lambda model, batch: (model(batch[0]), {})"
    outside = [value for value in found if not 0 <= value <= most]
    marked = next((value for value in outside if value in _IGNORED), None)
    ignored = "" if marked is None else f"; if {marked} marks samples without a label, pass ignore_index={marked}"
    if set(found) <= {-1, 1} and most == 1:
        raise InvalidArgument(
            f"targets must be 0 or 1 for {logits}, got {some}; if they are -1 and 1, "
            f"{line.format('(batch[1] > 0).long()')}{ignored}"
        )
    if found[-1] == most + 1 and found[0] >= 1:
        again = "" if ignore_index is None else f" and ignore_index={ignore_index - 1}"
        raise InvalidArgument(
            f"targets must lie in 0..{most} for {logits}, got {some} up to {found[-1]}: classes that are numbered from "
            f"1? If so, {line.format('batch[1] - 1')}{again}"
        )
    if n_classes == 1 and len(outside) != (marked is not None):
        raise InvalidArgument(_regression(some))
    ignored = ignored or f"; {line.format('...')} with class numbers, or ignore_index= for samples without a label"
    raise InvalidArgument(
        f"targets must lie in 0..{most} for {logits}, got values from {found[0]} to {found[-1]}{ignored}"
    )
