"""Notebooks as the tests read and run them."""

from functools import cache
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
from nbformat import NotebookNode

from mdlib.core.paths import NOTEBOOKS
from mdlib.run import identity, presets, stage

STAGES = sorted(NOTEBOOKS.glob("*.ipynb"))  # what the runner runs
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))


@cache
def cells_of(path: Path) -> list[NotebookNode]:
    """The cells of a notebook; tests do not change them."""
    return nbformat.read(path, as_version=4).cells


def code_of(path: Path, tag: str | None = None) -> list[str]:
    """The sources of its code cells; tag: of those with this tag."""
    return [
        cell.source
        for cell in cells_of(path)
        if cell.cell_type == "code" and (tag is None or tag in cell.metadata.get("tags", []))
    ]


def prose_of(path: Path) -> str:
    """Its Markdown."""
    return "\n".join(cell.source for cell in cells_of(path) if cell.cell_type == "markdown")


def cell_of(path: Path, cell_id: str) -> str:
    """The source of one cell."""
    return {cell.id: cell.source for cell in cells_of(path)}[cell_id]


def run_cells(name: str, run_dir: Path, /, **values) -> dict:
    """Run a notebook's cells in this process, which spares the start of a kernel.

    values: parameters that differ from the notebook's own. Returns the stage's manifest.
    """
    matplotlib.use("agg")
    own = {key: parameter.value for key, parameter in presets.read_parameters(name).items()}
    names = {**own, **values, "run_dir": str(run_dir)}
    try:
        for cell in cells_of(NOTEBOOKS / f"{name}.ipynb"):
            ignored = identity.IGNORED_TAGS & set(cell.metadata.get("tags", []))
            if cell.cell_type == "code" and not ignored:
                exec(compile(cell.source, f"{name}, cell {cell.id}", "exec"), names)
    except stage.StageSkipped:
        pass  # its manifest says why
    plt.close("all")
    return stage.read_manifest(run_dir, name)
