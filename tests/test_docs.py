"""The pages of the repository name what exists, and the picture of the rooms is up to date."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_neuroimp"
GUIDES = (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])


def by_name(page):
    return str(page.relative_to(ROOT))


def spans(page):
    """What a page has between single backticks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))


def paths(page):
    """Files and folders that a page names, also in its blocks of code."""
    blocks = " ".join(re.findall(r"```.*?```", page.read_text(), re.S))
    words = [*spans(page), *" ".join(spans(page)).split(), *blocks.split()]
    named = r"[\w.-]+(/[\w.-]+)*/|([\w.-]+/)*[\w.-]+\.(py|md|svg|toml|txt|npz|yaml)|([\w.-]+/)+[\w.-]+"
    return {word for word in words if re.fullmatch(named, word) and not word.startswith(("/", ".venv/"))}


def test_the_picture_of_the_rooms_is_up_to_date(tmp_path):
    drawn = tmp_path / "rooms.svg"
    subprocess.run([sys.executable, ROOT / "docs" / "rooms.py", drawn], check=True)
    assert drawn.read_text() == (ROOT / "docs" / "rooms.svg").read_text(), "run python docs/rooms.py"


@pytest.mark.parametrize("page", GUIDES, ids=by_name)
def test_every_path_exists(page):
    found = paths(page)
    assert len(found) > 15
    places = (ROOT, PACKAGE, PACKAGE / "display", PACKAGE / "results" / "findings", PACKAGE / "importance/attributions")
    missing = [path for path in sorted(found) if not any((place / path).exists() for place in places)]
    assert not missing


def test_a_path_that_does_not_exist_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("see `capture/nowhere.py` and `" + "clusters/`\n```\npython tests/gone.py save\n```\n")
    assert paths(page) == {"capture/nowhere.py", "clusters/", "tests/gone.py"}


@pytest.mark.parametrize("page", GUIDES, ids=by_name)
def test_every_name_of_code_exists(page):
    source = "\n".join(path.read_text() for path in [*PACKAGE.rglob("*.py"), ROOT / "pyproject.toml"])
    source += "\n".join([".grad", "Args", "Returns", "Raises", "References"])
    names = {span.removesuffix("()").rpartition(".")[2] for span in spans(page) if re.fullmatch(r"[\w.]+(\(\))?", span)}
    names -= {Path(path).suffix[1:] for path in paths(page)}
    assert not [name for name in sorted(names) if not re.search(rf"\b{re.escape(name)}\b", source)]


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_relative_link_resolves(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    local = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith(("#", "mailto:"))]
    assert not [link for link in local if not (page.parent / link).exists()]


def test_the_guide_for_contributors_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60


def test_hooks_before_a_commit_download_nothing():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    repositories = yaml.safe_load(text)["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    assert {hook["language"] for hook in repositories[0]["hooks"]} == {"system"}
    assert "://" not in text
