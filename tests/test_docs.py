"""Prose that can be checked: links point at files that exist, quoted error messages still stand in
the code.
"""

import ast
import pkgutil
import re
from itertools import chain
from pathlib import Path

import pytest
from cells import SOLUTIONS, STAGES, cells_of, code_of, prose_of
from test_hygiene import FOLDERS

from mdlib.core.paths import ROOT
from mdlib.run.presets import load_preset

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
COURSE = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def text_of(path: Path) -> str:
    return prose_of(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")


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
    [*PAGES, *STAGES, *SOLUTIONS],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_links_point_at_files_that_exist(path):
    assert not broken_links(path)


def test_the_pages_have_links():
    """Does the pattern still fit?"""
    assert len(LINK.findall(text_of(ROOT / "README.md"))) > 30


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
    assert rows.keys() == {path.stem for path in STAGES}
    for name, seconds in load_preset("demo").seconds.items():
        assert abs(int(rows[name]) - seconds / 60) <= 1, (
            f"{name}: {rows[name]} minutes, measured {seconds} s"
        )


def test_the_glossary_is_in_order():
    section = COURSE.partition("## Glossary")[2].partition("\n## ")[0]
    terms = re.findall(r"^\| ([^|]+?) \|", section, re.MULTILINE)[1:]
    assert len(terms) >= 25 and terms == sorted(terms, key=str.lower)


# ---------------------------------------------------------------- architecture, recipes


def unknown_names(text: str) -> list[str]:
    """The dotted names of the library in a text, as `folder.module.name`, that it does not have."""
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})\.\w+(?:\.\w+)*)`", text)
    assert named, "no names found: does the pattern still fit?"
    return [name for name in named if not is_there(f"mdlib.{name}")]


def is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_an_unknown_name_is_found():
    text = "`core.files.atomic`, `core.files.nothing`, `core.gone.atomic`, `run.stage.Stage.gone`"
    assert unknown_names(text) == ["core.files.nothing", "core.gone.atomic", "run.stage.Stage.gone"]


def test_what_the_architecture_names_is_in_the_library():
    assert not unknown_names(ARCHITECTURE)


def words_of_the_code() -> set[str]:
    """Every word of the library, of notebooks' code, and of what configures them."""
    files = [*(ROOT / "mdlib").rglob("*.py"), *(ROOT / "presets").iterdir()]
    files += [ROOT / "Makefile", ROOT / "pyproject.toml"]
    files += [ROOT / "tests" / "conftest.py", ROOT / "tests" / "models" / "test_hub.py"]
    texts = [path.read_text(encoding="utf-8") for path in files]
    others = (ROOT / folder for folder in ("tests", "notebooks", "data/zoo"))
    texts += [path.name for path in chain(files, *(folder.rglob("*") for folder in others))]
    texts += [cell.id for path in STAGES for cell in cells_of(path)]
    texts += ["\n".join(code_of(path)) for path in (*STAGES, *SOLUTIONS)]
    return set(re.findall(r"\w+", "\n".join(texts)))


WORDS = words_of_the_code()
FILE_TYPES = ("json", "npy", "npz", "png", "py", "html", "yaml", "csv", "safetensors")
# as prose calls them: `clusters.whiten`; `stage` is a notebook's variable
MODULES = {
    path.stem: f"mdlib.{path.parent.name}.{path.stem}"
    for path in (ROOT / "mdlib").glob("*/[a-z]*.py")
    if path.stem != "stage"
}


def gone_names(text: str) -> list[str]:
    """Names in backticks, dotted or of a file, with a word that is nowhere in the code.

    A role at the end, as in masks_dev.json, is put in by an f-string; NAME and NN are to be chosen.
    """
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    named = re.findall(r"`([A-Za-z_][\w./]*)(?:\(\))?`", text)
    return [name for name in named if not re.search("NAME|NN_", name) and not is_in_the_code(name)]


def is_in_the_code(name: str) -> bool:
    first, *rest = name.split(".")
    if first == "mdlib" and rest:
        return is_there(name)
    if first in MODULES and rest and rest[-1] not in FILE_TYPES:
        return is_there(f"{MODULES[first]}.{'.'.join(rest)}")
    words = re.findall(r"\w+", name)
    return all(w in WORDS or re.sub(r"_(train|dev|val)$", "", w) in WORDS for w in words)


@pytest.mark.parametrize(
    "path",
    [
        *(page for page in PAGES if page.name != "CHANGELOG.md"),  # it names what is gone
        ROOT / "data" / "README.md",
        *STAGES,
        *SOLUTIONS,
    ],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_names_in_prose_are_those_of_the_code(path):
    assert not gone_names(text_of(path))


def test_a_name_that_is_gone_is_found():
    text = "`masks_dev.json`, `val_clusters.json`, `mdlib.datasets.checks`, `object_mask()`, `a b`"
    text += "`clusters.whiten`, `clusters.propose_masks`, `clusters.json`, `data/coco.py`"
    gone = ["val_clusters.json", "mdlib.datasets.checks", "clusters.propose_masks"]
    assert gone_names(text) == gone


def test_the_architecture_has_a_sentence_for_each_folder():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", ARCHITECTURE, re.MULTILINE)
    assert [folder for folder, *_ in rows] == FOLDERS


def test_the_recipes_name_files_that_exist():
    """Links are checked above; these are written as code, with NAME for a file to be made."""
    text = text_of(ROOT / "CONTRIBUTING.md")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert {f"Add {what}" for what in ("a data set", "an encoder", "a notebook", "a metric")} <= {
        *headings
    }
    files = re.findall(r"`((?:mdlib|tests|notebooks|presets|docs)/[\w./*]+)`", text)
    assert files
    gone = [file for file in files if "NAME" not in file and not list(ROOT.glob(file))]
    assert not gone
    assert all((ROOT / file).parent.is_dir() for file in files)
    functions = {"OPENERS": "data", "check_dataset": "data.checks", "read_image": "data.images"}
    functions |= dict.fromkeys(("TIMM_NAMES", "RENAMING", "build_published_vit"), "models.hub")
    functions |= {"capture_qkv": "models.encoder", "README_METRICS": "run.report"}
    for name, module in functions.items():
        assert f"`{name}`" in text and is_there(f"mdlib.{module}.{name}"), name
