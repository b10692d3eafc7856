"""Finding: one line of diagnosis."""

from dataclasses import dataclass

from lightning_neuroimp.results.record import Record


@dataclass(frozen=True, eq=False, repr=False)
class Finding(Record):
    """One line of diagnosis: why scores are weak, or what they do not say.

    Attributes:
        id: such as "saturated-target"; `examples/findings.md` tells what raises it, how often rightly, what to read.
        site, attribution: what it is about, in words; "" for all of them.
        clusters: names of the clusters that it is about; empty for all.
        text: what was found, with its figures.
        remedy: what to do.
        figures: the evidence.
        weight: how much it explains; the largest comes first. About 1: nothing else can be believed; for findings about
            a ranking, by how much the LDS falls short of what the same pass offers.
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
        """Site and attribution, for people."""
        return ", ".join(part for part in (self.site, self.attribution) if part) or "all layers"
