"""SampleTable: what is known of each sample of a probe set."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from lightning_neuroimp.batches.processes import Gather


@dataclass
class SampleTable:
    """What is known of each sample; one entry per batch until it is gathered."""

    index: Any = field(default_factory=list)
    fingerprint: Any = field(default_factory=list)
    label: Any = field(default_factory=list)
    predicted: Any = field(default_factory=list)
    target: Any = field(default_factory=list)
    correct: Any = field(default_factory=list)
    finite: Any = field(default_factory=list)
    cluster: Any = field(default_factory=list)
    half: Any = field(default_factory=list)
    embedding: Any = field(default_factory=list)
    n_classes: int = 0

    def gathered(self, gather: Gather) -> "SampleTable":
        """All processes' samples, in the order of the stream."""
        names = tuple(one.name for one in fields(self) if one.name != "n_classes")
        mine = [np.concatenate(getattr(self, name)) if getattr(self, name) else None for name in names]
        shares = [share for share in gather((mine, self.n_classes)) if share[0][0] is not None]
        columns = [np.concatenate([share[0][column] for share in shares]) for column in range(len(names))]
        order = np.argsort(columns[0], kind="stable")
        values: dict[str, Any] = {name: column[order] for name, column in zip(names, columns, strict=True)}
        return SampleTable(**values, n_classes=max(share[1] for share in shares))

    def check(self) -> None:
        """Refuse a model that is broken everywhere."""
        if not self.finite.any():
            raise FloatingPointError(
                f"the model's outputs are not finite for any of the {len(self.finite)} probe samples: there is nothing "
                "to explain; has the training diverged?"
            )
