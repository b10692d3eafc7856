"""Tell a list with one container per sample from a batch whose parts have one row per sample.

A loader with `collate_fn=lambda batch: batch` yields the first kind, PyTorch's own collate_fn the second one. Sizes
alone do not tell: three pairs of an image with three channels and a label may look like columns of three samples.
"""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor

from lightning_neuroimp.batches.structure import PLAIN, describe, fields_of, is_packed, parts_of
from lightning_neuroimp.errors import InvalidArgument


def is_list_of_samples(batch: Any) -> bool:
    """Tell whether a batch is a list whose items are samples: containers that are built alike.

    They are samples if they hold plain values, such as class numbers, in addition to something else, or tensors whose
    first dimensions differ inside one item. Images may differ in size.

    Args:
        batch: as the loader yields it.

    Raises:
        InvalidArgument: if a list's items can be samples as well as columns.

    >>> import torch
    >>> is_list_of_samples([(torch.zeros(3, 8, 8), 0), (torch.zeros(3, 9, 9), 1), (torch.zeros(3, 8, 8), 1)])
    True
    >>> is_list_of_samples([torch.zeros(3, 8, 8), torch.zeros(3)])
    False
    """
    if not isinstance(batch, list | tuple) or hasattr(batch, "_fields") or not batch:
        return False
    first = batch[0]
    if not _is_container(first) or not all(type(item) is type(first) for item in batch):
        return False
    if not all(_alike(first, item, outermost=True) for item in batch):
        return False
    leaves = [list(_leaves(item, outermost=True)) for item in batch]
    named, kinds = fields_of(first) is not None, {_kind(leaf) for leaf in leaves[0]}
    if kinds & {"number", "text"} and (named or len(kinds) > 1):
        return True
    if any(isinstance(kind, type) for kind in kinds):  # objects, of which nothing makes columns
        return True
    if kinds <= {"number", "text"}:
        return False
    shapes = [[tuple(leaf.shape) for leaf in item if isinstance(leaf, Tensor | np.ndarray)] for item in leaves]
    if any(len({shape[0] for shape in item}) > 1 for item in shapes):
        return True
    if isinstance(batch, list) and len(batch) > 1 and shapes[0] and all(item == shapes[0] for item in shapes):
        length = shapes[0][0][0]
        raise InvalidArgument(
            f"the batch is a list of {len(batch)} items, each {describe(first)} whose parts have {length} entries: "
            f"they may be {len(batch)} samples, or columns of {length}; let the loader's collate_fn return (inputs, "
            "targets) with one row per sample"
        )
    return False


def _is_container(item: Any) -> bool:
    """Tell whether something holds parts that can be samples' inputs and targets."""
    if is_packed(item) or isinstance(item, type):
        return False
    return isinstance(item, Mapping | tuple | list) or is_dataclass(item)


def _is_values(part: Any) -> bool:
    """Tell whether something is a sequence of plain values, such as the numbers of tokens, of any length."""
    return (
        isinstance(part, tuple | list)
        and not hasattr(part, "_fields")
        and all(isinstance(value, PLAIN) for value in part)
    )


def _alike(one: Any, other: Any, *, outermost: bool = False) -> bool:
    """Tell whether two items are built alike: of the same keys, lengths and types of leaves; None fits anything.

    Args:
        one: an item, or a part of it.
        other: another item, or the same part of it.
        outermost: whether these are items, whose plain values are leaves of their own.
    """
    if one is None or other is None:
        return True
    if not _is_container(one) or not _is_container(other) or (not outermost and _is_values(one) and _is_values(other)):
        return _kind(one) == _kind(other)
    if type(one) is not type(other):
        return False
    mine, others = parts_of(one) or [], parts_of(other) or []
    if isinstance(one, Mapping) and list(one) != list(other):
        return False
    return len(mine) == len(others) and all(map(_alike, mine, others))


def _leaves(part: Any, *, outermost: bool = False) -> Iterator[Any]:
    """Yield what is no container in an item; sequences of plain values count as one."""
    if not _is_container(part) or (not outermost and _is_values(part)):
        yield part
        return
    for inner in parts_of(part) or []:
        yield from _leaves(inner)


def _kind(leaf: Any) -> Any:
    """Return what leaves of items that are built alike have in common."""
    if isinstance(leaf, Tensor | np.ndarray):
        return ("array", leaf.ndim, str(leaf.dtype)) if leaf.ndim else "number"
    if isinstance(leaf, Number | np.number | np.bool_):
        return "number"
    if isinstance(leaf, str | bytes):
        return "text"
    if _is_values(leaf):
        return "values"
    return None if leaf is None else type(leaf)
