import functools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from torch import nn

from lightning_neuroimp import AblationFaithfulness, KMeansClusters, ProbeSet, ablation_faithfulness, neuron_importance
from lightning_neuroimp.batches.processes import Processes
from lightning_neuroimp.capture.subject import Subject
from lightning_neuroimp.clusters import kmeans as clusters_module
from lightning_neuroimp.clusters.halves import assign_groups
from lightning_neuroimp.clusters.identities import agreement, keep_identities
from lightning_neuroimp.display.summary import summary
from lightning_neuroimp.results.clusters import ClusterTable
from tests.support.digits import train, validation_batches
from tests.support.toys import class_zero, in_lockstep

# the product, whose twins are simple; the default is tested beside the other scores
neuron_importance = functools.partial(neuron_importance, attribution="gradient_x_activation")


def table(ids, history, source="KMeans"):
    n = len(ids)
    return ClusterTable(
        "kmeans",
        source,
        np.array(ids),
        tuple(map(str, ids)),
        np.ones(n, int),
        np.ones(n),
        np.ones((n, 1), int),
        np.zeros((n, 5), int),
        1.0,
        np.array(history).reshape(-1, 2),
    )


def history(**members):
    return [(int(key[1:]), sample) for key, samples in members.items() for sample in samples]


INDEX = np.arange(12)


def test_first_ids_are_given_by_size():
    number = np.array([5, 5, 5, 5, 5, 7, 7, 7, 3, 3, 3, 3])
    named, ids, past = keep_identities(number, INDEX, None)
    assert ids.tolist() == [0, 1, 2]
    assert named.tolist() == [0] * 5 + [2] * 3 + [1] * 4
    assert past.shape == (12, 2)


def test_ids_follow_their_members():
    before = table([0, 1], history(c0=range(6), c1=range(6, 12)))
    # numbered the other way round, and one sample has moved
    named, ids, _ = keep_identities(np.array([1] * 5 + [0] * 7), INDEX, before)
    assert ids.tolist() == [0, 1]
    assert named.tolist() == [0] * 5 + [1] * 7
    found = agreement(named, INDEX, before)
    assert 0.6 < found < 1


def test_a_cluster_below_half_overlap_gets_a_new_id_and_the_old_one_revives():
    before = table([0, 1], history(c0=range(6), c1=range(6, 12)))
    halved = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2])
    named, ids, past = keep_identities(halved, INDEX, before)
    # 3 of 6: a Jaccard index of .5 is enough for one half; the other is new
    assert set(ids.tolist()) == {0, 1, 2}
    assert (named[6:] == 1).all()
    thirds = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3])
    named, ids, past = keep_identities(thirds, INDEX, before)
    assert ids.tolist() == [1, 2, 3, 4]
    # cluster 0 has retired; its members come together again
    again, ids, _ = keep_identities(np.array([8] * 6 + [4] * 6), INDEX, table(ids, past))
    assert again.tolist() == [0] * 6 + [1] * 6


def test_good_overlap_wins_over_two_poor_ones():
    # new A overlaps old 0 by 6/12; pairing A with 1 and B with 0 would add up to more, each below .5
    old = history(c0=range(12), c1=range(12, 24))
    number = np.array([0] * 6 + [2] * 2 + [1] * 4 + [1] * 4 + [3] * 8)
    named, *_ = keep_identities(number, np.arange(24), table([0, 1], old))
    assert (named[:6] == 0).all()


def test_samples_without_a_cluster():
    named, ids, past = keep_identities(np.array([-1] * 6 + [0] * 6), INDEX, None)
    assert named.tolist() == [-1] * 6 + [0] * 6
    assert ids.tolist() == [0]
    assert len(past) == 6


class Rotating(nn.Module):
    """Two-dimensional data as the embedding, turned by an angle."""

    def __init__(self, angle):
        super().__init__()
        c, s = np.cos(angle), np.sin(angle)
        self.register_buffer("turn", torch.tensor([[c, -s], [s, c]], dtype=torch.float32))
        self.body, self.head = nn.Identity(), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.body(x @ self.turn))


def test_kmeans_finds_clusters_and_keeps_their_ids_when_the_embedding_turns():
    x, groups = make_blobs(200, centers=[[0, 5], [5, 0], [-5, 0], [0, -5]], cluster_std=0.5, random_state=0)
    data = [(torch.tensor(x, dtype=torch.float32), torch.tensor(groups % 2))]
    results, seen = None, []
    for angle in (0.0, 1.0, 2.5):
        model = Rotating(angle)
        results = neuron_importance(model, data, layers="body", clusters=KMeansClusters(4), previous=results)
        seen.append(results.sample_cluster.copy())
    assert np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[0], seen[2])
    assert results.clusters.adjusted_rand_index == 1.0
    for cluster in results.clusters.ids:
        assert len(set(groups[results.sample_index[seen[0] == cluster]])) == 1


