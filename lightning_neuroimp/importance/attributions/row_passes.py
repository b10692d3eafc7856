"""Be a module from a site's activations to targets, for libraries that explain modules by their inputs."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_neuroimp.batches.numbers import rows_of
from lightning_neuroimp.batches.structure import to_device
from lightning_neuroimp.capture.hooks import SiteHook, has_forward
from lightning_neuroimp.capture.random_states import random_states, restore
from lightning_neuroimp.capture.site_tensor import read_activation, write_activation
from lightning_neuroimp.importance.attributions.batch_passes import BatchPasses

_REARRANGING = (nn.Flatten, nn.Unflatten, nn.Identity)
"""Modules that hand on what they get, for which libraries need no rule, and may have none."""


class RowPasses(nn.Module):
    """Compute the targets of samples of a batch, any number of times each, from activations at one site.

    Each call is a pass of the whole model over a batch that is made of these samples, in which a hook puts the
    activations in place of the site's. So the model's own modules are called, and hooks on them see the call. Its
    submodules are those without parts that are called after the site, except for what only rearranges.

    Example:
        with RowPasses(passes, "encoder.1").attach() as function:
            targets = function(activation, torch.tensor([0, 0, 1]))

    Attributes:
        rows: row of each sample of the next call in the batch, where the call does not say it.

    Args:
        passes: of the batch.
        name: the site's text.
    """

    def __init__(self, passes: BatchPasses, name: str) -> None:
        super().__init__()
        self.rows: Tensor | None = None
        self._passes, self._site = passes, passes.sites[name]
        self._n_rows = len(passes.classes)
        self._stack_rows = self._find(passes.site_batches[name].index)
        self._activation: Tensor | None = None  # while a call runs
        self._hook = SiteHook(self._site, self._replace)
        self._after: list[nn.Module] | None = None  # while the modules are found
        self.eval()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Put weights back that a library has exchanged; those that are as they were are not written to."""
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        for name, tensor in own.items():
            if name in state_dict and state_dict[name].data_ptr() != tensor.data_ptr():
                tensor.data = state_dict[name].data
        return None

    def _find(self, index: Int[np.ndarray, " sample"]) -> Int[np.ndarray, " sample"]:
        """Return the places of the batch's samples in the stack of the probe set that holds them."""
        for stack in self._passes.subject.probe.stacks:
            if np.isin(index, stack.index).all():
                self._stack = stack
                return rows_of(stack.index, index)
        raise KeyError(f"no stack of the probe set holds the samples {index[:5].tolist()}")

    @contextmanager
    def attach(self) -> Iterator["RowPasses"]:
        """Hold the hook at the site inside this context, and leave no attributes on modules.

        Modules that are called after the site are found by one more pass.
        """
        model = self._passes.subject.model
        with ExitStack() as stack:
            stack.enter_context(self._hook.attach(model))
            self.called = nn.ModuleList(self._modules_after(model))
            before = {module: set(vars(module)) for module in self.called}
            try:
                yield self
            finally:
                for module, names in before.items():
                    for name in set(vars(module)) - names:
                        delattr(module, name)

    def _modules_after(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules without parts that are called after the site, in order, each once."""
        found: list[nn.Module] = []

        def note(module: nn.Module, args: Any) -> None:
            if self._after is not None and not any(module is each for each in found):
                found.append(module)

        with ExitStack() as stack, torch.no_grad():
            for module in model.modules():
                leaf = has_forward(module) and not any(True for _ in module.children())
                if leaf and not isinstance(module, _REARRANGING):
                    stack.callback(nn.Module.register_forward_pre_hook(module, note).remove)
            self._run(np.arange(1))
        self._after = None
        return found

    def forward(
        self, activation: Float[Tensor, " row *rest"], rows: Int[Tensor, " row"] | None = None
    ) -> Float[Tensor, " row"]:
        """Return the target of each row.

        Args:
            activation: at the site.
            rows: row of each one's sample in the batch.
        """
        rows = self.rows if rows is None else rows
        assert rows is not None
        rows = rows.reshape(-1)
        if len(rows) < len(activation):  # the library has repeated the activations, and no other arguments
            rows = rows.repeat(len(activation) // len(rows))
        self._activation = activation
        try:
            logits = self._run(rows.cpu().numpy())
        finally:
            self._activation = None
        return self._passes.target.values(logits, self._passes.classes[rows])

    def _run(self, rows: Int[np.ndarray, " row"]) -> Float[Tensor, "row class"]:
        """Return the logits of a pass over samples of the batch."""
        subject, n_rows = self._passes.subject, len(rows)
        filled = np.append(rows, rows[:1]) if subject.rows(n_rows) > n_rows else rows
        batch = to_device(self._stack.rows_batch(self._stack_rows[filled]), subject.device)
        self._hook.reset()
        if subject.states is None:
            return subject.predict(batch, n_rows, validate=False).logits
        states = random_states()  # a pass of such a model begins in a state of its own, which is none for the library
        logits = subject.predict(batch, n_rows, validate=False).logits
        restore(states)
        return logits

    def _replace(self, module: nn.Module, value: Any) -> Any:
        """Put the activations of the call in place of the site's; note that modules are called after it from here."""
        if self._activation is None:
            self._after = []
            return None
        found = read_activation(self._site, module, value)
        activation = self._activation.to(found.dtype)
        rest = found[len(activation) :]
        written = torch.cat([activation, rest.detach()]) if len(rest) else activation.clone()
        return write_activation(self._site, module, value, written)
