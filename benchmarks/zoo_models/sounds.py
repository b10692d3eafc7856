"""Audio classifiers from `transformers`, on waves and on spectrograms."""

from typing import Any

import torch

from .entry import Entry, Inputs, N, Place, rows
from .text import made

WAVES: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "conv_dim": [8, 10],
    "conv_stride": [4, 4],
    "conv_kernel": [8, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 14,
}
wave = rows(160, name="input_values")


def padded_waves() -> tuple[Inputs, None]:
    """Return waves of several lengths with a mask; the architecture makes frames of them, whose padding it hides."""
    inputs, lengths = wave()[0], 160 - 24 * (torch.arange(N) % 4)
    mask = torch.arange(160) < lengths[:, None]
    return {"input_values": inputs["input_values"] * mask, "attention_mask": mask.long()}, None


ENTRIES = [
    Entry(
        "wav2vec 2.0",
        "transformers",
        made("Wav2Vec2", **WAVES),
        wave,
        (
            Place("wav2vec2.feature_extractor", 1, 10),
            Place("wav2vec2.encoder.layers.0", 2, 12),
            Place("projector", 2, 14),
        ),
        quick=True,
    ),
    Entry(
        "wav2vec 2.0 with padding",
        "transformers",
        made("Wav2Vec2", **WAVES),
        padded_waves,
        (
            Place("wav2vec2.feature_projection.layer_norm", 2, 10),
            Place("wav2vec2.encoder.layers.0", 2, 12),
            Place("projector", 2, 14),
        ),
    ),
    Entry(
        "HuBERT",
        "transformers",
        made("Hubert", **WAVES),
        wave,
        (
            Place("hubert.feature_projection", 2, 12),
            Place("hubert.encoder.pos_conv_embed.activation", 1, 12),
            Place("hubert.encoder.layers.1.feed_forward", 2, 12),
        ),
    ),
    Entry(
        "WavLM",
        "transformers",
        made("WavLM", **WAVES),
        wave,
        (
            Place("wavlm.feature_extractor.conv_layers.0", 1, 8),
            Place("wavlm.encoder.layers.0.feed_forward.intermediate_act_fn", 2, 20),
            Place("wavlm.encoder.layers.1.final_layer_norm", 2, 12),
        ),
    ),
    Entry(
        "Data2Vec Audio",
        "transformers",
        made("Data2VecAudio", **WAVES),
        wave,
        (
            Place("data2vec_audio.feature_extractor.conv_layers.0.layer_norm", 2, 8),
            Place("data2vec_audio.encoder.pos_conv_embed.layers.1", 1, 12),
            Place("data2vec_audio.encoder.layers.1.attention", 2, 12, item=0),
        ),
    ),
    Entry(
        "SEW",
        "transformers",
        made("SEW", **WAVES, squeeze_factor=2),
        wave,
        (
            Place("sew.encoder.pool", 1, 12),
            Place("sew.encoder.layers.0", 2, 12),
            Place("sew.encoder.upsample.activation", 2, 24),
        ),
    ),
    Entry(
        "AST",
        "transformers",
        made(
            "AST", "ForAudioClassification",
            hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, patch_size=4,
            frequency_stride=4, time_stride=4, max_length=20, num_mel_bins=8,
        ),
        rows(20, 8, name="input_values"),
        (
            Place("audio_spectrogram_transformer.layers.0", 2, 12),  # 12 positions too
            Place("audio_spectrogram_transformer.layers.1.mlp.activation_fn", 2, 20),
            Place("classifier.layernorm", 1, 12),
        ),
    ),
    Entry(
        "Whisper",
        "transformers",
        made(
            "Whisper", "ForAudioClassification",
            d_model=12, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=20, decoder_ffn_dim=20, num_mel_bins=8, max_source_positions=10, vocab_size=40,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, classifier_proj_size=14,
        ),
        rows(8, 20, name="input_features"),
        (
            Place("encoder.conv2", 1, 12),
            Place("encoder.layers.0.self_attn", 2, 12, item=0),
            Place("encoder.layers.1", 2, 12),
        ),
    ),
]  # fmt: skip
