"""Store samples of one structure: rows of flat leaves on the host, which can be joined into batches."""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_neuroimp.batches.layout import HOST, FlatBatch, Graphs, Layout
from lightning_neuroimp.batches.structure import copied_to, fingerprint


class Room:
    """Make room for samples of one structure.

    Freed places are used again: small tensors that come and go would scatter the memory.

    Attributes:
        layout: puts their batches together.
        leaves: with an entry for each place, used or not.
        free: places without a sample.
        capacity: number of places.

    Args:
        like: a batch of this structure.
    """

    def __init__(self, like: FlatBatch) -> None:
        self.layout = like.layout.kept()
        self.leaves = [_empty(leaf, 0) for leaf in like.leaves]
        self.free: list[int] = []
        self.capacity = 0

    def put(self, sample: Sequence[Any]) -> int:
        """Copy a sample in, and return its place.

        Args:
            sample: one entry for each leaf; of graphs on any device, of all else on the host.
        """
        if not self.free:
            self._grow()
        place = self.free.pop()
        for leaf, entry in zip(self.leaves, sample, strict=True):
            leaf[place] = entry if isinstance(leaf, Tensor | np.ndarray) else _kept(entry, isinstance(leaf, Graphs))
        return place

    def _grow(self) -> None:
        capacity = max(1, 2 * self.capacity)
        grown = [_empty(leaf, capacity) for leaf in self.leaves]
        for new, old in zip(grown, self.leaves, strict=True):
            new[: self.capacity] = old
        self.free = list(range(self.capacity, capacity))
        self.leaves, self.capacity = grown, capacity


class Rooms:
    """Make room for samples of several structures.

    Attributes:
        of: the room for samples of each signature, as long as there are any.
    """

    def __init__(self) -> None:
        self.of: dict[Hashable, Room] = {}

    def put(self, batch: FlatBatch, sample: Sequence[Any]) -> int:
        """Copy a sample in, and return its place in the room for samples like it.

        Args:
            batch: that the sample is from.
            sample: as for `Room.put`.
        """
        if batch.signature not in self.of:
            self.of[batch.signature] = Room(batch)
        return self.of[batch.signature].put(sample)

    def release(self, signature: Hashable, place: int) -> None:
        """Give the place of a sample free, and the room as well if it was the last one there.

        Args:
            signature: of the sample's batch.
            place: of the sample.
        """
        room = self.of[signature]
        room.free.append(place)
        if len(room.free) == room.capacity:
            del self.of[signature]


@dataclass(frozen=True)
class Stack:
    """Hold samples that can be joined into one batch.

    Attributes:
        layout: puts their batches together.
        leaves: on the host.
        rows: row of each sample in the leaves.
        index: each sample's number.
        fingerprint: a checksum of each sample's content.
    """

    layout: Layout
    leaves: tuple[Any, ...]
    rows: Int[np.ndarray, " sample"]
    index: Int[np.ndarray, " sample"]
    fingerprint: Int[np.ndarray, " sample"]

    @classmethod
    def of(cls, room: Room, places: Int[np.ndarray, " sample"], index: Int[np.ndarray, " sample"]) -> "Stack":
        """Return the samples at some places of a room, in this order.

        Args:
            room: holds the samples. Its memory is shared.
            places: of the samples.
            index: each sample's number.
        """
        prints = [
            fingerprint(room.layout.rebuild([_single(leaf, place) for leaf in room.leaves]))
            for place in places.tolist()
        ]
        return cls(room.layout, tuple(room.leaves), places, index, np.array(prints, np.int64))

    def batch(self, start: int, stop: int) -> Any:
        """Return a batch of the samples from `start` to `stop`, copied."""
        return self.rows_batch(np.arange(len(self.index))[start:stop])

    def rows_batch(self, samples: Int[np.ndarray, " chosen"]) -> Any:
        """Return a batch of some samples, copied.

        Args:
            samples: places in this stack, in any order; the same one may come more than once.
        """
        rows = self.rows[samples]
        with torch.inference_mode(False), torch.no_grad():  # so that the copies can enter a graph later on
            return self.layout.rebuild([_take(leaf, rows) for leaf in self.leaves])

    def sample(self, sample: int) -> Any:
        """Return what the batch holds of one sample, without the sample axis, copied; a graph in a batch of its own."""
        with torch.inference_mode(False), torch.no_grad():
            singles = [_single(leaf, int(self.rows[sample])) for leaf in self.leaves]
            entries = [leaf if isinstance(leaf, Graphs) else copied_to(leaf[0], HOST) for leaf in singles]
            return self.layout.rebuild(entries)

    def select(self, chosen: Bool[np.ndarray, " sample"]) -> "Stack":
        """Return the samples for which `chosen` is True, in the same memory."""
        return Stack(self.layout, self.leaves, self.rows[chosen], self.index[chosen], self.fingerprint[chosen])


def host_rows(leaf: Any, rows: Int[np.ndarray, " row"]) -> list[Any]:
    """Return the entries of some samples in a leaf; those of tensors on the host, with one transfer for all of them.

    Args:
        leaf: with one entry per sample.
        rows: of the samples.
    """
    if isinstance(leaf, Tensor) and leaf.device != HOST:
        return list(leaf.detach()[torch.from_numpy(rows).to(leaf.device)].to(HOST))
    return [leaf[row] for row in rows.tolist()]


def _empty(leaf: Any, n_rows: int) -> Any:
    """Return a leaf on the host like another one, with other entries."""
    if isinstance(leaf, Tensor):
        return torch.empty((n_rows, *leaf.shape[1:]), dtype=leaf.dtype)
    if isinstance(leaf, np.ndarray):
        return np.empty((n_rows, *leaf.shape[1:]), leaf.dtype)
    return Graphs([None] * n_rows, leaf.kind) if isinstance(leaf, Graphs) else [None] * n_rows


def _take(leaf: Any, rows: Int[np.ndarray, " row"]) -> Any:
    """Return a copy of some rows of a leaf; objects in lists are shared, graphs with new attributes."""
    if isinstance(leaf, Tensor):
        return leaf[torch.from_numpy(rows)]
    if isinstance(leaf, np.ndarray):
        return leaf[rows]
    if isinstance(leaf, Graphs):  # what joins them copies their tensors
        return Graphs([copy.copy(leaf[row]) for row in rows.tolist()], leaf.kind)
    return [copied_to(leaf[row], HOST) for row in rows.tolist()]


def _single(leaf: Any, row: int) -> Any:
    """Return a leaf with a single row of another one, in the same memory."""
    return Graphs([copy.copy(leaf[row])], leaf.kind) if isinstance(leaf, Graphs) else leaf[row : row + 1]


def _kept(entry: Any, graph: bool) -> Any:
    """Return a copy of an entry of a list, on the host; other objects than graphs and dataclasses are shared."""
    if not graph:
        return copied_to(entry, HOST)
    # the tensors of a graph in a batch may be views of the whole batch's, which would stay, or be overwritten
    own = entry.clone() if hasattr(type(entry), "clone") else copy.copy(entry)
    return own.to(HOST)
