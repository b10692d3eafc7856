"""Compare running the model again from a site on with full passes and with Captum, in one process.

For each site: a whole check by ablation (133 passes over 512 samples: intact, and 6 fractions of 22 orders; fewer
samples before the last block), made by hooks and full passes, and by suffixes; leave-one-out of every neuron by
Captum's LayerFeatureAblation and by suffixes, over one batch; the number of operations in a full pass and in what
follows the site (`FlopCounterMode`); how far the memory's peak rises above that of one plain pass; the largest
difference between the logits of both ways.

Goals: speedup at least .8 times the ratio of operations where what follows the site takes over a millisecond, at least
.9 everywhere, at least 8 in the last block, at least 100 at the classifier's input; leave-one-out at least 10 times
faster than Captum in the last block; extra memory at most what one plain pass peaks at; no difference at all on a CPU.
"""

import argparse
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import LayerFeatureAblation
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightning_neuroimp import Removal, Site, undisturbed
from lightning_neuroimp._compat import StorageWeakRef, TorchDispatchMode, storage_id
from lightning_neuroimp.ablation.outcomes import ablate_orders
from lightning_neuroimp.capture.removal import remove
from lightning_neuroimp.capture.suffix.recorder import SuffixRecorder
from lightning_neuroimp.capture.targets import Target
from lightning_neuroimp.importance.attributions.suffix_target import SuffixTarget
from lightning_neuroimp.statistics import points

FRACTIONS, N_ORDERS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5), 22


class Block(nn.Module):
    """Add two convolutions to a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride > 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


class ResNet18(nn.Module):
    """Have the shape of ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        widths = [64, 64, 128, 256, 512]
        for stage in range(1, 5):
            first = Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            setattr(self, f"layer{stage}", nn.Sequential(first, Block(widths[stage], widths[stage], 1)))
        self.flatten, self.fc = nn.Flatten(), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(self.flatten(F.adaptive_avg_pool2d(x, 1)))


class Encoder(nn.Module):
    """Encode tokens by six transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.pooled, self.head = nn.LayerNorm(128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.pooled(self.encoder(x).mean(1)))


class UNet(nn.Module):
    """Go two levels down and up, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = (
            nn.Conv2d(3, 32, 3, padding=1),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.Conv2d(64, 128, 3, padding=1),
        )
        self.up2, self.up1 = nn.ConvTranspose2d(128, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)
        self.merge2, self.merge1 = nn.Conv2d(128, 64, 3, padding=1), nn.Conv2d(64, 32, 3, padding=1)
        self.flatten, self.head = nn.Flatten(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        one = F.relu(self.down1(x))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        low = F.relu(self.bottom(F.max_pool2d(two, 2)))
        two = F.relu(self.merge2(torch.cat([self.up2(low), two], 1)))
        one = F.relu(self.merge1(torch.cat([self.up1(two), one], 1)))
        return self.head(self.flatten(F.adaptive_avg_pool2d(one, 1)))


def mlp() -> nn.Module:
    """Return five linear layers with ReLUs between them."""
    widths = [64, 1024, 1024, 1024, 1024]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(1024, 10))


# name, network, shape of an input, samples a batch, sites with position
Cell = tuple[str, Callable[[], nn.Module], tuple[int, ...], int, dict[str, str]]
CELLS: list[Cell] = [
    (
        "resnet18",
        ResNet18,
        (3, 64, 64),
        16,
        {
            "conv1": "first",
            "layer1.1.conv1": "stage 1",
            "layer2.1.conv1": "middle",
            "layer3.1.conv1": "stage 3",
            "layer4.1.conv1": "last",
            "flatten": "classifier",
        },
    ),
    (
        "encoder",
        Encoder,
        (64, 128),
        16,
        {
            "encoder.layers.0.linear1": "first",
            "encoder.layers.3.linear1": "middle",
            "encoder.layers.5.linear1": "last",
            "pooled": "classifier",
        },
    ),
    ("mlp", mlp, (64,), 128, {"0": "first", "2": "middle", "4": "middle", "6": "last", "7": "classifier"}),
    (
        "unet",
        UNet,
        (3, 32, 32),
        16,
        {"down1": "first", "bottom": "middle", "merge1": "last", "flatten": "classifier"},
    ),
]
QUICK: dict[str, list[str]] = {
    "resnet18": ["layer4.1.conv1"],
    "encoder": ["pooled"],
    "mlp": ["0", "7"],
    "unet": ["bottom"],
}


class Meter(TorchDispatchMode):
    """Measure the peak of the memory of living tensors that operations made, the model's own left out.

    Attributes:
        peak: in bytes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak = 0
        self._own = {storage_id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count."""
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor) and storage_id(tensor) not in self._own:
                storage = tensor.untyped_storage()
                self._alive[storage_id(tensor)] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


