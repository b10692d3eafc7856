"""Ablate neurons of a model in evaluations that the user makes."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neuroimp import _validate
from lightning_neuroimp.batches.fields import tokens_and_doubt
from lightning_neuroimp.batches.masks import Reading
from lightning_neuroimp.batches.structure import copied_to
from lightning_neuroimp.capture.forward import forward_parameters, model_device
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.isolation import undisturbed
from lightning_neuroimp.capture.neuron_axis import AxisTracker, declares_neurons
from lightning_neuroimp.capture.positions import along_axis, along_positions, chosen_positions
from lightning_neuroimp.capture.settling import settle_axis
from lightning_neuroimp.capture.site_tensor import read_activation, write_activation
from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.errors import InvalidArgument
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
    """Set some neurons of a layer to their baseline in every forward pass inside this context.

    Gradients flow through the other neurons. Nothing else about the model is changed, and the hooks are removed
    afterwards, also after an exception. Neurons are removed in every call of the module, unless the site names one
    (counted in each call of the outermost module); at all positions, padded ones included, unless it names one.
    Compiled code runs eagerly inside, as it would ignore hooks.

    Args:
        model: any module.
        site: name of the layer, a `Site`, or the `Removal` of results, which has its baseline:
            `results["encoder.1"].removal`.
        neurons: their numbers, or a mask with one boolean for each.
        baseline: value that they are set to, in the unit of the activations: one number, or one for each channel of
            the layer. By default that of the removal, otherwise 0.
        tokens: (sample, token) mask, True for non-padding tokens, for sites that name a position; by default the mask
            that the model is called with, such as `attention_mask`.

    Raises:
        InvalidArgument: if there is no such layer or neuron, several layers are named, or the baseline depends on the
            sample.

    Warns:
        UserWarning: if the layer was not called inside.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with ablate(model, "1", [0, 1, 2]):
    ...     logits = model(torch.ones(1, 2))
    >>> bool((logits == model[2].bias).all())
    True
    """
    removal = site if isinstance(site, Removal) else None
    sites = find_sites(model, site if removal is None else removal.where)
    if len(sites) > 1:
        raise InvalidArgument(
            f"one layer at a time, got {', '.join(map(str, sites))}: nest `with ablate(...)` to remove from several"
        )
    remover = _Remover(sites[0], removal, neurons, _baseline(removal, baseline), tokens)
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_attention)
        torch.backends.mha.set_fastpath_enabled(False)  # it does not call modules inside
        stack.enter_context(remover.attach(model))
        yield
    if not remover.reached:
        warnings.warn(
            f"no neurons were removed: {str(sites[0])!r} was not called inside `with ablate(...)`; call the model "
            "inside, and choose a layer that it calls",
            stacklevel=3,
        )


class _Remover:
    """Replace the activations of some neurons at one site in forward passes of any kind.

    Attributes:
        reached: whether the site was called.

    Args:
        site: where.
        removal: tells the neuron axis; None: it is inferred.
        neurons: their numbers, or a mask.
        value: what they are set to: a scalar, or one value per channel.
        tokens: True for non-padding tokens; None: as the model is called.

    Raises:
        InvalidArgument: if the neurons are not numbers.
    """

    def __init__(self, site: Site, removal: Removal | None, neurons: Any, value: Tensor, tokens: Tensor | None) -> None:
        self.reached = False
        self._site, self._axis = site, None if removal is None else removal.axis
        numbers = np.asarray(neurons.cpu() if isinstance(neurons, Tensor) else neurons)
        if numbers.dtype.kind not in "biuf":
            raise InvalidArgument(f"neurons must be numbers, or one boolean for each, got {_validate.shown(neurons)}")
        self._neurons = torch.as_tensor(numbers)
        self._value, self._tokens = value, tokens
        self._tracker = AxisTracker()
        self._hook = SiteHook(site, self._visit)
        self._settling = False
        self._calls = _OutermostCalls(self._hook)

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[None]:
        """Hold the hooks inside this context."""
        with ExitStack() as stack:
            stack.enter_context(self._hook.attach(model))
            if self._axis is None:
                stack.enter_context(self._tracker.watch(model))
            unsettled = self._axis is None and self._site.axis is None
            if unsettled and not declares_neurons(model.get_submodule(self._site.name)):
                self._calls.before = partial(self._settle, model)
            if self._site.call is not None or self._site.position is not None or self._calls.before is not None:
                stack.enter_context(self._calls.watch(model))
            yield

    def _settle(self, model: nn.Module, outermost: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Settle the neuron axis by passes of our own before the first one of the user's.

        Args:
            model: holds the site.
            outermost: is about to be called.
            args: what it is called with.
            kwargs: what it is called with by keyword.
        """
        if self._axis is not None or self._settling:
            return
        device = model_device(outermost)
        run = lambda: outermost(*copied_to(args, device), **copied_to(kwargs, device))  # noqa: E731
        self._settling = True
        try:
            with undisturbed(model), torch.no_grad():
                self._axis = settle_axis(model, self._site, run)
        except Exception:
            return  # the user's own pass will fail in the same way
        finally:
            self._settling = False

    def _visit(self, module: nn.Module, value: Any) -> Any:
        if self._settling:
            return None
        self.reached = True
        activation = read_activation(self._site, module, value)
        axis = self._tracker.axis(self._site, module, activation) if self._axis is None else self._axis
        gone = along_axis(self._channels(activation, axis), axis, activation.ndim)
        # without a position, neurons are removed from padding as well
        read = self._calls.reading if self._site.position is not None else Reading(None)
        tokens = read.tokens if self._tokens is None else self._tokens != 0
        if self._tokens is None and read.doubt and (self._site.position or 0) < 0:
            raise InvalidArgument(
                f"position={self._site.position} of layer {self._site.name!r} counts from the last unpadded position, "
                f"but {read.doubt}; pass tokens=, a (sample, token) mask that is True for tokens"
            )
        positions = chosen_positions(self._site, activation, axis, tokens)
        if positions is not None:
            gone = gone & along_positions(positions, axis)
        left = torch.where(gone, self._values(activation, axis), activation)
        return write_activation(self._site, module, value, left)

    def _channels(self, activation: Tensor, axis: int) -> Tensor:
        """Return a mask of the channels that are removed.

        Raises:
            InvalidArgument: if the layer has no such neurons.
        """
        name, group, asked = self._site.name, self._site.group, self._neurons.reshape(-1)
        n_neurons = activation.shape[axis] // group
        if asked.dtype == torch.bool:
            if len(asked) != n_neurons:
                raise InvalidArgument(
                    f"the mask of neurons must have one value for each of the {n_neurons} neurons of layer {name!r}, "
                    f"got {len(asked)}"
                )
            mask = asked
        else:
            wrong = [number for number in asked.tolist() if number != int(number) or not 0 <= number < n_neurons]
            if wrong:
                raise InvalidArgument(
                    f"neurons of layer {name!r} are numbered from 0 to {n_neurons - 1}, got {wrong[:5]}; pass their "
                    "numbers, or one boolean for each"
                )
            mask = torch.zeros(n_neurons, dtype=torch.bool)
            mask[asked.long()] = True
        return mask.repeat_interleave(group).to(activation.device)

    def _values(self, activation: Tensor, axis: int) -> Tensor:
        """Return the baseline, shaped to broadcast against the activations.

        Raises:
            InvalidArgument: if it has another number of channels.
        """
        value = self._value.to(activation.device, activation.dtype)
        if not value.ndim:
            return value
        if value.shape != (activation.shape[axis],):
            raise InvalidArgument(
                f"baseline must be one number, or one for each of the {activation.shape[axis]} channels of layer "
                f"{self._site.name!r}, got shape {tuple(value.shape)}"
            )
        return along_axis(value, axis, activation.ndim)


