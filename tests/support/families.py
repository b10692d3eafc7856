"""Build classifiers of many kinds with their batches; `twin.py` is a slow twin of their scores and ablations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_neuroimp import Site

N, CLASSES, LENGTH = 44, 3, 7


@dataclass
class Family:
    """Hold a model, its batches, and one site.

    Attributes:
        model: a classifier.
        batches: as a loader yields them.
        labels: of all samples.
        site: where neurons are scored and removed.
        axis: neuron axis of the site's tensor for one sample, samples left out.
        one: gives the batch of one sample, by its number, without padding.
        logits: gives the model's logits for such a batch.
        silence: sets the weights that read a neuron to zero; None where no weights read it alone.
    """

    model: nn.Module
    batches: list[Any]
    labels: Tensor
    site: Site
    axis: int
    one: Callable[[int], Any]
    logits: Callable[[nn.Module, Any], Tensor]
    silence: Callable[[nn.Module, int], None] | None = None


def pairs(x, y, size=16):
    return list(zip(x.split(size), y.split(size), strict=True))


def plain(model, x, site, axis, silence=None, y=None, logits=None):
    """Return a family whose model takes one tensor, with batches (x, y)."""
    y = torch.randint(CLASSES, (len(x),)) if y is None else y
    logits = logits or (lambda model, batch: model(batch[0]))
    one = lambda sample: (x[sample : sample + 1], y[sample : sample + 1])  # noqa: E731
    return Family(model, pairs(x, y), y, site, axis, one, logits, silence)


def columns(weight, neuron, width=1):
    with torch.no_grad():
        weight[:, neuron * width : (neuron + 1) * width] = 0


def mlp():
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, CLASSES))
    return plain(model, torch.randn(N, 5), Site("1"), 0, lambda model, j: columns(model[2].weight, j))


def cnn():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, CLASSES),
    )  # fmt: skip
    for norm in (model[1], model[5]):
        nn.init.normal_(norm.running_mean, 0, 0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return plain(model, torch.randn(N, 1, 6, 6), Site("2"), 0, lambda model, j: columns(model[4].weight, j))


class Residual(nn.Module):
    """Calls a ReLU twice that works in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        out = self.conv2(self.relu(self.conv1(x)))
        out += x
        return self.head(self.relu(out).mean((2, 3)))


def residual():
    return plain(Residual(), torch.randn(N, 1, 5, 5), Site("relu", call=0), 0, lambda m, j: columns(m.conv2.weight, j))


def residual_end():
    return plain(Residual(), torch.randn(N, 1, 5, 5), Site("relu", call=1), 0, lambda m, j: columns(m.head.weight, j))


def head_input():
    return plain(
        Residual(), torch.randn(N, 1, 5, 5), Site("head", side="input"), 0, lambda m, j: columns(m.head.weight, j)
    )


class Around(nn.Module):
    """Reads what goes into a layer again after it; removal replaces only the layer's own input."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.layer, self.head = nn.Linear(5, 4), nn.Dropout(), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.head(h * h + torch.tanh(self.layer(self.drop(h))))


def residual_around():
    return plain(Around(), torch.randn(N, 5), Site("layer", side="input"), 0, lambda m, j: columns(m.layer.weight, j))


def identity_around():
    return plain(Around(), torch.randn(N, 5), Site("drop"), 0, lambda m, j: columns(m.layer.weight, j))


class Shared(nn.Module):
    """Has one module in three places."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return self.head(x)


def reused():
    return plain(Shared(), torch.randn(N, 6), Site("layer", call=1), 0)


class Experts(nn.Module):
    """Mixes experts that see all samples."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(5, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 6), nn.SiLU()) for _ in range(3))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        weight = self.gate(x).softmax(1)
        mixed = sum(weight[:, k : k + 1] * expert(x) for k, expert in enumerate(self.experts))
        return self.head(mixed)


def experts():
    return plain(Experts(), torch.randn(N, 5), Site("experts.1"), 0)


def binary():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    y = torch.randint(2, (N, 1)).to(torch.get_default_dtype())
    logits = lambda model, batch: F.pad(model(batch[0]), (1, 0))  # noqa: E731
    family = plain(model, torch.randn(N, 5), Site("1"), 0, lambda model, j: columns(model[2].weight, j), y, logits)
    family.labels = y.reshape(-1).long()
    return family


def padded(x, lengths):
    """Return inputs with padding that would be noticed, and the mask of their tokens."""
    mask = torch.arange(x.shape[1])[None] < lengths[:, None]
    return x.where(mask[..., None], torch.full_like(x, 17.0)) if x.ndim == 3 else x.where(mask, 0), mask


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x, src_key_padding_mask):
        h = self.encoder(x, src_key_padding_mask=src_key_padding_mask)
        real = ~src_key_padding_mask[..., None]
        return {"logits": self.head((h * real).sum(1) / real.sum(1)), "hidden": h}


def tokens_of(model, site, axis, key="src_key_padding_mask", negate=True, silence=None, x=None, name="x", logits=None):
    """Return a family with mapping batches and padding; every other batch is padded more than it needs."""
    x = torch.randn(N, LENGTH, 8) if x is None else x
    y, lengths = torch.randint(CLASSES, (N,)), torch.randint(2, LENGTH + 1, (N,))
    x, mask = padded(x, lengths)

    def batch(rows, length):
        real = mask[rows, :length]
        return {name: x[rows, :length], key: ~real if negate else real.long(), "labels": y[rows]}

    parts = torch.arange(N).split(16)
    sizes = [LENGTH, int(lengths[parts[1]].max()), LENGTH]
    batches = [batch(rows, size) for rows, size in zip(parts, sizes, strict=True)]
    one = lambda sample: batch(torch.tensor([sample]), int(lengths[sample]))  # noqa: E731
    logits = logits or (lambda model, one: model(**{k: v for k, v in one.items() if k != "labels"})["logits"])
    return Family(model, batches, y, site, axis, one, logits, silence)


def encoder():
    silence = lambda model, j: columns(model.encoder.layers[0].linear2.weight, j)  # noqa: E731
    return tokens_of(Encoder(), Site("encoder.layers.0.linear2", side="input"), 1, silence=silence)


class Attention(nn.Module):
    """Has two heads of width four, then a class token's logits."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.token = nn.Linear(8, 24), nn.Linear(8, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x, attention_mask):
        x = torch.cat([self.token.expand(len(x), 1, 8), x[:, 1:]], 1)  # it takes the first token's place
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        bias = (attention_mask[:, None, None] == 0).to(x.dtype) * -1e9
        heads = ((q @ k.mT / 2 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(heads))[:, 0]), heads


