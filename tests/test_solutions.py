"""Solutions of the exercises: every cell runs, without a run of the course, and each checked
function is right.
"""

import re
from contextlib import redirect_stdout
from io import StringIO

import pytest
from cells import SOLUTIONS, STAGES, cell_of, code_of

from mdlib.core.paths import NOTEBOOKS

WITH_EXERCISES = [path for path in STAGES if path.stem != "quickstart"]


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


def test_every_notebook_but_the_quickstart_has_exercises_in_three_grades():
    assert [p.name for p in WITH_EXERCISES] == [p.name for p in SOLUTIONS]
    for path in WITH_EXERCISES:
        assert re.findall(r"^\*\*(★+)\*\*", cell_of(path, "exercises"), re.MULTILINE) == [
            "★",
            "★★",
            "★★★",
        ], path.stem


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_every_notebook_has_a_quiz(path):
    # Markdown between blank lines is rendered
    folded = r"^\d\. .+\n   <details><summary>answer</summary>\n\n   .+\n   </details>$"
    assert 3 <= len(re.findall(folded, cell_of(path, "quiz"), re.MULTILINE)) <= 5


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_an_open_exercise_does_not_stop_the_notebook(path, capsys):
    for source in code_of(NOTEBOOKS / path.name, "exercise"):
        exec(source, {})
    assert "not written yet" in capsys.readouterr().out
