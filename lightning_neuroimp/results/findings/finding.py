"""Finding: one line of diagnosis, and how rules make one."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.record import Record


@dataclass(frozen=True, eq=False, repr=False)
class Finding(Record):
    """Hold one line of diagnosis: why scores are weak, or what they do not say.

    Attributes:
        id: key of the rule, such as "saturated-target"; `examples/findings.md` says what raises it, how often rightly,
            and what to read.
        site: the site that it is about, in words; "" for all of them.
        attribution: name of the score that it is about; "" for all of them.
        clusters: names of the clusters that it is about; empty for all.
        text: what was found, with its figures.
        remedy: what to do about it.
        figures: the evidence, by name.
        weight: how much it explains; the largest comes first. About 1: nothing else can be trusted; for findings about
            a ranking, the share of the achievable effect that it misses.

    >>> finding = Finding("few-samples", "", "", (), "10 of 10 clusters ...", "a larger max_samples", {}, 1.2)
    >>> finding.where
    'all layers'
    """

    id: str
    site: str
    attribution: str
    clusters: tuple[str, ...]
    text: str
    remedy: str
    figures: dict[str, float]
    weight: float

    @property
    def where(self) -> str:
        """Return the site and the attribution in words."""
        return ", ".join(part for part in (self.site, self.attribution) if part) or "all layers"


def about_score(
    importance: Importance, id: str, text: str, remedy: str, figures: dict[str, float], weight: float
) -> Finding:
    """Return a finding about one score at one site."""
    numbers = {name: float(value) for name, value in figures.items()}
    return Finding(id, importance.site, importance.attribution, (), text, remedy, numbers, float(weight))


def about_layer(
    importance: Importance, id: str, text: str, remedy: str, figures: dict[str, float], weight: float
) -> Finding:
    """Return a finding about the site of an importance, whatever the score is."""
    numbers = {name: float(value) for name, value in figures.items()}
    return Finding(id, importance.site, "", (), text, remedy, numbers, float(weight))


def about_samples(
    id: str, clusters: tuple[str, ...], text: str, remedy: str, figures: dict[str, float], weight: float
) -> Finding:
    """Return a finding about the samples, the clusters or the model, whatever the layer and the score are."""
    numbers = {name: float(value) for name, value in figures.items()}
    return Finding(id, "", "", clusters, text, remedy, numbers, float(weight))


def share_of_samples(table: ClusterTable, rows: Bool[np.ndarray, " cluster"]) -> float:
    """Return the share of the samples that are in the selected clusters, 0 to 1."""
    return float(table.size[rows].sum() / table.size.sum())


def names_of(table: ClusterTable, rows: Bool[np.ndarray, " cluster"]) -> tuple[str, ...]:
    """Return the names of the selected clusters."""
    return tuple(name for name, selected in zip(table.names, rows.tolist(), strict=True) if selected)
