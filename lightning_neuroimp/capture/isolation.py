"""Run a model without leaving a trace: everything here that runs a user's model does so in `with undisturbed(model)`.

Some state is process-wide, and several threads may measure the same model. So each one that enters writes down what it
finds, and the last to leave puts back what the first one found.
"""

import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import nn

from lightning_neuroimp import _compat
from lightning_neuroimp.capture.gradient_support import with_gradients
from lightning_neuroimp.capture.module_state import Restore, call_as_written, module_state, parameter_versions

Found = dict[str | int, Restore]

_LOCK = threading.RLock()
_INSIDE: list[Found] = []  # in the order of entering


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, with gradients allowed, and put everything back, also after an exception.

    What is put back are the random states of Python, NumPy and torch (of each CUDA device too) and, for each module:

    - its own train or eval flag;
    - which buffers, submodules and parameters it has, and the values of its buffers and of the weights of an embedding
      with `max_norm`, which rewrites what it looks up;
    - all its other attributes except torch's own: which object each one is, and the contents of tensors, arrays, random
      generators, and lists, dictionaries, sets, deques and tuples of them, however nested. These are hidden states,
      counters, caches, the state of a metric.

    What is large is taken for data rather than state, and its contents are not put back: a tensor or array of more than
    64 MB; a container of more than 131,072 members; and what an attribute nests more deeply once its outer containers
    have that many members in all, or 16,384 tensors, arrays and generators, or 1 GiB of them.

    Not put back are hooks, globals, closures, objects of your own classes, attributes of scripted modules and of lazy
    modules that are initialized inside, and parameters and their `.grad`: compute gradients with
    `torch.autograd.grad`. Where a forward pass writes into a parameter, a warning says so.

    Inside, inference mode is off, compiled code runs eagerly (it ignores hooks), the fused attention path is off (it
    bypasses patched modules), recurrent layers on CUDA run without cuDNN where gradients are enabled, and reentrant
    checkpoints are plain calls (through both, torch computes no gradients in evaluation mode). What several threads
    change at once, process-wide or in a model that they share, is put back when the last of them leaves.

    Args:
        model: any module.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout())
        >>> with undisturbed(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modules = [module for module in model.modules() if hasattr(module, "training")]
    found: Found = {}
    with torch.inference_mode(False), torch.enable_grad():
        versions = parameter_versions(modules)
        try:
            _enter(found, modules)
            with with_gradients(modules):
                yield
        finally:
            _leave(found)
            for module, name, parameter, version in versions:
                if _compat.write_count(parameter) != version and id(parameter) not in found:
                    warnings.warn(
                        f"a forward pass in evaluation mode writes into the parameter {name!r} of a "
                        f"{type(module).__name__}: what a measurement wrote there stays",
                        stacklevel=3,
                    )
                    break


def _enter(found: Found, modules: list[nn.Module]) -> None:
    """Write down what is found, and prepare the process and the modules for a measurement."""
    with _LOCK:
        found.update(chain(_process_state().items(), module_state(modules).items()))
        _INSIDE.append(found)
        # the constructor sets the stance already, and remembers the one before
        stance = torch.compiler.set_stance("force_eager")
        found["compiler stance"] = partial(stance.__exit__, None, None, None)
        torch.backends.mha.set_fastpath_enabled(False)
        for module in modules:
            module.training = False
            call_as_written(module)


def _leave(found: Found) -> None:
    """Put back what was found, or hand it on to the next one that entered later and found the same state changed.

    Raises:
        BaseException: the first that was raised by putting something back, after everything else has been put back.
    """
    failures: list[BaseException] = []
    with _LOCK, torch.no_grad():
        index = next((index for index, other in enumerate(_INSIDE) if other is found), len(_INSIDE))
        later = _INSIDE[index + 1 :]
        del _INSIDE[index : index + 1]
        for key, restore in reversed(found.items()):  # random states last: putting back members may run users' code
            heir = next((other for other in later if key in other), None)
            if heir is not None:
                heir[key] = restore
                continue
            try:
                restore()
            except BaseException as failure:
                failures.append(failure)
    if failures:
        raise failures[0]


def _process_state() -> Found:
    """Return what puts back each process-wide state, by a name for it."""
    found: Found = {
        "fast attention": partial(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()),
        "random": partial(random.setstate, random.getstate()),
        # users, and libraries that they use, draw from NumPy's global generator
        "numpy.random": partial(np.random.set_state, np.random.get_state()),  # noqa: NPY002
        "torch.random": partial(torch.random.set_rng_state, torch.random.get_rng_state()),
    }
    if torch.cuda.is_initialized():
        found["torch.cuda.random"] = partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    return found
