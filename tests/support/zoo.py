"""Build small classifiers of many kinds, 6 samples each: what suffixes and ablation must get right."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)  # used twice

    def forward(self, x):
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Residual(6), nn.MaxPool2d(2), Residual(6))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.dropout(self.blocks(self.stem(x)).mean((2, 3))))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(9, 4, 1)

    def forward(self, x):
        one = F.relu(self.down1(x))
        two = F.relu_(self.down2(F.max_pool2d(one, 2)))
        return self.out(torch.cat([self.up(two), one, x], 1)).amax((2, 3))


class Encoder(nn.Module):
    """Has a fused path that would not call its layers."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x, padding=None):
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.rnn = nn.Linear(5, 6), kind(6, 7, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(14, 4)

    def forward(self, x):
        return self.head(self.rnn(torch.tanh(self.embed(x)))[0][:, -1])


class Functions(nn.Module):
    """Has functions between modules, views, slices written in place, a keyword and a nested input."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, inputs, *, scale):
        a, (b, _) = inputs["a"], inputs["rest"]
        h = self.first(a) * scale
        left, right = h[:, :4], h[:, 4:]
        left.add_(b[:, :4])  # writes into h
        right.clamp_(-1, 1)
        h = torch.stack([h, h.flip(1)]).sum(0)
        h[:, ::2] = torch.sin(h[:, 1::2].clone())
        h.view(-1)[3:7] *= 2
        return self.head(self.second(F.gelu(h)).softmax(1).T.contiguous().T)


class Shared(nn.Module):
    """Uses a layer three times; the head's weights are a view of another layer's."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(5, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.first(x)
        for _ in range(3):
            h = torch.tanh(self.again(h)) + h
        return h @ self.again.weight[:4].T


class Stashing(nn.Module):
    """Keeps features on attributes and in buffers, some written before the site and read after it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(24, 4)
        self.register_buffer("memory", torch.zeros(6, 16))
        self.register_buffer("calls", torch.zeros(()))
        self.features = None

    def forward(self, x):
        self.calls += 1
        left, right = self.memory[:, :8], self.memory[:, 8:]
        left.copy_(torch.cos(self.first(x)))
        self.features = self.second(left)
        scale = torch.full((8,), 2.0)
        h = self.features * scale
        scale.mul_(100)  # a constant that was read before
        right.copy_(h)
        h.data.mul_(0.5)
        return self.head(torch.cat([self.memory, h * scale], 1))


class Experts(nn.Module):
    """Sends each sample to one of three experts; the gate comes before or after the site."""

    def __init__(self, late):
        super().__init__()
        self.late = late
        self.body, self.gate, self.head = nn.Linear(5, 8), nn.Linear(8 if late else 5, 3), nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        h = torch.tanh(self.body(x))
        choice = self.gate(h if self.late else x).argmax(1)
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows = (choice == number).nonzero()[:, 0]
            if len(rows):
                out.index_add_(0, rows, expert(h[rows]))
        return self.head(out)


def gated(h: torch.Tensor) -> torch.Tensor:
    if h.size(1) > 3:
        h = h * torch.sigmoid(h)
    return h.relu_()


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.gated = torch.jit.script(gated)
            self.second = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.second(self.gated(self.first(x))))


class Mixed(nn.Module):
    """Uses autocast in a part, and switches it off in another."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            h = self.second(torch.relu(self.first(x)))
            with torch.autocast("cpu", enabled=False):
                h = self.second(h.float())
            return self.head(h)


class Attention(nn.Module):
    """Has heads by hand, scaled dot products, a class token, gathered positions."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.qkv, self.norm, self.head = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.norm(x + out).take_along_dim(torch.zeros(1, 1, 1, dtype=torch.long), 1)[:, 0])


class Spectral(nn.Module):
    """Has complex numbers, parametrised weights, a checkpoint, a vectorised map."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))

    def forward(self, x):
        h = torch.utils.checkpoint.checkpoint(torch.tanh, self.first(x), use_reentrant=False)
        h = torch.fft.rfft(h).conj()
        h = torch.func.vmap(lambda row: row.abs() + row.real)(h)
        return self.head(h)


class Twice(nn.Module):
    """Copies in compiled modules; the output of a site is a view of its input."""

    def __init__(self):
        super().__init__()
        self.first, self.flat, self.head = nn.Linear(4, 4), nn.Flatten(), nn.Linear(8, 4)
        self.second = torch.compile(nn.Linear(8, 8), backend="eager")

    def forward(self, x):
        h = self.first(x)
        flat = self.flat(h)
        h += 1  # the memory of the site's output, after it
        return self.head(F.relu(self.second(flat)) + h.flatten(1))


@dataclass
class Case:
    """Hold a function that makes a model, one that makes its arguments and keywords, and the sites to be tested."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    sites: list[str]


def rows(*shape, seed=0):
    return torch.randn(6, *shape, generator=torch.Generator().manual_seed(seed))


def plain(*shape):
    return lambda: ((rows(*shape),), {})


CASES = {
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)),
        plain(5),
        ["0", "1", "2", "3"],
    ),
    "resnet": Case(ResNet, plain(1, 8, 8), ["stem.0", "stem.2", "blocks.0", "blocks.0.conv1", "blocks.2", "dropout"]),
    "channels last": Case(
        lambda: ResNet().to(memory_format=torch.channels_last),
        lambda: ((rows(1, 8, 8).contiguous(memory_format=torch.channels_last),), {}),
        ["stem.0", "stem.1", "blocks.0"],
    ),
    "unet": Case(UNet, plain(1, 8, 8), ["down1", "down2", "up"]),
    "encoder": Case(Encoder, plain(3, 8), ["encoder.layers.0", "encoder.layers.0.linear1", "encoder.layers.1"]),
    "encoder, padded": Case(
        Encoder,
        lambda: ((rows(3, 8),), {"padding": torch.tensor([[False, False, row > 3] for row in range(6)])}),
        ["encoder.layers.0", "encoder.layers.1.linear1"],
    ),
    "lstm": Case(lambda: Recurrent(nn.LSTM), plain(3, 5), ["embed"]),
    "gru": Case(lambda: Recurrent(nn.GRU), plain(3, 5), ["embed"]),
    "functions": Case(
        Functions,
        lambda: (({"a": rows(5), "rest": (rows(5, seed=1), "name")},), {"scale": torch.tensor(1.5)}),
        ["first", "second"],
    ),
    "shared": Case(Shared, plain(5), ["first"]),
    "stashing": Case(Stashing, plain(5), ["first", "second"]),
    "experts, early gate": Case(lambda: Experts(late=False), plain(5), ["body"]),
    "scripted": Case(Scripted, plain(5), ["first"]),
    "mixed": Case(Mixed, plain(5), ["first"]),
    "bf16": Case(lambda: ResNet().bfloat16(), lambda: ((rows(1, 8, 8).bfloat16(),), {}), ["stem.0", "blocks.0"]),
    "attention": Case(Attention, plain(3, 8), ["qkv", "norm"]),
    "spectral": Case(Spectral, plain(8), ["first"]),
    "twice": Case(Twice, plain(2, 4), ["first", "flat"]),
}
