"""Describe one architecture of the zoo: how it is made, what it is fed, and where its neurons are, by hand."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neuroimp import Site

N, CLASSES, VOCABULARY = 8, 3, 40

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Place:
    """Hold a site as a user would name it, and what is true of it, read in the architecture's source.

    Attributes:
        site: name of a module, or a `Site`.
        axis: neuron axis of the module's own tensor.
        neurons: number of neurons: of groups, where the site has groups.
        tokens: axis of the tokens to which the batch's mask belongs; None: all positions count.
        samples: axis of the samples in the module's own tensor.
        item: place of the tensor in an output that is a tuple; None: the output is a tensor.
        refused: why no number can be right here, so that a refusal is; empty: a number is expected.
    """

    site: str | Site
    axis: int
    neurons: int
    tokens: int | None = None
    samples: int = 0
    item: int | None = None
    refused: str = ""

    @property
    def where(self) -> Site:
        """Return the site."""
        return Site(self.site) if isinstance(self.site, str) else self.site


Inputs = Any
"""A tensor, a dictionary of tensors, or a packed batch of graphs: samples first."""


def take(inputs: Inputs, sample: int) -> Inputs:
    """Return the inputs of one sample, twice.

    Not once: in evaluation mode the gradient of torch's batch norm is wrong for a batch of one whose gradient has its
    channels last (torch 2.13 on a CPU).
    """
    if isinstance(inputs, dict):
        return {key: part[[sample, sample]] for key, part in inputs.items()}
    return inputs[[sample, sample]]


def plain_logits(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits of a model that returns them alone, or as `logits`."""
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output if isinstance(output, Tensor) else output.logits


def plain_batch(inputs: Inputs, labels: Tensor) -> Any:
    """Return the batch as a loader would yield it."""
    return {**inputs, "labels": labels} if isinstance(inputs, dict) else (inputs, labels)


def plain_key(batch: Any) -> Tensor:
    """Return a part of a batch by which its samples can be told apart."""
    return next(iter(batch.values())) if isinstance(batch, dict) else batch[0]


@dataclass(frozen=True)
class Entry:
    """Hold one architecture.

    Attributes:
        name: of the architecture.
        package: that it is from.
        make: gives the model.
        inputs: gives what the model is fed, samples first, and the mask of real tokens (None: there is no padding).
        places: early, in the middle, late.
        quick: whether it is in the quick selection.
        logits: gives the logits for inputs.
        take: gives the inputs of one sample, twice.
        batch: gives the batch of a loader.
        key: gives a part of a batch by which its samples can be told apart.
        forward_fn: passed to the package; None: nothing is passed.
        dtype: of the weights.
    """

    name: str
    package: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Inputs, Tensor | None]]
    places: tuple[Place, ...]
    quick: bool = False
    logits: Callable[[nn.Module, Inputs], Tensor] = plain_logits
    take: Callable[[Inputs, int], Inputs] = take
    batch: Callable[[Inputs, Tensor], Any] = plain_batch
    key: Callable[[Any], Tensor] = plain_key
    forward_fn: Callable[[Any, Any], Any] | None = None
    dtype: torch.dtype = torch.float64

    def installed(self) -> bool:
        """Tell whether the package is installed."""
        return importlib.util.find_spec(self.package) is not None

    def model(self) -> nn.Module:
        """Return the model with weights that make a difference, in eval mode."""
        torch.manual_seed(0)
        model = shaken(self.make()).to(self.dtype)
        norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
        if norms:  # their statistics must be those of the data: a deep network is a constant otherwise
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = 1.0
            with torch.no_grad():
                self.logits(model.train(), self.inputs()[0])
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        return model.eval()


def shaken(model: nn.Module) -> nn.Module:
    """Give a model weights with which all of its neurons matter: many architectures begin so near to zero that none do.

    Matrices of linear, convolutional and embedding layers keep the size of what passes; all else is moved a little.
    """
    matrices = {
        module.weight
        for module in model.modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.ndim > 1
    }
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter in matrices:
                embedding = parameter.ndim == 2 and parameter.shape[0] >= VOCABULARY
                gain = 1 if parameter.ndim == 2 else 2  # of variance: what follows a convolution halves it
                parameter.normal_(0, 1 if embedding else (gain / parameter[0].numel()) ** 0.5)
            elif parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def tokens(
    length: int = 7, *, left: bool = False, end: int | None = None, pad: int = 0, mask: str = "attention_mask"
) -> Callable[[], tuple[Inputs, Tensor | None]]:
    """Return a function that makes token numbers with padding.

    Args:
        length: of the longest sample.
        left: whether the padding is on the left.
        end: token that ends each sample; None: there is none.
        pad: token of the padding.
        mask: name of the mask.
    """

    def make() -> tuple[Inputs, Tensor | None]:
        lengths = torch.tensor([length, length - 3, length - 1, length, length - 2, length - 4, length, length - 1])
        numbers = torch.arange(length)[None]
        real = numbers >= length - lengths[:, None] if left else numbers < lengths[:, None]
        ids = torch.randint(5, VOCABULARY, (N, length), generator=torch.Generator().manual_seed(1))
        if end is not None:
            ids[torch.arange(N), lengths - 1] = end
        return {"input_ids": ids.where(real, pad), mask: real.long()}, real

    return make


def rows(*shape: int, name: str | None = None) -> Callable[[], tuple[Inputs, Tensor | None]]:
    """Return a function that makes random inputs of one shape, without padding.

    Args:
        shape: of one sample.
        name: of the inputs in a batch that is a dictionary; None: they are a tensor.
    """

    def make() -> tuple[Inputs, Tensor | None]:
        x = torch.randn(N, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return (x if name is None else {name: x}), None

    return make
