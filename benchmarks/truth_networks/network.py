"""A network with samples: how it is made, and at which layers its neurons are removed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_neuroimp import Site

from .data import Samples, load

EPOCHS, LEARNING_RATE, BATCH = 15, 3e-3, 64


@dataclass(frozen=True)
class Network:
    """A trained network, in evaluation mode, and the samples on which it is probed."""

    model: nn.Module
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Spec:
    """How a network is made.

    Attributes:
        family: in words, for tables.
        data: name of its data set.
        seed: of its weights, its training, the probe set and all random scores.
        build: (shape of an input, number of classes) to a network; None: it is loaded.
        sites: layers whose neurons are removed, early to late.
        epochs: of training.
        learning_rate: of Adam.
        packages: that have its weights or samples, as they are imported; it is left out where one is missing.
        load: makes network and samples of a pretrained one; None: it is built, and trained here.
        quick: the site that `--quick` looks at; None: no site.
    """

    family: str
    data: str
    seed: int
    build: Callable[[tuple[int, ...], int], nn.Module] | None
    sites: tuple[str | Site, ...]
    epochs: int = EPOCHS
    learning_rate: float = LEARNING_RATE
    packages: tuple[str, ...] = ()
    load: Callable[[], Network] | None = None
    quick: str | Site | None = None

    def make(self) -> Network:
        """The network, trained on the training samples, and the probe's samples."""
        if self.load is not None:
            return self.load()
        samples = load(self.data)
        return Network(self._trained(samples), samples.probe_x, samples.probe_y)

    def _trained(self, samples: Samples) -> nn.Module:
        """A network trained with Adam."""
        assert self.build is not None
        torch.manual_seed(self.seed)
        model = self.build(tuple(samples.x.shape[1:]), samples.n_classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(samples.x)).split(BATCH):
                if len(rows) < 2:
                    continue  # batch norm takes no single sample
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(samples.x[rows]), samples.y[rows]).backward()
                optimizer.step()
        return model.eval()
