"""The passes over a probe set: a survey, where something must be known first, and the importance pass."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from lightning_neuroimp.attribution import Attribution, SiteBatch
from lightning_neuroimp.attribution.suffix import Suffix
from lightning_neuroimp.batches import ForwardFn, forward_logits, model_device, to_device, to_numpy
from lightning_neuroimp.clusters import EmbeddingTap, check_number
from lightning_neuroimp.importance import ClusterMoments, Groups, Halves
from lightning_neuroimp.probe import Gather, ProbeSet
from lightning_neuroimp.progress import Progress, Tick
from lightning_neuroimp.removal import TargetFn, target_values
from lightning_neuroimp.replay import Replayer
from lightning_neuroimp.results import Removal
from lightning_neuroimp.sites import Site, n_positions, sum_positions
from lightning_neuroimp.watch import Watch


@dataclass
class Samples:
    """What is known of each sample; one entry per batch until it is gathered."""

    index: Any = field(default_factory=list)
    fingerprint: Any = field(default_factory=list)
    target: Any = field(default_factory=list)
    correct: Any = field(default_factory=list)
    finite: Any = field(default_factory=list)
    cluster: Any = field(default_factory=list)
    half: Any = field(default_factory=list)
    embedding: Any = field(default_factory=list)
    n_classes: int = 0

    def gathered(self, gather: Gather) -> "Samples":
        """All processes' samples, in the order of the stream."""
        names = ("index", "fingerprint", "target", "correct", "finite", "cluster", "half", "embedding")
        mine = [np.concatenate(getattr(self, name)) if getattr(self, name) else None for name in names]
        shares = [share for share in gather((mine, self.n_classes)) if share[0][0] is not None]
        columns = [np.concatenate([share[0][column] for share in shares]) for column in range(len(names))]
        order = np.argsort(columns[0], kind="stable")
        values: dict[str, Any] = {name: column[order] for name, column in zip(names, columns, strict=True)}
        return Samples(**values, n_classes=max(share[1] for share in shares))

    def check(self) -> None:
        """Refuse a model that is broken everywhere."""
        if not self.finite.any():
            raise FloatingPointError(
                f"the model's outputs are not finite for any of the {len(self.finite)} probe samples: there is nothing "
                "to explain; has the training diverged?"
            )


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
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.probe, self.forward_fn = model, probe, forward_fn
        self.batch_size, self.gather, self.progress = batch_size, gather, progress
        self.sites = {site.name: site for site in sites}
        self.skipped: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _timed(self, name: str, description: str) -> Iterator[Tick]:
        start = time.perf_counter()
        with self.progress(description, self.probe.count_batches(self.batch_size)) as tick:
            yield tick
        self.seconds[name] = time.perf_counter() - start

    def _passes(
        self, watch: Watch, tap: EmbeddingTap, samples: Samples, tick: Tick, *, required: bool
    ) -> Iterator[tuple[Any, Tensor, Tensor, slice]]:
        """One forward pass per batch, with sites watched and the embedding, target and correctness noted."""
        device = model_device(self.model)
        start, fingerprint = 0, self.probe.fingerprint
        with ExitStack() as stack:
            stack.enter_context(watch.attach(self.model))
            stack.enter_context(tap.attach())
            for host_batch, index in self.probe.batches(self.batch_size):
                batch = to_device(host_batch, device)
                with watch.record(self.model, len(index)):
                    logits, classes = forward_logits(self.model, batch, self.forward_fn)
                if len(watch.skipped) == len(self.sites):
                    reason = next(iter(watch.skipped.values()))
                    raise ValueError(f"none of the layers can be explained; for instance, {reason}")
                if len(logits) != len(index):
                    raise ValueError(
                        f"the model gave {len(logits)} rows of logits for a batch of {len(index)} samples; each sample "
                        "must have one"
                    )
                finite = logits.detach().isfinite().all(1)
                samples.n_classes = logits.shape[1]
                samples.index.append(index)
                samples.fingerprint.append(fingerprint[start : start + len(index)])
                samples.target.append(to_numpy(classes))
                samples.correct.append(to_numpy((logits.detach().argmax(1) == classes) & finite))
                samples.finite.append(to_numpy(finite))
                samples.embedding.append(to_numpy(tap.read(logits, required=required)))
                yield host_batch, logits, classes, slice(start, start + len(index))
                start += len(index)
                tick()
        for name, reason in watch.skipped.items():
            self.skipped.setdefault(name, reason)

    def survey(self, tap: EmbeddingTap, *, required: bool) -> tuple[Samples, dict[str, np.ndarray]]:
        """The forward pass before: embeddings, predictions, and the mean activation of each neuron of each site."""
        samples = Samples()
        watch = Watch(list(self.sites.values()), gradients=False)
        totals: dict[str, np.ndarray] = {}
        counts: dict[str, int] = {}
        with self._timed("survey", "embeddings and means") as tick, torch.no_grad():
            for _, logits, _, _ in self._passes(watch, tap, samples, tick, required=required):
                for name, output in watch.outputs.items():
                    axis = watch.axes[name]
                    value = output.double() if output.device.type != "mps" else output.float()
                    # a sample that is not finite must not spoil the mean of all others
                    finite = value.flatten(1).isfinite().all(1) & logits.isfinite().all(1)
                    total = to_numpy(sum_positions(value[finite], axis).sum(0)).astype(np.float64)
                    totals[name] = totals.get(name, 0.0) + total
                    counts[name] = counts.get(name, 0) + int(finite.sum()) * n_positions(output.shape, axis)
                samples.cluster.append(np.full(len(logits), -1, np.int64))
                samples.half.append(np.full(len(logits), -1, np.int64))
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
        tap: EmbeddingTap,
        assigned: Int[np.ndarray, " local"] | None,
        attributions: Sequence[Attribution],
        target: TargetFn,
        removal_of: Callable[[str, int, int], Removal],
        seed: int,
    ) -> tuple[Samples, dict[tuple[str, str], ClusterMoments], dict[str, Removal]]:
        """The importance pass: samples, moments per site and attribution, removal per site.

        `removal_of` is given a site's name, neuron axis and number of neurons.
        """
        samples, halves = Samples(), Halves(self._process())
        gradients = any(attribution.needs_gradient for attribution in attributions)
        watch = Watch(list(self.sites.values()), gradients=gradients)
        groups = Groups()
        moments = {(name, one.name): ClusterMoments(groups) for name in self.sites for one in attributions}
        replayers: dict[str, Replayer] = {}
        labels: set[int] = set()
        with self._timed("importance", "importance") as tick, torch.set_grad_enabled(gradients):
            for host_batch, logits, classes, rows in self._passes(watch, tap, samples, tick, required=False):
                cluster = samples.target[-1] if assigned is None else assigned[rows]
                if assigned is None:
                    labels.update(np.unique(cluster).tolist())
                    check_number(len(labels), so_far=True)
                cluster = np.where(samples.finite[-1], cluster, -1)
                half = halves.deal(cluster, samples.correct[-1])
                samples.cluster.append(cluster)
                samples.half.append(half)
                group = groups.of(cluster, half)
                outputs = dict(watch.outputs)
                slopes = self._gradients(target, logits, classes, outputs) if gradients else {}
                for name, output in outputs.items():
                    axis = watch.axes[name]
                    if name not in replayers:
                        removal = removal_of(name, axis, output.shape[axis])
                        replayers[name] = Replayer(self.model, self._forward, removal)
                    suffix = Suffix(replayers[name], host_batch, target)
                    batch = _site_batch(
                        replayers[name].removal, output, slopes.get(name), seed, samples.index[-1], suffix
                    )
                    deviation = batch.sum_positions(batch.deviation.abs())
                    for attribution in attributions:
                        moments[name, attribution.name].add(attribution(batch).detach(), deviation, group)
        mine = {name: (replayer.removal.axis, replayer.removal.n_neurons) for name, replayer in replayers.items()}
        known: dict[str, tuple[int, int]] = {}
        for share in self.gather(mine):
            known.update(share)
        removals = {name: removal_of(name, *known[name]) for name in self.sites if name in known}
        return samples.gathered(self.gather), moments, removals

    def _forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits and targets of a batch that has been checked before."""
        return forward_logits(self.model, batch, self.forward_fn, check=False)

    def _process(self) -> int:
        """Number of this process among those that hold samples."""
        mine = int(self.probe.index.min()) if len(self.probe) else -1
        return sorted(set(self.gather(mine))).index(mine)

    def _gradients(
        self, target: TargetFn, logits: Tensor, classes: Tensor, outputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Derivative of each sample's own target with respect to each output (their sum's: samples are independent)."""
        total = target_values(target, logits, classes).sum()
        if not total.requires_grad:
            raise ValueError(
                "the model's outputs carry no gradient to any of the layers: its forward pass, or forward_fn, detaches "
                "them or runs under torch.no_grad(); use attribution='activation', or let it build its graph"
            )
        slopes = torch.autograd.grad(total, list(outputs.values()), allow_unused=True)
        return {
            name: torch.zeros_like(output) if slope is None else slope
            for (name, output), slope in zip(outputs.items(), slopes, strict=True)
        }


def _site_batch(
    removal: Removal,
    output: Tensor,
    slope: Tensor | None,
    seed: int,
    index: Int[np.ndarray, " sample"],
    suffix: Suffix,
) -> SiteBatch:
    dtype = torch.promote_types(output.dtype, torch.float32)  # products of half precisions would lose digits
    baseline = torch.as_tensor(removal.baseline_value, dtype=dtype, device=output.device)
    gradient = None if slope is None else slope.to(dtype)
    return SiteBatch(removal.site, removal.axis, output.detach().to(dtype), gradient, baseline, seed, index, suffix)
