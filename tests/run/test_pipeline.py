"""The runner, as a user meets it: presets, parameters, exit codes, locks."""

import os
import subprocess
import sys

import pytest

from mdlib.__main__ import main
from mdlib.core.files import read_json, write_json, write_text
from mdlib.core.paths import PRESETS, ROOT
from mdlib.run import pipeline, presets, stage

QUICK = [
    "--only",
    "00_prepare_data",
    "--set",
    "00_prepare_data.train_images=4",
    "--set",
    "00_prepare_data.dev_images=4",
]


def test_an_unknown_preset_names_the_known_ones(capsys):
    assert main(["run", "nonsense"]) == pipeline.WRONG
    assert "demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("01_distill_masks.topk=0.3", "top_k"),  # misspelt: the list of valid names is shown
        ("01_nonsense.top_k=0.3", "01_distill_masks"),
        ("01_distill_masks.top_k=many", "float"),
        ("01_distill_masks.batch_size=2.5", "int"),
        ("01_distill_masks.batch_size=true", "int"),
        ("03_train_mask_rcnn.lr_drops=400", "list[int]"),
        ("03_train_mask_rcnn.lr_drops=[400.5]", "list[int]"),
        ("top_k=0.3", "NOTEBOOK.PARAMETER=VALUE"),
    ],
)
def test_a_wrong_set_is_refused(given, expected, tmp_path, capsys):
    assert main(["run", "demo", "--out", str(tmp_path / "run"), "--set", given]) == pipeline.WRONG
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # refused before anything was written


def test_an_unknown_stage_is_refused(tmp_path, capsys):
    assert main(["run", "demo", "--out", str(tmp_path), "--only", "99_nothing"]) == pipeline.WRONG
    assert "00_prepare_data" in capsys.readouterr().err


def test_from_and_only_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", "demo", "--from", "05_train_deeplab", "--only", "07_evaluate_clusters"])
    assert stopped.value.code == pipeline.WRONG and "not allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("0.5", 0.5), ("null", None), ("1", 1.0)]
)
def test_numbers_of_a_set_become_the_declared_type(text, value):
    overrides = presets.parse_sets([f"01_distill_masks.mass={text}"])
    resolved = presets.resolve(presets.load_preset("demo"), overrides)
    assert resolved["01_distill_masks"]["mass"] == value


def test_a_set_takes_a_list():
    resolved = presets.resolve(
        presets.load_preset("demo"), presets.parse_sets(["03_train_mask_rcnn.lr_drops=[400, 600]"])
    )
    assert resolved["03_train_mask_rcnn"]["lr_drops"] == [400, 600]


def test_a_preset_with_an_unknown_key_is_refused(tmp_path, monkeypatch):
    (tmp_path / "odd.yaml").write_text("description: x\nnotebooks: []\nnotebook: [typo]\n")
    monkeypatch.setattr(presets, "PRESETS", tmp_path)
    with pytest.raises(presets.PresetError, match="notebook"):
        presets.load_preset("odd")


@pytest.mark.parametrize("name", sorted(p.stem for p in PRESETS.glob("*.yaml")))
def test_every_preset_fits_its_notebooks(name):
    preset = presets.load_preset(name)
    assert list(presets.resolve(preset, {})) == preset.notebooks


@pytest.mark.slow
def test_a_failing_notebook_keeps_its_partial_copy_and_its_cost(tmp_path, capsys):
    # No stage 00 in this run: 01 must say so.
    assert (
        main(["run", "demo", "--out", str(tmp_path), "--only", "01_distill_masks"])
        == pipeline.FAILED
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
        assert stage.SMOKE_SIZE in os.environ
        write_json(stage.manifest_path(run_dir, name), {})
        return pipeline.DONE, {
            "notebook": name,
            "status": "done",
            "seconds": 1.0,
            "peak_memory_mb": 1,
        }

    monkeypatch.setattr(pipeline, "_run_one", run_one)
    own = stage.manifest_path(tmp_path, "01_distill_masks")
    write_json(own, {"made by": "the user"})
    assert main(["fill", str(tmp_path), "04_filter_masks"]) == pipeline.DONE
    assert list(ran) == [
        "00_prepare_data",
        "02_cluster_masks",
        "03_train_mask_rcnn",
        "04_filter_masks",
    ]
    smoke, here = (
        presets.resolve(presets.load_preset("smoke"), {}),
        {"run_dir": os.path.relpath(tmp_path, ROOT)},
    )
    assert ran == {name: smoke[name] | here for name in ran}
    assert read_json(own) == {"made by": "the user"}
    assert (
        not (tmp_path / "artifacts" / "run.json").exists()
        and not (tmp_path / "index.html").exists()
    )
    assert stage.SMOKE_SIZE not in os.environ


def test_a_second_run_in_one_folder_is_refused(tmp_path, capsys):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        write_text(tmp_path / "artifacts" / "lock", str(sleeper.pid))
        assert main(["run", "smoke", "--out", str(tmp_path), *QUICK]) == pipeline.WRONG
        assert str(sleeper.pid) in capsys.readouterr().err
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_dead_runs_lock_is_taken_over(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_text(tmp_path / "artifacts" / "lock", str(gone.pid))
    with pipeline._lock(tmp_path):
        assert (tmp_path / "artifacts" / "lock").read_text() == str(os.getpid())


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert main(["run", "demo", "--out", str(tmp_path / "file" / "run")]) == pipeline.WRONG
    assert "error" in capsys.readouterr().err


def test_check_says_that_the_demo_needs_nothing_more(capsys):
    assert main(["check", "demo"]) == pipeline.DONE
    assert "nothing is missing" in capsys.readouterr().out
