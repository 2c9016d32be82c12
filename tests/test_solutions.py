"""Solutions of the exercises: every cell runs, without a run of the course, and each checked
function is right.
"""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))
WITH_EXERCISES = sorted(p for p in NOTEBOOKS.glob("*.ipynb") if p.stem != "quickstart")


def code_of(path: Path, tag: str | None = None) -> list[str]:
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    return [c.source for c in cells if tag is None or tag in c.metadata.get("tags", [])]


def checks_in(sources: list[str]) -> list[str]:
    return re.findall(r"^(check_\w+)\(", "\n".join(sources), re.MULTILINE)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_the_solution_runs_and_is_right(path):
    said, space = StringIO(), {}
    with redirect_stdout(said):
        for number, source in enumerate(code_of(path), 1):
            # cells of this repository alone
            exec(compile(source, f"{path.stem}, code cell {number}", "exec"), space)
    (name,) = checks_in(code_of(path))
    assert f"{name.removeprefix('check_')}: right, " in said.getvalue()


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_it_solves_what_the_notebook_asks(path):
    exercise = code_of(NOTEBOOKS / path.name, "exercise")
    assert checks_in(exercise) == checks_in(code_of(path))
    signature = re.compile(r"^def \w+\(.*\):\n    \"\"\".*\"\"\"", re.MULTILINE)
    assert signature.findall("\n".join(exercise)) == signature.findall(code_of(path)[0])


def cell_of(path: Path, cell_id: str) -> str:
    return {c.id: c.source for c in nbformat.read(path, as_version=4).cells}[cell_id]


def test_every_notebook_but_the_quickstart_has_exercises_in_three_grades():
    assert [p.name for p in WITH_EXERCISES] == [p.name for p in SOLUTIONS]
    for path in WITH_EXERCISES:
        assert re.findall(r"^\*\*(★+)\*\*", cell_of(path, "exercises"), re.MULTILINE) == [
            "★",
            "★★",
            "★★★",
        ], path.stem


@pytest.mark.parametrize(
    "path", [*WITH_EXERCISES, NOTEBOOKS / "quickstart.ipynb"], ids=lambda p: p.stem
)
def test_every_notebook_has_a_quiz(path):
    # Markdown between blank lines is rendered
    folded = r"^\d\. .+\n   <details><summary>answer</summary>\n\n   .+\n   </details>$"
    assert 3 <= len(re.findall(folded, cell_of(path, "quiz"), re.MULTILINE)) <= 5


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_an_open_exercise_does_not_stop_the_notebook(path, capsys):
    for source in code_of(NOTEBOOKS / path.name, "exercise"):
        exec(source, {})
    assert "not written yet" in capsys.readouterr().out
