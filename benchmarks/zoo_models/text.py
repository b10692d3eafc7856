"""Text classifiers from `transformers`, with padding wherever the architecture knows it."""

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_neuroimp import Site

from .entry import CLASSES, VOCABULARY, Entry, Place, tokens

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
}
DECODER = {**SIZES, "pad_token_id": 0, "num_key_value_heads": 1, "head_dim": 6}


def made(name: str, head: str = "ForSequenceClassification", **settings: Any) -> Callable[[], nn.Module]:
    """Return a function that makes a model of `transformers` with random weights.

    Args:
        name: first part of the names of its configuration and model.
        head: last part of the model's name.
        settings: of the configuration.
    """

    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(**{"num_labels": CLASSES, **settings})
        return getattr(transformers, name + head)(config)

    return make


def entry(name: str, make: Callable[[], nn.Module], *places: Place, inputs: Any = None, quick: bool = False) -> Entry:
    """Return an entry of `transformers` that is fed padded tokens, by default seven of them."""
    return Entry(name, "transformers", make, inputs or tokens(), places, quick)


ENCODERS = [
    entry(
        "BERT",
        made("Bert", **SIZES),
        Place("bert.encoder.layer.0", 2, 12, 1),
        Place("bert.encoder.layer.1.intermediate", 2, 20, 1),
        Place("bert.pooler", 1, 12),
        quick=True,
    ),
    entry(
        "BERT, as many channels as tokens and samples",
        made("Bert", **{**SIZES, "hidden_size": 8}),
        Place("bert.encoder.layer.0", 2, 8, 1),
        Place("bert.encoder.layer.1.attention.output", 2, 8, 1),
        Place("bert.encoder.layer.1.intermediate.intermediate_act_fn", 2, 20, 1),
        inputs=tokens(8),
        quick=True,
    ),
    entry(
        "BERT, heads and class token",
        made("Bert", **SIZES),
        Place(Site("bert.encoder.layer.0.attention.output.dense", side="input", group=6), 2, 2, 1),
        Place(Site("bert.encoder.layer.0", position=0), 2, 12, 1),
        Place(Site("bert.encoder.layer.1.output.dense", side="input"), 2, 20, 1),
        quick=True,
    ),
    entry(
        "DistilBERT",
        made(
            "DistilBert",
            vocab_size=VOCABULARY,
            dim=12,
            n_layers=2,
            n_heads=2,
            hidden_dim=20,
            max_position_embeddings=32,
        ),
        Place("distilbert.transformer.layer.0.attention", 2, 12, 1, item=0),
        Place("distilbert.transformer.layer.1.ffn.activation", 2, 20, 1),
        Place("pre_classifier", 1, 12),
    ),
    entry(
        "RoBERTa",
        made("Roberta", **SIZES),
        Place("roberta.embeddings", 2, 12, 1),
        Place("roberta.encoder.layer.0.attention.output.LayerNorm", 2, 12, 1),
        Place("classifier.dense", 1, 12),
        inputs=tokens(pad=1),
    ),
    entry(
        "ALBERT",
        made("Albert", **SIZES, embedding_size=10),
        Place("albert.encoder.embedding_hidden_mapping_in", 2, 12, 1),
        Place(Site("albert.encoder.albert_layer_groups.0.albert_layers.0", call=1), 2, 12, 1),
        Place("albert.pooler_activation", 1, 12),
        quick=True,
    ),
    entry(
        "DeBERTa-v2",
        made("DebertaV2", **SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        Place("deberta.encoder.layer.0", 2, 12, 1, item=0),
        Place("deberta.encoder.layer.1.attention.output", 2, 12, 1),
        Place("pooler", 1, 12),
    ),
    entry(
        "ELECTRA",
        made("Electra", **SIZES, embedding_size=10),
        Place("electra.embeddings_project", 2, 12, 1),
        Place("electra.encoder.layer.1", 2, 12, 1),
        Place("classifier.activation", 1, 12),
    ),
    entry(
        "MPNet",
        made("MPNet", **SIZES),
        Place("mpnet.encoder.layer.0", 2, 12, 1, item=0),
        Place("mpnet.encoder.layer.1.attention.LayerNorm", 2, 12, 1),
        Place("classifier.dense", 1, 12),
        inputs=tokens(pad=1),
    ),
    entry(
        "ModernBERT",
        made(
            "ModernBert",
            **SIZES,
            pad_token_id=0,
            cls_token_id=3,
            sep_token_id=4,
            bos_token_id=3,
            eos_token_id=4,
            global_attn_every_n_layers=2,
            local_attention=4,
        ),
        Place("model.layers.0.attn", 2, 12, 1, item=0),
        Place("model.layers.1.mlp", 2, 12, 1),
        Place("head", 1, 12),
    ),
    entry(
        "RoFormer",
        made("RoFormer", **SIZES, embedding_size=12),
        Place(Site("roformer.encoder.layer.0", item=0), 2, 12, 1, item=0),
        Place("roformer.encoder.layer.1.output", 2, 12, 1),
        Place("classifier.dense", 1, 12),
    ),
    entry(
        "ConvBERT",
        made("ConvBert", **{**SIZES, "num_attention_heads": 4}, embedding_size=12, head_ratio=2),
        Place(Site("convbert.encoder.layer.0.attention.self", item=0), 2, 12, 1, item=0),
        Place("convbert.encoder.layer.0.attention.self.key_conv_attn_layer", 1, 6, 2),
        Place("convbert.encoder.layer.1", 2, 12, 1),
    ),
    entry(
        "SqueezeBERT",
        made("SqueezeBert", **SIZES, embedding_size=12),
        Place("transformer.encoder.layers.0.post_attention.layernorm", 1, 12, 2),
        Place("transformer.encoder.layers.1.intermediate", 1, 20, 2),
        Place("transformer.pooler", 1, 12),
        quick=True,
    ),
    entry(
        "Nystromformer",
        made("Nystromformer", **SIZES, segment_means_seq_len=8, num_landmarks=8, conv_kernel_size=3),
        Place("nystromformer.encoder.layer.0", 2, 12, 1, item=0),
        Place("nystromformer.encoder.layer.1.attention.self", 2, 12, 1, item=0),
        Place("nystromformer.encoder.layer.1.output", 2, 12, 1),
        inputs=tokens(8),
    ),
    entry(
        "Longformer",
        made("Longformer", **SIZES, attention_window=4, pad_token_id=1),
        Place("longformer.encoder.layer.0", 2, 12, 1, item=0),
        Place("longformer.encoder.layer.1.intermediate", 2, 20, 1),
        Place("classifier.dense", 1, 12),
        inputs=tokens(8, pad=1),
    ),
    entry(
        "BigBird",
        made("BigBird", **SIZES, attention_type="original_full"),
        Place("bert.encoder.layer.0", 2, 12, 1),
        Place("bert.encoder.layer.1.output", 2, 12, 1),
        Place("classifier.dense", 1, 12),
    ),
    entry(
        "Funnel",
        made(
            "Funnel",
            vocab_size=VOCABULARY,
            block_sizes=[1, 1],
            d_model=12,
            n_head=2,
            d_head=6,
            d_inner=20,
            num_decoder_layers=1,
        ),
        Place("funnel.encoder.blocks.0.0.ffn", 2, 12, 1),
        Place("funnel.encoder.blocks.1.0", 2, 12, item=0),  # half as many positions, which have no mask
        Place("classifier.linear_hidden", 1, 12),
    ),
    entry(
        "Perceiver on text",
        made(
            "Perceiver",
            vocab_size=VOCABULARY,
            num_latents=5,
            d_latents=14,
            d_model=12,
            num_blocks=1,
            num_self_attends_per_block=2,
            num_self_attention_heads=2,
            num_cross_attention_heads=2,
            max_position_embeddings=32,
        ),
        Place("perceiver.encoder.cross_attention.mlp", 2, 14),
        Place("perceiver.encoder.self_attends.0.attention", 2, 14, item=0),
        Place("perceiver.encoder.self_attends.1", 2, 14, item=0),
    ),
]

DECODERS = [
    entry(
        "Reformer",
        made(
            "Reformer",
            vocab_size=VOCABULARY, hidden_size=12, num_attention_heads=2, attention_head_size=6, feed_forward_size=20,
            attn_layers=["local", "local"], axial_pos_embds=False, max_position_embeddings=32,
            local_attn_chunk_length=4, is_decoder=False,
        ),
        Place("reformer.embeddings", 2, 12, 1, refused="its own backward pass refuses evaluation mode"),
        Place("reformer.encoder.layers.1.feed_forward", 2, 12, 1, refused="it runs without a graph"),
        Place("reformer.encoder.layer_norm", 2, 24, 1),
        inputs=tokens(8),
    ),
    entry(
        "GPT-2",
        made("GPT2", vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=2, n_positions=32, pad_token_id=0),
        Place("transformer.h.0.mlp.act", 2, 48, 1),
        Place("transformer.h.1.attn", 2, 12, 1, item=0),
        Place("transformer.ln_f", 2, 12, 1),
        quick=True,
    ),
    entry(
        "GPT-2, heads and last token",
        made("GPT2", vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=2, n_positions=32, pad_token_id=0),
        Place(Site("transformer.h.0.attn.c_proj", side="input", group=6), 2, 2, 1),
        Place(Site("transformer.h.0", position=-1), 2, 12, 1),
        Place(Site("transformer.ln_f", position=-1), 2, 12, 1),
    ),
    entry(
        "OPT",
        made(
            "OPT",
            vocab_size=VOCABULARY,
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=20,
            max_position_embeddings=32,
            word_embed_proj_dim=10,
            pad_token_id=0,
        ),
        Place("model.decoder.layers.0", 2, 12, 1),
        Place("model.decoder.layers.1.fc1", 1, 20, refused="the tokens of all samples are in one row"),
        Place("model.decoder.final_layer_norm", 2, 12, 1),
    ),
    entry(
        "Llama",
        made("Llama", **DECODER),
        Place("model.layers.0.mlp.act_fn", 2, 20, 1),
        Place("model.layers.1.self_attn", 2, 12, 1, item=0),
        Place("model.norm", 2, 12, 1),
        quick=True,
    ),
    entry(
        "Mistral",
        made("Mistral", **DECODER),
        Place("model.layers.0.mlp", 2, 12, 1),
        Place("model.layers.1.input_layernorm", 2, 12, 1),
        Place("model.layers.1", 2, 12, 1),
    ),
    entry(
        "Qwen2",
        made("Qwen2", **DECODER),
        Place("model.layers.0", 2, 12, 1),
        Place("model.layers.1.post_attention_layernorm", 2, 12, 1),
        Place("model.layers.1.mlp.act_fn", 2, 20, 1),
    ),
    entry(
        "Gemma",
        made("Gemma", **DECODER),
        Place("model.layers.0.input_layernorm", 2, 12, 1),
        Place("model.layers.0.mlp", 2, 12, 1),
        Place("model.norm", 2, 12, 1),
    ),
    entry(
        "Mixtral",
        made("Mixtral", **DECODER, num_local_experts=3, experts_implementation="eager"),
        Place("model.layers.0.mlp", 2, 12, 1),
        Place("model.layers.1.self_attn", 2, 12, 1, item=0),
        Place("model.norm", 2, 12, 1),
    ),
    entry(
        "GPT-NeoX",
        made("GPTNeoX", **SIZES, pad_token_id=0),
        Place("gpt_neox.layers.0.attention", 2, 12, 1, item=0),
        Place("gpt_neox.layers.1.mlp.act", 2, 20, 1),
        Place("gpt_neox.layers.1", 2, 12, 1),
    ),
    entry(
        "BLOOM",
        made("Bloom", vocab_size=VOCABULARY, hidden_size=12, n_layer=2, n_head=2, pad_token_id=0),
        Place(Site("transformer.h.0", item=0), 2, 12, 1, item=0),
        Place("transformer.h.1.mlp.gelu_impl", 2, 48, 1),
        Place("transformer.ln_f", 2, 12, 1),
    ),
    entry(
        "XLNet",
        made("XLNet", vocab_size=VOCABULARY, d_model=12, n_layer=2, n_head=2, d_inner=20),
        Place(Site("transformer.layer.0", sample_axis=1), 2, 12, 0, samples=1, item=0),
        Place(Site("transformer.layer.1.ff.layer_1", sample_axis=1), 2, 20, 0, samples=1),
        Place("sequence_summary.activation", 1, 12),
        inputs=tokens(left=True, pad=5),
    ),
    entry(
        "XLNet, as many tokens as samples",
        made("XLNet", vocab_size=VOCABULARY, d_model=12, n_layer=2, n_head=2, d_inner=20),
        Place(Site("transformer.layer.0", sample_axis=1), 2, 12, 0, samples=1, item=0),
        Place("transformer.layer.1.ff", 2, 12, 0, samples=1),
        Place("sequence_summary.summary", 1, 12),
        inputs=tokens(8, left=True, pad=5),
    ),
]  # fmt: skip

BOTH = [
    entry(
        "T5",
        made(
            "T5",
            vocab_size=VOCABULARY, d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2, decoder_start_token_id=0,
        ),
        Place(Site("transformer.encoder.block.0", item=0), 2, 12, 1, item=0),
        Place("transformer.decoder.block.0.layer.2", 2, 12, 1),
        Place("classification_head.dense", 1, 12),
        inputs=tokens(end=1),
        quick=True,
    ),
    entry(
        "BART",
        made(
            "Bart",
            vocab_size=VOCABULARY, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=20, max_position_embeddings=32,
        ),
        Place("model.encoder.layers.0.activation_fn", 2, 20, 1),
        Place("model.decoder.layers.0", 2, 12, 1),
        Place("classification_head.dense", 1, 12),
        inputs=tokens(end=2, pad=1),
    ),
]  # fmt: skip

ENTRIES = [*ENCODERS, *DECODERS, *BOTH]
