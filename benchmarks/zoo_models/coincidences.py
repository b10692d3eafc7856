"""Architectures whose channels are as many as their tokens, rows or samples, and layers that mix tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neuroimp import Site

from .entry import CLASSES, VOCABULARY, Entry, Place, rows, tokens
from .patches import made as made_of_patches
from .sequences import S4D, pooled
from .sounds import WAVES
from .text import DECODER, SIZES, made

HEAD = "ForImageClassification"
EIGHT = {**SIZES, "hidden_size": 8, "intermediate_size": 8}


class Mixer(nn.Module):
    """Mix tokens by a convolution, as if they were channels, then channels; the residual stream is (token, channel).

    References:
        Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", 2021, arXiv 2105.01601.
    """

    def __init__(self, n_tokens: int, channels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(5, channels)
        self.token = Residual(channels, nn.Conv1d(n_tokens, 2 * n_tokens, 1), nn.Conv1d(2 * n_tokens, n_tokens, 1))
        self.channel = Residual(channels, nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels))
        self.act, self.head = nn.GELU(), nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of (sample, token, 5) inputs."""
        return self.head(self.channel(self.act(self.token(self.embed(x)))).mean(1))


class Residual(nn.Module):
    """Add two layers behind a norm to what comes in."""

    def __init__(self, channels: int, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(channels), nn.Sequential(first, nn.GELU(), second)

    def forward(self, x: Tensor) -> Tensor:
        """Return what has come in, and more."""
        return x + self.fn(self.norm(x))


class TimeFirst(nn.Module):
    """Keep (time, sample, channel) inside, with plain layers that do not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of (sample, time, 5) inputs."""
        h = self.act(self.first(x.transpose(0, 1)))
        h = self.norm(h + torch.relu(self.second(h.cumsum(0))))
        return self.head(h.mean(0))


def entry(
    name: str, make: Callable[[], nn.Module], inputs: Any, *places: Place, package: str = "transformers"
) -> Entry:
    """Return an entry; its name says what is as many as what."""
    return Entry(name, package, make, inputs, places)


eight = tokens(8)
picture = rows(3, 32, 32, name="pixel_values")

ENTRIES = [
    entry(
        "SqueezeBERT, 8 of each",
        made("SqueezeBert", **EIGHT, embedding_size=8),
        eight,
        Place("transformer.encoder.layers.0.post_attention.layernorm", 1, 8, 2),
        Place("transformer.encoder.layers.0.intermediate.act", 1, 8, 2),
        Place("transformer.encoder.layers.1.intermediate", 1, 8, 2),
    ),
    entry(
        "GPT-2, 8 of each",
        made("GPT2", vocab_size=VOCABULARY, n_embd=8, n_layer=2, n_head=2, n_positions=32, n_inner=8, pad_token_id=0),
        eight,
        Place("transformer.h.0.mlp.act", 2, 8, 1),
        Place("transformer.h.0", 2, 8, 1),
        Place("transformer.h.1.mlp", 2, 8, 1),
    ),
    entry(
        "Gemma, 8 of each",
        made("Gemma", **{**DECODER, "hidden_size": 8, "head_dim": 4, "intermediate_size": 8}),
        eight,
        Place("model.layers.0.input_layernorm", 2, 8, 1),
        Place("model.layers.0.mlp", 2, 8, 1),
        Place("model.layers.1", 2, 8, 1),
    ),
    entry(
        "RWKV, 8 of each",
        pooled(
            "Rwkv", 8,
            vocab_size=VOCABULARY, context_length=16, hidden_size=8, num_hidden_layers=2, attention_hidden_size=8,
            intermediate_size=8, use_cache=False,
        ),
        eight,
        Place(Site("body.blocks.0", item=0), 2, 8, 1, item=0),
        Place(Site("body.blocks.1.feed_forward", item=0), 2, 8, 1, item=0),
        Place("body.ln_out", 2, 8, 1),
    ),
    entry(
        "XLNet, 8 of each",
        made("XLNet", vocab_size=VOCABULARY, d_model=8, n_layer=2, n_head=2, d_inner=8),
        tokens(8, left=True, pad=5),
        Place("transformer.layer.0", 2, 8, 0, samples=1, item=0),
        Place("transformer.layer.1.ff.activation_function", 2, 8, 0, samples=1),
        Place("transformer.layer.1.ff", 2, 8, 0, samples=1),
    ),
    entry(
        "S4D, as many channels as steps and samples",
        lambda: S4D(8),
        rows(8, 3),
        Place("layers.0", 1, 8),
        Place("norms.0", 2, 8),
        Place("layers.1.mix", 1, 16),
        package="torch",
    ),
    entry(
        "SegFormer, as many channels as rows and tokens",
        made(
            "Segformer", HEAD,
            num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[8, 16], sr_ratios=[2, 1], patch_sizes=[7, 3],
            strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 1],
        ),
        picture,
        Place("segformer.stages.0", 1, 8),
        Place("segformer.stages.1.blocks.0", 2, 16),
        Place("segformer.stages.1.blocks.0.mlp.activation_fn", 2, 16),
    ),
    entry(
        "LeViT, as many channels as rows and tokens",
        made(
            "Levit", HEAD,
            image_size=64, hidden_sizes=[16, 24], num_attention_heads=[2, 2], depths=[1, 1], key_dim=[4, 4],
            mlp_ratio=[1, 1], attention_ratio=[2, 2], down_ops=[["Subsample", 4, 2, 4, 2, 2]],
        ),
        rows(3, 64, 64, name="pixel_values"),
        Place("levit.patch_embeddings.activation_layer_3", 1, 8),
        Place("levit.patch_embeddings", 2, 16),
        Place("levit.encoder.stages.0.layers.0.module.projection", 2, 16),
    ),
    entry(
        "ConvNeXt V2, as many channels as rows",
        made("ConvNextV2", HEAD, hidden_sizes=[8, 4], depths=[1, 1], num_stages=2, patch_size=4),
        picture,
        Place("convnextv2.embeddings.layernorm", 1, 8),
        Place("convnextv2.encoder.stages.0.layers.0.layernorm", 3, 8),
        Place("convnextv2.encoder.stages.1.layers.0", 1, 4),
    ),
    entry(
        "HuBERT, 8 of each",
        made("Hubert", **{**WAVES, "hidden_size": 8, "conv_dim": [8, 8], "intermediate_size": 8}),
        rows(144, name="input_values"),
        Place("hubert.feature_extractor", 1, 8),
        Place("hubert.encoder.pos_conv_embed.activation", 1, 8),
        Place("hubert.encoder.layers.1.feed_forward", 2, 8),
    ),
    entry(
        "XCiT, as many channels as rows and columns",
        made_of_patches(
            "xcit", "XCiT",
            image_size=16, patch_size=4, dim=4, depth=2, cls_depth=1, heads=1, mlp_dim=4, dim_head=4,
        ),
        rows(3, 16, 16),
        Place("xcit_transformer.layers.0.0.fn", 3, 4),
        Place("xcit_transformer.layers.1.1.fn.net.4", 1, 4),
        Place("xcit_transformer.layers.1.1", 3, 4),
        package="vit_pytorch",
    ),
    entry(
        "samples second, 8 of each",
        TimeFirst,
        rows(8, 5),
        Place("act", 2, 8, samples=1),
        Place("second", 2, 8, samples=1),
        Place("norm", 2, 8, samples=1),
        package="torch",
    ),
    entry(
        "MLP-Mixer",
        lambda: Mixer(9, 12),
        rows(9, 5),
        Place("token.fn.1", 1, 18),
        Place("token", 2, 12),
        Place("act", 2, 12),
        Place("channel", 2, 12),
        package="torch",
    ),
    entry(
        "MLP-Mixer, as many channels as tokens and samples",
        lambda: Mixer(8, 8),
        rows(8, 5),
        Place("token.fn.1", 1, 16),
        Place("token", 2, 8),
        Place("act", 2, 8),
        Place("channel", 2, 8),
        package="torch",
    ),
]  # fmt: skip
