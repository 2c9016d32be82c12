"""The first cell of the quickstart and what it calls: nothing happens outside Colab, and torch is
never touched there.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from packaging.requirements import Requirement

from mdlib.core.paths import NOTEBOOKS
from mdlib.run import colab

FIRST_CELL = next(
    c.source
    for c in nbformat.read(NOTEBOOKS / "quickstart.ipynb", as_version=4).cells
    if c.cell_type == "code"
)


@pytest.fixture
def calls(monkeypatch) -> list[list[str]]:
    """Every process that would have been started; with pip, also the versions it was held to."""
    made = []

    def note(command, check):
        held = [
            Path(command[i + 1]).read_text(encoding="utf-8")
            for i, word in enumerate(command)
            if word == "-c"
        ]
        made.append([*map(str, command), *held])

    monkeypatch.setattr(subprocess, "run", note)
    return made


@pytest.fixture
def in_colab(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


def without(monkeypatch, *names):
    real = metadata.version

    def version(name):
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(colab.metadata, "version", version)


def test_outside_colab_the_first_cell_does_nothing(calls, monkeypatch):
    without(monkeypatch, "timm", "torch")
    path = list(sys.path)
    exec(FIRST_CELL, {})
    colab.install_missing()
    assert not calls and sys.path == path


def test_in_colab_the_course_is_fetched_and_what_is_missing_installed(calls, in_colab, monkeypatch):
    without(monkeypatch, "timm", "papermill")
    exec(FIRST_CELL.replace('repository = ""', 'repository = "https://example.org/course"'), {})
    clone, pip = calls
    assert clone[:2] == ["git", "clone"] and "https://example.org/course" in clone
    assert pip[1:4] == ["-m", "pip", "install"]
    assert {"timm", "papermill"} == {Requirement(word).name for word in pip[7:-1]}


def test_torch_is_held_and_never_asked_for(calls, in_colab, monkeypatch):
    without(monkeypatch, "timm")
    colab.install_missing()
    (pip,) = calls
    assert (
        pip[-1]
        == f"torch=={metadata.version('torch')}\ntorchvision=={metadata.version('torchvision')}\n"
    )
    without(monkeypatch, "torch", "torchvision")
    assert not {"torch", "torchvision"} & {
        Requirement(line).name for line in colab.missing_packages()
    }


def test_what_is_too_old_is_installed_and_what_is_given_is_not(monkeypatch):
    monkeypatch.setattr(colab.metadata, "version", lambda name: "0.0.1")
    wanted = {Requirement(line).name for line in colab.missing_packages()}
    assert {"numpy", "timm", "papermill"} < wanted and not {"torch", "torchvision"} & wanted
    monkeypatch.setattr(colab.metadata, "version", lambda name: "99.0.dev1+local")
    assert colab.missing_packages() == []


def test_nothing_is_installed_where_nothing_is_missing(calls, in_colab):
    colab.install_missing()
    assert not calls


def test_an_address_that_was_not_given_is_asked_for(calls, in_colab):
    with pytest.raises(ValueError, match="address"):
        exec(FIRST_CELL, {})
    assert not calls
