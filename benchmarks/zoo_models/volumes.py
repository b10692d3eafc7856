"""Classifiers of volumes and pictures from `monai`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .entry import CLASSES, Entry, Inputs, Place, rows


def made(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """Return a function that makes a network of `monai`."""

    def make() -> nn.Module:
        from monai.networks import nets

        return getattr(nets, name)(**settings)

    return make


def first(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits of a model that returns a tuple of them and its hidden states."""
    return model(inputs)[0]


def entry(name: str, make: Callable[[], nn.Module], *places: Place, shape: tuple[int, ...], **options: Any) -> Entry:
    """Return an entry of `monai`."""
    return Entry(name, "monai", make, rows(*shape), places, **options)


ENTRIES = [
    entry(
        "DenseNet 3-D",
        made(
            "DenseNet",
            spatial_dims=3, in_channels=1, out_channels=CLASSES, init_features=6, growth_rate=4, block_config=(2, 2),
            bn_size=2,
        ),
        Place("features.pool0", 1, 6),
        Place("features.denseblock1", 1, 14),
        Place("class_layers.relu", 1, 15),
        shape=(1, 16, 16, 16),
    ),
    entry(
        "SEResNet (monai)",
        made(
            "SENet",
            spatial_dims=2, in_channels=1, block="se_resnet_bottleneck", layers=(1, 1, 1, 1), groups=1, reduction=4,
            dropout_prob=None, inplanes=8, downsample_kernel_size=1, input_3x3=False, num_classes=CLASSES,
        ),
        Place("layer0", 1, 8),
        Place("layer1.0.se_layer", 1, 256),
        Place("layer2.0", 1, 512),
        shape=(1, 32, 32),
    ),
    entry(
        "EfficientNet (monai)",
        made(
            "EfficientNet",
            blocks_args_str=["r1_k3_s11_e1_i32_o16_se0.25", "r1_k3_s22_e6_i16_o24_se0.25"], spatial_dims=2,
            in_channels=3, num_classes=CLASSES, width_coefficient=0.25, depth_coefficient=1.0, image_size=32,
        ),
        Place("_conv_stem", 1, 8),
        Place("_blocks.1.1", 1, 8),
        Place("_avg_pooling", 1, 320),
        shape=(3, 32, 32),
    ),
    entry(
        "ViT 3-D (monai)",  # 8 patches, 8 samples
        made(
            "ViT",
            in_channels=1, img_size=(8, 8, 8), patch_size=(4, 4, 4), hidden_size=12, mlp_dim=20, num_layers=2,
            num_heads=2, classification=True, num_classes=CLASSES, post_activation="none",
        ),
        Place("patch_embedding", 2, 12),
        Place("blocks.0.mlp.fn", 2, 20),
        Place("blocks.1.attn", 2, 12),
        shape=(1, 8, 8, 8),
        logits=first,
    ),
    entry(
        "ResNet 3-D",
        made(
            "ResNet",
            block="basic", layers=[1, 1, 1, 1], block_inplanes=[6, 8, 10, 12], spatial_dims=3, n_input_channels=1,
            num_classes=CLASSES,
        ),
        Place("act", 1, 6),
        Place("layer2.0", 1, 8),
        Place("layer4", 1, 12),
        shape=(1, 16, 16, 16),
    ),
    entry(
        "Classifier (monai)",
        made("Classifier", in_shape=(1, 16, 16), classes=CLASSES, channels=(6, 8, 10), strides=(2, 2, 2)),
        Place("net.layer_0", 1, 6),
        Place("net.layer_1.conv.unit0", 1, 8),
        Place("net.layer_2", 1, 10),
        shape=(1, 16, 16),
    ),
]  # fmt: skip
