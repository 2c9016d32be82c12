"""A stage reads only what was made from what this run holds now."""

import errno
import os
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import pytest
from cells import STAGES
from IPython.core.interactiveshell import InteractiveShell
from stages import made, opened, write_outputs

from mdlib.core import draft
from mdlib.core.files import StoreError, digest_file, read_json, write_json, write_text
from mdlib.core.paths import ROOT
from mdlib.models import published
from mdlib.models.encoder import ZOO_WEIGHTS
from mdlib.run import identity, stage

FIRST, SECOND, THIRD = "00_prepare_data", "01_distill_masks", "02_cluster_masks"


@pytest.fixture
def chain(tmp_path):
    """A run of two stages, the second made from the first."""
    made(tmp_path, FIRST, count=4)
    made(tmp_path, SECOND, FIRST)
    return tmp_path


def test_reading_a_stage_gives_its_folder_and_records_what_it_was(chain):
    third = opened(chain, THIRD)
    assert third.read(SECOND) == chain / "artifacts" / SECOND
    assert third.inputs == {SECOND: stage.result_digest(stage.read_manifest(chain, SECOND))}


def test_under_the_runner_a_stage_that_has_not_run_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MDLIB_BATCH", "1")
    third = opened(tmp_path, THIRD)
    with pytest.raises(StoreError, match=f"{SECOND} has not run"):
        third.read(SECOND)
    assert third.inputs == {} and not list(tmp_path.glob("artifacts/[!.]*"))


def test_a_stage_made_from_another_version_of_its_own_input_is_refused(chain):
    # the first stage ran again, with other parameters; the second did not
    made(chain, FIRST, count=5)
    third = opened(chain, THIRD)
    with pytest.raises(
        StoreError, match=f"{SECOND} was made from another {FIRST} .* run {SECOND} again"
    ):
        third.read(SECOND)
    assert third.inputs == {}
    assert third.read(FIRST)  # which itself is sound
    made(chain, SECOND, FIRST)
    assert third.read(SECOND)


def test_an_input_that_ran_again_unchanged_is_no_other_version(chain):
    made(chain, FIRST, count=4)  # its seconds differ, its results do not
    assert opened(chain, THIRD).read(SECOND)


def test_a_stage_whose_own_input_is_gone_is_refused(chain):
    (chain / "artifacts" / FIRST / "manifest.json").unlink()
    with pytest.raises(StoreError, match=f"{SECOND} was made from {FIRST}, which has not run"):
        opened(chain, THIRD).read(SECOND)


def test_what_read_refuses_the_runner_calls_stale(chain):
    assert stage.stale_reason(chain, SECOND, {}) is None
    made(chain, FIRST, count=5)
    assert stage.stale_reason(chain, SECOND, {}) == f"{FIRST} changed"


def test_every_training_of_a_stage_has_a_checkpoint_of_its_own_outside_its_folder(chain):
    third = opened(chain, THIRD)
    paths = {
        third.checkpoint("detector"),
        third.checkpoint("probe"),
        third.shards("probe"),
        opened(chain, SECOND).checkpoint("probe"),
    }
    assert len(paths) == 4
    # a killed stage's folder is removed
    assert not any(third.folder in path.parents for path in paths)


def test_changed_parameters_or_inputs_start_from_another_checkpoint(chain):
    third = opened(chain, THIRD, steps=4)
    before = third.checkpoint("detector")
    third.read(SECOND)
    with_input = third.checkpoint("detector")
    third.parameters["steps"] = 5
    assert len({before, with_input, third.checkpoint("detector")}) == 3


def test_a_finished_stage_leaves_no_checkpoint_and_touches_no_other_stages(chain):
    third, other = (
        opened(chain, THIRD),
        chain / "artifacts" / "checkpoints" / "03_train_mask_rcnn-detector-0.safetensors",
    )
    for path in (third.checkpoint("detector"), third.shards("masks") / "0.json", other):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")
    write_outputs(third)
    third.finish()
    assert [path.name for path in other.parent.iterdir()] == [other.name]


# ---------------------------------------------------------------- a notebook opened alone


@pytest.fixture
def filled(chain, monkeypatch):
    """A run of which the second stage was filled in at smoke size, opened without the runner."""
    monkeypatch.delenv("MDLIB_BATCH", raising=False)
    with stage.run_lock(chain).held(busy="{who}", fill=True), monkeypatch.context() as kernel:
        kernel.setenv("MDLIB_BATCH", "1")
        made(chain, SECOND, FIRST)
    return chain


