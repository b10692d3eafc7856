"""Find the sites that names and globs stand for."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lightning_neuroimp import _validate
from lightning_neuroimp.capture.hooks import has_forward, parts_of, scripted_around, surrounding
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
    A module that has several names has the one that it is asked for by; globs give it the first one that they match.

    Args:
        model: its `named_modules()` are searched.
        layers: names, globs (`*` stands for one level of a name, `**` for any number) or sites.

    Returns:
        Sites with their sample axis, in the order asked for, globs in the model's order.

    Raises:
        InvalidArgument: if a name is not there or is that of a list of layers, a glob matches nothing or more than 16
            modules, one module is asked for by two names, or nothing is asked for.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [site.name for site in find_sites(model, "*")]
    ['0', '1', '2']
    """
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    found: dict[tuple[int, str], Site] = {}
    for layer in validate_layers(layers):
        if isinstance(layer, nn.Module):
            raise InvalidArgument(_name_of(model, layer))
        asked = Site(layer) if isinstance(layer, str) else layer
        for match in _matches(asked, modules, model):
            site = _with_sample_axis(model, match)
            key = id(modules[site.name]), str(replace(site, name="_"))
            previous = found.get(key)
            if previous is None or (previous.optional and not site.optional):
                found[key] = site
            elif site.name != previous.name and not site.optional:
                raise InvalidArgument(
                    f"layers {previous.name!r} and {site.name!r} are one module under two names: pass one of them"
                )
            elif site.name == previous.name and site != previous and not site.optional:
                raise InvalidArgument(
                    f"layers name {str(site)!r} twice, with samples on axis {previous.sample_axis} and on axis "
                    f"{site.sample_axis}: pass one of them"
                )
    return tuple(found.values())


def _matches(site: Site, modules: Mapping[str, nn.Module], model: nn.Module) -> list[Site]:
    """Return the sites that a site's name stands for: itself, or those that its glob matches.

    Args:
        site: one that was asked for.
        modules: by their names.
        model: holds them.

    Raises:
        InvalidArgument: if there is none, or a glob matches too many.
    """
    kind = type(model).__name__
    if "*" not in site.name:
        if site.name not in modules:
            raise InvalidArgument(f"there is no layer {site.name!r} in {kind}: {_known(site.name, list(modules))}")
        wrong = _never_called(model, site.name, modules[site.name])
        if wrong is not None:
            raise InvalidArgument(wrong)
        return [site]
    first = {
        id(module): name for name, module in reversed(list(modules.items())) if _pattern(site.name).fullmatch(name)
    }
    names = [name for name, module in modules.items() if first.get(id(module)) == name]
    wrong_ones = [_never_called(model, name, modules[name]) for name in names]
    matches = [name for name, wrong in zip(names, wrong_ones, strict=True) if wrong is None]
    if not matches and wrong_ones:
        raise InvalidArgument(str(wrong_ones[0]))
    if not matches:
        raise InvalidArgument(f"no layer in {kind} matches {site.name!r}: {_known(site.name, list(modules))}")
    if len(matches) > MAX_GLOB_SITES:
        raise InvalidArgument(
            f"{site.name!r} matches {len(matches)} layers, more than the {MAX_GLOB_SITES} that a glob may stand for; "
            f"name those that you want, for instance {matches[:3]}"
        )
    return [replace(site, name=name, optional=True) for name in matches]


def _known(name: str, names: Sequence[str]) -> str:
    """Say which layers a wrong name may mean, and where all of them are listed."""
    if not names:
        return "it has no named layers (one that was scripted and frozen has none: pass it as it was before)"
    globs = list(_closest_globs(name, names)) if "*" in name else []
    close = f"did you mean {' or '.join(map(repr, globs))}?" if globs else _validate.closest(name, names, "layers")
    return f"{close} (model.named_modules() lists them all)"


def _closest_globs(glob: str, names: Sequence[str]) -> Iterator[str]:
    """Yield up to two globs that match, of the names that have most of the literal parts of one that matches nothing.

    >>> list(_closest_globs("enc.*.fc", ["encoder", "encoder.0", "encoder.0.fc1", "encoder.1.fc1", "head.fc"]))
    ['encoder.*.fc1']
    """
    literal = [part for part in re.split(r"[.*]+", glob) if part and not part.isdigit()]
    score = {name: sum(_likeness(part, name.split(".")) for part in literal) for name in names}
    best = max(score.values(), default=0.0)
    # of those that have equally many, the one with the same number of levels
    chosen = sorted(
        (name for name in names if score[name] > best - 0.05),
        key=lambda name: abs(name.count(".") - glob.count(".")),
    )
    if best > 0:
        yield from list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in chosen))[:2]


def _likeness(part: str, levels: Sequence[str]) -> float:
    """Return how far one of the levels of a name is like a part of a glob: from 0.6 to 1, or 0."""
    found = 0.0
    for level in levels:
        ratio = difflib.SequenceMatcher(None, part.lower(), level.lower()).ratio()
        inside = part.lower() in level.lower() or level.lower() in part.lower()
        found = max(found, ratio, 0.8 if inside and not level.isdigit() else 0.0)
    return found if found >= 0.6 else 0.0


def _never_called(model: nn.Module, name: str, module: nn.Module) -> str | None:
    """Say which layers to name in place of a module that is never called with hooks; None for one that may be."""
    scripted = scripted_around(model, name)
    if scripted is not None:
        return f"layer {name!r} {scripted}"
    if has_forward(module):
        return None
    parts = [part for part, _ in parts_of(module, name)]
    what = f"layer {name!r} is a {type(module).__name__}, which defines no forward() and is never called"
    if not parts and any(isinstance(outer, torch.fx.GraphModule) for _, outer in surrounding(model, name)):
        return f"{what}: torch.export keeps operations in place of layers; pass the model as it was before"
    if not parts:
        return f"{what}: name a layer, as in model.named_modules()"
    glob = f", or {name + '.*'!r}" if 1 < len(list(module.children())) <= MAX_GLOB_SITES else ""
    dots = ", ..." if len(parts) > 2 else ""
    return f"{what}: name the layers in it, {', '.join(map(repr, parts[:2]))}{dots}{glob}"


def _name_of(model: nn.Module, layer: nn.Module) -> str:
    """Say what to pass in place of a module."""
    names = [name for name, each in model.named_modules(remove_duplicate=False) if each is layer and name]
    remedy = "pass the name of a layer in model.named_modules()"
    if names:
        remedy = f"pass its name, {' or '.join(map(repr, names[:3]))}"
    return f"layers must be names, globs or sites, got a module, {type(layer).__name__}: {remedy}"


def _pattern(glob: str) -> re.Pattern[str]:
    """Return the regular expression that matches the names that a glob matches."""
    parts = re.split(r"(\*\*|\*)", glob)
    return re.compile("".join({"**": ".*", "*": "[^.]*"}.get(part, re.escape(part)) for part in parts))


def site_of(model: nn.Module, name: str) -> Site:
    """Return the site that is the output of any module, also of one that is never called."""
    return _with_sample_axis(model, Site(name))


def _with_sample_axis(model: nn.Module, site: Site) -> Site:
    """Return the site with the sample axis that torch's recurrent layers, attention and encoders around it declare."""
    if site.sample_axis is not None:
        return site
    module = nn.Module.get_submodule(model, site.name)  # scripted modules hide this method
    if isinstance(module, nn.RNNBase) and site.side == "output" and site.path[:1] == (1,):
        return replace(site, sample_axis=1)  # of the last states, whatever batch_first is
    around = [module, *(outer for _, outer in surrounding(model, site.name))]
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
