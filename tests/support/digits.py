"""Small classifiers trained on scikit-learn's digits."""

from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import nn


def digits(dtype=torch.float32):
    """Shuffled once: 1,200 for training, 597 for validation."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x / 16, dtype=dtype)[order], torch.tensor(y)[order]


def batches(x, y, size=128):
    return list(zip(x.split(size), y.split(size), strict=True))


def validation_batches(size=128):
    x, y = digits()
    return batches(x[1200:], y[1200:], size)


def train(activation=nn.Tanh, seed=0, width=256, depth=3, epochs=20):
    """An MLP of `depth` hidden layers, activations at "1", "3", ...; Adam at .001 with batches of 64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = [64] + [width] * depth
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
        model = nn.Sequential(*layers, nn.Linear(width, 10))
    x, y = digits()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(1200, generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()
