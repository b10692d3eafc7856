"""Recurrent and state-space classifiers, and models of sequences with a head of one's own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_neuroimp import Site

from .entry import CLASSES, VOCABULARY, Entry, Inputs, N, Place, rows, tokens
from .text import SIZES


class Recurrent(nn.Module):
    """Read the last state or the mean of a recurrent layer."""

    def __init__(self, kind: Any, *, pool: str = "mean", **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 10)
        self.rnn, self.pool = kind(10, 12, batch_first=True, **options), pool
        width = 12 * (2 if options.get("bidirectional") else 1)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits."""
        h = self.norm(self.rnn(self.embed(input_ids))[0])
        if self.pool == "last":
            return self.head(h[torch.arange(len(h)), attention_mask.sum(1) - 1])
        real = attention_mask[..., None]
        return self.head((h * real).sum(1) / real.sum(1))


class LastState(nn.Module):
    """Read the last state of a GRU whose samples are on the second axis, as by default."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.rnn = nn.Linear(5, 10), nn.GRU(10, 12, num_layers=2)
        self.head = nn.Sequential(nn.Linear(12, 14), nn.Tanh(), nn.Linear(14, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of (sample, time, 5) inputs."""
        return self.head(self.rnn(torch.relu(self.project(x.transpose(0, 1))))[1][-1])


class DiagonalStateSpace(nn.Module):
    """Convolve with the kernel of a diagonal state-space layer, by Fourier transforms, as S4D does.

    References:
        Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", arXiv 2206.11893.
    """

    def __init__(self, channels: int, states: int = 4) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.rand(channels) - 3)
        self.decay = nn.Parameter(torch.full((channels, states), -0.7))
        self.frequency = nn.Parameter(torch.arange(states).repeat(channels, 1) * torch.pi)
        self.readout = nn.Parameter(torch.randn(channels, states, 2))
        self.skip = nn.Parameter(torch.randn(channels))
        self.mix = nn.Conv1d(channels, 2 * channels, 1)

    def forward(self, u: Tensor) -> Tensor:
        """Return (sample, channel, time) for (sample, channel, time)."""
        length = u.shape[-1]
        step = self.log_step.exp()[:, None]
        rate = torch.complex(-self.decay.exp(), self.frequency) * step
        powers = (rate[..., None] * torch.arange(length)).exp()
        weight = torch.view_as_complex(self.readout) * (rate.exp() - 1) / rate
        kernel = 2 * torch.einsum("cn,cnt->ct", weight, powers).real
        y = torch.fft.irfft(torch.fft.rfft(u, 2 * length) * torch.fft.rfft(kernel, 2 * length), 2 * length)[
            ..., :length
        ]
        return F.glu(self.mix(F.gelu(y + u * self.skip[:, None])), 1)


class S4D(nn.Module):
    """Stack diagonal state-space layers with norms and residuals; transposes to (sample, channel, time) inside."""

    def __init__(self, channels: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, channels)
        self.layers = nn.ModuleList(DiagonalStateSpace(channels) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.decoder = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of (sample, time, 3) inputs."""
        h = self.encoder(x).transpose(1, 2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = norm((h + layer(h)).transpose(1, 2)).transpose(1, 2)
        return self.decoder(h.mean(2))


class Pooled(nn.Module):
    """Average what a model of sequences gives for real tokens, and classify it."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Sequential(nn.Linear(width, 14), nn.GELU(), nn.Linear(14, CLASSES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits."""
        h = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask[..., None]
        return self.head((h * real).sum(1) / real.sum(1))


def pooled(name: str, width: int, model: str = "Model", **settings: Any) -> Callable[[], nn.Module]:
    """Return a function that makes a model of `transformers` without a head, and a head on it."""

    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(**settings)
        return Pooled(getattr(transformers, name + model)(config), width)

    return make


ENCODER = {"dim": 12, "depth": 2, "heads": 2, "attn_dim_head": 6}


def words() -> nn.Module:
    """Return a text classifier of `x-transformers` that reads a class token."""
    from x_transformers import Encoder, TransformerWrapper

    layers = Encoder(**ENCODER, rotary_pos_emb=True)
    return TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=16, attn_layers=layers, logits_dim=CLASSES, use_cls_token=True
    )


def patches() -> nn.Module:
    """Return an image classifier of `x-transformers`."""
    from x_transformers import Encoder, ViTransformerWrapper

    layers = Encoder(**ENCODER, ff_glu=True)
    return ViTransformerWrapper(image_size=16, patch_size=4, num_classes=CLASSES, attn_layers=layers)


def series() -> nn.Module:
    """Return a classifier of continuous sequences of `x-transformers`."""
    from x_transformers import ContinuousTransformerWrapper, Encoder

    layers = Encoder(**ENCODER, use_rmsnorm=True)
    return ContinuousTransformerWrapper(dim_in=5, dim_out=CLASSES, max_seq_len=16, attn_layers=layers)


