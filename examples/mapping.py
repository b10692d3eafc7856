"""Batches that are mappings, with padding and a mask, as Hugging Face's classifiers take them.

Each of scikit-learn's digits becomes the sequence of its dark pixels: one token for each, padded to the longest of the
batch. The model is called with `input_ids` and `attention_mask` and returns an object with `.logits`; nothing has to be
told to the callback. `--bert` trains a small, randomly initialised BERT of the `transformers` package instead.
"""

import argparse
import warnings
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_neuroimp import AblationFaithfulness, NeuronImportance

WIDTH, HIDDEN, DARK = 32, 64, 8


@dataclass
class Output:
    """What the model returns."""

    logits: Tensor
    loss: Tensor | None = None


class Encoder(nn.Module):
    """A transformer encoder of one layer, averaged over the tokens; its hidden units are `hidden.1`."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(65, WIDTH, padding_idx=0)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.hidden = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU())
        self.output, self.classifier = nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Output:
        """Logits, and the loss where there are labels."""
        x = self.embeddings(input_ids)
        x = self.norm(x + self.attention(x, x, x, key_padding_mask=attention_mask == 0, need_weights=False)[0])
        x = x + self.output(self.hidden(x))
        real = attention_mask[..., None]
        logits = self.classifier((x * real).sum(1) / real.sum(1))
        return Output(logits, None if labels is None else nn.functional.cross_entropy(logits, labels))


def bert() -> nn.Module:
    """A BERT with two tiny layers and random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=65,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=HIDDEN,
        num_labels=10,
        hidden_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


class Classifier(L.LightningModule):
    """Trains a model on mappings."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Any:
        """What the model returns."""
        return self.model(**inputs)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The model's own loss."""
        return self(**batch).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accuracy."""
        labels = batch.pop("labels")
        self.log("val_accuracy", (self(**batch).logits.argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def pixels_to_tokens(image: np.ndarray) -> list[int]:
    """The numbers of the dark pixels, counted from 1; 0 is padding."""
    return (np.flatnonzero(image >= DARK) + 1).tolist()


def collate(samples: list[tuple[list[int], int]]) -> dict[str, Tensor]:
    """Pad to the longest sequence."""
    longest = max(len(tokens) for tokens, _ in samples)
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in samples])
    labels = torch.tensor([label for _, label in samples])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def to_picture(sample: dict[str, Tensor]) -> np.ndarray:
    """What TensorBoard shows of a sample: its tokens, drawn."""
    picture = np.zeros(65, np.uint8)
    picture[sample["input_ids"].numpy()] = 255
    return picture[1:].reshape(8, 8)


def main() -> None:
    """Train, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="training epochs")
    parser.add_argument("--bert", action="store_true", help="train a BERT of the transformers package")
    parser.add_argument("--folder", default="logs", help="folder for TensorBoard's logs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    L.seed_everything(0)

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    data = [(pixels_to_tokens(images[number]), int(labels[number])) for number in order]
    train = DataLoader(data[:1200], 64, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    val = DataLoader(data[1200:], 128, collate_fn=collate)  # type: ignore[arg-type]

    importance = NeuronImportance(
        layers="model.bert.encoder.layer.*.intermediate" if options.bert else "model.hidden.1",
        clusters="predictions",
        attribution=["gradient_x_activation", "masked_gradient"],
        faithfulness=AblationFaithfulness(max_overhead=None, every_n_epochs=max(1, options.epochs - 1)),
        describe_sample=to_picture,
    )
    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        callbacks=[importance],
        logger=TensorBoardLogger(options.folder, "mapping"),
        log_every_n_steps=5,
    )
    trainer.fit(Classifier(bert() if options.bert else Encoder()), train, val)
    print(importance.summary())
    print(f"\ntensorboard --logdir {options.folder}")


if __name__ == "__main__":
    main()
