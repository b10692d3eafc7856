"""Look at a model without leaving a trace: `with undisturbed(model)` is around everything that runs a user's model.

What is process-wide, and models that several threads measure at once, are changed by whoever is inside. So each who
enters writes down what it found, and the last to leave puts back what the first one found.
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

from lightning_neuroimp.capture.module_state import Restore, call_as_written, module_state, parameter_versions

Found = dict[str | int, Restore]

_LOCK = threading.RLock()
_INSIDE: list[Found] = []  # in the order of entering


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, with gradients allowed, and put everything back, also after an exception.

    Put back are the random states of Python, NumPy and torch (of each CUDA device too) and, for each module:

    - its own train or eval flag;
    - which buffers, submodules and parameters it has, and the values of the buffers (and of the weights of embeddings
      with `max_norm`, which rewrite what they look up);
    - all its other attributes but torch's own: which object each is, and the contents of tensors, arrays, random
      generators, and lists, dictionaries, sets, deques and tuples of them, however nested: a hidden state, counters,
      caches, the state of a metric.

    Attributes of more than that are data rather than state, and keep what a forward pass writes into them: tensors of
    more than 64 MB; what makes an attribute hold more than 131,072 members of containers, or more than 16,384 or 1 GiB
    of tensors, arrays and generators. Nor are put back: hooks; other parameters and their `.grad` (compute gradients
    with `torch.autograd.grad`; a warning tells where a forward pass writes into a parameter); globals, closures and
    objects of your own classes; attributes of scripted modules, and of lazy ones that turn into what they are.

    Inside, inference mode is off, compiled code runs eagerly (it ignores hooks), and the fused attention path is off
    (it bypasses patched modules). What is process-wide, and a model that several threads have entered, is put back
    when the last of them leaves.

    Args:
        model: any module.

    Examples:
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
            yield
        finally:
            _leave(found)
            for module, name, parameter, version in versions:
                if parameter._version != version and id(parameter) not in found:
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
        # its constructor sets it, and remembers what it was
        stance = torch.compiler.set_stance("force_eager")
        found["compiler stance"] = partial(stance.__exit__, None, None, None)
        torch.backends.mha.set_fastpath_enabled(False)
        for module in modules:
            module.training = False
            call_as_written(module)


def _leave(found: Found) -> None:
    """Put back what was found, or hand it on to the next who entered later and disturbs the same.

    Raises:
        BaseException: the first that was raised by putting something back, after everything else has been put back.
    """
    failures: list[BaseException] = []
    with _LOCK, torch.no_grad():
        place = next((place for place, other in enumerate(_INSIDE) if other is found), len(_INSIDE))
        later = _INSIDE[place + 1 :]
        del _INSIDE[place : place + 1]
        for key, restore in reversed(found.items()):
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
