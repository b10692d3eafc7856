"""Samples that come with scikit-learn, cut into a training set and a probe set."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_sample_images,
    load_wine,
    make_classification,
)
from sklearn.preprocessing import StandardScaler
from torch import Tensor

N_TRAIN = 1200
PATCH = 12
N_PROBE = {"patches": 360}
"""Upper bounds on the probe's samples, where not 600."""


@dataclass(frozen=True)
class Samples:
    """Inputs and classes to train on, and to probe on."""

    x: Tensor
    y: Tensor
    probe_x: Tensor
    probe_y: Tensor

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(max(self.y.max(), self.probe_y.max())) + 1


def _patches() -> tuple[np.ndarray, np.ndarray]:
    """Patches of the two photographs, 12 by 12 pixels: from which one, and from which third of its height."""
    generator = np.random.default_rng(4)
    x, y = [], []
    for number, image in enumerate(load_sample_images().images):
        height, width = image.shape[:2]
        for _ in range(900):
            top, left = generator.integers(height - PATCH), generator.integers(width - PATCH)
            x.append(image[top : top + PATCH, left : left + PATCH].transpose(2, 0, 1).ravel() / 255.0)
            y.append(number * 3 + (top * 3) // (height - PATCH + 1))
    return np.array(x), np.array(y)


@cache
def load(name: str) -> Samples:
    """Samples of a data set, shuffled, inputs standardised; of small ones the probe set holds all samples.

    Args:
        name: "digits", "wine", "iris", "breast cancer", "8 classes" or "4 rare classes" (synthetic), "patches".
    """
    loaders = {
        "digits": lambda: load_digits(return_X_y=True),
        "wine": lambda: load_wine(return_X_y=True),
        "iris": lambda: load_iris(return_X_y=True),
        "breast cancer": lambda: load_breast_cancer(return_X_y=True),
        "8 classes": lambda: make_classification(
            2400, 24, n_informative=12, n_classes=8, class_sep=1.5, flip_y=0, random_state=2
        ),
        "4 rare classes": lambda: make_classification(
            2400, 16, n_informative=8, n_classes=4, weights=[0.5, 0.25, 0.15], class_sep=1.5, flip_y=0, random_state=3
        ),
        "patches": _patches,
    }
    x, y = loaders[name]()
    order = np.random.default_rng(0).permutation(len(y))
    x = (x - x.mean()) / x.std() if name == "patches" else StandardScaler().fit_transform(x)
    inputs, classes = torch.tensor(x[order], dtype=torch.float32), torch.tensor(y[order], dtype=torch.int64)
    n_train = min(N_TRAIN, len(y) // 2)
    probe = slice(0, None) if len(y) < 200 else slice(n_train, n_train + N_PROBE.get(name, 600))
    return Samples(inputs[:n_train], classes[:n_train], inputs[probe], classes[probe])
