"""A document says the same on a terminal and on a page, whatever the user's names hold."""

import dataclasses
import subprocess
import sys
import warnings
from html.parser import HTMLParser

import pytest
import wcwidth
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_neuroimp.display.console import WIDTH, to_console
from lightning_neuroimp.display.document import (
    Column,
    Document,
    FindingList,
    Lines,
    ListedFinding,
    Note,
    Section,
    Table,
    Terms,
)
from lightning_neuroimp.display.formats import MAX_NAME, one_line, short_name
from lightning_neuroimp.display.markdown import escape, to_markdown
from lightning_neuroimp.display.sample_pictures import samples_markdown

NAMES = {
    "columns": ["a|b", "|", r"a \| b", "||---|---||"],
    "tags": ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></tr></table>", "<!-- gone"],
    "entities": ["&lt;b&gt;", "&#124;", "&amp;amp;", "R&D"],
    "code": ["`code`", "``", "a`b|c`d", "```"],
    "emphasis": ["*bold*", "**", "_under_", "__init__", "snake_case_name", "a*b*c", "* item", "***"],
    "links": ["[x](http://y.z)", "![i](u.png)", "[ref]: u", "<http://x.y>", "<a@b.c>", "[x][y]"],
    "headings": ["# one", "C#", "#", "a ##"],
    "lists": ["1. one", "2) two", "- a", "+ b", "> quoted", "10.", "-", "+"],
    "spaces": ["  padded ", "    indented", "a  b"],
    "rulers": ["---", "===", "- - -", "___"],
    "lines": ["two\nlines", "a\r\n\r\nb", "tab\tbed", "form\ffeed\vhere", "a\u2028b\x85c"],
    "invisible": ["\x1b[31mred\x1b[0m", "bell\x07", "null\x00", "half \ud800", "\u202eturned"],
    "others": ["~~gone~~", "$x^2$", "\\", "a\\", r"\*", "ünï", "中文", "😀", "p <= .05", "a < b > c", "x & y", "::"],
}
ALL_NAMES = [
    pytest.param(name, id=f"{kind}{number}") for kind, some in NAMES.items() for number, name in enumerate(some)
]


def everywhere(name):
    """A document with a name in each of its places."""
    table = Table((Column(name), Column("size", numeric=True)), ((name, "7"), ("plain", "8")))
    section = Section(name, (table, Lines((name, f"of {name}: 3")), Terms((("gap", name),)), Note(name)))
    findings = FindingList(name, (ListedFinding(name, name), ListedFinding("second", name)), name)
    return Document(name, (section,), findings)


def squeezed(text):
    """A text as a page shows it, where spaces in a row are one."""
    return " ".join(one_line(text).split())


class Texts(HTMLParser):
    """Collect the text of each block of a page, and the kinds of its elements."""

    def __init__(self):
        super().__init__()
        self.texts, self.kinds = [""], []

    def handle_starttag(self, tag, attributes):
        self.kinds.append(tag)
        if tag not in ("strong", "em", "code", "a"):
            self.texts.append("")

    def handle_endtag(self, tag):
        if tag not in ("strong", "em", "code", "a"):
            self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data

    @property
    def blocks(self):
        return [" ".join(text.split()) for text in self.texts if text.strip()]


def read(page):
    found = Texts()
    found.feed(page)
    found.close()
    return found


def by_tensorboard(markdown):
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of a library in it
        from tensorboard.plugin_util import markdown_to_safe_html
    return markdown_to_safe_html(markdown)


def by_commonmark(markdown):
    commonmark = pytest.importorskip("markdown_it")
    return commonmark.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


@pytest.mark.parametrize("render", [by_tensorboard, by_commonmark])
@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_page_shows_names_as_they_are(name, render):
    expect_everywhere(name, render)


