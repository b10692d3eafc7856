"""Draw the probe set of a study from a loader, or draw it again for results that were made before."""

from collections.abc import Iterable
from typing import Any

from lightning_neuroimp.batches.probe import ProbeSet
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.results.previous_measurement import PreviousMeasurement


def draw_probe(batches: Iterable[Any] | ProbeSet, **options: Any) -> ProbeSet:
    """Return a probe set as it is, or draw one from a loader.

    Args:
        batches: a loader or a probe set.
        options: arguments of `ProbeSet.from_batches`.

    Raises:
        InvalidArgument: if there is no batch, or a batch cannot be divided into samples.
    """
    return batches if isinstance(batches, ProbeSet) else ProbeSet.from_batches(batches, **options)


def draw_again(batches: Iterable[Any] | ProbeSet, results: Results, processes: Processes) -> ProbeSet:
    """Return the probe set that results are of.

    Args:
        batches: the loader or probe set that the results were made from.
        results: from `neuron_importance`.
        processes: those that share the samples.

    Raises:
        InvalidArgument: if the batches do not give these samples.
    """
    remedy = "the loader that neuron_importance was called with, or one ProbeSet to both if it shuffles"
    message = f"the batches do not give the {len(results.sample_index)} probe samples that the results are of: pass "
    message += remedy
    if isinstance(batches, ProbeSet):
        probe = batches
    else:
        try:
            probe = ProbeSet.of_samples(batches, results.sample_index, seed=results.seed)
        except ValueError as error:
            raise InvalidArgument(f"{message}. {error}") from error
    if not same_samples(probe, results, processes):
        raise InvalidArgument(message)
    return probe


def same_samples(probe: ProbeSet, results: Results | PreviousMeasurement, processes: Processes) -> bool:
    """Tell whether a probe set holds the samples of results: the same content under the same numbers.

    Args:
        probe: this process's part of the probe set.
        results: results, or what a checkpoint keeps of them.
        processes: those that share the samples.
    """
    found = set(processes.chain(zip(probe.index.tolist(), probe.fingerprint.tolist(), strict=True)))
    return found == set(zip(results.sample_index.tolist(), results.sample_fingerprint.tolist(), strict=True))
