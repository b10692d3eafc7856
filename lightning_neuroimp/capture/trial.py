"""Try a model out on a few samples before it is measured, to settle by small forward passes what sizes cannot tell.

Passes over other numbers of samples, and in another order, show which axis holds the samples, whether samples see each
other, and whether random numbers are drawn; further ones show which axis holds the neurons where no layer of torch
declares it.
"""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.batches.stacks import Stack
from lightning_neuroimp.batches.structure import to_device
from lightning_neuroimp.capture.changes import change, rounding
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.neuron_axis import AxisTracker, Layer, declares_samples, samples_first, unknown_axis
from lightning_neuroimp.capture.random_states import States, restore
from lightning_neuroimp.capture.settling import AxisSettler
from lightning_neuroimp.capture.site_tensor import read_activation
from lightning_neuroimp.capture.sites import find_sites, validate_layers
from lightning_neuroimp.capture.subject import OutputsChangedError, Subject
from lightning_neuroimp.capture.suffix.randomness import RandomSources, drawn_from
from lightning_neuroimp.errors import InvalidArgument, NeuroimpError
from lightning_neuroimp.site import Site

_MOST_SAMPLES = 6
"""Upper bound on the number of samples in a pass, where the model takes other numbers than the loader's."""

_MOST_DRAWS = 4
"""Upper bound on the number of passes with other random numbers."""


@dataclass(frozen=True)
class Trial:
    """Hold what was settled before a measurement.

    Attributes:
        sites: the sites by their text, with the axis of their samples.
        axes: axis of the neurons, samples first, of each site that the few samples reached and where it is known.
        unsettled: why no neurons can be counted, by site.
        batch_dependence: as in `Conditions`.
        random_spread: as in `Conditions`; above 0, or NaN, where random numbers are drawn.
    """

    sites: dict[str, Site]
    axes: dict[str, int] = field(default_factory=dict)
    unsettled: dict[str, str] = field(default_factory=dict)
    batch_dependence: float = np.nan
    random_spread: float = 0.0

    def agreed(self, processes: Processes) -> "Trial":
        """Return what all processes have settled together; each has seen other samples.

        Raises:
            InvalidArgument: if two have settled a site differently.
        """
        shares: list[Trial] = processes.gather(self)
        axes, sites = dict[str, int](), dict(shares[0].sites)
        for share in shares:
            for name, axis in share.axes.items():
                if name not in axes:
                    axes[name], sites[name] = axis, share.sites[name]
                if (axes[name], sites[name]) != (axis, share.sites[name]):
                    raise InvalidArgument(
                        f"processes disagree on the axes of layer {name!r}, whose shape depends on the sample; pass "
                        f"Site({name!r}, axis=..., sample_axis=...)"
                    )
        unsettled = {name: reason for share in shares for name, reason in share.unsettled.items() if name not in axes}
        dependences = [share.batch_dependence for share in shares]
        spreads = [share.random_spread for share in shares]
        return Trial(sites, axes, unsettled, float(np.fmax.reduce(dependences)), float(np.fmax.reduce(spreads)))


@dataclass
class _Seen:
    """Hold what a pass shows of one site.

    Attributes:
        module: was called.
        tensor: as the model has it.
        axis: of its neurons, as the model has it; None where the pass does not tell.
        layers: number of calls of layers before it.
    """

    module: nn.Module
    tensor: Tensor
    axis: int | None
    layers: int


@dataclass
class _Pass:
    """Hold what one pass shows.

    Attributes:
        logits: (sample, class).
        seen: what it shows of each site that it reached, by site.
        layers: the calls of layers, in order.
    """

    logits: Tensor
    seen: dict[str, _Seen]
    layers: list[Layer]