def test_what_is_made_from_smoke_size_says_so_however_far_it_is(filled, capsys):
    made(filled, THIRD, SECOND)
    assert f"{SECOND} is of smoke size" in capsys.readouterr().out
    fourth = opened(filled, "03_train_mask_rcnn")
    fourth.read(FIRST)
    assert not fourth.smoke_size and fourth.label == "test"  # the first is the user's own
    fourth.read(THIRD)
    fourth.read(SECOND)
    assert fourth.smoke_size and fourth.label == "test · smoke-size inputs"  # once


def test_figures_carry_the_label_of_smoke_size(filled):
    third = opened(filled, THIRD)
    third.read(SECOND)
    figure = plt.figure()
    third.figure(figure, "one", caption="nothing")
    assert "smoke-size inputs" in figure.texts[0].get_text()
    third.figure(figure, "two", caption="nothing", invented=True)
    assert figure.texts[1].get_text() == "invented numbers"
    plt.close(figure)


def test_a_real_run_of_a_filled_stage_makes_what_came_from_it_stale_and_is_clean_itself(filled):
    made(filled, THIRD, SECOND)
    made(filled, SECOND, FIRST, steps=100)
    fourth = opened(filled, "03_train_mask_rcnn")
    with pytest.raises(StoreError, match=f"run {THIRD} again .*nothing overwrites it"):
        fourth.read(THIRD)
    made(filled, THIRD, SECOND)
    fourth.read(THIRD)
    assert not fourth.smoke_size


def test_a_stage_filled_in_is_labelled_smoke_whatever_the_run_is_called(tmp_path, monkeypatch):
    assert stage.run_label(tmp_path, {}).startswith("lab preset")
    write_json(tmp_path / "artifacts" / "run.json", {"preset": "demo"})
    assert stage.run_label(tmp_path, {}).startswith("demo preset")
    monkeypatch.setenv("MDLIB_SMOKE_SIZE", "1")  # left in a shell by an earlier version
    assert stage.run_label(tmp_path, {}).startswith("demo preset")
    with stage.run_lock(tmp_path).held(busy="{who}", fill=True):
        assert stage.run_label(tmp_path, {}).startswith("demo preset")  # a notebook beside it
        monkeypatch.setenv("MDLIB_BATCH", "1")
        assert stage.run_label(tmp_path, {}).startswith("smoke preset")
    assert stage.run_label(tmp_path, {}).startswith("demo preset")


