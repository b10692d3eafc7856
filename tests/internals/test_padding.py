"""Masks of tokens under any name and in any form: read rightly, or not used and noted."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import Site, ablate, neuron_importance
from lightning_neuroimp.batches.fields import find_tokens, tokens_and_doubt
from lightning_neuroimp.capture.forward import forward_logits
from lightning_neuroimp.errors import InvalidArgument

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

LENGTHS = [7, 3, 5, 4, 7, 2]
MASK = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
IDS = torch.randint(1, 40, MASK.shape, generator=torch.Generator().manual_seed(1)).where(MASK, 0)
Y = torch.arange(6) % 2
LEFT = MASK.flip(1)
HIDE = {"large": -1e4, "infinite": -torch.inf, "smallest": torch.finfo(torch.float32).min, "a billion": -1e9}


def additive(mask, hide):
    return torch.zeros(mask.shape).masked_fill(~mask, hide)


KNOWN = {
    "attention_mask": MASK.long(),
    "input_mask": MASK.long(),
    "valid_mask": MASK,
    "non_pad_mask": MASK,
    "is_real_token": MASK,
    "pad_mask": ~MASK,
    "padding_mask": ~MASK,
    "src_key_padding_mask": ~MASK,
    "is_pad": (~MASK).float(),
    "ignore_mask": ~MASK,
}


@pytest.mark.parametrize("name", KNOWN)
def test_names_that_say_what_they_mean(name):
    for mask in (KNOWN[name], KNOWN[name][:, None, None], KNOWN[name][:, None]):
        for batch in (
            {"ids": IDS, name: mask, "label": Y},
            ({"ids": IDS, name: mask}, Y),
            {"ids": IDS, name: mask.numpy()},
        ):
            assert torch.equal(find_tokens(batch), MASK)
    assert torch.equal(find_tokens({name: KNOWN[name]}), MASK)  # no inputs of its shape are needed


SETTLED = {
    "True for tokens": lambda m: m,
    "True for padding": lambda m: ~m,
    "1 for tokens": lambda m: m.long(),
    "1 for padding": lambda m: (~m).to(torch.uint8),
    "1.0 for padding": lambda m: (~m).double(),
    **{f"added, {kind}": lambda m, hide=hide: additive(m, hide) for kind, hide in HIDE.items()},
    "added, four axes": lambda m: additive(m, -1e4)[:, None, None],
}


@pytest.mark.parametrize("kind", SETTLED)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("inputs", ["ids", "features", "ids padded with 1"])
def test_names_that_do_not_are_settled_by_the_data(kind, side, inputs):
    tokens = MASK if side == "right" else LEFT
    x = torch.randint(2, 40, tokens.shape).where(tokens, 1 if inputs.endswith("1") else 0)
    x = torch.randn(*tokens.shape, 4).where(tokens[:, :, None], 0) if inputs == "features" else x
    mask = SETTLED[kind](tokens)
    shapes = [{"x": x, name: mask, "y": Y} for name in ("mask", "masks", "token_mask", "m", "where_tokens_are")]
    for batch in [*shapes, (x, Y, mask), [x, Y, mask], ((x, mask), Y), ([x, mask], Y), ({"x": x, "mask": mask}, Y)]:
        found = tokens_and_doubt(batch)
        assert torch.equal(found.tokens, tokens)
        assert not found.doubt
    for row in range(6):  # also alone, as passes may hold one sample
        found = tokens_and_doubt({"x": x[row : row + 1], "mask": mask[row : row + 1]})
        assert torch.equal(found.tokens, tokens[row : row + 1])


def test_a_name_that_is_used_the_other_way_round_is_found_out():
    assert torch.equal(find_tokens({"x": IDS, "padding_mask": MASK}), MASK)  # as some audio models have it
    assert torch.equal(find_tokens({"x": IDS, "valid": ~MASK}), MASK)


@pytest.mark.parametrize("name", ["attention_mask", "src_key_padding_mask", "mask"])
@pytest.mark.parametrize("kind", HIDE)
def test_additive_masks_hide_what_is_very_negative(name, kind):
    for mask in (additive(MASK, HIDE[kind]), additive(MASK, HIDE[kind])[:, None, None]):
        assert torch.equal(find_tokens({"x": IDS, name: mask}), MASK)
    if name != "mask":
        assert find_tokens({"x": IDS, name: torch.zeros(6, 7)}).all()  # nothing is hidden


@pytest.mark.parametrize(
    "batch",
    [
        {"mask": MASK},
        {"x": torch.randint(1, 9, MASK.shape), "mask": MASK},  # padding that is not one value
        {"x": IDS, "mask": torch.rand(6, 7) < 0.5},  # not at one end
        (torch.randint(1, 9, MASK.shape), Y, MASK),
        {"x": torch.randn(6, 7, 2), "keep_these": MASK},
        {"x": torch.ones(6, 7, dtype=torch.long), "mask": MASK},
    ],
)
def test_what_cannot_be_settled_is_not_used_and_noted(batch):
    if isinstance(batch, dict) and "keep_these" in batch:  # its name says it
        assert torch.equal(find_tokens(batch), MASK)
        return
    found = tokens_and_doubt(batch)
    assert found.tokens is None
    for phrase in ("may be a mask of tokens", "whether its padding is True or False cannot be told"):
        assert phrase in found.doubt


@pytest.mark.parametrize(
    "batch",
    [
        {"ids": IDS, "token_type_ids": MASK.long(), "label": Y},
        {"ids": IDS, "special_tokens_mask": MASK.long()},
        {"ids": IDS, "decoder_attention_mask": MASK.long()},
        {"ids": IDS, "global_attention_mask": MASK.long()},
        {"ids": IDS, "label": MASK.long()},
        {"ids": IDS, "is_verb": torch.randint(2, (6, 7))},
        {"image": torch.randn(6, 3, 5, 5), "mask": torch.ones(6, 5, 5)},
        (IDS, MASK.long()),  # targets
        (torch.randn(6, 7), Y),
    ],
)
def test_what_is_no_mask_is_neither_used_nor_noted(batch):
    assert tokens_and_doubt(batch) == (None, "")


def test_masks_that_differ_and_lengths():
    for first in ("mask", "valid_mask"):
        found = tokens_and_doubt({"x": IDS, first: MASK, "is_real": MASK & (torch.arange(7) < 6)})
        assert found == (None, "the batch holds 2 masks of tokens that differ")
    assert torch.equal(find_tokens({"x": IDS, "mask": MASK, "pad_mask": ~MASK}), MASK)
    per_query = tokens_and_doubt({"x": IDS, "attention_mask": MASK[:, None].expand(6, 7, 7)})
    assert per_query == (None, "'attention_mask' of the batch has shape (6, 7, 7), not (sample, token)")
    for name in ("lengths", "length", "seq_lens", "input_length"):
        assert torch.equal(find_tokens({"x": IDS, name: torch.tensor(LENGTHS)}), MASK)
        assert torch.equal(find_tokens(({"x": IDS, name: torch.tensor(LENGTHS)}, Y)), MASK)
    assert (
        "some samples are padded" in tokens_and_doubt({"x": LEFT * IDS.flip(1), "length": torch.tensor(LENGTHS)}).doubt
    )
    assert tokens_and_doubt({"x": torch.randn(6, 3), "length": torch.tensor([180] * 6)}) == (None, "")


class Pooled(nn.Module):
    """Reads the tokens that its mask keeps; its site sees all of them."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.head = (
            nn.Embedding(40, 6),
            nn.Sequential(nn.Linear(6, 5), nn.Tanh()),
            nn.Linear(5, 2),
        )
        self.mix = nn.Linear(7, 7)

    def forward(self, x, mask):
        if mask.is_floating_point():
            mask = mask == 0
        h = self.layer(self.embed(x))
        return self.head((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) + 0.1 * h.square().sum(1))


