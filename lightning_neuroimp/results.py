"""Results: frozen dataclasses of NumPy arrays, saved to one file without pickle."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float, Int

from lightning_neuroimp import storage

FORMAT, VERSION = "lightning_neuroimp.results", 4


@dataclass(frozen=True)
class Site:
    """Where neurons are read and removed: the output or an input of a module, in one of its calls.

    `str(site)` is the key of its results and the name in tables and tags: `encoder.1`, `relu (call 1)`,
    `attention.out (input, groups of 8)`.

    Attributes:
        name: as in `model.named_modules()`, or a glob.
        axis: of the tensor, along which neurons are counted. By default: 1 for (sample, neuron) tensors; else the
            last for linear and recurrent layers, attention and layer norms, 1 for convolutions, their norms and
            pooling; for any other module, such as an activation, that of the layer that ran last before.
        optional: whether a module that is not called, or returns no tensor, is passed over (it came from a glob).
        side: "output" of the module, or its "input".
        call: which call of the module in a forward pass, 0 for the first; None: it must be called once.
        item: of an output that is a tuple or mapping, which index or key (a tuple of them for nested ones); of inputs,
            the number of the positional argument or the name of the keyword. None: the only tensor, and the output of
            recurrent layers and attention.
        position: of token layers, the number of the one token that is meant, such as 0 for a class token or -1 for the
            last; padding is not counted. None: all unpadded tokens.
        group: so many neighbours along the neuron axis count as one neuron, such as the width of an attention head.
        sample_axis: of the tensor; by default 0, and 1 inside modules of torch with `batch_first=False`.
    """

    name: str
    axis: int | None = None
    optional: bool = False
    side: str = "output"
    call: int | None = None
    item: int | str | tuple[int | str, ...] | None = None
    position: int | None = None
    group: int = 1
    sample_axis: int | None = None

    def __post_init__(self) -> None:
        if self.side not in ("output", "input"):
            raise ValueError(f"side of a site must be 'output' or 'input', got {self.side!r}")
        for field, least in (("call", 0), ("group", 1), ("sample_axis", 0), ("position", None), ("axis", None)):
            value = getattr(self, field)
            if value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise ValueError(f"{field} of a site must be an integer, got {value!r}")
            if least is not None and int(value) < least:
                hint = " (0 is the first)" if field == "call" else ""
                raise ValueError(f"{field} of a site must be {least} or more{hint}, got {value}")
            object.__setattr__(self, field, int(value))

    def __str__(self) -> str:
        parts = [
            *(["input"] if self.side == "input" else []),
            *([] if self.call is None else [f"call {self.call}"]),
            *([] if self.item is None else [f"item {'.'.join(map(str, self.path))}"]),
            *([] if self.position is None else [f"position {self.position}"]),
            *([] if self.group == 1 else [f"groups of {self.group}"]),
        ]
        return f"{self.name} ({', '.join(parts)})" if parts else self.name

    @property
    def path(self) -> tuple[int | str, ...]:
        """`item` as a path; empty for None."""
        if self.item is None:
            return ()
        return tuple(self.item) if isinstance(self.item, tuple | list) else (self.item,)


@dataclass(frozen=True, eq=False)
class Removal:
    """What removing a neuron means: which neurons, set to what, judged by which output.

    Scores are computed for a removal, and ablations take the same object out of the scores' results, so that the two
    cannot disagree.

    Attributes:
        where: the site.
        axis: of its tensor, samples first, along which the neurons are counted.
        baseline: name of the baseline: "zero", "mean", "resample", or a number.
        baseline_value: value that a removed channel is set to, in the unit of the activations; NaN where it is that of
            another sample ("resample"). A neuron is one channel, or a group of them.
        target: name of the scalar that is explained per sample.
        target_class: whose: of the "label", of the "predicted" class, or of one class for all.
    """

    where: Site
    axis: int
    baseline: str
    baseline_value: Float[np.ndarray, " channel"]
    target: str
    target_class: str | int = "label"

    @property
    def site(self) -> str:
        """The site in words."""
        return str(self.where)

    @property
    def n_neurons(self) -> int:
        """Number of neurons at the site."""
        return len(self.baseline_value) // self.where.group


@dataclass(frozen=True, eq=False)
class Overall:
    """Faithfulness of a site as a whole: all clusters together, weighted by their sizes.

    Attributes:
        intact_accuracy: accuracy with all neurons, 0 to 1.
        accuracy: the deletion curve, most important neurons first.
        random_accuracy: the same for each random order.
        reference_accuracy: the same for each reference ranking.
        gap: mean over the numbers of removed neurons of (accuracy under random removal - accuracy under removal of
            the most important), in accuracy (0 to 1).
        relative_gap: gap over the mean accuracy under random removal.
        p_value: share of random orders with a gap at least as large, the ranking itself counted.
        p_value_worse: the same for a gap at most as large.
        lds: linear datamodeling score, the correlation of predicted with measured joint effects, mean over clusters.
        verdict: in words.
        reference_gap: gap of each reference ranking.
        reference_interval: 95% of (gap - gap of each reference ranking), over the samples.
        alternative_lds: the LDS of each alternative score that the same pass has given.
        alternative_interval: 95% of (LDS of each alternative - LDS).
        gap_interval: 95%, with samples and random orders drawn again and the rankings fixed.
        lds_interval: 95%, with random orders drawn again, for the samples that were ablated.
        least_accuracy: the curve with the least important neurons removed first; None where it was not asked for.
        srg, srg_interval: symmetric relevance gain, the mean over the points of (least first - most first).
        greedy_accuracy: the curve of a greedy order; None where it was not asked for.
        normalised_gap: gap over that of the greedy order; NaN where that is not positive.
    """

    intact_accuracy: float
    accuracy: Float[np.ndarray, " point"]
    random_accuracy: Float[np.ndarray, "draw point"]
    reference_accuracy: Float[np.ndarray, "reference point"]
    gap: float
    relative_gap: float
    p_value: float
    p_value_worse: float
    lds: float
    verdict: str
    reference_gap: Float[np.ndarray, " reference"]
    reference_interval: Float[np.ndarray, "reference 2"]
    alternative_lds: Float[np.ndarray, " alternative"]
    alternative_interval: Float[np.ndarray, "alternative 2"]
    gap_interval: Float[np.ndarray, "2"]
    lds_interval: Float[np.ndarray, "2"]
    least_accuracy: Float[np.ndarray, " point"] | None
    srg: float
    srg_interval: Float[np.ndarray, "2"]
    greedy_accuracy: Float[np.ndarray, " point"] | None
    normalised_gap: float


@dataclass(frozen=True, eq=False)
class DeletionCurve:
    """What is left when neurons are removed in one order.

    Attributes:
        removed: how many neurons, at each point.
        accuracy: 0 to 1.
        margin: mean margin, in logits.
        intact_accuracy, intact_margin: with all neurons.
    """

    removed: Int[np.ndarray, " point"]
    accuracy: Float[np.ndarray, " point"]
    margin: Float[np.ndarray, " point"]
    intact_accuracy: float
    intact_margin: float


@dataclass(frozen=True, eq=False)
class Specificity:
    """What removing the top neurons of one cluster does to all others.

    Attributes:
        removed: how many neurons.
        damage: fall of the accuracy of the cluster of the row when the top neurons of the cluster of the column are
            removed; ranked on one half, removed on the other.
        value: mean over clusters of (damage to itself - mean damage to the others).
        p_value: share of assignments of columns to clusters with a value at least as large; NaN below four clusters.
        balanced_accuracy: with all neurons, and without the cluster's top neurons: of telling the cluster's class from
            all others, the mean of both rates; NaN for clusters that are not of one class each.
    """

    removed: int
    damage: Float[np.ndarray, "cluster cluster"]
    value: float
    p_value: float
    balanced_accuracy: Float[np.ndarray, "2 cluster"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two attributions at one site: whose ranking does removal bear out better?

    Attributes:
        site: name of the module.
        first, second: the attributions.
        difference: gap of the first one - gap of the second one, all clusters together.
        interval: 95%, over the samples that both removed neurons of, with the rankings fixed.
        cluster_difference, cluster_interval: the same per cluster.
    """

    site: str
    first: str
    second: str
    difference: float
    interval: Float[np.ndarray, "2"]
    cluster_difference: Float[np.ndarray, " cluster"]
    cluster_interval: Float[np.ndarray, "cluster 2"]

    @property
    def better(self) -> str | None:
        """The better one, where the interval does not hold zero."""
        return self.first if self.interval[0] > 0 else self.second if self.interval[1] < 0 else None


