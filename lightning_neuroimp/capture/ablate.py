"""ablate(model, site, neurons): a model without some neurons, for one's own evaluation."""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neuroimp.batches.fields import find_tokens
from lightning_neuroimp.capture.axes import AxisTracker
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.positions import along_axis, along_positions, chosen_positions
from lightning_neuroimp.capture.site_tensor import read, write
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.site import Removal, Site


@contextmanager
def ablate(
    model: nn.Module,
    site: str | Site | Removal,
    neurons: Sequence[int] | np.ndarray | Tensor,
    *,
    baseline: float | str | Sequence[float] | np.ndarray | Tensor | None = None,
    tokens: Tensor | None = None,
) -> Iterator[None]:
    """Inside this context the model runs without some neurons of a layer: they are set to their baseline.

    Gradients flow through the other neurons. Nothing else about the model is changed, and the hooks are gone
    afterwards, also after an exception. Neurons are removed in every call of the module, unless the site names one
    (counted in each call of the outermost module); at all positions, also padded ones, unless it names one. Compiled
    code runs eagerly inside, as it would ignore hooks.

    Args:
        model: any module.
        site: name of the layer, a `Site`, or the `Removal` of results, which brings its baseline along:
            `results["encoder.1"].removal`.
        neurons: their numbers, or a mask with one boolean for each.
        baseline: what they are set to: one number, or one for each channel of the layer. By default that of the
            removal, else 0.
        tokens: (sample, token), true where a token is no padding, for sites that name a position; by default the mask
            that the model is called with, such as `attention_mask`.

    Raises:
        ValueError: if the layer or a neuron is not there, several layers are named, or the baseline depends on the
            sample.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with ablate(model, "1", [0, 2]):
    ...     logits = model(torch.ones(1, 2))
    """
    removal = site if isinstance(site, Removal) else None
    sites = find_sites(model, site if removal is None else removal.where)
    if len(sites) > 1:
        raise ValueError(
            f"one layer at a time, got {', '.join(map(str, sites))}: nest `with ablate(...)` to remove from several"
        )
    where = sites[0]
    value = _baseline(removal, baseline)
    chosen = torch.as_tensor(np.asarray(neurons.cpu() if isinstance(neurons, Tensor) else neurons))
    chosen = chosen.reshape(-1)
    tracker = AxisTracker()
    reached = 0

    def visit(module: nn.Module, found: Any) -> Any:
        nonlocal reached
        reached += 1
        activation = read(where, module, found)
        axis = tracker.axis(where, module, activation) if removal is None else removal.axis
        gone = along_axis(_mask(where, chosen, activation, axis), axis, activation.ndim)
        positions = chosen_positions(where, activation, axis, calls.tokens if tokens is None else tokens != 0)
        if positions is not None:
            gone = gone & along_positions(positions, axis)
        return write(where, module, found, torch.where(gone, _shaped(where, value, activation, axis), activation))

    tap = SiteHook(where, visit)
    calls = _Outermost(tap)
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_attention)
        torch.backends.mha.set_fastpath_enabled(False)  # it would pass modules by
        stack.enter_context(tap.attach(model))
        if removal is None:
            stack.enter_context(tracker.watch(model))
        if where.call is not None or where.position is not None:
            stack.enter_context(calls.watch(model))
        yield
    if not reached:
        warnings.warn(
            f"no neurons were removed: {str(where)!r} was not called inside `with ablate(...)`; call the model inside, "
            "and choose a layer that it calls",
            stacklevel=3,
        )


class _Outermost:
    """Notices where a forward pass begins, and the mask that it is given.

    Attributes:
        tokens: true where a token is no padding; None without a mask.
    """

    def __init__(self, tap: SiteHook) -> None:
        self.tokens: Tensor | None = None
        self._tap, self._depth = tap, 0

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Hold the hooks inside this context."""
        with ExitStack() as stack:
            for module in model.modules():
                before = module.register_forward_pre_hook(self._open, prepend=True, with_kwargs=True)
                after = module.register_forward_hook(self._close, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._depth:
            self._tap.reset()
            names = inspect.signature(module.forward).parameters
            self.tokens = find_tokens({**dict(zip(names, args, strict=False)), **kwargs})
            if self.tokens is None and args:
                self.tokens = find_tokens(args[0])
        self._depth += 1

    def _close(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1


def _baseline(removal: Removal | None, baseline: Any) -> Tensor:
    if isinstance(baseline, str):
        if baseline == "zero":
            return torch.zeros(())
        raise ValueError(
            f"baseline={baseline!r} depends on data: pass numbers, or results[layer].removal as the site, from results "
            "with that baseline"
        )
    if baseline is not None:
        return torch.as_tensor(baseline, dtype=torch.float64)
    if removal is None:
        return torch.zeros(())
    if np.isnan(removal.baseline_value).any():
        raise ValueError(
            f"the removal's baseline is {removal.baseline!r}, another value for each sample: pass baseline= numbers, "
            "or a removal with another baseline"
        )
    return torch.from_numpy(removal.baseline_value)


def _mask(site: Site, chosen: Tensor, activation: Tensor, axis: int) -> Tensor:
    """True for each channel that is removed."""
    n_neurons = activation.shape[axis] // site.group
    if chosen.dtype == torch.bool:
        if len(chosen) != n_neurons:
            raise ValueError(
                f"the mask of neurons must have one value for each of the {n_neurons} neurons of layer {site.name!r}, "
                f"got {len(chosen)}"
            )
        mask = chosen
    else:
        wrong = [number for number in chosen.tolist() if number != int(number) or not 0 <= number < n_neurons]
        if wrong:
            raise ValueError(
                f"neurons of layer {site.name!r} are numbered from 0 to {n_neurons - 1}, got {wrong[:5]}; pass their "
                "numbers, or one boolean for each"
            )
        mask = torch.zeros(n_neurons, dtype=torch.bool)
        mask[chosen.long()] = True
    return mask.repeat_interleave(site.group).to(activation.device)


def _shaped(site: Site, value: Tensor, activation: Tensor, axis: int) -> Tensor:
    value = value.to(activation.device, activation.dtype)
    if not value.ndim:
        return value
    if value.shape != (activation.shape[axis],):
        raise ValueError(
            f"baseline must be one number, or one for each of the {activation.shape[axis]} channels of layer "
            f"{site.name!r}, got shape {tuple(value.shape)}"
        )
    return along_axis(value, axis, activation.ndim)
