"""Notice where a forward pass gives values to Python without an operation that torch dispatches."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_METHODS = (
    *("numpy", "tolist", "data_ptr", "untyped_storage", "storage", "apply_", "map_", "map2_"),
    *("__array__", "__dlpack__", "__deepcopy__", "__reduce_ex__"),
)
_READS: dict[Any, tuple[str, int]] = {getattr(Tensor, name): (f"Tensor.{name}", 0) for name in _METHODS} | {
    Tensor.new_tensor: ("Tensor.new_tensor", 1),
    torch.tensor: ("torch.tensor", 0),
    Tensor.tensor_split: ("Tensor.tensor_split", 1),
    torch.tensor_split: ("torch.tensor_split", 1),
}
"""Functions that read the values of an argument, under what name they are reported, and which argument it is."""

_LISTS: dict[Any, tuple[str, int]] = {torch.as_tensor: ("torch.as_tensor", 0), torch.asarray: ("torch.asarray", 0)}
"""Functions that read the tensors in a list, and hand on a single one."""


class ReadsMode(TorchFunctionMode):
    """Report functions that read a tensor's values for Python.

    Args:
        ignored: whether functions are not to be looked at now.
        counts: whether a tensor's values matter.
        report: called with the name of a function that reads such a tensor.
    """

    def __init__(
        self, ignored: Callable[[], bool], counts: Callable[[Tensor], bool], report: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._ignored, self._counts, self._report = ignored, counts, report

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and report it if it reads a tensor's values."""
        kwargs = kwargs or {}
        if not self._ignored():
            name, place = _READS.get(func) or _LISTS.get(func) or ("", 0)
            read = [*args[place : place + 1], *kwargs.values()]
            if func in _LISTS:
                read = [value for value in read if not isinstance(value, Tensor)]
            if name and any(map(self._counts, tensors_in(read))):
                self._report(name)
        return func(*args, **kwargs)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among values, and in lists and tuples of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