def twin(model, ids, mask, y):
    """Activations' effects to first order, one sample at a time, at its tokens only."""
    scores = []
    for row in range(len(ids)):
        h = model.layer(model.embed(ids[row : row + 1])).detach().requires_grad_()
        keep = mask[row : row + 1]
        z = model.head((h * keep[..., None]).sum(1) / keep.sum(1, keepdim=True) + 0.1 * h.square().sum(1))[0]
        (slope,) = torch.autograd.grad(z[y[row]] - z[1 - y[row]], h)
        scores.append((h.detach() * slope)[0][mask[row]].sum(0))
    return torch.stack(scores)


@pytest.mark.parametrize("kind", ["bool", "ints", "added", "third"])
def test_padding_does_not_count_under_any_name(kind):
    model = Pooled()
    mask = {"bool": MASK, "ints": MASK.long(), "added": additive(MASK, -1e4), "third": MASK}[kind]
    batches = [{"x": IDS, "mask": mask, "label": Y}] if kind != "third" else [(IDS, Y, mask)]
    forward = None if kind != "third" else lambda model, batch: (model(batch[0], batch[2]), batch[1])
    results = neuron_importance(model, batches, layers="layer", forward_fn=forward, batch_size=4)
    expected = twin(model, IDS, MASK, Y)
    for row, label in enumerate(results["layer"].cluster_ids):
        np.testing.assert_allclose(results["layer"].mean[row], expected[label == Y].mean(0), atol=1e-5)
    assert not any("padding" in note for note in results.notes)


