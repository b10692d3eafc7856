"""Find the sites that names and globs stand for."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_neuroimp import _validate
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Site

MAX_GLOB_SITES = 16
"""A glob that matches more modules than this is refused: they can be named one by one."""


def validate_layers(layers: Any) -> list[Any]:
    """Return the layers that are asked for as a list, before there is a model in which to look for them.

    Args:
        layers: a name, glob or site, or several of them. A module passes here: once there is a model, `find_sites`
            says what its name is.

    Raises:
        InvalidArgument: if it is something else, or empty.
    """
    single = isinstance(layers, str | Site | nn.Module) or not isinstance(layers, Iterable)
    asked = [layers] if single else list(layers)
    for layer in asked:
        if not isinstance(layer, str | Site | nn.Module):
            raise InvalidArgument(f"layers must be names, globs or sites, got {_validate.shown(layer)}")
    if not asked:
        raise InvalidArgument("layers is empty: name at least one layer, as in model.named_modules()")
    return asked


def find_sites(model: nn.Module, layers: Any) -> tuple[Site, ...]:
    """Return the sites of a model that names and globs stand for.

    A site that is named in two ways comes once; one that is named outright is not optional, whatever glob matches it.

    Args:
        model: its `named_modules()` are searched.
        layers: names, globs (`*` stands for one level of a name, `**` for any number) or sites.

    Returns:
        Sites with their sample axis, in the order asked for, globs in the model's order.

    Raises:
        InvalidArgument: if a name is not there, a glob matches nothing or more than 16 modules, or nothing is asked
            for.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [site.name for site in find_sites(model, "*")]
    ['0', '1', '2']
    """
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, Site] = {}
    for layer in validate_layers(layers):
        if isinstance(layer, nn.Module):
            raise InvalidArgument(_name_of(model, layer))
        asked = Site(layer) if isinstance(layer, str) else layer
        for match in _matches(asked, names, type(model).__name__):
            site = _with_sample_axis(model, match)
            previous = found.get(str(site))
            if previous is None or (previous.optional and not site.optional):
                found[str(site)] = site
            elif site != previous and not site.optional:
                raise InvalidArgument(
                    f"layers name {str(site)!r} twice, with samples on axis {previous.sample_axis} and on axis "
                    f"{site.sample_axis}: pass one of them"
                )
    return tuple(found.values())


def _matches(site: Site, names: Sequence[str], model: str) -> list[Site]:
    """Return the sites that a site's name stands for: itself, or those that its glob matches.

    Args:
        site: one that was asked for.
        names: of all modules.
        model: class of the model, for messages.

    Raises:
        InvalidArgument: if there is none, or a glob matches too many.
    """
    if "*" not in site.name:
        if site.name not in names:
            raise InvalidArgument(f"there is no layer {site.name!r} in {model}: {_known(site.name, names)}")
        return [site]
    matches = [name for name in names if _pattern(site.name).fullmatch(name)]
    if not matches:
        raise InvalidArgument(f"no layer in {model} matches {site.name!r}: {_known(site.name, names)}")
    if len(matches) > MAX_GLOB_SITES:
        raise InvalidArgument(
            f"{site.name!r} matches {len(matches)} layers, more than the {MAX_GLOB_SITES} that a glob may stand for; "
            f"name those that you want, for instance {matches[:3]}"
        )
    return [replace(site, name=name, optional=True) for name in matches]


def _known(name: str, names: Sequence[str]) -> str:
    """Say which layers a wrong name may mean, and where all of them are listed."""
    return f"{_validate.closest(name, names, 'layers')} (model.named_modules() lists them all)"


def _name_of(model: nn.Module, layer: nn.Module) -> str:
    """Say what to pass in place of a module."""
    name = next((name for name, module in model.named_modules() if module is layer and name), None)
    remedy = "pass the name of a layer in model.named_modules()" if name is None else f"pass its name, {name!r}"
    return f"layers must be names, globs or sites, got a module, {type(layer).__name__}: {remedy}"


def _pattern(glob: str) -> re.Pattern[str]:
    """Return the regular expression that matches the names that a glob matches."""
    parts = re.split(r"(\*\*|\*)", glob)
    return re.compile("".join({"**": ".*", "*": "[^.]*"}.get(part, re.escape(part)) for part in parts))


def _with_sample_axis(model: nn.Module, site: Site) -> Site:
    """Return the site with the sample axis that torch's recurrent layers, attention and encoders around it declare."""
    if site.sample_axis is not None:
        return site
    module = model.get_submodule(site.name)
    if isinstance(module, nn.RNNBase) and site.side == "output" and site.path[:1] == (1,):
        return replace(site, sample_axis=1)  # of the last states, whatever batch_first is
    parts = site.name.split(".")
    around = [model.get_submodule(".".join(parts[:level])) for level in range(len(parts) + 1)]
    return replace(site, sample_axis=0 if all(map(_batch_first, around)) else 1)


def _batch_first(module: nn.Module) -> bool:
    """Tell whether a module of torch has the samples on axis 0; True for all others."""
    if isinstance(module, nn.Transformer):
        return bool(module.batch_first)
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        module = module.layers[0]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return bool(module.batch_first)
    return True
