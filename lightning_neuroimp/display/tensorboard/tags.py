"""Names of values in TensorBoard and other loggers."""

import re

from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results


def tag(*parts: str) -> str:
    """A tag of characters that TensorBoard and other loggers leave alone.

    >>> tag("labels", "encoder.1", "label 3")
    'labels/encoder.1/label_3'
    """
    return "/".join(re.sub(r"[^-/\w.]", "_", part) for part in parts)


def site_tag(name: str, one: Importance, results: Results) -> str:
    """Where a site's and attribution's values are: the attribution is named only where there are several."""
    several = len(results.attributions) > 1
    return tag(name, one.site, *([one.attribution] if several else []))


def cluster_tags(table: ClusterTable) -> list[str]:
    """A tag for each cluster; where two names give the same, the ids are added."""
    tags = [tag(cluster) for cluster in table.names]
    return [one if tags.count(one) == 1 else f"{one}_{key}" for one, key in zip(tags, table.ids.tolist(), strict=True)]
