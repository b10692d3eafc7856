"""Networks written down by hand, whose important neurons are known, and how well scores find these.

Each class has neurons that carry its margin. All others act against it, or on nothing: constants that nobody reads,
copies of the class that nobody reads, dead units with large weights, noise. The transformers do what compiled ones do:
one counts tokens, the other one looks up what followed the last token before (a previous-token head and an induction
head).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from lightning_neuroimp import ProbeSet, Site, neuron_importance

from .measuring import Score

LETTERS, LENGTH = 4, 15
VOCABULARY, WINDOW = 5, 10


@dataclass(frozen=True)
class Planted:
    """A network with samples; `important` is True where a neuron carries a class's margin: (class, neuron)."""

    model: nn.Module
    x: Tensor
    y: Tensor
    important: np.ndarray


@dataclass(frozen=True)
class Known:
    """How such a network is made, and the layer whose neurons are known."""

    name: str
    make: Callable[[], Planted]
    site: str | Site
    quick: bool = True


def area_under_roc(known: Known, scores: Sequence[Score]) -> dict[str, float]:
    """Area under ROC of each score, mean over the classes: 1 where the important neurons are the first ones."""
    planted = known.make()
    with torch.no_grad():
        assert (planted.model(planted.x).argmax(1) == planted.y).all(), f"{known.name} is wrong about its own samples"
    results = neuron_importance(
        planted.model,
        ProbeSet.from_batches([(planted.x, planted.y)]),
        layers=known.site,
        attribution=[score.of(planted.model) for score in scores],
    )
    areas = {}
    for score, found in zip(scores, results.importances, strict=True):
        each = zip(planted.important[results.clusters.ids], found.mean, strict=True)
        # sums of float32 differ in their last digits where neurons do the same
        areas[score.name] = float(np.mean([roc_auc_score(truth, np.round(mean, 6)) for truth, mean in each]))
    return areas


def t11() -> Planted:
    """The 16 neurons of the known answers: copies of two classes, constants, dead units, zeros."""
    first, last = nn.Linear(2, 16), nn.Linear(16, 2)
    for layer in (first, last):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    first.weight.data[:2, 0] = first.weight.data[2:4, 1] = 1.0
    first.bias.data[4:8], first.bias.data[8:12] = 50.0, -1.0
    last.weight.data[0, :2] = last.weight.data[1, 2:4] = 2.0
    last.weight.data[0, 8:12], last.weight.data[1, 8:12] = 30.0, -30.0
    last.bias.data[1] = 1.0
    y = torch.arange(120) % 2
    important = np.zeros((2, 16), bool)
    important[0, :2] = important[1, 2:4] = True
    return Planted(nn.Sequential(first, nn.ReLU(), last), nn.functional.one_hot(y, 2).float(), y, important)


def sparse() -> Planted:
    """128 neurons, of which 6 are read for each of 6 classes; the inputs are what goes into the ReLU."""
    generator, n_classes, each = torch.Generator().manual_seed(1), 6, 6
    y = torch.arange(360) % n_classes
    own = nn.functional.one_hot(y, n_classes).float().repeat_interleave(each, 1)
    read = torch.rand(360, 36, generator=generator) + own
    constant, dead = torch.full((360, 24), 50.0), torch.full((360, 24), -1.0)
    echo = 5 * own[:, ::2].repeat(1, 2)[:, :24]
    noise = torch.randn(360, 20, generator=generator)
    last = nn.Linear(128, n_classes, bias=False)
    nn.init.zeros_(last.weight)
    important = np.zeros((n_classes, 128), bool)
    for number in range(n_classes):
        mine = slice(number * each, (number + 1) * each)
        last.weight.data[number, mine] = 1 + torch.rand(each, generator=generator)
        important[number, mine] = True
    last.weight.data[:, 60:84] = 30 * torch.randn(n_classes, 24, generator=generator)
    return Planted(nn.Sequential(nn.ReLU(), last), torch.cat([read, constant, dead, echo, noise], 1), y, important)


def copies(n_copies: int) -> Planted:
    """Each class is read through min(1, sum of copies): no copy alone makes a difference, only all of them together."""
    generator, n_classes, n_samples = torch.Generator().manual_seed(2), 4, 320
    y = torch.arange(n_samples) % n_classes
    own = nn.functional.one_hot(y, n_classes).float().repeat_interleave(n_copies, 1)
    copied = own * (1.05 + 0.1 * torch.rand(own.shape, generator=generator))
    others = torch.cat([3 * own, 2 * torch.rand(n_samples, 24, generator=generator)], 1)
    n_neurons = copied.shape[1] + others.shape[1]
    joined, last = nn.Linear(n_neurons, n_classes), nn.Linear(n_classes, n_classes, bias=False)
    nn.init.zeros_(joined.weight)
    nn.init.ones_(joined.bias)
    last.weight.data = -4 * torch.eye(n_classes)
    important = np.zeros((n_classes, n_neurons), bool)
    for number in range(n_classes):
        mine = slice(number * n_copies, (number + 1) * n_copies)
        joined.weight.data[number, mine] = -1.0
        important[number, mine] = True
    # 4 - 4 relu(1 - sum), but for a constant that all classes share
    return Planted(nn.Sequential(nn.ReLU(), joined, nn.ReLU(), last), torch.cat([copied, others], 1), y, important)


