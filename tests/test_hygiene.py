"""Rules of the house that a reader would otherwise have to check by eye: notebooks, library, lists, links."""

import ast
import dataclasses
import re
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import yaml
from cells import SOLUTIONS, STAGES, cells_of
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mdlib.core.paths import ROOT
from mdlib.data.compose import Composition
from mdlib.method.crf import CrfSettings
from mdlib.method.masks import MaskRule
from mdlib.method.segmenter import Augment
from mdlib.run.identity import stage_sources, tree_of
from mdlib.training.loop import Recipe

NOTEBOOKS = [*STAGES, *SOLUTIONS]
MODULES = sorted((ROOT / "mdlib").rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

each_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "notebooks").as_posix()
)
each_stage = pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())

# mdlib's folders: each imports only from those before it, so there is no circle.
FOLDERS = [
    "core",
    "data",
    "evaluate",
    "models",
    "training",
    "method",
    "studies",
    "run",
    "show",
    "exercises",
]


# ---------------------------------------------------------------- notebooks


def parameters_cell(path: Path) -> tuple[int, str]:
    tagged = [
        (i, c.source)
        for i, c in enumerate(cells_of(path))
        if "parameters" in c.metadata.get("tags", [])
    ]
    assert len(tagged) == 1, f"expected one cell tagged `parameters`, found {len(tagged)}"
    return tagged[0]


@each_notebook
def test_notebook_is_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    assert "papermill" not in notebook.metadata
    for number, cell in enumerate(notebook.cells):
        assert not {"papermill", "execution"} & cell.metadata.keys(), (
            f"cell {number} keeps traces of a run"
        )
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, (
                f"cell {number} has outputs: strip with nbstripout"
            )


