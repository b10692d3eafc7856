"""Site and Removal: where neurons are read, and what removing them means. Plain values."""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Site:
    """Where neurons are read and removed: the output or an input of a module, in one of its calls.

    `str(site)` is the key of its results and the name in tables and tags: `encoder.1`, `relu (call 1)`,
    `attention.out (input, groups of 8)`.

    Attributes:
        name: as in `model.named_modules()`, or a glob.
        axis: of the tensor, along which neurons are counted. By default: 1 for (sample, neuron) tensors; else the
            last for linear and recurrent layers, attention and layer norms, 1 for convolutions, their norms and
            pooling; for any other module, such as an activation, that of the layer that ran last before.
        optional: whether a module that is not called, or returns no tensor, is passed over (it came from a glob).
        side: "output" of the module, or its "input".
        call: which call of the module in a forward pass, 0 for the first; None: it must be called once.
        item: of an output that is a tuple or mapping, which index or key (a tuple of them for nested ones); of inputs,
            the number of the positional argument or the name of the keyword. None: the only tensor, and the output of
            recurrent layers and attention.
        position: of token layers, the number of the one token that is meant, such as 0 for a class token or -1 for the
            last; padding is not counted. None: all unpadded tokens.
        group: so many neighbours along the neuron axis count as one neuron, such as the width of an attention head.
        sample_axis: of the tensor; by default 0, and 1 inside modules of torch with `batch_first=False`.
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
        if self.side not in ("output", "input"):
            raise ValueError(f"side of a site must be 'output' or 'input', got {self.side!r}")
        for field, least in (("call", 0), ("group", 1), ("sample_axis", 0), ("position", None), ("axis", None)):
            value = getattr(self, field)
            if value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise ValueError(f"{field} of a site must be an integer, got {value!r}")
            if least is not None and int(value) < least:
                hint = " (0 is the first)" if field == "call" else ""
                raise ValueError(f"{field} of a site must be {least} or more{hint}, got {value}")
            object.__setattr__(self, field, int(value))

    def __str__(self) -> str:
        parts = [
            *(["input"] if self.side == "input" else []),
            *([] if self.call is None else [f"call {self.call}"]),
            *([] if self.item is None else [f"item {'.'.join(map(str, self.path))}"]),
            *([] if self.position is None else [f"position {self.position}"]),
            *([] if self.group == 1 else [f"groups of {self.group}"]),
        ]
        return f"{self.name} ({', '.join(parts)})" if parts else self.name

    @property
    def path(self) -> tuple[int | str, ...]:
        """`item` as a path; empty for None."""
        if self.item is None:
            return ()
        return tuple(self.item) if isinstance(self.item, tuple | list) else (self.item,)


@dataclass(frozen=True, eq=False)
class Removal:
    """What removing a neuron means: which neurons, set to what, judged by which output.

    Scores are computed for a removal, and ablations take the same object out of the scores' results, so that the two
    cannot disagree.

    Attributes:
        where: the site.
        axis: of its tensor, samples first, along which the neurons are counted.
        baseline: name of the baseline: "zero", "mean", "resample", or a number.
        baseline_value: value that a removed channel is set to, in the unit of the activations; NaN where it is that of
            another sample ("resample"). A neuron is one channel, or a group of them.
        target: name of the scalar that is explained per sample.
        target_class: whose: of the "label", of the "predicted" class, or of one class for all.
    """

    where: Site
    axis: int
    baseline: str
    baseline_value: Float[np.ndarray, " channel"]
    target: str
    target_class: str | int = "label"

    @property
    def site(self) -> str:
        """The site in words."""
        return str(self.where)

    @property
    def n_neurons(self) -> int:
        """Number of neurons at the site."""
        return len(self.baseline_value) // self.where.group
