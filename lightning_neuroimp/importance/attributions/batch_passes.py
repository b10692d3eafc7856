"""Run the whole model on a batch again, with other activations at all sites together."""

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_neuroimp.batches.structure import copied_to
from lightning_neuroimp.capture.cache import ActivationCache
from lightning_neuroimp.capture.gradients import differentiate
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.targets import Target
from lightning_neuroimp.site import Site

if TYPE_CHECKING:
    from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


class BatchPasses:
    """Make further passes of the whole model over one batch, for scores that need all sites at once.

    Attributes:
        site_batches: what attributions see of each site that the batch reaches, by the site's text.

    Args:
        subject: the model, and how it is run.
        sites: the sites by their text.
        axes: neuron axis of each of them.
        batch: on the host.
        classes: explained class of each sample.
        target: the scalar that is explained per sample.
    """

    def __init__(
        self,
        subject: Subject,
        sites: Mapping[str, Site],
        axes: Mapping[str, int],
        batch: Any,
        classes: Int[Tensor, " sample"],
        target: Target,
    ) -> None:
        self.site_batches: dict[str, SiteBatch] = {}
        self._subject, self._sites, self._axes = subject, sites, axes
        self._batch, self._classes, self._target = batch, classes, target
        self._kept: dict[Hashable, dict[str, Tensor]] = {}

    def once(self, key: Hashable, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return values of all sites, computed for the first site that asks for them.

        Args:
            key: of the score and its options.
            compute: gives the values by the site's text.
        """
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def gradients(self, replace: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the gradient of each sample's own target at each site, with other activations at all of them.

        Takes one forward and one backward pass of the whole model.

        Args:
            replace: a site's text and the activations that the pass has there to those that take their place, through
                which gradients flow to earlier sites.

        Returns:
            By the site's text; zero where the target does not depend on a site.

        Raises:
            InvalidArgument: if an operation after a site has no derivative.
        """
        subject, n_samples = self._subject, len(self._classes)
        reached = {name: self._sites[name] for name in self.site_batches}
        cache = ActivationCache(list(reached.values()), gradients=True, axes=self._axes, replace=replace)
        with torch.enable_grad(), cache.attach(subject.model):
            with cache.record(subject.model, n_samples, subject.rows(n_samples)):
                prediction = subject.predict(copied_to(self._batch, subject.device), n_samples, validate=False)
            outputs = dict(cache.outputs)
            total = self._target.values(prediction.logits, self._classes).sum()
            found = differentiate(total, list(outputs.values())) if total.requires_grad else [None] * len(outputs)
        return {
            name: torch.zeros_like(output) if gradient is None else gradient.detach()
            for (name, output), gradient in zip(outputs.items(), found, strict=True)
        }
