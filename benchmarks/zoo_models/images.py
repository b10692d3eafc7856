"""Image classifiers from `timm`, where it can be imported (it needs torchvision)."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from .entry import CLASSES, Entry, Place, rows


class Timm(Entry):
    """Is installed only where the package can be imported."""

    def installed(self) -> bool:
        """Tell whether `timm` can be imported."""
        try:
            importlib.import_module("timm")
        except Exception:
            return False
        return True


def made(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """Return a function that makes a model of `timm` with random weights."""

    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **settings)

    return make


def entry(name: str, make: Callable[[], nn.Module], *places: Place, size: int = 32) -> Entry:
    """Return an entry of `timm`."""
    return Timm(name, "timm", make, rows(3, size, size), places)


ENTRIES = [
    entry(
        "ViT (timm)",
        made("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=2),
        Place("blocks.0.mlp.act", 2, 48),
        Place("blocks.1.attn", 2, 12),
        Place("norm", 2, 12),
    ),
    entry(
        "ConvNeXt (timm)",  # 8 channels on 8 x 8
        made("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 10, 12, 14)),
        Place("stages.0.blocks.0.norm", 1, 8),
        Place("stages.1", 1, 10),
        Place("head.norm", 1, 14),
    ),
    entry(
        "Swin (timm)",  # channels last
        made(
            "swin_tiny_patch4_window7_224",
            img_size=32, window_size=4, embed_dim=6, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2),
        ),
        Place("layers.0", 3, 6),
        Place("layers.0.blocks.0.attn", 2, 6, refused="a window is a sample there"),
        Place("layers.1.blocks.0.mlp", 2, 12),
        Place("head.global_pool", 1, 48),
    ),
    entry(
        "MobileNetV3",
        made("mobilenetv3_small_050"),
        Place("blocks.0.0.se", 1, 16),
        Place("blocks.1.0.bn2", 1, 40),
        Place("blocks.2.0", 1, 24),
    ),
]  # fmt: skip
