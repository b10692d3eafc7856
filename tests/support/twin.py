"""Score and ablate neurons slowly and readably: one sample at a time, without its padding, with own hooks."""

import torch

from tests.support.families import N


class Seen:
    """See the site's tensor in a pass over one sample as (token, channel), and put another one in its place."""

    def __init__(self, family, replacement=None):
        self.family, self.replacement, self.values, self.calls = family, replacement, None, 0

    def __enter__(self):
        module = self.family.model.get_submodule(self.family.site.name)
        if self.family.site.side == "input":
            self.handle = module.register_forward_pre_hook(lambda module, args: (self.visit(args[0]), *args[1:]))
        else:
            self.handle = module.register_forward_hook(lambda module, args, out: self.visit_output(module, out))
        return self

    def __exit__(self, *error):
        self.handle.remove()

    def visit_output(self, module, out):
        if isinstance(out, tuple):
            item = self.family.site.item or 0
            return (*out[:item], self.visit(out[item]), *out[item + 1 :])
        return self.visit(out)

    def visit(self, tensor):
        self.calls += 1
        if self.family.site.call is not None and self.calls - 1 != self.family.site.call:
            return tensor
        samples = [axis for axis, size in enumerate(tensor.shape) if size == 1][0 if tensor.shape[0] == 1 else -1]
        channel = self.family.axis + (1 if self.family.axis >= samples else 0)
        shaped = tensor.movedim((samples, channel), (0, -1))
        self.shape = shaped.shape
        self.values = shaped.reshape(-1, shaped.shape[-1])
        if self.replacement is None:
            self.values = self.values.clone() if self.values.requires_grad else self.values
            self.values = self.values.clone().requires_grad_() if not self.values.requires_grad else self.values
            put = self.values
        else:
            put = self.replacement
        return put.reshape(self.shape).movedim((0, -1), (samples, channel)).clone()


def twin_margin(logits, label):
    others = torch.cat([logits[0, :label], logits[0, label + 1 :]])
    return logits[0, label] - others.logsumexp(0)


def rows(family, values):
    """Return which positions count."""
    return [family.site.position] if family.site.position is not None else range(len(values))


def sample_pass(family, sample, replacement=None):
    with Seen(family, replacement) as seen:
        logits = family.logits(family.model, family.one(sample))
    return logits, seen.values


def twin_baselines(family, baseline, donor_of):
    """Return what stands for removed neurons in each sample, (token, channel)."""
    values = [sample_pass(family, sample)[1].detach() for sample in range(N)]
    counted = [tensor[list(rows(family, tensor))] for tensor in values]
    if baseline == "mean":
        mean = torch.cat(counted).mean(0)
        return [mean.expand_as(tensor) for tensor in counted]
    if baseline == "resample":
        donors = [counted[donor_of[sample]] for sample in range(N)]
        return [
            torch.stack([donor[place % len(donor)] for place in range(len(tensor))])
            for tensor, donor in zip(counted, donors, strict=True)
        ]
    return [torch.full_like(tensor, 0.0 if baseline == "zero" else baseline) for tensor in counted]


def twin_scores(family, baselines, classes):
    """Return (h - b) dm/dh of each sample and neuron, summed over its positions and each group's channels."""
    scores = []
    for sample in range(N):
        logits, values = sample_pass(family, sample)
        (slope,) = torch.autograd.grad(twin_margin(logits, int(classes[sample])), values)
        picked = list(rows(family, values))
        score = ((values[picked] - baselines[sample]) * slope[picked]).sum(0)
        scores.append(score.reshape(-1, family.site.group).sum(1).detach())
    return torch.stack(scores)


def twin_removed(family, baselines, sample, neurons):
    """Return the logits of a sample without some neurons."""
    values = sample_pass(family, sample)[1].detach().clone()
    for place, position in enumerate(rows(family, values)):
        for neuron in neurons:
            channels = slice(neuron * family.site.group, (neuron + 1) * family.site.group)
            values[position, channels] = baselines[sample][place, channels]
    with torch.no_grad():
        return sample_pass(family, sample, values)[0][0]
