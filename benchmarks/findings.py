"""Are findings raised where they are true, and only there?

For each finding a truth that it does not see: what its remedy gains when it is tried on samples that it was not made
from, what more samples say, or (as a mere check) how a network was built. Each row counts networks, layers, clusters
and seeds where that is so, and where it is not, and how often the finding was raised in each. Thresholds were chosen on
the networks of `tuning`; those of `held out` have other activations, convolutions, residual connections and norms, two
of them other data, and were looked at after.

`--sweep` shows what other thresholds would have done on the networks of `tuning`.
"""

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from lightning_neuroimp import (
    AblationFaithfulness,
    Attribution,
    KMeansClusters,
    ProbeSet,
    Results,
    ablation_faithfulness,
    neuron_importance,
    statistics,
)
from lightning_neuroimp.results import verdict as verdicts
from lightning_neuroimp.results.faithfulness import Faithfulness
from lightning_neuroimp.results.findings.evidence import captured_effect
from lightning_neuroimp.results.findings.layers import joint_effects

Row = dict[str, Any]
Outcome = tuple[str, bool, bool, float]
"""Which finding, whether it is true, whether it was raised, and by which figure."""

BETTER = 0.8
"""A ranking is weak where its gap is below this share of the one that the remedy reaches."""

OTHER = 0.7
"""A ranking is another one where its rank correlation with that of a large sample is below this."""


def abs_gradient(batch: Any) -> Tensor:
    """A common score: absolute derivatives."""
    return batch.sum_positions(batch.gradient).abs()


def abs_product(batch: Any) -> Tensor:
    """Another one: the absolute effect to first order."""
    return batch.sum_positions(batch.gradient * batch.deviation).abs()


def abs_activation(batch: Any) -> Tensor:
    """Absolute activations."""
    return batch.sum_positions(batch.deviation).abs()


SCORES: list[Any] = [
    "gradient_x_activation",
    "gradient",
    "activation",
    Attribution("abs_gradient", abs_gradient),
    Attribution("abs_product", abs_product),
    Attribution("abs_activation", abs_activation),
]
ABSOLUTE_OF = {"gradient": "abs_gradient", "activation": "abs_activation", "gradient_x_activation": "abs_product"}


class Data:
    """Standardised inputs, shuffled once: for training, for the findings, and for whether they are true."""

    def __init__(self, name: str) -> None:
        found = {"digits": load_digits, "wine": load_wine, "breast cancer": load_breast_cancer}[name]()
        order = np.random.default_rng(0).permutation(len(found.target))
        x = torch.tensor(StandardScaler().fit_transform(found.data)[order], dtype=torch.float32)
        y, first, second = torch.tensor(found.target[order]), int(0.45 * len(order)), int(0.72 * len(order))
        self.x, self.y, self.n_classes = x[:first], y[:first], int(y.max()) + 1
        self.validation = list(zip(x[first:second].split(128), y[first:second].split(128), strict=True))
        self.fresh = list(zip(x[second:].split(128), y[second:].split(128), strict=True))


