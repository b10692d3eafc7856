"""LightningModules for tests of the callbacks."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.support.digits import digits


class Classifier(pl.LightningModule):
    def __init__(self, width=16):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Dropout(0.2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.encoder(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y), add_dataloader_idx=False)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


def loaders(n_train=256, n_val=320, batch_size=64):
    x, y = digits()
    train = TensorDataset(x[:n_train], y[:n_train])
    val = TensorDataset(x[1200 : 1200 + n_val], y[1200 : 1200 + n_val])
    return DataLoader(train, batch_size, shuffle=True), DataLoader(val, batch_size)


def trainer(tmp_path, callbacks, **options):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return pl.Trainer(callbacks=callbacks, **(defaults | options))
