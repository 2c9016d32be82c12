"""A stage reads only what was made from what this run holds now."""

import matplotlib.pyplot as plt
import pytest

from mdlib.core.files import StoreError, digest_file, write_json
from mdlib.run import stage
from mdlib.run.stage import Stage

FIRST, SECOND, THIRD = "00_prepare_data", "01_distill_masks", "02_cluster_masks"


def opened(run_dir, name, **parameters):
    folder = run_dir / "artifacts" / f".{name}.test"
    folder.mkdir(parents=True)
    return Stage(name, parameters, run_dir, "test", folder)


def made(run_dir, name, *inputs, **parameters):
    """Run a stage that reads `inputs` and does nothing else."""
    ours = opened(run_dir, name, **parameters)
    for earlier in inputs:
        ours.read(earlier)
    ours.finish({"number": 1.0})
    return stage.identity(stage.read_manifest(run_dir, name))


@pytest.fixture
def chain(tmp_path):
    """A run of two stages, the second made from the first."""
    made(tmp_path, FIRST, count=4)
    made(tmp_path, SECOND, FIRST)
    return tmp_path


def test_reading_a_stage_gives_its_folder_and_records_what_it_was(chain):
    third = opened(chain, THIRD)
    assert third.read(SECOND) == chain / "artifacts" / SECOND
    assert third.inputs == {SECOND: stage.identity(stage.read_manifest(chain, SECOND))}


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
    made(chain, FIRST, count=4)  # its seconds differ, its identity does not
    assert opened(chain, THIRD).read(SECOND)


def test_a_stage_whose_own_input_is_gone_is_refused(chain):
    (chain / "artifacts" / FIRST / "manifest.json").unlink()
    with pytest.raises(StoreError, match=f"{FIRST} has not run"):
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
        opened(chain, SECOND).checkpoint("probe"),
    }
    assert len(paths) == 3
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
    for path in (third.checkpoint("detector"), other):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    third.finish()
    assert not third.checkpoint("detector").exists() and other.exists()


# ---------------------------------------------------------------- a notebook opened alone


@pytest.fixture
def filled(chain, monkeypatch):
    """A run of which the second stage was filled in at smoke size, opened without the runner."""
    monkeypatch.delenv("MDLIB_BATCH", raising=False)
    monkeypatch.setenv(stage.SMOKE_SIZE, "1")
    made(chain, SECOND, FIRST)
    monkeypatch.delenv(stage.SMOKE_SIZE)
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
    monkeypatch.setenv(stage.SMOKE_SIZE, "1")
    assert stage.run_label(tmp_path, {}).startswith("smoke preset")


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
    assert stage.identity(stage.read_manifest(tmp_path, FIRST)) == first
    assert (
        not stage.manifest_path(tmp_path, SECOND).exists()
        and not stage.manifest_path(tmp_path, THIRD).exists()
    )
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
    assert stage.stale_reason(chain, THIRD, {}) == f"{SECOND} changed"


def test_a_stage_that_was_not_skipped_does_not_say_so(chain):
    assert "skipped" not in stage.read_manifest(chain, SECOND)


# ---------------------------------------------------------------- weights and data outside the run


@pytest.mark.parametrize("value", [None, "random", "dino_resnet50"])
def test_weights_that_are_no_file_are_handed_on(tmp_path, value):
    ours = opened(tmp_path, FIRST)
    assert ours.weights(value, known=("dino_resnet50",)) == value and ours.files == {}


def test_weights_in_a_file_are_recorded_by_their_content(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    (tmp_path / "own.pth").write_bytes(b"one")
    for value in ("own.pth", str(tmp_path / "own.pth")):  # from the repository, or absolute
        ours = opened(tmp_path, f"0{len(value)}")
        assert ours.weights(value) == tmp_path / "own.pth"
        assert ours.files == {value: digest_file(tmp_path / "own.pth")}


def test_weights_that_are_not_there_are_an_error_that_says_what_is_expected(tmp_path):
    with pytest.raises(
        StoreError,
        match=r"'dino_resnet5': no file .*; expected a file, random, dino_resnet50 or null",
    ):
        opened(tmp_path, FIRST).weights("dino_resnet5", known=("dino_resnet50",))


def test_a_folder_is_recorded_by_its_names_and_sizes(tmp_path):
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (data / "a" / "one.jpg").write_bytes(b"12")
    ours = opened(tmp_path, FIRST)
    ours.read_file(str(data))
    ours.finish()
    assert stage.stale_reason(tmp_path, FIRST, {}) is None
    (data / ".thumbs").write_bytes(b"hidden")
    assert stage.stale_reason(tmp_path, FIRST, {}) is None
    (data / "a" / "two.jpg").write_bytes(b"12")
    assert stage.stale_reason(tmp_path, FIRST, {}) == f"{data} changed"
