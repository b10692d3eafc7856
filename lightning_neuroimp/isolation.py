"""undisturbed(model): look at a model without leaving a trace."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, with gradients allowed, and put everything back, also after an exception.

    Put back: each module's own train or eval flag, all buffers, attributes that a forward pass has set (a hidden state,
    stashed features), and the random states of Python, NumPy and torch (of each CUDA device too). Inside, inference
    mode is off, compiled code runs eagerly (hooks are ignored otherwise), and the fused attention path is off (it would
    bypass patched modules). Parameters and their `.grad` are not touched: compute derivatives with
    `torch.autograd.grad`.

    Args:
        model: any module.
    """
    training = [(module, module.training) for module in model.modules()]
    attributes = [(vars(module), vars(module).copy()) for module in model.modules()]
    legacy = np.random.get_state()  # noqa: NPY002 (users, and libraries that they use, do)
    states = random.getstate(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode(False), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        try:
            for module, _ in training:
                module.training = False
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_attention)
            for now, then in attributes:
                for name in now.keys() - then.keys():
                    del now[name]
                now.update(then)
            for module, flag in training:
                module.training = flag
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    module._buffers[name] = buffer  # a forward pass may have put another tensor in its place
                    # only what changed: a write would make autograd reject graphs that hold the buffer
                    if not _same_bits(buffer, before):
                        buffer.copy_(before)
            random.setstate(states[0])
            np.random.set_state(legacy)  # noqa: NPY002
            torch.random.set_rng_state(states[1])
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.is_floating_point() or one.is_complex():
        return bool(torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num()))
    return torch.equal(one, other)
