"""Score neurons by a linear fit to the measured effects of random removals."""

from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_neuroimp import _validate
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.built_in import BuiltInScore
from lightning_neuroimp.importance.attributions.first_order import gradient_x_activation
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch

_MASKS_PER_NEURON = 10


@dataclass(frozen=True)
class Regression(BuiltInScore):
    """Score neurons by ridge regression of the effects of random removals on which neurons were removed.

    In each of `masks` passes every neuron is removed with probability `share`, the same ones from all samples, and m(h)
    - m(h without them) is measured. A sample's scores are the coefficients, without an intercept (removing nothing has
    no effect), that predict its effects: sums of scores are the best linear prediction of joint removals of that size,
    in units of the target. The masks follow from the seed and the layer alone, so that neither batches nor epochs
    change them, and one system of equations serves all samples.

    Attributes:
        masks: number of removals; None: 10 for each neuron. At least as many as neurons, except with `residual`.
        share: probability that a neuron is removed: about what the deletion curve or the question removes.
        ridge: penalty on the sum of squared coefficients, in passes: coefficients that few masks tell about shrink.
        residual: whether only what (h - b) dm/dh leaves of the effects is fitted, and added to that. Then a coefficient
            that few masks tell about shrinks to the effect to first order rather than to zero, so that far fewer masks
            do; needs derivatives.

    Raises:
        InvalidArgument: if an option has no valid value, or a layer has more neurons than there are masks.

    References:
        Shah, Ilyas and Madry, "Decomposing and editing predictions by modeling model computation", 2024 (COAR,
        arXiv 2404.11534), for linear fits to the effects of random ablations.

    >>> Regression(masks=128, residual=True).name
    'regression(masks=128, residual=True)'
    """

    kind: ClassVar[str] = "regression"
    masks: int | None = None
    share: float = 0.1
    ridge: float = 1.0
    residual: bool = False

    def __post_init__(self) -> None:
        if self.masks is not None:
            object.__setattr__(self, "masks", _validate.integer("masks of Regression", self.masks, least=1))
        share = _validate.number("share of Regression", self.share, above=0, most=0.9)
        object.__setattr__(self, "share", share)
        object.__setattr__(self, "ridge", _validate.number("ridge of Regression", self.ridge, above=0))
        object.__setattr__(self, "residual", _validate.boolean("residual of Regression", self.residual))

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        """Tell whether it reads gradients: where it fits what the effects to first order leave."""
        return self.residual

    @property
    def cost(self) -> str:
        """Return the passes that it takes at each layer in addition to those that all scores share, in words."""
        if self.masks is None:
            return f"1 forward pass, and {_MASKS_PER_NEURON} of what follows the layer for each neuron"
        return f"1 forward pass, and {self.masks} of what follows the layer"

    def __call__(self, batch: SiteBatch, /) -> Float[Tensor, "sample neuron"]:
        """Compute the scores of one site on one batch.

        Args:
            batch: activations of the site.

        Raises:
            InvalidArgument: if the site has more neurons than there are masks.
        """
        removed = self._removed(batch)
        masks = removed.to(batch.activation.device)
        effects = batch.suffix.effects(masks)
        product = gradient_x_activation(batch) if self.residual else None
        exact = torch.float32 if effects.device.type == "mps" else torch.float64
        wanted, design = effects.to(exact), masks.to(exact)
        if product is not None:
            wanted = wanted - design @ product.to(exact).T
        penalised = design.T @ design + self.ridge * torch.eye(batch.n_neurons, dtype=exact, device=design.device)
        fitted = torch.cholesky_solve(design.T @ wanted, torch.linalg.cholesky(penalised)).T.to(effects.dtype)
        return fitted if product is None else fitted + product

    def _removed(self, batch: SiteBatch) -> Bool[Tensor, "mask neuron"]:
        """Draw which neurons each pass removes.

        Args:
            batch: activations of the site.
        """
        n_neurons = batch.n_neurons
        n_masks = _MASKS_PER_NEURON * n_neurons if self.masks is None else self.masks
        if n_masks < n_neurons and not self.residual:
            raise InvalidArgument(
                f"regression needs at least as many masks as neurons, got masks={n_masks} for the {n_neurons} neurons "
                f"of layer {batch.site!r}; pass Regression(masks={_MASKS_PER_NEURON * n_neurons}), or "
                f"Regression(masks={n_masks}, residual=True)"
            )
        generator = np.random.default_rng([batch.seed, crc32(batch.where.key.encode()), 2])
        return torch.from_numpy(generator.random((n_masks, n_neurons)) < self.share)
