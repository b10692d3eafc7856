"""Write notes on what was left out of a measurement or is missing in it."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from lightning_neuroimp.clusters.table import ClusterNaming
from lightning_neuroimp.importance.scoring import Scores
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.study.settings import ImportanceSettings


def importance_notes(
    settings: ImportanceSettings,
    scores: Scores,
    importances: Sequence[Importance],
    naming: ClusterNaming,
    ids: Int[np.ndarray, " cluster"],
) -> Iterator[str]:
    """Yield what a reader of the results should know of the importance pass.

    Args:
        settings: of the measurement.
        scores: from the importance pass.
        importances: the importance at each site for each attribution.
        naming: names of the clusters.
        ids: ids of the clusters.
    """
    samples = scores.samples
    assert samples.cluster is not None
    assert samples.half is not None
    yield from (f"{name}: skipped, {reason}" for name, reason in scores.skipped.items())
    yield from (f"{name}: {remark}" for name, remark in scores.remarks.items())
    missing = sorted(set(settings.classes or ()) - set(np.unique(samples.label).tolist()))
    if missing:
        yield f"no probe sample has a label among {missing}, which classes= asks for"
    if settings.groups is not None:
        whole = [
            naming.name(key) for key in ids.tolist() if len(set(samples.half[samples.cluster == key].tolist())) < 2
        ]
        if whole:
            yield (
                f"all samples of {', '.join(whole)} are in one half, as groups= does not allow them to be divided: "
                "there is nothing to judge their rankings on"
            )
    outside = int((samples.finite & (samples.cluster < 0)).sum())
    if outside:
        yield f"{outside} of {len(samples)} samples are in no cluster"
    for importance in importances:
        if importance.non_finite:
            yield (
                f"{importance.site}: {importance.non_finite} of {len(samples)} samples left out of "
                f"{importance.attribution}, whose values were not finite"
            )
    left_out = int((~samples.finite).sum())
    if left_out:
        yield f"{left_out} of {len(samples)} samples left out, whose outputs were not finite"
