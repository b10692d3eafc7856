"""Draw the rooms of the package, layer by layer as the contract in pyproject.toml has them: `python docs/rooms.py`.

Another file than docs/rooms.svg is written where its path is given. Nothing but Python's standard library is needed.
"""

import ast
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_neuroimp"
WIDTH, LEFT, RIGHT, GAP, LINE, PAD = 940, 52, 20, 14, 18, 14
CHARACTER = 7.0  # mean width of a character, in pixels, on the wide side

STYLE = """
    text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #24292f; }
    .name { font: bold 14px ui-monospace, "DejaVu Sans Mono", monospace; }
    .tag, .aside { font-size: 11px; fill: #57606a; }
    .page { fill: #ffffff; }
    .room { fill: #ddf4ff; stroke: #54aeff; }
    .file { fill: #f6f8fa; stroke: #afb8c1; }
    .arrow { stroke: #57606a; fill: none; stroke-width: 1.5; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .tag, .aside { fill: #9da7b3; }
      .page { fill: #0d1117; }
      .room { fill: #0c2d4d; stroke: #388bfd; }
      .file { fill: #161b22; stroke: #484f58; }
      .arrow { stroke: #9da7b3; }
    }
"""


def contracts() -> list[dict[str, Any]]:
    """Return the import contracts of pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[dict[str, Any]] = settings["tool"]["importlinter"]["contracts"]
    return found


def layers() -> list[list[str]]:
    """Return the names in each layer, top to bottom."""
    layered = next(contract for contract in contracts() if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layered["layers"]]


def without_torch() -> set[str]:
    """Return the names of those that must not import torch."""
    modules = [c["source_modules"] for c in contracts() if c.get("forbidden_modules") == ["torch"]]
    return {module.removeprefix(f"{PACKAGE}.") for names in modules for module in names}


def purpose(name: str) -> str:
    """Return the first line of a package's or module's docstring."""
    package = ROOT / PACKAGE / name / "__init__.py"
    source = package if package.exists() else ROOT / PACKAGE / f"{name}.py"
    return (ast.get_docstring(ast.parse(source.read_text())) or "").splitlines()[0].replace("`", "")


def box(name: str, lines: list[str], x: float, y: float, width: float, height: float) -> Iterator[str]:
    """Yield the SVG of one room: its name, what it is for, and whether it goes without torch."""
    is_room = (ROOT / PACKAGE / name).is_dir()
    title = f"{name}/" if is_room else f"{name}.py"
    kind = "room" if is_room else "file"
    yield f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7"/>'
    yield f'<text class="name" x="{x + PAD:g}" y="{y + 23:g}">{title}</text>'
    if name in without_torch():
        yield f'<text class="tag" x="{x + width - PAD:g}" y="{y + 22:g}" text-anchor="end">without torch</text>'
    for number, line in enumerate(lines):
        yield f'<text x="{x + PAD:g}" y="{y + 25 + LINE * (number + 1):g}">{escape(line, quote=False)}</text>'


def draw() -> str:
    """Return the picture as SVG."""
    parts, y = [], float(GAP)
    for names in layers():
        width = (WIDTH - LEFT - RIGHT - GAP * (len(names) - 1)) / len(names)
        wrapped = [textwrap.wrap(purpose(name), int((width - 2 * PAD) / CHARACTER)) for name in names]
        height = 36 + LINE * max(map(len, wrapped))
        for place, (name, lines) in enumerate(zip(names, wrapped, strict=True)):
            parts += box(name, lines, LEFT + place * (width + GAP), y, width, height)
        y += height + GAP
    bottom, x, middle = y - GAP, LEFT / 2 + 8, y / 2
    arrow = f'<path class="arrow" d="M{x:g} {GAP} V{bottom:g} m-5 -8 l5 8 l5 -8"/>'
    text = "each knows only what is below it; neighbours in a row do not know each other"
    turned = f'transform="rotate(-90 {x - 9:g} {middle:g})" text-anchor="middle"'
    aside = f'<text class="aside" x="{x - 9:g}" y="{middle:g}" {turned}>{text}</text>'
    size = f'width="{WIDTH}" height="{y:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {y:g}" role="img">'
    title = f"<title>The rooms of {PACKAGE}</title>"
    page = f'<rect class="page" {size} rx="8"/>'
    return "\n  ".join([head, title, f"<style>{STYLE}  </style>", page, arrow, aside, *parts]) + "\n</svg>\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    target.write_text(draw())
