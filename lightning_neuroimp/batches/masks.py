"""Read masks of tokens: which of their values stand for padding.

A name such as `attention_mask` says it; `mask` does not. Where a name does not say it, the data may: padding is at one
end of every row, and the inputs have one and the same value there. What cannot be settled is not used.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

FIXED = {"attention_mask": True, "src_key_padding_mask": False, "key_padding_mask": False}
"""Names of token masks that torch and Hugging Face define, and whether they are True for tokens."""

_OTHERS = frozenset(
    (
        "special",
        "mlm",
        "masked",
        "loss",
        "head",
        "global",
        "causal",
        "decoder",
        "cross",
        "type",
        "segment",
        "position",
        "image",
        "images",
        "visual",
        "vision",
        "video",
        "prompt",
        "label",
        "labels",
        "target",
        "targets",
        "span",
        "answer",
        "entity",
        "edge",
        "box",
        "boxes",
        "pixel",
        "pixels",
    )
)  # words in the names of what is no mask of padding

_TOKENS = frozenset(("valid", "real", "keep", "attend", "attention", "observed", "present"))
_PADDING = frozenset(("invalid", "ignore", "ignored", "missing"))
_NEGATIONS = frozenset(("non", "not", "no", "un"))

_HIDES = -30.0  # an additive mask: at most e**-30 of the attention is left


class Part(NamedTuple):
    """Hold a tensor of a batch's inputs, and its name or place there.

    Attributes:
        name: of its field; a place in a sequence has none.
        place: in words, for messages.
        tensor: the tensor.
    """

    name: str | None
    place: str
    tensor: Tensor


class Reading(NamedTuple):
    """Hold what is known of a mask.

    Attributes:
        tokens: (sample, token), True for non-padding tokens; None if it is no mask, or this is not known.
        doubt: why it may be one and is not used; empty if there is no doubt.
    """

    tokens: Bool[Tensor, "sample token"] | None
    doubt: str = ""


NOTHING = Reading(None)


def is_mask_name(name: str | None) -> bool:
    """Tell whether a field's name says that it is a mask of tokens.

    >>> is_mask_name("mask"), is_mask_name("valid_tokens"), is_mask_name("special_tokens_mask"), is_mask_name("image")
    (True, True, False, False)
    """
    words = _words(name)
    known = words & (_TOKENS | _PADDING | {"mask", "masks"}) or any("pad" in word for word in words)
    return bool(known) and not words & _OTHERS


def keeps_tokens(name: str | None) -> bool | None:
    """Tell whether a mask of this name is True for tokens, or for padding; None where the name does not say it.

    >>> keeps_tokens("input_mask"), keeps_tokens("pad_mask"), keeps_tokens("non_pad_mask"), keeps_tokens("mask")
    (True, False, True, None)
    """
    words = _words(name)
    if not is_mask_name(name):
        return None
    if any("pad" in word for word in words):
        return bool(words & _NEGATIONS) or any(word.startswith(("nonpad", "unpad", "notpad")) for word in words)
    if words & _PADDING:
        return False
    return True if words & _TOKENS or words >= {"input", "mask"} else None


def _words(name: str | None) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower())) if isinstance(name, str) else set()


def read_mask(part: Part, others: Sequence[Tensor]) -> Reading:
    """Read one tensor of a batch as a mask of tokens.

    Args:
        part: the tensor.
        others: the other tensors of the inputs. Those of shape (sample, token, ...) settle which value is padding.
    """
    mask, fixed = _flat(part.tensor), FIXED.get(part.name or "")
    if mask is None and (fixed is not None or _is_per_query(part, others)):
        return Reading(None, f"{part.place} of the batch has shape {tuple(part.tensor.shape)}, not (sample, token)")
    if mask is None or mask.is_complex() or _words(part.name) & _OTHERS:
        return NOTHING
    if fixed is not None:
        return Reading(_by_name(mask, fixed))
    inputs = [one for one in others if one.ndim > 1 and one.shape[:2] == mask.shape and not one.is_complex()]
    inputs = [one for one in inputs if not one.is_floating_point() or one.ndim > 2 or not mask.is_floating_point()]
    hinted = is_mask_name(part.name)
    if not hinted and not inputs:
        return NOTHING
    if not hinted and not mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
        return NOTHING
    seen = _evidence(mask, inputs)
    if mask.is_floating_point() and seen.additive:
        return Reading(mask == 0)
    if not seen.binary or (seen.constant and not hinted):
        return NOTHING
    on = mask != 0
    known = keeps_tokens(part.name)
    keeps = _direction(seen, known)
    if keeps is None:
        plausible = not seen.constant and (hinted or mask.dtype == torch.bool)
        doubt = f"{part.place} of the batch may be a mask of tokens, but whether its padding is "
        doubt += "True or False" if mask.dtype == torch.bool else "1 or 0"
        return Reading(None, f"{doubt} cannot be told") if plausible else NOTHING
    if not hinted and (seen.padding is None or not seen.at_ends):
        return NOTHING
    return Reading(on if keeps else ~on)


def _is_per_query(part: Part, others: Sequence[Tensor]) -> bool:
    """Tell whether a tensor may say which token sees which: a square for each sample, named a mask or of booleans."""
    shape = part.tensor.shape
    square = len(shape) > 2 and shape[-1] == shape[-2] > 1
    masks = is_mask_name(part.name) or part.tensor.dtype == torch.bool
    return square and masks and any(one.shape[:2] == (shape[0], shape[-1]) for one in others)


def read_lengths(part: Part, others: Sequence[Tensor]) -> Reading:
    """Read a field of lengths, one per sample, as the mask of tokens that it stands for: padding comes last.

    Args:
        part: the field.
        others: the other tensors of the inputs. Those of shape (sample, token, ...) show whether padding comes last.
    """
    lengths = part.tensor.detach()
    words = _words(part.name)
    counts = words & {"n", "num", "number"} and words & {"tokens", "frames", "points", "steps", "words", "nodes"}
    named = any(word.startswith(("len", "duration")) for word in words) or bool(counts)
    if not named or lengths.ndim != 1 or lengths.is_floating_point() or lengths.is_complex():
        return NOTHING
    inputs = [one for one in others if one.ndim > 1 and len(one) == len(lengths) and not one.is_complex()]
    longest = int(lengths.max()) if len(lengths) else 0
    for one in inputs:
        if one.shape[1] >= longest > 1:
            tokens = torch.arange(one.shape[1], device=one.device)[None] < lengths.to(one.device)[:, None]
            seen = _evidence(tokens, [one])
            if seen.constant or seen.padding is False:
                return Reading(tokens)
    padded = bool((lengths != longest).any())
    return Reading(None, f"{part.place} of the batch says that some samples are padded") if padded else NOTHING


class _Evidence(NamedTuple):
    """Hold what a mask and the inputs say about its values.

    Attributes:
        binary: whether all are 0 or 1.
        additive: whether all are 0, which keeps, or very negative, which hides, and both occur.
        constant: whether all are the same.
        at_ends: whether each row has at most one change, as padding at one end gives it.
        full: the value of rows that have only one, if it is the same in all such rows; None: it is not, or none is.
        padding: the value where an input is the same everywhere, while it is not where the mask has the other value;
            None if inputs do not tell, or contradict each other.
    """

    binary: bool
    additive: bool
    constant: bool
    at_ends: bool
    full: bool | None
    padding: bool | None


def _direction(seen: _Evidence, known: bool | None) -> bool | None:
    """Return whether a mask is True for tokens; None if this cannot be told.

    Args:
        seen: what the data say.
        known: what the name says.
    """
    if known is not None:
        # a name may be used the other way round, as padding_mask is in some models
        return not seen.padding if seen.padding is not None and seen.at_ends else known
    if seen.constant:  # without any padding, as a sample has tokens
        return seen.full
    if not seen.at_ends or seen.padding is None or seen.full == seen.padding:
        return None
    return not seen.padding


def _evidence(mask: Tensor, inputs: Sequence[Tensor]) -> _Evidence:
    """Look at the values of a mask of shape (sample, token), with one transfer from the device."""
    on = mask != 0
    changes = (on[:, 1:] != on[:, :-1]).sum(1)
    facts = [
        ((mask == 0) | (mask == 1)).all(),
        ((mask == 0) | (mask <= _HIDES)).all() & on.any(),
        on.all() | ~on.any(),
        (changes <= 1).all(),
        on.all(1).any(),
        (~on).all(1).any(),
    ]
    for one in inputs:
        facts += [_is_single(one, on), _is_single(one, ~on)]
    binary, additive, constant, at_ends, full_on, full_off, *single = torch.stack(facts).tolist()
    votes = {where_on for where_on, where_off in zip(single[::2], single[1::2], strict=True) if where_on != where_off}
    return _Evidence(
        binary,
        additive,
        constant,
        at_ends,
        full_on if full_on != full_off else None,
        next(iter(votes)) if len(votes) == 1 else None,
    )


def _is_single(values: Tensor, chosen: Bool[Tensor, "sample token"]) -> Tensor:
    """Tell whether an input is the same at all chosen positions, of which there must be some."""
    flat = values.detach().flatten(2) if values.ndim > 2 else values.detach()[:, :, None]
    first = chosen.flatten().to(torch.int8).argmax()  # of the chosen ones; any if there are none
    like = flat.flatten(0, 1).index_select(0, first[None])
    return ((flat == like) | ~chosen[:, :, None]).all() & chosen.any()


def _by_name(mask: Tensor, keeps: bool) -> Bool[Tensor, "sample token"]:
    """Read a mask whose name says what it means, without waiting for the device.

    A floating-point mask of zeros and negative numbers is added to attention scores: 0 keeps a token.
    """
    named = mask != 0 if keeps else mask == 0
    if not mask.is_floating_point():
        return named
    additive = (mask < 0).any() | ~(mask != 0).any()
    return torch.where(additive, mask == 0, named)


def _flat(mask: Tensor) -> Tensor | None:
    """Return a mask of shape (sample, token), also of one with further axes of length 1; None for other shapes."""
    longer = [size for size in mask.shape[1:] if size != 1]
    if mask.ndim < 2 or len(longer) > 1:
        return None
    return mask.detach().reshape(mask.shape[0], longer[0] if longer else 1)
