"""Results: one whole measurement."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from lightning_neuroimp import _validate
from lightning_neuroimp.errors import FileFormatError
from lightning_neuroimp.results import files
from lightning_neuroimp.results.activity import SiteActivity
from lightning_neuroimp.results.agreement import Randomisation
from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.conditions import Conditions
from lightning_neuroimp.results.consistency import disagreements
from lightning_neuroimp.results.faithfulness import Comparison
from lightning_neuroimp.results.findings.finding import Finding
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.older_versions import from_version_4, from_version_5, from_version_6
from lightning_neuroimp.results.record import Record
from lightning_neuroimp.site import Site

if TYPE_CHECKING:
    import pandas as pd

FORMAT, VERSION = "lightning_neuroimp.results", 7
UPGRADES = {4: from_version_4, 5: from_version_5, 6: from_version_6}

_MOST_LINES = 20  # of a repr


@dataclass(frozen=True, eq=False, repr=False)
class Results(Record, Mapping[tuple[str, str], Importance]):
    """Hold one measurement: the importance of every neuron of every site for every cluster.

    A mapping from (site, attribution) to `Importance`. `results["encoder.3"]` is the first attribution's,
    `results["encoder.3", "activation"]` that of another one; a `Site` stands for its text, and the name of a module for
    its site where it has only one. Axes named `sample` have one entry per probe sample.

    Attributes:
        importances: one per site and attribution, sites first.
        clusters: what the clusters are.
        sample_index: number of each probe sample in the stream of validation samples.
        sample_fingerprint: checksum of each sample's content.
        sample_label: each sample's label.
        sample_target: class whose target is explained, by default the label.
        sample_correct: whether the model predicts that class.
        sample_predicted: class that the model predicts; -1 where it is not known (files of older versions).
        sample_margin: margin of the explained class, in logits; NaN where it is not finite or not known.
        sample_cluster: id of each sample's cluster; -1 in none.
        sample_half: half of the cluster that the sample belongs to, 0 or 1; -1 in none.
        epoch: epoch of the training run; -1 outside one.
        step: step of the training run; -1 outside one.
        seed: seed of the probe set, the random control and random rankings.
        seconds: duration of each pass, in seconds.
        notes: what was left out or is missing, in words.
        comparisons: each two attributions at each site, where removal was measured.
        randomisations: agreement with randomised weights, where it was asked for.
        activities: what the activations of each site are like.
        sample_group: group of each sample, where there are groups that must not be divided between halves.
        findings: what speaks against the scores, and what to do, weightiest first.
        conditions: what was found out about the model before it was measured.

    >>> import torch
    >>> from lightning_neuroimp import neuron_importance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> batches = [(torch.randn(20, 4), torch.arange(20) % 2)]
    >>> results = neuron_importance(model, batches, layers="1", attribution=["gradient_x_activation", "activation"])
    >>> list(results)
    [('1', 'gradient_x_activation'), ('1', 'activation')]
    >>> results["1", "activation"].mean.shape
    (2, 8)
    """

    importances: tuple[Importance, ...]
    clusters: ClusterTable
    sample_index: Int[np.ndarray, " sample"]
    sample_fingerprint: Int[np.ndarray, " sample"]
    sample_label: Int[np.ndarray, " sample"]
    sample_target: Int[np.ndarray, " sample"]
    sample_correct: Bool[np.ndarray, " sample"]
    sample_predicted: Int[np.ndarray, " sample"]
    sample_margin: Float[np.ndarray, " sample"]
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
    conditions: Conditions = field(default_factory=Conditions)

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the sites in words."""
        return tuple(dict.fromkeys(importance.site for importance in self.importances))

    @property
    def attributions(self) -> tuple[str, ...]:
        """Return the names of the attributions."""
        return tuple(dict.fromkeys(importance.attribution for importance in self.importances))

    @property
    def has_faithfulness(self) -> bool:
        """Tell whether removal was measured."""
        return all(importance.faithfulness is not None for importance in self.importances)

    def __getitem__(self, key: Any) -> Importance:
        site, attribution = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
        name = self._site_text(site)
        at_site = [importance for importance in self.importances if importance.site == name]
        for importance in at_site:
            if attribution is None or importance.attribution == attribution:
                return importance
        if at_site:
            hint = _validate.closest(str(attribution), [each.attribution for each in at_site], "scores")
        else:
            hint = _validate.closest(str(site), self._sites_of(site) or self.sites, "sites")
        raise KeyError(f"no result for {_validate.shown(key)}: {hint}")

    def __contains__(self, key: object) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter((importance.site, importance.attribution) for importance in self.importances)

    def __len__(self) -> int:
        return len(self.importances)

    def _ipython_key_completions_(self) -> list[Any]:
        """Return the keys that notebooks and consoles complete: sites, and pairs of site and score."""
        return [*self.sites, *self]

    def __repr__(self) -> str:
        lines = [_line(importance) for importance in self.importances]
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES - 1 :] = [f"... and {len(lines) - _MOST_LINES + 1} more"]
        when, table = f", epoch {self.epoch}" if self.epoch >= 0 else "", self.clusters
        lines.append(f"{len(self.sample_index)} probe samples, {len(table.ids)} clusters ({table.source}){when}")
        number = f"{len(self.findings)} finding{'' if len(self.findings) == 1 else 's'}"
        lines.append(f"{number}, weightiest: {self.findings[0].id}" if self.findings else "no findings")
        return "\n  ".join(["<Results", *lines]) + ">"

    def activity(self, site: str | Site) -> SiteActivity:
        """Return what the activations of a site are like.

        Args:
            site: as in `results[site]`.

        Raises:
            KeyError: if there is no such site.
        """
        name, known = self._site_text(site), tuple(activity.site for activity in self.activities)
        for activity in self.activities:
            if activity.site == name:
                return activity
        raise KeyError(f"no activations of {str(site)!r}: {_validate.closest(str(site), known, 'sites')}")

    def summary(self, all_findings: bool = False) -> str:
        """Return the results in words: clusters, a table per site and attribution, comparisons and findings.

        Args:
            all_findings: whether all findings are shown, rather than the weightiest ones.
        """
        from lightning_neuroimp.display.summary import summary

        return summary(self, all_findings=all_findings)

    def to_frame(self, rows: Literal["neurons", "clusters", "layers"] = "neurons") -> "pd.DataFrame":
        """Return the results as a tidy data frame of pandas.

        Args:
            rows: "neurons": one row for each neuron of each site, score and cluster; "clusters": one for each site,
                score and cluster; "layers": one for each site and score. `display.frames.to_frame` lists the columns.

        Raises:
            InvalidArgument: if `rows` has another value.
            MissingPackage: if pandas is not installed.
        """
        from lightning_neuroimp.display.frames import to_frame

        return to_frame(self, rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one `.npz` file: arrays, and JSON for the rest; no pickle, and never half a file.

        Args:
            path: path of the file; its folder is made where it is missing, and a file that is there is replaced.
        """
        files.save(self, path, FORMAT, VERSION)

    def save_new(self, candidates: Iterable[str | os.PathLike[str]]) -> Path:
        """Write to the first path at which there is no file yet, also while other processes do the same.

        Args:
            candidates: paths in one folder, in the order in which they are tried; may be endless.

        Returns:
            The path that was taken.

        Raises:
            FileExistsError: if there is a file at each of the candidates.
        """
        return files.save_new(self, candidates, FORMAT, VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Results":
        """Read what `save` wrote, with this version of the package or an older one.

        Args:
            path: path of the file.

        Raises:
            FileFormatError: if the file does not hold valid results, or comes from a newer version.
            OSError: if it cannot be opened or read.
        """
        results = files.load(path, FORMAT, VERSION, cls, UPGRADES)
        wrong = next(disagreements(results.clusters, results.importances), None)
        if wrong is not None:
            raise FileFormatError(f"{os.fspath(path)!r} is not a valid file of results: {wrong}")
        return results

    def replace(self, **changes: Any) -> "Results":
        """Return a copy with some fields changed.

        Args:
            changes: new values of fields.
        """
        return replace(self, **changes)

    def _site_text(self, site: Any) -> str | None:
        """Return the text of a known site that a key stands for; None for any other key."""
        if isinstance(site, str | Site) and str(site) in self.sites:
            return str(site)
        named = self._sites_of(site)
        return named[0] if len(named) == 1 else None

    def _sites_of(self, module: Any) -> tuple[str, ...]:
        """Return the sites, in words, of the module of that name."""
        named = (each.site for each in self.importances if each.removal.where.name == module)
        return tuple(dict.fromkeys(named))


def _line(importance: Importance) -> str:
    """Say in one line what is known of one score at one site."""
    judged, what = importance.faithfulness, f"{importance.site}, {importance.attribution}"
    if judged is None:
        return f"{what}: {importance.removal.n_neurons} neurons, not ablated"
    lds = "undefined" if np.isnan(judged.lds[-1]) else f"{judged.lds[-1]:.2f}"
    return f"{what}: {judged.verdict[-1]}, gap {judged.gap[-1]:+.3f}, p {judged.p_value[-1]:.3g}, LDS {lds}"