@pytest.mark.slow
def test_a_stage_that_cannot_be_filled_in_is_a_clear_error_and_what_was_whole_stays(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("MDLIB_BATCH", raising=False)
    first = made(tmp_path, FIRST)  # without the index that the second one reads
    with pytest.raises(
        StoreError, match=f"{THIRD} has not run .* nor could it be run at smoke size"
    ):
        opened(tmp_path, "03_train_mask_rcnn").read(THIRD)
    said = capsys.readouterr().out
    assert (
        f"{THIRD} has not run in" in said and f"of {SECOND} failed" in said and "index.json" in said
    )
    assert stage.read_manifest(tmp_path, FIRST) == first
    assert not stage.has_run(tmp_path, SECOND) and not stage.has_run(tmp_path, THIRD)
    assert not (tmp_path / "artifacts" / "lock.json").exists()


# ---------------------------------------------------------------- skipping


def test_a_skipped_stage_says_why_and_the_later_ones_go_on(chain):
    third = opened(chain, THIRD)
    third.read(SECOND)
    with pytest.raises(stage.StageSkipped, match="no labels"):
        third.skip("no labels")
    manifest = stage.read_manifest(chain, THIRD)
    assert (manifest["skipped"], manifest["metrics"]) == ("no labels", {})
    assert opened(chain, "03_train_mask_rcnn").read(THIRD) == chain / "artifacts" / THIRD
    assert stage.stale_reason(chain, THIRD, {}) is None
    made(chain, FIRST, count=5)  # what it was skipped for may have changed
    made(chain, SECOND, FIRST)
    assert stage.stale_reason(chain, THIRD, {}) is None  # it has not: the same results
    made(chain, SECOND, FIRST, text="other")
    assert stage.stale_reason(chain, THIRD, {}) == f"{SECOND} changed"


def test_a_stage_that_was_not_skipped_does_not_say_so(chain):
    assert "skipped" not in stage.read_manifest(chain, SECOND)


# ---------------------------------------------------------------- weights and data outside the run


@pytest.mark.parametrize(("value", "network"), [(None, "vit"), ("random", "zoo")])
def test_weights_that_are_no_file_are_handed_on(tmp_path, value, network):
    ours = opened(tmp_path, FIRST)
    assert ours.weights(value, network=network) == value and ours.files == {}


def test_weights_in_a_file_are_recorded_by_their_content(tmp_path, monkeypatch):
    (tmp_path / "own.pth").write_bytes(b"one")
    ours = opened(tmp_path / "run", FIRST)
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    for value in ("own.pth", str(tmp_path / "own.pth")):  # from the repository, or absolute
        assert ours.weights(value, network="zoo") == tmp_path / "own.pth"
        assert ours.files == {"own.pth": digest_file(tmp_path / "own.pth")}


def test_published_weights_are_recorded_by_the_file_that_is_loaded(tmp_path, monkeypatch):
    ours = opened(tmp_path, FIRST)
    assert ours.weights(None, network="zoo") is None
    assert ours.files == {"data/zoo/encoder.safetensors": digest_file(ZOO_WEIGHTS)}
    fetched = tmp_path / "dino.pth"
    fetched.write_bytes(b"published")
    monkeypatch.setattr(published, "fetch_checkpoint", lambda *_, **__: fetched)
    monkeypatch.setattr(published, "fetch_vit", lambda _: fetched)
    for value, network in (("dino_resnet50", "resnet50"), (None, "dino_vits16")):
        other = opened(tmp_path, SECOND)
        assert other.weights(value, network=network) == value
        assert other.files == {str(fetched): digest_file(fetched)}


def test_weights_that_are_not_there_are_an_error_that_says_what_is_expected(tmp_path):
    expected = r"'dino_resnet5': no file .*; expected a file, random, null, or a name"
    with pytest.raises(StoreError, match=expected):
        opened(tmp_path, FIRST).weights("dino_resnet5", network="resnet50")


@pytest.fixture
def data(tmp_path):
    """A folder with a picture, a second one behind a link, and a run that read it."""
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for place in (folder / "a", elsewhere):
        place.mkdir(parents=True)
        (place / "one.bmp").write_bytes(b"12")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(folder)  # a link that leads back
    ours = opened(tmp_path / "run", FIRST)
    ours.read_file(str(folder))
    write_outputs(ours)
    ours.finish()
    return folder


def test_a_folder_is_recorded_by_its_names_and_bytes_and_links_are_followed(data, tmp_path):
    def changed():
        return stage.stale_reason(tmp_path / "run", FIRST, {}) == f"{data} changed"

    def unchanged():
        return stage.stale_reason(tmp_path / "run", FIRST, {}) is None

    assert unchanged()
    (data / ".thumbs").write_bytes(b"hidden")
    assert unchanged()
    for picture in (data / "a" / "one.bmp", tmp_path / "elsewhere" / "one.bmp"):
        before = picture.stat()
        picture.write_bytes(b"34")  # another picture of the same size, and even of the same time
        os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert changed()
        picture.write_bytes(b"12")
        assert unchanged()
    (data / "a" / "two.bmp").write_bytes(b"12")
    assert changed()


def test_pictures_that_changed_since_are_not_read_by_later_stages(data, tmp_path):
    run_dir = tmp_path / "run"
    made(run_dir, SECOND, FIRST)
    (data / "a" / "one.bmp").write_bytes(b"34")
    with pytest.raises(StoreError, match=f"{data} has changed since {FIRST} read it"):
        opened(run_dir, SECOND).read(FIRST)
    ours = opened(run_dir, FIRST)  # again, with the same results: later stages read the pictures
    ours.read_file(data)
    write_outputs(ours)
    ours.finish()
    assert stage.stale_reason(run_dir, SECOND, {}) == f"{FIRST} changed"


# ---------------------------------------------------------------- open, then finished


def test_the_last_cell_run_twice_changes_nothing(chain, capsys):
    third = opened(chain, THIRD)
    write_outputs(third)
    assert third.finish({"number": 1.0}) == {"number": 1.0}
    before = stage.read_manifest(chain, THIRD)
    assert third.finish({"number": 2.0}) == {"number": 1.0}
    assert "is finished already" in capsys.readouterr().out
    assert stage.read_manifest(chain, THIRD) == before
    assert stage.stale_reason(chain, THIRD, {}) is None


def test_the_first_cell_run_twice_gives_an_empty_folder_that_is_not_committed(chain):
    first = opened(chain, THIRD)
    write_outputs(first, "written")
    second = opened(chain, THIRD)
    with pytest.raises(StoreError, match="was opened again"):
        first.finish()
    with pytest.raises(StoreError, match=r"has not written .*centres.npy.* run all cells"):
        second.finish()
    write_outputs(second, "written again")
    second.finish()
    assert (chain / "artifacts" / THIRD / "centres.npy").read_text() == "written again"


def test_a_finished_stage_refuses_what_a_cell_above_would_write(chain):
    third = opened(chain, THIRD)
    folder = third.folder
    write_outputs(third)
    third.finish()
    for write in (
        lambda: third.folder,
        lambda: third.figure(plt.figure(), "late", caption=""),
    ):
        with pytest.raises(StoreError, match="is finished and cannot be changed"):
            write()
    write_json(folder / "clusters.json", "kept from before")  # a path that the cell had kept
    assert stage.stale_reason(chain, THIRD, {}) is None
    plt.close("all")


OTHER = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from stages import opened, write_outputs
run_dir, name, then = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
stage = opened(run_dir, name)
write_outputs(stage, "the other process")
print("open", flush=True)
sys.stdin.readline()
stage.finish()
"""


@pytest.fixture
def other_kernel(tmp_path):
    """How to open a stage in another process, which finishes it when it reads a line."""
    started = []

    def start(run_dir, name):
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(run_dir), name, ""],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        started.append(process)
        assert "open" in process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_kernel_is_refused_and_told_who_works_there(chain, other_kernel):
    other = other_kernel(chain, THIRD)
    said = f"{THIRD} is open in another kernel .process {other.pid}, since .*: shut that down"
    with pytest.raises(StoreError, match=said):
        opened(chain, THIRD)
    opened(chain, "03_train_mask_rcnn")  # another stage of the run is free
    other.communicate("finish\n")
    assert opened(chain, "03_train_mask_rcnn").read(THIRD)
    assert opened(chain, THIRD)


def test_a_killed_kernel_blocks_nobody_and_leaves_the_old_stage(chain, other_kernel):
    before = made(chain, THIRD, text="old")
    other = other_kernel(chain, THIRD)
    other.kill()
    other.wait()
    assert stage.read_manifest(chain, THIRD) == before
    opened(chain, THIRD)
    assert len(list((chain / "artifacts").glob(f".{THIRD}.draft-*"))) == 1  # the one just opened


@pytest.mark.parametrize("step", ["manifest", "aside", "in", "deleted"])
def test_a_kill_at_any_point_of_the_commit_leaves_the_old_stage_or_the_new_one(
    chain, monkeypatch, step
):
    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    old = made(chain, THIRD, text="old")
    third = opened(chain, THIRD)
    write_outputs(third, "new")
    real, count = os.replace, iter(range(9))

    def replace(a, b):
        if draft.os.path.isdir(a) and next(count) == {"aside": 0, "in": 1}.get(step):
            raise Killed
        real(a, b)

    monkeypatch.setattr(draft.os, "replace", replace)
    if step == "manifest":
        monkeypatch.setattr(stage, "write_json", kill)
    if step == "deleted":
        monkeypatch.setattr(draft.shutil, "rmtree", kill)
    with pytest.raises(Killed):
        third.finish()
    monkeypatch.undo()
    third._draft._lock.release()  # the kernel of the system does it
    found = stage.read_manifest(chain, THIRD)
    new = (chain / "artifacts" / THIRD / "centres.npy").read_text() == "new"
    assert new == (step != "manifest") and (found == old) == (not new)
    assert stage.stale_reason(chain, THIRD, {}) is None
    opened(chain, THIRD)._draft.discard()  # what is left of the old one goes here at the latest
    left = [path.name for path in (chain / "artifacts").iterdir() if path.is_dir()]
    assert sorted(left) == [FIRST, SECOND, THIRD]


def test_a_stage_that_is_a_link_to_a_bigger_disk_stays_one(chain, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    (chain / "artifacts" / THIRD).symlink_to(disk / "clusters")
    for text in ("one", "two"):
        made(chain, THIRD, text=text)
        assert (chain / "artifacts" / THIRD).is_symlink()
        assert (disk / "clusters" / "centres.npy").read_text() == text
    assert [path.name for path in disk.iterdir() if path.is_dir()] == ["clusters"]


def test_a_place_that_cannot_be_written_is_an_error_before_the_work(chain, tmp_path):
    (chain / "artifacts" / THIRD).write_text("a file")
    with pytest.raises(StoreError, match="is no folder"):
        opened(chain, THIRD)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "artifacts").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        opened(tmp_path / "run", THIRD)


def test_a_left_over_checkpoint_is_removed_when_the_stage_is_opened(chain):
    kept = chain / "artifacts" / "checkpoints"
    kept.mkdir()
    whole, torn = kept / f"{THIRD}-x-0.safetensors", kept / f".{THIRD}-x-0.safetensors.ab.tmp"
    for path in (whole, torn):
        path.write_bytes(b"")
    opened(chain, THIRD)
    assert whole.exists() and not torn.exists()


@pytest.mark.parametrize("name", [THIRD, "09_evaluate_instances"])  # with and without WRITES
def test_a_finish_that_was_interrupted_is_finished_by_the_next(tmp_path, monkeypatch, name):
    made(tmp_path, name, text="old")
    for call in range(3):
        ours = opened(tmp_path, name)
        write_outputs(ours, f"new {call}")
        write_text(ours.folder / "result.txt", f"new {call}")
        real, count = draft.sync, iter(range(1000))

        def sync(path, real=real, count=count, call=call, place=ours._place):
            if path == place.parent and call == 0:  # behind the swap
                raise KeyboardInterrupt
            if next(count) == call and call:
                raise OSError(28, "No space left on device")
            real(path)

        monkeypatch.setattr(draft, "sync", sync)
        with pytest.raises((KeyboardInterrupt, OSError)):
            ours.finish({"number": float(call)})
        monkeypatch.undo()
        assert ours.finish({"number": float(call)}) == {"number": float(call)}
        assert (tmp_path / "artifacts" / name / "result.txt").read_text() == f"new {call}"
        assert stage.stale_reason(tmp_path, name, {}) is None
        assert opened(tmp_path, name)


@pytest.mark.parametrize("what", ["draft", "run"])
def test_a_folder_that_was_deleted_under_an_open_stage_is_not_committed_empty(tmp_path, what):
    made(tmp_path / "run", "09_evaluate_instances", text="old")
    ours = opened(tmp_path / "run", "09_evaluate_instances")
    shutil.rmtree(ours.folder if what == "draft" else tmp_path / "run")
    with pytest.raises(StoreError, match="was deleted: run 09_evaluate_instances again"):
        ours.finish()


def test_a_disk_that_cannot_flush_or_rename_folders_loses_nothing(chain, monkeypatch):
    """Network disks give EINVAL, a layer of a container's image EXDEV."""
    made(chain, THIRD, text="old")
    third = opened(chain, THIRD)
    write_outputs(third, "new")
    fsync, replace = os.fsync, os.replace

    def no_fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    def no_rename(a, b):
        if ".old-" in str(b):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", no_fsync)
    monkeypatch.setattr(draft.os, "replace", no_rename)
    third.finish()
    assert (chain / "artifacts" / THIRD / "centres.npy").read_text() == "new"
    assert stage.stale_reason(chain, THIRD, {}) is None


def test_a_link_that_leads_back_is_a_clear_error(chain):
    place = chain / "artifacts" / THIRD
    place.symlink_to(place)
    with pytest.raises(StoreError, match="leads back to itself"):
        opened(chain, THIRD)
    assert stage.stale_reason(chain, THIRD, {}) == "has not run"


# ---------------------------------------------------------------- what up to date compares


@pytest.mark.parametrize("damage", ["truncate", "delete", "same size"])
def test_an_output_that_changed_makes_its_stage_stale_and_is_not_read(chain, damage):
    made(chain, THIRD, SECOND, text="whole")
    path = chain / "artifacts" / THIRD / "centres.npy"
    text = {"truncate": "who", "same size": "WHOLE"}.get(damage)
    path.write_text(text) if text else path.unlink()
    assert stage.stale_reason(chain, THIRD, {}) == "its output centres.npy changed or is missing"
    with pytest.raises(StoreError, match=f"{THIRD}: its output centres.npy changed"):
        opened(chain, "03_train_mask_rcnn").read(THIRD)


def test_a_file_that_the_stage_did_not_write_is_not_trusted(chain):
    made(chain, "06_refine_with_crf")
    folder = chain / "artifacts" / "06_refine_with_crf"
    (folder / ".DS_Store").touch()
    assert stage.stale_reason(chain, "06_refine_with_crf", {}) is None
    (folder / "segmenter.safetensors").touch()
    assert "segmenter.safetensors" in stage.stale_reason(chain, "06_refine_with_crf", {})


@pytest.mark.parametrize(
    "changes",
    [
        {"figures": [{"file": "../../../evil.txt", "caption": ""}]},
        {"figures": [{"file": "/tmp/evil.txt", "caption": ""}]},
        {"outputs": {"/etc/passwd": ""}},
        {"outputs": {"a/../../b": ""}},
    ],
)
def test_a_manifest_does_not_lead_out_of_its_folder(chain, changes):
    edited(chain, SECOND, **changes)
    assert not stage.has_run(chain, SECOND)


def test_an_input_that_was_made_again_while_the_stage_is_open_is_refused(chain):
    third = opened(chain, THIRD)
    third.read(SECOND)
    made(chain, SECOND, FIRST, text="other")
    with pytest.raises(StoreError, match=f"{SECOND} changed since this stage read it"):
        third.read(SECOND)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"stage": 1}', "\0\0", "no json"])
