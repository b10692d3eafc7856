"""Networks for small pictures that come as vectors: convolutions with BatchNorm, depthwise ones, and an MLP-mixer."""

import math

from torch import Tensor, nn


def _picture(shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels, and pixels along a side, of a picture that comes as a vector."""
    channels = 3 if shape[0] % 3 == 0 else 1
    return channels, math.isqrt(shape[0] // channels)


class Convolutional(nn.Module):
    """Three convolutions with BatchNorm, of which the second one halves the picture."""

    def __init__(self, shape: tuple[int, ...], n_classes: int, width: int = 32) -> None:
        super().__init__()
        channels, side = _picture(shape)
        self.picture = nn.Unflatten(1, (channels, side, side))
        inputs = [channels, width, width]
        self.conv = nn.ModuleList(nn.Conv2d(n, width, 3, 2 if number else 1, 1) for number, n in enumerate(inputs))
        self.bn = nn.ModuleList(nn.BatchNorm2d(width) for _ in inputs)
        self.relu = nn.ModuleList(nn.ReLU() for _ in inputs)
        self.pool, self.flat, self.head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.picture(x)
        for conv, bn, relu in zip(self.conv, self.bn, self.relu, strict=True):
            x = relu(bn(conv(x)))
        return self.head(self.flat(self.pool(x)))


class Depthwise(nn.Module):
    """A convolution, then two pairs of a depthwise and a pointwise one, all with BatchNorm and SiLU."""

    def __init__(self, shape: tuple[int, ...], n_classes: int, width: int = 32) -> None:
        super().__init__()
        channels, side = _picture(shape)
        self.picture = nn.Unflatten(1, (channels, side, side))
        self.stem, self.stem_bn, self.stem_act = nn.Conv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.SiLU()
        self.deep = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1, groups=width) for _ in range(2))
        self.deep_bn = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.deep_act = nn.ModuleList(nn.SiLU() for _ in range(2))
        self.point = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))
        self.point_bn = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.point_act = nn.ModuleList(nn.SiLU() for _ in range(2))
        self.pool, self.flat, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem_act(self.stem_bn(self.stem(self.picture(x))))
        for block in range(2):
            x = self.deep_act[block](self.deep_bn[block](self.deep[block](x)))
            x = self.point_act[block](self.point_bn[block](self.point[block](x)))
        return self.head(self.flat(self.pool(x)))


class Mixing(nn.Module):
    """Mix tokens, then channels, each with LayerNorm before it and a shortcut."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.token_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_inner, self.token_act, self.token_outer = nn.Linear(tokens, 16), nn.GELU(), nn.Linear(16, tokens)
        self.inner, self.act, self.outer = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Values after the block."""
        mixed = self.token_outer(self.token_act(self.token_inner(self.token_norm(x).transpose(1, 2))))
        x = x + mixed.transpose(1, 2)
        return x + self.outer(self.act(self.inner(self.norm(x))))


class Mixer(nn.Module):
    """An MLP-mixer on patches of a picture, 4 by 4 of them."""

    def __init__(self, shape: tuple[int, ...], n_classes: int, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        channels, side = _picture(shape)
        self.picture = nn.Unflatten(1, (channels, side, side))
        self.embed = nn.Conv2d(channels, width, side // 4, side // 4)
        self.blocks = nn.ModuleList(Mixing(16, width, hidden) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.embed(self.picture(x)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


CONVOLUTIONAL_SITES = ("relu.0", "relu.1", "relu.2")
DEPTHWISE_SITES = ("stem_act", "point_act.0", "point_act.1")