def test_clusters_are_described():
    model, data = train(nn.ReLU, width=16, depth=1, epochs=3), validation_batches()
    results = neuron_importance(model, data, layers="1", clusters=KMeansClusters(4))
    clusters = results.clusters
    assert clusters.source == "KMeans(4) on the input of the last linear layer"
    assert clusters.names[0] == "cluster 0"
    assert np.isnan(clusters.adjusted_rand_index)
    with torch.no_grad():
        x = torch.cat([batch[0] for batch in data])[results.sample_index]
        y = torch.cat([batch[1] for batch in data])[results.sample_index].numpy()
        embedding = model[1](model[0](x)).numpy()
        predicted = model(x).argmax(1).numpy()
    for row, cluster in enumerate(clusters.ids):
        member = results.sample_cluster == cluster
        assert clusters.size[row] == member.sum()
        assert clusters.accuracy[row] == pytest.approx((predicted == y)[member].mean())
        assert clusters.class_counts[row].tolist() == np.bincount(y[member], minlength=10).tolist()
        distance = np.linalg.norm(embedding - embedding[member].mean(0), axis=1)
        nearest = results.sample_index[member][np.argsort(distance[member])[:5]]
        assert clusters.exemplars[row].tolist() == nearest.tolist()


def test_an_embedding_by_name():
    model, data = train(nn.ReLU, width=16, depth=2, epochs=1), validation_batches()
    one = neuron_importance(model, data, layers="1", clusters=KMeansClusters(3, embedding="3"))
    other = neuron_importance(model, data, layers="1", clusters=KMeansClusters(3))
    assert one.clusters.source == "KMeans(3) on the output of 3"
    np.testing.assert_array_equal(one.sample_cluster, other.sample_cluster)


def test_a_callable_names_clusters():
    model, data = train(nn.ReLU, width=16, depth=1, epochs=1), validation_batches()
    words = neuron_importance(
        model, data, layers="1", clusters=lambda batch: ["odd" if y % 2 else "even" for y in batch[1].tolist()]
    )
    assert words.clusters.names == ("even", "odd")
    assert (words.sample_cluster == words.sample_target % 2).all()
    numbers = neuron_importance(model, data, layers="1", clusters=lambda batch: batch[1] % 3)
    assert numbers.clusters.ids.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(numbers.sample_cluster, numbers.sample_target % 3)


def important(clusters, data=None, model=None, **options):
    model = model or nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    return neuron_importance(model, data or validation_batches(), layers="1", clusters=clusters, **options)


@pytest.mark.parametrize(
    ("clusters", "phrases"),
    [
        (lambda batch: batch[1][:5], ["one integer or string for each of the 128 samples", "a Tensor"]),
        (lambda batch: batch[1] / 2, ["one integer or string for each"]),
        (lambda batch: range(21 * 10), ["one integer or string for each"]),
        (KMeansClusters(600), ["n_clusters=600 is more than the 597 probe samples", "ask for fewer clusters"]),
        (KMeansClusters(3, embedding="7"), ["no layer '7'"]),
        (
            "kmeans",
            [
                "clusters must be 'labels', 'predictions', 'dataloaders', a mapping from classes to groups, KMeans",
                "got 'kmeans'",
            ],
        ),
    ],
)
def test_clusters_that_cannot_be_made(clusters, phrases):
    with pytest.raises(ValueError, match=".") as error:
        important(clusters)
    for phrase in phrases:
        assert phrase in str(error.value)