class Counting(nn.Module):
    """A transformer that names the most frequent letter: a head counts, an MLP thresholds the counts.

    Of the 16 channels 0 to 3 hold the letter, 4 to 7 the counts, 8 to 11 what nobody reads, 12 to 15 the logits. Of
    the MLP's neurons the first 16 are relu(count - 1) to relu(count - 4) of each letter; 12 do the same for channels
    that nobody reads, 8 are constant there, and 12 are dead with large weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.inner, self.act, self.outer = (
            nn.Linear(16, 16, bias=False),
            nn.Linear(16, 48),
            nn.ReLU(),
            nn.Linear(48, 16, bias=False),
        )
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        letters = torch.arange(LETTERS)
        self.attend.weight.data[4 + letters, letters] = float(LENGTH)
        self.attend.weight.data[8:12, :4] = 3.0 * LENGTH
        for neuron in range(28):
            letter, threshold = divmod(neuron % 16, 4)
            self.inner.weight.data[neuron, 4 + letter] = 1.0
            self.inner.bias.data[neuron] = -1.0 - threshold
            self.outer.weight.data[(12 if neuron < 16 else 8) + letter, neuron] = 1.0
        self.inner.bias.data[28:36], self.inner.bias.data[36:] = 20.0, -100.0
        self.outer.weight.data[8:12, 28:36] = 1.0
        self.outer.weight.data[12:, 36:] = 30 * torch.randn(4, 12, generator=torch.Generator().manual_seed(3))

    def forward(self, letter: Tensor) -> Tensor:
        """Logits of sequences of letters."""
        stream = nn.functional.one_hot(letter, 16).float()
        # every token attends to all tokens alike
        stream = stream + self.attend(stream.mean(1, keepdim=True).expand_as(stream))
        stream = stream + self.outer(self.act(self.inner(stream)))
        return stream[:, :, 12:].mean(1)


def counting(neurons: str) -> Planted:
    """Sequences of letters, and the most frequent one; neurons of the MLP, or channels of the head's output."""
    generator = np.random.default_rng(3)
    letters = generator.integers(LETTERS, size=(4000, LENGTH))
    counts = (letters[:, :, None] == np.arange(LETTERS)).sum(1)
    ordered = np.sort(counts, 1)
    clear = np.flatnonzero(ordered[:, -1] > ordered[:, -2])[:360]
    important = np.zeros((LETTERS, 48 if neurons == "MLP" else 16), bool)
    for letter in range(LETTERS):
        important[letter, slice(4 * letter, 4 * letter + 4) if neurons == "MLP" else 4 + letter] = True
    return Planted(
        Counting().eval(), torch.from_numpy(letters[clear]), torch.from_numpy(counts[clear].argmax(1)), important
    )


class Induction(nn.Module):
    """A transformer of two heads that names the letter after the earlier occurrence of the last one.

    Of the 36 channels 0 to 5 hold the letter (5 begins the sequence), 6 to 15 the place, 16 to 21 the letter before,
    which the first head writes, 22 to 27 what nobody reads, and 28 to 32 the logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(36, 36, bias=False), nn.Linear(36, 36, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        letters = torch.arange(VOCABULARY + 1)
        self.first.weight.data[16 + letters, letters] = 1.0
        self.first.weight.data[22 + letters, letters] = 3.0
        self.first.weight.data[22:28, 6:16] = 2.0
        self.second.weight.data[28 + letters[:-1], letters[:-1]] = 6.0

    def forward(self, letter: Tensor) -> Tensor:
        """Logits of sequences of letters."""
        n_places = letter.shape[1]
        places = torch.eye(n_places).expand(len(letter), -1, -1)
        stream = nn.functional.pad(torch.cat([nn.functional.one_hot(letter, 6).float(), places], 2), (0, 20))
        later = torch.ones(n_places, n_places, dtype=torch.bool).triu(1)
        before = 12 * torch.eye(n_places).roll(-1, 1).tril(-1)  # place i looks at place i - 1
        before = before + 12 * torch.eye(n_places).roll(1, 1).T * (torch.arange(n_places)[:, None] > 0)
        weight = before.masked_fill(later, float("-inf")).softmax(1)
        stream = stream + self.first(weight @ stream)
        match = 8 * stream[:, -1:, :6] @ stream[:, :, 16:22].transpose(1, 2)
        stream = stream[:, -1] + self.second(match.softmax(2) @ stream)[:, 0]
        return stream[:, 28:33]


def induction() -> Planted:
    """Sequences whose last letter occurs once before, followed by another letter, the class; channels of head 1."""
    generator = np.random.default_rng(4)
    x, y = [], []
    while len(x) < 400:
        letters = generator.integers(VOCABULARY, size=WINDOW)
        letters[0] = VOCABULARY
        earlier = np.flatnonzero(letters[:-1] == letters[-1])
        if len(earlier) == 1 and earlier[0] < WINDOW - 2:
            x.append(letters)
            y.append(letters[earlier[0] + 1])
    # the letter before matters only where it is the last one, which is never the class
    important = np.zeros((VOCABULARY, 36), bool)
    important[:, 16 : 16 + VOCABULARY] = ~np.eye(VOCABULARY, dtype=bool)
    return Planted(Induction().eval(), torch.from_numpy(np.array(x)), torch.from_numpy(np.array(y)), important)


KNOWN = [
    Known("T11", t11, "1"),
    Known("sparse readout", sparse, "0"),
    Known("2 copies", lambda: copies(2), "0"),
    Known("4 copies", lambda: copies(4), "0"),
    Known("counting, MLP", lambda: counting("MLP"), "act"),
    Known("counting, head", lambda: counting("head"), Site("attend", axis=2)),
    Known("induction, head 1", induction, Site("first", axis=2)),
]