class _Bench:
    """Run a model on some samples of a stack, always from the same random state, and look at sites.

    Attributes:
        drawn: whether a pass has drawn random numbers.

    Args:
        subject: model and samples.
        sites: by their text.
        stack: the samples.
    """

    def __init__(self, subject: Subject, sites: dict[str, Site], stack: Stack) -> None:
        self._subject, self._sites, self._stack = subject, sites, stack
        self._sources = RandomSources(subject.model)
        self._states: States = self._sources.states()
        self.drawn = False

    def run(self, rows: Int[np.ndarray, " row"], *, anew: bool = False) -> _Pass:
        """Make one pass.

        Args:
            rows: of the samples in the stack.
            anew: whether to draw other random numbers than before.
        """
        if not anew:
            restore(self._states)
        before, subject = self._sources.states(), self._subject
        tracker, seen = AxisTracker(), dict[str, _Seen]()
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(tracker.watch(subject.model))
            for name, site in self._sites.items():
                look = partial(self._look, name, tracker, seen)
                stack.enter_context(SiteHook(site, look).attach(subject.model))
            logits = subject.predict(to_device(self._stack.rows_batch(rows), subject.device)).logits
        self.drawn = self.drawn or bool(drawn_from(before, self._sources.states()))
        if len(logits) != len(rows):
            raise InvalidArgument(
                f"the model gave {len(logits)} rows of logits for a batch of {len(rows)} samples; each sample must "
                "have one"
            )
        return _Pass(logits, seen, tracker.layers)

    def spread(self, rows: Int[np.ndarray, " row"], logits: Tensor) -> float:
        """Return how far logits move when other random numbers are drawn; 0 if none are, or they change nothing.

        Args:
            rows: of the samples in the stack.
            logits: of a pass before.
        """
        # a coin may fall on the same side several times; what draws where nobody sees it differs in any pass
        for draw in range(_MOST_DRAWS if self.drawn else 1):
            spread = change(logits, self.run(rows, anew=draw > 0 or self.drawn).logits, 0.0 if self.drawn else 1e-3)
            if spread:
                return spread
        return 0.0

    def _look(self, name: str, tracker: AxisTracker, seen: dict[str, _Seen], module: nn.Module, value: Any) -> None:
        """Note what a site holds; what cannot be read is reported by the pass that needs it."""
        if name in seen:
            return
        site = replace(self._sites[name], sample_axis=0)
        try:
            tensor = read_activation(site, module, value)
        except InvalidArgument:
            return
        axis = tracker.find(site, module, tensor)
        seen[name] = _Seen(module, tensor.detach().clone(), axis, len(tracker.layers))


def try_out(subject: Subject, layers: Any) -> Trial:
    """Settle, by a few forward passes of this process inside `undisturbed`, what sizes cannot tell.

    Args:
        subject: model and samples.
        layers: names, globs or sites.

    Raises:
        InvalidArgument: if a layer does not exist, the model cannot be run, or a site's samples are on another axis
            than named, or on one that nothing tells.
    """
    asked = validate_layers(layers)
    named = [layer for layer in asked if isinstance(layer, Site) and layer.sample_axis is not None]
    declared = {str(site) for site in find_sites(subject.model, named)} if named else set()
    return settle_sites(subject, {str(site): site for site in find_sites(subject.model, asked)}, declared)


def settle_sites(subject: Subject, sites: dict[str, Site], declared: Collection[str] = ()) -> Trial:
    """Settle, by a few forward passes of this process inside `undisturbed`, which axes of sites hold what.

    Args:
        subject: model and samples.
        sites: by their text.
        declared: texts of those whose sample axis the user has named.

    Raises:
        InvalidArgument: as `try_out` does; what concerns an optional site only is noted instead.
    """
    if not len(subject.probe):
        return Trial(sites)
    stack = max(subject.probe.stacks, key=lambda stack: len(stack.index))
    bench = _Bench(subject, sites, stack)
    n_samples = min(len(stack.index), subject.batch_size or subject.probe.batch_size)
    rows, first = _first_pass(bench, n_samples, subject.rows(n_samples))
    fewer, second = _second_pass(bench, rows, stack)
    found, axes, unsettled = {}, dict[str, int](), dict[str, str]()
    for name, site in sites.items():
        found[name] = site
        if name not in first.seen:
            continue
        try:
            found[name] = _with_sample_axis(site, first, second, name in declared)
        except InvalidArgument as error:
            if not site.optional:
                raise
            unsettled[name] = str(error)
    settler = AxisSettler(lambda: _samples_first(bench.run(rows), found), _samples_first(first, found))
    for name, look in first.seen.items():
        site = found[name]
        sample_axis, shape = site.sample_axis or 0, look.tensor.shape
        if name in unsettled or site.axis is not None or len(shape) < 2 or len(shape) <= sample_axis:
            continue
        axis: int | None = 1
        if len(shape) > 2:
            own = look.axis
            axis = None if own is None or own == sample_axis else samples_first(own, sample_axis)
            if axis is None and own is None:
                module = look.module if site.side == "output" else None
                axis = settler.settle(name, module, first.layers[: look.layers])
        if axis is None:
            unsettled[name] = unknown_axis(site, look.module, shape)
        else:
            axes[name] = axis
    spread = bench.spread(rows, first.logits)
    dependence = np.nan
    if not spread and second is not None:
        dependence = _dependence(bench, (rows, first), (fewer, second), rounding(subject.model))
    return Trial(found, axes, unsettled, dependence, spread)


Rows = Int[np.ndarray, " _"]


