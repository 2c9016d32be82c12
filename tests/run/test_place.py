"""Where a run may write."""

import subprocess

import pytest

from mdlib.core.paths import ROOT
from mdlib.run import place
from mdlib.run.place import OWN, check_place, data_roots
from mdlib.run.values import PresetError


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with its folders and nothing in them."""
    root = tmp_path / "the course"
    for name in (*OWN, ".git"):
        (root / name).mkdir(parents=True)
    monkeypatch.setattr(place, "ROOT", root)
    return root


def test_every_folder_of_the_repository_is_its_own():
    try:
        tracked = subprocess.run(
            ["git", "-C", ROOT, "ls-files"], capture_output=True, encoding="utf-8", check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout of git")
    folders = {line.split("/")[0] for line in tracked.splitlines() if "/" in line}
    assert {name for name in folders if not name.startswith(".")} == {*OWN}


@pytest.mark.parametrize(
    "name",
    [".", "..", "notebooks", "notebooks/mine", "data", "data/run", "mdlib/x", ".git", ".git/x", "reports",
     "reports/..", "reports/../presets"],
)  # fmt: skip
def test_the_course_is_not_written_over(checkout, name):
    with pytest.raises(PresetError, match="the course"):
        check_place(checkout / name, roots=[])


@pytest.mark.parametrize(
    "name", ["reports/demo", "reports/a/b", "runs", "../elsewhere", ".cache/x"]
)
def test_a_new_folder_is_a_place(checkout, name):
    check_place(checkout / name, roots=[checkout / "data" / "zoo"])


def test_a_run_may_go_on_and_an_empty_folder_be_filled(tmp_path, checkout):
    for made in ("lab/artifacts", "empty", "hidden/.cache"):
        (tmp_path / made).mkdir(parents=True)
    (checkout / "reports" / "demo").mkdir()
    (checkout / "reports" / "demo" / "metrics.json").write_text('{"run": {}, "metrics": {}}')
    for folder in (tmp_path / "lab", tmp_path / "empty", tmp_path / "hidden"):
        check_place(folder, roots=[])
    check_place(checkout / "reports" / "demo", roots=[])


@pytest.mark.parametrize("there", ["artifacts/model/weights.txt", "metrics.json"])
def test_a_folder_of_another_tool_is_no_place(tmp_path, checkout, there):
    (tmp_path / "theirs" / there).parent.mkdir(parents=True)
    (tmp_path / "theirs" / there).write_text("{}")
    with pytest.raises(PresetError, match="is no run, and not empty"):
        check_place(tmp_path / "theirs", roots=[])


def test_a_run_holds_no_other_run(tmp_path, checkout):
    (tmp_path / "run" / "artifacts").mkdir(parents=True)
    with pytest.raises(PresetError, match="lies in the run"):
        check_place(tmp_path / "run" / "artifacts" / "again", roots=[])


def test_a_name_that_is_no_text_and_a_link_to_itself_are_no_place(tmp_path, checkout):
    with pytest.raises(PresetError, match="is no name in UTF-8"):
        check_place(tmp_path / "caf\udce9", roots=[])
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(PresetError, match=r"leads back to itself|is no run"):
        check_place(tmp_path / "loop", roots=[])


def test_a_folder_of_somebody_else_is_no_place(tmp_path, checkout):
    (tmp_path / "thesis" / "notebooks").mkdir(parents=True)
    with pytest.raises(PresetError, match="not empty: it holds notebooks"):
        check_place(tmp_path / "thesis", roots=[])


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_place(tmp_path, checkout, below):
    (tmp_path / "a.txt").touch()
    with pytest.raises(PresetError, match=r"a\.txt is a file"):
        check_place(tmp_path / "a.txt" / below, roots=[])


@pytest.mark.parametrize("name", ["photos", "photos/run", "photos/a/b", "photos/../photos/x"])
def test_data_holds_no_run(tmp_path, checkout, name):
    (tmp_path / "photos").mkdir()
    with pytest.raises(PresetError, match="lies in the data's folder"):
        check_place(tmp_path / name, roots=[tmp_path / "other", tmp_path / "photos"])


def test_links_are_followed(tmp_path, checkout):
    (tmp_path / "photos").mkdir()
    links = {"a": checkout / "notebooks", "b": tmp_path / "photos", "c": checkout}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target, target_is_directory=True)
    for out, root in (
        ("a", "none"),
        ("a/x", "none"),
        ("b/x", "photos"),
        ("photos/x", "b"),
        ("c", "x"),
    ):
        with pytest.raises(PresetError):
            check_place(tmp_path / out, roots=[tmp_path / root])
    (checkout / "reports").rmdir()  # a larger disk
    (tmp_path / "disk").mkdir()
    (checkout / "reports").symlink_to(tmp_path / "disk", target_is_directory=True)
    check_place(checkout / "reports" / "demo", roots=[])
    with pytest.raises(PresetError, match="the course"):
        check_place(checkout / "reports", roots=[])


def test_the_roots_of_a_run_are_those_of_its_data_sets(tmp_path):
    prepared = {"dataset": "voc2012", "data_root": "data/voc", "support_dataset": None}
    prepared |= {"support_root": str(tmp_path)}
    assert data_roots({"quickstart": {}}) == []
    assert data_roots({"00_prepare_data": prepared}) == [ROOT / "data" / "voc"]
    both = data_roots({"00_prepare_data": prepared | {"support_dataset": "folder"}})
    assert both == [ROOT / "data" / "voc", tmp_path]
