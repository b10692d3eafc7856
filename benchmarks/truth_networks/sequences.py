"""Networks for sequences: recurrent ones, transformers that look both ways, and causal ones."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from lightning_neuroimp import Site


def _steps(shape: tuple[int, ...]) -> tuple[int, int]:
    """Number and length of the rows that a picture, which comes as a vector, is cut into."""
    rows = math.isqrt(shape[0] // (3 if shape[0] % 3 == 0 else 1))
    return rows, shape[0] // rows


class Recurrent(nn.Module):
    """Two recurrent layers over the rows of a picture; the last state of the second one is read."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], shape: tuple[int, ...], n_classes: int, width: int) -> None:
        super().__init__()
        rows, length = _steps(shape)
        self.rows = nn.Unflatten(1, (rows, length))
        self.first = kind(length, width, batch_first=True)
        self.second = kind(width, width, batch_first=True)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.second(self.first(self.rows(x))[0])[0][:, -1])


def lstm(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Two LSTM layers of 48 units."""
    return Recurrent(nn.LSTM, shape, n_classes, 48)


def gru(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Two GRU layers of 48 units."""
    return Recurrent(nn.GRU, shape, n_classes, 48)


class Block(nn.Module):
    """A transformer's block, LayerNorm first."""

    def __init__(self, width: int, heads: int, hidden: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.act, self.outer = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream after the block."""
        parts = self.qkv(self.before_attention(x)).chunk(3, 2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        weight = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if self.causal:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            weight = weight.masked_fill(later, float("-inf"))
        x = x + self.project((weight.softmax(3) @ v).transpose(1, 2).flatten(2))
        return x + self.outer(self.act(self.inner(self.before_mlp(x))))


class Transformer(nn.Module):
    """Two blocks over the rows of a picture; the mean over tokens is read, or the last one of a causal one."""

    def __init__(self, shape: tuple[int, ...], n_classes: int, causal: bool = False, width: int = 32) -> None:
        super().__init__()
        rows, length = _steps(shape)
        self.causal = causal
        self.rows, self.embed = nn.Unflatten(1, (rows, length)), nn.Linear(length, width)
        self.place = nn.Parameter(0.1 * torch.randn(rows, width))
        self.blocks = nn.ModuleList(Block(width, 4, 64, causal) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.embed(self.rows(x)) + self.place
        for block in self.blocks:
            x = cast(Tensor, block(x))
        x = self.norm(x)
        return self.head(x[:, -1] if self.causal else x.mean(1))


def decoder(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """A causal transformer that reads its last token."""
    return Transformer(shape, n_classes, causal=True)


RECURRENT_SITES = ("first", "second")
TRANSFORMER_SITES: tuple[str | Site, ...] = ("blocks.0.act", Site("blocks.0", axis=2), "blocks.1.act")
MIXER_SITES: tuple[str | Site, ...] = ("blocks.0.act", Site("blocks.0", axis=2), "blocks.1.act")
