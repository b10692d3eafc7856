"""Private parts of other packages: each one exists, and only `_compat.py` reads them."""

import ast
import contextlib
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.checkpoint import checkpoint

import lightning_neuroimp
from lightning_neuroimp import _compat

PACKAGE = Path(lightning_neuroimp.__file__).parent


class SeenOperations(_compat.TorchDispatchMode):
    """List the operations that torch dispatches inside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def modes_see_operations():
    with SeenOperations() as mode:
        torch.ones(2).add_(1)
    return [func.name() for func in mode.seen] == ["aten::ones", "aten::add_.Tensor"]


def operations_are_told_from_those_of_higher_order():
    add = torch.ops.aten.add.Tensor
    return _compat.is_operation(add) and not _compat.is_operation(torch.ops.higher_order.cond)


def operations_have_the_names_and_tags_that_are_read():
    index = torch.ops.aten.nonzero.default
    return (
        (index.namespace, index.name()) == ("aten", "aten::nonzero")
        and torch.Tag.dynamic_output_shape in index.tags
        and torch.ops.c10d.allreduce_.default.namespace in _compat.COLLECTIVE
    )


def written_arguments_are_known():
    aten, found = torch.ops.aten, _compat.written_arguments
    return [found(aten.add.Tensor), found(aten.add_.Tensor), found(aten.sub.out)] == [(), ((0, "self"),), ((3, "out"),)]


def storages_have_an_identity():
    first, second, none = torch.zeros(4), torch.zeros(4), [torch.zeros(0), torch.zeros(0)]
    same = _compat.storage_id(first) == _compat.storage_id(first[1:].view(3, 1))
    return same and len({_compat.storage_id(tensor) for tensor in (first, second, *none)}) == 4


def references_to_storages_expire():
    tensor = torch.zeros(4)
    reference = _compat.StorageWeakRef(tensor.untyped_storage())
    before = reference.expired()
    del tensor
    return (before, reference.expired()) == (False, True)


def views_and_copies_are_operations():
    x = torch.arange(6.0)
    same = torch.equal(_compat.AS_STRIDED(x, [2, 2], [3, 1], 1), x.view(2, 3)[:, 1:])
    return same and torch.equal(_compat.CLONE(x), x)


def modes_are_counted():
    before = _compat.mode_depths()
    with SeenOperations(), torch.device("cpu"):
        inside = _compat.mode_depths()
    return inside == (before[0] + 1, before[1] + 1) and _compat.mode_depths() == before


def nodes_of_the_graph_hold_their_parameters():
    x = torch.ones(2, requires_grad=True)
    found = [
        _compat.saved_value(nn.functional.gelu(x, approximate="tanh").grad_fn, "approximate"),
        _compat.saved_value(nn.functional.leaky_relu(x, 0.3).grad_fn, "negative_slope"),
        *(_compat.saved_value(nn.functional.hardtanh(x, -2, 3).grad_fn, name) for name in ("min_val", "max_val")),
    ]
    return found == ["tanh", pytest.approx(0.3), -2, 3]


def layers_with_channels_on_axis_one_have_common_bases():
    layers = [
        *(kind(4, 4, 1) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)),
        *(kind(4) for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d)),
        *(kind(2) for kind in (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d)),
    ]
    others = [nn.Linear(2, 2), nn.LayerNorm(2), nn.ReLU(), nn.Flatten()]
    return all(isinstance(layer, _compat.CONVOLUTIONAL) for layer in layers) and not any(
        isinstance(layer, _compat.CONVOLUTIONAL) for layer in others
    )


def modules_hold_their_members_in_dictionaries():
    module = nn.BatchNorm1d(2)
    module.inner, module.none = nn.ReLU(), None
    module.register_parameter("absent", None)
    module.register_buffer("passing", torch.zeros(1), persistent=False)
    modules, parameters, buffers, not_saved = _compat.members_of(module)
    return (
        (list(modules), list(parameters)) == (["inner"], ["weight", "bias", "absent"])
        and list(buffers) == ["running_mean", "running_var", "num_batches_tracked", "passing"]
        and not_saved == {"passing"}
        and _compat.parameters_of(module) is parameters
        and _compat.buffers_of(module) is buffers
        and parameters["weight"] is module.weight
    )


def writes_are_counted():
    parameter = nn.Parameter(torch.zeros(2))
    before = _compat.write_count(parameter)
    with torch.no_grad():
        parameter.add_(1)
    return _compat.write_count(parameter) == before + 1


def compiled_modules_know_what_was_written():
    module = nn.Linear(2, 2)
    wrapped, called = torch.compile(module, backend="eager"), nn.Linear(2, 2)
    called.compile(backend="eager")
    return (
        _compat.module_as_written(wrapped) is module
        and _compat.module_as_written(module) is None
        and "forward" in vars(wrapped)
        and vars(called)[_compat.COMPILED_CALL] is not None
    )


def lightning_modules_refer_to_their_trainer():
    module, trainer = pl.LightningModule(), new_trainer()
    free = _compat.lightning_attachments(module)
    module.trainer = trainer
    with_trainer = _compat.lightning_attachments(module)
    module.fabric = fabric = Fabric(accelerator="cpu", devices=1)
    return (free, with_trainer, _compat.lightning_attachments(module)) == ([], [trainer], [trainer, fabric])


def lightning_counts_the_batches_that_stepped():
    trainer = new_trainer()
    counted = vars(trainer.fit_loop.epoch_loop)["_batches_that_stepped"]
    trainer.fit_loop.epoch_loop._batches_that_stepped = 7
    return (counted, _compat.batches_that_stepped(trainer), trainer.global_step) == (0, 7, 0)


class Logging(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        self.log("acc", 0.9, on_step=False, on_epoch=True)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", 0.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Seen(pl.Callback):
    def on_validation_end(self, trainer, pl_module):
        self.seen = {key: float(value) for key, value in _compat.validation_metrics(trainer).items()}
        self.all = set(trainer.callback_metrics)


def values_of_the_validation_are_told_from_others():
    seen = Seen()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = pl.Trainer(callbacks=[seen], max_epochs=2, enable_progress_bar=False, **options)
    loader = torch.utils.data.DataLoader(torch.ones(4, 2), 2)
    trainer.fit(Logging(), loader, loader)
    return seen.seen == {"val_acc": 0.5} and seen.all == {"acc", "val_acc"}


def checkpoints_save_by_a_hook():
    """Without it nothing is computed twice."""
    calls = []

    def inside(x):
        calls.append(None)
        return x.sin()

    x = torch.ones(3, requires_grad=True)
    counts = []
    for hook in (_compat.CheckpointHook, lambda frame: contextlib.nullcontext()):
        _compat.set_checkpoint_hook(hook)
        try:
            calls.clear()
            checkpoint(inside, x, use_reentrant=False).sum().backward()
            counts.append(len(calls))
        finally:
            _compat.set_checkpoint_hook(_compat.CheckpointHook)
    return counts == [2, 1]


def new_trainer():
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)


PARTS = {
    modes_see_operations: {"TorchDispatchMode"},
    operations_are_told_from_those_of_higher_order: {"is_operation"},
    operations_have_the_names_and_tags_that_are_read: {"COLLECTIVE"},
    written_arguments_are_known: {"written_arguments"},
    storages_have_an_identity: {"storage_id"},
    references_to_storages_expire: {"StorageWeakRef"},
    views_and_copies_are_operations: {"AS_STRIDED", "CLONE"},
    modes_are_counted: {"mode_depths"},
    nodes_of_the_graph_hold_their_parameters: {"saved_value"},
    layers_with_channels_on_axis_one_have_common_bases: {"CONVOLUTIONAL"},
    modules_hold_their_members_in_dictionaries: {"members_of", "parameters_of", "buffers_of"},
    writes_are_counted: {"write_count"},
    compiled_modules_know_what_was_written: {"COMPILED_CALL", "module_as_written"},
    lightning_modules_refer_to_their_trainer: {"lightning_attachments"},
    lightning_counts_the_batches_that_stepped: {"batches_that_stepped"},
    values_of_the_validation_are_told_from_others: {"validation_metrics"},
    checkpoints_save_by_a_hook: {"CheckpointHook", "set_checkpoint_hook"},
}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")
def test_a_private_part_is_there(part):
    assert part()


def test_every_private_part_is_tested():
    assert set().union(*PARTS.values()) == set(_compat.__all__)
    functions = {name for name, value in vars(_compat).items() if getattr(value, "__module__", "") == _compat.__name__}
    assert functions <= set(_compat.__all__)


PRIVATE = re.compile(r"_[a-z]\w*")
EXEMPT = {
    "_carried",  # a key in the callback's own pickled state
    "_fields",  # of named tuples: documented
    "_generate_state_key",  # of Lightning's callbacks: documented for subclasses
}
UNDOCUMENTED = {"StorageWeakRef", "TorchDispatchMode", "OptimizedModule", "OpOverload"}  # not private by name


def own_names(tree):
    """Yield the private names that a file defines: functions, classes, variables, attributes of its own objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def names_read(tree):
    """Yield the names that a file reads from objects and modules of others: attributes, strings, imports."""
    built = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if node in built:  # a piece of a formatted string is no name
            continue
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "_compat":
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("lightning_neuroimp"):
            yield from [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))


def borrowed(trees):
    """Return which private names of other packages each file reads."""
    own = EXEMPT.union(*map(own_names, trees.values()))
    return {
        f"{path}: {name}"
        for path, tree in trees.items()
        for name in names_read(tree)
        if name in UNDOCUMENTED or (PRIVATE.fullmatch(name) and name not in own)
    }


def test_only_compat_reads_private_parts_of_other_packages():
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "_compat.py"]
    assert borrowed({path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in paths}) == set()


@pytest.mark.parametrize(
    "line",
    [
        "tensor._version",
        "getattr(module, '_parameters')",
        "[value for name, value in vars(module).items() if name in ('_trainer',)]",
        "from torch.utils._python_dispatch import x",
        "import torch._dynamo",
        "from torch.multiprocessing.reductions import StorageWeakRef",
    ],
)
def test_a_private_part_that_is_read_elsewhere_is_found(line):
    assert borrowed({"file.py": ast.parse(line)})
    assert not borrowed({"file.py": ast.parse(f"self._mine = 1\nother._mine\n_compat.StorageWeakRef\n'{line[:2]}'")})