def test_a_manifest_of_another_form_has_not_run(chain, content):
    stage.manifest_path(chain, SECOND).write_text(content)
    assert stage.stale_reason(chain, SECOND, {}) == "has not run"
    assert not stage.has_run(chain, SECOND)
    with pytest.raises(StoreError, match=r"has not run in .* is no manifest of it"):
        stage.read_manifest(chain, SECOND)


def edited(run_dir, name, **changes):
    path = stage.manifest_path(run_dir, name)
    write_json(path, read_json(path) | changes)


@pytest.mark.parametrize("library", ["torch", "scikit-learn", "python"])
def test_another_version_or_device_makes_a_stage_stale(chain, library):
    versions = stage.read_manifest(chain, SECOND)["versions"]
    edited(chain, SECOND, versions=versions | {library: "0.1"})
    assert stage.stale_reason(chain, SECOND, {}) == f"versions changed: {library}"
    edited(chain, SECOND, versions=versions, device="tpu")
    assert stage.stale_reason(chain, SECOND, {}) == "versions changed: device"


def test_an_optional_library_that_came_or_went_makes_its_stage_stale(chain, monkeypatch):
    for there, then in (("none", "1.1"), ("1.1", "none")):
        monkeypatch.setattr(stage, "version", lambda _, v=there: v)
        third = opened(chain, THIRD)
        assert third.package("pydensecrf2") == (there != "none")
        write_outputs(third)
        third.finish()
        assert stage.stale_reason(chain, THIRD, {}) is None
        monkeypatch.setattr(stage, "version", lambda _, v=then: v)
        assert stage.stale_reason(chain, THIRD, {}) == "versions changed: pydensecrf2"


