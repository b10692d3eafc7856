"""Draw a probe set: a bounded, reproducible sample of a stream of batches, kept on the host.

Every sample of the stream gets a key, a hash of the seed and of its number in the stream, and the samples with the
smallest keys are kept (bottom-k sampling). So the probe set is a uniform sample whatever the order or length of the
stream, no random generator is touched, and the samples of several processes are merged by comparing keys. A stratified
sample takes the smallest key of each stratum, then the second smallest of each, and so on.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt64

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.draw import NO_LIMIT, Draw, Entry
from lightning_neuroimp.batches.fields import labels_of
from lightning_neuroimp.batches.layout import FlatBatch, read_batch
from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.batches.stacks import Rooms, Stack, host_rows
from lightning_neuroimp.errors import InvalidArgument

Stratify = bool | Callable[..., Any]
"""Whether to draw as many samples of each label; or a callable, `batch -> one value per sample`, for other strata."""


class EmptyProbeError(InvalidArgument):
    """Say that no sample was drawn."""


class ProbeSampler:
    """Draw a `ProbeSet` from batches that are passed one by one.

    Args:
        max_samples: upper bound on the number of samples, over all processes.
        max_bytes: upper bound on the bytes in their tensors, per process.
        seed: another seed draws other samples.
        stratify: True to draw as many samples of each label as there are, or as have room; or a callable, `batch -> one
            integer or string per sample`, for other strata. Several processes each draw from their share.
        classes: labels of the samples that may be drawn; None: all. Batches that do not show labels are drawn from as
            if it was None.
        ignore_index: label of samples that must not be drawn, as they have none; None: all have one. Batches that do
            not show labels are drawn from as if it was None.

    Raises:
        InvalidArgument: if a bound is no positive integer, the seed no integer from 0 to 2**32 - 1, or `stratify`,
            `classes` or `ignore_index` is of another type.
    """

    def __init__(
        self,
        max_samples: int = 1024,
        max_bytes: int = 2**30,
        seed: int = 0,
        *,
        stratify: Stratify = False,
        classes: Collection[int] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        self.max_samples = _validate.integer("max_samples", max_samples, least=1)
        self.max_bytes = _validate.integer("max_bytes", max_bytes, least=1)
        self.seed = _validate.integer("seed", seed, least=0, most=2**32 - 1)
        if not callable(stratify) or isinstance(stratify, type):
            more = ["a callable (batch) -> one value per sample"]
            stratify = _validate.choice("stratify", stratify, (True, False), more)
        self.stratify = stratify
        self.classes = _validated_classes(classes)
        self.ignore_index = None if ignore_index is None else _validate.integer("ignore_index", ignore_index)
        self.seen = 0
        self.largest_batch, self.smallest_batch = 1, 0
        self._rooms = Rooms()
        self._draw = Draw(self.max_samples, self.max_bytes, self._rooms.release)

    def add(self, batch: Any, index: Int[np.ndarray, " sample"] | None = None) -> None:
        """Offer a batch.

        Args:
            batch: as the loader yields it, or as `read_batch` has read it.
            index: each sample's number in the whole stream; by default samples are counted. Negative numbers mark
                samples that must not be drawn, such as those that a distributed sampler repeats.

        Raises:
            InvalidArgument: if the batch's samples cannot be told apart, one sample alone is larger than `max_bytes`,
                labels are needed that the batch does not show, or the `stratify` callable fails.
        """
        flat = read_batch(batch)
        needed = self.classes is not None or self.ignore_index is not None or self.stratify is True
        labels = labels_of(flat.batch) if needed else None
        strata = self._strata(flat, labels)
        if index is None:
            index = np.arange(self.seen, self.seen + flat.size, dtype=np.int64)
        self.seen += int((index >= 0).sum())
        self.largest_batch = max(self.largest_batch, flat.size)
        self.smallest_batch = min(self.smallest_batch or flat.size, flat.size)
        if labels is not None and len(labels) == flat.size:
            index = index if self.classes is None else np.where(np.isin(labels, self.classes), index, -1)
            index = index if self.ignore_index is None else np.where(labels == self.ignore_index, -1, index)
        keys = sample_keys(index, self.seed)
        limit = max(self._draw.limits.get(stratum, NO_LIMIT) for stratum in set(strata or [None]))
        candidates = np.flatnonzero((index >= 0) & (keys <= np.uint64(limit - 1)))
        if not len(candidates):
            return
        most_bytes = int(flat.n_bytes[candidates].max())
        if most_bytes > self.max_bytes:
            raise InvalidArgument(
                f"one sample takes {most_bytes} bytes, more than max_bytes={self.max_bytes}; raise max_bytes"
            )
        # outside inference mode, so that the copies can enter a graph later on
        with torch.inference_mode(False), torch.no_grad():
            self._offer(flat, candidates, index[candidates], keys[candidates], strata)

    def _offer(
        self,
        flat: FlatBatch,
        candidates: Int[np.ndarray, " candidate"],
        index: Int[np.ndarray, " candidate"],
        keys: UInt64[np.ndarray, " candidate"],
        strata: list[Hashable] | None,
    ) -> None:
        """Keep those candidates whose keys are small enough, and drop others for them.

        Args:
            flat: the batch.
            candidates: their rows in it.
            index: their numbers.
            keys: their keys.
            strata: the stratum of each sample of the batch; None: all are in one.
        """
        n_bytes = flat.n_bytes.tolist()
        samples = zip(*[host_rows(leaf, candidates) for leaf in flat.leaves], strict=True)
        for sample, row, number, key in zip(samples, candidates.tolist(), index.tolist(), keys.tolist(), strict=True):
            stratum = None if strata is None else strata[row]
            if not self._draw.takes(stratum, key):
                continue
            place = self._rooms.put(flat, sample)
            self._draw.add(stratum, Entry(-key, number, n_bytes[row], place, flat.signature))

    def _strata(self, flat: FlatBatch, labels: Int[np.ndarray, " sample"] | None) -> list[Hashable] | None:
        """Return the stratum of each sample; None where all are in one."""
        if self.stratify is False:
            return None
        if self.stratify is True:
            if labels is None:
                raise InvalidArgument(
                    "stratify=True needs class labels in the batch, of the form (inputs, targets) or in a mapping with "
                    "a key 'labels', 'label', 'targets', 'target' or 'y'; otherwise, and for one-hot labels, pass a "
                    "callable, such as stratify=lambda batch: batch[1].argmax(1)"
                )
            return list(labels.tolist())
        with _validate.users_function("the stratify callable"):
            values = self.stratify(flat.batch)
        return list(_validate.one_per_sample(values, flat.size, "the stratify callable"))

    def close(self, processes: Processes = Processes()) -> "ProbeSet":  # noqa: B008 (frozen)
        """Return the probe set of all that was offered.

        Args:
            processes: those that each draw from a share of the stream. `max_samples` then holds for all of them
                together and `max_bytes` for each, and each gets those samples that it has seen.

        Raises:
            InvalidArgument: if no sample was offered.
        """
        mine = {stratum: [-entry.minus_key for entry in heap] for stratum, heap in self._draw.heaps.items()}
        shares = processes.gather((mine, self._draw.limits, self.seen))
        ranked: list[tuple[int, int]] = []
        for stratum in dict.fromkeys(stratum for share in shares for stratum in share[0]):
            # what one process has turned away for want of room, all others must: or the sample would be biased
            limit = min(share[1].get(stratum, NO_LIMIT) for share in shares)
            ranked += enumerate(sorted(key for share in shares for key in share[0].get(stratum, []) if key < limit))
        if not ranked:
            raise EmptyProbeError(
                "the stream of batches was empty: there is nothing to draw a probe set from"
                + (
                    ""
                    if self.classes is None
                    else f"; no sample has a label among classes={_validate.shown(self.classes.tolist())}"
                )
                + ("" if self.ignore_index is None else f"; samples with label {self.ignore_index} were ignored")
            )
        chosen = {key for _, key in sorted(ranked)[: self.max_samples]}
        members: dict[Hashable, list[Entry]] = {}
        for entry in self._draw.entries():
            if -entry.minus_key in chosen:
                members.setdefault(entry.signature, []).append(entry)
        stacks = tuple(
            Stack.of(
                self._rooms.of[signature],
                np.array([entry.place for entry in entries], np.int64),
                np.array([entry.number for entry in entries], np.int64),
            )
            for signature, entries in members.items()
        )
        seen = sum(share[2] for share in shares)
        return ProbeSet(stacks, self.largest_batch, seen, max(1, self.smallest_batch))


def _validated_classes(classes: Any) -> Int[np.ndarray, " class"] | None:
    """Return class numbers in order; None for None.

    Raises:
        InvalidArgument: if they are no collection of integers.
    """
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise InvalidArgument(f"classes must be a list of class numbers, got {_validate.shown(classes)}")
    numbers = classes.tolist() if hasattr(classes, "tolist") else classes
    return np.array(sorted(_validate.integer("each of classes", number) for number in numbers), np.int64)


@dataclass(frozen=True)
class ProbeSet:
    """Hold the samples on which everything is computed: a bounded, reproducible sample of a loader's batches.

    Draw one with `ProbeSet.from_batches`, and pass it to several studies in place of the loader, so that all of them
    see the same samples. Samples are in a pseudo-random order that depends on their numbers and the seed alone.

    Attributes:
        stacks: the samples, joined where their shapes agree.
        batch_size: number of samples in the largest batch of the stream.
        seen: length of the stream in samples, over all processes.
        smallest_batch: number of samples in the smallest batch of the stream. If it is more than one, there are models
            that cannot take one sample alone, and no batch holds one that is run.

    >>> loader = [(torch.arange(4.0) + 4 * start, torch.zeros(4)) for start in range(5)]
    >>> probe = ProbeSet.from_batches(loader, max_samples=6)
    >>> len(probe), probe.seen, probe.batch_size
    (6, 20, 4)
    >>> for (inputs, labels), index in probe.batches(3):
    ...     assert inputs.tolist() == index.tolist()  # the index holds positions in the stream
    """

    stacks: tuple[Stack, ...]
    batch_size: int
    seen: int
    smallest_batch: int = 1

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
        ignore_index: int | None = None,
    ) -> "ProbeSet":
        """Draw a probe set from a loader.

        Args:
            batches: any iterable of batches, with or without a length.
            max_samples: upper bound on the number of samples.
            max_bytes: upper bound on the bytes in their tensors.
            seed: another seed draws other samples.
            stratify: True to draw as many samples of each label; or a callable, `batch -> one integer or string per
                sample`, for other strata.
            classes: labels of the samples that may be drawn; None: all.
            ignore_index: label of samples that must not be drawn, as they have none; None: all have one.

        Raises:
            InvalidArgument: if there is no batch, a bound is no positive integer, the samples cannot be told apart, or
                labels are needed that the batches do not show.

        >>> probe = ProbeSet.from_batches([(torch.zeros(8, 2), torch.arange(8))] * 10, max_samples=16)
        >>> len(probe), probe.seen
        (16, 80)
        """
        sampler = ProbeSampler(
            max_samples, max_bytes, seed, stratify=stratify, classes=classes, ignore_index=ignore_index
        )
        for batch in batches:
            sampler.add(batch)
        return sampler.close()

    @classmethod
    def of_samples(cls, batches: Iterable[Any], numbers: Int[np.ndarray, " sample"], *, seed: int = 0) -> "ProbeSet":
        """Return those samples of a loader that have given numbers in its stream.

        Args:
            batches: the loader.
            numbers: positions in the stream, counted from 0 over all batches.
            seed: of the samples' order.

        Raises:
            InvalidArgument: if none of the samples is there.
        """
        sampler, seen = ProbeSampler(max(1, len(numbers)), 2**62, seed), 0
        for batch in batches:
            flat = read_batch(batch)
            here = np.arange(seen, seen + flat.size, dtype=np.int64)
            sampler.add(flat, np.where(np.isin(here, numbers), here, -1))
            seen += flat.size
        return sampler.close()

    def __len__(self) -> int:
        return sum(len(stack.index) for stack in self.stacks)

    @property
    def index(self) -> Int[np.ndarray, " sample"]:
        """Return each sample's number in the stream, in the order in which `batches` yields the samples."""
        return np.concatenate([np.zeros(0, np.int64), *[stack.index for stack in self.stacks]])

    @property
    def fingerprint(self) -> Int[np.ndarray, " sample"]:
        """Return a checksum of each sample's content, in the order in which `batches` yields the samples."""
        return np.concatenate([np.zeros(0, np.int64), *[stack.fingerprint for stack in self.stacks]])

    def batches(
        self, batch_size: int | None = None, *, copies: bool = False
    ) -> Iterator[tuple[Any, Int[np.ndarray, " sample"]]]:
        """Yield batches on the host, structured as the loader's, and the numbers of their samples.

        The batches are copies that belong to the caller: whatever is done to their tensors, the probe set stays the
        same. Only objects in lists are shared with it.

        Args:
            batch_size: upper bound on the number of samples in a batch; None: the size of the loader's batches.
            copies: whether a batch of one sample holds a copy of it as well, which has no number, if the loader had no
                batch of one.

        Raises:
            InvalidArgument: if `batch_size` is no positive integer.
        """
        step = self._step(batch_size)
        for stack in self.stacks:
            n_samples = len(stack.index)
            stops = [*range(step, n_samples, step), n_samples]
            if step > 2 and n_samples > step and n_samples % step == 1:
                stops[-2] -= 1  # so that the last batch holds two samples: many models cannot take one
            for start, stop in zip([0, *stops], stops, strict=False):
                alone = copies and stop - start == 1 and self.copied(step)
                batch = stack.rows_batch(np.array([start, start])) if alone else stack.batch(start, stop)
                yield batch, stack.index[start:stop]

    def copied(self, batch_size: int | None = None) -> bool:
        """Tell whether a sample that is alone in a batch comes with a copy: the loader had no batch of one.

        Args:
            batch_size: as for `batches`; passes of one sample that were asked for hold one.
        """
        return self.smallest_batch > 1 and self._step(batch_size) > 1

    def samples(self) -> Iterator[tuple[Any, int]]:
        """Yield what the batches hold of each single sample, without the sample axis, and its number."""
        for stack in self.stacks:
            for sample, number in enumerate(stack.index.tolist()):
                yield stack.sample(sample), number

    def count_batches(self, batch_size: int | None = None) -> int:
        """Return the number of batches that `batches` yields."""
        step = self._step(batch_size)
        return sum(-(-len(stack.index) // step) for stack in self.stacks)

    def select(self, index: Int[np.ndarray, " chosen"]) -> "ProbeSet":
        """Return the probe set of those samples whose numbers are in `index`; it shares their memory."""
        chosen = [(stack, np.isin(stack.index, index)) for stack in self.stacks]
        stacks = tuple(stack.select(mask) for stack, mask in chosen if mask.any())
        return ProbeSet(stacks, self.batch_size, self.seen, self.smallest_batch)

    def _step(self, batch_size: int | None) -> int:
        return self.batch_size if batch_size is None else _validate.integer("batch_size", batch_size, least=1)
