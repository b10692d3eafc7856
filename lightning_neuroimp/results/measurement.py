"""Results: one whole measurement."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.results.agreement import Drift, Randomisation, Reliability
from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.faithfulness import Comparison, Faithfulness, Specificity
from lightning_neuroimp.results.files import load as load_file
from lightning_neuroimp.results.files import save as save_file
from lightning_neuroimp.results.findings.finding import Finding
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.site import Removal, Site

FORMAT, VERSION = "lightning_neuroimp.results", 4


@dataclass(frozen=True, eq=False)
class Results(Mapping[Any, Importance]):
    """One measurement: the importance of every neuron of every site for every cluster.

    `results["encoder.3"]` is the first attribution's, `results["encoder.3", "activation"]` that of another one; a
    `Site` will do for its name.

    Attributes:
        importances: one per site and attribution, sites first.
        clusters: what the clusters are.
        sample_index: each probe sample's number in the stream.
        sample_fingerprint: a checksum of its content.
        sample_label: its label.
        sample_target, sample_correct: the class that is explained, by default the label, and whether the model names
            it.
        sample_cluster, sample_half: its cluster's id (-1: in none) and half (-1: in none).
        epoch, step: of the training, -1 outside one.
        seed: of the probe set, the random control and random rankings.
        seconds: time of each pass.
        notes: what was left out or is missing, in words.
        comparisons: each two attributions at each site, where removal was measured.
        randomisations: agreement with randomised weights, where it was asked for.
        activities: what the activations of each site are like.
        sample_group: each sample's group, where there are groups that the halves do not divide.
        findings: what speaks against the scores, and what to do, weightiest first.
    """

    importances: tuple[Importance, ...]
    clusters: ClusterTable
    sample_index: Int[np.ndarray, " sample"]
    sample_fingerprint: Int[np.ndarray, " sample"]
    sample_label: Int[np.ndarray, " sample"]
    sample_target: Int[np.ndarray, " sample"]
    sample_correct: Bool[np.ndarray, " sample"]
    sample_cluster: Int[np.ndarray, " sample"]
    sample_half: Int[np.ndarray, " sample"]
    epoch: int
    step: int
    seed: int
    seconds: dict[str, float]
    notes: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()
    randomisations: tuple[Randomisation, ...] = ()
    activities: tuple[SiteActivity, ...] = ()
    sample_group: Int[np.ndarray, " sample"] | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(dict.fromkeys(importance.site for importance in self.importances))

    @property
    def attributions(self) -> tuple[str, ...]:
        """Names of the attributions."""
        return tuple(dict.fromkeys(importance.attribution for importance in self.importances))

    def __getitem__(self, key: Any) -> Importance:
        site, attribution = key if isinstance(key, tuple) else (key, self.attributions[0])
        site = str(site)
        for importance in self.importances:
            if importance.site == site and importance.attribution == attribution:
                return importance
        raise KeyError(
            f"no result for {key!r}: the sites are {list(self.sites)}, the attributions {list(self.attributions)}"
        )

    def __contains__(self, key: object) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def activity(self, site: Any) -> SiteActivity:
        """What the activations of a site are like.

        Raises:
            KeyError: if there is no such site.
        """
        for one in self.activities:
            if one.site == str(site):
                return one
        raise KeyError(f"no activations of {str(site)!r}: the sites are {list(self.sites)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def has_faithfulness(self) -> bool:
        """Whether removal was measured."""
        return all(importance.faithfulness is not None for importance in self.importances)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to one `.npz` file: arrays, and JSON for the rest. No pickle; atomic: never half a file.

        Args:
            path: the file; its folder is made where it is missing.
        """
        save_file(self, path, FORMAT, VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Results":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file holds something else, or comes from a newer version.
        """
        found: Results = load_file(path, FORMAT, VERSION, _CLASSES)
        return found

    def replace(self, **changes: Any) -> "Results":
        """A copy with some fields changed."""
        return replace(self, **changes)


_CLASSES = {
    kind.__name__: kind
    for kind in (
        ClusterTable,
        Comparison,
        Drift,
        Faithfulness,
        Finding,
        Importance,
        Randomisation,
        Reliability,
        Removal,
        Results,
        Site,
        SiteActivity,
        Specificity,
    )
}