def test_a_stage_that_asked_for_one_that_had_not_run_is_stale_when_it_has(chain):
    third = opened(chain, THIRD)
    assert third.has(SECOND) and not third.has("06_refine_with_crf")
    write_outputs(third)
    third.finish()
    assert stage.stale_reason(chain, THIRD, {}) is None
    made(chain, "06_refine_with_crf")
    assert stage.stale_reason(chain, THIRD, {}) == "06_refine_with_crf changed"
    said = f"{THIRD} was made before 06_refine_with_crf had run"
    assert said in stage.verify_chain(chain, [THIRD])[0]


def test_a_chain_is_verified_to_its_beginning(chain):
    made(chain, THIRD, SECOND)
    assert stage.verify_chain(chain, [THIRD, SECOND, FIRST]) == []
    made(chain, FIRST, count=5)
    (problem,) = stage.verify_chain(chain, [THIRD])
    assert f"{SECOND} was made from another {FIRST}" in problem
    assert stage.unfit(chain, THIRD) == problem


def test_other_results_of_the_same_parameters_make_later_stages_stale(chain):
    made(chain, FIRST, count=4, text="other numbers")
    assert stage.stale_reason(chain, SECOND, {}) == f"{FIRST} changed"


def test_a_checkpoint_is_of_the_code_versions_and_device_that_made_it(chain, monkeypatch):
    names = {opened(chain, THIRD).checkpoint("detector")}
    for name, value in (("code_digest", "other"), ("device", "tpu"), ("versions", {})):
        monkeypatch.setattr(stage, name, lambda *_, v=value: v)
        names.add(opened(chain, THIRD).checkpoint("detector"))
        monkeypatch.undo()
    assert len(names) == 4


