"""Validate the arguments of an importance measurement, for the function and the callback alike."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from lightning_neuroimp import _validate
from lightning_neuroimp.capture.baselines import Baseline
from lightning_neuroimp.capture.sites import validate_layers
from lightning_neuroimp.capture.targets import Target, validate_target_class
from lightning_neuroimp.clusters.choice import BatchFn, Clusters, validate_clusters
from lightning_neuroimp.clusters.classes import ClassClusters, validate_class_names, validate_classes
from lightning_neuroimp.clusters.kmeans import KMeansClusters
from lightning_neuroimp.importance.attributions.registry import Attribution, resolve_attributions
from lightning_neuroimp.site import Site

MAX_SEED = 2**32 - 1


@dataclass(eq=False)
class ImportanceSettings:
    """Validate what is measured: layers, clusters, scores, and what removal means.

    The arguments are those of `neuron_importance`, which documents them; the attributes hold them in the form in which
    they are used.

    Attributes:
        layers: names, globs or sites, as they were passed.
        clusters: a name, a mapping, `KMeansClusters` or a callable, as it was passed.
        attributions: the scores.
        explained: the scalar that is explained per sample.
        target_class: class whose target is explained.
        removed_to: what removed neurons are set to.
        classes: labels of the samples that may be in clusters; None: all.
        class_names: of all classes.
        groups: callable with one value for samples that must not be divided between halves; None: there are none.
        seed: seed of KMeans, halves, donors and random scores.
        ignore_index: label of samples that have none; None: all have one.

    Raises:
        InvalidArgument: if an argument has no valid value; the message names what would work.
    """

    layers: Any
    clusters: Clusters = "labels"
    attribution: InitVar[Any] = "blockwise_gradient"
    target: InitVar[Any] = "margin"
    target_class: str | int = "label"
    baseline: InitVar[Any] = "zero"
    classes: Any = None
    class_names: Any = ()
    groups: BatchFn | None = None
    seed: int = 0
    ignore_index: int | None = None
    attributions: tuple[Attribution, ...] = field(init=False)
    explained: Target = field(init=False)
    removed_to: Baseline = field(init=False)

    def __post_init__(self, attribution: Any, target: Any, baseline: Any) -> None:
        self.layers = tuple(validate_layers(self.layers))
        validate_clusters(self.clusters)
        self.attributions = resolve_attributions(attribution)
        self.explained = Target.of(target)
        self.target_class = validate_target_class(self.target_class)
        self.removed_to = Baseline.of(baseline)
        named = [layer for layer in self.layers if isinstance(layer, str | Site)]
        sites = [Site(layer) if isinstance(layer, str) else layer for layer in named]
        if len(sites) == len(self.layers) and not any("*" in site.name for site in sites):
            self.removed_to.require_sites(sites)
        self.class_names = validate_class_names(self.class_names)
        self.classes = validate_classes(self.classes, self.class_names)
        if self.groups is not None:
            _validate.function("groups", self.groups, "(batch) -> one integer or string per sample")
        self.seed = _validate.integer("seed", self.seed, least=0, most=MAX_SEED)
        if self.ignore_index is not None:
            self.ignore_index = _validate.integer("ignore_index", self.ignore_index)
        self.class_clusters()  # to refuse unknown names and too many groups at once

    def class_clusters(self) -> ClassClusters | None:
        """Return the rule by which clusters follow from classes; None if they do not."""
        if isinstance(self.clusters, str | Mapping) and self.clusters != "dataloaders":
            return ClassClusters(self.clusters, self.class_names)
        return None

    @property
    def kmeans(self) -> KMeansClusters | None:
        """Return the settings of KMeans; None for other clusters."""
        return self.clusters if isinstance(self.clusters, KMeansClusters) else None
