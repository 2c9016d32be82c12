"""The command line starts quickly, since what a command does not need is not imported; and it says
what is wrong in a line.
"""

import errno
import os
import subprocess
import sys

import pytest

from mdlib.__main__ import main
from mdlib.core.files import StoreError, write_text
from mdlib.core.paths import ROOT
from mdlib.data import download
from mdlib.data.images import ImageError
from mdlib.run import exit_codes

HEAVY = {"torch", "matplotlib", "timm", "nbconvert", "papermill", "pydantic"}


def loaded(code: str) -> set[str]:
    """The modules of HEAVY that a new Python has loaded after `code`."""
    shown = f"{code}\nimport sys; print('loaded:', *{HEAVY} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", shown], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    return set(done.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = f"from mdlib.__main__ import main\ntry: main({arguments})\nexcept SystemExit: pass"
    assert loaded(code) == set()


def test_the_runner_loads_no_torch():
    assert "torch" not in loaded("import mdlib.run.pipeline")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "nonsense"],
        ["run", "demo", "--set", "02_cluster_masks.k=1"],
        ["run", "demo", "--out", ""],
        ["check", "nonsense"],
        ["check", "demo", "--set", "03_train_mask_rcnn.backbone=resnet18"],
        ["fetch", "imagenet"],
        *([command, "docs"] for command in ("report", "site")),
        ["predict", "docs", "--run", "docs"],
        ["predict", "", "--run", "docs"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_told_without_torch(arguments):
    code = (
        f"from mdlib.__main__ import main\ntry: assert main({arguments}) == 2\n"
        "except SystemExit as ended: assert ended.code == 2"
    )
    assert "torch" not in loaded(code)


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("command", ["report", "site", "predict"])
def test_a_folder_that_is_no_run_is_told(command, tmp_path, capsys):
    run = ["--run", str(tmp_path), "a.png"] if command == "predict" else [str(tmp_path)]
    assert main([command, *run]) == exit_codes.WRONG
    assert f"error: there is no run at {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{}", '{"preset": 3}', "null"])
def test_a_run_that_names_no_preset_has_no_report(content, tmp_path, capsys):
    write_text(tmp_path / "artifacts" / "run.json", content)
    assert main(["report", str(tmp_path)]) == exit_codes.WRONG
    assert "names no preset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError("no zoo at /data"), "no zoo at /data"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), "No such file: a.png"),
        (OSError(errno.ENOSPC, "No space left", "a"), "No space left: a (is the disk full, "),
        (PermissionError(errno.EACCES, "Denied", "a"), "Denied: a (is the disk full, "),
        (ValueError("a map holds 0-255"), "a map holds 0-255"),
        (KeyError("annotations"), "'annotations' is missing"),
        (ImageError("a.png: truncated"), "a.png: truncated"),
        (StoreError("a is missing"), "a is missing"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_wrong_is_said_in_one_line(error, told, monkeypatch, capsys):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(download, "fetch_dataset", fails)
    assert main(["fetch", "coco"]) == exit_codes.WRONG
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}") and ("full" in line) == ("full" in told)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_name_that_the_console_cannot_show_is_no_error(encoding):
    """Names in Chinese, and one that is not UTF-8, as Linux allows."""
    name = "图\udce9.png"
    code = (
        "from mdlib.__main__ import main; from mdlib.data import download\n"
        f"def fails(*_): print({name!r}); raise ValueError({name!r})\n"
        "download.fetch_dataset = fails; import sys; sys.exit(main(['fetch', 'coco']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == exit_codes.WRONG and b"Traceback" not in done.stderr
    shown = name.encode(encoding, "backslashreplace")
    assert done.stdout.strip() == shown and done.stderr.strip() == b"error: " + shown
