"""Render a document for a terminal: plain text, aligned by spaces."""

import textwrap

from tabulate import tabulate

from lightning_neuroimp.display.document import Block, Document, FindingList, Lines, Note, Section, Table, Terms
from lightning_neuroimp.display.formats import one_line

WIDTH = 118
"""Where legends and findings are wrapped, in characters."""


def to_console(document: Document) -> str:
    """Return a document as plain text, with the findings at its end, where a terminal stops scrolling.

    Args:
        document: its texts are displayed as they are; line breaks and control characters in them are replaced.

    >>> from lightning_neuroimp.display.document import Column
    >>> table = Table((Column("name"), Column("size", numeric=True)), (("a|b", "7"),))
    >>> document = Document("Clusters", (Section("By label", (table,)),), FindingList("Findings: none.", ()))
    >>> print(to_console(document))
    Clusters
    <BLANKLINE>
    By label
    name      size
    ------  ------
    a|b          7
    <BLANKLINE>
    Findings: none.
    """
    parts = [one_line(document.title), *map(_section, document.sections), _findings(document.findings)]
    return "\n\n".join(parts)


def _section(section: Section) -> str:
    return "\n".join(part for part in (one_line(section.heading), *map(_block, section.blocks)) if part)


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Lines():
            return "\n".join(map(one_line, block.lines))
        case Terms():
            return "\n".join(_wrapped(f"{term + ':':4} {meaning}", indent=5) for term, meaning in block.entries)
        case Note():
            return f"Note: {one_line(block.text)}"


def _table(table: Table) -> str:
    rows = [list(map(one_line, row)) for row in table.rows]
    headings = [one_line(column.heading) for column in table.columns]
    align = ["right" if column.numeric else "left" for column in table.columns]
    return tabulate(rows, headings, "simple", disable_numparse=True, colalign=align)


def _findings(findings: FindingList) -> str:
    lines = [one_line(findings.headline)]
    for number, item in enumerate(findings.items, 1):
        lines += [_wrapped(f"{number}. {item.text}", indent=3), _wrapped(item.remedy, indent=3, first=3)]
    return "\n".join([*lines, *([one_line(findings.rest)] if findings.rest else [])])


def _wrapped(text: str, indent: int, first: int = 0) -> str:
    return textwrap.fill(
        one_line(text),
        WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