@each_notebook
def test_notebook_has_stable_ids(path):
    raw = nbformat.reader.reads(
        path.read_text(encoding="utf-8")
    )  # as stored: read() would invent missing ids
    assert (raw.nbformat, raw.nbformat_minor) >= (4, 5), "cell ids need format 4.5"
    ids = [cell.get("id") for cell in raw.cells]
    assert all(isinstance(i, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", i) for i in ids), ids
    assert len(set(ids)) == len(ids), sorted(i for i in ids if ids.count(i) > 1)


@each_stage
def test_parameters_cell_is_flat(path):
    source = parameters_cell(path)[1]
    for node in ast.parse(source).body:
        assert isinstance(node, ast.AnnAssign) and node.value is not None, (
            f"not `name: type = value`: {ast.unparse(node)}"
        )
        ast.literal_eval(node.value)  # papermill does not compute derived values again


@each_stage
def test_each_parameter_is_one_line_with_a_comment(path):
    """papermill and `read_parameters` read the comment of the same line."""
    source = parameters_cell(path)[1]
    lines = source.splitlines()
    assert len(ast.parse(source).body) == len(lines), "one line for each parameter, and no other"
    for line in lines:
        assert len(line) <= 100, f"{len(line)} columns: {line}"
        assert re.fullmatch(r"\w+: [\w\[\] |]+ = .+?  # \S.*", line), line
        assert line.count("=") == 1, f"papermill loses a line with a second `=`: {line}"


def picked_by(node: ast.AST) -> set[str]:
    """The parameters that `Recipe.of(globals(), name=...)` or another settings' `of` reads, or
    `changed(globals())` of a composition.
    """
    if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".of", ".changed"))):
        return set()
    if not node.args or ast.unparse(node.args[0]) != "globals()":
        return set()
    kinds = {kind.__name__: kind for kind in (MaskRule, Recipe, Augment, CrfSettings)}
    *_, name, method = ast.unparse(node.func).split(".")
    kind = Composition if method == "changed" else kinds[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    return fields - {keyword.arg for keyword in node.keywords}


@each_stage
def test_every_parameter_is_used(path):
    index, source = parameters_cell(path)
    names = {node.target.id for node in ast.parse(source).body}
    later = [ast.parse(c.source) for c in cells_of(path)[index + 1 :] if c.cell_type == "code"]
    used = {
        n.id
        for tree in later
        for n in ast.walk(tree)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }
    used |= set().union(*(picked_by(n) for tree in later for n in ast.walk(tree)))
    unread = names - used - {"run_dir"}  # open_stage reads run_dir
    assert not unread, f"never read: {sorted(unread)}"


def bound_by(node: ast.AST) -> set[str]:
    """The names that a statement binds for the cells after it; functions have names of their own."""
    own = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    if isinstance(node, own):
        return set()
    here = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    return here.union(*(bound_by(child) for child in ast.iter_child_nodes(node)))


@each_stage
def test_no_cell_gives_a_parameter_another_value(path):
    # the manifest would name the value that the stage was opened with, and `finish` refuses it
    names = {node.target.id for node in ast.parse(parameters_cell(path)[1]).body}
    assert not names & bound_by(tree_of(stage_sources(path.stem)))


@each_notebook
def test_cells_are_short(path):
    lengths = {
        i: sum(map(bool, map(str.strip, c.source.splitlines()))) for i, c in code_cells(path)
    }
    long = {i: n for i, n in lengths.items() if n > 32}
    assert not long, f"cells over 32 lines (cell: lines): {long}"


@each_notebook
def test_notebook_runs_anywhere(path):
    for number, cell in enumerate(cells_of(path)):
        found = re.search(r"(?<![\w.~-])(/(work|tmp|home|root|Users)/|[A-Z]:\\)", cell.source)
        assert not found, f"cell {number} holds a path of one machine: {found.group()}"
    for number, cell in code_cells(path):
        assert not re.search(r"^\s*[!%]+\s*(pip|conda)\b", cell.source, re.MULTILINE), (
            f"cell {number} installs packages"
        )


def code_cells(path: Path) -> list[tuple[int, nbformat.NotebookNode]]:
    return [(i, c) for i, c in enumerate(cells_of(path)) if c.cell_type == "code"]


# ---------------------------------------------------------------- library


def imports_of(path: Path) -> set[str]:
    """Dotted names a module imports, anywhere in it; `from a import b` gives a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write it out"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@each_module
def test_layers(path):
    parts = path.relative_to(ROOT / "mdlib").with_suffix("").parts
    imported = imports_of(path)
    assert "mdlib" not in imported, "import the module that is meant, not the whole of mdlib"
    targets = {name.split(".")[1] for name in imported if name.startswith("mdlib.")}
    if parts == ("__init__",):
        assert not targets, "mdlib/__init__.py imports nothing of mdlib"
    elif parts != ("__main__",):
        allowed = FOLDERS[: FOLDERS.index(parts[0]) + 1]
        above = sorted(targets - set(allowed))
        assert not above, f"{parts[0]} imports from folders that stand above it: {above}"


def test_folders_are_those_that_the_package_names():
    there = {p.parent.name for p in (ROOT / "mdlib").glob("*/__init__.py")}
    assert there == set(FOLDERS)
    named = re.findall(r"^    (\w+) +", (ROOT / "mdlib" / "__init__.py").read_text(), re.MULTILINE)
    assert named == FOLDERS


@each_module
def test_nothing_is_pickled(path):
    assert not {name.split(".")[0] for name in imports_of(path)} & {
        "pickle",
        "cloudpickle",
        "dill",
        "shelve",
    }
    writers = {"torch.load", "torch.save", "joblib.dump", "joblib.load"}
    assert not writers & imports_of(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called, options = (
                ast.unparse(node.func),
                {k.arg: ast.unparse(k.value) for k in node.keywords},
            )
            foreign = (
                path.name == "checkpoints.py"
                and called == "torch.load"
                and options.get("weights_only") == "True"
            )
            assert foreign or called not in writers, f"line {node.lineno}: use store's safetensors"
            allowed = [
                k
                for k in node.keywords
                if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"
            ]
            assert not allowed, f"line {node.lineno}: allow_pickle"


def open_in_the_locales_encoding(source: str) -> list[str]:
    """Calls that read or write text and do not say that it is UTF-8: Windows would take another."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).rpartition(".")
        words = {keyword.arg for keyword in node.keywords}
        is_text = {
            "open": called[0] not in ("Image", "os", "tarfile")
            and not any(re.fullmatch("'[rwax+]*b[rwax+]*'", ast.unparse(a)) for a in node.args),
            "read_text": True,
            "write_text": bool(called[0]),  # core.files.write_text has no folder before it
        }.get(called[2], bool({"text", "universal_newlines"} & words))
        if is_text and "encoding" not in words:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize(
    "path",
    [*MODULES, *sorted((ROOT / "benchmarks").rglob("*.py"))],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_text_is_utf8(path):
    assert not open_in_the_locales_encoding(path.read_text(encoding="utf-8"))


@each_notebook
def test_text_of_notebooks_is_utf8(path):
    for number, cell in code_cells(path):
        assert not open_in_the_locales_encoding(cell.source), f"cell {number}"


def test_imports_are_declared():
    owners = metadata.packages_distributions()
    declared = {plain(Requirement(line).name) for line in PROJECT["dependencies"]}
    optional = {
        plain(Requirement(line).name) for line in PROJECT["optional-dependencies"]["crf"]
    } | {"pydensecrf"}
    for path in MODULES:
        for top in (
            {name.split(".")[0] for name in imports_of(path)}
            - set(sys.stdlib_module_names)
            - {"mdlib"}
        ):
            packages = {plain(owner) for owner in owners.get(top, [top])}
            assert packages & (declared | optional), (
                f"{path.name} imports {top}: pyproject.toml does not list it"
            )


# ---------------------------------------------------------------- lists and links


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_environment_equals_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (listed,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(listed) == sorted(
        PROJECT["dependencies"] + PROJECT["optional-dependencies"]["crf"]
    )


def test_every_list_of_pythons_fits_pyproject():
    supported = SpecifierSet(PROJECT["requires-python"])
    minors = [minor for minor in range(8, 30) if supported.contains(f"3.{minor}")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lowest, highest = re.findall(r"\(3, (\d+)\)", makefile)
    assert (int(lowest), int(highest)) == (minors[0], minors[-1])
    course = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
    for text in (makefile, README, course):
        assert f"Python 3.{minors[0]} to 3.{minors[-1]}" in text
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert int(re.search(r"- python=3\.(\d+)", environment)[1]) in minors


def test_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {plain(name): version for name, version in pins.items()}
    extras = chain.from_iterable(PROJECT["optional-dependencies"].values())
    for line in chain(PROJECT["dependencies"], extras):
        needed = Requirement(line)
        assert plain(needed.name) in pins, f"{needed.name} is not pinned"
        assert needed.specifier.contains(pins[plain(needed.name)]), (
            f"{line}, pinned {pins[plain(needed.name)]}"
        )
    system = [name for name in pins if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not system, f"these exist on some systems only: {system}"


def test_readme_lists_the_notebooks():
    rows = re.findall(r"^\| \[(\w+)\]\(notebooks/(\w+)\.ipynb\) \|", README, re.MULTILINE)
    assert all(shown == linked for shown, linked in rows), rows
    assert [linked for _, linked in rows] == [p.stem for p in STAGES]


def test_readme_names_real_make_targets():
    named = set(re.findall(r"(?:^|`)make ([a-z0-9]+)", README, re.MULTILINE))
    targets = set(
        re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert {"demo", "test"} <= named <= targets, f"not in the Makefile: {sorted(named - targets)}"


def test_readme_keeps_the_results_markers():
    begin, end = README.find("<!-- results:begin -->"), README.find("<!-- results:end -->")
    assert -1 < begin < end, "the results table is generated between these two"
