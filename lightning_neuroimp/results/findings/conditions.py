"""Findings about how the model runs, which a few forward passes before the measurement have shown."""

from lightning_neuroimp.results.findings.finding import Finding, about_samples
from lightning_neuroimp.results.measurement import Results

DEPENDENT = 0.01
"""A sample's logits depend on its batch where leaving another sample out moves one of them by this share of the logits'
standard deviation."""


def batch_dependent(results: Results) -> Finding | None:
    """Say that a sample's logits depend on the other samples in its batch; None where they do not."""
    share = results.conditions.batch_dependence
    if not share > DEPENDENT:
        return None
    return about_samples(
        "batch-dependent",
        (),
        f"a sample's logits depend on the other samples in its batch: leaving one out moves them by up to {share:.0%} "
        "of their standard deviation. Gradients and ablations then mix samples, and the scores depend on how many "
        "there are in a pass.",
        "statistics of the training rather than of the batch: BatchNorm with track_running_stats=True, or a norm over "
        "each sample",
        {"largest_change": share},
        weight=1.6,
    )


def random_forward(results: Results) -> Finding | None:
    """Say that the model draws random numbers in evaluation; None where it does not."""
    share = results.conditions.random_spread
    if not share > 0:
        return None
    return about_samples(
        "random-forward",
        (),
        "the forward pass draws random numbers in evaluation mode too (dropout that is always on, noise, sampling): "
        f"two passes over the same samples differ by up to {share:.0%} of the logits' standard deviation. All passes "
        "here draw the same ones, so that what is reported holds for one draw.",
        "switch it off in evaluation, as with F.dropout(x, training=self.training), or repeat the measurement with "
        "other seeds",
        {"largest_change": share},
        weight=1.1,
    )


def flat_gradient(results: Results, site: str) -> Finding | None:
    """Say that all gradients at a site are exactly zero though its neurons matter; None where they are not."""
    if site not in results.conditions.flat_sites:
        return None
    return Finding(
        "flat-gradient",
        site,
        "",
        (),
        "every gradient here is exactly zero, while removing all neurons changes the logits: something after the layer "
        "has no slope (rounding, a step, a sign, sampling, integers). Scores by gradients say nothing.",
        "attribution='leave_one_out' or 'activation'",
        {},
        1.7,
    )


def bounded_outputs(results: Results) -> Finding | None:
    """Say that all outputs lie between 0 and 1 as probabilities do; None where they do not."""
    if not results.conditions.bounded_outputs:
        return None
    return about_samples(
        "bounded-outputs",
        (),
        "all outputs lie between 0 and 1, as probabilities do, though the rows do not sum to 1. If they come out of a "
        "sigmoid, its saturation hides neurons from gradients and margins.",
        "if they are probabilities, forward_fn=lambda model, batch: (model(batch[0]).logit(eps=1e-6), batch[1])",
        {},
        weight=0.9,
    )
