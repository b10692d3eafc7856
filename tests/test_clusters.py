import numpy as np
import pytest
import torch
from conftest import class_zero
from digits import train, validation_batches
from sklearn.datasets import make_blobs
from torch import nn

from lightning_neuroimp import KMeansClusters, neuron_importance
from lightning_neuroimp.identities import agreement, keep_identities
from lightning_neuroimp.results import ClusterTable


def table(ids, history, source="KMeans"):
    n = len(ids)
    return ClusterTable(
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
                "clusters must be 'labels', 'predictions', a mapping from classes to groups, KMeansClusters(8), or a",
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
            match=r"there are (at least )?21 clusters, more than 20: look at some .* classes=.*group them with a mapping",
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