@dataclass(frozen=True, eq=False)
class Randomisation:
    """How far importances follow the model's weights.

    Attributes:
        site: name of the module.
        attribution: name of the score.
        stages: the modules whose weights each stage shuffles, from the output towards the input; earlier ones stay so.
        rank_correlation: of the importances then with those of the model as it is.
    """

    site: str
    attribution: str
    stages: tuple[str, ...]
    rank_correlation: Float[np.ndarray, "stage cluster"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """How well the two halves of each cluster agree on its neurons.

    Attributes:
        split_half: rank correlation of the halves' importances, corrected to the whole cluster's length.
        k: a tenth of the neurons, rounded up.
        top_overlap: Jaccard overlap of the halves' k top neurons.
        top_chance: the overlap by chance.
        samples_needed: how many samples of the cluster would make `split_half` .9.
    """

    split_half: Float[np.ndarray, " cluster"]
    k: int
    top_overlap: Float[np.ndarray, " cluster"]
    top_chance: float
    samples_needed: Float[np.ndarray, " cluster"]


@dataclass(frozen=True, eq=False)
class Drift:
    """How importances have changed since the last measured epoch, cluster by identity.

    Attributes:
        epoch: that epoch.
        rank_correlation: of then and now; NaN for clusters that were not there.
        top_overlap: Jaccard overlap of the top tenth of the neurons.
    """

    epoch: int
    rank_correlation: Float[np.ndarray, " cluster"]
    top_overlap: Float[np.ndarray, " cluster"]


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Deletion curves of one ranking against random removal.

    Each cluster has two halves; neurons are ranked on one and ablated on the other, both ways, and the outcomes of the
    two are pooled. The gap is the unweighted mean over `removed` of (mean random control - deletion curve).

    Attributes:
        removed: how many neurons were removed at each point of the curves.
        samples: ablated samples per half and cluster.
        intact_accuracy: accuracy with all neurons, 0 to 1.
        intact_margin: mean margin with all neurons, in logits.
        accuracy, margin: the deletion curve, most important neurons first.
        random_accuracy, random_margin: the same for each random order.
        references: names of the reference rankings.
        reference_accuracy: their deletion curves.
        alternatives: names of other scores that the same pass has given, without removals of their own.
        alternative_lds: their LDS.
        gap, relative_gap, p_value, p_value_worse, lds, verdict, reference_gap, gap_interval, lds_interval,
            least_accuracy, srg, srg_interval, greedy_accuracy, normalised_gap: as in `Overall`, per cluster.
        q_value: smallest false discovery rate, over all clusters, sites and attributions of the measurement, at which
            the cluster's gap is a discovery.
        n_draws: random orders that were asked for; fewer were made where all was decided before.
        specificity: None where it was not asked for.
        overall: all clusters together.
    """

    removed: Int[np.ndarray, " point"]
    samples: Int[np.ndarray, "half cluster"]
    intact_accuracy: Float[np.ndarray, " cluster"]
    intact_margin: Float[np.ndarray, " cluster"]
    accuracy: Float[np.ndarray, "cluster point"]
    margin: Float[np.ndarray, "cluster point"]
    random_accuracy: Float[np.ndarray, "draw cluster point"]
    random_margin: Float[np.ndarray, "draw cluster point"]
    references: tuple[str, ...]
    reference_accuracy: Float[np.ndarray, "reference cluster point"]
    gap: Float[np.ndarray, " cluster"]
    relative_gap: Float[np.ndarray, " cluster"]
    p_value: Float[np.ndarray, " cluster"]
    p_value_worse: Float[np.ndarray, " cluster"]
    lds: Float[np.ndarray, " cluster"]
    reference_gap: Float[np.ndarray, "reference cluster"]
    alternatives: tuple[str, ...]
    alternative_lds: Float[np.ndarray, "alternative cluster"]
    verdict: tuple[str, ...]
    gap_interval: Float[np.ndarray, "cluster 2"]
    lds_interval: Float[np.ndarray, "cluster 2"]
    least_accuracy: Float[np.ndarray, "cluster point"] | None
    srg: Float[np.ndarray, " cluster"]
    srg_interval: Float[np.ndarray, "cluster 2"]
    greedy_accuracy: Float[np.ndarray, "cluster point"] | None
    normalised_gap: Float[np.ndarray, " cluster"]
    q_value: Float[np.ndarray, " cluster"]
    n_draws: int
    specificity: Specificity | None
    overall: Overall


@dataclass(frozen=True, eq=False)
class Importance:
    """Attributions at one site, aggregated over each cluster and each half of it.

    Attributes:
        removal: what was scored.
        attribution: name of the score.
        cluster_ids: the clusters' ids, in the order of the rows.
        count: samples per half and cluster that entered (those with finite values).
        half_mean, half_abs_mean, half_square_mean: mean of the attribution, of its absolute value and of its square;
            NaN where a half is empty.
        half_deviation: mean |activation - baseline|, summed over positions: the ranking by size, a reference.
        half_first_order: mean (activation - baseline) x derivative, the effect of removal to first order; of the margin
            for the targets "margin", "probability" and "log_probability", else of the target itself. None where no
            gradients were computed.
        effective_samples: by how many of a cluster's samples the scores would be carried if each had the same weight:
            (sum of s)^2 / sum of s^2, s a sample's sum of absolute attributions (Kish, "Survey Sampling", 1965).
        non_finite: samples left out because of values that were not finite.
        reliability: how well the halves agree.
        drift: since the last measured epoch; None where there is none.
        faithfulness: how removal bears out the scores; None where it was not measured.
    """

    removal: Removal
    attribution: str
    cluster_ids: Int[np.ndarray, " cluster"]
    count: Int[np.ndarray, "half cluster"]
    half_mean: Float[np.ndarray, "half cluster neuron"]
    half_abs_mean: Float[np.ndarray, "half cluster neuron"]
    half_square_mean: Float[np.ndarray, "half cluster neuron"]
    half_deviation: Float[np.ndarray, "half cluster neuron"]
    half_first_order: Float[np.ndarray, "half cluster neuron"] | None
    effective_samples: Float[np.ndarray, " cluster"]
    non_finite: int
    reliability: Reliability
    drift: Drift | None = None
    faithfulness: Faithfulness | None = None

    @property
    def site(self) -> str:
        """The site in words."""
        return self.removal.site

    def _pooled(self, half: Float[np.ndarray, "half cluster neuron"]) -> Float[np.ndarray, "cluster neuron"]:
        weight = self.count[..., None].astype(float)
        total = np.where(weight > 0, half * weight, 0.0).sum(0)
        return np.divide(total, weight.sum(0), out=np.full_like(total, np.nan), where=weight.sum(0) > 0)

    @property
    def mean(self) -> Float[np.ndarray, "cluster neuron"]:
        """Mean attribution over each cluster: the importance by which neurons are ranked, in units of the target."""
        return self._pooled(self.half_mean)

    @property
    def abs_mean(self) -> Float[np.ndarray, "cluster neuron"]:
        """Mean absolute attribution over each cluster."""
        return self._pooled(self.half_abs_mean)

    @property
    def first_order(self) -> Float[np.ndarray, "cluster neuron"] | None:
        """Mean (activation - baseline) x derivative over each cluster; None where no gradients were computed."""
        return None if self.half_first_order is None else self._pooled(self.half_first_order)

    @property
    def deviation(self) -> Float[np.ndarray, "cluster neuron"]:
        """Mean |activation - baseline| over each cluster."""
        return self._pooled(self.half_deviation)

    @property
    def std(self) -> Float[np.ndarray, "cluster neuron"]:
        """Standard deviation of the attribution inside each cluster."""
        return np.sqrt(np.maximum(self._pooled(self.half_square_mean) - self.mean**2, 0.0))

    @property
    def stderr(self) -> Float[np.ndarray, "cluster neuron"]:
        """Standard error of the mean, from the sample standard deviation; NaN for clusters of one."""
        count = self.count.sum(0)[:, None].astype(float)
        return self.std / np.sqrt(np.where(count > 1, count - 1, np.nan))

    def row(self, cluster: SupportsIndex) -> int:
        """Row of a cluster id.

        Raises:
            KeyError: if there is no such cluster.
        """
        found = np.flatnonzero(self.cluster_ids == int(cluster))
        if not len(found):
            raise KeyError(f"no cluster {cluster} at {self.site!r}: the clusters are {self.cluster_ids.tolist()}")
        return int(found[0])

    def top(self, cluster: SupportsIndex, k: int = 10) -> Int[np.ndarray, " top"]:
        """The k most important neurons of a cluster, best first.

        All of them where there are fewer; none where the cluster has no finite values.

        Args:
            cluster: the cluster's id.
            k: how many neurons.

        Raises:
            KeyError: if there is no such cluster.
            ValueError: if k is not positive.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        mean = self.mean[self.row(cluster)]
        return np.argsort(-mean, kind="stable")[: k if np.isfinite(mean).all() else 0]


@dataclass(frozen=True, eq=False)
class ClusterTable:
    """What the clusters are, on the probe set.

    Attributes:
        source: where they come from, in words.
        ids: kept from epoch to epoch.
        names: for people.
        size: probe samples.
        accuracy: share of samples whose prediction is their target class.
        class_counts: samples per cluster and target class.
        exemplars: numbers (in the stream of validation samples) of the samples nearest to each cluster's centre,
            nearest first; -1 where a cluster has fewer.
        adjusted_rand_index: agreement with the last epoch's clusters (1: the same; 0: as by chance); NaN without one.
        history: rows (id, sample number) of each cluster ever seen, with its last members.
        class_names: of the classes, where they were given.
    """

    source: str
    ids: Int[np.ndarray, " cluster"]
    names: tuple[str, ...]
    size: Int[np.ndarray, " cluster"]
    accuracy: Float[np.ndarray, " cluster"]
    class_counts: Int[np.ndarray, "cluster class"]
    exemplars: Int[np.ndarray, "cluster exemplar"]
    adjusted_rand_index: float
    history: Int[np.ndarray, "entry 2"]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SiteActivity:
    """What the activations of a site are like on the probe set, over all (unpadded) positions.

    Attributes:
        site: in words.
        count: values per channel.
        mean, std, minimum, maximum: of each channel; a neuron is one channel, or a group of them.
        top_samples: numbers of the samples that drive each neuron most, most first: those of the largest activation at
            any position (for groups of channels, the largest Euclidean norm); -1 where there are fewer.
        top_values: those activations.
        nonlinearity: the function that follows elementwise, such as "tanh", where the site is what it is given; "" for
            none, or where no gradients were computed.
        derivative_error: what the derivative does not see of removal's effect on the outcome of that function: the sum
            of |f(h) - f(b)| - |(h - b) f'(h)|, where that is positive, over that of |f(h) - f(b)|, for all neurons of
            the first 64 samples of each process; NaN where none follows.
    """

    site: str
    count: int
    mean: Float[np.ndarray, " channel"]
    std: Float[np.ndarray, " channel"]
    minimum: Float[np.ndarray, " channel"]
    maximum: Float[np.ndarray, " channel"]
    top_samples: Int[np.ndarray, "neuron top"]
    top_values: Float[np.ndarray, "neuron top"]
    nonlinearity: str = ""
    derivative_error: float = float("nan")

    def distance(self, baseline: Float[np.ndarray, " channel"]) -> Float[np.ndarray, " channel"]:
        """How many standard deviations a baseline lies from each channel's mean; NaN for constant channels.

        Args:
            baseline: of each channel.
        """
        away = np.abs(baseline - self.mean)
        return np.divide(away, self.std, out=np.full_like(away, np.nan), where=self.std > 0)


@dataclass(frozen=True, eq=False)
class Finding:
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
        storage.save(self, path, FORMAT, VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Results":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file holds something else, or comes from a newer version.
        """
        found: Results = storage.load(path, FORMAT, VERSION, _CLASSES)
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
        Overall,
        Randomisation,
        Reliability,
        Removal,
        Results,
        Site,
        SiteActivity,
        Specificity,
    )
}
