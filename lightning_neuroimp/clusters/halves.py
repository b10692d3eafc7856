"""Deal the samples of each cluster to two halves: neurons are ranked on one and ablated on the other."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.fields import labels_of
from lightning_neuroimp.batches.numbers import are_copies, sample_keys
from lightning_neuroimp.capture.subject import Subject


class Halves:
    """Deal samples to two halves of each cluster, stratified by correctness, in the order in which they come.

    If they come in the order of fixed pseudo-random keys, as from a probe set of one shape, the half of a sample
    depends on nothing but its cluster, its correctness and those keys. Copies of a sample go to the half of the first
    one, as neurons must not be tested on samples that they were ranked on.

    Args:
        together: whether samples of the same content are copies, which go to one half.
    """

    def __init__(self, together: bool = True) -> None:
        self._together = together
        self._dealt: dict[tuple[int, bool], int] = {}
        self._half_of: dict[int, int] = {}  # by content

    def deal(
        self,
        cluster: Int[np.ndarray, " sample"],
        correct: Bool[np.ndarray, " sample"],
        fingerprint: Int[np.ndarray, " sample"],
    ) -> Int[np.ndarray, " sample"]:
        """Return the half of each sample; -1 for samples in no cluster.

        Args:
            cluster: cluster of each sample; -1: in none.
            correct: whether the model's prediction is right.
            fingerprint: checksum of each sample's content.
        """
        half = np.full(len(cluster), -1, np.int64)
        columns = cluster.tolist(), correct.tolist(), fingerprint.tolist()
        for row, (key, right, content) in enumerate(zip(*columns, strict=True)):
            if key < 0:
                continue
            if content not in self._half_of or not self._together:
                # the two strata start in different halves, so that their odd samples do not fall into the same one
                dealt = self._dealt.setdefault((key, right), 0 if right else 1)
                self._half_of[content] = dealt % 2
                self._dealt[key, right] = dealt + 1
            half[row] = self._half_of[content]
        return half


def deal_by_keys(
    index: Int[np.ndarray, " sample"],
    cluster: Int[np.ndarray, " sample"],
    correct: Bool[np.ndarray, " sample"],
    fingerprint: Int[np.ndarray, " sample"],
    seed: int,
) -> Int[np.ndarray, " sample"]:
    """Deal samples to halves in the order of fixed keys, whatever their shapes and processes are.

    Args:
        index: sample numbers.
        cluster: cluster of each sample; -1: in none.
        correct: whether the model's prediction is right.
        fingerprint: checksum of each sample's content.
        seed: of the keys.

    Returns:
        The half of each sample; -1 for samples in no cluster.
    """
    order = np.argsort(sample_keys(index, seed), kind="stable")
    half = np.full(len(index), -1, np.int64)
    half[order] = Halves(are_copies(fingerprint)).deal(cluster[order], correct[order], fingerprint[order])
    return half


@dataclass(frozen=True, eq=False)
class SampleGroups:
    """Hold the groups of samples that must not be divided between halves.

    Attributes:
        half: half of each sample of this process, the same for all samples of a group.
        index: sample numbers of all processes.
        number: number of the group of each of these samples.
    """

    half: Int[np.ndarray, " local"]
    index: Int[np.ndarray, " sample"]
    number: Int[np.ndarray, " sample"]


def assign_groups(
    groups: Callable[..., Any], subject: Subject, cluster: Int[np.ndarray, " local"] | None = None
) -> SampleGroups:
    """Assign whole groups of samples to halves, so that each cluster is balanced.

    Groups are assigned one by one, the largest first, to the half in which their clusters have fewer samples so far.

    Args:
        groups: `batch -> one integer or string per sample`.
        subject: the samples of this process.
        cluster: cluster of each sample of this process; None: not known yet, and labels are balanced instead, if the
            batches show them.

    Raises:
        InvalidArgument: if the callable fails, or does not return one integer or string per sample.
    """
    values: list[Any] = []
    strata: list[int] = []
    numbers: list[int] = []
    for batch, index in subject.batches():
        with _validate.users_function("the groups callable"):
            found = groups(batch)
        values += _validate.one_per_sample(found, len(index), "the groups callable")
        numbers += index.tolist()
        labels = labels_of(batch)
        strata += [-1] * len(index) if labels is None or len(labels) != len(index) else labels.tolist()
    if cluster is not None:
        strata = cluster.tolist()
    rows = subject.processes.chain(zip(values, strata, numbers, strict=True))
    members: dict[Any, Counter[int]] = {}
    for value, stratum, _ in rows:
        members.setdefault(value, Counter())[stratum] += 1
    half = _balanced_halves(members)
    place = {value: number for number, value in enumerate(half)}
    return SampleGroups(
        np.array([half[value] for value in values], np.int64),
        np.array([number for _, _, number in rows], np.int64),
        np.array([place[value] for value, _, _ in rows], np.int64),
    )


def _balanced_halves(members: dict[Any, Counter[int]]) -> dict[Any, int]:
    """Assign groups to halves so that each cluster is balanced.

    Args:
        members: number of samples in each cluster, by the groups' values.

    Returns:
        The half of each group, by its value.
    """
    half: dict[Any, int] = {}
    filled: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for value in sorted(members, key=lambda value: (-members[value].total(), str(value))):
        # how much less balanced its clusters become in the second half than in the first one
        tilt = sum(count * (filled[1][stratum] - filled[0][stratum]) for stratum, count in members[value].items())
        half[value] = int(tilt < 0 or (tilt == 0 and filled[1].total() < filled[0].total()))
        filled[half[value]].update(members[value])
    return half
