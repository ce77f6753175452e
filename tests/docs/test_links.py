"""Every link of a page leads to a file, and to a heading where it names one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.commands import PAGES, ROOT

LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    titles = re.findall(r"(?m)^#+ +(.+?)\s*$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path, text: str) -> list[str]:
    """The links of a text on a page that lead nowhere."""
    out = []
    for target, anchor in LINK.findall(text):
        file = page.parent / target if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            out.append(f"{target}#{anchor}" if anchor else target)
    return out


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# Some title: here\n")
    assert broken(page, "[x](a.md#some-title-here) [y](b.md) [z](#none) [w](https://no.such)") == ["b.md", "#none"]


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent != ROOT], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_index_leads_to_every_page(page: Path) -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target, _ in LINK.findall(index.read_text(encoding="utf-8"))}
    assert page == index or page.resolve() in linked


def test_pages_named_in_code_and_examples_exist() -> None:
    folders = ("data", "models", "reward", "stages", "evaluation", "pipelines", "examples", "benchmarks", "tests")
    files = [f for d in folders for f in (ROOT / d).rglob("*") if f.suffix in (".py", ".yaml", ".jinja")]
    named = {(f, name) for f in files for name in re.findall(r"docs/[\w/-]+\.md", f.read_text(encoding="utf-8"))}
    assert named
    assert [f"{f.relative_to(ROOT)}: {name}" for f, name in sorted(named) if not (ROOT / name).is_file()] == []