def test_a_library_that_changed_since_this_process_loaded_it_is_refused(chain, monkeypatch):
    monkeypatch.setattr(identity, "_loaded", dict.fromkeys(identity._modules(THIRD), "older"))
    with pytest.raises(StoreError, match=r"mdlib/core/files.py.* restart the kernel"):
        opened(chain, THIRD)


def test_the_code_that_was_there_when_the_stage_was_opened_counts(chain, monkeypatch):
    third = opened(chain, THIRD)
    write_outputs(third)
    monkeypatch.setattr(stage, "code_digest", lambda _: "edited while it ran")
    third.finish()
    changed = "its notebook or the library code it imports changed"
    assert stage.stale_reason(chain, THIRD, {}) == changed


def in_kernel(run_dir, name, cells, values):
    """A stage that is opened and finished as a kernel would that runs these cells."""
    cells = [identity.as_python(source) for source in cells]
    values["In"] = ["", cells[0]]
    ours = stage.Stage(name, {"threshold": 0.5}, run_dir, "test", values=values)
    write_outputs(ours)
    values["In"] += cells[1:]
    return ours


FILTER = "04_filter_masks"


def test_cells_that_were_edited_left_out_or_added_make_the_stage_stale(tmp_path, capsys):
    own = identity.stage_sources(FILTER)
    for cells, fits in (
        (own, True),
        ([*own[:3], own[2], *own[3:]], False),  # one run twice
        ([own[0], own[1] + "\n# edited", *own[2:]], False),
        ([own[0], own[2], own[1], *own[3:]], False),  # another order
        ([*own[:-3], *own[-2:]], False),
        ([*own[:-1], "found = {}", own[-1]], False),
    ):
        in_kernel(tmp_path, FILTER, cells, {"threshold": 0.5}).finish()
        reason = stage.stale_reason(tmp_path, FILTER, {"threshold": 0.5})
        assert (reason is None) == fits
        assert ("the cells ran in another order" in capsys.readouterr().out) != fits


