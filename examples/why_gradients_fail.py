"""My scores are tiny, and removing the top neurons does no harm. Is it a bug?

The recipe: for each cluster a batch of 32, the derivative of the correct logit with respect to each pre-activation, its
mean over the batch. Here it is on networks with ReLU, tanh and GELU, for clusters of labels and of KMeans, beside other
scores, their product and the default; what removal says of each, and what is found. `why_gradients_fail.md` tells the
story; `--page` writes its tables and pictures anew.

gap: accuracy left by removing random neurons minus accuracy left by removing the top ones, mean over 1 to 50% of them.
LDS: correlation of summed scores with what removing random tenths of the neurons does to the margin; 1 is perfect.
"""

import argparse
import re
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_neuroimp import (
    AblationFaithfulness,
    Attribution,
    KMeansClusters,
    ProbeSet,
    Results,
    SiteBatch,
    ablation_faithfulness,
    neuron_importance,
)

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ACTIVATIONS = {"ReLU": nn.ReLU, "tanh": nn.Tanh, "GELU": nn.GELU}
CLUSTERS = {"labels": "labels", "3 KMeans clusters": KMeansClusters(3)}
QUESTION, PRODUCT = "the question: one batch, mean derivative", "activation x derivative of the margin"
BATCH = 32


class Perceptron(nn.Module):
    """Three hidden layers; `encoder.0` is the first pre-activation, `encoder.1` the first activation."""

    def __init__(self, activation: type[nn.Module], width: int) -> None:
        super().__init__()
        sizes = [64, width, width, width]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
        self.encoder, self.head = nn.Sequential(*layers), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.encoder(x))


def data() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, shuffled once."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x / 16, dtype=torch.float32)[order], torch.tensor(y)[order]


def train(activation: type[nn.Module], width: int, epochs: int, x: Tensor, y: Tensor) -> Perceptron:
    """Adam at .001."""
    torch.manual_seed(0)
    model = Perceptron(activation, width)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def absolute_derivative(batch: SiteBatch) -> Tensor:
    """A score of one's own: the derivative's size."""
    return batch.sum_positions(batch.gradient).abs()


def size(batch: SiteBatch) -> Tensor:
    """Another one: how far removal moves the neuron, in either direction."""
    return batch.sum_positions(batch.deviation).abs()


@dataclass
class Row:
    """A score, and where it was measured."""

    name: str
    results: Results
    site: str
    attribution: str

    @property
    def judged(self):
        """What removal says; the last row of each field is that of all clusters."""
        return self.results[self.site, self.attribution].faithfulness

    @property
    def findings(self) -> list[str]:
        """What speaks against this score, each kind once."""
        known = [one for one in self.results.findings if one.id != "methods-agree"]  # which speaks against none
        about = [one for one in known if one.attribution in ("", self.attribution)]
        return list(dict.fromkeys(one.id for one in about if one.site in ("", self.site)))


def compare(model: nn.Module, batches: list[tuple[Tensor, Tensor]], clusters: str | KMeansClusters) -> list[Row]:
    """All scores of the first hidden layer, for one kind of clusters."""
    settings = AblationFaithfulness(n_random=99, max_samples=1024)

    def measure(probe: ProbeSet, layer: str, **options) -> Results:
        found = neuron_importance(model, probe, layers=layer, clusters=clusters, **options)
        return ablation_faithfulness(model, probe, found, settings)

    whole = ProbeSet.from_batches(batches)
    # one batch for each cluster
    n_clusters = 10 if clusters == "labels" else clusters.n_clusters
    one_batch = ProbeSet.from_batches(batches, max_samples=BATCH * n_clusters, stratify=clusters == "labels")
    question = measure(one_batch, "encoder.0", attribution="gradient", target="logit")
    scores = ["gradient", Attribution("absolute derivative", absolute_derivative), "activation", size]
    scores.append("gradient_x_activation")
    before = measure(whole, "encoder.0", attribution=scores, target="logit")
    after = measure(whole, "encoder.1", attribution=["gradient_x_activation", "blockwise_gradient", "leave_one_out"])
    return [
        Row(QUESTION, question, "encoder.0", "gradient"),
        Row("mean derivative, all samples", before, "encoder.0", "gradient"),
        Row("mean absolute derivative", before, "encoder.0", "absolute derivative"),
        Row("mean pre-activation", before, "encoder.0", "activation"),
        Row("mean size of the pre-activation", before, "encoder.0", "size"),
        Row("pre-activation x derivative, same layer and logit", before, "encoder.0", "gradient_x_activation"),
        Row(PRODUCT, after, "encoder.1", "gradient_x_activation"),
        Row("the default: the same, half-way to the baseline", after, "encoder.1", "blockwise_gradient"),
        Row("exact: remove one neuron at a time", after, "encoder.1", "leave_one_out"),
    ]


