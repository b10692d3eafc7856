"""Image and video classifiers from `vit-pytorch`."""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_neuroimp import Site

from .entry import CLASSES, Entry, Place, rows

SIZES: dict[str, Any] = {"dim": 12, "depth": 2, "heads": 2, "mlp_dim": 20, "dim_head": 6}
PICTURE = {**SIZES, "image_size": 16, "patch_size": 4}
FILM = {"image_size": 8, "image_patch_size": 4, "frames": 4, "frame_patch_size": 2}


def part(module: str) -> Any:
    """Return a module of `vit_pytorch`, without running the package's own `__init__`, which imports torchvision."""
    if "vit_pytorch" not in sys.modules:
        spec = importlib.util.find_spec("vit_pytorch")
        assert spec is not None
        sys.modules["vit_pytorch"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"vit_pytorch.{module}")


def made(module: str, name: str, **settings: Any) -> Callable[[], nn.Module]:
    """Return a function that makes a model of `vit_pytorch`."""
    return lambda: getattr(part(module), name)(num_classes=CLASSES, **settings)


def entry(name: str, make: Callable[[], nn.Module], *places: Place, shape: tuple[int, ...] = (3, 16, 16)) -> Entry:
    """Return an entry of `vit_pytorch` that is fed pictures, by default of 16 x 16 pixels, or films."""
    return Entry(name, "vit_pytorch", make, rows(*shape), places)


ENTRIES = [
    entry(
        "SimpleViT",
        made("simple_vit", "SimpleViT", **PICTURE),
        Place("to_patch_embedding", 2, 12),
        Place("transformer.layers.0.1.net.2", 2, 20),
        Place("transformer.layers.1.0", 2, 12),
    ),
    entry(
        "CaiT",
        made("cait", "CaiT", **PICTURE, cls_depth=1),
        Place("patch_transformer.layers.0.0", 2, 12),
        Place("patch_transformer", 2, 12),
        Place("cls_transformer.layers.0.1.fn.net.2", 2, 20),
    ),
    entry(
        "XCiT",
        made("xcit", "XCiT", **PICTURE, cls_depth=1),
        Place("xcit_transformer.layers.0.0.fn", 3, 12),
        Place("xcit_transformer.layers.1.1.fn.net.4", 1, 12),
        Place("final_norm", 3, 12),
    ),
    entry(
        "MobileViT (vit-pytorch)",
        made(
            "mobile_vit", "MobileViT",
            image_size=(64, 64), dims=[12, 14, 16], channels=[4, 6, 8, 8, 10, 10, 12, 12, 14, 14, 16], depths=(1, 1, 1),
        ),
        Place("stem.2", 1, 8),
        Place("trunk.0.1.transformer", 3, 12),
        Place("to_logits.0", 1, 16),
        shape=(3, 64, 64),
    ),
    entry(
        "CrossViT",
        made(
            "cross_vit", "CrossViT",
            image_size=16, sm_dim=10, lg_dim=12, sm_patch_size=4, sm_enc_heads=2, sm_enc_mlp_dim=14, sm_enc_dim_head=6,
            lg_patch_size=8, lg_enc_depth=1, lg_enc_heads=2, lg_enc_mlp_dim=20, lg_enc_dim_head=6, cross_attn_depth=1,
            cross_attn_heads=2, cross_attn_dim_head=6, depth=1,
        ),
        Place("multi_scale_encoder.layers.0.0.layers.0.1", 2, 10),
        Place(Site("multi_scale_encoder.layers.0.2", item=1), 2, 12, item=1),
        Place("sm_mlp_head.0", 1, 10),
    ),
    entry(
        "LeViT (vit-pytorch)",
        made(
            "levit", "LeViT",
            image_size=64, dim=(8, 12), depth=1, heads=2, mlp_mult=2, stages=2, dim_key=4, dim_value=6,
        ),
        Place("conv_embedding", 1, 8),
        Place("backbone.0.layers.0.0", 1, 8),
        Place("backbone.2.layers.0.1.net.1", 1, 24),
        shape=(3, 64, 64),
    ),
    entry(
        "ViViT",
        made(
            "vivit", "ViViT",
            **FILM, dim=12, spatial_depth=1, temporal_depth=1, heads=2, mlp_dim=20, dim_head=6,
        ),
        Place("to_patch_embedding", 3, 12),
        Place("spatial_transformer", 2, 12, refused="a frame is a sample there"),
        Place("temporal_transformer.layers.0.1.net.2", 2, 20),
        Place("temporal_transformer", 2, 12),
        shape=(3, 4, 8, 8),
    ),
    entry(
        "SimpleViT 3-D",  # 8 patches, 8 samples
        made("simple_vit_3d", "SimpleViT", **FILM, **SIZES),
        Place("to_patch_embedding", 4, 12),
        Place("transformer.layers.0.0", 2, 12),
        Place("transformer.layers.1.1", 2, 12),
        shape=(3, 4, 8, 8),
    ),
    entry(
        "CCT",
        made(
            "cct", "CCT",
            img_size=16, embedding_dim=12, n_conv_layers=1, kernel_size=3, stride=1, padding=1, num_layers=2,
            num_heads=2, mlp_ratio=2.0,
        ),
        Place("tokenizer.conv_layers.0.1", 1, 12),
        Place("classifier.blocks.0", 2, 12),
        Place("classifier.blocks.1.self_attn", 2, 12),
    ),
    entry(
        "NesT",
        made(
            "nest", "NesT",
            image_size=16, patch_size=4, dim=6, heads=2, num_hierarchies=2, block_repeats=(1, 1), dim_head=3,
        ),
        Place("to_patch_embedding", 1, 6),
        Place("layers.0.1", 1, 12),
        Place("layers.1.0.layers.0.1", 1, 12),
    ),
    entry(
        "MaxViT",
        made("max_vit", "MaxViT", dim=8, depth=(1, 1), dim_head=4, window_size=4, dim_conv_stem=6),
        Place("layers.0.0.6", 1, 32),
        Place("layers.0.3", 5, 8),
        Place("layers.1", 1, 16),
        shape=(3, 32, 32),
    ),
    entry(
        "RegionViT",
        made("regionvit", "RegionViT", dim=(6, 8, 10, 12), depth=(1, 1, 1, 1), window_size=2),
        Place("region_encoder", 1, 6),
        Place(Site("layers.1.2", item=0), 1, 8, item=0),
        Place("to_logits.0", 1, 12),
        shape=(3, 32, 32),
    ),
]  # fmt: skip
