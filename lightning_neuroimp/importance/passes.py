"""The passes over a probe set: a survey, where something must be known first, and the importance pass."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Gather
from lightning_neuroimp.batches.progress import Progress, Tick
from lightning_neuroimp.batches.structure import to_device, to_numpy
from lightning_neuroimp.capture.cache import ActivationCache
from lightning_neuroimp.capture.donors import Donors, donate
from lightning_neuroimp.capture.embedding import EmbeddingReader
from lightning_neuroimp.capture.forward import ForwardFn, Prediction, forward_logits, model_device
from lightning_neuroimp.capture.nonlinearity import Nonlinearity, followed_by
from lightning_neuroimp.capture.positions import (
    along_axis,
    along_positions,
    chosen_positions,
    count_positions,
    sum_positions,
    token_axis,
)
from lightning_neuroimp.capture.removal import BatchRemoval, baseline_of
from lightning_neuroimp.capture.sample_table import SampleTable
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.suffix.suffix import Outcome
from lightning_neuroimp.capture.targets import TargetFn, explained_classes, margin, margin_slope, target_values
from lightning_neuroimp.clusters.classes import ClassClusters, check_number
from lightning_neuroimp.clusters.halves import Halves
from lightning_neuroimp.importance.activity import ActivityMoments
from lightning_neuroimp.importance.attributions.base import Attribution
from lightning_neuroimp.importance.attributions.first_order import gradient_x_activation
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch
from lightning_neuroimp.importance.attributions.suffix_target import SuffixTarget
from lightning_neuroimp.importance.moments import CellMoments, Cells
from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.site import Removal, Site


class Passes:
    """The passes over a probe set."""

    def __init__(
        self,
        model: nn.Module,
        probe: ProbeSet,
        sites: Sequence[Site],
        forward_fn: ForwardFn | None,
        batch_size: int | None,
        gather: Gather,
        progress: Progress,
        target_class: str | int = "label",
        donors: Donors | None = None,
    ) -> None:
        if batch_size is not None and (not isinstance(batch_size, Integral) or batch_size < 1):
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size}")
        self.model, self.probe, self.forward_fn = model, probe, forward_fn
        self.batch_size, self.gather, self.progress = batch_size, gather, progress
        self.target_class, self.donors = target_class, donors
        self.sites = {str(site): site for site in sites}
        self.skipped: dict[str, str] = {}
        self.remarks: dict[str, str] = {}  # per site, on padding
        self.seconds: dict[str, float] = {}
        self._n_classes: int | None = None

    @contextmanager
    def _timed(self, name: str, description: str) -> Iterator[Tick]:
        start = time.perf_counter()
        with self.progress(description, self.probe.count_batches(self.batch_size)) as tick:
            yield tick
        self.seconds[name] = time.perf_counter() - start

    def _passes(
        self, watch: ActivationCache, tap: EmbeddingReader, samples: SampleTable, tick: Tick, *, required: bool
    ) -> Iterator[tuple[Any, Prediction, Tensor, slice]]:
        """One forward pass per batch, with sites watched and the embedding, target and correctness noted.

        Yields the batch, what the model says, the explained classes, and which samples of the probe set these are.
        """
        device = model_device(self.model)
        start, fingerprint = 0, self.probe.fingerprint
        with ExitStack() as stack:
            stack.enter_context(watch.attach(self.model))
            stack.enter_context(tap.attach())
            for host_batch, index in self.probe.batches(self.batch_size):
                batch = to_device(host_batch, device)
                with watch.record(self.model, len(index)):
                    said = forward_logits(self.model, batch, self.forward_fn)
                logits = said.logits
                if watch.sites and len(watch.skipped) == len(watch.sites):
                    reason = next(iter(watch.skipped.values()))
                    raise ValueError(f"none of the layers can be explained; for instance, {reason}")
                if len(logits) != len(index):
                    raise ValueError(
                        f"the model gave {len(logits)} rows of logits for a batch of {len(index)} samples; each sample "
                        "must have one"
                    )
                self._check_classes(logits)
                finite = logits.detach().isfinite().all(1)
                predicted = logits.detach().argmax(1)
                classes = explained_classes(logits, said.labels, self.target_class)
                samples.n_classes = logits.shape[1]
                samples.index.append(index)
                samples.fingerprint.append(fingerprint[start : start + len(index)])
                samples.label.append(to_numpy(said.labels))
                samples.predicted.append(to_numpy(predicted))
                samples.target.append(to_numpy(classes))
                samples.correct.append(to_numpy((predicted == classes) & finite))
                samples.finite.append(to_numpy(finite))
                samples.embedding.append(to_numpy(tap.read(logits, said.tokens, required=required)))
                yield host_batch, said, classes, slice(start, start + len(index))
                start += len(index)
                tick()
        for name, reason in watch.skipped.items():
            self.skipped.setdefault(name, reason)

    def survey(
        self, tap: EmbeddingReader, *, required: bool, averaged: bool
    ) -> tuple[SampleTable, dict[str, np.ndarray]]:
        """The forward pass before: embeddings, predictions, and the mean activation of each channel of each site.

        Args:
            tap: of the embeddings.
            required: whether there must be embeddings.
            averaged: whether means are asked for.
        """
        samples = SampleTable()
        watch = ActivationCache(list(self.sites.values()) if averaged else [], gradients=False)
        totals: dict[str, np.ndarray] = {}
        counts: dict[str, int] = {}
        with self._timed("survey", "survey") as tick, torch.no_grad():
            for _, said, _, _ in self._passes(watch, tap, samples, tick, required=required):
                for name, output in watch.outputs.items():
                    axis = watch.axes[name]
                    positions = chosen_positions(self.sites[name], output, axis, said.tokens)
                    value = output.double() if output.device.type != "mps" else output.float()
                    counted = value if positions is None else value.where(along_positions(positions, axis), 0)
                    # a sample that is not finite must not spoil the mean of all others
                    finite = counted.flatten(1).isfinite().all(1) & said.logits.isfinite().all(1)
                    total = to_numpy(sum_positions(counted[finite], axis).sum(0)).astype(np.float64)
                    totals[name] = totals.get(name, 0.0) + total
                    counts[name] = counts.get(name, 0) + int(count_positions(output, axis, positions)[finite].sum())
                samples.cluster.append(np.full(len(said.logits), -1, np.int64))
                samples.half.append(np.full(len(said.logits), -1, np.int64))
        gathered = samples.gathered(self.gather)
        gathered.check()
        means: dict[str, np.ndarray] = {}
        shares = self.gather((totals, counts))
        for name in dict.fromkeys(name for share in shares for name in share[0]):
            total = np.sum([share[0][name] for share in shares if name in share[0]], axis=0)
            count = sum(share[1].get(name, 0) for share in shares)
            if not count:
                raise FloatingPointError(f"layer {name!r} has no sample with finite activations: it has no mean")
            means[name] = total / count
        return gathered, means

    def score(
        self,
        tap: EmbeddingReader,
        assigned: Int[np.ndarray, " local"] | ClassClusters,
        attributions: Sequence[Attribution],
        target: TargetFn,
        removal_of: Callable[[str, int, int], Removal],
        seed: int,
        *,
        fixed_halves: Int[np.ndarray, " local"] | None = None,
        classes: Sequence[int] | None = None,
    ) -> "Scores":
        """The importance pass.

        Args:
            tap: of the embeddings.
            assigned: each sample's cluster, or how it follows from its class.
            attributions: the scores.
            target: the scalar that is explained.
            removal_of: is given a site's name, channel axis and number of channels.
            seed: of random scores.
            fixed_halves: each sample's half; None: they are dealt as the samples come.
            classes: only samples with these labels are in clusters; None: all.
        """
        samples, halves = SampleTable(), Halves()
        gradients = any(attribution.needs_gradient for attribution in attributions)
        watch = ActivationCache(list(self.sites.values()), gradients=gradients)
        groups = Cells()
        moments = {(name, one.name): CellMoments(groups) for name in self.sites for one in attributions}
        activities: dict[str, ActivityMoments] = {}
        replayers: dict[str, SuffixRecorder] = {}
        behind: dict[str, Nonlinearity | None] = {}
        found: set[int] = set()
        with self._timed("importance", "importance") as tick, torch.set_grad_enabled(gradients):
            for host_batch, said, explained, rows in self._passes(watch, tap, samples, tick, required=False):
                label, index = samples.label[-1], samples.index[-1]
                if isinstance(assigned, ClassClusters):
                    cluster = assigned.of(label, samples.predicted[-1])
                else:
                    cluster = assigned[rows]
                counted = samples.finite[-1] if classes is None else samples.finite[-1] & np.isin(label, classes)
                cluster = np.where(counted, cluster, -1)
                found.update(np.unique(cluster[cluster >= 0]).tolist())
                if isinstance(assigned, ClassClusters):
                    check_number(len(found), so_far=True)
                if fixed_halves is None:
                    half = halves.deal(cluster, samples.correct[-1])
                else:
                    half = np.where(cluster < 0, -1, np.maximum(fixed_halves[rows], 0))
                samples.cluster.append(cluster)
                samples.half.append(half)
                group = groups.of(cluster, half)
                outputs = dict(watch.outputs)
                slopes, factor = self._gradients(target, said, explained, outputs, behind) if gradients else ({}, None)
                placed = self._placed(watch, outputs, said, index)
                for name, output in outputs.items():
                    axis = watch.axes[name]
                    if name not in replayers:
                        removal = removal_of(name, axis, output.shape[axis])
                        replayers[name] = SuffixRecorder(self.model, self._forward, removal, donors=self.donors)
                        activities[name] = ActivityMoments(axis, removal.where.group, behind.get(name))
                    suffix = SuffixTarget(replayers[name], host_batch, target, index)
                    batch = _site_batch(
                        replayers[name].removal, output, slopes.get(name), placed[name], seed, index, suffix
                    )
                    activities[name].add(batch.activation, batch.positions, index, batch.deviation)
                    deviation = batch.sum_positions(batch.deviation.abs())
                    first_order = gradient_x_activation(batch) if gradients else None
                    if factor is not None:
                        along = along_axis(factor, 0, output.ndim)
                        assert batch.gradient is not None
                        batch = replace(batch, gradient=batch.gradient * along.to(batch.gradient.dtype))
                    for attribution in attributions:
                        same = factor is None and attribution.score is gradient_x_activation
                        scores = attribution(batch).detach() if first_order is None or not same else first_order
                        moments[name, attribution.name].add(scores, deviation, group, first_order)
        return self._gathered(samples, moments, replayers, activities, removal_of)

    def _gathered(
        self,
        samples: SampleTable,
        moments: dict[tuple[str, str], CellMoments],
        replayers: dict[str, SuffixRecorder],
        activities: dict[str, ActivityMoments],
        removal_of: Callable[[str, int, int], Removal],
    ) -> "Scores":
        """With what other processes found."""
        mine = {
            name: (replayer.removal.axis, len(replayer.removal.baseline_value)) for name, replayer in replayers.items()
        }
        known: dict[str, tuple[int, int]] = {}
        for share in self.gather(mine):
            known.update(share)
        removals = {name: removal_of(name, *known[name]) for name in self.sites if name in known}
        seen = []
        for name, removal in removals.items():
            moment = activities.get(name) or ActivityMoments(removal.axis, removal.where.group)
            activity = moment.activity(name, self.gather)
            seen += [] if activity is None else [activity]
        return Scores(samples.gathered(self.gather), moments, removals, tuple(seen))

    def _placed(
        self, watch: ActivationCache, outputs: dict[str, Tensor], said: Prediction, index: Int[np.ndarray, " sample"]
    ) -> dict[str, BatchRemoval]:
        """At which positions of each site neurons are removed, and what other samples donate, by one pass more."""
        positions = {
            name: chosen_positions(self.sites[name], output, watch.axes[name], said.tokens)
            for name, output in outputs.items()
        }
        for name, output in outputs.items():
            self._remark(name, output, watch.axes[name], positions[name], said.tokens)
        if self.donors is None:
            return {name: BatchRemoval(one) for name, one in positions.items()}
        given: dict[str, list[Any]] = {name: [] for name in outputs}
        theirs = ActivationCache([self.sites[name] for name in outputs], gradients=False)
        with torch.no_grad(), theirs.attach(self.model):
            for batch, places in self.donors.batches(index):
                with theirs.record(self.model, len(places)):
                    other = forward_logits(self.model, to_device(batch, model_device(self.model)), self.forward_fn)
                for name, output in theirs.outputs.items():
                    counted = chosen_positions(self.sites[name], output, watch.axes[name], other.tokens)
                    given[name].append((output, counted, places))
            return {
                name: BatchRemoval(
                    positions[name], donate(output.detach(), watch.axes[name], positions[name], given[name])
                )
                for name, output in outputs.items()
            }

    def _remark(self, name: str, output: Tensor, axis: int, positions: Tensor | None, tokens: Tensor | None) -> None:
        """What a reader should know about padding at a site."""
        where, site = token_axis(output.ndim, axis), self.sites[name]
        if tokens is not None and where is not None and output.shape[where] != tokens.shape[1] and not tokens.all():
            self.remarks.setdefault(
                name,
                f"the mask has {tokens.shape[1]} tokens and the layer {output.shape[where]} positions, so that padding "
                "counts there; forward_fn may return (logits, targets, tokens) with a mask of the layer's length",
            )
        if positions is not None and site.position is not None and not positions.any(1).all():
            self.remarks.setdefault(
                name, f"some samples have no position {site.position}; nothing is scored or removed there"
            )

    def _forward(self, batch: Any) -> Outcome:
        """What the model says of a batch that has been checked before."""
        said = forward_logits(self.model, batch, self.forward_fn, check=False)
        self._check_classes(said.logits)
        return Outcome(said.logits, explained_classes(said.logits, said.labels, self.target_class), said.tokens)

    def _check_classes(self, logits: Tensor) -> None:
        if self._n_classes is None:
            self._n_classes = logits.shape[1]
        if logits.shape[1] != self._n_classes:
            raise ValueError(
                f"the model gave {self._n_classes} logits for each sample first, and {logits.shape[1]} later: they "
                "must be as many each time that it is called"
            )

    def _gradients(
        self,
        target: TargetFn,
        said: Prediction,
        classes: Tensor,
        outputs: dict[str, Tensor],
        behind: dict[str, Nonlinearity | None],
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Derivative of each sample's own target with respect to each output (their sum's: samples are independent).

        For targets that are functions of the margin it is the margin's, and the second value is what to multiply each
        sample's with. What follows each site is noted in `behind` when it is first seen.
        """
        logits = said.logits
        factor = margin_slope(target, logits.detach().to(torch.promote_types(logits.dtype, torch.float32)), classes)
        total = target_values(target if factor is None else margin, logits, classes).sum()
        if not total.requires_grad:
            raise ValueError(
                "the model's outputs carry no gradient to any of the layers: its forward pass, or forward_fn, detaches "
                "them or runs under torch.no_grad(); use attribution='activation', or let it build its graph"
            )
        if not behind.keys() >= outputs.keys():
            behind |= followed_by(total, outputs)
        slopes = torch.autograd.grad(total, list(outputs.values()), allow_unused=True)
        return {
            name: torch.zeros_like(output) if slope is None else slope
            for (name, output), slope in zip(outputs.items(), slopes, strict=True)
        }, None if target is margin else factor


@dataclass(frozen=True)
class Scores:
    """What the importance pass has found.

    Attributes:
        samples: of all processes.
        moments: per site and attribution, of this process.
        removals: per site.
        activities: what the activations are like.
    """

    samples: SampleTable
    moments: dict[tuple[str, str], CellMoments]
    removals: dict[str, Removal]
    activities: tuple[SiteActivity, ...]


def _site_batch(
    removal: Removal,
    output: Tensor,
    slope: Tensor | None,
    placed: BatchRemoval,
    seed: int,
    index: Int[np.ndarray, " sample"],
    suffix: SuffixTarget,
) -> SiteBatch:
    dtype = torch.promote_types(output.dtype, torch.float32)  # products of half precisions would lose digits
    activation = output.detach().to(dtype)
    gradient = None if slope is None else slope.to(dtype)
    if gradient is not None and placed.positions is not None:
        gradient = gradient.where(along_positions(placed.positions, removal.axis), 0)
    return SiteBatch(
        removal.site,
        removal.axis,
        activation,
        gradient,
        baseline_of(removal, activation, placed).to(dtype),
        seed,
        index,
        suffix,
        placed.positions,
        removal.where.group,
    )