def table(rows: list[Row]) -> str:
    """As Markdown, readable in a console too."""
    lines = ["| score | gap | p | LDS | verdict | findings |", "|-|-|-|-|-|-|"]
    for row in rows:
        judged = row.judged
        lines.append(
            f"| {row.name} | {judged.gap[-1]:+.3f} | {judged.p_value[-1]:.2g} | {judged.lds[-1]:.2f} | "
            f"{judged.verdict[-1]} | "
            f"{', '.join(row.findings) or 'none'} |"
        )
    return "\n".join(lines)


def verdict_on(name: str, rows: list[Row]) -> str:
    """What the recipe is worth on one network."""
    question, product = (next(row.judged for row in rows if row.name == which) for which in (QUESTION, PRODUCT))
    gap, usual = float(question.gap[-1]), float(product.gap[-1])
    share = gap / usual
    what = "the derivative and removal agree" if share > 0.8 else "no bug either: they do not agree on this network"
    return f"{name}: the recipe's gap is {gap:+.3f}, {share:.0%} of the product's {usual:+.3f}: {what}."


def flipped(model: Perceptron, x: Tensor, y: Tensor) -> str:
    """The same tanh network, written with every second neuron's sign turned round."""
    scores = {}
    sign = torch.ones(model.encoder[0].out_features)
    with torch.no_grad():
        before = model(x)
    for name in ("as it is", "turned"):
        if name == "turned":
            sign[::2] = -1
            with torch.no_grad():
                model.encoder[0].weight.mul_(sign[:, None])
                model.encoder[0].bias.mul_(sign)
                model.encoder[2].weight.mul_(sign)
        found = neuron_importance(
            model, [(x, y)], layers="encoder.1", attribution=["gradient", "gradient_x_activation"]
        )
        scores[name] = {one.attribution: one.mean for one in found.importances}
    with torch.no_grad():
        change = float((model(x) - before).abs().max())
    lines = [f"largest change of a logit: {change:.1g}"]
    for score in ("gradient", "gradient_x_activation"):
        pair = [scores[name][score].ravel() for name in ("as it is", "turned")]
        lines.append(f"{score}: correlation of the scores before and after: {np.corrcoef(*pair)[0, 1]:.2f}")
    return "\n".join(lines)


def draw_curves(found: dict[tuple[str, str], list[Row]], path: Path) -> None:
    """Accuracy against neurons removed, a panel for each network."""
    figure, panels = plt.subplots(1, len(ACTIVATIONS), figsize=(11, 3.6), sharey=True, layout="constrained")
    for panel, activation in zip(panels, ACTIVATIONS, strict=True):
        rows = {row.name: row for row in found[activation, "labels"]}
        judged = rows[PRODUCT].results["encoder.1"].faithfulness
        share = 100 * judged.removed / rows[PRODUCT].results["encoder.1"].removal.n_neurons
        low, high = np.percentile(judged.random_accuracy[:, -1], (5, 95), axis=0)
        panel.fill_between(share, low, high, color="#9a9a9a", alpha=0.4, label="random neurons (5-95%)")
        for name, colour in ((QUESTION, "#d1495b"), ("mean pre-activation", "#b8860b"), (PRODUCT, "#1f5fbf")):
            panel.plot(share, rows[name].judged.accuracy[-1], color=colour, marker="o", markersize=4, label=name)
        panel.set_title(activation)
        panel.set_xlabel("neurons removed (%)")
    panels[0].set_ylabel("accuracy")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def activation_of(model: Perceptron, batches: list[tuple[Tensor, Tensor]], label: int) -> np.ndarray:
    """Mean activation of each neuron for one label."""
    found = neuron_importance(model, batches, layers="encoder.1", attribution="activation")
    return found["encoder.1"].mean[label]