def test_a_mask_that_cannot_be_read_is_noted_and_forward_fn_settles_it():
    model, ids = Pooled(), torch.randint(1, 40, MASK.shape)
    batch = {"x": ids, "mask": MASK, "label": Y}
    note = "".join(neuron_importance(model, [batch], layers="layer").notes)
    for phrase in (
        "layer: 'mask' of the batch may be a mask",
        "so that padding may count here",
        "(logits, targets, tokens)",
    ):
        assert phrase in note
    for tokens in (MASK, None):
        settled = neuron_importance(
            model, [batch], layers="layer",
            forward_fn=lambda model, batch, tokens=tokens: (
                model(batch["x"], batch["mask"]), batch["label"], None if tokens is None else batch["mask"]
            ),
        )  # fmt: skip
        assert not any("padding" in one for one in settled.notes)
    expected = twin(model, ids, MASK, Y)
    assert forward_logits(model, batch, None).doubt
    settled = neuron_importance(
        model, [batch], layers="layer",
        forward_fn=lambda model, batch: (model(batch["x"], batch["mask"]), batch["label"], batch["mask"]),
    )  # fmt: skip
    for row, label in enumerate(settled["layer"].cluster_ids):
        np.testing.assert_allclose(settled["layer"].mean[row], expected[label == Y].mean(0), atol=1e-5)


class Latents(nn.Module):
    """Has positions that are no tokens, and a recurrent layer with its last state."""

    def __init__(self):
        super().__init__()
        self.embed, self.query = nn.Embedding(40, 6), nn.Parameter(torch.randn(3, 6))
        self.latent, self.rnn, self.head = nn.Linear(6, 6), nn.LSTM(6, 5, 2, batch_first=True), nn.Linear(16, 2)

    def forward(self, x, attention_mask):
        h = self.embed(x)
        bias = (attention_mask == 0)[:, None] * -1e9
        latents = self.latent((self.query @ h.mT + bias).softmax(-1) @ h)
        outputs, (states, _) = self.rnn(h)
        return self.head(torch.cat([latents.mean(1), outputs.mean(1), states[-1]], 1))


def test_positions_that_are_no_tokens_have_no_fault():
    sites = ["latent", Site("rnn", item=(1, 0), sample_axis=1), Site("rnn", item=0)]
    batch = {"x": IDS, "attention_mask": MASK.long(), "label": Y}
    notes = [one for one in neuron_importance(Latents(), [batch], layers=sites).notes if "padding" in one]
    assert len(notes) == 1
    assert notes[0].startswith(
        "latent: if its positions are tokens, padding counts there: the mask has 7 tokens and the"
    )


def test_ablate_finds_the_mask_or_says_that_it_cannot():
    model = Pooled()
    site = Site("layer", position=-1)
    with torch.no_grad():
        h = model.layer(model.embed(IDS))
        last = MASK.sum(1) - 1
        h[torch.arange(6), last] = 0
        expected = model.head((h * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True) + 0.1 * h.square().sum(1))
        for mask in (MASK, additive(MASK, -1e4)):
            with ablate(model, site, range(5)):
                assert torch.allclose(model(IDS, mask), expected, atol=1e-6)
        ids = torch.randint(1, 40, MASK.shape)
        with ablate(model, site, range(5)), pytest.raises(InvalidArgument) as error:
            model(ids, MASK)
        for phrase in ("position=-1", "'mask' of the batch may be a mask", "pass tokens="):
            assert phrase in str(error.value)
        with ablate(model, site, range(5), tokens=MASK):
            model(ids, MASK)
        with ablate(model, Site("layer", position=0), range(5)):
            model(ids, MASK)


class Heads(nn.Module):
    """Has (sample, token, head, channel) activations, or the heads before the tokens."""

    def __init__(self, heads_first):
        super().__init__()
        self.embed, self.value, self.head = nn.Embedding(40, 6), nn.Linear(6, 8), nn.Linear(8, 2)
        self.scale, self.heads_first = nn.Linear(4, 4), heads_first

    def forward(self, x, attention_mask):
        h = self.value(self.embed(x)).unflatten(2, (2, 4))
        h = self.scale(h.transpose(1, 2)).transpose(1, 2) if self.heads_first else self.scale(h)
        keep = (attention_mask != 0)[..., None, None]
        pooled = (h.tanh() * keep).sum(1) / keep.sum(1) + 0.1 * h.square().sum(1)
        return self.head(pooled.flatten(1))