def test_too_many_labels_or_groups():
    data = [(torch.randn(42, 64), torch.arange(42) // 2)]
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 21))
    for clusters in ("labels", lambda batch: batch[1]):
        with pytest.raises(
            ValueError,
            match=r"there are (at least )?21 clusters, more than 20: look at .* classes=.*group them with a mapping",
        ):
            important(clusters, data, model)
    assert len(important(lambda batch: batch[1] // 10, data, model).clusters.ids) == 3


def test_too_few_clusters():
    with pytest.raises(ValueError, match="n_clusters must be at least 2, got 1"):
        KMeansClusters(1)


def test_no_embedding():
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    data = class_zero(torch.randn(40, 2, 4))
    with pytest.raises(
        ValueError, match=r"the model calls no linear layer.*KMeansClusters\(n_clusters, embedding='...'"
    ):
        important(KMeansClusters(2), data, model)
    assert len(important(KMeansClusters(2, embedding="1"), data, model).clusters.ids) == 2
    # labels need none: logits stand in for the samples nearest to a centre
    assert important("labels", data, model).clusters.exemplars.min() >= 0


def blobs(**options):
    return make_blobs(300, random_state=0, **options)


def assigned(x, **options):
    return KMeansClusters(**options).assign(x, np.arange(len(x)), None, 0)


def same_partition(one, other):
    return adjusted_rand_score(one, other) == pytest.approx(1.0)


def test_scaling_decides_what_is_near():
    x, groups = blobs(centers=[[0, 0], [0, 6]], cluster_std=0.5)
    x[:, 0] *= 100  # a loud feature that tells nothing
    assert not same_partition(assigned(x, n_clusters=2), groups)
    assert same_partition(assigned(x, n_clusters=2, scale="standard"), groups)
    angle = np.where(groups, 0.3, 1.2) + np.random.default_rng(0).normal(0, 0.05, 300)
    length = np.random.default_rng(1).uniform(1, 50, 300)
    fan = length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    assert not same_partition(assigned(fan, n_clusters=2), groups)
    assert same_partition(assigned(fan, n_clusters=2, scale="l2"), groups)


def test_components_are_those_of_scikit_learn():
    x, _ = blobs(n_features=12, centers=4)
    expected = KMeans(4, n_init=10, random_state=0).fit_predict(PCA(2, random_state=0).fit_transform(x))
    assert same_partition(assigned(x, n_clusters=4, n_components=2), expected)
    assert same_partition(
        assigned(x, n_clusters=4, n_components=50), assigned(x, n_clusters=4)
    )  # no more than there are


@pytest.mark.parametrize("number", [3, 5])
def test_the_number_of_clusters_by_silhouette(number):
    x, groups = blobs(centers=number, n_features=6, cluster_std=0.7)
    assert same_partition(assigned(x, n_clusters=(2, 8)), groups)


def test_the_number_of_clusters_is_kept_from_epoch_to_epoch():
    x, _ = blobs(centers=4, n_features=6, cluster_std=0.7)
    clusters, index = KMeansClusters((2, 8)), np.arange(300)
    number = clusters.assign(x, index, None, 0)
    _, ids, past = keep_identities(number, index, None)
    # two of the four have come together: chosen anew there would be three
    moved = x.copy()
    moved[number == 0] += x[number == 1].mean(0) - x[number == 0].mean(0)
    assert len(np.unique(assigned(moved, n_clusters=(2, 8)))) == 3
    assert len(np.unique(clusters.assign(moved, index, table(ids.tolist(), past), 0))) == 4


def test_many_samples_are_clustered_in_mini_batches(monkeypatch):
    x, groups = blobs(centers=[[0, 9], [9, 0], [-9, 0]])
    made = []

    def spy(*args, **options):
        made.append(options)
        return MiniBatchKMeans(*args, **options)

    monkeypatch.setattr(clusters_module, "MiniBatchKMeans", spy)
    monkeypatch.setattr(clusters_module, "MINI_BATCH_FROM", 200)
    assert same_partition(assigned(x, n_clusters=3), groups)
    assert made[0]["random_state"] == 0


def test_the_source_says_how():
    clusters = KMeansClusters((2, 9), embedding="body", scale="l2", n_components=3)
    assert str(clusters) == "KMeans(2 to 9) on the output of body, scaled to length 1, 3 principal components"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 1}, "n_clusters must be at least 2, got 1"),
        ({"n_clusters": (5, 3)}, r"a pair \(least, most\) from 2 to 20, got \(5, 3\)"),
        ({"n_clusters": (2, 40)}, r"from 2 to 20, got \(2, 40\)"),
        ({"scale": "max"}, "scale must be 'standard', 'l2' or None, got 'max'"),
        ({"n_components": 0}, "n_components must be at least 1, got 0"),
    ],
)
def test_kmeans_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        KMeansClusters(**options)


NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def test_groups_of_classes_by_number_or_name():
    groups = {"zero": "round", 6: "round", 8: "round", 1: "straight", "four": "straight", 7: "straight"}
    results = important(groups, class_names=NAMES)
    assert results.clusters.names == ("round", "straight")
    of = {0: 0, 6: 0, 8: 0, 1: 1, 4: 1, 7: 1}
    assert results.sample_cluster.tolist() == [of.get(label, -1) for label in results.sample_label.tolist()]
    left_out = int((results.sample_cluster < 0).sum())
    assert f"{left_out} of 597 samples are in no cluster" in results.notes
    assert results["1"].count.sum() == 597 - left_out
    text = summary(results)
    assert "groups of 6 labels" in text
    assert "zero " in text