def _dependence(bench: _Bench, first: tuple[Rows, _Pass], second: tuple[Rows, _Pass], noise: float) -> float:
    """Return how far a sample's logits move with the others in its batch, as `Trial.batch_dependence`.

    What depends on one sample of all, such as the largest value, is seen by the half of them that it is not in.

    Args:
        bench: runs the model.
        first: rows and outcome of a pass.
        second: rows and outcome of one with other samples, in another order.
        noise: what rounding may change.
    """
    rows, before = first
    others = [second]
    half = len(rows) // 2
    for part in [rows[:half], rows[half:]] if half > 1 else []:
        try:
            others.append((part, bench.run(part)))
        except (NeuroimpError, RuntimeError):
            continue
    changes = [0.0]
    for part, after in others:
        common = [place for place, row in enumerate(part) if row in rows]
        places = [int(np.flatnonzero(rows == part[place])[0]) for place in common]
        changes.append(change(before.logits[places], after.logits[common], noise))
    return float(np.fmax.reduce(changes))


def _first_pass(bench: _Bench, n_samples: int, n_rows: int) -> tuple[Int[np.ndarray, " row"], _Pass]:
    """Make the first pass: over few samples, or over as many as in a batch of the loader if the model needs these.

    Args:
        bench: runs the model.
        n_samples: as many as in a batch of the loader.
        n_rows: number of rows in a pass over as many; more than one sample where that may not be alone.
    """
    few = np.arange(min(n_samples, _MOST_SAMPLES))
    if n_rows > n_samples:
        few = np.zeros(n_rows, np.int64)
    try:
        return few, bench.run(few)
    except torch.OutOfMemoryError:
        raise
    except (NeuroimpError, RuntimeError):
        if len(few) >= n_samples:
            raise
    rows = np.arange(n_samples)
    return rows, bench.run(rows)


def _second_pass(
    bench: _Bench, rows: Int[np.ndarray, " row"], stack: Stack
) -> tuple[Int[np.ndarray, " other"], _Pass | None]:
    """Make a pass over another number of samples; None if the model does not take it.

    One sample is left out, and the order is reversed, so that each has others before and after it. Never is one sample
    left, which many models cannot take: then there is one more.
    """
    if len(rows) > 2:
        other = np.delete(rows, len(rows) // 2)[::-1].copy()
    else:
        other = np.insert(rows, 1, 2 if len(stack.index) > 2 and len(rows) == 2 else 0)
        if len(rows) == 1 and len(stack.index) > 1:
            other = np.arange(2)
    try:
        second = bench.run(other)
    except (OutputsChangedError, torch.OutOfMemoryError):
        raise
    except (NeuroimpError, RuntimeError):
        return rows, None
    return other, second


def _with_sample_axis(site: Site, first: _Pass, second: _Pass | None, declared: bool) -> Site:
    """Return a site with the axis whose size follows the number of samples.

    Args:
        site: with the axis that the user, or a layer of torch, declares.
        first: a pass.
        second: one over another number of samples; None: the model takes no other.
        declared: whether the user has named the axis.

    Raises:
        InvalidArgument: if the user has named another one, or nothing tells it.
    """
    tensor, module = first.seen[str(site)].tensor, first.seen[str(site)].module
    n_samples = len(first.logits)
    fitting = [axis for axis, size in enumerate(tensor.shape) if size == n_samples]
    other = None if second is None else second.seen.get(str(site))
    if other is None or second is None:
        if len(fitting) > 1 and not declared and not declares_samples(module):
            raise InvalidArgument(
                f"layer {site.name!r} has an {site.side} of shape {tuple(tensor.shape)} for a batch of {n_samples} "
                "samples, and the model takes no other number of samples that would tell which axis holds them; pass "
                f"Site({site.name!r}, sample_axis={fitting[0]}) or sample_axis={fitting[1]}"
            )
        return site
    if other.tensor.ndim != tensor.ndim:
        return site
    following = [axis for axis in fitting if other.tensor.shape[axis] == len(second.logits)]
    axis = site.sample_axis or 0
    if not following and other.tensor.shape == tensor.shape:
        raise InvalidArgument(
            f"layer {site.name!r} has an {site.side} of shape {tuple(tensor.shape)} that stays the same with another "
            "number of samples: it holds none of them (positions, or weights), and cannot be explained; choose a later "
            "layer"
        )
    if len(following) != 1 or following[0] == axis:
        return site
    if declared:
        raise InvalidArgument(
            f"the samples of layer {site.name!r} are not on sample_axis={axis}: with another number of samples, its "
            f"{site.side} changes along axis {following[0]}; pass Site({site.name!r}, sample_axis={following[0]})"
        )
    return replace(site, sample_axis=following[0])


def _samples_first(found: _Pass, sites: dict[str, Site]) -> dict[str, Tensor]:
    """Return the sites' tensors of a pass, samples first."""
    return {
        name: look.tensor.movedim(sites[name].sample_axis or 0, 0)
        for name, look in found.seen.items()
        if look.tensor.ndim > (sites[name].sample_axis or 0)
    }