def test_a_cell_that_was_edited_and_saved_while_the_stage_was_open_counts(tmp_path, monkeypatch):
    own = identity.stage_sources(FILTER)
    edited = [own[0], own[1] + "\nthreshold = 1 - 0.5", *own[2:]]
    ours = in_kernel(tmp_path, FILTER, edited, {"threshold": 0.5})
    monkeypatch.setattr(stage, "stage_sources", lambda _: edited)  # JupyterLab saves by itself
    ours.finish()
    monkeypatch.undo()  # git checkout
    assert stage.stale_reason(tmp_path, FILTER, {"threshold": 0.5}) is not None


def test_a_checkpoint_is_of_the_cells_that_ran(tmp_path):
    values = {"threshold": 0.5}
    ours = in_kernel(tmp_path, FILTER, identity.stage_sources(FILTER)[:2], values)
    before = ours.checkpoint("x")
    values["In"] += ["def loss(model, batch): return 0"]
    assert ours.checkpoint("x") != before


def test_what_was_computed_without_a_cell_is_not_kept_for_those_who_ran_it(tmp_path):
    """A detector is not trained, but predicts: its parts are not those of a trained one."""
    own = identity.stage_sources(FILTER)

    def parts(cells):
        return in_kernel(tmp_path, FILTER, cells, {"threshold": 0.5}).shards("predictions")

    in_order = parts(own[:4])
    assert in_order == parts(own[:5])  # the next cell does not change what came before it
    assert len({in_order, parts([own[0], *own[2:4]]), parts([*own[:4], own[3]])}) == 3


def test_a_skip_knows_the_cells_that_ran(tmp_path, capsys):
    name = "09_evaluate_instances"
    own = identity.stage_sources(name)
    ours = stage.Stage(name, {}, tmp_path, "test", values=(values := {"In": ["", own[0]]}))
    values["In"] += ["run = None  # edited"]
    with pytest.raises(stage.StageSkipped):
        ours.skip("no labels")
    said = "its cells were edited, or ran in another order than in the notebook"
    assert stage.stale_reason(tmp_path, name, {}) == said
    with pytest.raises(stage.StageSkipped):
        ours.skip("no labels")


def test_a_kernel_lists_what_it_ran_as_the_notebook_is_read():
    shell = InteractiveShell()
    cells = [*identity.stage_sources(FILTER)[:1], "%pwd", "!true", "x = 1  # one\n\n"]
    for source in cells:
        shell.run_cell(source, store_history=True)
    ran = [source.strip() for source in shell.user_ns["In"][1:]]
    assert ran == [identity.as_python(source) for source in cells]


def test_a_parameter_that_a_later_cell_changed_is_refused(tmp_path):
    values = {"threshold": 0.5}
    ours = in_kernel(tmp_path, FILTER, identity.stage_sources(FILTER), values)
    values["threshold"] = 0.9
    with pytest.raises(StoreError, match=r"threshold was 0.5 .* and is 0.9 now"):
        ours.finish()
    values["threshold"] = 0.5
    ours.finish()


# ---------------------------------------------------------------- code


def write_notebook(monkeypatch, folder, *sources):
    monkeypatch.setattr(identity, "NOTEBOOKS", folder)
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "own.ipynb")
    return identity.code_digest("own")


@pytest.mark.parametrize("cell", ["%matplotlib inline", "!pip list", "%%time\nx = 1", "for in"])
def test_a_cell_that_is_no_python_has_a_digest_too(tmp_path, monkeypatch, cell):
    plain = write_notebook(monkeypatch, tmp_path, "x = 1")
    assert write_notebook(monkeypatch, tmp_path, "x = 1", cell) != plain