def heads_twin(model, h, ids, mask, y, zeroed=None):
    """Margins of samples, one at a time, for (token, head, channel) activations at their tokens."""
    margins = []
    for row in range(len(ids)):
        kept = mask[row]
        z = model.head((h[row].tanh()[kept].mean(0) + 0.1 * h[row].square().sum(0)).flatten())
        margins.append(z[y[row]] - z[1 - y[row]])
    return torch.stack(margins)


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_padding_does_not_count_where_tokens_have_heads(heads_first, baseline):
    model = Heads(heads_first)
    batch = {"x": IDS, "attention_mask": MASK.long(), "label": Y}
    site = Site("scale", axis=3)
    results = neuron_importance(model, [batch], layers=site, baseline=baseline, batch_size=4)
    h = model.scale(model.value(model.embed(IDS)).unflatten(2, (2, 4))).detach()
    base = h[MASK].flatten(0, 1).mean(0) if baseline == "mean" else torch.zeros(4)
    leaf = h.clone().requires_grad_()
    (slope,) = torch.autograd.grad(heads_twin(model, leaf, IDS, MASK, Y).sum(), leaf)
    expected = ((h - base) * slope * MASK[:, :, None, None]).sum((1, 2))
    one = results[str(site)]
    for row, label in enumerate(one.cluster_ids):
        np.testing.assert_allclose(one.mean[row], expected[label == Y].mean(0), atol=1e-5)
    axis = 2 if heads_first else 1
    assert any(f"axis {axis} of its shape" in note and "by its length" in note for note in results.notes)
    removed = torch.where(MASK[:, :, None, None] & (torch.arange(4) == 1), base, h)
    drop = heads_twin(model, h, IDS, MASK, Y) - heads_twin(model, removed, IDS, MASK, Y)
    effects = neuron_importance(model, [batch], layers=site, baseline=baseline, attribution="leave_one_out")[str(site)]
    for row, label in enumerate(effects.cluster_ids):
        np.testing.assert_allclose(effects.mean[row, 1], drop[label == Y].mean().detach(), atol=1e-5)


def test_two_axes_as_long_as_the_mask_are_noted():
    model = Heads(False)
    ids, mask = IDS[:, :2], torch.tensor([[1, 1], [1, 0]] * 3)
    site = Site("scale", axis=3)
    results = neuron_importance(model, [{"x": ids, "attention_mask": mask, "label": Y}], layers=site)
    note = next(note for note in results.notes if "padding counts there" in note)
    for phrase in ("if its positions are tokens", "as axes [1, 2] of its shape", "None in place of tokens"):
        assert phrase in note


def test_resampling_with_several_axes_of_positions_is_refused():
    batch = {"x": IDS, "attention_mask": MASK.long(), "label": Y}
    with pytest.raises(
        InvalidArgument, match=r"needs one axis of positions where tokens are padded.*use baseline='mean'"
    ):
        neuron_importance(Heads(False), [batch], layers=Site("scale", axis=3), baseline="resample")


@pytest.mark.parametrize("name", ["mask", "valid_mask", "pairs", "attention_mask"])
@pytest.mark.parametrize("heads", [False, True])
def test_a_mask_of_pairs_of_tokens_is_noted(name, heads):
    ids = torch.tensor([[5, 7, 0], [4, 0, 0]])
    real = ids != 0
    square = real[:, None, :] & real[:, :, None]
    reading = tokens_and_doubt({"ids": ids, name: square[:, None] if heads else square, "label": torch.zeros(2)})
    assert reading.tokens is None
    assert f"{name!r} of the batch has shape" in reading.doubt
    assert "not (sample, token)" in reading.doubt
    pictures = {"ids": torch.randn(2, 3, 8, 8), name: torch.randn(2, 4, 8, 8) > 0, "label": torch.zeros(2)}
    assert "(2, 4, 8, 8)" not in tokens_and_doubt(pictures).doubt or name == "attention_mask"


WORDS = torch.tensor([[5, 7, 3, 0], [4, 2, 0, 0], [9, 8, 7, 6]])
WORDS_REAL = WORDS != 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mask", WORDS_REAL[:, :, None]),
        ("attention_mask", WORDS_REAL[:, :, None].long()),
        ("n_tokens", WORDS_REAL.sum(1)),
        ("duration", WORDS_REAL.sum(1)),
    ],
)
def test_masks_with_an_axis_of_one_and_numbers_of_tokens_are_read(name, value):
    assert torch.equal(find_tokens({"ids": WORDS, name: value, "label": torch.zeros(3)}), WORDS_REAL)


@pytest.mark.parametrize("name", ["image_mask", "image_token_mask", "prompt_mask", "label_mask", "span_mask"])
def test_masks_of_something_else_are_no_padding(name):
    """Placeholders of pictures are one and the same token, as padding is."""
    ids = torch.tensor([[1, 1, 5, 7], [1, 1, 4, 2]])
    reading = tokens_and_doubt({"ids": ids, name: ids == 1, "label": torch.zeros(2)})
    assert reading.tokens is None
