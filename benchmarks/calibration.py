"""Do the statistics hold what they promise? Each row is a check, with its 99% binomial interval.

Nulls: p-values of rankings that know nothing, over independent repeats with a ranking and a control of their own; how
many false discoveries Benjamini-Hochberg lets through. Intervals: how often they hold the truth at 20, 50 and 200
samples. Planted networks, whose important neurons are known: how often they are found. Sequential stopping: whether
it decides as all draws do, and what it saves. Networks on which no rule was tuned: whether the verdicts are right.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from lightning_neuroimp import (
    AblationFaithfulness,
    ProbeSet,
    ablation_faithfulness,
    neuron_importance,
)
from lightning_neuroimp import statistics as stats
from lightning_neuroimp.ablation.judge import Judge
from lightning_neuroimp.results.measurement import Results
from lightning_neuroimp.study import ablation

Batches = list[tuple[Tensor, Tensor]]
Row = dict[str, Any]
FRACTIONS = (0.1, 0.3, 0.6)


def rate(check: str, hits: int, n: int, bound: str, holds: Callable[[float, float], bool]) -> Row:
    """A row about how often something happened; `holds` is given the interval."""
    interval = binomtest(hits, n).proportion_ci(0.99)
    low, high = float(interval.low), float(interval.high)
    return {
        "check": check,
        "n": n,
        "value": round(hits / n, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "bound": bound,
        "holds": bool(holds(low, high)),
    }


def data(name: str, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Inputs and classes of a data set that comes with scikit-learn, shuffled, inputs standardised."""
    found = {"digits": load_digits, "wine": load_wine, "breast cancer": load_breast_cancer}[name]()
    order = np.random.default_rng(0).permutation(len(found.target))[:n]
    x = StandardScaler().fit_transform(found.data)[order]
    return torch.tensor(x, dtype=torch.float32), torch.tensor(found.target[order])