def pooled_logits(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the mean of the logits of each sample's real steps."""
    real = inputs["mask"][..., None]
    return (model(inputs["x"], mask=inputs["mask"]) * real).sum(1) / real.sum(1)


def pooled_forward(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Return logits and labels of continuous sequences, as the package needs them."""
    return pooled_logits(model, batch), batch["labels"]


def low_rank() -> nn.Module:
    """Return a BERT with low-rank adapters."""
    import peft
    import transformers

    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=CLASSES, **SIZES))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["query", "value"])
    return peft.get_peft_model(model, config)


def masked_words() -> tuple[Inputs, Tensor | None]:
    """Return token numbers with a mask that is named `mask`."""
    inputs, real = tokens(8)()
    assert real is not None
    return {"x": inputs["input_ids"], "mask": real}, real


def masked_series() -> tuple[Inputs, Tensor | None]:
    """Return vectors with padding and a mask that is named `mask`."""
    real = masked_words()[1]
    x = torch.randn(N, 8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {"x": x, "mask": real}, real


PLAIN = [
    Entry(
        "LSTM",
        "torch",
        lambda: Recurrent(nn.LSTM),
        tokens(),
        (Place("embed", 2, 10, 1), Place("rnn", 2, 12, 1, item=0), Place(Site("head", side="input"), 1, 12)),
        quick=True,
    ),
    Entry(
        "bidirectional LSTM",
        "torch",
        lambda: Recurrent(nn.LSTM, bidirectional=True, num_layers=2),
        tokens(),
        (Place("embed", 2, 10, 1), Place(Site("rnn", item=0), 2, 24, 1, item=0), Place("norm", 2, 24, 1)),
    ),
    Entry(
        "GRU",
        "torch",
        lambda: Recurrent(nn.GRU, pool="last"),
        tokens(8),
        (Place("embed", 2, 10, 1), Place("rnn", 2, 12, 1, item=0), Place("norm", 2, 12, 1)),
    ),
    Entry(
        "GRU, last state",  # samples second; 8 steps, 8 samples
        "torch",
        LastState,
        rows(8, 5),
        (
            Place("project", 2, 10, samples=1),
            Place(Site("rnn", item=1), 2, 12, samples=1, item=1),
            Place("head.1", 1, 14),
        ),
    ),
    Entry(
        "S4D",
        "torch",
        S4D,
        rows(9, 3),
        (Place("layers.0", 1, 10), Place("layers.1.mix", 1, 20), Place("norms.1", 2, 10)),
    ),
]

OF_LIBRARIES = [
    Entry(
        "Mamba",
        "transformers",
        pooled(
            "Mamba", 12,
            vocab_size=VOCABULARY, hidden_size=12, state_size=4, num_hidden_layers=2, expand=2, conv_kernel=3,
            time_step_rank=2,
        ),
        tokens(),
        (Place("body.layers.0.mixer", 2, 12, 1), Place("body.layers.1", 2, 12, 1), Place("head.1", 1, 14)),
        quick=True,
    ),
    Entry(
        "RWKV",
        "transformers",
        pooled(
            "Rwkv", 12,
            vocab_size=VOCABULARY, context_length=16, hidden_size=12, num_hidden_layers=2, attention_hidden_size=12,
            intermediate_size=20, use_cache=False,
        ),
        tokens(),
        (
            Place("body.blocks.0.ln2", 2, 12, 1),
            Place(Site("body.blocks.1", item=0), 2, 12, 1, item=0),
            Place("body.ln_out", 2, 12, 1),
        ),
    ),
    Entry(
        "T5 encoder",
        "transformers",
        pooled("T5", 12, "EncoderModel", vocab_size=VOCABULARY, d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2),
        tokens(),
        (
            Place(Site("body.encoder.block.0", item=0), 2, 12, 1, item=0),
            Place("body.encoder.block.1.layer.1.DenseReluDense.act", 2, 20, 1),
            Place("body.encoder.final_layer_norm", 2, 12, 1),
        ),
    ),
    Entry(
        "FNet",
        "transformers",
        pooled("FNet", 12, **SIZES, use_tpu_fourier_optimizations=False),
        tokens(),
        (
            Place("body.encoder.layer.0.fourier", 2, 12, 1, item=0),
            Place("body.encoder.layer.0.intermediate", 2, 20, 1),
            Place("body.encoder.layer.1", 2, 12, 1, item=0),
        ),
    ),
    Entry(
        "x-transformers, text",
        "x_transformers",
        words,
        masked_words,
        (
            Place("token_emb", 2, 12, 1),
            Place("attn_layers.layers.1.1.ff.0.1", 2, 48),  # with the class token: the mask does not fit
            Place("attn_layers", 2, 12, item=0),
        ),
    ),
    Entry(
        "x-transformers, pictures",
        "x_transformers",
        patches,
        rows(3, 16, 16),
        (
            Place("patch_to_embedding", 2, 12),
            Place("attn_layers.layers.1.1", 2, 12),
            Place("attn_layers.layers.3.1.ff.0", 2, 48),
        ),
    ),
    Entry(
        "x-transformers, series",
        "x_transformers",
        series,
        masked_series,
        (
            Place("project_in", 2, 12, 1),
            Place("attn_layers.layers.0.1", 2, 12, 1, item=0),
            Place("attn_layers.layers.3.1", 2, 12, 1),
        ),
        logits=pooled_logits,
        forward_fn=pooled_forward,
    ),
    Entry(
        "BERT with LoRA",
        "peft",
        low_rank,
        tokens(),
        (
            Place("base_model.model.bert.encoder.layer.0.attention.self.query", 2, 12, 1),
            Place("base_model.model.bert.encoder.layer.0.attention.self.value.lora_A.default", 2, 3, 1),
            Place("base_model.model.bert.encoder.layer.1", 2, 12, 1),
        ),
    ),
]  # fmt: skip

ENTRIES = [*PLAIN, *OF_LIBRARIES]
