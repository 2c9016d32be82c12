"""A lock that ends with its process, and the note of who holds it."""

import os
import platform
import subprocess
import sys

import pytest
from filelock import FileLock

from mdlib.core.files import StoreError, read_json, write_json
from mdlib.core.lock import Lock


def test_who_holds_a_lock_is_said_and_forgotten(tmp_path):
    lock = Lock(tmp_path / "new" / "lock")
    assert lock.holder() is None
    with lock.held(busy="{who}", fill=True):
        assert lock.holder() == read_json(lock.note)
        assert lock.holder() | {"started": ""} == {
            "process": os.getpid(),
            "host": platform.node(),
            "started": "",
            "fill": True,
        }
        said = rf"{{a}} is busy: process {os.getpid()}, since \d{{4}}-\d\d-\d\dT"
        with pytest.raises(StoreError, match=said):
            Lock(lock.path).acquire(busy="{a} is busy: {who}")  # braces of a path
    assert lock.holder() is None and not lock.note.exists()
    Lock(lock.path).acquire(busy="{who}")


def test_two_that_look_at_once_do_not_take_each_other_for_the_holder(tmp_path):
    lock = Lock(tmp_path / "lock")
    lock.path.touch()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    killed = {"process": gone.pid, "host": platform.node(), "fill": True}
    write_json(lock.note, killed)
    with FileLock(lock.path):  # as one does that looks
        assert lock.holder() is None


def test_a_note_that_a_killed_process_left_does_not_count(tmp_path):
    lock = Lock(tmp_path / "lock")
    lock.path.touch()
    write_json(lock.note, {"process": 1, "fill": True})
    assert lock.holder() is None
    lock.acquire(busy="{who}")
    assert lock.holder()["process"] == os.getpid()
    lock.release()
    lock.release()  # a second time does nothing


@pytest.mark.parametrize("note", ["", "[]", "no json"])
def test_a_holder_without_a_readable_note_is_another_process(tmp_path, note):
    lock = Lock(tmp_path / "lock")
    with lock.held(busy="{who}"):
        lock.note.write_text(note)
        with pytest.raises(StoreError, match=r"^another process$"):
            Lock(lock.path).acquire(busy="{who}")


def test_the_machine_of_a_holder_elsewhere_is_named(tmp_path):
    lock = Lock(tmp_path / "lock")
    with lock.held(busy="{who}"):
        write_json(lock.note, read_json(lock.note) | {"host": "gpu-7"})
        with pytest.raises(StoreError, match="on gpu-7, since"):
            Lock(lock.path).acquire(busy="{who}")


def test_a_lock_in_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        Lock(tmp_path / "file" / "lock").acquire(busy="{who}")
