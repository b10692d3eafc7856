"""Which tower holds the answer? A toy whose right answer is known, over many seeds.

Three towers of a linear layer and ReLUs see one input each; the middle input alone decides the label. Which tower do
the scores of their neurons name? Compared are the published recipe (for each class: one batch, the mean of the signed
derivative of the correct logit with respect to each pre-activation, then its absolute value), other common scores, and
ours, which also says whether removing the named neurons bears the scores out.

A unit that is always on works as a bias. To set it to zero takes this bias away from every sample, so that it has its
share in the importance for a class; to set it to its mean takes away only what it knows of the sample. That is why the
baseline decides how often the middle tower comes first in every single class.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_neuroimp import AblationFaithfulness, SiteBatch, ablation_faithfulness, neuron_importance

TOWERS, UNITS, RIGHT = 3, 4, 1
PRE, POST = [f"towers.{tower}.0" for tower in range(TOWERS)], [f"towers.{tower}.1" for tower in range(TOWERS)]


class Towers(nn.Module):
    """One tower of ReLU units per input, read out by one linear layer."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(1, UNITS), nn.ReLU()) for _ in range(TOWERS))
        self.joined = nn.Identity()
        self.head = nn.Linear(TOWERS * UNITS, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.joined(torch.cat([tower(x[:, [i]]) for i, tower in enumerate(self.towers)], 1)))


def make_data(n: int, n_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three independent inputs in [-1, 1]; the middle one's equal bins are the classes."""
    x = 2 * torch.rand(n, TOWERS, generator=generator) - 1
    y = ((x[:, RIGHT] + 1) / 2 * n_classes).long().clamp(max=n_classes - 1)
    return x, y


def train(n_classes: int, seed: int, n_train: int, epochs: int) -> tuple[Towers, Tensor, Tensor]:
    """Ten epochs of Adam at .01; and a validation set."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Towers(n_classes)
    x, y = make_data(n_train, n_classes, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for rows in torch.randperm(n_train, generator=generator).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model, *make_data(1000, n_classes, generator)


def mean_absolute_gradient(batch: SiteBatch) -> Tensor:
    """A callable attribution: the derivative's size in each sample."""
    return batch.sum_positions(batch.gradient.abs())


def tower_scores(model: Towers, batches: list[tuple[Tensor, Tensor]], layers: list[str], **options) -> np.ndarray:
    """Sum of absolute importances of each tower's units, (tower, class)."""
    results = neuron_importance(model, batches, layers=layers, **options)
    return np.stack([np.abs(results[layer].mean).sum(1) for layer in layers])


def published(model: Towers, x: Tensor, y: Tensor, n_classes: int) -> np.ndarray:
    """The recipe, class by class, on the first batch of a loader of that class."""
    columns = []
    for label in range(n_classes):
        rows = (y == label).nonzero()[:32, 0]
        batches = [(x[rows], y[rows])]
        columns.append(tower_scores(model, batches, PRE, attribution="gradient", target="logit"))
    return np.concatenate(columns, 1)


def compare(n_classes: int, n_seeds: int, n_train: int, epochs: int) -> None:
    """Count, over seeds, how often each recipe names the middle tower."""
    logit = {"layers": PRE, "target": "logit"}
    recipes = {
        "published: one batch, mean derivative of the logit at the pre-activation": None,
        "the same over all samples": {**logit, "attribution": "gradient"},
        "mean absolute derivative of the logit at the pre-activation": {**logit, "attribution": mean_absolute_gradient},
        "mean pre-activation": {"layers": PRE, "attribution": "activation"},
        "ours: activation x derivative of the margin, baseline zero": {"layers": POST},
        "ours: (activation - mean) x derivative of the margin, baseline mean": {"layers": POST, "baseline": "mean"},
    }
    whole, every = dict.fromkeys(recipes, 0), dict.fromkeys(recipes, 0)
    accuracies, verdicts = [], []
    for seed in tqdm(range(n_seeds), desc=f"{n_classes} classes", unit="seed", leave=False):
        model, x, y = train(n_classes, seed, n_train, epochs)
        with torch.no_grad():
            accuracies.append(float((model(x).argmax(1) == y).float().mean()))
        for name, options in recipes.items():
            scores = tower_scores(model, [(x, y)], **options) if options else published(model, x, y, n_classes)
            whole[name] += int(scores.sum(1).argmax() == RIGHT)
            every[name] += bool((scores.argmax(0) == RIGHT).all())
        results = neuron_importance(model, [(x, y)], layers="joined", baseline="mean")
        settings = AblationFaithfulness(n_random=39, fractions=(0.1, 0.2, 0.35))
        results = ablation_faithfulness(model, [(x, y)], results, settings)
        verdicts.append(results["joined"].faithfulness.verdict[-1])
    print(f"\n{n_classes} classes, {n_seeds} seeds, accuracy {np.mean(accuracies):.2f} (chance {1 / n_classes:.2f})")
    print(f"{'seeds in which the middle tower comes first':74}{'in all':>10}{'in every class':>16}")
    for name in recipes:
        print(f"{name:74}{whole[name]:>6}/{n_seeds:<3}{every[name]:>12}/{n_seeds:<3}")
    counts = ", ".join(f"{verdict} in {verdicts.count(verdict)}" for verdict in sorted(set(verdicts)))
    print(f"verdict on the last ranking, over all {TOWERS * UNITS} neurons: {counts}")


def main() -> None:
    """Two classes, as in the question, and four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="networks to train")
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4], help="numbers of classes")
    parser.add_argument("--samples", type=int, default=1000, help="training samples")
    parser.add_argument("--epochs", type=int, default=10, help="of training")
    options = parser.parse_args()
    for n_classes in options.classes:
        compare(n_classes, options.seeds, options.samples, options.epochs)


if __name__ == "__main__":
    main()
