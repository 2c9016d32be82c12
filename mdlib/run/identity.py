"""What the result of a stage depends on: code, versions, device, files outside the run.

Each is compared before a stage is called up to date, and each is part of a checkpoint's name.
"""

import ast
import ctypes
import platform
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from mdlib.core.files import StoreError, digest_bytes, digest_file, digest_folder
from mdlib.core.paths import NOTEBOOKS, ROOT

# What computes. What draws (matplotlib, seaborn) does not change a result.
LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "faster-coco-eval",
)
# Tags of cells that do not change what a stage computes: its values (compared apart), and what a
# reader tries after it.
IGNORED_TAGS = {"parameters", "exercise", "explorer"}
# Code that draws, or that runs a notebook, does not change its result,
IGNORED_CODE = ("mdlib.run", "mdlib.show", "mdlib.core.colours", "mdlib.core.progress")
# except where a notebook calls it to compute: {text in its cells: module that then counts}.
THROUGH_RUN = {
    "stage.run": "mdlib.data.roles",
    ".predicted_maps(": "mdlib.method.segmenter",
    "MaskDistill.": "mdlib.run.predict",
}


# ---------------------------------------------------------------- code


def notebook_cells(notebook: str) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook.

    Args:
        notebook: its name.

    Raises:
        StoreError: its file is no notebook, such as one with the marks of a merge.
    """
    path = NOTEBOOKS / f"{notebook}.ipynb"
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:  # nbformat's errors have no common class
        raise StoreError(f"{path} is no notebook ({type(error).__name__}: {error})") from None
    return [cell for cell in cells if cell.cell_type == "code"]


def stage_sources(notebook: str) -> list[str]:
    """The source of each cell that counts for what a notebook computes, see IGNORED_TAGS."""
    cells = notebook_cells(notebook)
    return [c.source for c in cells if not IGNORED_TAGS & set(c.metadata.get("tags", []))]


def as_python(source: str) -> str:
    """A cell as IPython runs it and lists it in `In`: magics and shell commands are calls."""
    return TransformerManager().transform_cell(source).strip()


def code_digest(notebook: str) -> str:
    """Digest of a notebook's code and of the mdlib modules it imports, directly or not.

    Comments and docstrings do not count, nor do the modules of IGNORED_CODE and what they import.

    Args:
        notebook: its name.

    Returns:
        The digest of the syntax trees.
    """
    modules = _modules(notebook)
    return digest_bytes(
        _dump(tree_of(stage_sources(notebook))).encode(),
        *(modules[path].encode() for path in sorted(modules)),
    )


def library_digest(module: str) -> str:
    """The same of a module of mdlib and what it imports, such as "mdlib.run.predict"."""
    modules = _reached({ROOT / f"{module.replace('.', '/')}.py"})
    return digest_bytes(*(modules[path].encode() for path in sorted(modules)))


def changed_since_import(notebook: str) -> list[str]:
    """The mdlib modules of a notebook whose code is another than this process has loaded.

    What a module's file holds when a stage is first opened in this process counts as loaded.
    """
    changed = []
    for path, digest in _modules(notebook).items():
        if _loaded.setdefault(path, digest) != digest:
            changed.append(path.relative_to(ROOT).as_posix())
    return sorted(changed)


_loaded: dict[Path, str] = {}  # a module's file: the digest of what was loaded from it


def _modules(notebook: str) -> dict[Path, str]:
    """The files of the mdlib modules that a notebook imports, and the code of each as text."""
    sources = stage_sources(notebook)
    queue = _imports(tree_of(sources))
    for text, module in THROUGH_RUN.items():
        if any(text in source for source in sources):
            queue |= _files_of({module})
    return _reached(queue)


def _reached(queue: set[Path]) -> dict[Path, str]:
    """The files of modules and of those that they import, and the code of each as text."""
    found: dict[Path, str] = {}
    while queue:
        path = queue.pop()
        if path not in found:
            found[path], imported = _module(path, path.stat().st_mtime_ns)
            queue |= imported
    return found


@cache
def _module(path: Path, _: int) -> tuple[str, set[Path]]:
    """The code of a module as text, and what it imports; read again when its time is another."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return _dump(tree), _imports(tree)


def tree_of(cells: list[str]) -> ast.Module:
    """The syntax tree of cells; a cell that is no Python counts by its text."""
    body: list[ast.stmt] = []
    for source in cells:
        try:
            body += ast.parse(as_python(source)).body
        except SyntaxError:
            body.append(ast.Expr(ast.Constant(source)))
    return ast.Module(body=body, type_ignores=[])


def _dump(tree: ast.Module) -> str:
    """A syntax tree as text, without positions and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str()) as docstring), *_]:
                    docstring.value = ""
    return ast.dump(tree)


def _imports(tree: ast.Module) -> set[Path]:
    """The files of the mdlib modules that a module imports anywhere, but for IGNORED_CODE."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    neutral = tuple(f"{module}." for module in IGNORED_CODE)
    return _files_of({name for name in names if not f"{name}.".startswith(neutral)})


def _files_of(names: set[str]) -> set[Path]:
    """The files of those of these modules that are mdlib's."""
    bases = [ROOT / name.replace(".", "/") for name in names if name.split(".")[0] == "mdlib"]
    files = (file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py"))
    return {file for file in files if file.is_file()}


# ---------------------------------------------------------------- machine


def device() -> str:
    """Where networks run: "cuda" where there is one, else "cpu"."""
    if "torch" not in sys.modules and not _driver_finds_gpu():
        return "cpu"  # the runner need not import torch for this
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def _driver_finds_gpu() -> bool:
    """Whether NVIDIA's driver is installed; without it torch finds no GPU."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


@cache
def version(library: str) -> str:
    """The installed version of a library, "none" without it."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "none"


def versions() -> dict[str, str]:
    """{"python" or a package of LIBRARIES: the version that is installed}."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


# ---------------------------------------------------------------- files outside the run


def key_of(path: Path) -> str:
    """How a manifest names a file: from the repository's root where it lies there."""
    absolute = Path(ROOT, path)
    return (absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else absolute).as_posix()


def digest_of(path: Path) -> str:
    """Digest of a file's bytes, or of the names and bytes of all that is in a folder."""
    full = ROOT / path
    return digest_folder(full) if full.is_dir() else digest_file(full)
