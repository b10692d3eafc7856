"""Every kind of model, cluster and baseline, against a slow twin that runs one unpadded sample at a time."""

import copy
import functools

import numpy as np
import pytest
import torch

from lightning_neuroimp import (
    AblationFaithfulness,
    KMeansClusters,
    ProbeSet,
    ablate,
    ablation_faithfulness,
    list_sites,
    neuron_importance,
)
from lightning_neuroimp.batches.layout import read_batch
from lightning_neuroimp.capture.subject import Subject
from tests.support.families import CLASSES, FAMILIES, N
from tests.support.twin import twin_baselines, twin_removed, twin_scores

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")

BASELINES = ["zero", "mean", "resample", 0.3]
CLUSTERS = {
    "labels": "labels",
    "predictions": "predictions",
    "groups": {0: "one", 1: "others", 2: "others"},
    "kmeans": KMeansClusters(2),
    "callable": lambda batch: [number % 2 for number in range(read_batch(batch).size)],
}
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor"),
    # a GRU writes its first step into memory that does not depend on the site
    pytest.mark.filterwarnings("ignore:.*each (ablation|gradient) runs the whole network"),
]


def family_of(name):
    torch.manual_seed(3)
    family = FAMILIES[name]()
    family.model.eval()
    return family


def places(results):
    """The row of the results of each sample in the order of the stream."""
    return np.argsort(results.sample_index)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_and_ablations_equal_a_slow_twin(name, baseline):
    family = family_of(name)
    probe = ProbeSet.from_batches(family.batches, seed=5)
    results = neuron_importance(
        family.model, probe, layers=family.site, attribution="gradient_x_activation", baseline=baseline, seed=5
    )
    one = results[family.site]
    subject = Subject(family.model, probe)
    donors = subject.donors(one.removal.baseline, 5)
    donor_of = None if donors is None else dict(zip(range(N), donors.of(np.arange(N)).tolist(), strict=True))
    baselines = twin_baselines(family, baseline, donor_of)
    scores = twin_scores(family, baselines, family.labels)
    assert one.removal.n_neurons == scores.shape[1]
    for row, label in enumerate(one.cluster_ids.tolist()):
        member = family.labels == label
        np.testing.assert_allclose(one.mean[row], scores[member].mean(0), atol=1e-11)
        np.testing.assert_allclose(one.abs_mean[row], scores[member].abs().mean(0), atol=1e-11)

    recorder = subject.recorder(one.removal, donors)
    neurons = [0, scores.shape[1] - 1]
    mask = torch.zeros(1, scores.shape[1], dtype=torch.bool)
    mask[0, neurons] = True
    seen = 0
    with torch.no_grad():
        for batch, numbers in probe.batches():
            logits, _ = recorder.record(batch, numbers).ablated(mask)
            for row, sample in enumerate(numbers.tolist()):
                expected = twin_removed(family, baselines, sample, neurons)
                torch.testing.assert_close(logits[row], expected, rtol=1e-9, atol=1e-11)
                seen += 1
    assert seen == N


@pytest.mark.usefixtures("unchecked")  # shapes are checked in the test above
@pytest.mark.parametrize("kind", CLUSTERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_clusters(name, kind):
    family = family_of(name)
    results = neuron_importance(
        family.model,
        family.batches,
        layers=family.site,
        clusters=CLUSTERS[kind],
        baseline="mean",
        attribution=["gradient_x_activation", "activation"],
    )
    results = ablation_faithfulness(family.model, family.batches, results, AblationFaithfulness(fractions=(0.3,)))
    one, order = results[family.site], places(results)
    assert one.count.sum() == N
    ablated = one.faithfulness.samples.sum(0) > 0  # not a cluster of one
    assert ablated.any()
    np.testing.assert_array_equal(np.isfinite(one.faithfulness.gap), ablated)
    baselines = twin_baselines(family, "mean", None)
    scores = twin_scores(family, baselines, family.labels)
    cluster = results.sample_cluster[order]
    for row, key in enumerate(one.cluster_ids.tolist()):
        np.testing.assert_allclose(one.mean[row], scores[cluster == key].mean(0), atol=1e-11)
    if kind == "predictions":
        logits = torch.cat([family.logits(family.model, family.one(sample)) for sample in range(N)])
        np.testing.assert_array_equal(cluster, logits.argmax(1))
    if kind == "groups":
        np.testing.assert_array_equal(cluster, (family.labels > 0).long())
        assert results.clusters.names == ("one", "others")


@pytest.mark.parametrize("name", [name for name in FAMILIES if family_of(name).silence is not None])
def test_removing_a_neuron_is_setting_the_weights_that_read_it_to_zero(name):
    family = family_of(name)
    neuron = 1
    edited = copy.deepcopy(family.model)
    family.silence(edited, neuron)
    changed = 0
    with torch.no_grad():
        for sample in range(5):
            expected = family.logits(edited, family.one(sample))
            with ablate(family.model, family.site, [neuron]):
                found = family.logits(family.model, family.one(sample))
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
            changed += not torch.equal(found, family.logits(family.model, family.one(sample)))
    assert changed


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_size_and_order_do_not_matter(name):  # and so how much is padded does not
    family = family_of(name)
    found = [
        neuron_importance(
            family.model, batches, layers=family.site, baseline="mean", batch_size=size, clusters=CLUSTERS["groups"]
        )[family.site].mean
        for batches, size in ((family.batches, None), (family.batches[::-1], None), (family.batches, 5))
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-11)


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "attention", "lstm", "bert", "binary"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_precision(name, dtype, tolerance):
    family = family_of(name)
    exact = neuron_importance(family.model, family.batches, layers=family.site)[family.site].mean
    family.model.to(dtype)
    cast = [
        type(batch)(_cast(part, dtype) for part in batch)
        if isinstance(batch, tuple)
        else {key: _cast(part, dtype) for key, part in batch.items()}
        for batch in family.batches
    ]
    rough = neuron_importance(family.model, cast, layers=family.site)[family.site].mean
    assert np.abs(rough - exact).max() <= tolerance * max(1.0, np.abs(exact).max())


def _cast(part, dtype):
    return part.to(dtype) if part.is_floating_point() else part


def test_the_table_of_sites_names_every_family():
    for name in FAMILIES:
        family = family_of(name)
        table = {one.name: one for one in list_sites(family.model, family.batches[0])}
        row = table[family.site.name]
        assert row.calls == {"residual": 2, "residual_end": 2, "reused": 3}.get(name, 1)
        if family.site.call is not None:
            assert row.note == f"Site({family.site.name!r}, call=0) to call={row.calls - 1}"
        elif family.site.item is None:
            assert row.neurons is not None
            assert row.note == ""
    assert CLASSES == 3
