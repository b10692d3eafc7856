"""Halves: deal the samples of each cluster to two halves."""

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import Int

from lightning_neuroimp.batches.fields import labels_of
from lightning_neuroimp.batches.numbers import sample_keys
from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Gather
from lightning_neuroimp.batches.structure import values_to_ids
from lightning_neuroimp.capture.sample_table import SampleTable
from lightning_neuroimp.clusters.classes import ClassClusters


class Halves:
    """Deals samples to two halves of each cluster, stratified by correctness, in the order in which they come.

    Where they come in the order of fixed pseudo-random keys, as a probe set of one shape does, the half that a sample
    falls into depends on nothing but its cluster, its correctness and those keys.
    """

    def __init__(self) -> None:
        self._dealt: dict[tuple[int, bool], int] = {}

    def deal(self, cluster: Int[np.ndarray, " sample"], correct: np.ndarray) -> Int[np.ndarray, " sample"]:
        """The half of each sample; -1 for samples in no cluster."""
        half = np.full(len(cluster), -1, np.int64)
        for row, (key, right) in enumerate(zip(cluster.tolist(), correct.tolist(), strict=True)):
            if key >= 0:
                # the two strata start in different halves, so that both rest samples do not fall into the same one
                dealt = self._dealt.setdefault((key, right), 0 if right else 1)
                half[row] = dealt % 2
                self._dealt[key, right] = dealt + 1
        return half


def assign_groups(
    groups: Callable[..., Any],
    probe: ProbeSet,
    batch_size: int | None,
    gather: Gather,
    cluster: Int[np.ndarray, " local"] | None = None,
) -> tuple[Int[np.ndarray, " local"], dict[int, int]]:
    """A half for each sample of a probe set, the same for all samples of a group; and every sample's group's number.

    Cells go one by one, the largest first, to the half in which their clusters have fewer samples so far.

    Args:
        groups: `batch -> one integer or string per sample`.
        probe: of this process.
        batch_size: of the batches.
        gather: collects from processes.
        cluster: of each sample, as far as it is known; None: by label where the batches show them.

    Raises:
        ValueError: if the callable does not return one integer or string per sample.
    """
    mine: list[Any] = []
    strata: list[int] = []
    numbers: list[int] = []
    for batch, index in probe.batches(batch_size):
        mine += values_to_ids(groups(batch), len(index), "the groups callable")
        numbers += index.tolist()
        labels = labels_of(batch)
        strata += [-1] * len(index) if labels is None or len(labels) != len(index) else labels.tolist()
    if cluster is not None:
        strata = cluster.tolist()
    members: dict[Any, Counter[int]] = {}
    group_of: dict[int, Any] = {}
    for share in gather((mine, strata, numbers)):
        for value, stratum, number in zip(*share, strict=True):
            members.setdefault(value, Counter())[stratum] += 1
            group_of[number] = value
    half: dict[Any, int] = {}
    filled: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for value in sorted(members, key=lambda value: (-members[value].total(), str(value))):
        # how much less even its clusters get by going to the second half rather than to the first one
        tilt = sum(count * (filled[1][stratum] - filled[0][stratum]) for stratum, count in members[value].items())
        half[value] = int(tilt < 0 or (tilt == 0 and filled[1].total() < filled[0].total()))
        filled[half[value]].update(members[value])
    place = {value: number for number, value in enumerate(half)}
    return np.array([half[value] for value in mine], np.int64), {key: place[one] for key, one in group_of.items()}


def deal_by_keys(
    survey: SampleTable,
    clusters: Int[np.ndarray, " local"] | ClassClusters,
    probe: ProbeSet,
    classes: Collection[int] | None,
    seed: int,
    gather: Gather,
) -> Int[np.ndarray, " local"]:
    """A half for each sample, dealt in the order of fixed keys, whatever their shapes and processes are."""
    if isinstance(clusters, ClassClusters):
        cluster = clusters.of(survey.label, survey.predicted)
    else:
        shares = gather((probe.index.tolist(), clusters.tolist()))
        of = {sample: key for share in shares for sample, key in zip(*share, strict=True)}
        cluster = np.array([of[sample] for sample in survey.index.tolist()], np.int64)
    counted = survey.finite if classes is None else survey.finite & np.isin(survey.label, list(classes))
    order = np.argsort(sample_keys(survey.index, seed), kind="stable")
    half = Halves().deal(np.where(counted, cluster, -1)[order], survey.correct[order])
    dealt = dict(zip(survey.index[order].tolist(), half.tolist(), strict=True))
    return np.array([dealt[sample] for sample in probe.index.tolist()], np.int64)
