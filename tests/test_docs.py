"""Prose that can be checked: links point at files that exist, quoted error messages still stand in
the code.
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from mdlib.core.paths import NOTEBOOKS, ROOT
from mdlib.run.presets import load_preset

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COURSE = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def text_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n".join(
        c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
    )


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(path: Path) -> list[str]:
    broken = []
    for target in ("".join(found) for found in LINK.findall(text_of(path))):
        if target.startswith(("http", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors_of(there)):
            broken.append(target)
    return broken


@pytest.mark.parametrize(
    "path",
    [*PAGES, *sorted(NOTEBOOKS.rglob("*.ipynb"))],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_links_point_at_files_that_exist(path):
    assert not broken_links(path)


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One title\n[a](#one-title) [b](#another) [c](page.md) [d](gone.md) [e](https://arxiv.org)"
    )
    assert broken_links(page) == ["#another", "gone.md"]


def messages_of(source: str) -> set[str]:
    """Every string of a module, with … where a value is put in."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            found.add(
                "".join(
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_quoted_messages_stand_in_the_code():
    said = set().union(
        *(messages_of(path.read_text(encoding="utf-8")) for path in (ROOT / "mdlib").rglob("*.py"))
    )
    section = COURSE.partition("## Troubleshooting")[2].partition("\n## ")[0]
    quoted = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    assert len(quoted) > 10, "no messages found: does the pattern still fit?"
    gone = [message for message in quoted if not any(message in text for text in said)]
    assert not gone, f"the code does not say this any more: {gone}"


def test_the_map_lists_every_notebook_and_its_minutes():
    rows = dict(
        re.findall(
            r"^\| \[(\w+)\]\(\.\./notebooks/\1\.ipynb\) \| [^|]+ \| (\d+) \|", COURSE, re.MULTILINE
        )
    )
    assert rows.keys() == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    for name, seconds in load_preset("demo").seconds.items():
        assert abs(int(rows[name]) - seconds / 60) <= 1, (
            f"{name}: {rows[name]} minutes, measured {seconds} s"
        )


def test_the_glossary_is_in_order():
    section = COURSE.partition("## Glossary")[2].partition("\n## ")[0]
    terms = re.findall(r"^\| ([^|]+?) \|", section, re.MULTILINE)[1:]
    assert len(terms) >= 25 and terms == sorted(terms, key=str.lower)
