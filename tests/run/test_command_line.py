"""The command line starts quickly: what a command does not need is not imported."""

import subprocess
import sys

import pytest

from mdlib.core.paths import ROOT

HEAVY = {"torch", "matplotlib", "timm", "nbconvert", "papermill", "pydantic"}


def loaded(code: str) -> set[str]:
    """The modules of HEAVY that a new Python has loaded after `code`."""
    shown = f"{code}\nimport sys; print('loaded:', *{HEAVY} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", shown], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = f"from mdlib.__main__ import main\ntry: main({arguments})\nexcept SystemExit: pass"
    assert loaded(code) == set()


def test_the_runner_loads_no_torch():
    assert "torch" not in loaded("import mdlib.run.pipeline")
