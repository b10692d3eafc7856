"""Put the comparison of two measurements into words."""

from lightning_neuroimp.display.console import to_console
from lightning_neuroimp.display.document import Column, Document, FindingList, Note, Section, Table
from lightning_neuroimp.display.formats import fixed, short_name, signed
from lightning_neuroimp.results.change import Change, Changes

_MOST_NEURONS = 8  # of those that came or went in a row of a table


def changes_document(changes: Changes, title: str) -> Document:
    """Build the document that says how two measurements differ.

    Args:
        changes: from `compare`.
        title: above it, such as the names of both.
    """
    places = list(dict.fromkeys((each.site, each.attribution) for each in changes.changes))
    sections = [
        Section(
            f"{site}, {attribution}",
            (_table([each for each in changes.changes if (each.site, each.attribution) == (site, attribution)]),),
        )
        for site, attribution in places
    ]
    n_changed = sum(each.changed for each in changes.changes)
    headline = (
        f"{n_changed} of {len(changes.changes)} rankings changed: a neuron came or went, whichever half of the cluster "
        "one looks at."
    )
    sections += [Section("", (Note(note),)) for note in changes.notes]
    return Document(title, tuple(sections), FindingList(headline, ()))


def changes_summary(changes: Changes, title: str = "") -> str:
    """Say in plain text how two measurements differ.

    Args:
        changes: from `compare`.
        title: above it.
    """
    return to_console(changes_document(changes, title))


def _table(changes: list[Change]) -> Table:
    columns = (
        Column("cluster"),
        Column("came"),
        Column("went"),
        Column("top overlap", numeric=True),
        Column("correlation", numeric=True),
        Column("expected", numeric=True),
        Column("gap before", numeric=True),
        Column("after", numeric=True),
    )
    rows = [
        (
            short_name(each.cluster),
            _numbers(each.came),
            _numbers(each.went),
            fixed(each.overlap),
            fixed(each.correlation),
            fixed(each.expected),
            signed(each.gap_before),
            signed(each.gap_after),
        )
        for each in changes
    ]
    return Table(columns, tuple(rows))


def _numbers(neurons: tuple[int, ...]) -> str:
    more = " ..." if len(neurons) > _MOST_NEURONS else ""
    return " ".join(map(str, neurons[:_MOST_NEURONS])) + more or "-"
