"""Read a batch in one walk: its number of samples, the leaves that hold them, and how it is put together from these.

`read_batch` takes what a loader yields and gives a `FlatBatch`. The probe set stores rows of its leaves; its `Layout`
makes batches of the same structure from them.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Number
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lightning_neuroimp.batches.sample_lists import is_list_of_samples
from lightning_neuroimp.batches.sparse import sparse_rows
from lightning_neuroimp.batches.structure import (
    PLAIN,
    copied_to,
    describe,
    fields_of,
    is_packed,
    map_parts,
    parts_of,
    sparse_parts,
)
from lightning_neuroimp.errors import InvalidArgument

HOST = torch.device("cpu")


class Graphs(list[Any]):
    """Hold the graphs of a packed batch, or the rows of a sparse tensor, and what joins them again.

    Args:
        graphs: one per sample.
        kind: type of the packed batch, or kind of the sparse tensor; its `from_data_list` joins them.
    """

    def __init__(self, graphs: Sequence[Any], kind: Any) -> None:
        super().__init__(graphs)
        self.kind = kind


class _Slot:
    """Stand in a layout for a part of a batch that is no container.

    Args:
        number: of the part, in the order of the walk.
    """

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass(frozen=True)
class _Container:
    """Stand in a layout for a container.

    Attributes:
        like: a container of the same kind.
        children: what stands for its parts.
    """

    like: Any
    children: tuple[Any, ...]

    def emptied(self) -> "_Container":
        """Return the same without the parts of the batch that was read, which would keep its memory."""
        children = tuple(child.emptied() if isinstance(child, _Container) else child for child in self.children)
        return _Container(map_parts(lambda part: None, self.like), children)


@dataclass(frozen=True)
class Layout:
    """Put batches of one structure together.

    Attributes:
        root: what stands for the batch: a slot, or a container of slots and containers.
        divided: numbers of the slots of leaves, which have one entry per sample, in the order of the leaves.
        constants: what has no entries per sample, by the number of its slot.
    """

    root: _Slot | _Container
    divided: tuple[int, ...]
    constants: dict[int, Any]

    def kept(self) -> "Layout":
        """Return a layout that holds nothing of the batch that was read but copies of its constants, on the host."""
        root = self.root.emptied() if isinstance(self.root, _Container) else self.root
        constants = {
            number: part.emptied() if isinstance(part, _Container) else copied_to(part, HOST)
            for number, part in self.constants.items()
        }
        return Layout(root, self.divided, constants)

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """Return a batch, or a sample, with the given leaves and with copies of the constants.

        Args:
            leaves: one for each leaf of the batch that was read. They are not copied.
        """
        return self._filled(self.root, dict(zip(self.divided, leaves, strict=True)))

    def _filled(self, part: _Slot | _Container, leaf_of: dict[int, Any]) -> Any:
        """Return what a slot or a container stands for.

        Args:
            part: the slot or container.
            leaf_of: leaf of each slot that has one.
        """
        if isinstance(part, _Container):
            filled = iter([self._filled(child, leaf_of) for child in part.children])
            return map_parts(lambda _: next(filled), part.like)
        if part.number in leaf_of:
            leaf = leaf_of[part.number]
            return leaf.kind.from_data_list(list(leaf)) if isinstance(leaf, Graphs) else leaf
        constant = self.constants[part.number]
        return self._filled(constant, leaf_of) if isinstance(constant, _Container) else copied_to(constant, HOST)


@dataclass(frozen=True)
class FlatBatch:
    """Hold a batch that has been read; `ProbeSampler.add` takes it in place of the batch.

    Attributes:
        batch: as the loader yielded it.
        size: number of samples.
        leaves: tensors and arrays whose first axis are the samples, and lists with one entry per sample; shared with
            the batch.
        layout: puts batches like it together from leaves.

    >>> flat = read_batch({"image": torch.zeros(3, 8), "label": torch.arange(3), "split": "validation"})
    >>> flat.size, flat.n_bytes.tolist(), len(flat.leaves)
    (3, [40, 40, 40], 2)
    >>> flat.layout.rebuild([leaf[1] for leaf in flat.leaves])["label"]
    tensor(1)
    """

    batch: Any
    size: int
    leaves: tuple[Any, ...]
    layout: Layout
    _structure: tuple[Any, ...] = field(repr=False)

    @cached_property
    def signature(self) -> Hashable:
        """Return a value that two batches share if and only if their samples can be joined in one batch."""
        kind_of = {number: _leaf_kind(leaf) for number, leaf in zip(self.layout.divided, self.leaves, strict=True)}
        kind_of |= {number: _constant_kind(value) for number, value in self.layout.constants.items()}
        return tuple(kind_of[part.number] if isinstance(part, _Slot) else part for part in self._structure)

    @cached_property
    def n_bytes(self) -> Int[np.ndarray, " sample"]:
        """Return the number of bytes of each sample in tensors and arrays, also in those of graphs and dataclasses."""
        total = np.zeros(self.size, np.int64)
        for leaf in self.leaves:
            if isinstance(leaf, Tensor | np.ndarray):
                total += int(leaf.nbytes) // max(1, self.size)
            else:
                total += np.array([_entry_bytes(entry, isinstance(leaf, Graphs)) for entry in leaf], np.int64)
        return total


def read_batch(batch: Any) -> FlatBatch:
    """Read a batch in one walk over its parts.

    Args:
        batch: any nesting of mappings, sequences and dataclasses of tensors and arrays that share their first axis, the
            samples; or a list with one object or container per sample. A list with as many plain values, or tensors of
            any length, as there are samples is divided like a tensor; other plain values are constants. A batch of
            graphs counts as the list of its graphs. A `FlatBatch` is returned as it is.

    Raises:
        InvalidArgument: if the number of samples cannot be told, or a part cannot be divided into samples.

    >>> read_batch((torch.zeros(3, 8), ["a.png", "b.png", "c.png"])).size
    3
    """
    if isinstance(batch, FlatBatch):
        return batch
    if is_list_of_samples(batch):
        return FlatBatch(batch, len(batch), (list(batch),), Layout(_Slot(0), (0,), {}), (_Slot(0),))
    reader = _Reader()
    root = reader.visit(batch, outermost=True)
    if not reader.sizes and _is_list_of_objects(batch):
        reader.sizes.add(len(batch))
    if not reader.sizes:
        reader.sizes |= reader.sizes_of_lists(batch)
    size = _only(reader.sizes, batch)
    reader.settle(size)
    _only(reader.sizes, batch)  # again: lists that turned out to hold parts may hold tensors
    divided = tuple(sorted(reader.divided))
    constants = {number: part for number, part in enumerate(reader.parts) if number not in reader.divided}
    leaves = tuple(reader.parts[number] for number in divided)
    return FlatBatch(batch, size, leaves, Layout(root, divided, constants), tuple(reader.structure))


class _Reader:
    """Walk over a batch once.

    Attributes:
        parts: everything that is no container, in the order of the walk.
        divided: numbers of the parts with one entry per sample.
        structure: containers and slots in the order of the walk; equal ones mean the same nesting.
        sizes: first axes of tensors and arrays, and numbers of graphs.
    """

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.divided: set[int] = set()
        self.structure: list[Any] = []
        self.sizes: set[int] = set()
        self._undecided: list[int] = []

    def visit(self, part: Any, *, outermost: bool = False) -> _Slot | _Container:
        """Note a part of the batch, and return what stands for it in the layout.

        Args:
            part: a container or anything else.
            outermost: whether it is the batch itself, whose list of tensors are its columns.

        Raises:
            InvalidArgument: if it might hold samples and cannot be divided.
        """
        if isinstance(part, Tensor) and (part.layout != torch.strided or part.is_nested):
            return self._leaf(Graphs(*sparse_rows(part)))
        if isinstance(part, Tensor | np.ndarray):
            return self._leaf(part) if part.ndim else self._slot(part)
        if isinstance(part, PLAIN):
            return self._slot(part)
        if is_packed(part):
            return self._leaf(Graphs(part.to_data_list(), type(part)))
        if _is_list_of_objects(part) or _is_list_of_values(part) or (not outermost and _is_list_of_tensors(part)):
            self._undecided.append(len(self.parts))
            return self._slot(part)
        return self._container(part)

    def sizes_of_lists(self, batch: Any) -> set[int]:
        """Return the number of samples by the lists in a batch that holds no tensors but those in lists.

        Args:
            batch: for the message.

        Raises:
            InvalidArgument: if each list can hold one tensor per sample as well as one for each of several inputs.
        """
        lists = [self.parts[number] for number in self._undecided]
        lengths = {len(entries) for entries in lists}
        inner = [{len(entry) if entry.ndim else -1 for entry in one} for one in lists if _is_list_of_tensors(one)]
        dimensions = set().union(*inner) - {-1}
        numbers = any(_is_list_of_numbers(entries) for entries in lists)
        if len(lengths) == 1 and dimensions and (numbers or len(dimensions) > 1) and dimensions != lengths:
            return lengths
        if numbers and dimensions and dimensions == lengths:
            size = next(iter(lengths))
            raise InvalidArgument(
                f"{describe(batch)} holds lists of {size} tensors, each with {size} entries, and lists of {size} "
                f"numbers: the tensors may be {size} samples, or one for each of {size} inputs; let the loader's "
                "collate_fn return tensors with one row per sample"
            )
        return dimensions

    def settle(self, size: int) -> None:
        """Decide which lists hold one entry per sample, now that the number of samples is known."""
        for number in self._undecided:  # it may grow meanwhile
            entries = self.parts[number]
            tensors = _is_list_of_tensors(entries)
            columns = tensors and all(entry.ndim and len(entry) == size for entry in entries)
            if len(entries) == size and not columns:
                self.divided.add(number)
            elif tensors or (_is_list_of_objects(entries) and fields_of(entries[0]) is not None):
                self.parts[number] = self._container(entries)

    def _container(self, part: Any) -> _Container:
        parts = parts_of(part)
        if parts is None:
            # kept whole, it would be paired with the labels of other samples
            raise InvalidArgument(
                f"a batch holds {describe(part)}, which cannot be divided into samples; let the loader's collate_fn "
                "return tensors, or a list with one object for each sample, which forward_fn joins"
            )
        self.structure.append((type(part).__name__, tuple(part) if isinstance(part, Mapping) else len(parts)))
        return _Container(part, tuple(self.visit(child) for child in parts))

    def _leaf(self, part: Any) -> _Slot:
        self.sizes.add(len(part))
        self.divided.add(len(self.parts))
        return self._slot(part)

    def _slot(self, part: Any) -> _Slot:
        slot = _Slot(len(self.parts))
        self.parts.append(part)
        self.structure.append(slot)
        return slot


def _only(sizes: set[int], batch: Any) -> int:
    """Return the number of samples that all parts of a batch agree on.

    Raises:
        InvalidArgument: if they do not agree, or nothing tells.
    """
    if len(sizes) == 1:
        return next(iter(sizes))
    found = f"first dimensions {sorted(sizes)}" if sizes else "no tensor with a first dimension"
    raise InvalidArgument(
        f"the tensors of a batch must share their first dimension, one entry per sample, got {found} in "
        f"{describe(batch)}; let the loader's collate_fn return such batches"
    )


def _is_list_of_objects(part: Any) -> bool:
    """Tell whether something is a list of objects of one type, which a user's forward_fn joins."""
    return (
        isinstance(part, list)
        and len(part) > 0
        and not isinstance(part[0], Tensor | np.ndarray | Mapping | tuple | list | str | int | float | bool | None)
        and len({type(value) for value in part}) == 1
    )


