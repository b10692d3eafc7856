"""Training with the callback is bit for bit training without it.

In processes of their own: under pytest the type checker draws from Python's random generator.
"""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import pickle, random, sys, warnings
import lightning.pytorch as pl, numpy as np, torch
sys.path.insert(0, {tests!r})
from modules import Classifier, loaders, trainer
from lightning_neuroimp import AblationFaithfulness, KMeansClusters, NeuronImportance

warnings.simplefilter("ignore")

def failing(batch):
    raise RuntimeError("injected")

def fails_in_ablation(module, batch):
    if not torch.is_grad_enabled() and module.encoder[2]._forward_hooks:
        raise RuntimeError("injected")
    return module(batch[0]), batch[1]

ours = lambda name, **options: NeuronImportance(
    ["encoder.0", "encoder.2"], name=name, faithfulness=AblationFaithfulness(max_overhead=None), **options
)
callbacks = {{
    "without": lambda: [],
    "with": lambda: [
        ours("labels", attribution=["gradient_x_activation", "gradient", "activation", "random"]),
        ours("kmeans", clusters=KMeansClusters(3), baseline="mean"),
    ],
    "failing": lambda: [
        ours("score", attribution=failing),
        ours("clusters", clusters=failing),
        ours("ablation", forward_fn=fails_in_ablation),
    ],
}}[sys.argv[1]]

class Module(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        random.random(), np.random.rand()
        return loss + 0 * torch.rand(1).item()

def fitted(options):
    pl.seed_everything(3, verbose=False)
    model = Module()
    run = trainer({folder!r}, callbacks(), max_epochs=3, **options)
    train, val = loaders()
    run.fit(model, train, val)
    slots = run.optimizers[0].state_dict()["state"].values()
    return {{
        "weights": {{key: bits(value) for key, value in model.state_dict().items()}},
        "optimizer": [{{name: bits(value) for name, value in slot.items()}} for slot in slots],
        "gradients": [bits(parameter.grad) for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "random": (random.getstate(), np.random.get_state()[1].tobytes(), bits(torch.get_rng_state())),
        "metrics": float(run.callback_metrics["val_loss"]),
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }}, sorted(key for key in run.callback_metrics if key.endswith("/gap"))

def bits(value):
    return None if value is None else value.float().numpy().tobytes()

sys.stdout.buffer.write(b"STATE" + pickle.dumps({{case: fitted(options) for case, options in {cases!r}.items()}}))
"""

CASES = {
    "plain": {},
    "in the middle of accumulation": {"accumulate_grad_batches": 3, "val_check_interval": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
}


def run(kind, folder):
    script = SCRIPT.format(tests=str(Path(__file__).parent), cases=CASES, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", script, kind], capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return pickle.loads(done.stdout[done.stdout.index(b"STATE") + 5 :])


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    return run("without", tmp_path_factory.mktemp("without"))


@pytest.mark.parametrize(("kind", "n_gaps"), [("with", 4 * 2 + 2), ("failing", 0)])
def test_bit_identical(kind, n_gaps, without, tmp_path):
    found = run(kind, tmp_path)
    for case in CASES:
        (expected, none), (state, measured) = without[case], found[case]
        assert none == []
        assert len(measured) == n_gaps
        for part, value in expected.items():
            assert state[part] == value, (case, part)


def test_the_comparison_can_fail(without):
    assert without["plain"][0]["weights"] != without["bf16-mixed"][0]["weights"]
