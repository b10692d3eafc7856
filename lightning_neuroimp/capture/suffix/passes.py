"""Run the whole model, with other activations at one site."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neuroimp.batches.structure import copied_to
from lightning_neuroimp.capture.forward import Outcome, model_device
from lightning_neuroimp.capture.hooks import SiteHook
from lightning_neuroimp.capture.random_states import States, restore
from lightning_neuroimp.capture.site_tensor import read_activation, write_activation
from lightning_neuroimp.capture.suffix.randomness import RandomSources
from lightning_neuroimp.site import Site

Forward = Callable[[Any], tuple[Any, ...]]
"""A batch on the model's device, which it may overwrite, to an `Outcome` or its first parts."""

Replace = Callable[[Tensor], Tensor]
"""A site's activations, samples first, to those that take their place."""


class SitePasses:
    """Run a model on batches, with the activations at one site replaced by a hook.

    Attributes:
        random: the generators that a pass may draw from.

    Args:
        model: holds the site.
        forward: a batch to logits and classes, by the model.
        site: must be called once in a pass, unless it names a call.
    """

    def __init__(self, model: nn.Module, forward: Forward, site: Site) -> None:
        self._model, self._forward, self._site = model, forward, site
        self.random = RandomSources(model)

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return model_device(self._model)

    def run(
        self,
        batch: Any,
        replace: Replace,
        inside: AbstractContextManager[Any] | None = None,
        *,
        states: States | None = None,
        n_samples: int | None = None,
    ) -> Outcome:
        """Return the outcome of one forward pass.

        Args:
            batch: on any device; the pass gets a copy.
            replace: called with the site's activations when the pass comes to it.
            inside: entered around the forward pass, after the hook is in place.
            states: of the random generators, from which the pass begins; None: from those that they have.
            n_samples: number of samples, where rows after them are copies, which stay as they are; None: all rows are.

        Raises:
            InvalidArgument: if the site's module is called several times, or has no activations that can be explained.
        """

        def visit(module: nn.Module, value: Any) -> Any:
            activation = read_activation(self._site, module, value)
            if n_samples is None:
                return write_activation(self._site, module, value, replace(activation))
            replaced = torch.cat([replace(activation[:n_samples]), activation[n_samples:]])
            return write_activation(self._site, module, value, replaced)

        if states is not None:
            restore(states)
        with SiteHook(self._site, visit, single=True).attach(self._model), inside or nullcontext():
            outcome = Outcome(*self._forward(copied_to(batch, self.device)))
            if n_samples is None:
                return outcome
            tokens = None if outcome.tokens is None else outcome.tokens[:n_samples]
            return Outcome(outcome.logits[:n_samples], outcome.classes[:n_samples], tokens)
