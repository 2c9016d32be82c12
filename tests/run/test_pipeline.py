"""The runner, as a user meets it: presets, parameters, exit codes, locks."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from stages import made, write_manifest

from mdlib.__main__ import main
from mdlib.core.files import read_json, write_json, write_text
from mdlib.core.paths import ROOT
from mdlib.run import exit_codes, pipeline, presets, stage

QUICK = [
    "--only",
    "00_prepare_data",
    "--set",
    "00_prepare_data.train_images=4",
    "--set",
    "00_prepare_data.dev_images=4",
]


def test_an_unknown_preset_names_the_known_ones(capsys):
    assert main(["run", "nonsense"]) == exit_codes.WRONG
    assert "demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("01_distill_masks.topk=0.3", "top_k"),  # misspelt: the list of valid names is shown
        ("01_nonsense.top_k=0.3", "01_distill_masks"),
        ("01_distill_masks.top_k=many", "float"),
        ("01_distill_masks.batch_size=2.5", "int"),
        ("01_distill_masks.batch_size=true", "int"),
        ("03_train_mask_rcnn.lr_milestones=400", "list[int]"),
        ("03_train_mask_rcnn.lr_milestones=[400.5]", "list[int]"),
        ("top_k=0.3", "NOTEBOOK.PARAMETER=VALUE"),
    ],
)
def test_a_wrong_set_is_refused(given, expected, tmp_path, capsys):
    assert main(["run", "demo", "--out", str(tmp_path / "run"), "--set", given]) == exit_codes.WRONG
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # refused before anything was written


def test_an_unknown_stage_is_refused(tmp_path, capsys):
    assert main(["run", "demo", "--out", str(tmp_path), "--only", "99_nothing"]) == exit_codes.WRONG
    assert "00_prepare_data" in capsys.readouterr().err


def test_from_and_only_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", "demo", "--from", "05_train_deeplab", "--only", "07_evaluate_clusters"])
    assert stopped.value.code == exit_codes.WRONG and "not allowed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failing_notebook_keeps_its_partial_copy_and_its_cost(tmp_path, capsys):
    # No stage 00 in this run: 01 must say so.
    assert (
        main(["run", "demo", "--out", str(tmp_path), "--only", "01_distill_masks"])
        == exit_codes.FAILED
    )
    assert "00_prepare_data has not run" in capsys.readouterr().out
    assert (tmp_path / "notebooks" / "01_distill_masks.partial.ipynb").is_file()
    assert "failed" in (tmp_path / "cost.csv").read_text()
    # nor was 00 run in its place: that is for notebooks opened alone
    assert not list(tmp_path.glob("artifacts/0*"))


def test_fill_runs_what_is_lacking_up_to_a_stage_and_leaves_what_has_run(tmp_path, monkeypatch):
    ran = {}

    def run_one(name, values, run_dir):
        ran[name] = values
        monkeypatch.setenv("MDLIB_BATCH", "1")  # as its kernel has it
        assert stage.filling(run_dir)
        write_manifest(run_dir, name)
        return exit_codes.DONE, {
            "notebook": name,
            "status": "done",
            "seconds": 1.0,
            "peak_memory_mb": 1,
        }

    monkeypatch.setattr(pipeline, "_run_one", run_one)
    own = write_manifest(tmp_path, "01_distill_masks", parameters={"made by": "the user"})
    before = read_json(own / "manifest.json")
    assert main(["fill", str(tmp_path), "04_filter_masks"]) == exit_codes.DONE
    assert list(ran) == [
        "00_prepare_data",
        "02_cluster_masks",
        "03_train_mask_rcnn",
        "04_filter_masks",
    ]
    smoke, here = (
        presets.resolve(presets.load_preset("smoke"), {}),
        {"run_dir": str(tmp_path)},
    )
    assert ran == {name: smoke[name] | here for name in ran}
    assert read_json(own / "manifest.json") == before
    assert (
        not (tmp_path / "artifacts" / "run.json").exists()
        and not (tmp_path / "index.html").exists()
    )
    assert not stage.filling(tmp_path)


# ---------------------------------------------------------------- the kernel


def test_a_kernel_runs_the_runners_own_python_and_mdlib(tmp_path, monkeypatch):
    other = tmp_path / "another checkout" / "mdlib"
    write_text(other / "__init__.py", "raise ImportError('this is another mdlib')")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    kernel = {"argv": ["false"], "display_name": "another Python", "language": "python"}
    write_json(tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json", kernel)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "agg")  # as on servers and in containers
    run_dir = tmp_path / "run {seed}"  # outside the repository; papermill formats paths
    assert main(["run", "smoke", "--out", str(run_dir), *QUICK]) == exit_codes.DONE
    figures = stage.read_manifest(run_dir, "00_prepare_data")["figures"]
    executed = (run_dir / "notebooks" / "00_prepare_data.ipynb").read_text(encoding="utf-8")
    assert executed.count('"image/png"') >= len(figures) > 0
    for figure in figures:
        assert (run_dir / "figures" / figure["file"]).is_file()


def test_kernels_find_this_checkout_first_and_once(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/one", str(ROOT), "/two"]))
    path = pipeline._path_of_kernels()
    assert path.split(os.pathsep) == [str(ROOT), "/one", "/two"]
    monkeypatch.setenv("PYTHONPATH", path)
    assert pipeline._path_of_kernels() == path
    monkeypatch.delenv("PYTHONPATH")
    assert pipeline._path_of_kernels() == str(ROOT)


def test_a_notebook_that_ends_without_its_manifest_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline.papermill, "execute_notebook", lambda *_, **__: None)
    assert main(["run", "smoke", "--out", str(tmp_path), *QUICK]) == exit_codes.FAILED
    reason = "failed: it ended without its manifest (has not run)"
    assert f"00_prepare_data {reason}" in capsys.readouterr().out
    assert reason in (tmp_path / "cost.csv").read_text()


# ---------------------------------------------------------------- one run a folder

# Takes the lock of sys.argv[1] when the file `go` is there, and keeps it until `end` is.
HOLDER = """
import sys, time
from pathlib import Path
from mdlib.core.files import StoreError
from mdlib.run.pipeline import busy
from mdlib.run.stage import run_lock
folder = Path(sys.argv[1])
print("ready", flush=True)
while not (folder / "go").exists():
    pass