def _is_list_of_values(part: Any) -> bool:
    """Tell whether something is a sequence of plain values without names of their own, such as paths of files."""
    return (
        isinstance(part, tuple | list)
        and not hasattr(part, "_fields")
        and all(isinstance(value, PLAIN) for value in part)
    )


def _is_list_of_tensors(part: Any) -> bool:
    """Tell whether something is a sequence of tensors or arrays without names: of one per sample, or per input."""
    return (
        isinstance(part, tuple | list)
        and not hasattr(part, "_fields")
        and len(part) > 0
        and all(isinstance(value, Tensor | np.ndarray) for value in part)
    )


def _is_list_of_numbers(part: Any) -> bool:
    """Tell whether something is a list of numbers, or of tensors without axes, as only samples have them."""
    return all(
        value.ndim == 0 if isinstance(value, Tensor | np.ndarray) else isinstance(value, Number | np.generic)
        for value in part
    )


def _leaf_kind(leaf: Any) -> Hashable:
    """Return what leaves must have in common to be joined along the samples."""
    if isinstance(leaf, Tensor | np.ndarray):
        return (type(leaf).__name__, leaf.dtype, tuple(leaf.shape[1:]))
    return ("graphs", leaf.kind) if isinstance(leaf, Graphs) else "list"


def _constant_kind(value: Any) -> Hashable:
    """Return what constants must have in common for their samples to be joined."""
    if isinstance(value, Tensor | np.ndarray):
        return (type(value).__name__, value.dtype, repr(value.item()))
    if isinstance(value, _Container):
        return "container"  # which comes later in the structure
    return (type(value).__name__, repr(value))


def _entry_bytes(entry: Any, graph: bool = False) -> int:
    """Return the number of bytes in the tensors and arrays of an entry of a list."""
    if isinstance(entry, Tensor) and entry.layout != torch.strided:
        return sum(int(part.nbytes) for part in sparse_parts(entry))
    if isinstance(entry, Tensor | np.ndarray):
        return int(entry.nbytes)
    if isinstance(entry, PLAIN):
        return 0
    content = entry.to_dict() if graph and hasattr(type(entry), "to_dict") else entry
    return sum(_entry_bytes(part) for part in parts_of(content) or ())
