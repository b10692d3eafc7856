"""Earlier: what a measurement has to know of the one before it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.results.measurement import Results


@dataclass(frozen=True, eq=False)
class PreviousMeasurement:
    """Of a measurement: on which samples it was made, which clusters it found, and how important neurons were.

    Attributes:
        epoch: of the training.
        sample_index, sample_fingerprint: as in `Results`.
        ids, history: as in `ClusterTable`.
        means: importances by site and attribution.
    """

    epoch: int
    sample_index: Int[np.ndarray, " sample"]
    sample_fingerprint: Int[np.ndarray, " sample"]
    ids: Int[np.ndarray, " cluster"]
    history: Int[np.ndarray, "entry 2"]
    means: dict[tuple[str, str], Float[np.ndarray, "cluster neuron"]]

    @classmethod
    def of(cls, results: Results) -> "PreviousMeasurement":
        """What is kept of results: importances in float32."""
        return cls(
            results.epoch,
            results.sample_index,
            results.sample_fingerprint,
            results.clusters.ids,
            results.clusters.history,
            {(one.site, one.attribution): one.mean.astype(np.float32) for one in results.importances},
        )
