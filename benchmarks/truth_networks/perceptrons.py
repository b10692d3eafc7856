"""Perceptrons: plain ones, with LayerNorm, and residual ones with norms before them."""

from collections.abc import Callable

from torch import Tensor, nn

from lightning_neuroimp import Site


def plain(
    activation: type[nn.Module], width: int = 64, depth: int = 3
) -> Callable[[tuple[int, ...], int], nn.Sequential]:
    """A perceptron whose activations are layers 1, 3, 5, ..."""

    def build(shape: tuple[int, ...], n_classes: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for number in range(depth):
            layers += [nn.Linear(shape[0] if number == 0 else width, width), activation()]
        return nn.Sequential(*layers, nn.Linear(width, n_classes))

    return build


def layer_norm(behind: bool, width: int = 64, depth: int = 3) -> Callable[[tuple[int, ...], int], nn.Sequential]:
    """A perceptron with LayerNorm before each activation, layers 2, 5, 8, ..., or behind it, layers 1, 4, 7, ...

    Args:
        behind: whether the norms follow the activations.
        width: number of neurons of a layer.
        depth: number of layers.
    """

    def build(shape: tuple[int, ...], n_classes: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for number in range(depth):
            norm, activation = nn.LayerNorm(width), nn.ReLU()
            layers.append(nn.Linear(shape[0] if number == 0 else width, width))
            layers += [activation, norm] if behind else [norm, activation]
        return nn.Sequential(*layers, nn.Linear(width, n_classes))

    return build


class Residual(nn.Module):
    """Add what two linear layers make of normalised values to these values."""

    def __init__(self, norm: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.inner, self.act, self.outer = (
            norm,
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Values after the block."""
        return x + self.outer(self.act(self.inner(self.norm(x))))


def residual(
    norm: Callable[[int], nn.Module], width: int = 32, hidden: int = 64, depth: int = 2
) -> Callable[[tuple[int, ...], int], nn.Sequential]:
    """Residual blocks between two linear layers; layer 0 is the first one, then come the blocks and a norm."""

    def build(shape: tuple[int, ...], n_classes: int) -> nn.Sequential:
        blocks = [Residual(norm(width), width, hidden) for _ in range(depth)]
        return nn.Sequential(nn.Linear(shape[0], width), *blocks, norm(width), nn.Linear(width, n_classes))

    return build


PLAIN_SITES = ("1", "3", "5")
LAYER_NORM_SITES, BEHIND_SITES = ("2", "5", "8"), ("1", "4", "7")
RESIDUAL_SITES: tuple[str | Site, ...] = ("1.act", Site("1", axis=1), "2.act")
