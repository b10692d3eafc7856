"""Replays against hooks and full passes: bit for bit on float32."""

import pytest
import torch
from zoo import CASES

from lightning_neuroimp import Removal, undisturbed
from lightning_neuroimp.removal import remove
from lightning_neuroimp.replay import Replayer, ablate

SITES = [(name, site) for name, case in CASES.items() for site in case.sites]


def build(case):
    torch.manual_seed(0)
    model = case.make().eval()
    args, kwargs = case.inputs()
    classes = torch.arange(6) % 4

    def forward(batch):
        return model(*batch[0], **batch[1]).float(), batch[2]

    return model, forward, (list(args), kwargs, classes)


def removal_at(model, site, forward, batch, baseline=0.3):
    """A removal along the axis that has most entries behind the samples' own."""
    shape = []
    handle = model.get_submodule(site).register_forward_hook(lambda module, args, out: shape.extend(out.shape))
    with torch.no_grad():
        forward(batch)
    handle.remove()
    axis = 1 if len(shape) in (2, 4) else 2
    return Removal(site, axis, "mean", torch.full((shape[axis],), baseline).double().numpy(), "margin")


def copies(batch):
    return torch.utils._pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, batch)


def hooked(model, forward, batch, removal, mask):
    """The plain way."""
    module = model.get_submodule(removal.site)
    handle = module.register_forward_hook(lambda module, args, out: remove(out, removal, mask))
    try:
        return forward(copies(batch))[0]
    finally:
        handle.remove()


@pytest.mark.parametrize(("name", "site"), SITES)
def test_replays_equal_hooked_full_passes_bit_for_bit(name, site):
    model, forward, batch = build(CASES[name])
    with undisturbed(model), torch.no_grad():
        removal = removal_at(model, site, forward, copies(batch))
        replayer = Replayer(model, forward, removal)
        replay = replayer.record(batch)
        assert replayer.reason is None
        changed = 0
        for seed in range(4):
            shape = (6 if seed else 1, removal.n_neurons)
            mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
            expected = hooked(model, forward, batch, removal, mask)
            found, _ = ablate(replay, removal, mask)
            assert torch.equal(found, expected)
            changed += not torch.equal(found, replay.logits)
        assert changed == 4  # the masks do something
        nothing = torch.zeros(1, removal.n_neurons, dtype=torch.bool)
        assert torch.equal(replay.logits, hooked(model, forward, batch, removal, nothing))
