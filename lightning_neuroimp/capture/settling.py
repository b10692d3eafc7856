"""Settle which axis holds the neurons by trying it out: disturb weights or a layer's output, and look what changes.

The neurons of a module with weights of its own are those that its weights are for: if two entries of a weight are
disturbed in turn, and the module's output changes at different entries of one axis only, then that axis counts them.
For any other module the layers before it tell. A layer of torch counts its neurons along an axis that is known. If two
of its neurons are disturbed in turn, and a later tensor changes at different entries of one axis only, then that axis
counts the neurons: nothing has mixed them since. If they are mixed (by a norm, or a product with weights), the layer's
positions are disturbed instead: an axis that changes at different entries counts positions, and the one that is left
counts the neurons. Where two layers tell different axes, as where tokens are mixed, neither is believed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neuroimp import _compat
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.neuron_axis import AxisTracker, Layer, layer_axis, samples_first
from lightning_neuroimp.capture.site_tensor import read_activation
from lightning_neuroimp.errors import NeuroimpError
from lightning_neuroimp.site import Site

_MOST_LAYERS = 5
"""Upper bound on the number of layers before a site that are tried, the last first."""

_MOST_WEIGHTS = 4
"""Upper bound on the number of a module's own weights that are tried, those with the fewest axes first."""

_NOISE = 1e-5  # of the largest value: what rounding may change

Record = Callable[[], Mapping[str, Tensor]]
"""Makes one forward pass, always the same, and returns tensors by site, samples first."""