def train(
    x: Tensor, y: Tensor, activation: type[nn.Module], width: int, depth: int, epochs: int, seed: int
) -> nn.Module:
    """A perceptron; its activations are layers 1, 3, 5, ..."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Linear(x.shape[1] if number == 0 else width, width), activation()]
    model = nn.Sequential(*layers, nn.Linear(width, int(y.max()) + 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def measured(
    model: nn.Module, batches: Batches, seed: int, settings: AblationFaithfulness, layer: str = "1", **options: Any
) -> Results:
    """Importance and its check, with probe set, halves and control of this seed."""
    probe = ProbeSet.from_batches(batches, seed=seed)
    found = neuron_importance(model, probe, layers=layer, seed=seed, **options)
    return ablation_faithfulness(model, probe, found, settings)


def fresh_noise(seed: int) -> Callable[[Any], Tensor]:
    """Random scores of each sample and neuron."""
    generator = torch.Generator().manual_seed(seed)

    def noise(batch: Any) -> Tensor:
        return torch.randn(batch.activation.shape, generator=generator)

    return noise


def nulls(quick: bool) -> Iterator[Row]:
    """P-values of rankings that know nothing."""
    n = 100 if quick else 1000
    x, y = data("digits", 400)
    model, batches = train(x[:200], y[:200], nn.ReLU, 24, 1, 3, 0), [(x[200:], y[200:])]
    settings = AblationFaithfulness(n_random=19, fractions=FRACTIONS)
    groups: Callable[[Any], Tensor] = lambda batch: batch[1] % 4  # noqa: E731
    for name, attribution in (
        ("random scores", fresh_noise),
        ("a stable uninformative ranking", lambda seed: "random"),
    ):
        p_values, clusters = [], []
        for seed in range(n):
            found = measured(model, batches, seed, settings, attribution=attribution(seed), clusters=groups)
            judged = found["1"].faithfulness
            assert judged is not None
            p_values.append(judged.p_value[-1])
            clusters.append(judged.p_value[0])
        for what, values in (("all clusters", p_values), ("one cluster", clusters)):
            for level in (0.05, 0.25, 0.5):
                hits = int((np.array(values) <= level + 1e-9).sum())
                # shared by both halves, the ranking is exchangeable with the control; fresh in each half, it is not
                exact = name.startswith("a stable")
                bound = f"{'=' if exact else '<='} {level}"
                yield rate(
                    f"{name}, {what}: p <= {level}",
                    hits,
                    n,
                    bound,
                    lambda low, high, level=level, exact=exact: low <= level and (not exact or level <= high),
                )
    permuted = []
    labels = AblationFaithfulness(n_random=19, fractions=(0.2,), specificity=True)
    for seed in range(n // 4):
        names = torch.from_numpy(np.random.default_rng(seed).permutation(np.arange(200) % 5))
        shuffled = [(torch.cat([batches[0][0], names[:, None].float()], 1), batches[0][1])]
        blind = nn.Sequential(Cut(), *model)
        found = measured(blind, shuffled, seed, labels, layer="2", clusters=lambda batch: batch[0][:, -1].long())
        judged = found["2"].faithfulness
        assert judged is not None
        assert judged.specificity is not None
        permuted.append(judged.specificity.p_value)
    for level in (0.05, 0.5):
        hits = int((np.array(permuted) <= level + 1e-9).sum())
        yield rate(
            f"permuted clusters, specificity: p <= {level}",
            hits,
            len(permuted),
            f"= {level}",
            lambda low, high, level=level: low <= level <= high,
        )


class Cut(nn.Module):
    """All inputs but the last one, which only names a cluster."""

    def forward(self, x: Tensor) -> Tensor:
        """Without the last column."""
        return x[:, :-1]


def discoveries(quick: bool) -> Iterator[Row]:
    """False discoveries among all discoveries at 5 and 20%."""
    n = 20 if quick else 200
    x, y = data("digits", 600)
    model, batches = train(x[:300], y[:300], nn.ReLU, 24, 1, 3, 0), [(x[300:], y[300:])]
    settings = AblationFaithfulness(n_random=199, fractions=FRACTIONS)
    alone, shares = {0.05: 0, 0.2: 0}, {0.05: [], 0.2: []}
    for seed in range(n):
        found = measured(
            model,
            batches,
            seed,
            settings,
            attribution=["random", "gradient_x_activation"],
            clusters=lambda batch: batch[1] % 4,
        )
        null, real = (one.faithfulness for one in found.importances)
        assert null is not None
        assert real is not None
        only = stats.false_discovery(null.p_value)
        for level in alone:
            alone[level] += int((only <= level).any())
            false, all_of_them = int((null.q_value <= level).sum()), int((real.q_value <= level).sum())
            shares[level].append(false / max(1, false + all_of_them))
    for level, hits in alone.items():
        name = f"only null tests: any discovery at {level}"
        yield rate(name, hits, n, f"<= {level}", lambda low, high, level=level: low <= level)
    for level, values in shares.items():
        mean = float(np.mean(values))
        error = 2.576 * float(np.std(values)) / np.sqrt(n)
        yield {
            "check": f"half of the tests null: false share of discoveries at {level}",
            "n": n,
            "value": round(mean, 4),
            "low": round(max(0.0, mean - error), 4),
            "high": round(mean + error, 4),
            "bound": f"<= {level}",
            "holds": bool(mean - error <= level),
        }


def coverage(quick: bool) -> Iterator[Row]:
    """How often 95% intervals hold the value of the whole population: all digits, a thousand random orders."""
    n, n_draws = (200, 200) if quick else (2000, 1000)
    x, y = data("digits")
    model = train(x[:600], y[:600], nn.Tanh, 32, 2, 4, 0)
    batches = [(x, y)]
    names = ["gradient_x_activation", "gradient"]
    settings = AblationFaithfulness(
        n_random=n_draws, fractions=(0.05, 0.1, 0.2, 0.5), max_samples=2000, least_first=True
    )
    # the outcomes of single samples are not part of the results: they are caught where they are judged
    judges: list[Judge] = []
    original = Judge.comparisons
    Judge.comparisons = lambda self: judges.append(self) or original(self)  # type: ignore
    probe = ProbeSet.from_batches(batches, max_samples=2000)
    found = neuron_importance(model, probe, layers="1", attribution=names, clusters=lambda batch: batch[1] * 0)
    try:
        ablation_faithfulness(model, probe, found, settings)
    finally:
        Judge.comparisons = original  # type: ignore[method-assign]
    (judge,) = judges
    control, rows = judge.level[judge.orders.control :], judge.members[-1]
    removed, orders = judge.control.removed, judge.control.orders
    point = int(np.abs(removed - 0.1 * orders.shape[1]).argmin())
    masks = np.argsort(orders, axis=1) < removed[point]
    effects = judge.outcomes.intact_margin - judge.outcomes.margin[judge.orders.control :, point]
    for position, name in enumerate(names):
        own, least = judge.level[position], judge.level[judge.orders.least[position]]
        other = judge.level[1 - position]
        scores = masks @ found["1", name].mean[0]
        truth = {
            "gap": float((control[:, rows].mean(0) - own[rows]).mean()),
            "srg": float((least - own)[rows].mean()),
            "difference of gaps": float((other - own)[rows].mean()),
            "lds": float("nan"),  # of the samples that are drawn, with all orders
        }
        for size in (20, 50, 200):
            hits = dict.fromkeys(truth, 0)
            for seed in range(n):
                generator = np.random.default_rng([seed, size])
                chosen, draws = generator.choice(rows, size), generator.choice(len(control), 19, replace=False)
                weights = stats.resamples(size, stats.N_REPLICATES, generator)
                which = generator.integers(19, size=(stats.N_REPLICATES, 19))
                measured = effects[:, chosen].mean(1)
                replicates = {
                    "gap": stats.gap_replicates(own[chosen], control[draws][:, chosen], generator),
                    "srg": weights @ (least - own)[chosen],
                    "difference of gaps": weights @ (other - own)[chosen],
                    "lds": stats.row_correlations(scores[draws][which], measured[draws][which]),
                }
                truth["lds"] = float(np.corrcoef(scores, measured)[0, 1])
                for kind, values in replicates.items():
                    if kind == "lds":
                        value = np.array(np.corrcoef(scores[draws], measured[draws])[0, 1])
                        low, high = stats.correlation_interval(values, value, 19)
                    else:
                        low, high = stats.bootstrap_interval(values, size)
                    hits[kind] += int(low <= truth[kind] <= high)
            for kind, count in hits.items():
                yield rate(
                    f"interval of {kind} of {name}, {size} samples", count, n, ">= .95", lambda low, high: high >= 0.95
                )


class Planted(nn.Module):
    """Two classes; some units carry class 0 with a given strength, the others nothing or harm.

    Args:
        kind: "plain", "redundant" (any one of four units is enough), "inhibition" (units whose removal helps), "dead".
        strength: of each carrying unit, in units of the noise that each sample's logit has.
    """

    def __init__(self, kind: str, strength: float) -> None:
        super().__init__()
        self.site, self.kind, self.strength = nn.Identity(), kind, strength

    def forward(self, x: Tensor) -> Tensor:
        """Logits: units 0-3 carry class 0; noise comes in past the site."""
        units, noise, sign = x[:, :24], x[:, 24], x[:, 25]
        h = self.site(units)
        carried = h[:, :4].amax(1) * 4 if self.kind == "redundant" else h[:, :4].sum(1)
        value = self.strength * carried
        if self.kind == "inhibition":
            value = value - self.strength * h[:, 4:8].sum(1)
        if self.kind == "dead":
            value = value + 30 * h[:, 8:12].sum(1)  # these are zero in all samples
        return torch.stack([value + noise, torch.zeros_like(value)], 1) * sign[:, None]


def planted(quick: bool) -> Iterator[Row]:
    """How often the ranking of the carrying units is found faithful, by kind and strength."""
    n = 20 if quick else 200
    settings = AblationFaithfulness(n_random=19, fractions=(0.05, 0.1, 0.2))
    for kind, strength, bound in (
        ("plain", 1.0, 0.9),
        ("plain", 0.3, None),
        ("plain", 0.1, None),
        ("plain", 0.03, None),
        ("plain", 0.01, None),
        ("plain", 0.0, None),
        ("redundant", 1.0, None),
        ("inhibition", 1.0, 0.9),
        ("dead", 1.0, 0.9),
    ):
        hits = 0
        for seed in range(n):
            generator = torch.Generator().manual_seed(seed)
            units = torch.rand(200, 24, generator=generator)
            units[:, 8:12] = 0
            y = torch.arange(200) % 2
            sign = 1.0 - 2.0 * y
            inputs = torch.cat([units, torch.randn(200, 1, generator=generator) * 0.5, sign[:, None]], 1)
            found = measured(Planted(kind, strength), [(inputs, y)], seed, settings, layer="site")
            judged = found["site"].faithfulness
            assert judged is not None
            hits += judged.p_value[-1] <= 0.05
        name = f"planted, {kind}, strength {strength}: power at p <= .05"
        if strength == 0:
            yield rate(name, hits, n, "<= .05 (nothing to find)", lambda low, high: low <= 0.05)
        elif bound is None:
            yield rate(name, hits, n, "stated", lambda low, high: True)
        else:
            yield rate(name, hits, n, f">= {bound}", lambda low, high, bound=bound: high >= bound)


def stopping(quick: bool) -> Iterator[Row]:
    """Whether a control that stops early decides as the whole one does, and how many orders it makes."""
    n, n_random = (20 if quick else 100), 199
    x, y = data("digits", 400)
    model, batches = train(x[:200], y[:200], nn.ReLU, 24, 1, 3, 0), [(x[200:], y[200:])]
    for name in ("random", "gradient_x_activation"):
        same, made = 0, 0
        for seed in range(n):
            options: dict[str, Any] = {"attribution": name, "clusters": lambda batch: batch[1] * 0}
            early = measured(
                model, batches, seed, AblationFaithfulness(n_random=n_random, fractions=FRACTIONS), **options
            )["1"].faithfulness
            # the same orders, judged by all of them: one round of them is never left early
            whole = whole_control(model, batches, seed, n_random, options)
            assert early is not None
            same += (early.p_value[-1] <= 0.05) == (whole <= 0.05)
            made += len(early.random_accuracy)
        yield rate(
            f"stopping early, {name}: same decision as {n_random} orders", same, n, "= 1", lambda low, high: high == 1
        )
        yield {
            "check": f"stopping early, {name}: share of the orders that are made",
            "n": n,
            "value": round(made / n / n_random, 4),
            "low": None,
            "high": None,
            "bound": "stated",
            "holds": True,
        }


def whole_control(model: nn.Module, batches: Batches, seed: int, n_random: int, options: dict[str, Any]) -> float:
    """The p-value of all random orders."""
    rounds = ablation.rounds
    ablation.rounds = lambda n: [n]
    try:
        settings = AblationFaithfulness(n_random=n_random, fractions=FRACTIONS)
        judged = measured(model, batches, seed, settings, **options)["1"].faithfulness
    finally:
        ablation.rounds = rounds
    assert judged is not None
    return judged.p_value[-1]


# none of these was looked at before the rules were fixed
UNSEEN: list[tuple[str, type[nn.Module], int, int]] = [
    ("breast cancer", nn.SiLU, 48, 2),
    ("digits", nn.LeakyReLU, 96, 3),
    ("wine", nn.Softplus, 32, 2),
    ("digits", nn.Sigmoid, 64, 2),
    ("digits", nn.ELU, 160, 5),
    ("wine", nn.Hardtanh, 40, 3),
    ("breast cancer", nn.Mish, 20, 4),
    ("digits", nn.Softsign, 80, 2),
]


def unseen(quick: bool) -> Iterator[Row]:
    """Verdicts with the default settings, first hidden layer: are they those of 999 orders on all samples?"""
    seeds = range(2 if quick else 10)
    names = ["gradient_x_activation", "gradient", "random"]
    thorough = AblationFaithfulness(n_random=99 if quick else 999, max_samples=2000)
    for data_set, activation, width, depth in UNSEEN[::4] if quick else UNSEEN:
        x, y = data(data_set)
        half = len(x) // 2
        faithful, random, same = 0, 0, 0
        for seed in seeds:
            model = train(x[:half], y[:half], activation, width, depth, 15, seed)
            held_out = [(x[half:], y[half:])]
            usual = measured(model, held_out, seed, AblationFaithfulness(), attribution=names)
            truth = measured(model, held_out, seed, thorough, attribution=names)
            verdicts = [[judged_as(found, name) for name in names] for found in (usual, truth)]
            faithful += verdicts[0][0] == "faithful"
            random += verdicts[0][2] != "faithful"
            same += sum(one == other for one, other in zip(*verdicts, strict=True))
        where = f"unseen: {data_set}, {activation.__name__}, {depth} layers of {width}"
        n = len(seeds)
        yield rate(f"{where}: the default is faithful", faithful, n, "stated", lambda low, high: True)
        yield rate(f"{where}: random scores are not", random, n, ">= .95", lambda low, high: high >= 0.95)
        yield rate(f"{where}: verdicts as of 999 orders", same, 3 * n, ">= .8", lambda low, high: high >= 0.8)


def judged_as(results: Results, name: str) -> str:
    """The headline."""
    judged = results["1", name].faithfulness
    assert judged is not None
    return judged.verdict[-1]


PARTS: list[Callable[[bool], Iterator[Row]]] = [nulls, discoveries, coverage, planted, stopping, unseen]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--part", choices=[part.__name__ for part in PARTS], help="only this one")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    print(f"{'check':92}{'n':>6}{'value':>9}{'99% interval':>20}  bound")
    for part in PARTS:
        if options.part in (None, part.__name__):
            for row in part(options.quick):
                rows.append(row)
                interval = "" if row["low"] is None else f"{row['low']:.4f} .. {row['high']:.4f}"
                mark = "" if row["holds"] else "   DOES NOT HOLD"
                numbers = f"{row['n']:>6}{row['value']:>9.4f}{interval:>20}"
                print(f"{row['check']:92}{numbers}  {row['bound']}{mark}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