def test_a_file_that_is_no_notebook_is_a_clear_error(tmp_path, monkeypatch):
    write_notebook(monkeypatch, tmp_path, "x = 1")
    (tmp_path / "own.ipynb").write_text("<<<<<<< ours")
    with pytest.raises(StoreError, match=r"own.ipynb is no notebook"):
        identity.code_digest("own")


def test_code_that_a_notebook_reaches_through_its_run_counts():
    sources = {path.stem: "\n".join(identity.stage_sources(path.stem)) for path in STAGES}
    for text, module in identity.THROUGH_RUN.items():
        users = [name for name, source in sources.items() if text in source]
        assert users, f"no notebook holds {text}"
        file = ROOT / f"{module.replace('.', '/')}.py"
        assert all(file in identity._modules(name) for name in users)
    assert ROOT / "mdlib/method/segmenter.py" in identity._modules("07_evaluate_clusters")


def test_comments_and_docstrings_do_not_count(tmp_path, monkeypatch):
    one = write_notebook(monkeypatch, tmp_path, 'def f():\n    """Old."""\n    return 1')
    two = write_notebook(monkeypatch, tmp_path, 'def f():\n    """New."""  # more\n    return 1')
    three = write_notebook(monkeypatch, tmp_path, 'def f():\n    """New."""\n    return 2')
    assert one == two != three


# ---------------------------------------------------------------- what is written beside


def test_figures_appear_when_the_stage_is_finished_and_those_before_go(chain):
    shown = chain / "figures"
    third = opened(chain, THIRD)
    figure = plt.figure()
    third.figure(figure, "old", caption="")
    assert not shown.exists()
    write_outputs(third)
    third.finish()
    assert [path.name for path in shown.iterdir()] == [f"{THIRD}-old.png"]
    again = opened(chain, THIRD)
    again.figure(figure, "new", caption="one")
    again.figure(figure, "new", caption="the cell run again")
    assert [path.name for path in shown.iterdir()] == [f"{THIRD}-old.png"]
    write_outputs(again)
    again.finish()
    assert [path.name for path in shown.iterdir()] == [f"{THIRD}-new.png"]
    figures = stage.read_manifest(chain, THIRD)["figures"]
    assert figures == [{"file": f"{THIRD}-new.png", "caption": "the cell run again"}]
    (shown / f"{THIRD}-new.png").unlink()
    stage.publish(chain, THIRD)
    assert (shown / f"{THIRD}-new.png").is_file()
    plt.close("all")


def test_a_figure_that_cannot_be_saved_is_a_warning(chain, capsys):
    class Broken:
        def text(self, *_, **__):
            pass

        def savefig(self, *_, **__):
            raise ValueError("no such symbol")

    third = opened(chain, THIRD)
    third.figure(Broken(), "broken", caption="")
    assert "warning: the figure 'broken' could not be saved" in capsys.readouterr().out
    assert third.figures == [] and not list(third.folder.glob("figures/*"))


def test_an_export_replaces_the_one_before_and_nothing_else(chain, capsys):
    shown = chain / "export"

    def export(**texts):
        ours = opened(chain, "A2_your_own_images")
        for name, text in texts.items():
            write_text(ours.folder / "export" / f"{name}.txt", text)
        ours.finish()

    export(a="1", b="1", c="1")
    (shown / "names.yaml").write_text("0: cat")  # the user's own
    (shown / "c.txt").write_text("edited by hand")
    export(b="2", c="2")
    stage.publish(chain, "A2_your_own_images")
    found = {path.name: path.read_text() for path in shown.iterdir()}
    assert found == {"b.txt": "2", "c.txt": "edited by hand", "names.yaml": "0: cat"}
    assert "c.txt was changed by hand and is kept" in capsys.readouterr().out


def test_a_metric_that_is_no_number_is_left_out_and_said(chain, capsys):
    third = opened(chain, THIRD)
    write_outputs(third)
    assert third.finish({"good": 0.5, "bad": float("nan"), "worse": float("inf")}) == {"good": 0.5}
    said = capsys.readouterr().out
    assert "metric bad is nan: left out" in said and "metric worse is inf: left out" in said


def test_words_with_a_dot_name_checkpoints_of_their_own(tmp_path):
    ours = opened(tmp_path, FIRST)
    words = ("share-0.6-0", "share-0.6-1", "share-0.2-0", "share-0")
    assert len({ours.checkpoint(word) for word in words}) == len(words)
