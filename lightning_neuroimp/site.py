"""Site and Removal: where neurons are read, and what removing them means. Plain values, without a model."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from lightning_neuroimp import _validate

SIDES = ("output", "input")
OWN = "own"
"""Kind of what the user has defined: a callable for clusters, an attribution, a target."""


@dataclass(frozen=True)
class Site:
    """Say where neurons are read and removed: at the output or an input of a module, in one of its calls.

    `str(site)` names its results in tables and tags, such as `encoder.1`, `relu (call 1)` or
    `attention.out (input, groups of 8)`.

    Attributes:
        name: as in `model.named_modules()`, or a glob.
        axis: axis of the tensor along which neurons are counted. By default: 1 for (sample, neuron) tensors; else the
            last for linear and recurrent layers, attention and layer norms, 1 for convolutions, their norms and
            pooling; for any other module, such as an activation, that of the layer that ran last before.
        optional: whether a module that is not called, or returns no tensor, is skipped (it came from a glob).
        side: "output" of the module, or its "input".
        call: number of the module's call in a forward pass, 0 for the first; None: it must be called once.
        item: index or key in an output that is a tuple or mapping (a tuple of them for nested ones); for inputs, the
            number of the positional argument or the name of the keyword. None: the only tensor, and the output of
            recurrent layers and attention.
        position: number of the one token of a token layer that is meant, such as 0 for a class token or -1 for the
            last; padding is not counted. None: all unpadded tokens.
        group: number of neighbours along the neuron axis that count as one neuron, such as the width of a head.
        sample_axis: axis of the samples; by default 0, and 1 inside modules of torch with `batch_first=False`.

    Raises:
        InvalidArgument: if a field has no valid value.

    >>> str(Site("attention.out", side="input", group=8))
    'attention.out (input, groups of 8)'
    """

    name: str
    axis: int | None = None
    optional: bool = False
    side: str = "output"
    call: int | None = None
    item: int | str | tuple[int | str, ...] | None = None
    position: int | None = None
    group: int = 1
    sample_axis: int | None = None

    def __post_init__(self) -> None:
        _validate.choice("side of a site", self.side, SIDES)
        remedies = {"call": "0 is the first call"}
        for field, least in (("call", 0), ("group", 1), ("sample_axis", 0), ("position", None), ("axis", None)):
            value = getattr(self, field)
            if value is not None or field == "group":
                valid = _validate.integer(f"{field} of a site", value, least=least, remedy=remedies.get(field, ""))
                object.__setattr__(self, field, valid)

    def __str__(self) -> str:
        parts = [
            *(["input"] if self.side == "input" else []),
            *([] if self.axis is None else [f"axis {self.axis}"]),
            *([] if self.call is None else [f"call {self.call}"]),
            *([] if self.item is None else [f"item {'.'.join(map(str, self.path))}"]),
            *([] if self.position is None else [f"position {self.position}"]),
            *([] if self.group == 1 else [f"groups of {self.group}"]),
        ]
        return f"{self.name} ({', '.join(parts)})" if parts else self.name

    @property
    def path(self) -> tuple[int | str, ...]:
        """Return `item` as a path; empty for None."""
        if self.item is None:
            return ()
        return tuple(self.item) if isinstance(self.item, tuple | list) else (self.item,)

    @property
    def key(self) -> str:
        """Return what random draws at this site are seeded by: it follows from the fields alone, whatever is displayed.

        >>> Site("relu", call=1).key
        'relu;call=1'
        """
        fields: dict[str, Any] = {
            "side": None if self.side == "output" else self.side,
            "axis": self.axis,
            "call": self.call,
            "item": self.path or None,
            "position": self.position,
            "group": None if self.group == 1 else self.group,
        }
        return ";".join([self.name, *(f"{name}={value!r}" for name, value in fields.items() if value is not None)])


@dataclass(frozen=True, eq=False)
class Removal:
    """Say what removing a neuron means: which neurons, set to what, judged by which output.

    Scores are computed for a removal, and ablations take the same object out of the scores' results, so that the two
    cannot disagree.

    Attributes:
        where: the site.
        axis: axis of the site's tensor, samples first, along which the channels are counted.
        baseline: kind of the baseline: "zero", "mean", "resample", "optimal", "constant" for a number, "vector" for
            one number per channel, or "reference" for the means on a reference input.
        baseline_value: value that a removed channel is set to, in the unit of the activations; NaN where it is that of
            another sample ("resample"). A neuron is one channel, or a group of them.
        target: name of the scalar that is explained per sample.
        target_class: class whose target is explained: the "label", the "predicted" class, or one class for all.
        target_kind: "margin", "logit", "log_probability" or "probability"; "own" for a user's function, whatever its
            name is.

    >>> Removal(Site("1", group=2), 1, "zero", np.zeros(8), "margin").n_neurons
    4
    """

    where: Site
    axis: int
    baseline: str
    baseline_value: Float[np.ndarray, " channel"]
    target: str
    target_class: str | int = "label"
    target_kind: str = "margin"

    @property
    def site(self) -> str:
        """Return the site in words."""
        return str(self.where)

    @property
    def n_neurons(self) -> int:
        """Return the number of neurons at the site."""
        return len(self.baseline_value) // self.where.group
