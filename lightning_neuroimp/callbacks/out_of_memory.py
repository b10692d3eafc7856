"""What happens when memory runs out: the passes get smaller, and the work starts again."""

from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch.utilities.memory import garbage_collection_cuda
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.callbacks.processes import gather_objects, out_of_memory
from lightning_neuroimp.errors import MeasurementFailed

T = TypeVar("T")


class PassSize:
    """Hold the number of samples in our passes, and halve it while memory runs out.

    Attributes:
        size: number of samples in a pass; None: that of the loader.

    Args:
        name: name of the callback, for warnings.
        size: what it begins with.
    """

    def __init__(self, name: str, size: int | None) -> None:
        self.name, self.size = name, size

    def halving(self, probe: ProbeSet, work: Callable[[int | None], T]) -> T:
        """Do some work; halve the passes and start again while memory runs out, on this or another process.

        Args:
            probe: the samples, which know the size of the loader's batches.
            work: takes the number of samples in a pass; fails on all processes if it fails on one.

        Raises:
            MeasurementFailed: if memory runs out with as few samples in a pass as the model is known to take.
            Exception: any other error of the work.
        """
        while True:
            try:
                return work(self.size)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                message = f"{type(error).__name__}: {error}"
            # outside of the except clause, as the exception keeps alive what filled the memory
            garbage_collection_cuda()
            # a model whose loader has no batch of one may not be able to take one
            least = 2 if min(gather_objects(probe.smallest_batch)) > 1 else 1
            self._halve(message, self.size or max(gather_objects(probe.batch_size)), least)

    def _halve(self, message: str, size: int, least: int) -> None:
        """Halve the passes and say so, or say why they cannot get smaller."""
        if size <= least:
            raise MeasurementFailed(
                f"memory ran out with {'one sample' if size == 1 else f'{size} samples'} in a pass ({message[:120]}): "
                "explain fewer layers in one callback, or leave more of the accelerator's memory free"
            )
        self.size = max(least, size // 2)
        rank_zero_warn(
            f"NeuronImportance {self.name!r}: memory ran out in passes of {size} samples; passes take "
            f"{self.size} from now on. To begin with so few, pass batch_size={self.size}"
        )