def draw_scatter(models: dict[str, Perceptron], batches: list[tuple[Tensor, Tensor]], path: Path) -> str:
    """Each neuron's score against what removing it alone really does, for one label."""
    scores = ["leave_one_out", "gradient", "gradient_x_activation"]
    figure, panels = plt.subplots(2, 2, figsize=(7.5, 6), layout="constrained")
    lines = []
    for column, activation in enumerate(("ReLU", "tanh")):
        found = neuron_importance(models[activation], batches, layers="encoder.1", attribution=scores)
        exact = found["encoder.1", "leave_one_out"].mean[3]
        negative = activation_of(models[activation], batches, 3) < 0
        share = exact[negative & (exact > 0)].sum() / exact[exact > 0].sum()
        lines.append(f"{activation}: share of the losses by neurons that are negative on average: {share:.0%}")
        for line, (score, name) in enumerate(zip(scores[1:], ("derivative", "activation x derivative"), strict=True)):
            one, panel = found["encoder.1", score].mean[3], panels[line, column]
            correlation = np.corrcoef(one, exact)[0, 1]
            panel.axhline(0, color="#cccccc", linewidth=0.8)
            panel.axvline(0, color="#cccccc", linewidth=0.8)
            panel.scatter(one, exact, s=9, color="#1f5fbf" if line else "#d1495b")
            panel.set_title(f"{activation}: {name}, r = {correlation:.2f}", fontsize=10)
            panel.set_xlabel(f"mean {name}")
            lines.append(f"{activation}, {name}: r = {correlation:.2f}")
        panels[0, column].set_ylabel("margin lost without the neuron")
        panels[1, column].set_ylabel("margin lost without the neuron")
    figure.savefig(path, dpi=110)
    return "\n".join(lines)


def rewritten(page: str, parts: dict[str, str]) -> str:
    """The page with what stands between its markers replaced."""
    for name, text in parts.items():
        marked = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marked.search(page):
            raise ValueError(f"the page has no marker <!-- {name} -->")
        page = marked.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)
    return page


def main() -> None:
    """Measure, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of training")
    parser.add_argument("--width", type=int, default=256, help="neurons of a hidden layer")
    parser.add_argument("--page", action="store_true", help="write tables and pictures of why_gradients_fail.md anew")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*each ablation ran the whole network")
    x, y = data()
    batches = list(zip(x[1200:].split(128), y[1200:].split(128), strict=True))
    parts: dict[str, str] = {}
    found: dict[tuple[str, str], list[Row]] = {}
    models = {}
    for name, activation in ACTIVATIONS.items():
        models[name] = train(activation, options.width, options.epochs, x[:1200], y[:1200])
        for kind, clusters in CLUSTERS.items():
            rows = found[name, kind] = compare(models[name], batches, clusters)
            parts[f"{name}, {kind}"] = table(rows)
            print(f"\n{name}, clusters: {kind}\n{parts[f'{name}, {kind}']}", flush=True)
    asked = found["tanh", "labels"][0]
    about = [one for one in asked.results.findings if one.attribution in ("", "gradient")]
    said = "\n".join(f"{one.id}: {one.text}\n    To do: {one.remedy}." for one in about)
    print(f"\nWhat is said of the question's score on the tanh network:\n{said}")
    parts["what is said"] = f"```text\n{said}\n```"
    if options.page:
        here = Path(__file__).parent
        draw_curves(found, here / "why_gradients_fail_curves.png")
        parts["one neuron at a time"] = (
            f"```text\n{draw_scatter(models, batches, here / 'why_gradients_fail_scatter.png')}\n```"
        )
    turned = flipped(models["tanh"], x[1200:], y[1200:])
    print(f"\nThe tanh network with every second neuron's sign turned round, which computes the same:\n{turned}")
    parts["turned"] = f"```text\n{turned}\n```"
    print("\nIs it a bug? With a cluster for each label,")
    for name in ACTIVATIONS:
        print(f"    {verdict_on(name, found[name, 'labels'])}")
    print("The derivative is a sensitivity; removal needs the distance as well. why_gradients_fail.md tells more.")
    print("To ask the same of your own model, with a loader of validation batches:\n")
    print(
        "    results = neuron_importance(model, loader, layers=..., attribution=['gradient_x_activation', 'gradient'])"
    )
    print("    results = ablation_faithfulness(model, loader, results)")
    print("    print(results.summary())")
    if options.page:
        page = here / "why_gradients_fail.md"
        page.write_text(rewritten(page.read_text(), parts))


if __name__ == "__main__":
    main()
