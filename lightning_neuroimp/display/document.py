"""Hold what a text says, before anything is decided about how it is displayed.

`summary_document` builds one from results; `to_console` and `to_markdown` render it. All texts in it are plain, with
the user's names as they are: each renderer escapes what has a meaning in its own format, and only it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """Name a column of a table, and say whether its cells are numbers, which are aligned on the right."""

    heading: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Hold a table.

    Attributes:
        columns: headings and alignment.
        rows: one cell per column.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Lines:
    """Hold sentences, each of which is displayed on a line of its own."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Terms:
    """Hold a legend: terms, each with its meaning."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Note:
    """Hold a remark that must not be missed."""

    text: str


Block = Table | Lines | Terms | Note


@dataclass(frozen=True)
class Section:
    """Hold blocks that belong together, under a heading that may be empty."""

    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class ListedFinding:
    """Hold what was found, and what to do about it."""

    text: str
    remedy: str


@dataclass(frozen=True)
class FindingList:
    """Hold the findings of a measurement.

    Attributes:
        headline: what they are; all that there is to say where there are none.
        items: most important first.
        rest: how to see those that are left out; empty where all are shown.
    """

    headline: str
    items: tuple[ListedFinding, ...]
    rest: str = ""


@dataclass(frozen=True)
class Document:
    """Hold a whole text.

    Where the findings stand is left to the renderers: what should be read first is at the end of what scrolls through a
    terminal, and at the top of a page.

    Attributes:
        title: what it is about, in one line.
        sections: in the order in which they are read.
        findings: what speaks against the scores.
    """

    title: str
    sections: tuple[Section, ...]
    findings: FindingList
