"""Read a site's tensor from what a module returns or gets, and write another in its place."""

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_neuroimp.site import Site


class Inputs(NamedTuple):
    """What a module was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def read(site: Site, module: nn.Module, value: Any, n_samples: int | None = None) -> Tensor:
    """The site's tensor, samples first; a view of what the model has.

    Args:
        site: whose.
        module: that was called.
        value: its output, or its `Inputs`.
        n_samples: of the batch, where it shall be checked.

    Raises:
        ValueError: if there is no floating-point tensor with one entry per sample.
    """
    kind = f"layer {site.name!r} ({type(module).__name__})"
    if isinstance(value, nn.utils.rnn.PackedSequence) or (
        isinstance(value, tuple)
        and value
        and isinstance(value[0], nn.utils.rnn.PackedSequence)
        and site.path[:1] != (1,)
    ):
        raise ValueError(
            f"{kind} packs the tokens of all samples in one row; choose its last states, Site({site.name!r}, item=1) "
            "or for an LSTM item=(1, 0), or a layer behind it"
        )
    found = _at(value, _path(site, module, value, kind), site, kind)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"{kind} has an {site.side} that is a {type(found).__name__}, not a tensor; choose an item of it, or a "
            "layer inside or behind it that has one"
        )
    if not found.is_floating_point():
        raise ValueError(
            f"{kind} has an {site.side} of integers ({found.dtype}), which have no gradient and no removal; choose a "
            "layer behind it"
        )
    axis = site.sample_axis or 0
    if found.ndim <= axis or (n_samples is not None and found.shape[axis] != n_samples):
        raise ValueError(
            f"{kind} has an {site.side} of shape {tuple(found.shape)} for a batch of {n_samples} samples; its "
            f"{'first axis' if not axis else f'axis {axis}'} must be the samples. {_other_axis(site, found, n_samples)}"
        )
    return found.movedim(axis, 0) if axis else found


def write(site: Site, module: nn.Module, value: Any, activation: Tensor) -> Any:
    """What `read` was given, with other activations in place; containers are copied.

    Args:
        site: whose.
        module: that was called.
        value: its output, or its `Inputs`.
        activation: samples first.
    """
    axis = site.sample_axis or 0
    tensor = activation.movedim(0, axis) if axis else activation
    written = _put(value, _path(site, module, value, ""), tensor)
    return tuple(written) if isinstance(written, Inputs) else written


def _other_axis(site: Site, tensor: Tensor, n_samples: int | None) -> str:
    fitting = [axis for axis, size in enumerate(tensor.shape) if size == n_samples]
    if fitting and (tensor.ndim > 2 or site.sample_axis):
        return f"If they are on axis {fitting[0]}, pass Site({site.name!r}, sample_axis={fitting[0]})"
    return (
        "A layer that sees some of the samples, or all their tokens or nodes in one row, cannot be explained: choose "
        "one around or behind it"
    )


def _path(site: Site, module: nn.Module, value: Any, kind: str) -> tuple[int | str, ...]:
    """Where the tensor is in an output or in `Inputs`."""
    path = site.path
    if site.side == "input":
        if path:
            return ("kwargs" if isinstance(path[0], str) else "args", *path)
        options: list[tuple[Any, ...]] = [("args", place) for place in range(len(value.args))]
        options += [("kwargs", key) for key in value.kwargs]
        return _only(site, value, options, kind)
    if path or isinstance(value, Tensor):
        return path
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and isinstance(value, tuple):
        return (0,)  # the output, beside states or attention weights
    return _only(site, value, [(key,) for key in _keys(value)], kind)


def _only(site: Site, value: Any, options: list[tuple[Any, ...]], kind: str) -> tuple[Any, ...]:
    """The one place with a tensor of numbers."""
    tensors = [path for path in options if isinstance(_at(value, path, site, kind), Tensor)]
    floating = [path for path in tensors if _at(value, path, site, kind).is_floating_point()]
    if len(floating) == 1:
        return floating[0]
    if not options:
        what = "none" if isinstance(value, Inputs) else f"a {type(value).__name__}, not a tensor"
        raise ValueError(f"{kind} has as its {site.side} {what}; choose a layer inside or behind it that has one")
    if len(floating) < 1:
        return tensors[0] if tensors else options[0]  # refused when it is read
    items = [path[-1] for path in floating]
    raise ValueError(
        f"{kind} has several tensors as its {site.side}, {describe(value)}; say which: Site({site.name!r}, "
        f"{'side=' + repr('input') + ', ' if site.side == 'input' else ''}item={items[0]!r}), or "
        f"{' or '.join(map(repr, items[1:]))}"
    )


def _keys(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value)
    if isinstance(value, tuple | list):
        return list(range(len(value)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    return []


def _at(value: Any, path: Sequence[int | str], site: Site, kind: str) -> Any:
    for key in path:
        try:
            value = getattr(value, key) if isinstance(key, str) and not isinstance(value, Mapping) else value[key]
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{kind} has no item {site.item!r} in its {site.side}, which is {describe(value)}"
            ) from error
    return value


def _put(value: Any, path: Sequence[int | str], tensor: Tensor) -> Any:
    if not path:
        return tensor
    key = path[0]
    if isinstance(value, Mapping):
        name = list(value)[key] if isinstance(key, int) and key not in value else key
        part = _put(value[name], path[1:], tensor)
        if isinstance(value, MutableMapping):
            changed = copy.copy(value)
            changed[name] = part
            return changed
        return {**value, name: part}
    if isinstance(value, tuple | list):
        fields = getattr(value, "_fields", None)
        place = fields.index(key) if isinstance(key, str) and fields is not None else int(key)
        parts = list(value)
        parts[place] = _put(parts[place], path[1:], tensor)
        return type(value)(*parts) if fields is not None else type(value)(parts)
    changed = copy.copy(value)
    object.__setattr__(changed, str(key), _put(getattr(value, str(key)), path[1:], tensor))
    return changed


def describe(value: Any) -> str:
    """A module's output or inputs in short: types and shapes.

    >>> import torch
    >>> describe((torch.zeros(2, 3), None))
    '(Tensor 2 x 3, None)'
    """
    if isinstance(value, Inputs):
        named = [f"{key}={describe(part)}" for key, part in value.kwargs.items()]
        return f"({', '.join([*map(describe, value.args), *named])})"
    if isinstance(value, Tensor):
        return f"Tensor {' x '.join(map(str, value.shape))}".strip()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {describe(part)}' for key, part in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(describe, value))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}({', '.join(f'{key}: {describe(getattr(value, key))}' for key in _keys(value))})"
    return "None" if value is None else type(value).__name__
