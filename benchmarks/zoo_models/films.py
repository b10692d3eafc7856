"""Classifiers of films and of time series from `transformers`."""

from typing import Any

from torch import Tensor, nn

from .entry import CLASSES, Entry, Inputs, Place, rows
from .text import made

FRAMES: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "image_size": 16,
    "patch_size": 4,
}
SERIES: dict[str, Any] = {
    "context_length": 24,
    "patch_length": 4,
    "patch_stride": 4,
    "num_input_channels": 3,
    "num_targets": CLASSES,
    "scaling": None,
}
MIXERS = "model.encoder.mlp_mixer_encoder.mixers"


def series_logits(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits of a classifier of time series, which have other names there."""
    output = model(**inputs)
    return output["prediction_outputs" if "prediction_outputs" in output else "prediction_logits"]


def forward_fn(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Return logits and labels of time series, as the package needs them."""
    return series_logits(model, {"past_values": batch["past_values"]}), batch["labels"]


ENTRIES = [
    Entry(
        "TimeSformer",
        "transformers",
        made("Timesformer", "ForVideoClassification", **FRAMES, num_frames=3),
        rows(3, 3, 16, 16, name="pixel_values"),
        (
            Place("timesformer.encoder.layer.0", 2, 12, item=0),
            Place("timesformer.encoder.layer.0.attention", 2, 12, item=0, refused="a frame is a sample there"),
            Place("timesformer.encoder.layer.1.intermediate", 2, 20),
            Place("timesformer.layernorm", 2, 12),
        ),
    ),
    Entry(
        "VideoMAE",
        "transformers",
        made("VideoMAE", "ForVideoClassification", **FRAMES, num_frames=4, tubelet_size=2),
        rows(4, 3, 16, 16, name="pixel_values"),
        (
            Place("videomae.encoder.layer.0.attention", 2, 12),
            Place("videomae.encoder.layer.1", 2, 12),
            Place("fc_norm", 1, 12),
        ),
    ),
    Entry(
        "PatchTSMixer",
        "transformers",
        made(
            "PatchTSMixer", "ForTimeSeriesClassification",
            **SERIES, d_model=10, num_layers=2, head_aggregation="avg_pool", gated_attn=True,
        ),
        rows(24, 3, name="past_values"),
        (
            Place(f"{MIXERS}.0.patch_mixer", 3, 10),  # (sample, channel of the series, patch, feature)
            Place(f"{MIXERS}.0", 3, 10),
            Place(f"{MIXERS}.1.feature_mixer.mlp", 3, 10),
        ),
        logits=series_logits,
        forward_fn=forward_fn,
    ),
    Entry(
        "PatchTST",
        "transformers",
        made(
            "PatchTST", "ForClassification",
            **SERIES, d_model=12, num_hidden_layers=2, num_attention_heads=2, ffn_dim=20, pooling_type="mean",
            use_cls_token=False,
        ),
        rows(24, 3, name="past_values"),
        (
            Place("model.encoder.embedder", 3, 12),
            Place("model.encoder.layers.0.ff", 2, 12, refused="a channel of the series is a sample there"),
            Place("model.encoder.layers.1", 3, 12, item=0),
            Place("head.flatten", 1, 36),
        ),
        logits=series_logits,
        forward_fn=forward_fn,
    ),
]  # fmt: skip