class Residual(nn.Module):
    """Blocks of norm, linear layer and activation beside a connection that skips them."""

    def __init__(self, n_inputs: int, n_classes: int, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Linear(n_inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
            for _ in range(2)
        )
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def perceptron(
    data: Data, activation: type[nn.Module], width: int = 64, depth: int = 3, gain: float = 1.0
) -> tuple[nn.Module, list[str]]:
    """A perceptron, and the names of its activations."""
    sizes = [data.x.shape[1]] + [width] * depth
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
        with torch.no_grad():
            layers[-2].weight.mul_(gain)
    return nn.Sequential(*layers, nn.Linear(width, data.n_classes)), [str(2 * i + 1) for i in range(depth)]


def convolutional(data: Data) -> tuple[nn.Module, list[str]]:
    """Two convolutions with batch norm."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, data.n_classes),
    ), ["3", "6"]


def residual(data: Data) -> tuple[nn.Module, list[str]]:
    """Residual blocks."""
    return Residual(data.x.shape[1], data.n_classes), ["blocks.0.2", "blocks.1.2"]


def normed(kind: type[nn.Module], activation: type[nn.Module], width: int = 48, depth: int = 3) -> "Make":
    """Perceptrons with a norm after each activation."""

    def make(data: Data) -> tuple[nn.Module, list[str]]:
        sizes = [data.x.shape[1]] + [width] * depth
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), activation(), kind(width)]
        return nn.Sequential(*layers, nn.Linear(width, data.n_classes)), [str(3 * i + 1) for i in range(depth)]

    return make


def before_norm(data: Data) -> tuple[nn.Module, list[str]]:
    """A perceptron whose linear layers are looked at, before batch norm."""
    return nn.Sequential(
        nn.Linear(data.x.shape[1], 48),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Linear(48, 48),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Linear(48, data.n_classes),
    ), ["0", "3"]


def convolutions_before_norm(data: Data) -> tuple[nn.Module, list[str]]:
    """Two convolutions, before batch norm."""
    return convolutional(data)[0], ["1", "4"]


class Transformer(nn.Module):
    """Two blocks over the rows of a digit."""

    def __init__(self, n_classes: int, width: int = 32) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(8, width), nn.Parameter(torch.randn(8, width) * 0.1)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.embed(x.view(-1, 8, 8)) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def transformer(data: Data) -> tuple[nn.Module, list[str]]:
    """The residual stream, and the widest layer of both blocks."""
    return Transformer(data.n_classes), ["embed", "blocks.0.linear1", "blocks.0", "blocks.1.linear1"]


Make = Callable[[Data], tuple[nn.Module, list[str]]]


def fitted(make: Make, data: Data, seed: int, epochs: int = 20) -> tuple[nn.Module, list[str]]:
    """A trained network, and which layers to look at."""
    torch.manual_seed(seed)
    model, layers = make(data)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            optimizer.step()
    return model.eval(), layers


def mlp(activation: type[nn.Module], width: int = 64, depth: int = 3, gain: float = 1.0) -> Make:
    """Makes perceptrons."""
    return lambda data: perceptron(data, activation, width, depth, gain)


FAMILIES: dict[str, list[tuple[str, str, Make]]] = {
    "tuning": [
        ("ReLU", "digits", mlp(nn.ReLU)),
        ("tanh", "digits", mlp(nn.Tanh)),
        ("GELU", "digits", mlp(nn.GELU, 128, 2)),
        ("layer norm, ReLU", "digits", normed(nn.LayerNorm, nn.ReLU)),
        ("before batch norm", "digits", before_norm),
        ("tanh", "breast cancer", mlp(nn.Tanh, 64, 2)),
    ],
    "held out": [
        ("CNN", "digits", convolutional),
        ("residual tanh", "digits", residual),
        ("ELU", "digits", mlp(nn.ELU, 96, 2)),
        ("sigmoid", "digits", mlp(nn.Sigmoid, 96, 2)),
        ("SiLU", "breast cancer", mlp(nn.SiLU, 48, 2)),
        ("tanh", "wine", mlp(nn.Tanh, 48, 2)),
        ("layer norm, GELU", "digits", normed(nn.LayerNorm, nn.GELU, 64, 4)),
        ("layer norm, tanh", "wine", normed(nn.LayerNorm, nn.Tanh, 32, 2)),
        ("CNN before batch norm", "digits", convolutions_before_norm),
        ("transformer", "digits", transformer),
        ("ReLU", "breast cancer", mlp(nn.ReLU, 32, 2)),
    ],
}


def measured(
    model: nn.Module,
    batches: Any,
    layers: list[str],
    seed: int,
    settings: AblationFaithfulness | None = None,
    **how: Any,
) -> Results:
    """Importance, and its check on all samples."""
    probe = batches if isinstance(batches, ProbeSet) else ProbeSet.from_batches(batches, max_samples=1024, seed=seed)
    found = neuron_importance(model, probe, layers=layers, seed=seed, **how)
    return ablation_faithfulness(model, probe, found, settings or AblationFaithfulness(max_samples=1024))


def judged(results: Results, site: str, score: str | None = None) -> Faithfulness:
    """Of one score, the first one by default."""
    found = results[site, score or results.attributions[0]].faithfulness
    assert found is not None
    return found


def weak(one: Faithfulness, remedy: Faithfulness) -> bool:
    """Whether a ranking falls short of what the remedy reaches: in accuracy, or where that hardly falls, in margin."""
    if remedy.relative_gap[-1] >= verdicts.WEAK:
        return bool(one.gap[-1] < BETTER * remedy.gap[-1])
    return bool(one.margin_gap[-1] < BETTER * remedy.margin_gap[-1])


def ties(one: Faithfulness, row: int) -> bool:
    """Whether a reference is as good as a ranking, or better: in accuracy, and not much worse in margin."""
    in_accuracy = one.gap[-1] - one.reference_gap[row, -1] < verdicts.TIE
    return bool(in_accuracy and one.reference_margin_gap[row, -1] >= BETTER * one.margin_gap[-1])


def raised(results: Results, name: str, site: str = "", score: str = "") -> bool:
    """Whether a finding is there, about this site and score where these are named."""
    return any(
        one.id == name and (not site or one.site == site) and (not score or one.attribution == score)
        for one in results.findings
    )


RANKINGS = {
    "gradient": "derivative-without-distance",
    "activation": "activation-without-derivative",
    "abs_gradient": "absolute-values",
    "abs_product": "absolute-values",
    "abs_activation": "absolute-values",
}


def scores(model: nn.Module, layers: list[str], data: Data, seed: int) -> Iterator[Outcome]:
    """Scores other than the default: is the default's gap so much larger when it is measured?"""
    signed = any(isinstance(part, nn.Tanh | nn.ELU) for part in model.modules())
    for clusters in ("labels", KMeansClusters(min(5, 2 * data.n_classes))):
        for baseline in ("zero", "mean"):
            how = {"clusters": clusters, "baseline": baseline, "attribution": SCORES}
            results = measured(model, data.validation, layers, seed, **how)
            fresh = measured(model, data.fresh, layers, seed + 1, **how)
            for site in results.sites:
                default = judged(fresh, site, "gradient_x_activation")
                for score, name in RANKINGS.items():
                    one = judged(fresh, site, score)
                    figure = -captured_effect(results[site, score])
                    yield name, weak(one, default), raised(results, name, site, score), figure
                for score, absolute in ABSOLUTE_OF.items():
                    figure = float(judged(results, site, score).alternative_interval[0, -1, 0])
                    true = weak(judged(fresh, site, score), judged(fresh, site, absolute))
                    yield "cancelling-signs", true, raised(results, "cancelling-signs", site, score), figure
                if baseline == "zero":
                    both = raised(results, "signed-activations", site)
                    poor = any(weak(judged(fresh, site, score), default) for score in ("gradient", "activation"))
                    yield "signed-activations", signed and poor, both, 0.0
                yield "any, of the default", not healthy(fresh, site), raised_of_default(results, site), 0.0


def healthy(results: Results, site: str) -> bool:
    """Whether the default is borne out."""
    judgement = judged(results, site, "gradient_x_activation")
    return judgement.verdict[-1] == "faithful" and judgement.lds[-1] > 0.8


def raised_of_default(results: Results, site: str) -> bool:
    """Whether anything was said against it, or against its layer."""
    about = ("", "gradient_x_activation")
    return any(one.site == site and one.attribution in about and one.id != "methods-agree" for one in results.findings)


def targets(model: nn.Module, layers: list[str], data: Data, seed: int) -> Iterator[Outcome]:
    """Saturated targets: is the margin's gap so much larger when it is measured?"""
    for clusters in ("labels", KMeansClusters(min(5, 2 * data.n_classes))):
        margin = measured(model, data.fresh, layers, seed + 1, clusters=clusters)
        for target in ("probability", "log_probability"):
            found = measured(model, data.validation, layers, seed, clusters=clusters, target=target)
            fresh = measured(model, data.fresh, layers, seed + 1, clusters=clusters, target=target)
            for site in found.sites:
                short = weak(judged(fresh, site), judged(margin, site))
                figure = -captured_effect(found[site])
                yield "saturated-target", short, raised(found, "saturated-target", site), figure


def mixtures(model: nn.Module, layers: list[str], data: Data, seed: int) -> Iterator[Outcome]:
    """Mixed clusters: is the gap of the labels so much larger?"""
    labels = measured(model, data.validation, layers, seed)
    for number in {2, 3, data.n_classes, min(2 * data.n_classes, 20)}:
        found = measured(model, data.validation, layers, seed, clusters=KMeansClusters(number))
        short = np.mean([weak(judged(found, site), judged(labels, site)) for site in found.sites])
        yield "mixed-clusters", bool(short > 0.5), raised(found, "mixed-clusters"), 0.0


def samples(model: nn.Module, layers: list[str], data: Data, seed: int) -> Iterator[Outcome]:
    """Halves that disagree: is the ranking of a large sample another one?"""
    large = neuron_importance(model, data.fresh, layers=layers, max_samples=10**6)
    for n_samples in (40, 100, 300):
        for target in ("margin", "probability"):
            small = neuron_importance(
                model, data.validation, layers=layers, max_samples=n_samples, seed=seed, target=target
            )
            whole = (
                large
                if target == "margin"
                else neuron_importance(model, data.fresh, layers=layers, max_samples=10**6, target=target)
            )
            for site in small.sites:
                both = [key for key in small[site].cluster_ids.tolist() if key in whole[site].cluster_ids]
                pairs = [(one[site].mean[one[site].row(key)] for one in (small, whole)) for key in both]
                agreement = np.nanmean([statistics.rank_correlation(*pair) for pair in pairs])
                reliability = statistics.weighted_mean(small[site].reliability.split_half, small.clusters.size)
                said = raised(small, "halves-disagree", site)
                yield "halves-disagree", bool(agreement < OTHER), said, -float(reliability)


def references(model: nn.Module, layers: list[str], data: Data, seed: int) -> Iterator[Outcome]:
    """No better than a reference, methods that agree: are they so on samples that were not looked at?"""
    scores = ["gradient_x_activation", "gradient", "leave_one_out", "masked_gradient"]
    for clusters in ("labels", KMeansClusters(3)):
        found = measured(model, data.validation, layers, seed, clusters=clusters, attribution=scores)
        fresh = measured(model, data.fresh, layers, seed + 1, clusters=clusters, attribution=scores)
        for site in found.sites:
            for score in scores:
                judgement = judged(fresh, site, score)
                about = [one for one in found.findings if (one.site, one.attribution) == (site, score)]
                for row, key in enumerate(judgement.references[:2]):
                    said = any(one.id == "no-better-than-reference" and f"gap of {key}" in one.figures for one in about)
                    yield "no-better-than-reference", ties(judgement, row), said, 0.0
            exact = [judged(fresh, site, score) for score in ("leave_one_out", "masked_gradient")]
            for one, other, score in zip(exact, reversed(exact), scores[2:], strict=True):
                share = judged(found, site, score)
                figure = -float(share.lds[-1] / share.lds_ceiling[-1])
                yield "poor-prediction", weak(one, other), raised(found, "poor-prediction", site, score), figure
            alone = measured(model, data.validation, [site], seed, clusters=clusters)
            bends = any(weak(judged(fresh, site, scores[0]), one) for one in exact)
            yield "first-order-fails", bends, raised(found, "first-order-fails", site), 0.0
            first = judged(alone, site)
            figure = -float(first.lds[-1] / first.lds_ceiling[-1])
            yield "first-order-fails, measured alone", bends, raised(alone, "first-order-fails", site), figure
            poor = first_order_predicts_less(judged(fresh, site, scores[0]), exact)
            yield "first-order-fails, by LDS", poor, raised(alone, "first-order-fails", site), figure
            gaps = [judged(fresh, site, score).gap[-1] for score in scores]
            yield "methods-agree", max(gaps) - min(gaps) < 2 * verdicts.TIE, raised(found, "methods-agree", site), 0.0


def first_order_predicts_less(first: Faithfulness, exact: list[Faithfulness]) -> bool:
    """Whether a score that takes more passes has a larger LDS, by more than .15."""
    return any(bool(one.lds[-1] - first.lds[-1] > 0.15) for one in exact)


def falls(model: nn.Module, layers: list[str], data: Data, seed: int) -> Iterator[Outcome]:
    """Hardly any fall: is the ranking right and not faithful on other samples; is it when more neurons are removed?"""
    more = AblationFaithfulness(max_samples=1024, fractions=(0.5, 0.7, 0.8, 0.9, 0.95))
    found = measured(model, data.validation, layers, seed)
    fresh, larger = (measured(model, data.fresh, layers, seed + 1, settings) for settings in (None, more))
    for site in found.sites:
        one, said = judged(fresh, site), raised(found, "hardly-any-fall", site)
        right = one.margin_p_value[-1] <= verdicts.LEVEL and one.lds[-1] > BETTER * one.lds_ceiling[-1]
        yield "hardly-any-fall", bool(right and one.verdict[-1] != "faithful"), said, 0.0
        mended = one.verdict[-1] != "faithful" and judged(larger, site).verdict[-1] == "faithful"
        yield "hardly-any-fall, its remedy", mended, said, 0.0


def saturation(make: str, data: Data, seed: int) -> Iterator[Outcome]:
    """Saturated activations: does exact removal predict better at what the nonlinearity is given?"""
    kind = {"tuning": nn.Tanh, "held out": nn.Sigmoid}[make]
    for gain in (1.0, 3.0, 8.0, 20.0):
        model, _ = fitted(mlp(kind, 48, 2, gain), data, seed)
        for baseline in ("zero", "mean"):
            found = measured(
                model,
                data.validation,
                ["0", "2"],
                seed,
                baseline=baseline,
                attribution=["gradient_x_activation", "leave_one_out"],
            )
            for site in found.sites:
                first, exact = (judged(found, site, score) for score in found.attributions)
                short = weak(first, exact) or first.lds[-1] < BETTER * exact.lds[-1]
                error = found.activity(site).derivative_error
                yield "saturated-activation", short, raised(found, "saturated-activation", site), error


class Built(nn.Module):
    """A trained network with its first hidden layer changed in a way that leaves what it computes as it was."""

    def __init__(self, model: nn.Sequential, how: str, amount: float) -> None:
        super().__init__()
        self.front, self.rest, self.how, self.amount = model[:2], model[2:], how, amount
        self.site = nn.Identity()
        self.register_buffer("spread", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.front(x)
        if self.how == "copies":  # neurons of which the largest copy is read
            copies = max(int(self.amount), 1)
            return self.rest(self.site(h.repeat(1, copies)).unflatten(1, (copies, -1)).amax(1))
        if self.how == "shift":
            return self.rest(self.site(h + self.amount * self.spread) - self.amount * self.spread)
        # constant neurons that nothing reads the change of
        n_constant = int(self.amount * h.shape[1] / (1 - self.amount))
        wide = self.site(torch.cat([h, h.new_ones(len(h), n_constant)], 1))
        return self.rest(wide[:, : h.shape[1]])


def built(kind: type[nn.Module], data: Data, seed: int) -> Iterator[Outcome]:
    """Networks built to have it, and the same networks without."""
    model, _ = fitted(mlp(kind, 32, 3), data, seed)
    assert isinstance(model, nn.Sequential)
    for copies in (1, 3, 6):
        for baseline in ("zero", "mean"):
            found = measured(Built(model, "copies", copies).eval(), data.validation, ["site"], seed, baseline=baseline)
            _, lower, _, _ = joint_effects(found, found["site"])
            # a maximum stands in for a copy that is set to less; set to the mean it may be the maximum itself
            yield "redundancy", copies > 1 and baseline == "zero", raised(found, "redundancy"), lower
    with torch.no_grad():
        spread = model[:2](data.x).std(0)
    for deviations in (0.0, 1.0, 1.5, 3.5, 5.0):
        shifted = Built(model, "shift", deviations).eval()
        shifted.spread = spread.clamp_min(spread.mean() * 0.1)
        found = measured(shifted, data.validation, ["site"], seed)
        yield "baseline-outside", deviations > 3, raised(found, "baseline-outside"), deviations
    for share in (0.0, 0.3, 0.4, 0.6, 0.8):
        found = measured(Built(model, "constant", share).eval(), data.validation, ["site"], seed)
        yield "constant-neurons", share > 0.5, raised(found, "constant-neurons"), share
    rare = torch.cat([x[y == 0] for x, y in data.validation]), torch.cat([x[y == 1][:2] for x, y in data.validation])
    few = [(torch.cat(rare), torch.cat([torch.zeros(len(rare[0])), torch.ones(len(rare[1]))]).long())]
    yield "near-chance", False, raised(neuron_importance(model, few, layers="1"), "near-chance"), 0.0
    torch.manual_seed(seed)
    untrained, layers = perceptron(data, kind)
    for network, trained in ((untrained.eval(), False), (model, True)):
        found = neuron_importance(network, data.validation, layers=layers[:1])
        yield "near-chance", not trained, raised(found, "near-chance"), 0.0


def outcomes(family: str, seeds: range, quick: bool) -> Iterator[Outcome]:
    """Of all networks of a family."""
    members = FAMILIES[family][:1] if quick else FAMILIES[family]
    for _, name, make in members:
        data = Data(name)
        for seed in seeds:
            model, layers = fitted(make, data, seed)
            layers = layers[:1] if quick else layers
            for part in (scores, targets, mixtures, samples, references, falls):
                yield from part(model, layers, data, seed)
    for seed in seeds:
        yield from saturation(family, Data("digits"), seed)
        yield from built(nn.ReLU if family == "tuning" else nn.SiLU, Data("digits"), seed)


def rows_of(family: str, found: list[Outcome]) -> Iterator[Row]:
    """A row for each finding."""
    for name in dict.fromkeys(one[0] for one in found):
        mine = [one for one in found if one[0] == name]
        count = Counter((true, said) for _, true, said, _ in mine)
        true, false = (count[which, True] + count[which, False] for which in (True, False))
        yield {
            "networks": family,
            "finding": name,
            "true": true,
            "raised_rightly": round(count[True, True] / true, 3) if true else None,
            "false": false,
            "raised_wrongly": round(count[False, True] / false, 3) if false else None,
        }


def sweep(found: list[Outcome]) -> None:
    """What other thresholds would do; shares that must be small are shown with a minus."""
    kinds = {*RANKINGS.values(), "saturated-target", "first-order-fails, measured alone", "poor-prediction"}
    for name in sorted(kinds | {"cancelling-signs", "halves-disagree", "redundancy", "saturated-activation"}):
        figures = [(true, figure) for one, true, _, figure in found if one == name]
        low, high = np.nanquantile([figure for _, figure in figures if np.isfinite(figure)] or [0.0], [0.02, 0.98])
        for threshold in np.linspace(low, high, 12).round(3).tolist():
            shares = [
                np.mean([figure > threshold for true, figure in figures if true == which] or [np.nan])
                for which in (True, False)
            ]
            print(f"    {name:32} > {threshold:<6} rightly {shares[0]:.3f}, wrongly {shares[1]:.3f}")


TRUTHS = {
    "derivative-without-distance": "the default's gap is larger: this score's is below 80% of it",
    "activation-without-derivative": "the same",
    "absolute-values": "the same, of absolute derivatives, products and activations",
    "cancelling-signs": "the gap of the absolute values is larger: the score's is below 80% of it",
    "first-order-fails": "leave-one-out or masked gradients have a larger gap (80% as above), both measured",
    "first-order-fails, measured alone": "the same, where only gradient x activation was measured",
    "first-order-fails, by LDS": "leave-one-out or masked gradients have an LDS larger by more than .15; likewise",
    "poor-prediction": "of leave-one-out and masked gradients: the other one has a larger gap (80% as above)",
    "signed-activations": "the activation function is tanh or ELU, and the default's gap is larger",
    "any, of the default": "the default is not faithful with an LDS above .8",
    "saturated-target": "the margin's gap is larger: this target's is below 80% of it",
    "mixed-clusters": "gaps are below 80% of those of label clusters, at most layers",
    "halves-disagree": "rank correlation with the importances of other, more samples below .7",
    "no-better-than-reference": "on fresh samples the reference's gap is at most .02 smaller, in margin at least 80%",
    "methods-agree": "on fresh samples the gaps differ by less than .04",
    "hardly-any-fall": "on fresh samples LDS above 80% of its ceiling, margin p <= .05, and not faithful",
    "hardly-any-fall, its remedy": "not faithful, and faithful where up to 95% of the neurons are removed",
    "saturated-activation": "leave-one-out has a larger gap or LDS (80% as above)",
    "redundancy": "built: several copies of each neuron, of which the largest is read",
    "baseline-outside": "built: all activations moved by more than 3 standard deviations",
    "constant-neurons": "built: more than half of the neurons constant",
    "near-chance": "the network is not trained",
}


def as_markdown(rows: list[Row]) -> str:
    """A line for each finding, both families beside one another."""
    lines = ["| finding | raised rightly, wrongly: held out | true when | for tuning |", "|-|-|-|-|"]

    def told(family: str, name: str) -> str:
        row = next((one for one in rows if (one["networks"], one["finding"]) == (family, name)), None)
        if row is None:
            return "-"
        rightly, wrongly = (
            f"{row[f'raised_{word}']:.0%} of {row[key]}" if row[key] else f"(none {key})"
            for key, word in (("true", "rightly"), ("false", "wrongly"))
        )
        return f"{rightly}, {wrongly}"

    for name, truth in TRUTHS.items():
        what = name if name.startswith("any") else f"`{name}`"
        lines.append(f"| {what} | {told('held out', name)} | {truth} | {told('tuning', name)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of one network of each family")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each network")
    parser.add_argument("--sweep", action="store_true", help="other thresholds, on the networks for tuning")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--page", type=Path, help="also write the table into this page, between its markers")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    print(f"{'networks':10}{'finding':32}{'true':>6}{'raised':>9}{'false':>7}{'raised':>9}")
    for family, seeds in (("tuning", range(options.seeds)), ("held out", range(100, 100 + options.seeds))):
        found = list(outcomes(family, seeds[:1] if options.quick else seeds, options.quick))
        for row in rows_of(family, found):
            rows.append(row)
            rightly, wrongly = (
                "-" if row[key] is None else f"{row[key]:.1%}" for key in ("raised_rightly", "raised_wrongly")
            )
            print(
                f"{family:10}{row['finding']:32}{row['true']:>6}{rightly:>9}{row['false']:>7}{wrongly:>9}", flush=True
            )
        if options.sweep and family == "tuning":
            sweep(found)
    if options.page:
        page = options.page.read_text()
        before, _, after = page.partition("<!-- rates -->\n")
        options.page.write_text(f"{before}<!-- rates -->\n{as_markdown(rows)}\n{after[after.index('<!-- end -->') :]}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
