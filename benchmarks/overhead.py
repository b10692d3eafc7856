"""What the callback adds to a training, and what the importance pass costs beside a training step's passes.

Two tables. A: the same fit without the callback, with importance alone, and with ablation checks, alternating in one
process; and the callback's own account of its parts. B: for several networks, the importance pass (labels, zero
baseline) against a forward and backward pass with weight gradients over the same batches, alternating; goal: at most
1.3 times.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neuroimp import AblationFaithfulness, NeuronImportance, ProbeSet, neuron_importance

GOAL = 1.3


def mlp(width: int) -> nn.Module:
    """Four layers."""
    layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn(width: int) -> nn.Module:
    """Three convolutions with batch norm on 16 x 16 images."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 16, 16))]
    for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


# name, network, inputs, batch size, sites (activations)
CELLS: list[tuple[str, Callable[[], nn.Module], int, int, list[str]]] = [
    ("mlp 256, batch 128", lambda: mlp(256), 64, 128, ["1", "3", "5"]),
    ("mlp 1024, batch 128", lambda: mlp(1024), 64, 128, ["1", "3", "5"]),
    ("cnn 32-64-64, batch 64", lambda: cnn(32), 256, 64, ["3", "6", "9"]),
    ("cnn 32-64-64, batch 64, one site", lambda: cnn(32), 256, 64, ["6"]),
]


class Classifier(L.LightningModule):
    """Cross-entropy and Adam around a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss."""
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def data(n: int, n_inputs: int, seed: int = 0) -> TensorDataset:
    """Noise with labels: values do not matter for time."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, n_inputs, generator=generator), torch.randint(0, 10, (n,), generator=generator))


def fit(callbacks: list[L.Callback], n_train: int, epochs: int) -> float:
    """Seconds of a training."""
    torch.manual_seed(0)
    model = Classifier(cnn(16))
    train, val = DataLoader(data(n_train, 256), 64, shuffle=True), DataLoader(data(1024, 256, 1), 64)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=epochs,
            callbacks=callbacks,
            logger=L.pytorch.loggers.TensorBoardLogger(folder) if callbacks else False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            default_root_dir=folder,
        )
        start = time.perf_counter()
        trainer.fit(model, train, val)
        return time.perf_counter() - start


def fits(quick: bool) -> list[dict[str, Any]]:
    """Table A."""
    layers, n_train, epochs, repeats = ["network.3", "network.6"], 1024 if quick else 8192, 2, 1 if quick else 3
    check = AblationFaithfulness(max_overhead=None)
    kinds: dict[str, Callable[[], list[L.Callback]]] = {
        "fit alone": list,
        "fit + importance": lambda: [NeuronImportance(layers, faithfulness=None)],
        "fit + importance + check every epoch": lambda: [NeuronImportance(layers, faithfulness=check)],
        "fit + importance + check, max_overhead=10%": lambda: [NeuronImportance(layers)],
    }
    fit([], 128, 1)  # warm up
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    parts: dict[str, float] = {}
    for _ in range(repeats):
        for kind, make in kinds.items():
            callbacks = make()
            seconds[kind].append(fit(callbacks, n_train, epochs))
            if kind == "fit + importance + check every epoch":
                parts = callbacks[0].results.seconds  # type: ignore[attr-defined]
    alone = statistics.median(seconds["fit alone"])
    rows = [
        {
            "part": kind,
            "seconds": round(statistics.median(times), 3),
            "share": round(statistics.median(times) / alone, 3),
        }
        for kind, times in seconds.items()
    ]
    per_epoch = alone / epochs
    rows += [
        {"part": f"one measurement: {part}", "seconds": round(value, 3), "share": round(value / per_epoch, 3)}
        for part, value in parts.items()
    ]
    return rows


def training_passes(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Forward and backward with weight gradients."""
    for x, y in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()


def passes(quick: bool) -> list[dict[str, Any]]:
    """Table B."""
    rows = []
    for name, make, n_inputs, batch_size, layers in CELLS[1:3] if quick else CELLS:
        torch.manual_seed(0)
        model = make().eval()
        probe = ProbeSet.from_batches(DataLoader(data(1024, n_inputs), batch_size))
        batches = [batch for batch, _ in probe.batches()]
        ours, theirs = [], []
        for repeat in range(6 if quick else 21):
            start = time.perf_counter()
            training_passes(model, batches)
            middle = time.perf_counter()
            results = neuron_importance(model, probe, layers=layers)
            if repeat:  # the first round warms up
                theirs.append(middle - start)
                ours.append(results.seconds["importance"])
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        rows.append(
            {
                "part": f"importance pass / forward + backward: {name}",
                "seconds": round(statistics.median(ours), 4),
                "share": round(ratio, 3),
            }
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cells and repeats")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = passes(options.quick)
    held = {row["part"]: row["share"] <= GOAL for row in rows}
    rows += fits(options.quick)
    print(f"{'part':62}{'seconds':>10}{'share':>9}")
    for row in rows:
        mark = "" if row["part"] not in held else f"   goal {GOAL}: {'held' if held[row['part']] else 'MISSED'}"
        print(f"{row['part']:62}{row['seconds']:>10.4g}{row['share']:>9.3g}{mark}")
    print(
        "share: of the same fit alone; of one epoch of it (one measurement); of the training passes (importance pass)"
    )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
