"""Form clusters of one class each, or of a group of classes; validate classes, given by number or by name."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from lightning_neuroimp import _validate
from lightning_neuroimp.errors import InvalidArgument

MAX_CLUSTERS = 20
"""Upper bound on the number of clusters: nobody reads more curves."""


def validate_classes(classes: Any, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the numbers of classes that are given by number or by name; None for None.

    Args:
        classes: what was passed as `classes=`.
        class_names: names of all classes; may be empty.

    Raises:
        InvalidArgument: if a name is not among `class_names`, or there is no class.
    """
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Collection) or len(classes) == 0:
        raise InvalidArgument(f"classes must be a list of class numbers or names, got {_validate.shown(classes)}")
    return tuple(dict.fromkeys(_class_number(label, class_names) for label in classes))


def _class_number(label: Any, class_names: Sequence[str]) -> int:
    """Return the number of a class that is given by number or by name."""
    if isinstance(label, str):
        if label not in class_names:
            known = (
                _validate.closest(label, class_names, "names")
                if class_names
                else ("the names are none; pass class_names=")
            )
            raise InvalidArgument(f"there is no class named {_validate.shown(label)}: {known}")
        return list(class_names).index(label)
    return _validate.integer("a class, where it is no name,", label, least=0)


def validate_class_names(class_names: Any) -> tuple[str, ...]:
    """Return the names of all classes as strings.

    Args:
        class_names: what was passed as `class_names=`.

    Raises:
        InvalidArgument: if they are no collection, or one string.
    """
    if isinstance(class_names, str) or not isinstance(class_names, Collection):
        raise InvalidArgument(
            f"class_names must be a list with the name of each class, got {_validate.shown(class_names)}"
        )
    return tuple(map(str, class_names))


def class_name(number: int, class_names: Sequence[str]) -> str | None:
    """Return the name of a class; None if it has none."""
    return str(class_names[number]) if number < len(class_names) else None


def validate_count(n_clusters: int, *, so_far: bool = False) -> None:
    """Refuse more clusters than anyone can read.

    Args:
        n_clusters: number of clusters.
        so_far: whether more clusters may follow.

    Raises:
        InvalidArgument: if there are more than 20 clusters.
    """
    if n_clusters > MAX_CLUSTERS:
        found = f"at least {n_clusters}" if so_far else str(n_clusters)
        raise InvalidArgument(
            f"there are {found} clusters, more than {MAX_CLUSTERS}: look at some classes with classes=[0, 1, 2], "
            "group them with a mapping, clusters={0: 'animal', 1: 'vehicle', ...}, or with a callable, clusters=lambda "
            "batch: batch[1] // 10, or find groups with clusters=KMeansClusters(8)"
        )


class ClassClusters:
    """Form clusters of one class each, or of a group of classes.

    Args:
        clusters: "labels", "predictions", or a mapping from classes to the names of groups.
        class_names: of the classes.

    Raises:
        InvalidArgument: if a name is unknown, or there are more than 20 groups.
    """

    def __init__(self, clusters: str | Mapping[Any, Any], class_names: Sequence[str]) -> None:
        self._predicted = clusters == "predictions"
        self._class_names = class_names
        self._group: dict[int, int] | None = None
        self._names: dict[int, str] = {}
        if isinstance(clusters, Mapping):
            groups = list(dict.fromkeys(clusters.values()))
            validate_count(len(groups))
            self._group = {_class_number(key, class_names): groups.index(group) for key, group in clusters.items()}
            if len(self._group) < len(clusters):
                raise InvalidArgument(
                    f"clusters names a class twice, by number and by name, in "
                    f"{_validate.shown(list(clusters))}; name it once"
                )
            self._names = {number: str(group) for number, group in enumerate(groups)}

    def of(
        self, labels: Int[np.ndarray, " sample"], predicted: Int[np.ndarray, " sample"]
    ) -> Int[np.ndarray, " sample"]:
        """Return each sample's cluster; -1 for classes in no group.

        Args:
            labels: class of each sample by the data.
            predicted: class of each sample by the model.
        """
        classes = predicted if self._predicted else labels
        if self._group is None:
            return classes
        return np.array([self._group.get(number, -1) for number in classes.tolist()], np.int64)

    def names(self, ids: Int[np.ndarray, " cluster"]) -> dict[int, str]:
        """Return the name of each cluster, by its id.

        Args:
            ids: of the clusters.
        """
        if self._group is not None:
            return self._names
        kind = "predicted" if self._predicted else "label"
        named = {key: class_name(key, self._class_names) for key in ids.tolist()}
        return {
            key: f"{kind} {key}" if name is None else f"predicted {name}" if self._predicted else name
            for key, name in named.items()
        }
