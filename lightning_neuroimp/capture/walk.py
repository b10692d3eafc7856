"""Walk over the batches of a subject: one forward pass each, with sites captured and the samples written down."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

from torch import Tensor

from lightning_neuroimp.batches.structure import copied_to, to_device, to_numpy
from lightning_neuroimp.capture.cache import ActivationCache
from lightning_neuroimp.capture.embedding import EmbeddingReader
from lightning_neuroimp.capture.forward import Prediction
from lightning_neuroimp.capture.sample_table import SampleTable
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.targets import explained_classes, margin, usable
from lightning_neuroimp.errors import InvalidArgument


class WalkedBatch(NamedTuple):
    """Hold one batch after its forward pass.

    Attributes:
        batch: on the host; if `reused` was False, the model may have worked in place on it.
        prediction: what the model says.
        classes: explained class of each sample.
        samples: what is known of each sample.
        rows: which samples of the probe set these are.
    """

    batch: Any
    prediction: Prediction
    classes: Tensor
    samples: SampleTable
    rows: slice


def walk(
    subject: Subject,
    name: str,
    cache: ActivationCache,
    target_class: str | int,
    embedding: EmbeddingReader | None = None,
    *,
    embedding_required: bool = False,
    reused: bool = False,
) -> Iterator[WalkedBatch]:
    """Run the model once on each batch, and yield what it says while the captured activations are in the cache.

    Args:
        subject: model and samples.
        name: of the pass, for its progress bar and its duration.
        cache: captures the activations of sites.
        target_class: class whose target is explained.
        embedding: reads each sample's embedding; None: none is read.
        embedding_required: whether a sample without an embedding is an error.
        reused: whether the batches are run again later, so that the model must get copies of them.

    Raises:
        InvalidArgument: if no layer can be explained, or the logits do not fit the samples.
    """
    fingerprint, start = subject.probe.fingerprint, 0
    with subject.timed(name) as tick, cache.attach(subject.model), embedding.attach() if embedding else nullcontext():
        for host_batch, index in subject.passes():
            batch = (copied_to if reused else to_device)(host_batch, subject.device)
            with cache.record(subject.model, len(index), subject.rows(len(index))):
                prediction = subject.predict(batch, len(index))
            logits = prediction.logits.detach()
            cache.require_one()
            if len(logits) != len(index):
                raise InvalidArgument(
                    f"the model gave {len(logits)} rows of logits for a batch of {len(index)} samples; each sample "
                    "must have one"
                )
            rows = slice(start, start + len(index))
            predicted = logits.argmax(1)
            classes = explained_classes(prediction.logits, prediction.labels, target_class)
            finite = usable(logits, classes)
            features = None
            if embedding is not None:
                features = to_numpy(embedding.read(prediction, subject.rows(len(index)), required=embedding_required))
            samples = SampleTable(
                index,
                fingerprint[rows],
                to_numpy(prediction.labels),
                to_numpy(predicted),
                to_numpy(classes),
                to_numpy((predicted == classes) & finite & (prediction.labels >= 0)),
                to_numpy(finite),
                to_numpy(margin(logits, classes)),
                features,
                logits.shape[1],
            )
            yield WalkedBatch(host_batch, prediction, classes, samples, rows)
            start = rows.stop
            tick()
