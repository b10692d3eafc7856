"""Channels of a small convolutional network on scikit-learn's digits: which matter for which kind of digit?

Clusters are found by KMeans, their number by silhouette. TensorBoard shows what is in each cluster, and the digits that
drive each cluster's top channel most. At the end a claim is checked by hand with `ablate`.
"""

import argparse
import warnings

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, NeuronImportance, ablate


class ConvNet(L.LightningModule):
    """Two convolutions; their activations are `features.2` (16 channels) and `features.6` (32 channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        )
        self.head = nn.Linear(32 * 2 * 2, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images of shape (sample, 1, 8, 8)."""
        return self.head(self.features(image).flatten(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy."""
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main() -> None:
    """Train, print the tables, and check the first claim by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="training epochs")
    parser.add_argument("--folder", default="logs", help="folder for TensorBoard's logs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    L.seed_everything(0)

    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(y))
    train, val = random_split(data, [1200, 597], generator=torch.Generator().manual_seed(0))
    loader = DataLoader(val, 128)

    importance = NeuronImportance(
        layers=["features.2", "features.6"],
        clusters=KMeansClusters(n_clusters=(4, 12), scale="standard", n_components=16),
        baseline="mean",
        faithfulness=AblationFaithfulness(max_overhead=None, every_n_epochs=options.epochs - 1),
        stratify=True,
    )
    model = ConvNet()
    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        callbacks=[importance],
        logger=TensorBoardLogger(options.folder, "convnet"),
        log_every_n_steps=5,
    )
    trainer.fit(model, DataLoader(train, 64, shuffle=True), loader)
    print(importance.summary())

    found = importance.results["features.6"]
    names = importance.results.clusters.names
    chosen = importance.results.clusters.ids[0]
    channels = found.top(chosen, 6)
    model.eval()
    images, labels = next(iter(DataLoader(val, len(val))))
    member = torch.isin(torch.arange(len(labels)), torch.tensor(members(importance, int(chosen))))
    with torch.no_grad():
        before = model(images).argmax(1) == labels
        with ablate(model, found.removal, channels):
            after = model(images).argmax(1) == labels
    print(f"\nBy hand: without channels {channels.tolist()} of features.6 (set to their means), accuracy falls")
    print(f"from {before[member].float().mean():.2f} to {after[member].float().mean():.2f} on {names[0]},")
    print(f"from {before[~member].float().mean():.2f} to {after[~member].float().mean():.2f} on all others.")
    print(f"\ntensorboard --logdir {options.folder}")


def members(importance: NeuronImportance, cluster: int) -> list[int]:
    """Numbers of the validation samples in a cluster."""
    results = importance.results
    return [int(number) for number in results.sample_index[results.sample_cluster == cluster]]


if __name__ == "__main__":
    main()