def test_some_classes_with_names():
    results = important("labels", classes=["three", 5], class_names=NAMES)
    assert results.clusters.names == ("three", "five")
    assert set(results.sample_label.tolist()) == {3, 5}
    many = [(torch.randn(90, 64), torch.arange(90)) for _ in range(4)]
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 90))
    few = important("labels", many, model, classes=[70, 80, 5])
    assert few.clusters.ids.tolist() == [5, 70, 80]
    assert few.clusters.size.tolist() == [4, 4, 4]


def test_classes_that_only_forward_fn_knows_are_left_out_of_the_clusters():
    data = [(x, {"deep": y}) for x, y in validation_batches()]
    results = important(
        "labels", data, classes=[1, 2], forward_fn=lambda model, batch: (model(batch[0]), batch[1]["deep"])
    )
    assert results.clusters.ids.tolist() == [1, 2]
    assert len(results.sample_index) == 597


def test_predictions_are_clusters():
    model = train(nn.ReLU, width=16, depth=1, epochs=3)
    results = important("predictions", model=model, class_names=NAMES)
    with torch.no_grad():
        said = model(torch.cat([x for x, _ in validation_batches()])).argmax(1).numpy()
    np.testing.assert_array_equal(results.sample_cluster, said[results.sample_index])
    names = dict(zip(results.clusters.ids.tolist(), results.clusters.names, strict=True))
    assert names[int(said[0])] == f"predicted {NAMES[said[0]]}"
    assert (results.clusters.class_counts > 0).sum() > 10  # labels inside them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "three"}, "classes must be a list of class numbers or names, got 'three'"),
        ({"classes": []}, "classes must be a list of class numbers or names"),
        ({"classes": ["ten"], "class_names": NAMES}, "no class named 'ten': did you mean 'three' or 'seven'"),
        ({"classes": ["ten"]}, "no class named 'ten': the names are none; pass class_names="),
        ({"classes": [-1]}, "a class, where it is no name, must be at least 0, got -1"),
        ({"class_names": "three"}, "class_names must be a list with the name of each class, got 'three'"),
        ({"clusters": {}}, "clusters as a mapping must go from classes .* to groups"),
        (
            {"clusters": {0: "a", "zero": "b"}, "class_names": NAMES},
            r"names a class twice, by number and by name, in \[0, 'z",
        ),
        ({"clusters": {1: 2.5}}, "clusters as a mapping must go from classes .* to groups"),
        ({"clusters": {number: number for number in range(21)}}, "there are 21 clusters, more than 20"),
        ({"clusters": {50: "a"}}, r"no probe sample is in a cluster: clusters='groups of 1 labels'.*labels are \[0, 1"),
        ({"groups": lambda batch: [0.5]}, "the groups callable must return one integer or string for each of the 128"),
    ],
)
def test_classes_and_groups_that_are_not_there(options, message):
    with pytest.raises(ValueError, match=message):
        important(**({"clusters": "labels"} | options))


def test_a_group_is_never_divided_between_halves():
    x = torch.randn(240, 64)
    y = torch.arange(240) % 4
    patient = torch.arange(240) // 8  # of all classes
    data = list(zip(x.split(50), y.split(50), patient.split(50), strict=True))
    options = {"forward_fn": lambda model, batch: (model(batch[0]), batch[1])}
    results = important("labels", data, groups=lambda batch: batch[2], **options)
    halves = {}
    for sample, half in zip(results.sample_index.tolist(), results.sample_half.tolist(), strict=True):
        halves.setdefault(int(patient[sample]), set()).add(half)
    assert all(len(half) == 1 for half in halves.values())
    assert np.bincount(results.sample_half).tolist() == [120, 120]
    without = important("labels", data, **options)
    shared = {}
    for sample, half in zip(without.sample_index.tolist(), without.sample_half.tolist(), strict=True):
        shared.setdefault(int(patient[sample]), set()).add(half)
    assert any(len(half) == 2 for half in shared.values())


