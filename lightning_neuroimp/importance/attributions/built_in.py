"""Give built-in scores options, and names that tell them: the base of their classes."""

import ast
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


@dataclass(frozen=True)
class BuiltInScore:
    """Compute a score that has options: the base class of all of these.

    Attributes:
        kind: key of the score, and its name where all options have their default values.
        needs_gradient: whether it reads `SiteBatch.gradient`.
    """

    kind: ClassVar[str]
    needs_gradient: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Return the name in results, tags and tables: the kind, and the options with other values than by default.

        >>> from lightning_neuroimp import MaskedGradient
        >>> MaskedGradient(points=8).name
        'masked_gradient(points=8)'
        """
        options: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        defaults = {each.name: each.default for each in fields(self)}
        changed = [f"{name}={value!r}" for name, value in options.items() if value != defaults[name]]
        return f"{self.kind}({', '.join(changed)})" if changed else self.kind

    @property
    def cost(self) -> str:
        """Return the passes that it takes at each layer in addition to those that all scores share, in words."""
        return ""

    def __call__(self, batch: SiteBatch, /) -> Float[Tensor, "sample neuron"]:
        """Compute the scores of one site on one batch.

        Args:
            batch: activations of the site.
        """
        raise NotImplementedError


def gradient_passes(number: int) -> str:
    """Return a number of forward and backward passes in words."""
    return "1 forward and backward pass" if number == 1 else f"{number} forward and backward passes"


def options_in(text: str) -> dict[str, Any]:
    """Return the options in a name of a score.

    Args:
        text: a path or name, and options in brackets.

    Raises:
        ValueError: if the options are not written as keywords with plain values.

    >>> options_in("masked_gradient(points=2, jointly=True)")
    {'points': 2, 'jointly': True}
    """
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not one expression") from error
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError(f"{text!r} holds more than keywords")
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
