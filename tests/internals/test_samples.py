"""What is cluster 3, what is neuron 17?"""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neuroimp import ProbeSet, describe_samples, neuron_importance
from lightning_neuroimp.batches.description import as_picture
from lightning_neuroimp.display.figures.common import to_image
from lightning_neuroimp.display.sample_pictures import samples_figure, samples_markdown
from lightning_neuroimp.display.samples import exemplar_rows, neuron_rows, shown_samples, top_neurons
from lightning_neuroimp.display.summary import summary
from tests.support.digits import train, validation_batches
from tests.support.toys import in_lockstep


def describe(batch, **options):
    probe = ProbeSet.from_batches([batch])
    return describe_samples(probe, probe.index.tolist(), **options)


def test_the_samples_that_drive_a_neuron_are_those_with_the_largest_activations():
    model, data = train(nn.ReLU, width=16, depth=1, epochs=3), validation_batches()
    results = neuron_importance(model, data, layers="1")
    with torch.no_grad():
        h = model[:2](torch.cat([x for x, _ in data])).numpy()
    found = top_neurons(results, "1")
    for row, key in enumerate(results.clusters.ids):
        best = int(np.argmax(results["1"].mean[row]))
        assert results["1"].top(key, 1) == [best]
        assert results.clusters.names[row] in found[best]
    for name, numbers in neuron_rows(results, "1"):
        neuron = int(name.split(",")[0].removeprefix("neuron "))
        np.testing.assert_allclose(h[numbers, neuron], np.sort(h[:, neuron])[::-1][:5])
    assert set(shown_samples(results)) >= {number for _, numbers in exemplar_rows(results) for number in numbers}
    line = next(line for line in summary(results).splitlines() if line.startswith("Samples that drive top neurons"))
    first = next(iter(found))
    assert f"{' '.join(map(str, results.activity('1').top_samples[first][:3]))} (neuron {first})" in line


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (torch.rand(2, 3, 8, 6), (8, 6, 3)),
        (torch.rand(2, 1, 8, 6), (8, 6, 3)),
        (torch.rand(2, 8, 6, 3), (8, 6, 3)),
        (torch.rand(2, 8, 6), (8, 6, 3)),
        (torch.rand(2, 3, 400, 200), (80, 40, 3)),
        (torch.tensor([[0.5, -2.0], [1.0, 3.0]]), {"0.5 -2", "1 3"}),
        (torch.arange(14).repeat(2, 1).float(), {"0 1 2 3 4 5 6 7 8 9 10 11 ..."}),
    ],
)  # fmt: skip
def test_what_inputs_look_like(inputs, expected):
    found = describe((inputs, torch.zeros(2).long()))
    if isinstance(expected, set):
        assert set(found.values()) == expected
    else:
        assert all(one.shape == expected and one.dtype == np.uint8 for one in found.values())


def test_padding_and_words():
    batch = {
        "ids": torch.tensor([[5, 6, 0], [7, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]),
        "y": torch.zeros(2),
    }
    assert set(describe(batch).values()) == {"5 6", "7"}
    assert set(describe(batch | {"text": ["first words", "others"]}).values()) == {"first words", "others"}
    assert set(describe([torch.ones(2), torch.zeros(2), torch.zeros(2)]).values()) == {"1"}


def test_describe_sample_gets_single_samples():
    batch = {"x": torch.arange(6.0).reshape(2, 3), "y": torch.tensor([4, 5]), "name": ["a", "b"]}
    words = describe(batch, describe_sample=lambda sample: f"{sample['name']} {sample['y']} {sample['x'].tolist()}")
    assert set(words.values()) == {"a 4 [0.0, 1.0, 2.0]", "b 5 [3.0, 4.0, 5.0]"}
    pictures = describe(batch, describe_sample=lambda sample: sample["x"].expand(4, 3))
    assert all(one.shape == (4, 3, 3) for one in pictures.values())
    with pytest.raises(
        ValueError, match=r"describe_sample must return text, or a picture .*got a ndarray of shape \(3,\)"
    ):
        describe(batch, describe_sample=lambda sample: sample["x"])
    with pytest.raises(ValueError, match=r"describe_sample must return text, or a picture .*got a int"):
        describe(batch, describe_sample=lambda sample: 3)


def test_each_process_describes_what_it_holds():
    whole = ProbeSet.from_batches([(torch.randn(12, 2), torch.zeros(12).long())])
    expected, found = describe_samples(whole, [1, 4, 7]), [None] * 2

    def process(rank, gather):
        found[rank] = describe_samples(whole.select(np.arange(rank, 12, 2)), [1, 4, 7], None, gather)

    in_lockstep(2, process)
    assert found[0] == found[1] == expected


def test_pictures_are_from_black_to_white():
    picture = as_picture(np.array([[-1.0, 0.0], [1.0, np.nan]]))
    assert picture[..., 0].tolist() == [[0, 128], [255, 128]]
    assert as_picture(np.full((2, 2), 7.0)).max() == 0
    kept = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(as_picture(kept), kept)


def test_figures_hold_pictures_and_tables_hold_words():
    described = {
        1: np.full((8, 8, 3), 200, np.uint8),
        2: np.zeros((4, 9, 3), np.uint8),
        3: "a | b\n<script>",
        4: "plain",
    }
    rows = [("cluster 0", [1, 2, 3]), ("cluster 1", [3, 4, 9])]
    figure = samples_figure("Samples", rows, described)
    image = to_image(figure)
    assert image.shape[2] == 3
    assert (image == 200).all(2).sum() > 1000  # the gray picture is there, enlarged
    text = samples_markdown(rows, described)
    assert text.splitlines()[2:] == [
        "| cluster 0 | **3** a &#124; b &#60;script> |",
        "| cluster 1 | **3** a &#124; b &#60;script><br>**4** plain |",
    ]
    assert samples_figure("Samples", [("cluster 1", [3, 4])], described) is None
    assert samples_markdown([("cluster 0", [1, 2])], described) == ""
