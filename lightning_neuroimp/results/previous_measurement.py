"""PreviousMeasurement: what a measurement needs to know about the one before it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_neuroimp.results.measurement import Results


@dataclass(frozen=True, eq=False)
class PreviousMeasurement:
    """Hold the samples, the clusters and the importances of the last measurement, and nothing that grows with epochs.

    Attributes:
        epoch: epoch of that measurement.
        sample_index: number of each probe sample in the stream of validation samples.
        sample_fingerprint: checksum of each probe sample's content.
        ids: ids of the clusters.
        history: rows (id, sample number) of every cluster ever seen, with its last members.
        means: importances by site and attribution, in the unit of the target.
    """

    epoch: int
    sample_index: Int[np.ndarray, " sample"]
    sample_fingerprint: Int[np.ndarray, " sample"]
    ids: Int[np.ndarray, " cluster"]
    history: Int[np.ndarray, "entry 2"]
    means: dict[tuple[str, str], Float[np.ndarray, "cluster neuron"]]

    @classmethod
    def of(cls, results: Results) -> "PreviousMeasurement":
        """Keep what the next measurement needs from results; importances in float32.

        Args:
            results: the last measurement.
        """
        return cls(
            results.epoch,
            results.sample_index,
            results.sample_fingerprint,
            results.clusters.ids,
            results.clusters.history,
            {key: importance.mean.astype(np.float32) for key, importance in results.items()},
        )
