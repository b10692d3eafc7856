"""Compare what the package says about one architecture with the slow twin."""

import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neuroimp import AblationFaithfulness, Results, ablate, ablation_faithfulness, neuron_importance
from lightning_neuroimp.errors import InvalidArgument

from .entry import Entry, N
from .twin import Twin, margin

TOLERANCE = 1e-8
"""Largest relative difference that is called right: some layers compute in float32 whatever the weights are."""

FULL_PASSES = "runs the whole network"
"""Words of the warning by which an ablation by full passes is known."""


@dataclass
class Row:
    """Hold the outcome at one place.

    Attributes:
        architecture: its name.
        package: that it is from.
        site: in words.
        outcome: "right", "refused", "wrong", "error" (raised, but not in words made for users), or "idle" (the place
            makes no difference, so that nothing was proved: a fault of the table).
        difference: largest relative difference from the twin; NaN where there is none.
        passes: "replayed" or "full".
        says: the refusal's sentence, the error, what is wrong, or why passes are full.
        must_be_refused: whether no number can be right there.
        named: what comes of it where the site names its axes; empty where it was not refused.
    """

    architecture: str
    package: str
    site: str
    outcome: str = "right"
    difference: float = float("nan")
    passes: str = ""
    says: str = ""
    must_be_refused: bool = False
    named: str = ""

    def dictionary(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def compare(entry: Entry) -> Iterator[Row]:
    """Yield a row for each place of an architecture."""
    try:
        model = entry.model()
        inputs, real = entry.inputs()
    except Exception as error:
        yield Row(entry.name, entry.package, "", "error", says=f"it cannot be made: {_described(error)}")
        return
    for place in entry.places:
        row = _row(Twin(entry, place, model, inputs, real))
        if row.outcome == "refused" and not place.refused and place.where.axis is None:
            named = replace(place, site=replace(place.where, axis=place.axis, sample_axis=place.samples))
            row.named = _row(Twin(entry, named, model, inputs, real)).outcome
        yield row


def _row(twin: Twin) -> Row:
    """Compare one place, and return what came of it."""
    entry, place = twin.entry, twin.place
    row = Row(entry.name, entry.package, str(place.where), must_be_refused=bool(place.refused))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _compare_place(row, twin, torch.arange(N) % 2)
        full = [str(each.message) for each in caught if FULL_PASSES in str(each.message)]
        row.passes = "full" if full else "replayed"
        if full:
            row.says = " ".join([row.says, full[0].rsplit(": ", 1)[-1]]).strip()
    except InvalidArgument as refusal:
        row.outcome, row.says = "refused", str(refusal)
    except Exception as error:
        row.outcome, row.says = "error", _described(error)
    return row


def _described(error: Exception) -> str:
    """Say what was raised, and in which line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename.rsplit('/', 1)[-1]}, line {last.lineno})"


def _compare_place(row: Row, twin: Twin, labels: Tensor) -> None:
    """Compare scores, and both ways of removal, at one place; write what is found into the row."""
    entry, place = twin.entry, twin.place
    batch = lambda: [entry.batch(entry_copy(twin.inputs), labels)]  # noqa: E731
    options: dict[str, Any] = {"layers": place.where, "attribution": "gradient_x_activation"}
    options["forward_fn"] = entry.forward_fn
    by_sample = neuron_importance(twin.model, batch(), clusters=numbers_of(entry, twin.inputs), **options)
    results = neuron_importance(twin.model, batch(), **options)
    importance = results.importances[0]
    if place.refused:
        row.outcome, row.says = "wrong", f"a number where none can be right: {place.refused}"
        return
    if importance.removal.n_neurons != place.neurons:
        row.outcome, row.says = "wrong", f"{importance.removal.n_neurons} neurons for {place.neurons}"
        return
    expected = twin.scores(labels).numpy()
    classes = np.stack([expected[labels.numpy() == label].mean(0) for label in (0, 1)])
    found = {
        "scores of samples": relative(by_sample.importances[0].mean, expected),
        "scores of classes": relative(importance.mean, classes),
    }
    idle = np.abs(expected).max() < 1e-8
    top = importance.top(0, -(-place.neurons // 2)).tolist()
    with torch.no_grad(), ablate(twin.model, place.where, top):
        without = entry.logits(twin.model, entry_copy(twin.inputs))
    intact = torch.stack([twin.logits(sample).detach() for sample in range(N)])
    slow = torch.stack([twin.without(sample, top, padding_too=True) for sample in range(N)])
    idle = idle or float((slow - intact).abs().max()) < 1e-6 * float(intact.abs().max())
    found["logits under ablate()"] = relative(without.numpy(), slow.numpy(), (slow - intact).numpy())
    found |= _removal(twin, results, batch(), labels)
    row.difference = max(found.values())
    wrong = {what: size for what, size in found.items() if not size <= TOLERANCE}
    if wrong:
        row.outcome, row.says = "wrong", ", ".join(f"{what} off by {size:.1e}" for what, size in wrong.items())
    elif idle:
        row.outcome, row.says = "idle", "no score, or no effect of removal"


def _removal(twin: Twin, results: Results, batch: list[Any], labels: Tensor) -> dict[str, float]:
    """Compare the margins of a check, with the upper half of each ranking removed from the other half's samples."""
    settings = AblationFaithfulness(fractions=(0.5,))
    checked = ablation_faithfulness(twin.model, batch, results, settings, forward_fn=twin.entry.forward_fn)
    importance = checked.importances[0]
    assert importance.faithfulness is not None
    n_removed = -(-twin.place.neurons // 2)
    expected, accuracy, changes = np.zeros((2, N)), np.zeros((2, N)), np.zeros(N)
    place_of = {int(index): row for row, index in enumerate(results.sample_index)}
    for sample, label in enumerate(labels.tolist()):
        half = int(results.sample_half[place_of[sample]])
        order = np.argsort(-importance.half_mean[1 - half, label], kind="stable")
        logits = twin.without(sample, order[:n_removed].tolist())
        expected[:, sample] = float(margin(logits, label))
        accuracy[:, sample] = float(logits.argmax()) == label
        changes[sample] = expected[0, sample] - float(margin(twin.logits(sample).detach(), label))
    member = np.stack([labels.numpy() == label for label in (0, 1)])
    margins, accuracies = (np.where(member, part, 0).sum(1) / member.sum(1) for part in (expected, accuracy))
    judged = importance.faithfulness
    return {
        "margins under removal": relative(judged.margin[:2, 0], margins, changes),
        "accuracies under removal": relative(judged.accuracy[:2, 0], accuracies, np.ones(1)),
    }


def relative(found: np.ndarray, expected: np.ndarray, scale: np.ndarray | None = None) -> float:
    """Return the largest difference, as a share of the largest number of the scale (by default the expected ones)."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    largest = float(np.abs(expected if scale is None else scale).max())
    return float(np.abs(found - expected).max()) / max(largest, 1e-12)


def numbers_of(entry: Entry, inputs: Any) -> Callable[[Any], Tensor]:
    """Return clusters of one sample each: a function that finds the number of each sample in a batch by its content."""
    whole = entry.key(entry.batch(inputs, torch.arange(N) % 2))

    def numbers(batch: Any) -> Tensor:
        rows = entry.key(batch)
        return torch.tensor([next(n for n in range(N) if torch.equal(row, whole[n])) for row in rows])

    return numbers


def entry_copy(inputs: Any) -> Any:
    """Return inputs that a model may write into."""
    if isinstance(inputs, dict):
        return {key: part.clone() for key, part in inputs.items()}
    return inputs.clone()
