"""Make the importance pass: score all sites on every batch, and stream the scores into moments per cell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_neuroimp.batches.structure import to_device
from lightning_neuroimp.capture.cache import ActivationCache
from lightning_neuroimp.capture.donors import Donors, donate
from lightning_neuroimp.capture.embedding import EmbeddingReader
from lightning_neuroimp.capture.forward import Prediction
from lightning_neuroimp.capture.gradients import differentiate, no_path
from lightning_neuroimp.capture.nonlinearity import Nonlinearity, followed_by
from lightning_neuroimp.capture.outputs import may_be_probabilities
from lightning_neuroimp.capture.positions import (
    along_axis,
    along_positions,
    chosen_positions,
    padding_note,
    sum_positions,
)
from lightning_neuroimp.capture.removal import BatchRemoval, baseline_of
from lightning_neuroimp.capture.sample_table import SampleTable, gather_tables
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.targets import MARGIN, Target
from lightning_neuroimp.capture.trial import Trial
from lightning_neuroimp.capture.walk import WalkedBatch, walk
from lightning_neuroimp.clusters.assignment import Assignment
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.activity import ActivityMoments
from lightning_neuroimp.importance.attributions.batch_passes import BatchPasses
from lightning_neuroimp.importance.attributions.first_order import gradient_x_activation
from lightning_neuroimp.importance.attributions.registry import Attribution
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch
from lightning_neuroimp.importance.attributions.suffix_target import SuffixTarget
from lightning_neuroimp.importance.moments import CellMoments, Cells, FirstOrderSums
from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.site import Removal, Site


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """Say what the importance pass computes.

    Attributes:
        sites: the sites by their text.
        attributions: the scores.
        target: the scalar that is explained per sample.
        target_class: class whose target is explained.
        removal_of: gives the removal at a site from its text, the axis of its channels and their number.
        seed: of scores that draw random numbers.
        trial: knows the sites' axes, and which sites cannot be explained.
        donors: for the baseline "resample"; None for all others.
        details: whether activations and effects to first order are kept as well, for the results and their findings.
    """

    sites: Mapping[str, Site]
    attributions: tuple[Attribution, ...]
    target: Target
    target_class: str | int
    removal_of: Callable[[str, int, int], Removal]
    seed: int
    trial: Trial
    donors: Donors | None = None
    details: bool = True

    @property
    def gradients(self) -> bool:
        """Tell whether a score reads gradients."""
        return any(attribution.needs_gradient for attribution in self.attributions)


@dataclass(frozen=True)
class Scores:
    """Hold what the importance pass found.

    Attributes:
        samples: the samples of all processes, with clusters and halves.
        moments: moments of this process by site and attribution.
        removals: the removal at each site.
        activities: summary of the activations of each site; empty without details.
        first_orders: this process's effects to first order by site, to compare baselines.
        skipped: why optional sites were skipped, by site.
        remarks: what a reader should know about padding, by site.
        bounded: whether all logits lie between 0 and 1, as probabilities do.
        flat: sites at which every gradient is exactly zero, while removing all neurons changes the logits.
    """

    samples: SampleTable
    moments: dict[tuple[str, str], CellMoments]
    removals: dict[str, Removal]
    activities: tuple[SiteActivity, ...]
    first_orders: dict[str, FirstOrderSums]
    skipped: dict[str, str]
    remarks: dict[str, str]
    bounded: bool
    flat: tuple[str, ...]


@dataclass(frozen=True)
class _Gradients:
    """Hold the gradients of one batch.

    Attributes:
        of: gradient of each sample's own target (of the margin, if the target is a function of it) at each site.
        factor: what turns each sample's gradient into that of the target when multiplied; None: it is that already.
    """

    of: dict[str, Tensor]
    factor: Tensor | None = None


class ImportancePass:
    """Run a model once forward and once backward per batch, and score the neurons of all sites.

    Args:
        subject: model and samples.
        request: what to compute.
    """

    def __init__(self, subject: Subject, request: ScoreRequest) -> None:
        self.subject, self.request = subject, request
        self._cache = ActivationCache(
            list(request.sites.values()),
            gradients=request.gradients,
            axes=request.trial.axes,
            refused=request.trial.unsettled,
        )
        self._cells = Cells()
        self._moments = {
            (name, attribution.name): CellMoments(self._cells)
            for name in request.sites
            for attribution in request.attributions
        }
        self._activities: dict[str, ActivityMoments] = {}
        self._first_orders: dict[str, FirstOrderSums] = {}
        self._recorders: dict[str, SuffixRecorder] = {}
        self._next: dict[str, Nonlinearity | None] = {}  # the function that takes a site's values next
        self._remarks: dict[str, str] = {}
        self._connected: dict[str, Tensor] = {}  # whether a gradient led to a site, and was ever other than zero
        self._bounded = True  # whether all logits so far look like probabilities
        self._first: tuple[Any, np.ndarray] | None = None  # a batch, and the numbers of its samples

    def run(self, assignment: Assignment, embedding: EmbeddingReader | None = None) -> Scores:
        """Run the model over all batches, and score the neurons.

        Args:
            assignment: gives samples their clusters and halves.
            embedding: reads the samples' embeddings; None: none are read.

        Raises:
            InvalidArgument: if a layer, an output or a function of the user's cannot be worked with.
        """
        tables: list[SampleTable] = []
        request = self.request
        with torch.set_grad_enabled(request.gradients):
            for walked in walk(self.subject, "importance", self._cache, request.target_class, embedding, reused=True):
                samples = assignment.assign(walked.samples, walked.rows)
                assert samples.cluster is not None
                assert samples.half is not None
                tables.append(samples)
                self._first = self._first or (walked.batch, samples.index)
                self._bounded = self._bounded and may_be_probabilities(walked.prediction.logits)
                self._score_batch(walked, self._cells.of(samples.cluster, samples.half))
        self._refuse_unconnected()
        return self._gathered(tables)

    def _refuse_unconnected(self) -> None:
        """Skip optional sites to which no gradient has led in any batch of any process; refuse all others.

        Raises:
            InvalidArgument: if there is one that is not optional, or none is left.
        """
        mine = {
            name: (recorder.gradient_asked, recorder.gradient is not None) for name, recorder in self._recorders.items()
        }
        shares = self.subject.processes.gather((set(self._connected), mine))
        for name, site in self.request.sites.items():
            found = [share[1][name] for share in shares if name in share[1]]
            unconnected = self.request.gradients and not any(name in share[0] for share in shares)
            if not found or not (unconnected or (any(one[0] for one in found) and not any(one[1] for one in found))):
                continue
            if not site.optional:
                raise InvalidArgument(no_path(name))
            self._cache.skipped.setdefault(name, no_path(name))
            self._recorders.pop(name, None)
        self._cache.require_one()

    def _flat_sites(self) -> tuple[str, ...]:
        """Return sites at which all gradients are exactly zero, though removing all neurons changes the logits."""
        mine: dict[str, tuple[bool, bool]] = {}
        for name, recorder in self._recorders.items():
            known = [each for each in (self._connected.get(name), recorder.gradient) if each is not None]
            if known and self._first is not None:
                flat, changed = not any(map(bool, known)), False
                if flat:
                    with torch.no_grad():
                        suffix = recorder.record(*self._first)
                        everything = torch.ones(1, recorder.removal.n_neurons, dtype=torch.bool)
                        changed = not torch.equal(suffix.ablated(everything.to(self.subject.device))[0], suffix.logits)
                mine[name] = flat, changed
        shares = self.subject.processes.gather(mine)
        seen = {name: [share[name] for share in shares if name in share] for name in self.request.sites}
        return tuple(
            name
            for name, found in seen.items()
            if found and all(one[0] for one in found) and any(one[1] for one in found)
        )

    def _score_batch(self, walked: WalkedBatch, rows: Int[Tensor, " sample"]) -> None:
        """Score the neurons of all sites on one batch.

        Args:
            walked: the batch and the model's prediction.
            rows: row of each sample's cell; -1: in none.
        """
        outputs = dict(self._cache.outputs)
        gradients = self._gradients(walked, outputs) if self.request.gradients else _Gradients({})
        removals = self._batch_removals(walked, outputs)
        passes = BatchPasses(
            self.subject, self.request.sites, self._cache.axes, walked.batch, walked.classes, self.request.target
        )
        for name, output in outputs.items():
            axis = self._cache.axes[name]
            if name not in self._recorders:
                removal = self.request.removal_of(name, axis, output.shape[axis])
                self._recorders[name] = self.subject.recorder(removal, self.request.donors)
                self._activities[name] = ActivityMoments(axis, removal.where.group, self._next.get(name))
            suffix = SuffixTarget(self._recorders[name], walked.batch, self.request.target, walked.samples.index)
            batch = self._site_batch(name, output, gradients.of.get(name), removals[name], suffix)
            passes.site_batches[name] = replace(batch, passes=passes)
        for name, batch in passes.site_batches.items():
            self._score_site(name, batch, gradients.factor, rows)

    def _score_site(
        self, name: str, batch: SiteBatch, factor: Float[Tensor, " sample"] | None, rows: Int[Tensor, " sample"]
    ) -> None:
        """Compute all attributions of one site on one batch, and add them to the moments.

        Args:
            name: of the site.
            batch: its activations and gradients.
            factor: as in `_Gradients`.
            rows: row of each sample's cell; -1: in none.
        """
        request, first_order = self.request, None
        if request.details:
            self._activities[name].add(batch.activation, batch.positions, batch.index, batch.deviation)
            first_order = gradient_x_activation(batch) if request.gradients else None
        if first_order is not None and batch.gradient is not None and request.donors is None:
            summed = sum_positions(batch.gradient, batch.axis)  # zero where positions do not count
            self._first_orders.setdefault(name, FirstOrderSums(self._cells)).add(first_order, summed, rows)
        deviation = batch.sum_positions(batch.deviation.abs())
        if factor is not None:
            assert batch.gradient is not None
            along = along_axis(factor, 0, batch.activation.ndim)
            batch = replace(batch, gradient=batch.gradient * along.to(batch.gradient.dtype))
        for attribution in request.attributions:
            same = factor is None and attribution.score is gradient_x_activation
            scores = first_order if first_order is not None and same else attribution(batch).detach()
            self._moments[name, attribution.name].add(scores, deviation, rows, first_order)

    def _gradients(self, walked: WalkedBatch, outputs: dict[str, Tensor]) -> _Gradients:
        """Compute the gradient of each sample's own target at each site.

        That is the gradient of their sum, as samples are independent. If the target is a function of the margin, the
        margin's gradient is taken, and the factor that turns it into the target's.
        """
        logits, target = walked.prediction.logits, self.request.target
        precise = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        factor = target.margin_slope(precise, walked.classes)
        total = (target if factor is None else MARGIN).values(logits, walked.classes).sum()
        if not total.requires_grad:
            raise InvalidArgument(
                "the model's outputs carry no gradient to any of the layers: its forward pass, or forward_fn, detaches "
                "them or runs under torch.no_grad(); remove that, or use attribution='activation'"
            )
        if self.request.details and not self._next.keys() >= outputs.keys():
            self._next |= followed_by(total, outputs)
        found = differentiate(total, list(outputs.values()))
        for name, gradient in zip(outputs, found, strict=True):
            if gradient is not None:
                self._connected[name] = gradient.any() | self._connected.get(name, False)
        of = {
            name: torch.zeros_like(output) if gradient is None else gradient
            for (name, output), gradient in zip(outputs.items(), found, strict=True)
        }
        return _Gradients(of, None if target.kind == "margin" else factor)

    def _batch_removals(self, walked: WalkedBatch, outputs: dict[str, Tensor]) -> dict[str, BatchRemoval]:
        """Find the positions at which neurons are removed, and run the donors of a resampled baseline."""
        tokens, axes, sites = walked.prediction.tokens, self._cache.axes, self.request.sites
        positions = {
            name: chosen_positions(sites[name], output, axes[name], tokens) for name, output in outputs.items()
        }
        for name, output in outputs.items():
            self._remark(name, output, positions[name], walked.prediction)
        if self.request.donors is None:
            return {name: BatchRemoval(chosen) for name, chosen in positions.items()}
        donated: dict[str, list[tuple[Tensor, Tensor | None, np.ndarray]]] = {name: [] for name in outputs}
        cache = ActivationCache([sites[name] for name in outputs], gradients=False, axes=axes)
        with torch.no_grad(), cache.attach(self.subject.model):
            for batch, places in self.request.donors.batches(walked.samples.index):
                n_samples = len(places)
                with cache.record(self.subject.model, n_samples, self.subject.rows(n_samples)):
                    prediction = self.subject.predict(to_device(batch, self.subject.device), n_samples)
                for name, output in cache.outputs.items():
                    chosen = chosen_positions(sites[name], output, axes[name], prediction.tokens)
                    donated[name].append((output, chosen, places))
            return {
                name: BatchRemoval(positions[name], donate(output.detach(), axes[name], positions[name], donated[name]))
                for name, output in outputs.items()
            }

    def _remark(self, name: str, output: Tensor, positions: Tensor | None, prediction: Prediction) -> None:
        """Note what a reader should know about padding and positions at a site."""
        site, tokens = self.request.sites[name], prediction.tokens
        if name in self._remarks:
            return
        if positions is not None and site.position is not None and not positions.flatten(1).any(1).all():
            self._remarks[name] = f"some samples have no position {site.position}; nothing is scored or removed there"
        if output.ndim > 2 and not self._has_states(site):
            note = padding_note(output, self._cache.axes[name], tokens, prediction.doubt)
            if note and (tokens is None or not tokens.all()):
                self._remarks.setdefault(name, note)

    def _has_states(self, site: Site) -> bool:
        """Tell whether a site is the last state of a recurrent layer of torch, whose positions are no tokens."""
        module = self.subject.model.get_submodule(site.name)
        return isinstance(module, nn.RNNBase) and site.side == "output" and site.path[:1] == (1,)

    def _site_batch(
        self, name: str, output: Tensor, gradient: Tensor | None, batch_removal: BatchRemoval, suffix: SuffixTarget
    ) -> SiteBatch:
        """Collect what attributions see of one site and one batch, at least in float32."""
        removal = self._recorders[name].removal
        dtype = torch.promote_types(output.dtype, torch.float32)  # products in half precision would lose digits
        activation = output.detach().to(dtype)
        if gradient is not None:
            gradient = gradient.to(dtype)
            if batch_removal.positions is not None:
                gradient = gradient.where(along_positions(batch_removal.positions, removal.axis), 0)
        return SiteBatch(
            removal.where,
            removal.axis,
            activation,
            gradient,
            baseline_of(removal, activation, batch_removal).to(dtype),
            self.request.seed,
            suffix.index,
            suffix,
            batch_removal.positions,
        )

    def _gathered(self, tables: list[SampleTable]) -> Scores:
        """Merge the scores of all processes.

        Args:
            tables: this process's samples, batch by batch.
        """
        request, processes = self.request, self.subject.processes
        mine = {
            name: (recorder.removal.axis, len(recorder.removal.baseline_value))
            for name, recorder in self._recorders.items()
        }
        known = processes.union(mine)
        removals = {name: request.removal_of(name, *known[name]) for name in request.sites if name in known}
        seen = []
        for name, removal in removals.items() if request.details else ():
            moments = self._activities.get(name) or ActivityMoments(removal.axis, removal.where.group)
            activity = moments.activity(name, processes)
            seen += [] if activity is None else [activity]
        return Scores(
            gather_tables(tables, processes),
            self._moments,
            removals,
            tuple(seen),
            {name: self._first_orders.get(name) or FirstOrderSums(self._cells) for name in removals},
            dict(self._cache.skipped),
            dict(self._remarks),
            all(processes.gather(self._bounded)),
            self._flat_sites(),
        )
