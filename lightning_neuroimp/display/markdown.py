"""Render a document as Markdown: for TensorBoard's text tab, GitHub and experiment trackers."""

import re

from tabulate import tabulate

from lightning_neuroimp.display.document import Block, Document, FindingList, Lines, Note, Section, Table, Terms
from lightning_neuroimp.display.formats import one_line

# what starts or ends markup, wherever it stands; "<", "&" and "_" only where they would
_MARKUP = re.compile(
    r"[\\`*\[\]|~$#]"
    r"|<(?![\s=]|$)"  # a tag or an automatic link
    r"|&(?=[#\w])"  # an entity
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis never starts or ends inside of a word
)
# what makes a line a quotation, a list, a ruler or the underline of a heading
_MARKUP_OF_A_LINE = re.compile(r"^(?:>|[-+](?=\s|$)|\d+(?=[.)](?:\s|$))|[-=]+(?=\s*$))")

_NEW_LINE = "  \n"


def to_markdown(document: Document) -> str:
    """Return a document as Markdown, with the findings after its title: the top of a page is read first.

    Args:
        document: whatever its texts hold is displayed, and never taken for markup.

    >>> from lightning_neuroimp.display.document import Column
    >>> table = Table((Column("name"), Column("size", numeric=True)), (("a|b", "7"),))
    >>> document = Document("Clusters", (Section("By label", (table,)),), FindingList("Findings: none.", ()))
    >>> print(to_markdown(document))
    ### Clusters
    <BLANKLINE>
    **Findings: none.**
    <BLANKLINE>
    #### By label
    <BLANKLINE>
    | name     |   size |
    |:---------|-------:|
    | a&#124;b |      7 |
    """
    parts = [f"### {escape(document.title)}", *_findings(document.findings)]
    for section in document.sections:
        parts += _section(section)
    return "\n\n".join(parts)


def escape(text: str) -> str:
    """Return a text on one line, without spaces around it, that Markdown displays as it is: no markup, no HTML.

    Numeric entities are used because they mean the same to all dialects, in tables too.

    >>> escape("a|b, <script>, *, my_score, p <= .05")
    'a&#124;b, &#60;script>, &#42;, my_score, p <= .05'
    """
    return _MARKUP.sub(_entities, one_line(text).strip())


def _line(text: str) -> str:
    """Return an escaped text that may stand at the beginning of a line."""
    return _MARKUP_OF_A_LINE.sub(_entities, escape(text))


def _entities(found: re.Match[str]) -> str:
    return "".join(f"&#{ord(character)};" for character in found[0])


def _section(section: Section) -> list[str]:
    heading = [f"#### {escape(section.heading)}"] if section.heading else []
    return [*heading, *filter(None, map(_block, section.blocks))]


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Lines():
            return _NEW_LINE.join(map(_line, block.lines))
        case Terms():
            return _NEW_LINE.join(_line(f"{term}: {meaning}") for term, meaning in block.entries)
        case Note():
            return f"**Note:** {escape(block.text)}"


def _table(table: Table) -> str:
    rows = [list(map(escape, row)) for row in table.rows]
    headings = [escape(column.heading) for column in table.columns]
    align = ["right" if column.numeric else "left" for column in table.columns]
    return tabulate(rows, headings, "pipe", disable_numparse=True, colalign=align)


def _findings(findings: FindingList) -> list[str]:
    lines = []
    for number, item in enumerate(findings.items, 1):
        lines += [f"{number}. {_line(item.text)}", f"   {_line(item.remedy)}"]
    parts = [f"**{escape(findings.headline)}**", _NEW_LINE.join(lines), _line(findings.rest)]
    return [part for part in parts if part]