@dataclass
class AxisSettler:
    """Settle the neuron axes of several sites; passes that serve more than one are made once.

    Attributes:
        record: makes one forward pass, and returns the sites' tensors, samples first.
        clean: what it returns when nothing is disturbed.
    """

    record: Record
    clean: Mapping[str, Tensor]
    _found: dict[tuple[int, int | str, int, int], Mapping[str, Tensor]] = field(default_factory=dict)

    def settle(self, name: str, module: nn.Module | None, layers: Sequence[Layer]) -> int | None:
        """Return the neuron axis of a site, samples first; None if the passes do not settle it.

        Args:
            name: of the site.
            module: whose output it is; None for an input.
            layers: the calls of layers before it, in order.
        """
        by_weights = set() if module is None else self._by_weights(name, module)
        if module is not None and len(by_weights) == 1 and layer_axis(module) is not None:
            return by_weights.pop()  # a kind of torch's layer says itself what its weights are for
        by_layers = self._by_layers(name, layers, by_weights)
        if by_layers is None:  # what mixes everything has gains and biases of its neurons, as a rule
            alone = set() if module is None else self._by_weights(name, module, single=True)
            return alone.pop() if len(alone) == 1 and alone == by_weights else None
        # weights may be of positions, too: they are not believed against the layers before
        return by_layers if by_weights <= {by_layers} else None

    def _by_weights(self, name: str, module: nn.Module, *, single: bool = False) -> set[int]:
        """Return the axes along which the entries of a module's own weights are told apart.

        Args:
            name: of the site.
            module: whose output it is.
            single: whether only weights with one axis of more than one entry are tried, such as gains and biases.
        """
        own = _compat.parameters_of(module)
        weights = [(key, weight) for key, weight in own.items() if weight is not None and weight.is_floating_point()]
        axes: set[int] = set()
        for key, weight in sorted(weights, key=lambda pair: pair[1].ndim)[:_MOST_WEIGHTS]:
            if single and sum(size > 1 for size in weight.shape) != 1:
                continue
            told: set[int] = set()
            for axis, size in enumerate(weight.shape):
                tried = _tried(size)
                if len(tried) < 2:
                    continue
                for entry in tried:
                    if (id(module), key, axis, entry) not in self._found:
                        passed = _with_weight(self.record, module, key, axis, entry)
                        self._found[id(module), key, axis, entry] = passed
                passes = [self._found[id(module), key, axis, entry] for entry in tried]
                separate = _separate([self._difference(name, after) for after in passes])
                told.update(separate if len(separate) == 1 and self.clean[name].shape[separate[0]] == size else [])
            axes |= told if len(told) == 1 else set()  # an embedding of positions that is added tells both axes apart
        return axes

    def _by_layers(self, name: str, layers: Sequence[Layer], weights: set[int]) -> int | None:
        """Return the axis that the layers before a site tell; None if they do not, or two of them tell different ones.

        They do where tokens are mixed by a layer whose neurons are tokens.

        Args:
            name: of the site.
            layers: the calls of layers before it, in order.
            weights: axes that the module's own weights tell.
        """
        told: set[int] = set()
        for layer in reversed(layers[-_MOST_LAYERS:]):
            n_neurons = layer.shape[layer.axis]
            tried = _tried(n_neurons)
            changes = [self._changes(name, layer, layer.axis, neuron) for neuron in tried]
            if not any(bool(change.any()) for axes in changes for change in axes):
                continue  # the tensor does not depend on this layer
            separate = _separate(changes) if len(tried) > 1 else []
            as_many = [axis for axis in separate if self.clean[name].shape[axis] == n_neurons]
            if len(separate) == 1 and as_many:
                told.update(as_many)
            elif as_many:  # one entry of several axes
                return None
            else:
                left = self._what_is_left(name, layer, weights)
                told.update([] if left is None else [left])
        return told.pop() if len(told) == 1 else None

    def _what_is_left(self, name: str, layer: Layer, weights: set[int]) -> int | None:
        """Return the only axis that does not count positions of a layer; None if there are several.

        Args:
            name: of the site.
            layer: before the site.
            weights: axes that the module's own weights tell.
        """
        left, sizes = set(range(1, self.clean[name].ndim)), set[int]()
        for axis, size in enumerate(layer.shape):
            if axis != layer.axis and size > 1:
                ends = (0, size - 1)
                changes = [self._changes(name, layer, axis, entry) for entry in ends]
                found = {*_separate(changes), *_alone(changes, ends, size)}
                left -= found
                sizes.update([size] if found else [])
        if len(left) != 1:
            return None
        (axis,) = left
        # one more axis of as many positions may count the positions that are looked at, as in a map of attention
        as_many = self.clean[name].ndim == 3 and self.clean[name].shape[axis] in sizes
        return None if as_many and axis not in weights else axis

    def _changes(self, name: str, layer: Layer, axis: int, entry: int) -> list[Tensor]:
        """Return which entries of each axis of a site's tensor change; none of the first, which holds the samples.

        Args:
            name: of the site.
            layer: whose output is disturbed.
            axis: of the output.
            entry: along the axis.
        """
        key = (id(layer.module), layer.call, axis, entry)
        if key not in self._found:
            self._found[key] = _disturbed(self.record, layer, axis, entry)
        return self._difference(name, self._found[key])

    def _difference(self, name: str, passed: Mapping[str, Tensor]) -> list[Tensor]:
        """Return which entries of each axis of a site's tensor are others than in the clean pass.

        Args:
            name: of the site.
            passed: the sites' tensors in another pass.
        """
        before, after = self.clean[name], passed.get(name)
        if after is None or after.shape != before.shape:
            return [torch.zeros(size, dtype=torch.bool) for size in before.shape]
        scale = float(before.abs().nan_to_num(0.0, 0.0, 0.0).max()) if before.numel() else 0.0
        difference = (after.double() - before.double()).abs()
        changed = (difference > _NOISE * scale) | (difference.isnan() & ~(before.isnan() & after.isnan()))
        return [
            changed.movedim(place, 0).flatten(1).any(1).cpu() if place else torch.zeros(len(before), dtype=torch.bool)
            for place in range(before.ndim)
        ]


