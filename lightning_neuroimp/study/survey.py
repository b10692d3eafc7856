"""Survey the samples: one forward pass before the importance pass, where something must be known first."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_neuroimp.batches.structure import to_numpy
from lightning_neuroimp.capture.cache import ActivationCache
from lightning_neuroimp.capture.embedding import EmbeddingReader
from lightning_neuroimp.capture.positions import along_positions, chosen_positions, count_positions, sum_positions
from lightning_neuroimp.capture.sample_table import SampleTable, gather_tables
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.targets import usable
from lightning_neuroimp.capture.trial import Trial
from lightning_neuroimp.capture.walk import WalkedBatch, walk
from lightning_neuroimp.errors import NonFiniteOutputs
from lightning_neuroimp.site import Site


@dataclass(frozen=True, eq=False)
class Survey:
    """Hold what is known of the samples before the importance pass.

    Attributes:
        samples: the samples of all processes, with embeddings and predictions.
        means: mean activation of each channel by site, over samples, space and unpadded tokens of all processes;
            empty if no means were asked for.
        spreads: standard deviation of each channel by site, likewise; empty if none were asked for.
    """

    samples: SampleTable
    means: dict[str, Float[np.ndarray, " channel"]]
    spreads: dict[str, Float[np.ndarray, " channel"]] = field(default_factory=dict)


@dataclass
class _MeanActivations:
    """Sum the activations of sites, and on request their squares, over batches.

    Attributes:
        sites: the sites by their text.
        spread: whether squares are summed as well.
        totals: sum over samples and positions for each channel, and where asked for that of squares, by site.
        counts: number of samples and positions, by site.
    """

    sites: dict[str, Site]
    spread: bool = False
    totals: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, cache: ActivationCache, walked: WalkedBatch) -> None:
        """Add a batch's captured activations; samples that are not finite are left out.

        Args:
            cache: activations of the sites.
            walked: the batch and the model's prediction.
        """
        for name, output in cache.outputs.items():
            axis = cache.axes[name]
            positions = chosen_positions(self.sites[name], output, axis, walked.prediction.tokens)
            value: Tensor = output.double() if output.device.type != "mps" else output.float()
            counted = value if positions is None else value.where(along_positions(positions, axis), 0)
            finite = counted.flatten(1).isfinite().all(1) & usable(walked.prediction.logits, walked.classes)
            kept = [counted[finite], counted[finite].square()] if self.spread else [counted[finite]]
            total = np.stack([to_numpy(sum_positions(part, axis).sum(0)).astype(np.float64) for part in kept])
            self.totals[name] = self.totals.get(name, 0.0) + total
            count = int(count_positions(output, axis, positions)[finite].sum())
            self.counts[name] = self.counts.get(name, 0) + count

    def moments(self, subject: Subject) -> dict[str, np.ndarray]:
        """Compute the means over all processes.

        Args:
            subject: for its processes.

        Returns:
            Mean activation of each channel, by site, and where asked for the mean of squares: (moment, channel).

        Raises:
            NonFiniteOutputs: if a site has no finite activations.
        """
        found: dict[str, np.ndarray] = {}
        shares = subject.processes.gather((self.totals, self.counts))
        for name in dict.fromkeys(name for share in shares for name in share[0]):
            total = np.sum([share[0][name] for share in shares if name in share[0]], axis=0)
            count = sum(share[1].get(name, 0) for share in shares)
            if not count:
                raise NonFiniteOutputs(
                    f"layer {name!r} has no sample with finite activations: it has no mean; use baseline='zero', or "
                    "look at the inputs and weights before it"
                )
            found[name] = total / count
        return found


def survey(
    subject: Subject,
    trial: Trial,
    sites: dict[str, Site],
    target_class: str | int,
    embedding: EmbeddingReader | None = None,
    *,
    embedding_required: bool = False,
    spread: bool = False,
) -> Survey:
    """Make one forward pass: embeddings, predictions, and the mean activation of each channel of the sites.

    Args:
        subject: model and samples.
        trial: knows the axes of the sites' neurons.
        sites: sites whose means are asked for, by their text; may be empty.
        target_class: class whose target is explained.
        embedding: reads the samples' embeddings; None: none are read.
        embedding_required: whether a sample without an embedding is an error.
        spread: whether standard deviations are computed as well as means.

    Raises:
        InvalidArgument: if a layer, an output or an embedding cannot be worked with.
        NonFiniteOutputs: if no sample has finite logits, or a site no finite activations.
    """
    cache = ActivationCache(list(sites.values()), gradients=False, axes=trial.axes, refused=trial.unsettled)
    activations, tables = _MeanActivations(sites, spread), []
    with torch.no_grad():
        for walked in walk(subject, "survey", cache, target_class, embedding, embedding_required=embedding_required):
            tables.append(walked.samples)
            activations.add(cache, walked)
    samples = gather_tables(tables, subject.processes)
    samples.require_finite()
    moments = activations.moments(subject)
    spreads = (
        {name: np.sqrt(np.maximum(square - mean**2, 0.0)) for name, (mean, square) in moments.items()} if spread else {}
    )
    return Survey(samples, {name: found[0] for name, found in moments.items()}, spreads)
