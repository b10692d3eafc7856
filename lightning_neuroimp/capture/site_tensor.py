"""Read a site's tensor from what a module returns or gets, and write another in its place."""

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Site

Path = tuple[int | str, ...]
"""Keys, indices and fields that lead to a part of nested containers."""


class Inputs(NamedTuple):
    """Hold what a module was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def read_activation(site: Site, module: nn.Module, value: Any, n_samples: int | None = None) -> Tensor:
    """Return the site's tensor, samples first: a view of the model's own.

    Args:
        site: says which part of the value, and where its samples are.
        module: was called.
        value: its output, or its `Inputs`.
        n_samples: number of the batch's samples, which the tensor must have; None: any number.

    Raises:
        InvalidArgument: if there is no floating-point tensor with one entry per sample.
    """
    layer = f"layer {site.name!r} ({type(module).__name__})"
    if _is_packed(site, value):
        raise InvalidArgument(
            f"{layer} packs the tokens of all samples in one row; choose its last states, Site({site.name!r}, item=1) "
            "or for an LSTM item=(1, 0), or a later layer"
        )
    found = _get(value, _path(site, module, value, layer), site, layer)
    if not isinstance(found, Tensor):
        raise InvalidArgument(
            f"{layer} has an {site.side} that is a {type(found).__name__}, not a tensor; choose an item of it, or a "
            "submodule or a later layer that has one"
        )
    if not found.is_floating_point():
        raise InvalidArgument(
            f"{layer} has an {site.side} of {found.dtype}, which is no real floating-point number and has no gradient "
            "and no removal; choose a later layer"
        )
    axis = site.sample_axis or 0
    if found.ndim <= axis or (n_samples is not None and found.shape[axis] != n_samples):
        raise InvalidArgument(
            f"{layer} has an {site.side} of shape {tuple(found.shape)} for a batch of {n_samples} samples; its "
            f"{f'axis {axis}' if axis else 'first axis'} must be the samples. "
            + _sample_axis_remedy(site, found, n_samples)
        )
    return found.movedim(axis, 0) if axis else found


def write_activation(site: Site, module: nn.Module, value: Any, activation: Tensor) -> Any:
    """Return a module's value with other activations in place of those that `read_activation` finds.

    Args:
        site: says which part of the value, and where its samples are.
        module: was called.
        value: its output, or its `Inputs`; containers in it are copied.
        activation: samples first.
    """
    axis = site.sample_axis or 0
    tensor = activation.movedim(0, axis) if axis else activation
    written = _put(value, _path(site, module, value, ""), tensor)
    return tuple(written) if isinstance(written, Inputs) else written


def _is_packed(site: Site, value: Any) -> bool:
    """Tell whether a site's tensor is in a packed sequence, whose samples have no axis."""
    packed = nn.utils.rnn.PackedSequence
    if isinstance(value, packed):
        return True
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], packed) and site.path[:1] != (1,)


def _sample_axis_remedy(site: Site, tensor: Tensor, n_samples: int | None) -> str:
    """Say what to do about a tensor that has not one entry per sample where they are expected."""
    fitting = [axis for axis, size in enumerate(tensor.shape) if size == n_samples]
    if fitting and (tensor.ndim > 2 or site.sample_axis):
        return f"If they are on axis {fitting[0]}, pass Site({site.name!r}, sample_axis={fitting[0]})"
    return "Windows, or tokens and nodes in one row, cannot be explained: choose a later layer, or one around it"


def _path(site: Site, module: nn.Module, value: Any, layer: str) -> Path:
    """Return where the site's tensor is in an output or in `Inputs`.

    Raises:
        InvalidArgument: if the site does not say it and there are several tensors, or none.
    """
    path = site.path
    if isinstance(value, Inputs):
        if path:
            return ("kwargs" if isinstance(path[0], str) else "args", *path)
        options: list[Path] = [("args", place) for place in range(len(value.args))]
        return _only_tensor(site, value, [*options, *(("kwargs", key) for key in value.kwargs)], layer)
    if path or isinstance(value, Tensor):
        return path
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and isinstance(value, tuple):
        return (0,)  # the output; states or attention weights come after it
    return _only_tensor(site, value, [(key,) for key in _keys(value)], layer)


def _only_tensor(site: Site, value: Any, options: list[Path], layer: str) -> Path:
    """Return the one path that leads to a floating-point tensor; to any tensor, to be refused, where none does.

    Raises:
        InvalidArgument: if there are several, or nothing at all.
    """
    tensors = [path for path in options if isinstance(_get(value, path, site, layer), Tensor)]
    floating = [path for path in tensors if _get(value, path, site, layer).is_floating_point()]
    if len(floating) == 1:
        return floating[0]
    if not options:
        what = "none" if isinstance(value, Inputs) else f"a {type(value).__name__}, not a tensor"
        raise InvalidArgument(
            f"{layer} has as its {site.side} {what}; choose a submodule or a later layer that has one"
        )
    if not floating:
        return tensors[0] if tensors else options[0]
    first, *others = [repr(path[-1]) for path in floating]
    side = "side='input', " if site.side == "input" else ""
    raise InvalidArgument(
        f"{layer} has several tensors as its {site.side}, {describe_shapes(value)}; say which: "
        f"Site({site.name!r}, {side}item={first}), or {' or '.join(others)}"
    )


def _keys(value: Any) -> list[Any]:
    """Return the keys, indices or fields of a container; none for anything else."""
    if isinstance(value, Mapping):
        return list(value)
    if isinstance(value, tuple | list):
        return list(range(len(value)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    return []


def _get(value: Any, path: Path, site: Site, layer: str) -> Any:
    """Return the part of a value to which a path leads.

    Raises:
        InvalidArgument: if there is no such part.
    """
    part = value
    for key in path:
        if isinstance(part, Tensor):
            raise InvalidArgument(
                f"{layer} has a tensor as its {site.side}, {describe_shapes(part)}, without items; leave item= out"
            )
        try:
            part = getattr(part, key) if isinstance(key, str) and not isinstance(part, Mapping) else part[key]
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise InvalidArgument(
                f"{layer} has no item {site.item!r} in its {site.side}, which is {describe_shapes(part)}"
            ) from error
    return part


def _put(value: Any, path: Sequence[int | str], tensor: Tensor) -> Any:
    """Return a copy of a value with a tensor in place of the part to which a path leads."""
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
        fields = getattr(value, "_fields", None)  # of a named tuple
        place = fields.index(key) if isinstance(key, str) and fields is not None else int(key)
        parts = list(value)
        parts[place] = _put(parts[place], path[1:], tensor)
        return type(value)(*parts) if fields is not None else type(value)(parts)
    changed = copy.copy(value)
    object.__setattr__(changed, str(key), _put(getattr(value, str(key)), path[1:], tensor))
    return changed


def describe_shapes(value: Any) -> str:
    """Return the types and shapes in a module's output or inputs, as short text.

    >>> import torch
    >>> describe_shapes((torch.zeros(2, 3), None))
    '(Tensor 2 x 3, None)'
    """
    if isinstance(value, Inputs):
        named = [f"{key}={describe_shapes(part)}" for key, part in value.kwargs.items()]
        return f"({', '.join([*map(describe_shapes, value.args), *named])})"
    if isinstance(value, Tensor):
        return f"Tensor {' x '.join(map(str, value.shape))}".strip()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {describe_shapes(part)}' for key, part in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(describe_shapes, value))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [f"{key}: {describe_shapes(getattr(value, key))}" for key in _keys(value)]
        return f"{type(value).__name__}({', '.join(parts)})"
    return "None" if value is None else type(value).__name__
