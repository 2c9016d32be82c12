"""What `make` does to a user's files and machine."""

import re
import shutil
import subprocess

import pytest

from mdlib.core.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
with_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

CACHES = (
    ".venv/lib",
    ".pytest_cache",
    "maskdistill.egg-info",
    "mdlib/run/__pycache__",
    "notebooks/.ipynb_checkpoints",
    "notebooks/my work/.ipynb_checkpoints",
    "notebooks/my work/code/__pycache__/deep",
    "tests/it's\n$(odd)/__pycache__",
)
KEPT = (
    "notebooks/solutions/a.ipynb",
    "notebooks/my/thesis.ipynb",
    "notebooks/my work/thesis.ipynb",
    "work/thesis.txt",
    "own.egg-info/thesis.txt",
    "data/photos/__pycache__/a.jpg",
    "reports/lab/artifacts/a.json",
    "benchmarks/results/a.json",
)


@with_make
def test_clean_deletes_caches_and_nothing_else(tmp_path):
    checkout = tmp_path / "my course"
    for name in CACHES:
        (checkout / name).mkdir(parents=True)
    for name in KEPT:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").touch()
    (checkout / "mdlib" / "__pycache__").symlink_to(tmp_path / "elsewhere", True)
    shutil.copy(ROOT / "Makefile", checkout)
    subprocess.run(["make", "clean"], cwd=checkout, check=True, capture_output=True)
    assert not [name for name in CACHES if (checkout / name).exists()]
    assert not [name for name in KEPT if not (checkout / name).is_file()]
    assert (tmp_path / "elsewhere" / "a.txt").is_file()


@with_make
@pytest.mark.parametrize("command", ["report", "site"])
def test_a_run_may_have_spaces_in_its_name(command, tmp_path):
    python = tmp_path / "a python"  # in the place of Python: notes what it is asked for
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/asked"\n', encoding="utf-8")
    python.chmod(0o755)
    subprocess.run(
        ["make", "-o", ".venv/.installed", command, f"PY={python}", "RUN=reports/my run"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert asked == ["-m", "mdlib", command, "reports/my run"]


def test_the_lab_is_for_this_machine_alone_and_asks_for_its_token():
    (line,) = re.findall(r"^\t.* jupyter lab (.*)$", MAKEFILE, re.MULTILINE)
    assert "--ServerApp.ip=127.0.0.1" in line
    assert "--ServerApp.allow_remote_access=False" in line
    assert not re.search("token|password|root", line), "Jupyter's own token stays"


@with_make
def test_a_crf_that_could_not_be_built_can_be_built_later(tmp_path):
    assert re.search(r"\$\(CRF\) \|\| echo .* make crf", MAKEFILE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n', encoding="utf-8")
    python.chmod(0o755)
    command = ["make", "-o", ".venv/.installed", "crf", f"PY={python}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert len(asked) == 2 and asked[1].endswith("--no-build-isolation --no-deps pydensecrf2")
