"""Give built-in scores options, and names that tell them: the base of their classes."""

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
