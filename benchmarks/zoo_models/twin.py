"""Score and remove neurons slowly, one sample at a time, with plain hooks and `torch.autograd.grad`.

Nothing of the package is used here, except the fields of a `Site`. Where the neurons are comes from the table, by hand.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .entry import Entry, Inputs, Place


@dataclass
class Twin:
    """Hold one architecture at one place, and what it is fed.

    Attributes:
        entry: the architecture.
        place: the site, by hand.
        model: of the entry.
        inputs: of all samples.
        real: (sample, token), True for real tokens; None: there is no padding.
    """

    entry: Entry
    place: Place
    model: nn.Module
    inputs: Inputs
    real: Tensor | None

    @contextmanager
    def replacing(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Put another tensor in the place of the site's in the one call that is meant."""
        site, calls = self.place.where, [0]
        module = self.model.get_submodule(site.name)

        def visit(tensor: Tensor) -> Tensor:
            calls[0] += 1
            return tensor if site.call is not None and calls[0] - 1 != site.call else change(tensor)

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (visit(args[0]), *args[1:])

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            item = self.place.item
            if item is None:
                return visit(output)
            if isinstance(output, dict):
                output[item] = visit(output[item])
                return output
            return (*output[:item], visit(output[item]), *output[item + 1 :])

        hook = module.register_forward_pre_hook(before) if site.side == "input" else module.register_forward_hook(after)
        with hook:
            yield

    def neurons_last(self, tensor: Tensor) -> Tensor:
        """Return a view of the site's tensor of one sample as (*position, channel), without changing the tensor."""
        axes = [self.place.axis % tensor.ndim, self.place.samples]
        assert tensor.shape[axes[1]] == 2, "the twin runs one sample, twice"
        expected = self.place.neurons * self.place.where.group
        assert tensor.shape[axes[0]] == expected, f"{tuple(tensor.shape)} has not {expected} channels on axis {axes[0]}"
        others = [axis for axis in range(tensor.ndim) if axis not in axes]
        return tensor.permute(axes[1], *others, axes[0])[0]

    def counted(self, sample: int, values: Tensor) -> Tensor:
        """Return which positions of one sample count, to broadcast against (*position, channel)."""
        shape, position = [1] * values.ndim, self.place.where.position
        if self.place.tokens is None or self.real is None:
            assert position is None
            return torch.ones(shape, dtype=torch.bool)
        axes = [self.place.axis, self.place.samples]
        place = sum(axis not in axes for axis in range(self.place.tokens))
        shape[place] = -1
        mask = torch.zeros(values.shape[place], dtype=torch.bool)  # what a model pads further is padding too
        mask[: self.real.shape[1]] = self.real[sample]
        if position is not None:
            chosen = mask.nonzero()[position]
            mask = torch.zeros_like(mask)
            mask[chosen] = True
        return mask.reshape(shape)

    def logits(self, sample: int) -> Tensor:
        """Return the logits of one sample, which runs beside a copy of itself."""
        return self.entry.logits(self.model, self.entry.take(self.inputs, sample))[0]

    def scores(self, labels: Tensor) -> Tensor:
        """Return activation x gradient of the margin, (sample, neuron), summed over the positions that count."""
        scores = []
        for sample, label in enumerate(labels.tolist()):
            leaves: list[Tensor] = []

            def keep(tensor: Tensor, leaves: list[Tensor] = leaves) -> Tensor:
                leaves.append(tensor.detach().clone().requires_grad_())
                return leaves[0].clone()

            with self.replacing(keep):
                value = margin(self.logits(sample), label)
            (slope,) = torch.autograd.grad(value, leaves[0])
            products = self.neurons_last(leaves[0].detach() * slope)
            products = products * self.counted(sample, products)
            scores.append(products.reshape(-1, self.place.neurons, self.place.where.group).sum((0, 2)))
        return torch.stack(scores)

    def without(self, sample: int, neurons: Sequence[int], *, padding_too: bool = False) -> Tensor:
        """Return the logits of one sample with some neurons set to zero.

        Args:
            sample: its number.
            neurons: their numbers.
            padding_too: whether they are removed at padded positions as well, where the site names no position.
        """
        site = self.place.where

        def remove(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            view = self.neurons_last(changed)
            gone = self.counted(sample, view).expand(view.shape)
            if padding_too and site.position is None:
                gone = torch.ones_like(gone)
            for neuron in neurons:
                channels = slice(neuron * site.group, (neuron + 1) * site.group)
                view[..., channels] = torch.where(gone[..., channels], 0.0, view[..., channels])
            return changed

        with torch.no_grad(), self.replacing(remove):
            return self.logits(sample)


def margin(logits: Tensor, label: int) -> Tensor:
    """Return the logit of a class minus the logarithm of the summed exponentials of all others."""
    others = torch.cat([logits[:label], logits[label + 1 :]])
    return logits[label] - others.exp().sum().log()