def settle_axis(model: nn.Module, site: Site, run: Callable[[], Any]) -> int | None:
    """Return the neuron axis of one site, samples first, by a forward pass and further ones where that does not tell.

    Args:
        model: holds the site. It must not be disturbed by its forward passes.
        site: with the axis of its samples; the default is the first.
        run: makes a forward pass, always the same.

    Returns:
        The axis; None if the passes do not settle it, or do not reach the site.
    """
    tracker, seen = AxisTracker(), list[tuple[nn.Module, Tensor, int | None, int]]()

    def look(module: nn.Module, value: Any) -> None:
        """Keep the site's tensor, and what is known of its axis."""
        tensor = read_activation(site, module, value)
        own = tensor.movedim(0, site.sample_axis) if site.sample_axis else tensor
        seen.append((module, tensor.detach().clone(), tracker.find(site, module, own), len(tracker.layers)))

    def record() -> dict[str, Tensor]:
        """Make a pass, and return the site's tensor in its first call."""
        seen.clear()
        with SiteHook(site, look).attach(model):
            run()
        return {"": seen[0][1]} if seen else {}

    with tracker.watch(model):
        clean = record()
    if not clean:
        return None
    module, tensor, axis, n_layers = seen[0]
    sample_axis = site.sample_axis or 0
    if tensor.ndim < 3:
        return tensor.ndim - 1 or None
    if axis is not None:
        return None if axis == sample_axis else samples_first(axis, sample_axis)
    return AxisSettler(record, clean).settle("", module if site.side == "output" else None, tracker.layers[:n_layers])


def _tried(size: int) -> list[int]:
    """Return which entries of an axis are disturbed: neighbours, and one that is far from them."""
    return sorted({size // 3, size // 3 + 1, 2 * size // 3} & set(range(size)))


def _noise_like(values: Tensor, part: Tensor, seed: int) -> Tensor:
    """Return random numbers that are large beside some values, in the shape of a part of them."""
    noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(part) * (3 * values.detach().float().abs().nan_to_num(0.0, 0.0, 0.0).amax() + 1)


def _separate(changes: Sequence[Sequence[Tensor]]) -> list[int]:
    """Return the axes along which different disturbances change different entries.

    Args:
        changes: for each disturbance, which entries of each axis change.
    """
    found = []
    for axis in range(1, len(changes[0])):
        entries = torch.stack([change[axis] for change in changes])
        if bool(entries.any(1).all()) and int(entries.sum(0).max()) == 1:
            found.append(axis)
    return found


def _alone(changes: Sequence[Sequence[Tensor]], entries: Sequence[int], size: int) -> list[int]:
    """Return the axes of a size along which one of several disturbances changes nothing but its own entry.

    So does that of the last token where each token sees those before it.

    Args:
        changes: for each disturbance, which entries of each axis change.
        entries: that were disturbed.
        size: of the axis along which they are.
    """
    found = []
    for axis in range(1, len(changes[0])):
        own = [change[axis].nonzero()[:, 0].tolist() == [entry] for change, entry in zip(changes, entries, strict=True)]
        if len(changes[0][axis]) == size and any(own):
            found.append(axis)
    return found


def _with_weight(record: Record, module: nn.Module, key: str, axis: int, entry: int) -> Mapping[str, Tensor]:
    """Return the sites' tensors in a pass in which a module has another weight; its own one is not written to.

    Args:
        record: makes the pass.
        module: holds the weight.
        key: of the weight.
        axis: of the weight.
        entry: along the axis, with other values.
    """
    own = _compat.parameters_of(module)
    weight = own[key]
    assert weight is not None
    changed = weight.detach().clone()
    part = changed.select(axis, entry)
    part.add_(_noise_like(weight, part, entry))
    try:
        own[key] = nn.Parameter(changed, requires_grad=weight.requires_grad)
        return dict(record())
    except (NeuroimpError, RuntimeError):
        return {}
    finally:
        own[key] = weight


def _disturbed(record: Record, layer: Layer, axis: int, entry: int) -> Mapping[str, Tensor]:
    """Return the sites' tensors in a pass in which one neuron or position of a layer has other values.

    Args:
        record: makes the pass.
        layer: one call of a layer.
        axis: of its output.
        entry: along the axis.
    """
    calls = 0

    def disturb(module: nn.Module, args: Any, output: Any) -> Any:
        """Replace the values of the entry in the one call that is meant."""
        nonlocal calls
        calls += 1
        if calls != layer.call + 1:
            return None
        first = output[0] if isinstance(output, tuple) else output
        changed = first.detach().clone()
        part = changed.select(axis, entry)
        part.add_(_noise_like(first, part, entry))
        return type(output)((changed, *output[1:])) if isinstance(output, tuple) else changed

    handle = layer.module.register_forward_hook(disturb, prepend=True)
    try:
        return dict(record())
    except (NeuroimpError, RuntimeError):
        return {}  # a model that cannot go on with such values does not tell
    finally:
        handle.remove()
