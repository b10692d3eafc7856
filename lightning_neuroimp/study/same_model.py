"""Verify that a check is made with the model that the results are of."""

import numpy as np
import torch
from torch import nn

from lightning_neuroimp.ablation.outcomes import Outcomes
from lightning_neuroimp.batches.numbers import rows_of
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.measurement import Results

TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
"""Margins differ if they are apart by more than this share of (1 + their size); the second is for half precision."""

FEW = 0.05
"""Share of the samples whose margins may differ: where kernels round differently, ties are decided differently."""


def require_same_model(model: nn.Module, results: Results, outcomes: Outcomes) -> None:
    """Compare the intact margins of a check with those of the results.

    Args:
        model: the model of the check, for its precision.
        results: with the margin and prediction of each sample; older files hold none, and pass.
        outcomes: of the check.

    Raises:
        InvalidArgument: if more than a few margins differ; the message says by how much.
    """
    rows = rows_of(results.sample_index, outcomes.sample)
    before, after = results.sample_margin[rows], outcomes.intact_margin
    known = np.isfinite(before) & np.isfinite(after) & (results.sample_predicted[rows] >= 0)
    before, after = before[known], after[known]
    difference = np.abs(after - before)
    other = difference > (HALF_TOLERANCE if _is_half(model) else TOLERANCE) * (1 + np.abs(before))
    if not len(other) or other.mean() <= FEW:
        return
    renamed = int((results.sample_predicted[rows] != outcomes.intact_predicted)[known].sum())
    raise InvalidArgument(
        f"the model does not give the predictions that the results are of: {int(other.sum())} of {len(other)} margins "
        f"differ, by up to {difference.max():.2g} logits, and {renamed} predicted classes; pass the same model, "
        "forward_fn and precision as to neuron_importance"
    )


def _is_half(model: nn.Module) -> bool:
    """Tell whether a model runs in half precision, by its own tensors or under autocast."""
    half = (torch.bfloat16, torch.float16)
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device.type if tensors else "cpu"
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return autocast or any(tensor.dtype in half for tensor in tensors)
