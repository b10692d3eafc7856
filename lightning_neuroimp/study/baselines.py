"""Compute what removed neurons are set to, where that follows from samples: means, a reference input, an optimum."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lightning_neuroimp.batches.fields import tokens_and_doubt
from lightning_neuroimp.batches.layout import read_batch
from lightning_neuroimp.batches.structure import copied_to, to_numpy
from lightning_neuroimp.capture.baselines import Baseline, ReferenceInput
from lightning_neuroimp.capture.cache import ActivationCache
from lightning_neuroimp.capture.forward import call_model
from lightning_neuroimp.capture.positions import chosen_positions, count_positions, sum_positions
from lightning_neuroimp.capture.random_states import restore
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.trial import Trial
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.importance.scoring import Scores
from lightning_neuroimp.site import Site
from lightning_neuroimp.study.optimal_baseline import OptimalBaselines
from lightning_neuroimp.study.survey import Survey

_LONGEST = 150  # characters of what the model says about the reference input


def averaged_sites(baseline: Baseline, sites: Mapping[str, Site]) -> dict[str, Site]:
    """Return the sites whose means must be known before neurons are removed.

    Args:
        baseline: what removed neurons are set to.
        sites: all sites, by their text.

    Raises:
        InvalidArgument: if a mapping names another layer, or misses one.
    """
    baseline.require_sites(sites.values())
    if not baseline.kinds & {"mean", "optimal"}:
        return {}
    return {
        name: site
        for name, site in sites.items()
        if not _left_out(baseline, name, site) and baseline.at(name).kind in ("mean", "optimal")
    }


def _left_out(baseline: Baseline, name: str, site: Site) -> bool:
    """Tell whether a mapping has no baseline for a site that may be skipped; if it is not, that is refused later."""
    return baseline.kind == "by_layer" and site.optional and not {name, site.name} & set(dict(baseline.layers))


def baseline_values(
    subject: Subject,
    baseline: Baseline,
    sites: Mapping[str, Site],
    trial: Trial,
    surveyed: Survey | None,
    target_class: str | int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Return the value of each channel by site, for those baselines that must be computed; inside `undisturbed`.

    Args:
        subject: model and samples.
        baseline: what removed neurons are set to.
        sites: all sites, by their text.
        trial: knows the axes of the sites' neurons.
        surveyed: has the means of the sites that need them; None if none do.
        target_class: class whose loss an optimum minimises.
        seed: of the random removals for which it does.

    Raises:
        InvalidArgument: if the reference input does not fit the model or reach a site, or an optimum has no gradient.
    """
    if baseline.reference is not None:
        return reference_means(subject, baseline.reference, sites, trial)
    means = {} if surveyed is None else surveyed.means
    if baseline.kind != "optimal":
        return means
    assert surveyed is not None
    return OptimalBaselines(subject, sites, trial, surveyed, target_class, seed).find()


def reference_means(
    subject: Subject, reference: ReferenceInput, sites: Mapping[str, Site], trial: Trial
) -> dict[str, np.ndarray]:
    """Return the mean activation of each channel on a reference input, over its samples and positions, by site.

    Takes one forward pass on each process; all take the first one's numbers.

    Args:
        subject: model, and how it is called.
        reference: the input.
        sites: the sites by their text.
        trial: knows the axes of the sites' neurons.

    Raises:
        InvalidArgument: if the model cannot be run on it, it does not reach a site, or has no finite value there.
    """
    cache = ActivationCache(list(sites.values()), gradients=False, axes=trial.axes, refused=trial.unsettled)
    try:
        n_samples = read_batch(reference.inputs).size
        with torch.no_grad(), cache.attach(subject.model):
            with cache.record(subject.model, n_samples):
                tokens = _run(subject, reference)
            outputs = dict(cache.outputs)
    except InvalidArgument as error:
        text = str(error) if len(str(error)) <= _LONGEST else f"{str(error)[:_LONGEST]}..."
        shape = "a whole batch, as forward_fn takes it" if subject.forward_fn else "what the model is called with"
        raise InvalidArgument(f"baseline=ReferenceInput(...) does not work: {text}; pass {shape}") from error
    found = {name: _mean(name, sites[name], output, cache.axes[name], tokens) for name, output in outputs.items()}
    for name in trial.axes:
        if name in sites and name not in found:
            raise InvalidArgument(
                f"baseline=ReferenceInput(...): the model does not come to layer {name!r} on this input, only on the "
                "samples; pass an input that leads there, or baseline='mean'"
            )
    return dict(subject.processes.from_first(found))


def _run(subject: Subject, reference: ReferenceInput) -> Tensor | None:
    """Run the model on a reference input; return the mask of its tokens, None if there is none."""
    inputs = copied_to(reference.inputs, subject.device)
    if subject.forward_fn is not None:
        return subject.predict(inputs).tokens
    tokens = tokens_and_doubt(inputs).tokens
    if subject.states is not None:
        restore(subject.states)
    call_model(subject.model, inputs)
    return tokens


def _mean(name: str, site: Site, output: Tensor, axis: int, tokens: Tensor | None) -> np.ndarray:
    """Return the mean of each channel over the samples and positions that count.

    Raises:
        InvalidArgument: if there is none, or it is not finite.
    """
    positions = chosen_positions(site, output, axis, tokens)
    count = int(count_positions(output, axis, positions).sum())
    if not count:
        raise InvalidArgument(
            f"baseline=ReferenceInput(...): all of its positions at layer {name!r} are padding, by its mask; pass a "
            "mask that is True for the tokens to average over, or none"
        )
    value = output.double() if output.device.type != "mps" else output.float()
    mean = to_numpy(sum_positions(value, axis, positions).sum(0)).astype(np.float64) / count
    if not np.isfinite(mean).all():
        raise InvalidArgument(
            f"baseline=ReferenceInput(...): the activations of layer {name!r} are not finite on this input; pass "
            "another one, or baseline='mean'"
        )
    return mean


def compare_baselines(subject: Subject, scores: Scores, surveyed: Survey | None) -> Scores:
    """Return the scores with how their ranking to first order would change with another baseline, at each site.

    For "mean" that is "zero", for all others "mean". No pass is made: the effects with the other baseline follow from
    the sums of gradients. The means are the survey's, or else those of the activations if all samples were finite.

    Args:
        subject: for its processes.
        scores: from the importance pass.
        surveyed: may have means; None if no survey was made.
    """
    means = {} if surveyed is None else surveyed.means
    complete, compared = bool(scores.samples.finite.all()), []
    for activity in scores.activities:
        removal = scores.removals[activity.site]
        mean = means.get(activity.site, activity.mean if complete else None)
        other = "zero" if removal.baseline == "mean" else "mean"
        moved = removal.baseline_value if other == "zero" or mean is None else removal.baseline_value - mean
        group = removal.where.group
        agreement = scores.first_orders[activity.site].agreement(moved, group, subject.processes)
        if np.isnan(agreement) or (other == "mean" and mean is None):
            compared.append(activity)
        else:
            compared.append(replace(activity, other_baseline=other, baseline_agreement=agreement))
    return replace(scores, activities=tuple(compared))
