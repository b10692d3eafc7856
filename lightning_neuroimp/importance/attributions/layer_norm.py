"""Score neurons to first order with the denominators of norms held fixed: the LayerNorm rule."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.attributions.batch_passes import BatchPasses
from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


def layer_norm_rule(batch: SiteBatch) -> Float[Tensor, "sample neuron"]:
    """Return (h - b) dm/dh, summed over positions, where norms after the site divide by what they divided by.

    A norm's denominator grows with its input, so that gradients through it cancel what they should see: to first order
    an activation's whole norm has no effect. Here dm/dh is computed with the denominators of LayerNorm, RMSNorm and
    GroupNorm as constants; everything else is as in gradient x activation, in units of the target. Where no such norm
    follows a layer, the two are equal.

    Known are the norms of torch, as modules and as functions (layer_norm, rms_norm, group_norm). Norms that are written
    out in other operations, such as those of some language models, and compiled or scripted ones are not seen. Takes
    one forward and one backward pass of the whole model, for all layers together.

    Raises:
        InvalidArgument: if the model calls none of these norms.

    References:
        Ali et al., "XAI for transformers: better explanations through conservative propagation", 2022.
    """
    passes = batch.passes
    if passes is None:
        raise InvalidArgument("layer_norm_rule runs the whole model, and works in an importance pass only")
    gradients = passes.once("layer_norm_rule", lambda: _gradients(passes))
    return batch.sum_positions(batch.deviation * gradients[batch.site].to(batch.activation.dtype))


def _gradients(passes: BatchPasses) -> dict[str, Tensor]:
    """Return the gradient of each sample's own target at each site, with the denominators of norms as constants."""
    mode = DetachedNorms()
    found = {name: point.gradient for name, point in passes.run(inside=mode).items()}
    if not mode.seen:
        raise InvalidArgument(
            "layer_norm_rule holds the denominators of torch's LayerNorm, RMSNorm and GroupNorm fixed, but the model "
            "calls none of them (those written out in other operations are not seen); use "
            "attribution='gradient_x_activation' or 'masked_gradient'"
        )
    return found


class DetachedNorms(TorchFunctionMode):
    """Let torch's norms give what they give, but let no gradient flow through their denominators.

    Attributes:
        seen: number of norms that were called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function; give a norm's result a path of gradients without its denominator."""
        kwargs = kwargs or {}
        norm = _NORMS.get(func)
        if norm is None:
            return func(*args, **kwargs)
        self.seen += 1
        with torch.no_grad():
            value = func(*args, **kwargs)
        linear = norm(*args, **kwargs)
        return value + (linear - linear.detach()).to(value.dtype)  # the very values of the model


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Compute a layer norm with a fixed denominator."""
    axes = list(range(-_n_axes(normalized_shape), 0))
    values = _precise(input)
    centred = values - values.mean(axes, keepdim=True)
    scaled = centred / (centred.detach().square().mean(axes, keepdim=True) + eps).sqrt()
    return _affine(scaled, weight, bias)


def _rms_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Compute a root-mean-square norm with a fixed denominator."""
    axes = list(range(-_n_axes(normalized_shape), 0))
    values = _precise(input)
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(values / (values.detach().square().mean(axes, keepdim=True) + eps).sqrt(), weight, None)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Compute a group norm with a fixed denominator."""
    values = _precise(input).reshape(len(input), num_groups, -1)
    centred = values - values.mean(2, keepdim=True)
    scaled = centred / (centred.detach().square().mean(2, keepdim=True) + eps).sqrt()
    shape = (1, -1) + (1,) * (input.ndim - 2)
    return _affine(
        scaled.reshape(input.shape),
        None if weight is None else weight.reshape(shape),
        None if bias is None else bias.reshape(shape),
    )


def _n_axes(normalized_shape: Any) -> int:
    """Return the number of axes that are normalised; one where a single size is given."""
    return 1 if isinstance(normalized_shape, int) else len(normalized_shape)


def _precise(values: Tensor) -> Tensor:
    """Return values in at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _affine(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return values times a weight plus a bias, each if there is one."""
    values = values if weight is None else values * weight
    return values if bias is None else values + bias


_NORMS: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
}
