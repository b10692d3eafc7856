"""Tokens, heads and the class token of a small transformer on scikit-learn's digits.

Each digit is a sequence of 16 patches of 2 x 2 pixels behind a class token. Four kinds of neurons are scored: hidden
units of an MLP, summed over the tokens; attention heads, as groups of channels; the residual stream at the class token
alone; and the same stream with another baseline, for which nothing but the difference to another digit counts.
"""

import argparse
import warnings

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_neuroimp import AblationFaithfulness, NeuronImportance, Site, list_sites

WIDTH, HEADS = 32, 4


class Attention(nn.Module):
    """Self-attention; the input of `out` is the heads side by side, 8 channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """From (sample, token, channel) to the same."""
        query, key, value = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block; its hidden units are `mlp.1`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """From (sample, token, channel) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(L.LightningModule):
    """Two blocks, read at the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.place = nn.Parameter(0.1 * torch.randn(1, 17, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images of shape (sample, 1, 8, 8)."""
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.place
        return self.head(self.norm(self.blocks(tokens)[:, 0]))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy."""
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> None:
    """List the layers, train, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="training epochs")
    parser.add_argument("--folder", default="logs", help="folder for TensorBoard's logs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    L.seed_everything(0)

    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(y))
    train, val = random_split(data, [1200, 597], generator=torch.Generator().manual_seed(0))
    loader = DataLoader(val, 128)
    model = Transformer()
    print(list_sites(model, next(iter(loader))))

    # digits by their strokes: the groups are the user's own, and named
    groups = {0: "closed", 6: "closed", 8: "closed", 9: "closed", 1: "straight", 4: "straight", 7: "straight"}
    checks = AblationFaithfulness(max_overhead=None, every_n_epochs=max(1, options.epochs - 1))
    layers = ["blocks.0.mlp.1", Site("blocks.1.attention.out", side="input", group=WIDTH // HEADS)]
    tokens = NeuronImportance(layers=layers, clusters=groups, faithfulness=checks, name="tokens")
    stream = NeuronImportance(
        layers=[Site("blocks.0", position=0)], clusters=groups, baseline="resample", faithfulness=checks, name="stream"
    )
    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        callbacks=[tokens, stream],
        logger=TensorBoardLogger(options.folder, "transformer"),
        log_every_n_steps=5,
    )
    trainer.fit(model, DataLoader(train, 64, shuffle=True), loader)
    for callback in (tokens, stream):
        print(callback.summary() + "\n")
    print(f"tensorboard --logdir {options.folder}")


if __name__ == "__main__":
    main()
