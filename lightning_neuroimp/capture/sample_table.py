"""SampleTable: what is known of each sample of a probe set."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lightning_neuroimp.batches.numbers import rows_of
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.errors import NonFiniteOutputs


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Hold one row per sample.

    Attributes:
        index: sample number in the stream.
        fingerprint: checksum of the sample's content.
        label: class that the data say.
        predicted: class that the model names.
        target: class whose target is explained.
        correct: whether the model names the explained class, with finite logits.
        finite: whether all logits are finite.
        margin: margin of the explained class, in logits.
        embedding: embedding of each sample; None where it was not read.
        n_classes: number of logits.
        cluster: cluster id, -1 for none; None before clusters are assigned.
        half: half of the cluster, -1 for none; None before clusters are assigned.
    """

    index: Int[np.ndarray, " sample"]
    fingerprint: Int[np.ndarray, " sample"]
    label: Int[np.ndarray, " sample"]
    predicted: Int[np.ndarray, " sample"]
    target: Int[np.ndarray, " sample"]
    correct: Bool[np.ndarray, " sample"]
    finite: Bool[np.ndarray, " sample"]
    margin: Float[np.ndarray, " sample"]
    embedding: Float[np.ndarray, "sample feature"] | None
    n_classes: int
    cluster: Int[np.ndarray, " sample"] | None = None
    half: Int[np.ndarray, " sample"] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, numbers: Int[np.ndarray, " asked"]) -> Int[np.ndarray, " asked"]:
        """Return the row of each asked sample.

        Raises:
            KeyError: if the table does not hold a sample.
        """
        return rows_of(self.index, numbers)

    def require_finite(self) -> None:
        """Refuse a model that is broken everywhere.

        Raises:
            NonFiniteOutputs: if no sample has finite logits.
        """
        if not self.finite.any():
            raise NonFiniteOutputs(
                f"the model's outputs are not finite for any of the {len(self)} probe samples: there is nothing to "
                "explain; has the training run diverged?"
            )


def join(parts: Sequence[SampleTable]) -> SampleTable | None:
    """Concatenate tables; None where there are none."""
    if not parts:
        return None
    columns: dict[str, Any] = {}
    for column in fields(SampleTable):
        values = [getattr(part, column.name) for part in parts]
        if column.name == "n_classes":
            columns["n_classes"] = max(values)
        else:
            columns[column.name] = None if values[0] is None else np.concatenate(values)
    return SampleTable(**columns)


def gather_tables(parts: Sequence[SampleTable], processes: Processes) -> SampleTable:
    """Concatenate this process's tables with those of all other processes, in the order of the stream."""
    whole = join([table for table in processes.gather(join(parts)) if table is not None])
    assert whole is not None  # a probe set is never empty in all processes
    order = np.argsort(whole.index, kind="stable")
    sorted_columns: dict[str, Any] = {
        column.name: value[order]
        for column in fields(SampleTable)
        if isinstance(value := getattr(whole, column.name), np.ndarray)
    }
    return replace(whole, **sorted_columns)
