"""Run the whole model on a batch again, with other inputs, or with other activations at all sites together."""

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_neuroimp.batches.structure import copied_to
from lightning_neuroimp.capture.cache import ActivationCache
from lightning_neuroimp.capture.gradients import differentiate
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.targets import Target
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.site import Site

if TYPE_CHECKING:
    from lightning_neuroimp.importance.attributions.site_batch import SiteBatch


class SitePoint(NamedTuple):
    """Hold what a pass has at one site.

    Attributes:
        activation: samples first.
        gradient: of each sample's own target with respect to it; zero where the target does not depend on it.
    """

    activation: Tensor
    gradient: Tensor


class BatchPasses:
    """Make further passes of the whole model over one batch, for scores that need all sites at once.

    Attributes:
        site_batches: what attributions see of each site that the batch reaches, by the site's text.
        subject: the model, and how it is run.
        sites: the sites by their text.
        batch: on the host.
        classes: explained class of each sample.
        target: the scalar that is explained per sample.

    Args:
        subject: as above.
        sites: as above.
        axes: neuron axis of each site.
        batch: as above.
        classes: as above.
        target: as above.
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
        self.subject, self.sites, self._axes = subject, sites, axes
        self.batch, self.classes, self.target = batch, classes, target
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
        return {name: point.gradient for name, point in self.run(replace=replace).items()}

    def run(
        self,
        batch: Any = None,
        *,
        replace: Callable[[str, Tensor], Tensor] | None = None,
        inside: AbstractContextManager[Any] | None = None,
    ) -> dict[str, SitePoint]:
        """Return the activations of all sites in one forward and backward pass of the whole model, and the gradients.

        Args:
            batch: on the host, with other values in place of those of the same samples; None: as it is.
            replace: as for `gradients`; None: activations stay as they are.
            inside: entered around the forward pass.

        Returns:
            By the site's text.

        Raises:
            InvalidArgument: if an operation after a site has no derivative, or the pass does not come to a site.
        """
        subject, n_samples = self.subject, len(self.classes)
        reached = {name: self.sites[name] for name in self.site_batches}
        cache = ActivationCache(list(reached.values()), gradients=True, axes=self._axes, replace=replace)
        batch = copied_to(self.batch if batch is None else batch, subject.device)
        with torch.enable_grad(), cache.attach(subject.model):
            with cache.record(subject.model, n_samples, subject.rows(n_samples)), inside or nullcontext():
                prediction = subject.predict(batch, n_samples, validate=False)
            outputs = dict(cache.outputs)
            for name in reached:
                if name not in outputs:
                    raise InvalidArgument(
                        f"the model does not come to layer {name!r} once other values are put into its passes, so that "
                        "a score of passes of the whole model has nothing to read there; use "
                        "attribution='leave_one_out'"
                    )
            total = self.target.values(prediction.logits, self.classes).sum()
            found = differentiate(total, list(outputs.values())) if total.requires_grad else [None] * len(outputs)
        for name, gradient in zip(outputs, found, strict=True):
            self.site_batches[name].suffix.note_gradient(gradient)
        return {
            name: SitePoint(output.detach(), torch.zeros_like(output) if gradient is None else gradient.detach())
            for (name, output), gradient in zip(outputs.items(), found, strict=True)
        }
