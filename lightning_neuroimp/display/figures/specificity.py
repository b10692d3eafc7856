"""Draw what removing the top neurons of each cluster costs every cluster."""

from typing import TYPE_CHECKING

import numpy as np

from lightning_neuroimp.display.figures.common import importances_at, new_figure
from lightning_neuroimp.display.formats import one_line, short_name
from lightning_neuroimp.errors import InvalidArgument
from lightning_neuroimp.results.faithfulness import Specificity
from lightning_neuroimp.results.measurement import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def specificity_figure(results: Results, site: str) -> "Figure":
    """Draw what removing the top neurons of each cluster costs every cluster: one matrix per attribution.

    Args:
        results: with faithfulness that measured specificity.
        site: name of the site.

    Returns:
        A Matplotlib figure; rows are the clusters that lose accuracy, columns those whose neurons are removed, colours
        the fall of the accuracy. A specific ranking has its largest values on the diagonal.

    Raises:
        InvalidArgument: if there is no such site, or specificity was not measured.
    """
    measured = [
        (importance.attribution, importance.faithfulness.specificity)
        for importance in importances_at(results, site)
        if importance.faithfulness is not None and importance.faithfulness.specificity is not None
    ]
    if not measured:
        raise InvalidArgument(f"no specificity at {site!r}: measure with AblationFaithfulness(specificity=True)")
    names = [short_name(name) for name in results.clusters.names]
    side = 2.4 + 0.34 * len(names)
    figure = new_figure(side * len(measured) + 0.8, side + 0.6)
    largest = [float(np.nanmax(np.abs(specificity.accuracy_drop), initial=0.0)) for _, specificity in measured]
    limit = max(0.05, *largest)
    for number, (attribution, specificity) in enumerate(measured):
        panel = figure.add_subplot(1, len(measured), number + 1)
        image = panel.imshow(specificity.accuracy_drop, cmap="RdBu_r", vmin=-limit, vmax=limit)
        panel.set_xticks(range(len(names)), names, rotation=90, fontsize=9, parse_math=False)
        row_names = names if number == 0 else [""] * len(names)
        panel.set_yticks(range(len(names)), row_names, fontsize=9, parse_math=False)
        panel.set_xlabel(f"top {specificity.removed} neurons of this cluster removed", fontsize=10)
        if number == 0:
            panel.set_ylabel("accuracy lost by this cluster", fontsize=10)
        title = f"{one_line(site)}\n{one_line(attribution)}\n{_value(specificity)}"
        panel.set_title(title, fontsize=11, parse_math=False)
    figure.colorbar(image, ax=figure.axes, shrink=0.8, label="fall of the accuracy")
    return figure


def _value(specificity: Specificity) -> str:
    if np.isnan(specificity.value):
        return "too few clusters"
    p_value = "" if np.isnan(specificity.p_value) else f", p {specificity.p_value:.3g}"
    return f"own - others {specificity.value:+.2f}{p_value}"
