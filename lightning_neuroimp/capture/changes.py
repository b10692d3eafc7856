"""Tell how far logits change from one pass to another, and how much of that rounding may explain."""

import torch
from torch import Tensor, nn

_NOISE, _HALF_NOISE = 1e-3, 5e-2  # of the logits' standard deviation: what another number of samples may round


def rounding(model: nn.Module) -> float:
    """Return by how much logits may differ where other kernels are taken, as a share of their standard deviation."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    half = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return _HALF_NOISE if half or dtypes & {torch.bfloat16, torch.float16} else _NOISE


def change(before: Tensor, after: Tensor, noise: float) -> float:
    """Return the largest change of a logit as a share of the logits' standard deviation.

    Args:
        before: (sample, class) logits.
        after: others of the same samples.
        noise: what rounding may change; up to that, 0 is returned.
    """
    before, after = before.double(), after.double()
    both = before.isfinite() & after.isfinite()
    if not bool(both.any()):
        return float("nan")
    largest = float((after - before).abs()[both].max())
    spread = float(before[both].std(correction=0)) or float(before[both].abs().max()) or 1.0
    return largest / spread if largest > noise * spread else 0.0