try:
    with run_lock(folder).held(busy=busy(folder)):
        print("held", flush=True)
        while not (folder / "end").exists():
            time.sleep(0.01)
except StoreError as error:
    print(error)
"""


@pytest.fixture
def holder(tmp_path):
    """How to start a process that takes the lock of tmp_path; it is ready, but for `go`."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_run_in_one_folder_is_refused_and_told_who_holds_it(tmp_path, holder, capsys):
    (tmp_path / "go").touch()
    first = holder()
    assert first.stdout.readline() == "held\n"
    assert main(["run", "smoke", "--out", str(tmp_path), *QUICK]) == exit_codes.WRONG
    since = read_json(tmp_path / "artifacts" / "lock.json")["started"]
    assert f"another run (process {first.pid}, since {since})" in capsys.readouterr().err


def test_of_two_runs_that_start_together_one_gets_the_folder(tmp_path, holder):
    both = [holder(), holder()]
    (tmp_path / "go").touch()
    said = [process.stdout.readline() for process in both]
    winner, loser = sorted(both, key=lambda process: said[both.index(process)] != "held\n")
    assert said[both.index(winner)] == "held\n"
    assert "another run" in said[both.index(loser)]
    assert loser.wait(60) == 0 and winner.poll() is None


def test_a_killed_runs_lock_is_taken_by_the_next(tmp_path, holder):
    (tmp_path / "go").touch()
    first = holder()
    assert first.stdout.readline() == "held\n"
    first.kill()
    first.wait()
    written = tmp_path / "artifacts" / "lock.json"
    assert read_json(written)["process"] == first.pid
    with stage.run_lock(tmp_path).held(busy="{who}"):
        assert read_json(written)["process"] == os.getpid()
    assert not written.exists()


def test_another_preset_does_not_take_over_a_runs_folder(tmp_path, capsys):
    write_json(tmp_path / "artifacts" / "run.json", {"preset": "demo"})
    assert main(["run", "smoke", "--out", str(tmp_path), *QUICK]) == exit_codes.WRONG
    assert "holds a run of the preset 'demo'" in capsys.readouterr().err
    assert read_json(tmp_path / "artifacts" / "run.json") == {"preset": "demo"}


# ---------------------------------------------------------------- around the notebook


def test_stages_of_notebooks_run_by_hand_are_not_taken_over(tmp_path, capsys):
    made(tmp_path, "00_prepare_data")
    assert main(["run", "smoke", "--out", str(tmp_path), *QUICK]) == exit_codes.WRONG
    assert "holds stages of notebooks that were run by hand" in capsys.readouterr().err


def test_a_value_of_a_notebook_that_does_not_run_is_refused(tmp_path, capsys):
    words = ["--set", "01_distill_masks.top_k=0.3", *QUICK]
    assert main(["run", "smoke", "--out", str(tmp_path / "run"), *words]) == exit_codes.WRONG
    assert "01_distill_masks has no effect with --only 00_prepare_data" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '"x"', "{}", "", "\0"])
