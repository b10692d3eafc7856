"""Build tags, the names of values in TensorBoard and other loggers."""

import re

from lightning_neuroimp.results.clusters import ClusterTable
from lightning_neuroimp.results.importance import Importance
from lightning_neuroimp.results.measurement import Results


def tag(*parts: str) -> str:
    """Join parts to a tag, in characters that TensorBoard and other loggers leave alone.

    >>> tag("labels", "encoder.1", "label 3")
    'labels/encoder.1/label_3'
    """
    return "/".join(re.sub(r"[^-/\w.]", "_", part) for part in parts)


def site_tag(name: str, importance: Importance, results: Results) -> str:
    """Return the tag that begins those of a site and attribution; the attribution is part of it if there are several.

    Args:
        name: first part of the tag.
        importance: of the site and attribution.
        results: the measurement that it belongs to.
    """
    several = len(results.attributions) > 1
    return tag(name, importance.site, *([importance.attribution] if several else []))


def cluster_tags(table: ClusterTable) -> list[str]:
    """Return a tag for each cluster; where two names give the same tag, their ids are appended.

    Args:
        table: of the clusters.
    """
    tags = [tag(name) for name in table.names]
    return [
        one_tag if tags.count(one_tag) == 1 else f"{one_tag}_{cluster}"
        for one_tag, cluster in zip(tags, table.ids.tolist(), strict=True)
    ]
