"""What importing costs, and that every public name is there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_neuroimp


def imported_by(statement):
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"torch", "lightning", "tensorboard", "matplotlib", "sklearn", "scipy", "numpy"}
    assert not imported_by("import lightning_neuroimp") & heavy


def test_the_core_does_without_lightning_and_tensorboard():
    names = imported_by("from lightning_neuroimp import neuron_importance, ablation_faithfulness")
    assert not names & {"lightning", "pytorch_lightning", "tensorboard"}


def test_results_can_be_read_without_torch():
    assert "torch" not in imported_by("from lightning_neuroimp import Results")


def test_public_names():
    for name in lightning_neuroimp.__all__:
        assert getattr(lightning_neuroimp, name).__doc__
        assert name in dir(lightning_neuroimp)
    with pytest.raises(AttributeError, match="module 'lightning_neuroimp' has no attribute 'nothing'"):
        _ = lightning_neuroimp.nothing


def test_type_checkers_see_the_real_names():
    """What a type checker imports is what is imported when a name is first used, and nothing is forgotten."""
    tree = ast.parse(Path(lightning_neuroimp.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: statement.module.removeprefix("lightning_neuroimp.")
        for statement in guarded.body
        for alias in statement.names
    }
    assert seen == lightning_neuroimp._HOME
    assert lightning_neuroimp.__all__ == sorted(lightning_neuroimp._HOME)
    for name, home in seen.items():
        assert getattr(lightning_neuroimp, name).__module__.endswith(home)


def test_public_docstrings_begin_with_a_verb_and_have_an_example():
    for name in lightning_neuroimp.__all__:
        text = getattr(lightning_neuroimp, name).__doc__
        assert ">>>" in text, name
        first = text.split()[0]
        assert first[0].isupper(), name
        assert first not in ("The", "A", "An", "What", "Whether", "How", "Of", "With", "Which"), name


def test_the_house_keeps_its_measures():
    """No module above 400 lines, no function above 60 or with more than 7 parameters, few entries at the root."""
    root = Path(lightning_neuroimp.__file__).parent
    public = {getattr(lightning_neuroimp, name).__name__ for name in lightning_neuroimp.__all__}
    public.add(lightning_neuroimp.ProbeSet.from_batches.__name__)  # a constructor
    entries = [one.name for one in root.iterdir() if not one.name.startswith("_") and one.name != "py.typed"]
    assert len(entries) <= 14
    for path in root.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name not in public and node.name != "__init__":
                n_parameters = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
                assert node.end_lineno - node.lineno + 1 <= 60, (path, node.name)
                assert n_parameters <= 7 or node.name.startswith("on_"), (path, node.name)
