"""Image classifiers from `transformers`: vision transformers, windows, convolutions, and what lies between."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_neuroimp import Site

from .entry import VOCABULARY, Entry, Inputs, N, Place, rows
from .text import made

VIT: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "image_size": 16,
    "patch_size": 4,
}
WORDS = {"vocab_size": VOCABULARY, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEAD = "ForImageClassification"
WINDOWS = "a window is a sample there"


def entry(
    name: str,
    make: Callable[[], nn.Module],
    *places: Place,
    size: int = 32,
    quick: bool = False,
    inputs: Any = None,
) -> Entry:
    """Return an entry of `transformers` that is fed square pictures, by default of 32 x 32 pixels."""
    inputs = rows(3, size, size, name="pixel_values") if inputs is None else inputs
    return Entry(name, "transformers", make, inputs, places, quick)


def pixels() -> tuple[Inputs, None]:
    """Return pictures of nine pixels, each the number of a colour."""
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(VOCABULARY - 1, (N, 9), generator=generator)}, None


TRANSFORMERS = [
    entry(
        "ViT",
        made("ViT", HEAD, **VIT),
        Place("vit.layers.0.attention", 2, 12, item=0),
        Place("vit.layers.0.mlp.activation_fn", 2, 20),
        Place("vit.layers.1", 2, 12),
        size=16,
        quick=True,
    ),
    entry(
        "ViT, as many channels as tokens",
        made("ViT", HEAD, **{**VIT, "hidden_size": 16, "num_attention_heads": 4}),
        Place("vit.embeddings.patch_embeddings", 2, 16),  # no class token yet
        Place("vit.layers.0", 2, 16),
        Place("vit.layernorm", 2, 16),
        size=16,
    ),
    entry(
        "DeiT",
        made("DeiT", HEAD, **VIT),
        Place("deit.embeddings", 2, 12),
        Place("deit.layers.0.mlp", 2, 12),
        Place("deit.layers.1.layernorm_after", 2, 12),
        size=16,
    ),
    entry(
        "DeiT with a teacher",  # three heads; their mean is called logits
        made("DeiT", "ForImageClassificationWithTeacher", **VIT),
        Place("deit.layers.0", 2, 12),
        Place("deit.layers.1.mlp.activation_fn", 2, 20),
        Place("deit.layernorm", 2, 12),
        size=16,
    ),
    entry(
        "BEiT",
        made("Beit", HEAD, **VIT),
        Place("beit.embeddings.patch_embeddings.projection", 1, 12),
        Place("beit.layers.1.attention", 2, 12, item=0),
        Place("beit.pooler", 1, 12),
        size=16,
    ),
    entry(
        "Data2Vec Vision",
        made("Data2VecVision", HEAD, **VIT),
        Place("data2vec_vision.encoder.layer.0", 2, 12, item=0),
        Place("data2vec_vision.encoder.layer.1.intermediate", 2, 20),
        Place("data2vec_vision.pooler", 1, 12),
        size=16,
    ),
    entry(
        "DINOv2",
        made("Dinov2", HEAD, **VIT, mlp_ratio=2),
        Place("dinov2.encoder.layer.0.layer_scale1", 2, 12),
        Place("dinov2.encoder.layer.1.mlp", 2, 12),
        Place("dinov2.layernorm", 2, 12),
        size=16,
    ),
    entry(
        "Swin",
        made("Swin", HEAD, image_size=32, patch_size=4, embed_dim=6, depths=[1, 2], num_heads=[2, 2], window_size=4),
        Place("swin.encoder.layers.0.blocks.0", 2, 6, item=0),
        Place("swin.encoder.layers.0.blocks.0.attention", 2, 6, item=0, refused=WINDOWS),
        Place("swin.encoder.layers.0.downsample", 2, 12),
        Place("swin.pooler", 1, 12),
        quick=True,
    ),
    entry(
        "Swin, one window",
        made("Swin", HEAD, image_size=16, patch_size=4, embed_dim=6, depths=[2], num_heads=[2], window_size=4),
        Place("swin.embeddings", 2, 6, item=0),
        Place("swin.encoder.layers.0.blocks.0.attention", 2, 6, item=0),  # one window for each sample
        Place("swin.layernorm", 2, 6),
        size=16,
    ),
    entry(
        "Swin V2",
        made("Swinv2", HEAD, image_size=32, patch_size=4, embed_dim=6, depths=[1, 2], num_heads=[2, 2], window_size=4),
        Place("swinv2.encoder.layers.0.blocks.0.intermediate", 2, 24),
        Place("swinv2.encoder.layers.1.blocks.0", 2, 12, item=0),
        Place("swinv2.layernorm", 2, 12),
    ),
    entry(
        "SegFormer",
        made(
            "Segformer", HEAD,
            num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[6, 10], sr_ratios=[2, 1], patch_sizes=[7, 3],
            strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
        ),
        Place("segformer.stages.0.blocks.0", 2, 6),
        Place("segformer.stages.0", 1, 6),
        Place("segformer.stages.1.blocks.0.mlp.activation_fn", 2, 20),
    ),
    entry(
        "PVT",
        made(
            "Pvt", HEAD,
            image_size=32, depths=[1, 1, 1, 1], hidden_sizes=[6, 8, 10, 12], num_attention_heads=[1, 2, 2, 2],
            mlp_ratios=[2, 2, 2, 2],
        ),
        Place("pvt.encoder.block.0.0", 2, 6, item=0),
        Place("pvt.encoder.block.2.0.mlp", 2, 10),
        Place("pvt.encoder.block.3.0.attention", 2, 12, item=0),
    ),
    entry(
        "Hiera",
        made(
            "Hiera", HEAD,
            image_size=[32, 32], embed_dim=8, depths=[1, 1], num_heads=[1, 2], query_stride=[2, 2],
            masked_unit_size=[4, 4], num_query_pool=1, masked_unit_attention=[True, False], patch_size=[7, 7],
            patch_stride=[4, 4], patch_padding=[3, 3],
        ),
        Place("hiera.encoder.stages.0.layers.0.attn", 2, 8, item=0),
        Place("hiera.encoder.stages.1", 2, 16, item=0),  # 16 positions too
        Place("hiera.pooler", 1, 16),
    ),
    entry(
        "CvT",
        made(
            "Cvt", HEAD,
            embed_dim=[6, 8], num_heads=[1, 2], depth=[1, 2], patch_sizes=[7, 3], patch_stride=[4, 2],
            patch_padding=[2, 1], mlp_ratio=[2.0, 2.0], attention_drop_rate=[0.0, 0.0], drop_rate=[0.0, 0.0],
            drop_path_rate=[0.0, 0.1], qkv_bias=[True, True], cls_token=[False, True],
            qkv_projection_method=["dw_bn", "dw_bn"], kernel_qkv=[3, 3], padding_kv=[1, 1], stride_kv=[2, 2],
            padding_q=[1, 1], stride_q=[1, 1],
        ),
        Place("cvt.encoder.stages.0.embedding", 1, 6),
        Place("cvt.encoder.stages.0.layers.0", 2, 6),
        Place("cvt.encoder.stages.1.layers.1.intermediate", 2, 16),
    ),
    entry(
        "LeViT",
        made(
            "Levit", HEAD,
            image_size=64, hidden_sizes=[8, 12], num_attention_heads=[2, 2], depths=[1, 1], key_dim=[4, 4],
            mlp_ratio=[2, 2], attention_ratio=[2, 2], down_ops=[["Subsample", 4, 2, 4, 2, 2]],
        ),
        Place("levit.patch_embeddings.activation_layer_3", 1, 4),
        Place("levit.encoder.stages.0.layers.0.module.projection", 2, 8),
        Place("levit.encoder.stages.1", 2, 12),
        size=64,
    ),
    entry(
        "SigLIP",
        made("Siglip", HEAD, text_config=WORDS, vision_config=VIT),
        Place("vision_model.encoder.layers.0.mlp", 2, 12),
        Place("vision_model.encoder.layers.1.self_attn", 2, 12, item=0),
        Place("vision_model.post_layernorm", 2, 12),
        size=16,
    ),
    entry(
        "CLIP",
        made("CLIP", HEAD, text_config=WORDS, vision_config=VIT),
        Place("vision_model.pre_layrnorm", 2, 12),
        Place("vision_model.encoder.layers.0.mlp.activation_fn", 2, 20),
        Place("vision_model.encoder.layers.1", 2, 12),
        size=16,
    ),
    entry(
        "ImageGPT",
        made(
            "ImageGPT", HEAD,
            vocab_size=VOCABULARY, n_positions=32, n_embd=12, n_layer=2, n_head=2, n_inner=20,
        ),
        Place("transformer.h.0.ln_1", 2, 12),
        Place("transformer.h.0.mlp.act", 2, 20),
        Place(Site("transformer.h.1", item=0), 2, 12, item=0),
        inputs=pixels,
    ),
    entry(
        "Perceiver on images",
        made(
            "Perceiver", "ForImageClassificationLearned",
            num_latents=5, d_latents=14, num_blocks=1, num_self_attends_per_block=2, num_self_attention_heads=2,
            num_cross_attention_heads=2, image_size=16,
        ),
        Place("perceiver.encoder.cross_attention", 2, 14, item=0),
        Place("perceiver.encoder.self_attends.0.mlp", 2, 14),
        Place("perceiver.encoder.self_attends.1", 2, 14, item=0),
        size=16,
    ),
]  # fmt: skip

CONVOLUTIONS = [
    entry(
        "BiT",
        made("Bit", HEAD, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4),
        Place("bit.embedder", 1, 8),
        Place("bit.encoder.stages.1.layers.0.norm2", 1, 8),
        Place("bit.norm", 1, 16),
    ),
    entry(
        "ConvNeXt",
        made("ConvNext", HEAD, hidden_sizes=[6, 10], depths=[1, 1], num_stages=2, patch_size=4),
        Place("convnext.embeddings.layernorm", 1, 6),
        Place("convnext.encoder.stages.0.layers.0.layernorm", 3, 6),
        Place("convnext.encoder.stages.1", 1, 10),
        quick=True,
    ),
    entry(
        "ConvNeXt, as many channels as rows",
        made("ConvNext", HEAD, hidden_sizes=[8, 10], depths=[1, 1], num_stages=2, patch_size=4),
        Place("convnext.embeddings.layernorm", 1, 8),
        Place("convnext.encoder.stages.0.layers.0.layernorm", 3, 8),
        Place("convnext.encoder.stages.1.downsampling_layer.0", 1, 8),
        quick=True,
    ),
    entry(
        "ConvNeXt V2",
        made("ConvNextV2", HEAD, hidden_sizes=[6, 10], depths=[1, 1], num_stages=2, patch_size=4),
        Place("convnextv2.encoder.stages.0.layers.0.grn", 3, 24),
        Place("convnextv2.encoder.stages.0", 1, 6),
        Place("convnextv2.encoder.stages.1.layers.0", 1, 10),
    ),
    entry(
        "ResNet",
        made("ResNet", HEAD, embedding_size=6, hidden_sizes=[6, 10], depths=[1, 2], layer_type="bottleneck"),
        Place("resnet.embedder", 1, 6),
        Place("resnet.encoder.stages.0.layers.0.activation", 1, 6),
        Place("resnet.encoder.stages.1.layers.1", 1, 10),
        quick=True,
    ),
    entry(
        "RegNet",
        made("RegNet", HEAD, embedding_size=6, hidden_sizes=[8, 12], depths=[1, 2], groups_width=4),
        Place("regnet.encoder.stages.0", 1, 8),
        Place("regnet.encoder.stages.1.layers.0.layer.2", 1, 12),
        Place("regnet.pooler", 1, 12),
    ),
    entry(
        "MobileNetV1",
        made("MobileNetV1", HEAD, image_size=32, depth_multiplier=0.25),
        Place("mobilenet_v1.layer.0.activation", 1, 8),
        Place("mobilenet_v1.layer.12", 1, 128),
        Place("mobilenet_v1.pooler", 1, 256),
    ),
    entry(
        "MobileNetV2",
        made("MobileNetV2", HEAD, image_size=32, depth_multiplier=0.25),
        Place("mobilenet_v2.layer.2.expand_1x1.activation", 1, 48),
        Place("mobilenet_v2.layer.11", 1, 24),
        Place("mobilenet_v2.layer.15", 1, 80),
    ),
    entry(
        "EfficientNet",
        made(
            "EfficientNet", HEAD,
            image_size=32, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320,
        ),
        Place("efficientnet.encoder.blocks.1.squeeze_excite", 1, 48),
        Place("efficientnet.encoder.blocks.4.squeeze_excite.act_expand", 1, 144),
        Place("efficientnet.encoder.top_activation", 1, 320),
    ),
    entry(
        "PoolFormer",
        made(
            "PoolFormer", HEAD,
            depths=[1, 1], hidden_sizes=[6, 10], num_encoder_blocks=2, patch_sizes=[7, 3], strides=[4, 2],
            padding=[2, 1], num_attention_heads=None,
        ),
        Place("poolformer.encoder.patch_embeddings.0", 1, 6),
        Place("poolformer.encoder.block.0.0", 1, 6, item=0),
        Place("poolformer.encoder.block.1.0.output", 1, 10),
    ),
    entry(
        "MobileViT",
        made(
            "MobileViT", HEAD,
            image_size=64, hidden_sizes=[12, 14, 16], neck_hidden_sizes=[4, 6, 8, 10, 12, 14, 16],
            num_attention_heads=2,
        ),
        Place("mobilevit.encoder.layer.0", 1, 6),
        Place("mobilevit.encoder.layer.2.transformer", 2, 12, refused="a place in all patches is a sample there"),
        Place("mobilevit.encoder.layer.3.fusion", 1, 12),
        Place("mobilevit.conv_1x1_exp", 1, 16),
        size=64,
    ),
    entry(
        "FocalNet",
        made(
            "FocalNet", HEAD,
            image_size=32, embed_dim=6, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3], hidden_sizes=[6, 12],
        ),
        Place("focalnet.encoder.stages.0.layers.0.modulation", 3, 6),
        Place("focalnet.encoder.stages.0.layers.0", 2, 6),
        Place("focalnet.encoder.stages.1.layers.0.modulation.focal_layers.0", 1, 12),
    ),
]  # fmt: skip

ENTRIES = [*TRANSFORMERS, *CONVOLUTIONS]
