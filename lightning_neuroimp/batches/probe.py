"""ProbeSet: a bounded, reproducible sample of a stream of batches, kept on the host.

Every sample of the stream gets a key, a hash of the seed and of its number in the stream, and the samples with the
smallest keys are kept (bottom-k sampling). So the sample is uniform whatever the order or length of the stream, it
does not touch any random generator, and the samples of several processes merge by comparing keys. A stratified sample
takes the smallest key of each stratum, then the second smallest of each, and so on.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from lightning_neuroimp.batches.fields import labels_of
from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.batches.processes import Gather, alone
from lightning_neuroimp.batches.structure import batch_size as batch_size_of
from lightning_neuroimp.batches.structure import (
    bytes_per_sample,
    empty_rows,
    fingerprint,
    set_row,
    signature,
    take_rows,
    unpacked,
    values_to_ids,
)

Stratify = bool | Callable[..., Any]
"""Whether to draw as many samples of each label; or a callable, `batch -> one value per sample`, for other strata."""


@dataclass(frozen=True)
class _Group:
    """Samples that can be joined into one batch: some rows of a stored batch."""

    batch: Any
    rows: Int[np.ndarray, " sample"]
    index: Int[np.ndarray, " sample"]
    fingerprint: Int[np.ndarray, " sample"]


class _Entry(NamedTuple):
    """A kept sample; the order is that of a heap with the largest key on top."""

    minus_key: int
    number: int
    n_bytes: int
    place: int
    kind: Hashable


class _Block:
    """Room for samples of one kind.

    Freed places are used again: small tensors that come and go would scatter the memory.
    """

    def __init__(self) -> None:
        self.rows: Any = None
        self.free: list[int] = []
        self.capacity = 0

    def put(self, batch: Any, row: int, size: int) -> int:
        """Copy a sample in; its place."""
        if not self.free:
            capacity = max(1, 2 * self.capacity)
            grown = empty_rows(batch, size, capacity)
            for place in range(self.capacity):
                set_row(grown, place, self.rows, place, None)
            self.free = list(range(self.capacity, capacity))
            self.rows, self.capacity = grown, capacity
        place = self.free.pop()
        set_row(self.rows, place, batch, row, size)
        return place


class ProbeSampler:
    """Draws a `ProbeSet` from batches that are passed one by one.

    Args:
        max_samples: at most so many samples, over all processes.
        max_bytes: at most so many bytes in their tensors, per process.
        seed: another seed draws other samples.
        stratify: True: as many samples of each label as there are, or as have room; or a callable, `batch -> one
            integer or string per sample`, for other strata. Several processes each draw from their share.
        classes: only samples with these labels; None: all.

    Raises:
        ValueError: if a bound is not positive, or the seed not from 0 to 2**32 - 1.
    """

    def __init__(
        self,
        max_samples: int = 1024,
        max_bytes: int = 2**30,
        seed: int = 0,
        *,
        stratify: Stratify = False,
        classes: Collection[int] | None = None,
    ) -> None:
        for name, value in (("max_samples", max_samples), ("max_bytes", max_bytes)):
            if not isinstance(value, Integral):
                raise ValueError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")
        if not isinstance(stratify, bool) and not callable(stratify):
            raise ValueError(
                f"stratify must be True, False or a callable (batch) -> one value per sample, got {stratify!r}"
            )
        self.max_samples, self.max_bytes, self.seed = max_samples, max_bytes, seed
        self.stratify = stratify
        self.classes = None if classes is None else np.array(sorted(classes), np.int64)
        self.seen = 0
        self.largest_batch = 1
        self._bytes = self._count = 0
        # of each stratum: the kept samples, the largest key first, and from which key on all are turned away
        self._heaps: dict[Hashable, list[_Entry]] = {}
        self._limits: dict[Hashable, int] = {}
        self._blocks: dict[Hashable, _Block] = {}

    def add(self, batch: Any, index: Int[np.ndarray, " sample"] | None = None) -> None:
        """Offer a batch.

        Args:
            batch: any nesting of tensors that share their first dimension.
            index: each sample's number in the whole stream; counted up when it is not given. Negative numbers mark
                samples that must not be drawn, such as the padding of a distributed sampler.

        Raises:
            ValueError: if the batch's samples cannot be told apart, one sample alone is larger than `max_bytes`, or
                labels are needed that the batch does not show.
        """
        labels = labels_of(batch) if self.classes is not None or self.stratify is True else None
        strata = self._strata(batch, labels)
        batch = unpacked(batch)
        size = batch_size_of(batch)
        if index is None:
            index = np.arange(self.seen, self.seen + size, dtype=np.int64)
        self.seen += int((index >= 0).sum())
        self.largest_batch = max(self.largest_batch, size)
        if self.classes is not None and labels is not None and len(labels) == size:
            index = np.where(np.isin(labels, self.classes), index, -1)
        keys = sample_keys(index, self.seed)
        limit = max(self._limits.get(one, 2**64) for one in set(strata)) if strata else self._limits.get(None, 2**64)
        candidates = np.flatnonzero((index >= 0) & (keys <= np.uint64(limit - 1)))
        if not len(candidates):
            return
        kind, n_bytes = signature(batch, size), bytes_per_sample(batch)
        if n_bytes > self.max_bytes:
            raise ValueError(f"one sample takes {n_bytes} bytes, more than max_bytes={self.max_bytes}; raise max_bytes")
        # outside inference mode, so that the copies can enter a graph later on
        with torch.inference_mode(False), torch.no_grad():
            for row in candidates.tolist():
                key, stratum = int(keys[row]), None if strata is None else strata[row]
                if key >= self._limits.get(stratum, 2**64):
                    continue
                if self._count == self.max_samples and not self._make_room(stratum, key):
                    continue
                block = self._blocks.setdefault(kind, _Block())
                entry = _Entry(-key, int(index[row]), n_bytes, block.put(batch, row, size), kind)
                heappush(self._heaps.setdefault(stratum, []), entry)
                self._bytes, self._count = self._bytes + n_bytes, self._count + 1
                while self._bytes > self.max_bytes:
                    self._drop(self._fullest())
                if self._count == self.max_samples and len(self._heaps) == 1:
                    self._limits[stratum] = -self._heaps[stratum][0].minus_key + 1

    def _strata(self, batch: Any, labels: np.ndarray | None) -> list[Hashable] | None:
        """The stratum of each sample; None: all are in one."""
        if self.stratify is False:
            return None
        if self.stratify is True:
            if labels is None:
                raise ValueError(
                    "stratify=True needs class labels in the batch, of the form (inputs, targets) or in a mapping with "
                    "a key 'labels', 'label', 'targets', 'target' or 'y'; else, and for one-hot labels, pass a "
                    "callable, such as stratify=lambda batch: batch[1].argmax(1)"
                )
            return list(labels.tolist())
        return list(values_to_ids(self.stratify(batch), batch_size_of(unpacked(batch)), "the stratify callable"))

    def _make_room(self, stratum: Hashable, key: int) -> bool:
        """Drop a sample from the stratum that would have the most with a new one; False: the new one itself goes."""
        victim = self._fullest(stratum, key)
        if victim == stratum and (stratum not in self._heaps or key >= -self._heaps[stratum][0].minus_key):
            self._limits[stratum] = key
            return False
        self._drop(victim)
        return True

    def _fullest(self, joined: Hashable = None, key: int | None = None) -> Hashable:
        """The stratum with the most samples, of several that with the largest key; a new sample may have joined one."""

        def fullness(stratum: Hashable) -> tuple[int, int]:
            heap = self._heaps.get(stratum, [])
            largest = -heap[0].minus_key if heap else 0
            if key is None or stratum != joined:
                return len(heap), largest
            return len(heap) + 1, max(largest, key)

        return max({*self._heaps, joined} if key is not None else self._heaps, key=fullness)

    def _drop(self, stratum: Hashable) -> None:
        entry = heappop(self._heaps[stratum])
        if not self._heaps[stratum]:
            del self._heaps[stratum]
        self._limits[stratum] = -entry.minus_key
        self._bytes, self._count = self._bytes - entry.n_bytes, self._count - 1
        block = self._blocks[entry.kind]
        block.free.append(entry.place)
        if len(block.free) == block.capacity:
            del self._blocks[entry.kind]

    def close(self, gather: Gather = alone) -> "ProbeSet":
        """The probe set of all that was offered.

        Args:
            gather: gets everybody's value where several processes each draw from a share of the stream; the bounds
                then hold for all of them together (`max_samples`) and for each (`max_bytes`).

        Raises:
            ValueError: if no sample was offered.
        """
        mine = {stratum: [-entry.minus_key for entry in heap] for stratum, heap in self._heaps.items()}
        shares = gather((mine, self._limits, self.seen))
        kept: list[tuple[int, int]] = []
        for stratum in dict.fromkeys(stratum for share in shares for stratum in share[0]):
            # what one process has turned away for want of room, all others must: or the sample would be biased
            limit = min(share[1].get(stratum, 2**64) for share in shares)
            found = sorted(key for share in shares for key in share[0].get(stratum, []) if key < limit)
            kept += enumerate(found)
        if not kept:
            raise ValueError(
                "the stream of batches was empty: there is nothing to draw a probe set from"
                + ("" if self.classes is None else f"; no sample has a label among classes={self.classes.tolist()}")
            )
        chosen = {key for _, key in sorted(kept)[: self.max_samples]}
        members: dict[Hashable, list[_Entry]] = {}
        for entry in sorted((entry for heap in self._heaps.values() for entry in heap), key=lambda one: -one.minus_key):
            if -entry.minus_key in chosen:
                members.setdefault(entry.kind, []).append(entry)
        groups = tuple(_group(self._blocks[kind].rows, entries) for kind, entries in members.items())
        return ProbeSet(groups, self.largest_batch, sum(share[2] for share in shares))


def _group(rows: Any, entries: list[_Entry]) -> _Group:
    places = np.array([entry.place for entry in entries], np.int64)
    prints = [fingerprint(take_rows(rows, torch.tensor([place]), None)) for place in places.tolist()]
    return _Group(rows, places, np.array([entry.number for entry in entries], np.int64), np.array(prints, np.int64))


@dataclass(frozen=True)
class ProbeSet:
    """The sample on which everything is computed, in the order of its keys.

    Attributes:
        groups: the samples, joined where their shapes agree.
        batch_size: size of the largest batch of the stream.
        seen: length of the stream, over all processes.
    """

    groups: tuple[_Group, ...]
    batch_size: int
    seen: int

    @classmethod
    def from_batches(
        cls,
        batches: Iterable[Any],
        *,
        max_samples: int = 1024,
        max_bytes: int = 2**30,
        seed: int = 0,
        stratify: Stratify = False,
        classes: Collection[int] | None = None,
    ) -> "ProbeSet":
        """Draw from a loader.

        Args:
            batches: any iterable of batches, with or without a length.
            max_samples: at most so many samples.
            max_bytes: at most so many bytes in their tensors.
            seed: another seed draws other samples.
            stratify: True: as many samples of each label; or a callable, `batch -> one value per sample`.
            classes: only samples with these labels.

        Raises:
            ValueError: if there is no batch, a bound is not positive, the samples cannot be told apart, or labels are
                needed that the batches do not show.

        >>> probe = ProbeSet.from_batches([(torch.zeros(8, 2), torch.arange(8))] * 10, max_samples=16)
        >>> len(probe), probe.seen
        (16, 80)
        """
        sampler = ProbeSampler(max_samples, max_bytes, seed, stratify=stratify, classes=classes)
        for batch in batches:
            sampler.add(batch)
        return sampler.close()

    @classmethod
    def of_samples(cls, batches: Iterable[Any], numbers: Int[np.ndarray, " sample"], *, seed: int = 0) -> "ProbeSet":
        """Those samples of a loader that have given numbers in its stream.

        Args:
            batches: the loader.
            numbers: counted from 0, over all batches.
            seed: of their order.

        Raises:
            ValueError: if none of them is there.
        """
        sampler, seen = ProbeSampler(max(1, len(numbers)), 2**62, seed), 0
        for batch in batches:
            here = np.arange(seen, seen + batch_size_of(unpacked(batch)), dtype=np.int64)
            sampler.add(batch, np.where(np.isin(here, numbers), here, -1))
            seen += len(here)
        return sampler.close()

    def __len__(self) -> int:
        return sum(len(group.index) for group in self.groups)

    @property
    def index(self) -> Int[np.ndarray, " sample"]:
        """Each sample's number in the stream, in the order in which `batches` yields them."""
        return np.concatenate([np.zeros(0, np.int64), *[group.index for group in self.groups]])

    @property
    def fingerprint(self) -> Int[np.ndarray, " sample"]:
        """A checksum of each sample's content, in the same order."""
        return np.concatenate([np.zeros(0, np.int64), *[group.fingerprint for group in self.groups]])

    def batches(self, batch_size: int | None = None) -> Iterator[tuple[Any, Int[np.ndarray, " sample"]]]:
        """Copies of at most `batch_size` samples (the stream's own size by default), and their numbers."""
        step = self.batch_size if batch_size is None else batch_size
        for group in self.groups:
            for start in range(0, len(group.index), step):
                rows = torch.from_numpy(group.rows[start : start + step])
                with torch.inference_mode(False), torch.no_grad():
                    batch = take_rows(group.batch, rows, None)
                yield batch, group.index[start : start + step]

    def count_batches(self, batch_size: int | None = None) -> int:
        """How many batches `batches` yields."""
        step = self.batch_size if batch_size is None else batch_size
        return sum(-(-len(group.index) // step) for group in self.groups)

    def select(self, index: Int[np.ndarray, " chosen"]) -> "ProbeSet":
        """The probe set of those samples whose numbers are in `index`; it shares their memory."""
        groups = []
        for group in self.groups:
            kept = np.isin(group.index, index)
            if kept.any():
                groups.append(_Group(group.batch, group.rows[kept], group.index[kept], group.fingerprint[kept]))
        return ProbeSet(tuple(groups), self.batch_size, self.seen)
