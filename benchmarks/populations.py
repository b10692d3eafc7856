"""Networks with samples, built and trained, and removal of neurons from them by plain torch, for many repeats.

Nothing here is part of the library but the margin: masks of many orders go through what follows a site in one batch.
`calibration.py` compares with the public API.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine, make_classification
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from lightning_neuroimp.capture.targets import margin

MAX_VALUES = 2**17
"""Upper bound on the number of activations that go through a network at once."""


@dataclass(frozen=True)
class Population:
    """A network, all samples that there are, and the activations of the layer whose neurons are removed.

    Attributes:
        name: in words.
        model: a sequence of layers.
        layer: number of the layer.
        x: inputs.
        y: classes.
    """

    name: str
    model: nn.Sequential
    layer: int
    x: Tensor
    y: Tensor

    def activations(self) -> Tensor:
        """Of all samples, neurons (or channels) on axis 1."""
        with torch.no_grad():
            return self.model[: self.layer + 1](self.x)

    def scores(self, name: str) -> np.ndarray:
        """Gradient, or gradient times activation, of each sample and neuron; the margin is the target."""
        h = self.activations().requires_grad_()
        (gradient,) = torch.autograd.grad(margin(self.model[self.layer + 1 :](h), self.y).sum(), h)
        value = gradient if name == "gradient" else gradient * h.detach()
        return value.flatten(2).sum(2).numpy() if value.ndim > 2 else value.numpy()

    def correct(self, orders: Sequence[np.ndarray], removed: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Whether each sample is right without the first neurons of its cell's row: (order, point, sample)."""
        return self.outcomes(orders, removed, cell)[0]

    def outcomes(
        self, orders: Sequence[np.ndarray], removed: np.ndarray, cell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Correctness and margin of each sample without the first neurons of its cell's row: (order, point, sample)."""
        h, after = self.activations(), self.model[self.layer + 1 :]
        position = torch.from_numpy(np.stack([np.argsort(order, axis=1) for order in orders]))
        kept = torch.stack([position >= int(count) for count in removed], 1).flatten(0, 1)
        rows, at_once = torch.from_numpy(cell), max(1, MAX_VALUES // h.numel())
        right, margins = [], []
        with torch.no_grad():
            for part in kept.split(at_once):
                each = part[:, rows] if part.shape[1] > 1 else part.expand(-1, len(rows), -1)
                left = h * each.reshape(*each.shape, *[1] * (h.ndim - 2))
                logits = after(left.flatten(0, 1)).reshape(len(part), len(rows), -1)
                right.append(logits.argmax(2) == self.y)
                margins.append(margin(logits.flatten(0, 1), self.y.repeat(len(part))).reshape(len(part), -1))
        shape = len(orders), len(removed), -1
        return torch.cat(right).numpy().reshape(shape), torch.cat(margins).double().numpy().reshape(shape)


def samples(name: str, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Inputs and classes of a data set that comes with scikit-learn, shuffled, inputs standardised."""
    loaders: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        "digits": lambda: load_digits(return_X_y=True),
        "wine": lambda: load_wine(return_X_y=True),
        "iris": lambda: load_iris(return_X_y=True),
        "breast cancer": lambda: load_breast_cancer(return_X_y=True),
        "synthetic, 2 classes": lambda: make_classification(2000, 20, n_informative=8, flip_y=0.1, random_state=1),
        "synthetic, 8 classes": lambda: make_classification(
            2400, 24, n_informative=12, n_classes=8, class_sep=1.5, flip_y=0, random_state=2
        ),
        "synthetic, 4 classes, rare": lambda: make_classification(
            2400, 16, n_informative=8, n_classes=4, weights=[0.7, 0.15, 0.1], class_sep=2, flip_y=0, random_state=3
        ),
    }
    x, y = loaders[name]()
    order = np.random.default_rng(0).permutation(len(y))[:n]
    return torch.tensor(StandardScaler().fit_transform(x)[order], dtype=torch.float32), torch.tensor(y[order])


def perceptron(n_inputs: int, activation: type[nn.Module], width: int, depth: int, n_classes: int) -> nn.Sequential:
    """Its activations are layers 1, 3, 5, ..."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Linear(n_inputs if number == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


def convolutional(n_channels: int, n_classes: int = 10) -> nn.Sequential:
    """For digits of 8 times 8; its activations are layers 2 and 4."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, n_channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(n_channels, n_channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * n_channels, n_classes),
    )


def fit(build: Callable[[], nn.Sequential], x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Sequential:
    """A network trained with Adam at .003, batches of 64."""
    torch.manual_seed(seed)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def trained(
    data: str, activation: type[nn.Module], width: int, depth: int, epochs: int, seed: int, layer: int = 1
) -> Population:
    """A perceptron trained on half of the samples (600 at most); its population is all of them."""
    x, y = samples(data)
    n = min(600, len(x) // 2)
    classes = int(y.max()) + 1
    model = fit(lambda: perceptron(x.shape[1], activation, width, depth, classes), x[:n], y[:n], epochs, seed)
    name = f"{data}, {activation.__name__}, {depth} x {width}, {epochs} epochs, layer {layer}"
    return Population(name, model, layer, x, y)


def trained_convolutional(n_channels: int, epochs: int, seed: int, layer: int) -> Population:
    """A convolutional network trained on 600 digits; its population is all of them."""
    x, y = samples("digits")
    model = fit(lambda: convolutional(n_channels), x[:600], y[:600], epochs, seed)
    return Population(
        f"digits, convolutional, {n_channels} channels, {epochs} epochs, layer {layer}", model, layer, x, y
    )


def built(n_classes: int, n_neurons: int, seed: int) -> Population:
    """A network with nothing but a linear readout, whose removals take from one class what they give to the others.

    Each neuron speaks for one class; with two classes also against the other one.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(240, n_neurons, generator=generator) + 0.5
    weight = torch.zeros(n_classes, n_neurons)
    weight[torch.arange(n_neurons) % n_classes, torch.arange(n_neurons)] = 1.0
    if n_classes == 2:
        weight -= weight.flip(0)
    readout = nn.Linear(n_neurons, n_classes, bias=False)
    readout.weight.data = weight
    model = nn.Sequential(nn.Identity(), readout).eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    return Population(f"built, {n_classes} classes, {n_neurons} neurons", model, 0, x, y)


def small(kind: str, seed: int) -> Population:
    """A network trained on 200 digits for a few epochs, so that removal matters; 300 other digits."""
    x, y = samples("digits", 500)
    build = {
        "ReLU": lambda: perceptron(64, nn.ReLU, 24, 1, 10),
        "tanh": lambda: perceptron(64, nn.Tanh, 32, 2, 10),
        "convolutional": lambda: convolutional(16),
    }[kind]
    epochs, layer = (8, 2) if kind == "convolutional" else (3, 1)
    return Population(f"digits, {kind}", fit(build, x[:200], y[:200], epochs, seed), layer, x[200:], y[200:])
