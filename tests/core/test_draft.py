"""A folder that changes as a whole, whatever happens in between."""

import pytest

from mdlib.core.draft import Draft, recover
from mdlib.core.files import StoreError


def whole(folder):
    return (folder / "whole").is_file()


def opened(place):
    return Draft(place, is_whole=whole, busy="busy: {who}")


def left_over(place, kind, *files):
    folder = place.with_name(f".{place.name}.{kind}-0")
    folder.mkdir()
    for file in files:
        (folder / file).touch()
    return folder


@pytest.fixture
def place(tmp_path):
    """A folder with a version of it."""
    draft = opened(tmp_path / "place")
    (draft.folder / "whole").write_text("old")
    draft.commit()
    return tmp_path / "place"


def visible(place):
    return sorted(path.name for path in place.parent.iterdir() if path.is_dir())


def test_what_is_written_appears_as_a_whole_and_the_version_before_goes(place):
    draft = opened(place)
    (draft.folder / "new").write_text("new")
    assert (place / "whole").read_text() == "old"
    draft.commit()
    assert [path.name for path in place.iterdir()] == ["new"] and visible(place) == ["place"]


def test_a_draft_that_is_given_up_leaves_what_was_there(place):
    opened(place).discard()
    assert (place / "whole").read_text() == "old" and visible(place) == ["place"]
    opened(place)  # the lock is free


def test_an_open_draft_is_no_left_over(place):
    draft = opened(place)
    with pytest.raises(StoreError, match="busy: process"):
        opened(place)
    (draft.folder / "whole").touch()
    recover(place, is_whole=whole)
    assert draft.folder.is_dir() and (place / "whole").read_text() == "old"


def test_a_whole_draft_that_was_left_over_is_newer_than_what_is_there(place, capsys):
    left_over(place, "draft", "whole", "new")
    recover(place, is_whole=whole)
    assert (place / "new").exists() and visible(place) == ["place"]
    assert "that result is used" in capsys.readouterr().out


def test_a_half_written_draft_is_removed(place):
    left_over(place, "draft", "half")
    recover(place, is_whole=whole)
    assert (place / "whole").read_text() == "old" and visible(place) == ["place"]


@pytest.mark.parametrize("draft", [None, "half", "whole"])
def test_without_a_version_in_its_place_the_draft_counts_then_the_old_one(tmp_path, draft):
    place = tmp_path / "place"
    left_over(place, "old", "whole", "old")
    if draft:
        left_over(place, "draft", draft)
    recover(place, is_whole=whole)
    assert (place / "old").exists() == (draft != "whole") and visible(place) == ["place"]


def test_the_folder_of_another_name_that_begins_alike_is_left_alone(place):
    other = left_over(place.with_name("place.two"), "draft", "whole")
    recover(place, is_whole=whole)
    opened(place)
    assert other.is_dir()
