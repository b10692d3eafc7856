"""Hold the numbers while the code moves: save what many varied configurations give, and compare with it later.

    python tests/support/held_numbers.py save FILE              # at the commit that is trusted
    python tests/support/held_numbers.py compare FILE           # after a change
    python tests/support/held_numbers.py compare FILE --moved 'input_call'   # keys (a pattern) that are meant to move

Scores must agree to 1e-12 of their scale, everything else exactly (sums of other figures to 1e-9). To save with
another checkout, put it first on PYTHONPATH. It reads the results files' own classes through public names only, so
that it runs on versions that call things otherwise.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn

import lightning_neuroimp as package
from lightning_neuroimp import (
    AblationFaithfulness,
    KMeansClusters,
    NeuronImportance,
    ProbeSet,
    Site,
    ablation_faithfulness,
    deletion_curve,
    neuron_importance,
    weight_randomisation,
)

warnings.simplefilter("ignore")
torch.set_num_threads(1)

# what the "all clusters" row is made of
ROWS = (
    "intact_accuracy", "accuracy", "random_accuracy", "reference_accuracy", "gap", "relative_gap", "p_value",
    "p_value_worse", "lds", "verdict", "reference_gap", "alternative_lds", "gap_interval", "lds_interval",
    "least_accuracy", "srg", "srg_interval", "best_accuracy", "normalised_gap",
)  # fmt: skip
LAST_ONLY = ("reference_interval", "alternative_interval")
AXIS = {"random_accuracy": 1, "reference_accuracy": 1, "reference_gap": 1, "alternative_lds": 1,
        "reference_interval": 1, "alternative_interval": 1}  # fmt: skip


def digits():
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x / 16, dtype=torch.float32)[order], torch.tensor(y)[order]


def pairs(x, y, size=64):
    return list(zip(x.split(size), y.split(size), strict=True))


def trained(model, x, y, steps=150, loss=nn.functional.cross_entropy):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(len(y), (64,), generator=generator)
        optimizer.zero_grad()
        loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval()


def mlp(activation=nn.Tanh, width=48, n_in=64, n_out=10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(n_in, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, n_out)
    )


class Tokens(nn.Module):
    """Rows of a digit as tokens, a class token in front; heads that can be told apart."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Linear(8, 16), nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm, self.up, self.act, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        h = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x.view(len(x), 8, 8))], 1)
        q, k, v = (part(h).view(len(x), 9, 4, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = (torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v).transpose(1, 2).reshape(len(x), 9, 16)
        h = h + self.out(mixed)
        h = h + self.down(self.act(self.up(self.norm(h))))
        return self.head(h[:, 0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 10)

    def forward(self, x):
        _, (state, _) = self.rnn(x.view(len(x), 8, 8))
        return self.head(state[0])


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(12, 10)

    def forward(self, x):
        h = self.relu(self.norm(self.one(x.view(len(x), 1, 8, 8))))
        return self.head(self.relu(self.two(h)).mean((2, 3)))


class Padded(nn.Module):
    """Sequences of several lengths, in mappings with a mask."""

    def __init__(self):
        super().__init__()
        self.embed, self.act, self.head = nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 3)

    def forward(self, x, attention_mask):
        h = self.act(self.embed(x)) * attention_mask[..., None]
        return self.head(h.sum(1) / attention_mask.sum(1, keepdim=True))


def signed_square(batch):
    """An attribution of the user's own."""
    return batch.sum_positions(batch.deviation * batch.gradient.abs())


def own_logit(logits, classes):
    """A target of the user's own."""
    return 2 * logits.gather(1, classes[:, None])[:, 0]


def configurations():
    x, y = digits()
    held = pairs(x[1200:], y[1200:])
    tanh = trained(mlp(), x[:1200], y[:1200])
    relu = trained(mlp(nn.ReLU), x[:1200], y[:1200])
    every = ["gradient_x_activation", "gradient", "activation", "integrated_gradients", "masked_gradient",
             "leave_one_out", "random"]  # fmt: skip
    small = AblationFaithfulness(max_samples=256)
    full = AblationFaithfulness(n_random=39, least_first=True, specificity=True, max_samples=256)

    results = neuron_importance(tanh, held, layers=["1", "3"], attribution=every)
    results = ablation_faithfulness(tanh, held, results, full)
    yield "labels_zero_every_score", weight_randomisation(tanh, held, results)

    kmeans = {"clusters": KMeansClusters(5), "baseline": "mean", "layers": "3"}
    first = neuron_importance(relu, held, **kmeans, epoch=0)
    yield "kmeans_mean_first", ablation_faithfulness(relu, held, first, small)
    later = trained(relu, x[:1200], y[:1200], steps=40)
    second = neuron_importance(later, held, **kmeans, previous=first, epoch=1, step=9)
    yield "kmeans_mean_second", ablation_faithfulness(later, held, second, small)

    results = neuron_importance(
        relu, held, layers=["1", "3"], baseline="resample", attribution=["masked_gradient", "gradient_x_activation"],
        clusters=lambda batch: (batch[1] % 2).tolist(), seed=3,
    )  # fmt: skip
    yield "callable_resample", ablation_faithfulness(relu, held, results, AblationFaithfulness(n_random=99))

    results = neuron_importance(
        tanh, held, layers="*", attribution="gradient_x_activation", clusters="predictions", baseline=0.3,
        target="logit", target_class="predicted", batch_size=50,
    )  # fmt: skip
    yield "predictions_constant_logit", ablation_faithfulness(tanh, held, results, small)

    net = trained(Convolutional(), x[:1200], y[:1200])
    results = neuron_importance(net, held, layers=["norm", "one"], attribution=["gradient_x_activation", "activation"])
    best = AblationFaithfulness(max_samples=128, best_order=True, fractions=(0.1, 0.3))
    yield "convolution_best", ablation_faithfulness(net, held, results, best)
    results = neuron_importance(net, held, layers=Site("relu", call=1), baseline="mean", target="log_probability")
    yield "convolution_call", ablation_faithfulness(net, held, results, small)

    torch.manual_seed(0)
    tokens = trained(Tokens(), x[:1200], y[:1200])
    sites = [Site("out", side="input", group=4), Site("act"), Site("down", position=0), Site("norm", side="input")]
    results = neuron_importance(tokens, held, layers=sites, clusters=KMeansClusters((2, 5)), attribution=every[:4])
    yield "tokens_heads_position", ablation_faithfulness(tokens, held, results, small)

    torch.manual_seed(0)
    rnn = trained(Recurrent(), x[:1200], y[:1200])
    sites = [Site("rnn", item=(1, 0))]
    results = neuron_importance(
        rnn, held, layers=sites, attribution=[signed_square, "gradient_x_activation"], target=own_logit
    )
    yield "lstm_own_functions", ablation_faithfulness(rnn, held, results, small)

    cancer_x, cancer_y = load_breast_cancer(return_X_y=True)
    cancer_x = torch.tensor((cancer_x - cancer_x.mean(0)) / cancer_x.std(0), dtype=torch.float32)
    cancer_y = torch.tensor(cancer_y, dtype=torch.float32)
    one = mlp(nn.GELU, n_in=30, n_out=1)
    bce = lambda f, t: nn.functional.binary_cross_entropy_with_logits(f[:, 0], t)  # noqa: E731
    trained(one, cancer_x[:300], cancer_y[:300], loss=bce)
    loader = pairs(cancer_x[300:], cancer_y[300:])
    results = neuron_importance(one, loader, layers=["0", "1"], target="probability", attribution=every[:2])
    yield "one_logit_probability", ablation_faithfulness(one, loader, results, full)

    results = neuron_importance(
        tanh, held, layers="1", groups=lambda batch: (batch[0].sum(1) * 3).long().tolist(), stratify=True,
        max_samples=300, classes=[0, 1, "two", 5], class_names=["zero", "one", "two"],
        clusters={0: "round", "one": "straight", "two": "other", 5: "other"},
    )  # fmt: skip
    yield "groups_stratified_mapping", ablation_faithfulness(tanh, held, results, AblationFaithfulness(n_random=199))

    generator = torch.Generator().manual_seed(4)
    lengths = [int(length) for length in torch.randint(3, 9, (12,), generator=generator)]
    sequences = [torch.randn(20, length, 3, generator=generator) for length in lengths]
    masks = [torch.arange(one.shape[1])[None] < torch.randint(2, one.shape[1] + 1, (20, 1), generator=generator)
             for one in sequences]  # fmt: skip
    loader = [
        {"x": one, "attention_mask": mask.long(), "labels": (one * mask[..., None]).sum((1, 2)).gt(0).long() + (k % 2)}
        for k, (one, mask) in enumerate(zip(sequences, masks, strict=True))
    ]
    torch.manual_seed(0)
    padded = Padded().eval()
    results = neuron_importance(padded, loader, layers=["act", "embed"], baseline="mean")
    yield "padded_shapes", ablation_faithfulness(padded, loader, results, small)


def curves():
    x, y = digits()
    relu = trained(mlp(nn.ReLU), x[:1200], y[:1200])
    held = pairs(x[1200:], y[1200:])
    order = np.random.default_rng(0).permutation(48)
    for baseline in ("zero", "mean", "resample", -0.2):
        curve = deletion_curve(relu, held, order, layer="3", baseline=baseline, max_samples=200)
        for name in ("removed", "accuracy", "margin", "intact_accuracy", "intact_margin"):
            yield f"deletion_curve/{baseline}/{name}", getattr(curve, name)
    probe = ProbeSet.from_batches(held, max_samples=100, stratify=True, classes=[1, 4, 7], seed=5)
    yield "probe/index", probe.index
    yield "probe/fingerprint", probe.fingerprint


GLOO = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, {here!r})
from held_numbers import *
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
def gather(value):
    values = [None, None]
    dist.all_gather_object(values, value)
    return values
x, y = digits()
net = trained(mlp(nn.ReLU), x[:1200], y[:1200])
mine = x[1200:][rank::2], y[1200:][rank::2]
from lightning_neuroimp.{probe} import ProbeSampler
sampler = ProbeSampler(400)
for start, (a, b) in enumerate(pairs(*mine)):
    sampler.add((a, b), (np.arange(len(b)) + 64 * start) * 2 + rank)
try:
    probe = sampler.close(gather)
except (AttributeError, TypeError):
    from lightning_neuroimp.batches.processes import Processes
    probe = sampler.close(Processes(gather))
out = {{}}
for name, options in (("labels", dict(baseline="mean")), ("kmeans", dict(clusters=KMeansClusters(4), seed=2))):
    results = neuron_importance(net, probe, layers=["1", "3"], gather=gather, **options)
    results = ablation_faithfulness(net, probe, results, AblationFaithfulness(n_random=39), gather=gather)
    out |= {{f"gloo_{{name}}/{{key}}": value for key, value in flat(results).items()}}
if rank == 0:
    dump(out, sys.argv[3])
"""


def gloo():
    """Two processes of torch.distributed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(package.__file__).parent
        probe = "probe" if (root / "probe.py").exists() else "batches.probe"
        script = Path(folder, "run.py")
        script.write_text(GLOO.format(here=str(Path(__file__).parent), probe=probe))
        command = [sys.executable, str(script)]
        out = str(Path(folder, "out.json"))
        env = {**__import__("os").environ, "PYTHONPATH": str(root.parent)}
        runs = [subprocess.Popen([*command, str(rank), str(Path(folder, "store")), out], env=env) for rank in range(2)]
        for run in runs:
            if run.wait(timeout=300):
                raise RuntimeError("a gloo process failed")
        return json.loads(Path(out).read_text())


def callback():
    """Three epochs through a Trainer with TensorBoard."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(nn.ReLU, width=24)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 3e-3)

    x, y = digits()
    sets = [torch.utils.data.TensorDataset(*part) for part in ((x[:600], y[:600]), (x[1200:], y[1200:]))]
    data = [torch.utils.data.DataLoader(part, 64) for part in sets]
    with tempfile.TemporaryDirectory() as folder:
        ours = [
            NeuronImportance(["net.1", "net.3"], faithfulness=AblationFaithfulness(max_overhead=None), name="labels"),
            NeuronImportance("net.3", KMeansClusters(4), faithfulness=AblationFaithfulness(every_n_epochs=2,
                             max_overhead=None), name="kmeans", attribution=["gradient_x_activation", "activation"]),
        ]  # fmt: skip
        trainer = pl.Trainer(
            callbacks=ours, max_epochs=3, accelerator="cpu", logger=TensorBoardLogger(folder),
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer.fit(Module(), *data)
        for one in ours:
            yield from ((f"callback_{one.name}/{key}", value) for key, value in flat(one.results).items())
        for key, value in sorted(trainer.callback_metrics.items()):
            yield f"callback_metrics/{key}", float(value)
        events = EventAccumulator(trainer.logger.log_dir, size_guidance={"images": 0}).Reload()
        for kind, tags in events.Tags().items():
            if isinstance(tags, list):
                yield f"tensorboard/{kind}", sorted(tags)
        for tag in events.Tags()["scalars"]:
            if tag != "epoch":
                yield f"tensorboard/scalar/{tag}", [[one.step, one.value] for one in events.Scalars(tag)]


def flat(results):
    """All numbers and kinds of a measurement under canonical names."""
    out = {}
    for name in ("sample_index", "sample_fingerprint", "sample_label", "sample_target", "sample_correct",
                 "sample_cluster", "sample_half", "sample_group", "epoch", "step", "seed"):  # fmt: skip
        out[name] = getattr(results, name)
    table = results.clusters
    for name in ("ids", "names", "size", "accuracy", "class_counts", "exemplars", "adjusted_rand_index", "history"):
        out[f"clusters/{name}"] = getattr(table, name)
    for one in results.importances:
        key = f"{one.site}/{one.attribution}"
        for name in ("count", "half_mean", "half_abs_mean", "half_square_mean", "half_deviation", "half_first_order",
                     "effective_samples", "non_finite", "mean", "std", "stderr"):  # fmt: skip
            out[f"{key}/{name}"] = getattr(one, name)
        out[f"{key}/baseline_value"] = one.removal.baseline_value
        for name in ("split_half", "k", "top_overlap", "top_chance", "samples_needed"):
            out[f"{key}/reliability/{name}"] = getattr(one.reliability, name)
        if one.drift is not None:
            for name in ("epoch", "rank_correlation", "top_overlap"):
                out[f"{key}/drift/{name}"] = getattr(one.drift, name)
        if one.faithfulness is not None:
            out |= {f"{key}/faithfulness/{name}": value for name, value in faithfulness(one.faithfulness).items()}
    for one in results.activities:
        for name in ("count", "mean", "std", "minimum", "maximum", "top_samples", "top_values", "nonlinearity",
                     "derivative_error"):  # fmt: skip
            out[f"activity/{one.site}/{name}"] = getattr(one, name)
    for one in results.comparisons:
        for name in ("difference", "interval", "cluster_difference", "cluster_interval"):
            out[f"comparison/{one.site}/{one.first}/{one.second}/{name}"] = getattr(one, name)
    for one in results.randomisations:
        out[f"randomisation/{one.site}/{one.attribution}"] = one.rank_correlation
    out["findings"] = [[one.id, one.site, one.attribution, list(one.clusters)] for one in results.findings]
    return {key: plain(value) for key, value in out.items()}


def faithfulness(one):
    overall, n_clusters, out = getattr(one, "overall", None), None, {}
    for name in ROWS:
        value = getattr(one, name)
        if overall is not None and value is not None:
            last = getattr(overall, name)
            if name == "verdict":
                value = [*value, last]
            else:
                axis = AXIS.get(name, 0)
                value = np.concatenate([value, np.expand_dims(np.asarray(last), axis)], axis)
        n_clusters = len(one.gap) - (overall is None) if n_clusters is None else n_clusters
        out[name] = [str(part) for part in value] if name == "verdict" else value
    for name in LAST_ONLY:
        value = getattr(overall, name) if overall is not None else np.take(getattr(one, name), -1, AXIS[name])
        out[name] = value
    for name in ("removed", "n_draws"):
        out[name] = getattr(one, name)
    for name in ("samples", "intact_margin", "margin", "random_margin", "q_value"):
        value = np.asarray(getattr(one, name))
        axis = 1 if name in ("samples", "random_margin") else 0
        out[name] = np.take(value, range(n_clusters), axis)
    special = one.specificity
    if special is not None:
        out["specificity"] = getattr(special, "damage", getattr(special, "accuracy_drop", None))
        for name in ("removed", "value", "p_value", "balanced_accuracy"):
            out[f"specificity/{name}"] = getattr(special, name)
    return out


def plain(value):
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return "nan" if math.isnan(value) else str(value) if math.isinf(value) else value
    return value


def dump(held, path):
    Path(path).write_text(json.dumps(held))


def collect():
    held = {}
    for name, results in configurations():
        print(name, flush=True)
        held |= {f"{name}/{key}": value for key, value in flat(results).items()}
    held |= {key: plain(value) for key, value in curves()}
    held |= gloo()
    held |= {key: plain(value) for key, value in callback()}
    return json.loads(json.dumps(held))


SCORES = re.compile(r"half_|/mean$|/std$|/stderr$|effective_samples|baseline_value")


def differ(key, one, other):
    """How far apart two values are, in words; None where they agree."""
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return f"{len(one)} and {len(other)} entries"
        if one and all(isinstance(part, int | float) for part in one + other):
            a, b = np.array(one, float), np.array(other, float)
            if np.array_equal(a, b):
                return None
            tolerance = 1e-12 if SCORES.search(key) else 1e-9
            worst = float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(a))))
            return None if worst <= tolerance else f"off by {worst:.2g}"
        return next((found for a, b in zip(one, other, strict=True) if (found := differ(key, a, b))), None)
    if isinstance(one, float) and isinstance(other, int | float):
        return (
            None
            if abs(one - other) <= (1e-12 if SCORES.search(key) else 1e-9) * max(1, abs(one))
            else f"{one} and {other}"
        )
    return None if one == other else f"{str(one)[:80]} and {str(other)[:80]}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("save", "compare"))
    parser.add_argument("file")
    parser.add_argument("--moved", default="(?!)", help="keys that are meant to move")
    options = parser.parse_args()
    held = collect()
    if options.what == "save":
        dump(held, options.file)
        print(f"{len(held)} values saved")
        return
    before = json.loads(Path(options.file).read_text())
    moved = [key for key in before if re.search(options.moved, key)]
    bad = dict.fromkeys(before.keys() - held.keys(), "missing") | dict.fromkeys(held.keys() - before.keys(), "new")
    for key in before.keys() & held.keys():
        if (found := differ(key, before[key], held[key])) is not None:
            bad[key] = found
    for key in sorted(bad):
        print(f"{'moved as meant' if key in moved else 'DIFFERS'} {key}: {bad[key]}")
    wrong = [key for key in bad if key not in moved]
    print(f"{len(before)} values compared, {len(bad) - len(wrong)} moved as meant, {len(wrong)} differ otherwise")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