def test_a_broken_note_of_the_preset_is_written_anew(tmp_path, content):
    write_text(tmp_path / "artifacts" / "run.json", content)
    assert stage.run_label(tmp_path, {}).startswith("lab preset")
    pipeline._write_run_info(tmp_path, "smoke")
    assert stage.run_preset(tmp_path) == "smoke"


def test_a_page_that_cannot_be_drawn_is_a_warning(tmp_path, capsys):
    cell = nbformat.v4.new_markdown_cell("![x](attachment:x)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "own.ipynb")
    pipeline._render(tmp_path / "own.ipynb")
    assert "warning: no page of own (" in capsys.readouterr().out


def executed_cells(path, *, error=False, count=1):
    """An executed notebook of one cell."""
    cell = nbformat.v4.new_code_cell("x = 1", execution_count=count)
    if error:
        cell.outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


@pytest.mark.parametrize("how", [{"error": True}, {"count": None}])
def test_a_try_that_failed_does_not_become_the_page_of_the_stage_before(tmp_path, how):
    made(tmp_path, "00_prepare_data")
    executed = tmp_path / "notebooks" / "00_prepare_data.ipynb"
    write_text(executed, "the good one")
    write_text(executed.with_suffix(".html"), "its page")
    executed_cells(executed.with_suffix(".partial.ipynb"), **how)
    pipeline._make_good(tmp_path, "00_prepare_data")
    assert executed.read_text() == "the good one"


def test_what_a_stopped_run_left_to_do_is_made_good(tmp_path, monkeypatch):
    made(tmp_path, "00_prepare_data")
    executed = tmp_path / "notebooks" / "00_prepare_data.ipynb"
    partial = executed.with_suffix(".partial.ipynb")
    monkeypatch.setattr(
        pipeline.report, "render_notebook", lambda path: path.with_suffix(".html").touch()
    )
    write_text(executed, "of the run before")
    write_text(executed.with_suffix(".html"), "of the run before")
    executed_cells(partial)
    killed_before_it_was_renamed = partial.read_text()
    pipeline._make_good(tmp_path, "00_prepare_data")
    assert executed.read_text() == killed_before_it_was_renamed and not partial.exists()
    assert executed.with_suffix(".html").read_text() == ""
    executed_cells(partial, count=9)  # of a try with other values, long ago
    os.utime(partial, (0, 0))
    pipeline._make_good(tmp_path, "00_prepare_data")
    assert executed.read_text() == killed_before_it_was_renamed


@pytest.mark.parametrize(
    "table", ["a" * 140_000, "a,b\n1,2\n", "", "\0\0", "notebook,status\n", '"']
)
def test_a_table_of_costs_of_another_form_is_written_anew(tmp_path, table):
    write_text(tmp_path / "cost.csv", table)
    row = {"notebook": "00_prepare_data", "status": "failed: Á", "seconds": 1.0}
    pipeline._add_cost(tmp_path, row | {"peak_memory_mb": 3})
    pipeline._add_cost(tmp_path, row | {"peak_memory_mb": 4, "notebook": "01_distill_masks"})
    pipeline._add_cost(tmp_path, row | {"peak_memory_mb": 5})
    assert (tmp_path / "cost.csv").read_text(encoding="utf-8").splitlines() == [
        "notebook,status,seconds,peak_memory_mb",
        "00_prepare_data,failed: Á,1.0,5",
        "01_distill_masks,failed: Á,1.0,4",
    ]


def test_a_kernel_that_does_not_come_up_gets_one_more_try_and_minutes_for_it(monkeypatch, tmp_path):
    tries = []

    def execute(source, target, **options):
        tries.append((source, target, options["start_timeout"]))
        raise RuntimeError("Kernel didn't respond")

    monkeypatch.setattr(pipeline.papermill, "execute_notebook", execute)
    with pytest.raises(RuntimeError, match="didn't respond"):
        pipeline._execute("00_prepare_data", {}, tmp_path / "{seed}.ipynb")
    assert len(tries) == 2
    source, target, seconds = tries[0]
    assert seconds >= 600
    assert target.format() == str(tmp_path / "{seed}.ipynb")  # papermill formats it
    assert source.format().endswith("00_prepare_data.ipynb")


def test_a_path_on_another_drive_is_shown_as_it_is(monkeypatch):
    def relpath(_):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(pipeline.os.path, "relpath", relpath)
    assert pipeline._shown(Path("D:/run")) == str(Path("D:/run"))


# ---------------------------------------------------------------- checks before a run


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert main(["run", "demo", "--out", str(tmp_path / "file" / "run")]) == exit_codes.WRONG
    assert "error" in capsys.readouterr().err


def test_check_says_that_the_demo_needs_nothing_more(capsys):
    assert main(["check", "demo"]) == exit_codes.DONE
    assert "nothing is missing" in capsys.readouterr().out
