"""Peak memory of a validation with the callback against the number of validation samples.

Each size runs in a process of its own, on a data set that makes its samples when they are asked for, so that what is
measured is the program, not the data. Goal: flat within 5%, at the same `max_samples`.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

GOAL = 0.05
SIZES = (2_000, 20_000, 200_000)


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(n_samples: int, with_callbacks: bool) -> None:
    """One size; prints the peak before and after."""
    import logging
    import warnings

    import lightning as L
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from lightning_neuroimp import AblationFaithfulness, KMeansClusters, NeuronImportance

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)

    class Made(Dataset):
        """Noise, made from the sample's number."""

        def __len__(self) -> int:
            return n_samples

        def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
            noise = torch.randn(len(indices), 1024, generator=torch.Generator().manual_seed(indices[0]))
            return [(row, index % 10) for row, index in zip(noise, indices, strict=True)]

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.__getitems__([index])[0]

    class Classifier(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU())
            self.head = nn.Linear(1024, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    callbacks: list[L.Callback] = [
        NeuronImportance(["body.1", "body.3"], name="labels", faithfulness=AblationFaithfulness(max_samples=128)),
        NeuronImportance(["body.1"], KMeansClusters(8), baseline="mean", name="kmeans", faithfulness=None),
    ]
    trainer = L.Trainer(
        callbacks=callbacks if with_callbacks else [], logger=False, enable_progress_bar=False, accelerator="cpu"
    )
    before = peak_mb()
    trainer.validate(Classifier(), DataLoader(Made(), 200), verbose=False)
    print(json.dumps({"before": before, "peak": peak_mb()}))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two smaller sizes")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--without", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one, not options.without)
        return
    rows = []
    print("".join(f"{name:>12}" for name in ("samples", "peak_mb", "without_mb", "start_mb")))
    for n_samples in SIZES[:2] if options.quick else SIZES:
        with_ours, without = (
            json.loads(subprocess.run(command, capture_output=True, check=True).stdout.splitlines()[-1])
            for command in (
                [sys.executable, __file__, "--one", str(n_samples)],
                [sys.executable, __file__, "--one", str(n_samples), "--without"],
            )
        )
        row = {
            "samples": n_samples,
            "peak_mb": round(with_ours["peak"], 1),
            "without_mb": round(without["peak"], 1),
            "start_mb": round(with_ours["before"], 1),
        }
        rows.append(row)
        print("".join(f"{value:>12}" for value in row.values()), flush=True)
    peaks = [row["peak_mb"] for row in rows]
    spread = max(peaks) / min(peaks) - 1
    print(f"spread of the peaks {spread:.1%}; goal {GOAL:.0%}: {'held' if spread <= GOAL else 'MISSED'}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
