"""The probe set of a study, drawn or drawn again."""

from collections.abc import Collection, Iterable
from typing import Any

from lightning_neuroimp.batches.probe import ProbeSet, Stratify
from lightning_neuroimp.batches.processes import Gather
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.previous import PreviousMeasurement


def draw_probe(
    batches: Iterable[Any] | ProbeSet,
    max_samples: int,
    max_bytes: int,
    seed: int,
    stratify: Stratify = False,
    classes: Collection[int] | None = None,
) -> ProbeSet:
    """A probe set as it is, or one drawn from a loader."""
    if isinstance(batches, ProbeSet):
        return batches
    return ProbeSet.from_batches(
        batches, max_samples=max_samples, max_bytes=max_bytes, seed=seed, stratify=stratify, classes=classes
    )


def probe_of(results: Results, batches: Iterable[Any] | ProbeSet, gather: Gather) -> ProbeSet:
    """The probe set that results are of, drawn again.

    Raises:
        ValueError: if the batches do not give its samples.
    """
    n_samples = len(results.sample_index)
    remedy = "the loader that neuron_importance was called with, or one ProbeSet to both if it shuffles"
    message = f"the batches do not give the {n_samples} probe samples that the results are of: pass {remedy}"
    if isinstance(batches, ProbeSet):
        probe = batches
    else:
        try:
            probe = ProbeSet.of_samples(batches, results.sample_index, seed=results.seed)
        except ValueError as error:
            raise ValueError(f"{message}. {error}") from error
    if not same_samples(probe, results, gather):
        raise ValueError(message)
    return probe


def same_samples(probe: ProbeSet, results: Results | PreviousMeasurement, gather: Gather) -> bool:
    """Whether the probe set holds the samples that the results are of: the same content under the same numbers."""
    shares = gather((probe.index.tolist(), probe.fingerprint.tolist()))
    found = {pair for share in shares for pair in zip(*share, strict=True)}
    return found == set(zip(results.sample_index.tolist(), results.sample_fingerprint.tolist(), strict=True))