class _OutermostCalls:
    """Notice where a forward pass begins, and the mask that it is given.

    Attributes:
        reading: which tokens are no padding, as far as the inputs tell.
        before: called before each outermost call, with the module, its arguments and its keywords; None: nothing is.

    Args:
        hook: counts the calls of its site anew in each pass.
    """

    def __init__(self, hook: SiteHook) -> None:
        self.reading = Reading(None)
        self.before: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None] | None = None
        self._hook, self._depth = hook, 0

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Hold the hooks inside this context."""
        with ExitStack() as stack:
            for module in model.modules():
                before = nn.Module.register_forward_pre_hook(module, self._open, prepend=True, with_kwargs=True)
                after = nn.Module.register_forward_hook(module, self._close, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._depth:
            if self.before is not None:
                self.before(module, args, kwargs)
            self._hook.reset()
            names = [parameter.name for parameter in forward_parameters(module)]
            self.reading = tokens_and_doubt({**dict(zip(names, args, strict=False)), **kwargs})
        self._depth += 1

    def _close(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1


def _baseline(removal: Removal | None, baseline: Any) -> Tensor:
    """Return the value that neurons are set to: a scalar, or one value per channel.

    Raises:
        InvalidArgument: if it is no number, or depends on data or on the sample.
    """
    if isinstance(baseline, str):
        if baseline == "zero":
            return torch.zeros(())
        raise InvalidArgument(
            f"baseline={baseline!r} depends on data: pass numbers, or results[layer].removal as the site, from results "
            "with that baseline"
        )
    if baseline is not None:
        try:
            return torch.as_tensor(baseline, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidArgument(
                f"baseline must be one number, or one for each channel of the layer, got {_validate.shown(baseline)}"
            ) from error
    if removal is None:
        return torch.zeros(())
    if np.isnan(removal.baseline_value).any():
        raise InvalidArgument(
            f"the removal's baseline is {removal.baseline!r}, another value for each sample: pass baseline= numbers, "
            "or a removal with another baseline"
        )
    return torch.from_numpy(removal.baseline_value)