def attention():
    return tokens_of(
        Attention(), Site("out", side="input", group=4), 1, "attention_mask", negate=False,
        silence=lambda model, j: columns(model.out.weight, j, 4),
        logits=lambda model, one: model(one["x"], one["attention_mask"])[0],
    )  # fmt: skip


def class_token():
    family = attention()
    family.site, family.silence = Site("out", position=0), None
    return family


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn, self.head = kind(8, 6, **options), nn.Linear(6, CLASSES)

    def forward(self, x, attention_mask):
        out = self.rnn(x)[0]
        last = attention_mask.sum(1).long() - 1
        return self.head(out[torch.arange(len(out)), last] + out[:, 0])


def lstm():
    model = Recurrent(nn.LSTM, batch_first=True)
    logits = lambda model, one: model(one["x"], one["attention_mask"])  # noqa: E731
    silence = lambda model, j: columns(model.head.weight, j)  # noqa: E731
    return tokens_of(model, Site("rnn"), 1, "attention_mask", negate=False, logits=logits, silence=silence)


def last_token():
    family = lstm()
    family.site, family.silence = Site("rnn", item=0, position=-1), None
    return family


class TimeFirst(nn.Module):
    """Has its samples on axis 1, as recurrent layers do by default."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 6, 2), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.rnn(x.transpose(0, 1))[1][-1] ** 2)


def gru_states():
    return plain(TimeFirst(), torch.randn(N, 5, 8), Site("rnn", item=1), 1)


def gru():
    class Outputs(TimeFirst):
        def forward(self, x):
            return self.head(self.rnn(x.transpose(0, 1))[0].mean(0))

    return plain(Outputs(), torch.randn(N, 5, 8), Site("rnn"), 1, lambda m, j: columns(m.head.weight, j))


def seq_first_encoder():
    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 1, enable_nested_tensor=False)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.head(self.encoder(x.transpose(0, 1)).mean(0))

    return plain(
        SequenceFirst(), torch.randn(N, 5, 8), Site("encoder.layers.0.linear2", side="input"), 1,
        lambda m, j: columns(m.encoder.layers[0].linear2.weight, j),
    )  # fmt: skip


def bert(site=None, axis=1, silence=None):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        num_labels=CLASSES, max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    for parameter in model.parameters():  # its own start is too near to zero to tell anything apart
        nn.init.normal_(parameter, 0, 0.4)
    silence = silence or (lambda model, j: columns(model.bert.encoder.layer[0].output.dense.weight, j))
    return tokens_of(
        model, site or Site("bert.encoder.layer.0.intermediate"), axis, "attention_mask", negate=False, silence=silence,
        x=torch.randint(1, 40, (N, LENGTH)), name="input_ids",
        logits=lambda model, one: model(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits,
    )  # fmt: skip


def bert_heads():
    return bert(
        Site("bert.encoder.layer.1.attention.self", item=0, group=4), 1,
        lambda model, j: columns(model.bert.encoder.layer[1].attention.output.dense.weight, j, 4),
    )  # fmt: skip


def bert_class_token():
    family = bert(Site("bert.encoder.layer.0", position=0))
    family.silence = None
    return family


FAMILIES = {
    function.__name__: function
    for function in (
        mlp,
        cnn,
        residual,
        residual_end,
        head_input,
        residual_around,
        identity_around,
        reused,
        experts,
        binary,
        encoder,
        seq_first_encoder,
        attention,
        class_token,
        lstm,
        last_token,
        gru,
        gru_states,
        bert,
        bert_heads,
        bert_class_token,
    )
}
