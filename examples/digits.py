"""Train a small classifier on scikit-learn's digits and watch which neurons matter for which cluster.

Two callbacks are attached: one with a cluster per label, one with KMeans clusters on embeddings. The first compares two
scores, the default and the mean derivative, so that their tables can be read side by side.
"""

import argparse
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, NeuronImportance


class DigitsClassifier(L.LightningModule):
    """Two hidden layers; the layers' activations are `encoder.1` and `encoder.3`."""

    def __init__(self, activation: type[nn.Module], width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), activation(), nn.Linear(width, width), activation())
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.encoder(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy."""
        x, y = batch
        logits = self(x)
        self.log("val_loss", nn.functional.cross_entropy(logits, y))
        self.log("val_accuracy", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def load_data(batch_size: int) -> tuple[DataLoader, DataLoader]:
    """1,200 digits for training and 597 for validation."""
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
    train, val = random_split(data, [1200, 597], generator=torch.Generator().manual_seed(0))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(val, batch_size)


def main() -> None:
    """Train, and say what was found and where to look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="epochs of training")
    parser.add_argument("--activation", choices=["tanh", "relu", "gelu"], default="tanh", help="of the hidden layers")
    parser.add_argument("--width", type=int, default=128, help="neurons of a hidden layer")
    parser.add_argument("--clusters", type=int, default=6, help="KMeans clusters")
    parser.add_argument("--n-random", type=int, default=39, help="random orders that removal is compared with")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder for TensorBoard")
    options = parser.parse_args()
    for name, least in (("epochs", 1), ("width", 1), ("clusters", 2), ("n_random", 19)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")

    warnings.filterwarnings("ignore", ".*does not have many workers")
    L.seed_everything(0, verbose=False)
    activation = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}[options.activation]
    model = DigitsClassifier(activation, options.width)
    train, val = load_data(batch_size=64)

    layers = ["encoder.1", "encoder.3"]
    # an epoch of this small model takes less time than a check, so that there is no limit to the overhead here
    faithfulness = AblationFaithfulness(n_random=options.n_random, max_overhead=None)
    labels = NeuronImportance(
        layers, attribution=["gradient_x_activation", "gradient"], faithfulness=faithfulness, name="labels"
    )
    kmeans = NeuronImportance(layers, KMeansClusters(options.clusters), faithfulness=faithfulness, name="kmeans")

    logger = TensorBoardLogger(options.logs, name="digits")
    trainer = L.Trainer(
        max_epochs=options.epochs,
        callbacks=[labels, kmeans],
        logger=logger,
        accelerator="cpu",
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(model, train, val)

    for callback in (labels, kmeans):
        print(f"\n{'=' * 100}\n{callback.summary()}")
    print(f"\n{'=' * 100}")
    print("How well do the scores of encoder.1 predict what removal does (LDS, 1 is perfect)?")
    for attribution in labels.results.attributions:
        judged = labels.results["encoder.1", attribution].faithfulness
        print(f"    {attribution:24}{judged.lds[-1]:6.2f}, gap {judged.gap[-1]:+.3f}: {judged.verdict[-1]}")
    print("Run it again with --activation relu, and compare.")
    print(f"\nResults files and logs are in {logger.log_dir}. To look at every epoch:\n")
    print(f"    tensorboard --logdir {options.logs}\n")
    print("Then open http://localhost:6006: Scalars (gap, p-value), Images (deletion curves), Histograms (importance)")
    print("and Text (tables).")


if __name__ == "__main__":
    main()
