"""Draw samples by their keys: the smallest ones of each stratum, within bounds on number and bytes."""

from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from typing import NamedTuple

NO_LIMIT = 2**64
"""Above all keys."""


class Entry(NamedTuple):
    """Describe a drawn sample; entries are ordered as a heap needs it whose top has the largest key.

    Attributes:
        minus_key: the key, negative.
        number: of the sample in the stream.
        n_bytes: its size.
        place: where it is stored.
        signature: of the samples that it is stored with, and can be joined with.
    """

    minus_key: int
    number: int
    n_bytes: int
    place: int
    signature: Hashable


class Draw:
    """Keep the samples with the smallest keys, as many of each stratum as there are, or as have room.

    Args:
        max_samples: upper bound on their number.
        max_bytes: upper bound on their bytes.
        release: is given the signature and place of each sample that is dropped.

    Attributes:
        heaps: the kept samples of each stratum, the largest key on top.
        limits: key of each stratum from which on all are turned away; none: no sample has been so far.
        count: number of the kept samples.
        n_bytes: bytes of the kept samples.
    """

    def __init__(self, max_samples: int, max_bytes: int, release: Callable[[Hashable, int], None]) -> None:
        self._max_samples, self._max_bytes, self._release = max_samples, max_bytes, release
        self.heaps: dict[Hashable, list[Entry]] = {}
        self.limits: dict[Hashable, int] = {}
        self.count = self.n_bytes = 0

    def takes(self, stratum: Hashable, key: int) -> bool:
        """Tell whether a new sample is drawn, and drop another one for it where there is no room.

        Args:
            stratum: of the new sample.
            key: of the new sample.
        """
        if key >= self.limits.get(stratum, NO_LIMIT):
            return False
        if self.count < self._max_samples:
            return True
        fullest = self._fullest(stratum, key)
        if fullest == stratum and (stratum not in self.heaps or key >= -self.heaps[stratum][0].minus_key):
            self.limits[stratum] = key
            return False
        self._drop(fullest)
        return True

    def add(self, stratum: Hashable, entry: Entry) -> None:
        """Add a sample that `takes` has found to be drawn, and drop those for whose bytes there is no room then."""
        heappush(self.heaps.setdefault(stratum, []), entry)
        self.n_bytes, self.count = self.n_bytes + entry.n_bytes, self.count + 1
        while self.n_bytes > self._max_bytes:
            self._drop(self._fullest())
        if self.count == self._max_samples and len(self.heaps) == 1:
            self.limits[stratum] = -self.heaps[stratum][0].minus_key + 1

    def entries(self) -> list[Entry]:
        """Return all drawn samples, the smallest key first."""
        return sorted((entry for heap in self.heaps.values() for entry in heap), key=lambda entry: -entry.minus_key)

    def _fullest(self, joined: Hashable = None, key: int | None = None) -> Hashable:
        """Return the stratum with the most samples; of several with as many the one with the largest key.

        Args:
            joined: stratum of a new sample, which counts.
            key: of the new sample; None: there is no new one.
        """

        def fullness(stratum: Hashable) -> tuple[int, int]:
            heap = self.heaps.get(stratum, [])
            largest = -heap[0].minus_key if heap else 0
            if key is None or stratum != joined:
                return len(heap), largest
            return len(heap) + 1, max(largest, key)

        return max({*self.heaps, joined} if key is not None else self.heaps, key=fullness)

    def _drop(self, stratum: Hashable) -> None:
        """Drop the sample with the largest key of a stratum."""
        entry = heappop(self.heaps[stratum])
        if not self.heaps[stratum]:
            del self.heaps[stratum]
        self.limits[stratum] = -entry.minus_key
        self.n_bytes, self.count = self.n_bytes - entry.n_bytes, self.count - 1
        self._release(entry.signature, entry.place)
