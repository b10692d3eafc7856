"""Find the sites that names and globs stand for."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_neuroimp.site import Site

MAX_GLOB_SITES = 16
"""Globs that match more modules than this are refused: name them one by one to have them all."""


def check_layers(layers: Any) -> list[Any]:
    """What was asked for, one by one, before there is a model.

    Raises:
        ValueError: if it is neither a name, glob or site (or a module, of which the model will tell the name) nor
            several of them.
    """
    single = isinstance(layers, str | Site | nn.Module) or not isinstance(layers, Iterable)
    asked = [layers] if single else list(layers)
    for layer in asked:
        if not isinstance(layer, str | Site | nn.Module):
            raise ValueError(f"layers must be names, globs or sites, got {layer!r}")
    if not asked:
        raise ValueError("layers is empty: name at least one layer, as in model.named_modules()")
    return asked


def find_sites(model: nn.Module, layers: Any) -> tuple[Site, ...]:
    """Resolve names and globs.

    Args:
        model: its `named_modules()` are searched.
        layers: names, globs (`*` stands for one level of a name, `**` for any number) or sites.

    Returns:
        Sites with their sample axis, in the order asked for, globs in the model's order.

    Raises:
        ValueError: if a name is not there, a glob matches nothing or more than 16 modules, or nothing was asked for.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [site.name for site in find_sites(model, "*")]
    ['0', '1', '2']
    """
    asked = check_layers(layers)
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, Site] = {}
    for layer in asked:
        if isinstance(layer, nn.Module):
            known = [name for name, module in model.named_modules() if module is layer and name]
            remedy = f"pass its name, {known[0]!r}" if known else "pass the name of a layer in model.named_modules()"
            raise ValueError(f"layers must be names, globs or sites, got a module, {type(layer).__name__}: {remedy}")
        site = Site(layer) if isinstance(layer, str) else layer
        if "*" in site.name:
            matches = [name for name in names if _glob(site.name).fullmatch(name)]
            if not matches:
                raise ValueError(f"no layer matches {site.name!r}: {_closest(site.name.replace('*', ''), names)}")
            if len(matches) > MAX_GLOB_SITES:
                raise ValueError(
                    f"{site.name!r} matches {len(matches)} layers, more than the {MAX_GLOB_SITES} that a glob may "
                    f"stand for; name those that you want, for instance {matches[:3]}"
                )
            for name in matches:
                one = _with_sample_axis(model, replace(site, name=name, optional=True))
                found.setdefault(str(one), one)
        elif site.name in names:
            found[str(site)] = _with_sample_axis(model, site)
        else:
            raise ValueError(f"there is no layer {site.name!r} in {type(model).__name__}: {_closest(site.name, names)}")
    return tuple(found.values())


def _with_sample_axis(model: nn.Module, site: Site) -> Site:
    """With the sample axis that torch's own recurrent layers, attention and encoders say that they have."""
    if site.sample_axis is not None:
        return site
    module = model.get_submodule(site.name)
    if isinstance(module, nn.RNNBase) and site.side == "output" and site.path[:1] == (1,):
        return replace(site, sample_axis=1)  # of the last states, whatever batch_first is
    parts = site.name.split(".")
    around = [model.get_submodule(".".join(parts[:level])) for level in range(len(parts) + 1)]
    return replace(site, sample_axis=0 if all(map(_batch_first, around)) else 1)


def _batch_first(module: nn.Module) -> bool:
    """False where everything inside has the samples on axis 1."""
    if isinstance(module, nn.Transformer):
        return bool(module.batch_first)
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        module = module.layers[0]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return bool(module.batch_first)
    return True


def _glob(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.compile("".join({"**": ".*", "*": "[^.]*"}.get(part, re.escape(part)) for part in parts))


def _closest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}? model.named_modules() lists all names"
    return f"its layers are {', '.join(map(repr, names[:8]))}{', ...' if len(names) > 8 else ''}"
