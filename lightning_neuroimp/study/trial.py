"""Try the model out before it is measured: settle the axes of all sites that a measurement needs."""

from lightning_neuroimp.capture.sites import find_sites
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.capture.trial import Trial, try_out
from lightning_neuroimp.site import Site
from lightning_neuroimp.study.settings import ImportanceSettings


def embedding_layer(settings: ImportanceSettings) -> str | Site | None:
    """Return the layer whose activations are clustered; None where there is none, or it is inferred."""
    return None if settings.kmeans is None else settings.kmeans.embedding


def settle(subject: Subject, settings: ImportanceSettings) -> Trial:
    """Try the model out on a few samples of each process; return what they have settled together."""
    embedded = embedding_layer(settings)
    layers = [*settings.layers, *([] if embedded is None else [embedded])]
    with subject.timed("trial"):
        return try_out(subject, layers).agreed(subject.processes)


def sites_of(subject: Subject, settings: ImportanceSettings, trial: Trial) -> dict[str, Site]:
    """Return the sites that are measured, by their text, as the trial has settled them."""
    return {str(site): trial.sites[str(site)] for site in find_sites(subject.model, settings.layers)}
