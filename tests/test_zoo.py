"""Architectures of transformers that nobody here wrote are right, or refused in words; benchmarks/zoo.py has more."""

from dataclasses import replace

import pytest

pytest.importorskip("transformers", minversion="5.23", reason="modules have other names in older versions")

from benchmarks.zoo_models import all_entries
from benchmarks.zoo_models.comparing import compare

ENTRIES = {entry.name: entry for entry in all_entries()}
RIGHT = [
    "BERT",
    "ALBERT",
    "SqueezeBERT",
    "GPT-2",
    "T5",
    "ViT",
    "ConvNeXt",
    "wav2vec 2.0",
    "Mamba",
    "LSTM",
]
COINCIDENCES = [
    "BERT, as many channels as tokens and samples",
    "XLNet, as many tokens as samples",
    "ViT, as many channels as tokens",
    "ConvNeXt, as many channels as rows",
    "GRU, last state",
    "MLP-Mixer",
    "MLP-Mixer, as many channels as tokens and samples",
    "PatchTSMixer",
]


@pytest.mark.parametrize("name", RIGHT)
def test_scores_and_removal_equal_the_slow_twin(name, unchecked):
    for row in compare(ENTRIES[name]):
        assert row.outcome == "right", f"{row.site}: {row.says}"
        assert row.passes == "replayed", f"{row.site}: {row.says}"


@pytest.mark.parametrize("name", COINCIDENCES)
def test_where_sizes_coincide_it_is_right_or_asks_for_the_axis(name, unchecked):
    for row in compare(ENTRIES[name]):
        assert row.outcome in ("right", "refused"), f"{row.site}: {row.says}"
        if row.outcome == "refused":
            assert "cannot tell the neuron axis" in row.says
            assert "axis=..." in row.says
            assert row.named == "right"


@pytest.mark.parametrize(("name", "shape"), [("Swin", "(32, 16, 6)"), ("OPT", "(56, 20)")])
def test_windows_and_tokens_in_the_place_of_samples_are_refused(name, shape, unchecked):
    entry = ENTRIES[name]
    (place,) = [place for place in entry.places if place.refused]
    (row,) = compare(replace(entry, places=(place,)))
    assert row.outcome == "refused", row.says
    assert shape in row.says
    assert "8 samples" in row.says
    assert "choose a later layer" in row.says


def wrong(name, number, **changes):
    """Return what comes of one place when the table says something else about it."""
    entry = ENTRIES[name]
    (row,) = compare(replace(entry, places=(replace(entry.places[number], **changes),)))
    return row


def test_the_twin_would_notice_another_axis(unchecked):
    row = wrong("BERT, as many channels as tokens and samples", 0, axis=1, tokens=None)
    assert row.outcome == "wrong"
    assert "scores of samples off" in row.says
    assert "logits under ablate() off" in row.says
    assert "margins under removal off" in row.says


def test_the_twin_would_notice_padding_that_counts(unchecked):
    row = wrong("FNet", 1, tokens=None)
    assert row.outcome == "wrong"
    assert "scores of samples off" in row.says
    assert "margins under removal off" in row.says


def test_a_shared_layer_is_refused_without_its_call(unchecked):
    place = ENTRIES["ALBERT"].places[1]
    row = wrong("ALBERT", 1, site=replace(place.where, call=None))
    assert row.outcome == "refused"
    assert "several times in one forward pass" in row.says
    assert "call=0" in row.says


def test_names_are_given_once_and_places_are_early_middle_and_late():
    entries = all_entries()
    assert len(ENTRIES) == len(entries) >= 40
    assert all(len(entry.places) >= 3 for entry in entries)