def expect_everywhere(name, render):
    shown = squeezed(name)
    found = read(render(to_markdown(everywhere(name))))
    assert found.blocks == [
        shown, shown,  # title and headline
        shown, shown, "second", shown, shown,  # findings
        shown, shown, "size", shown, "7", "plain", "8",
        shown, squeezed(f"of {name}: 3"), squeezed(f"gap: {name}"), f"Note: {shown}",
    ]  # fmt: skip
    expected = {"h3", "h4", "p", "strong", "ol", "li", "br", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(found.kinds) == expected
    assert found.kinds.count("tr") == 3
    assert found.kinds.count("td") == 4


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_terminal_shows_names_as_they_are(name):
    text = to_console(everywhere(name))
    shown = one_line(name)
    assert all(character == "\n" or ord(character) >= 32 for character in text)
    lines = text.split("\n")
    assert lines[0] == shown
    assert lines[2] == shown
    ends = [lines[row].rstrip()[-1] for row in (5, 6)]
    assert ends == ["7", "8"]
    assert lines[5].startswith(shown.strip())
    assert len({wcwidth.wcswidth(line) for line in lines[4:7]}) == 1
    assert lines[7:11] == [shown, f"of {shown}: 3", f"gap: {shown}".rstrip(), f"Note: {shown}"]


def test_what_reads_differently_from_what_it_is():
    """The names that are changed on purpose, because they would tear lines apart or hide."""
    assert one_line("two\nlines\tand\r\nmore") == "two lines and more"
    assert one_line("\x1b[31mred") == r"\x1b[31mred"
    assert one_line("\u202eturned") == r"\u202eturned"
    for name in ("plain", "a  b", "a\u00a0b", "👩\u200d🔬", "нейрон"):  # nothing else is
        assert one_line(name) == name


def test_long_names_are_cut_in_the_middle():
    long = [f"Canis lupus familiaris, standing on grass in the sun, number {number}" for number in range(2)]
    short = [short_name(name) for name in long]
    assert short[0] != short[1]
    assert all(len(name) == MAX_NAME and "..." in name for name in short)
    assert short_name("x" * MAX_NAME) == "x" * MAX_NAME


def test_long_words_are_wrapped():
    document = everywhere("plain")
    item = ListedFinding(f"few-samples ({'encoder.' * 40}): few", f"To do: {'more ' * 60}")
    terms = Section("", (Terms((("gap", "word " * 60), ("p", "x" * 300))),))
    text = to_console(dataclasses.replace(document, sections=(terms,), findings=FindingList("Findings:", (item,))))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert [line[:5].strip() for line in text.splitlines()[2:5]] == ["gap:", "", ""]


def test_the_findings_are_read_first():
    document = everywhere("name")
    findings = FindingList("Findings:", (ListedFinding("few-samples", "To do: more."),), "3 more kinds")
    document = dataclasses.replace(document, findings=findings)
    ending = "Findings:\n1. few-samples\n   To do: more.\n3 more kinds"
    assert to_console(document).endswith(f"\n\n{ending}")  # where a terminal stops
    page = to_markdown(document)
    assert page.startswith(
        "### name\n\n**Findings:**\n\n1. few-samples  \n   To do: more.\n\n3 more kinds\n\n#### name"
    )


@pytest.mark.parametrize("name", ALL_NAMES)
def test_samples_in_words_are_escaped_alike(name):
    found = read(by_tensorboard(samples_markdown([(name, [3, 4])], {3: name, 4: "plain"})))
    shown = squeezed(name)
    assert found.blocks == ["samples", shown, f"3 {shown}", "4 plain"]
    assert escape(name) in samples_markdown([(name, [3])], {3: "plain"})


@settings(max_examples=40, deadline=None)
@given(st.text("|`*_[]()<>&#;!~$-+=\\ \n\tab1.:@/", min_size=1, max_size=14).filter(str.strip))
def test_any_markup_is_shown(name):
    for render in (by_tensorboard, by_commonmark):
        expect_everywhere(name, render)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=12))
def test_any_name_is_shown(name):
    shown = squeezed(name)
    table = Table((Column("name"), Column("size", numeric=True)), ((name, "7"), (f"of {name}", "8")))
    document = Document("title", (Section("", (table,)),), FindingList("none", ()))
    found = read(by_tensorboard(to_markdown(document)))
    assert found.blocks == [
        "title", "none", "name", "size", *([shown] if shown else []), "7", f"of {shown}".strip(), "8"
    ]  # fmt: skip
    lines = to_console(document).split("\n")
    assert [line.rstrip()[-1] for line in lines[2:6]] == ["e", "-", "7", "8"]
    assert len(lines) == 8


def test_results_are_shown_without_heavy_imports():
    code = "import sys, lightning_neuroimp.display.tensorboard.summaries\n"
    code += "print(sorted({'torch', 'lightning', 'matplotlib', 'tensorboard'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
