"""What is cluster 3, what is neuron 17?"""

import numpy as np
import torch
from torch import nn

from lightning_neuroimp import neuron_importance
from lightning_neuroimp.display.figures.common import to_image
from lightning_neuroimp.display.sample_pictures import samples_figure, samples_markdown
from lightning_neuroimp.display.samples import exemplar_rows, neuron_rows, shown_samples, top_neurons
from lightning_neuroimp.display.summary import summary
from tests.support.digits import train, validation_batches


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