class Row:
    """Measure everything at one site."""

    def __init__(self, cell: Cell, site: str, device: torch.device, n_batches: int) -> None:
        self.name, make, shape, n, sites = cell
        self.site, self.position, self.device = site, sites[site], device
        torch.manual_seed(0)
        self.model = make().to(device).eval()
        self.batches = [
            (torch.randn(n, *shape), torch.arange(n) % 10, np.arange(n, dtype=np.int64) % 10) for _ in range(n_batches)
        ]
        found: list[torch.Size] = []
        with torch.no_grad(), self.hook(lambda output: found.append(output.shape)):
            self.model(self.batches[0][0].to(device))
        axis = 1 if len(found[0]) in (2, 4) else 2
        self.removal = Removal(Site(site), axis, "zero", np.zeros(found[0][axis]), "margin")
        generator = np.random.default_rng(0)
        self.orders = [generator.permutation(self.removal.n_neurons)[None] for _ in range(N_ORDERS)]

    def hook(self, function: Callable[[Tensor], Any]) -> Any:
        """Return a hook: what the function returns takes the place of the site's output."""
        return self.model.get_submodule(self.site).register_forward_hook(lambda module, args, out: function(out))

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits and targets."""
        return self.model(batch[0]), batch[1]

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, function: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds that a function takes, and what it returns."""
        self.synchronize()
        start = time.perf_counter()
        outcome = function()
        self.synchronize()
        return time.perf_counter() - start, outcome

    def recorder(self, *, full_passes: bool = False) -> SuffixRecorder:
        """Return a new recorder at the site."""
        return SuffixRecorder(self.model, self.forward, self.removal, full_passes=full_passes)

    def check(self) -> tuple[float, float, float]:
        """Make a whole check by full passes and by suffixes.

        The two take turns, eight batches each, so that whatever else the machine does affects both.

        Returns:
            Seconds of each, and the largest difference of the margins.
        """
        recorders = [self.recorder(full_passes=full) for full in (True, False)]
        removed = points(FRACTIONS, self.removal.n_neurons)
        seconds, difference = [0.0, 0.0], 0.0
        for chunk in [self.batches[start : start + 8] for start in range(0, len(self.batches), 8)]:
            data = [((x, y), cells, cells) for x, y, cells in chunk]
            outcomes = []
            for way, recorder in enumerate(recorders):
                took, outcome = self.timed(partial(ablate_orders, recorder, data, self.orders, removed))
                seconds[way] += took
                outcomes.append(outcome)
            difference = max(difference, float(np.abs(outcomes[0].margin - outcomes[1].margin).max()))
        assert recorders[1].reason is None
        return *seconds, difference

    def leave_one_out(self) -> Tensor:
        """Return leave-one-out effects by suffixes on the first batch, (neuron, sample)."""
        x, y, numbers = self.batches[0]
        suffix = SuffixTarget(self.recorder(), (x, y), Target.of("logit"), numbers)
        return suffix.effects(torch.eye(self.removal.n_neurons, dtype=torch.bool, device=self.device))

    def captum(self) -> Tensor:
        """Return leave-one-out effects by Captum on the first batch, (neuron, sample)."""
        x, y, _ = self.batches[0]
        shapes: list[torch.Size] = []
        with torch.no_grad(), self.hook(lambda output: shapes.append(output.shape)):
            self.model(x.to(self.device))
        n = self.removal.n_neurons
        place = [1] * len(shapes[0])
        place[self.removal.axis] = n
        mask = torch.arange(n, device=self.device).reshape(place).expand(1, *shapes[0][1:])
        ablation = LayerFeatureAblation(self.forward_inputs, self.model.get_submodule(self.site))
        scores = ablation.attribute(x.to(self.device), target=y.to(self.device), layer_mask=mask)
        return scores.movedim(self.removal.axis, 1).flatten(2)[:, :, 0].T if scores.ndim > 2 else scores.T

    def forward_inputs(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.model(x)

    def measure(self) -> dict[str, Any]:
        """Return all figures of the site."""
        x, y, _ = self.batches[0]
        with undisturbed(self.model), torch.no_grad():
            self.warm_up()
            full_check_s, check_s, margin_difference = self.check()
            captum_s, captum_scores = self.timed(self.captum)
            leave_one_out_s, scores = self.timed(self.leave_one_out)
            suffix = self.recorder().record((x, y))
            assert suffix.activation is not None
            mask = (torch.rand(len(x), self.removal.n_neurons) < 0.3).to(self.device)
            full_ms = 1e3 * statistics.median(self.timed(lambda: self.full(mask))[0] for _ in range(5))
            suffix_ms = 1e3 * statistics.median(self.timed(lambda: suffix.ablated(mask))[0] for _ in range(5))
            difference = float((self.full(mask) - suffix.ablated(mask)[0]).abs().max())
            flops = [self.flops(lambda: self.full(mask)), self.flops(lambda: suffix.ablated(mask))]
            plain, extra = self.memory(mask)
        return {
            "model": self.name,
            "site": self.site,
            "position": self.position,
            "full_check_s": round(full_check_s, 3),
            "check_s": round(check_s, 3),
            "speedup": round(full_check_s / check_s, 2),
            "captum_s": round(captum_s, 3),
            "leave_one_out_s": round(leave_one_out_s, 3),
            "flop_ratio": round(flops[0] / flops[1], 2) if flops[1] else float("inf"),
            "captum_ratio": round(captum_s / leave_one_out_s, 2),
            "full_ms": round(full_ms, 3),
            "suffix_ms": round(suffix_ms, 3),
            "plain_mb": round(plain / 2**20, 2),
            "extra_mb": round(extra / 2**20, 2),
            "max_abs_diff": max(difference, margin_difference),
            "captum_diff": float((captum_scores - scores).abs().max()),
        }

    def warm_up(self) -> None:
        """Make one ablation in each way."""
        x, y, cells = self.batches[0]
        for full in (True, False):
            ablate_orders(self.recorder(full_passes=full), [((x, y), cells, cells)], self.orders[:1], np.array([1]))

    def full(self, mask: Tensor) -> Tensor:
        """Return the logits of a full pass with a hook."""
        with self.hook(lambda output: remove(output, self.removal, mask)):
            return self.model(self.batches[0][0].to(self.device))

    def flops(self, function: Callable[[], Any]) -> int:
        """Count floating-point operations."""
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    def memory(self, mask: Tensor) -> tuple[int, int]:
        """Return the peak of a plain pass, and how far recording and ablating rise above it, in bytes."""
        x, y, _ = self.batches[0]
        x = x.to(self.device)
        peaks = []
        for function in (lambda: self.model(x.clone()), lambda: self.record_and_ablate(x, y, mask)):
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                function()
                peaks.append(torch.cuda.max_memory_allocated() - before)
            else:
                with Meter(self.model) as meter:
                    function()
                peaks.append(meter.peak)
        return peaks[0], max(0, peaks[1] - peaks[0])

    def record_and_ablate(self, x: Tensor, y: Tensor, mask: Tensor) -> None:
        """Record one pass and ablate neurons three times, as a check does."""
        suffix = self.recorder().record((x, y))
        for _ in range(3):
            suffix.ablated(mask)


def n_batches(cell: Cell, site: str, quick: bool) -> int:
    """Return the number of batches: 512 samples where a goal is set for the whole check, fewer where it takes long."""
    whole = 512 // cell[3]
    return 2 if quick else whole if cell[4][site] in ("last", "classifier") else min(8, whole)


def missed(row: dict[str, Any], device: torch.device) -> list[str]:
    """Return the goals that a row misses."""
    goals = {
        "speedup >= .9": row["speedup"] >= 0.9,
        "speedup >= .8 flop_ratio": row["suffix_ms"] <= 1 or row["speedup"] >= 0.8 * row["flop_ratio"],
        "speedup >= 8 in the last block": row["position"] != "last" or row["speedup"] >= 8,
        "speedup >= 100 at the classifier": row["position"] != "classifier" or row["speedup"] >= 100,
        "10x Captum in the last block": row["position"] != "last" or row["captum_ratio"] >= 10,
        "extra memory <= a pass's": row["extra_mb"] <= row["plain_mb"],
        "no difference": row["max_abs_diff"] <= (0 if device.type == "cpu" else 1e-4),
    }
    return [goal for goal, held in goals.items() if not held]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sites and batches")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*inplace|.*Setting forward")
    device = torch.device(options.device)
    columns = ["model", "site", "position", "full_check_s", "check_s", "speedup", "flop_ratio", "suffix_ms", "captum_s"]
    columns += ["captum_ratio", "plain_mb", "extra_mb", "max_abs_diff"]
    widths = [9, 25, 11, 13, 9, 9, 11, 10, 9, 13, 9, 9, 13]
    print("".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)))
    rows = []
    for cell in CELLS:
        for site in cell[4]:
            if options.quick and site not in QUICK[cell[0]]:
                continue
            row = Row(cell, site, device, n_batches(cell, site, options.quick)).measure()
            row["missed"] = ", ".join(missed(row, device))
            rows.append(row)
            line = "".join(f"{row[column]:>{width}}" for column, width in zip(columns, widths, strict=True))
            print(line + (f"   MISSED: {row['missed']}" if row["missed"] else ""), flush=True)
    print(
        "full_check_s, check_s: a whole check by full passes, and by suffixes; captum_s, captum_ratio: leave-one-out "
        "by Captum, and how many times longer it takes than by suffixes"
    )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