def test_halves_by_group_do_not_depend_on_processes():
    x, y = torch.randn(90, 2), torch.zeros(90).long()
    whole = ProbeSet.from_batches([(x, y)])
    names = lambda batch: [f"patient {int(1e6 * abs(value)) % 7}" for value in batch[0][:, 0]]  # noqa: E731
    half = assign_groups(names, Subject(nn.Identity(), whole)).half
    expected = dict(zip(whole.index.tolist(), half.tolist(), strict=True))
    found = [None] * 3

    def process(rank, gather):
        mine = whole.select(np.arange(rank, 90, 3))
        subject = Subject(nn.Identity(), mine, batch_size=4, processes=Processes(gather))
        found[rank] = dict(zip(mine.index.tolist(), assign_groups(names, subject).half.tolist(), strict=True))

    in_lockstep(3, process)
    assert {key: half for part in found for key, half in part.items()} == expected


def test_splits_merges_and_vanishing_clusters_keep_their_ids():
    whole = np.zeros(12, int)
    _, ids, past = keep_identities(np.repeat([0, 1], 6), INDEX, None)
    # a split: the larger part goes on, the smaller one is new
    split = np.array([0] * 4 + [2] * 2 + [1] * 6)
    named, ids, past = keep_identities(split, INDEX, table(ids.tolist(), past))
    assert named.tolist() == [0] * 4 + [2] * 2 + [1] * 6
    # a merge: the part that is at least half of it goes on, the other retires
    named, ids, past = keep_identities(whole, INDEX, table(ids.tolist(), past))
    assert named.tolist() == [1] * 12
    # and what retired revives
    named, ids, past = keep_identities(split, INDEX, table(ids.tolist(), past))
    assert named.tolist() == [0] * 4 + [2] * 2 + [1] * 6


def test_groups_are_balanced_in_each_cluster():
    x, patient = torch.randn(240, 64), torch.arange(240) % 8
    data = [{"image": x, "patient": patient, "label": patient % 2}]
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    options = {"forward_fn": lambda model, batch: (model(batch["image"]), batch["label"])}
    results = important("labels", data, model, groups=lambda batch: batch["patient"], **options)
    assert results["1"].count.tolist() == [[60, 60], [60, 60]]
    one = important("labels", data, model, groups=lambda batch: batch["label"], **options)
    assert any("all samples of label 0, label 1 are in one half" in note for note in one.notes)


def test_classes_are_those_that_forward_fn_gives():
    data = [(torch.randn(90, 64), torch.arange(90) % 3 + 1)]
    shifted = lambda model, batch: (model(batch[0]), batch[1] - 1)  # noqa: E731
    results = important("labels", data, classes=[0, 2], forward_fn=shifted)
    assert results.clusters.ids.tolist() == [0, 2]
    assert results.clusters.size.tolist() == [30, 30]
    few = important("labels", data, classes=[0, 9], forward_fn=shifted)
    assert "no probe sample has a label among [9], which classes= asks for" in few.notes


def test_halves_do_not_depend_on_how_batches_are_padded():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Sequential(nn.Linear(1, 6), nn.Tanh()), nn.Linear(6, 2)

        def forward(self, x, attention_mask):
            return self.head((self.embed(x[..., None]) * attention_mask[..., None]).sum(1))

    lengths = torch.randint(1, 8, (64,))
    x, y = torch.randn(64, 7), torch.randint(2, (64,))

    def loader(size):
        for rows in torch.arange(64).split(size):
            longest = int(lengths[rows].max())
            mask = (torch.arange(longest)[None] < lengths[rows][:, None]).long()
            yield {"x": x[rows, :longest] * mask, "attention_mask": mask, "labels": y[rows]}

    model = Sum()
    found = [neuron_importance(model, list(loader(size)), layers="embed.1") for size in (16, 4, 1)]
    for other in found[1:]:
        np.testing.assert_array_equal(other.sample_half, found[0].sample_half)
        np.testing.assert_allclose(other["embed.1"].half_mean, found[0]["embed.1"].half_mean, atol=1e-6)


def test_intervals_take_groups_as_one():
    model, data = train(nn.ReLU, width=16, depth=1, epochs=3), validation_batches()
    x, y = (torch.cat(part)[:150] for part in zip(*data, strict=True))
    copies = torch.arange(600) % 150  # every digit four times
    loader = [{"image": x[copies], "label": y[copies], "digit": copies}]
    forward = lambda model, batch: (model(batch["image"]), batch["label"])  # noqa: E731
    found = {}
    for groups in (None, lambda batch: batch["digit"]):
        results = important("labels", loader, model, groups=groups, forward_fn=forward)
        settings = AblationFaithfulness(max_samples=600)
        judged = ablation_faithfulness(model, loader, results, settings, forward_fn=forward)["1"].faithfulness
        found[groups is not None] = np.diff(judged.gap_interval[-1])[0]
    assert len(set(results.sample_group.tolist())) == 150
    assert found[True] > 1.5 * found[False]
