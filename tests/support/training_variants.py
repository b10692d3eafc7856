"""Trainings of many kinds, and all that one leaves behind, to the bit."""

import random
from contextlib import suppress

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from tests.support.lightning_modules import Classifier, loaders, trainer


class Module(Classifier):
    """Draws from all random generators, has a scheduler and a metric of its own, and writes its batches down."""

    def __init__(self):
        super().__init__(width=8)
        self.accuracy = MulticlassAccuracy(10)
        self.order = []

    def training_step(self, batch, batch_idx):
        self.order.append(float(batch[0].sum()))
        random.random(), np.random.rand()
        return super().training_step(batch, batch_idx) + 0 * torch.rand(1).item()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx, dataloader_idx)
        self.accuracy.update(self(batch[0]), batch[1])
        self.log("noise", torch.rand(1).item(), add_dataloader_idx=False)

    def on_validation_epoch_end(self):
        self.log("accuracy", self.accuracy.compute())
        self.accuracy.reset()

    def test_step(self, batch, batch_idx):
        self.accuracy.update(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


class SeveralLoaders(Module):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if dataloader_idx == 0:
            super().validation_step(batch, batch_idx)


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer.step()


class TwoOptimizers(Manual):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.encoder.parameters(), 0.1, momentum=0.9), torch.optim.Adam(self.head.parameters())]


class FrozenBackbone(Module):
    def __init__(self):
        super().__init__()
        self.encoder.requires_grad_(False)

    def on_train_epoch_start(self):
        self.encoder.eval()


class FrozenNorm(Module):
    """One module is in evaluation mode while the others train."""

    def on_train_epoch_start(self):
        self.encoder[1].eval()


class InPlace(Module):
    def forward(self, x):
        h = self.encoder(x)
        h += 1
        return self.head(h.mul_(0.5))


class Checkpointed(Module):
    def forward(self, x):
        return self.head(checkpoint(self.encoder, x, use_reentrant=False))


class TrainsInValidation(Module):
    """Keeps dropout on while it is validated."""

    def on_validation_model_eval(self):
        pass

    def on_validation_model_train(self):
        pass


class SpectralNorm(Module):
    """Its buffers move in each forward pass of training."""

    def __init__(self):
        super().__init__()
        self.head = nn.utils.parametrizations.spectral_norm(self.head)


class Recurrent(Module):
    """Keeps a hidden state from one batch to the next."""

    def __init__(self):
        super().__init__()
        self.state = None

    def forward(self, x):
        logits = super().forward(x)
        if self.state is not None:
            logits = logits + 0.1 * self.state
        self.state = logits.detach().mean(0)
        return logits


class CompiledPart(Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.compile(self.encoder, backend="eager")


class Stream(IterableDataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return iter(self.dataset)


def stream(train, val):
    return DataLoader(Stream(train.dataset), 64), DataLoader(Stream(val.dataset), 64)


def combined(train, val):
    return train, CombinedLoader([val, loaders(n_val=128)[1]], "sequential")


FIT = {
    "plain": (Module, {}),
    "in the middle of an epoch": (Module, {"val_check_interval": 2}),
    "in the middle of an accumulation": (Module, {"accumulate_grad_batches": 3, "val_check_interval": 2}),
    "every other epoch": (Module, {"check_val_every_n_epoch": 2}),
    "bf16-mixed": (Module, {"precision": "bf16-mixed"}),
    "16-mixed": (Module, {"precision": "16-mixed"}),
    "bf16-true": (Module, {"precision": "bf16-true"}),
    "64-true": (Module, {"precision": "64-true"}),
    "gradient clipping": (Module, {"gradient_clip_val": 0.1}),
    "manual optimization": (Manual, {}),
    "several optimizers": (TwoOptimizers, {}),
    "a frozen backbone": (FrozenBackbone, {}),
    "a norm in evaluation mode": (FrozenNorm, {"val_check_interval": 2}),
    "in-place layers": (InPlace, {}),
    "activation checkpointing": (Checkpointed, {}),
    "dropout on in validation": (TrainsInValidation, {}),
    "spectral norm": (SpectralNorm, {}),
    "a hidden state": (Recurrent, {}),
    "compiled layers": (CompiledPart, {}),
    "EMAWeightAveraging": (Module, {"extra": lambda: [EMAWeightAveraging(decay=0.5)]}),
    "StochasticWeightAveraging": (Module, {"extra": lambda: [StochasticWeightAveraging(1e-3, swa_epoch_start=1)]}),
    "EarlyStopping": (Module, {"extra": lambda: [EarlyStopping("val_loss", patience=1)]}),
    "limit_val_batches": (Module, {"limit_val_batches": 2}),
    "overfit_batches": (Module, {"overfit_batches": 2}),
    "reloaded loaders": (Module, {"reload_dataloaders_every_n_epochs": 1}),
    "iterable datasets": (Module, {"data": stream}),
    "several validation loaders": (SeveralLoaders, {"data": lambda train, val: (train, [val, loaders(n_val=128)[1]])}),
    "CombinedLoader": (SeveralLoaders, {"data": combined}),
    "no sanity check": (Module, {"num_sanity_val_steps": 0}),
}


def fitted(variant, callbacks, folder, stage="fit", **more):
    """A run of a variant, and what it left behind."""
    kind, options = FIT[variant]
    options = options | more
    extra, data = options.pop("extra", list), options.pop("data", lambda train, val: (train, val))
    pl.seed_everything(3, verbose=False)
    model, (train, val) = kind(), data(*loaders(n_val=128))
    # ours last, where others have had their turn
    run = trainer(folder, [*extra(), *callbacks], **({"max_epochs": 2} | options))
    if stage == "fit":
        run.fit(model, train, val)
    else:
        getattr(run, stage)(model, val, verbose=False)
    return run, model, left_behind(run, model)


def left_behind(run, model):
    """All that a training consists of, as bytes and plain values."""
    return {
        "weights and buffers": plain(model.state_dict()),
        "optimizers": plain([optimizer.state_dict() for optimizer in run.optimizers]),
        "schedulers": plain([config.scheduler.state_dict() for config in run.lr_scheduler_configs]),
        "gradients": plain([parameter.grad for parameter in model.parameters()]),
        "frozen": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "attributes": [
            sorted(vars(module)) for module in model.modules() if not isinstance(module, pl.LightningModule)
        ],
        "metric of the module": plain(model.accuracy.state_dict()) | {"updates": model.accuracy._update_count},
        "order of the batches": model.order,
        "random states": plain([random.getstate(), np.random.get_state()[1], torch.get_rng_state()]),
        "logged": {key: float(value) for key, value in run.callback_metrics.items() if not key.startswith("ours")},
        "steps": (run.global_step, run.current_epoch),
        "modes of torch": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_autocast_enabled("cpu"),
        ),
    }


def plain(value):
    if isinstance(value, torch.Tensor):
        return (
            (str(value.dtype), tuple(value.shape), value.detach().contiguous().view(torch.uint8).numpy().tobytes())
            if (value.numel() and value.ndim)
            else (str(value.dtype), value.tolist())
        )
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    with suppress(TypeError):
        return value if value == value else "nan"  # NaN equals nothing
    return repr(value)


def monitors():
    """Callbacks that want our keys at every validation."""
    return [
        EarlyStopping("ours/encoder.2/gap", mode="max", patience=20),
        ModelCheckpoint(monitor="ours/encoder.2/gap", mode="max", save_top_k=2),
    ]
