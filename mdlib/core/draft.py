"""A folder that changes as a whole: its next version is written beside it, and swapped in.

    draft = Draft(place, is_whole=...)    # open: under a lock, with an empty folder
    ... write below draft.folder ...
    draft.commit()                        # the old version is moved aside, the new one in, then the
                                          # old one is deleted

A kill at any point leaves the old version or the new one: `recover` finds which.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from glob import escape
from pathlib import Path

from mdlib.core.files import StoreError, sync
from mdlib.core.lock import Lock


class Draft:
    """The next version of a folder, which no other process can open.

    Attributes:
        place: where it goes; where that is a link, to what it leads, on the same disk.
        folder: where it is written.
    """

    def __init__(self, place: Path, *, is_whole: Callable[[Path], bool], busy: str):
        """Open a draft; what a killed process left is recovered or removed.

        Args:
            place: of the folder; it need not exist.
            is_whole: whether a left-over folder is complete.
            busy: see `Lock.acquire`.

        Raises:
            StoreError: another process has opened one, or `place` is no folder, or cannot be
                written.
        """
        try:
            self.place = place.resolve()
        except (OSError, RuntimeError):  # the latter before Python 3.13
            raise StoreError(f"{place} is a link that leads back to itself: remove it") from None
        if self.place.exists() and not self.place.is_dir():
            raise StoreError(f"{self.place} is no folder: remove it")
        self._lock = _lock(self.place)
        self._lock.acquire(busy=busy)
        self.folder = _beside(self.place, "draft")
        self._is_committed = False
        try:
            _recover(self.place, is_whole)
            self.folder.mkdir()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                text = f"{self.place.parent} cannot be written: {error.strerror}"
                raise StoreError(text) from None
            raise

    def commit(self) -> None:
        """Put the draft in its place, on the disk for good, and give up the lock.

        A second call does what an interrupted one left to do.
        """
        if self.is_in_place:
            self._lock.release()
            return
        for folder, _, files in os.walk(self.folder):
            for path in (*files, "."):
                sync(Path(folder, path))
        self._is_committed = True
        _swap(self.folder, self.place)
        self._lock.release()

    @property
    def is_in_place(self) -> bool:
        """Whether it was committed; a commit that was interrupted may have come so far."""
        return self._is_committed and not self.folder.exists()

    def discard(self) -> None:
        """Delete the draft and give up the lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()


def recover(place: Path, *, is_whole: Callable[[Path], bool]) -> None:
    """Finish what a killed process began: put a complete version in its place, remove the rest.

    Nothing happens while a process works there, where there is no left-over, and where the folder
    cannot be written.

    Args:
        place: of the folder; it need not exist.
        is_whole: whether a left-over folder is complete.
    """
    try:
        place = place.resolve()
    except (OSError, RuntimeError):  # a link that leads back to itself
        return
    drafts, olds = _left_over(place, "draft"), _left_over(place, "old")
    if not drafts and (not olds or place.exists()):
        return
    lock = _lock(place)
    try:
        lock.acquire(busy="{who}")
    except StoreError:
        return
    try:
        _recover(place, is_whole)
    except OSError:
        return  # it stays as it is, for whoever may write here
    finally:
        lock.release()


def _recover(place: Path, is_whole: Callable[[Path], bool]) -> None:
    """`recover` under the lock: a whole draft is newer than what is in its place."""
    for draft in _left_over(place, "draft"):
        if is_whole(draft):
            print(
                f"{place.name}: a process was killed just before it put its complete result in "
                "place; that result is used"
            )
            _swap(draft, place)
    for old in _left_over(place, "old"):
        if not place.exists() and is_whole(old):
            os.replace(old, place)
    for left in (*_left_over(place, "draft"), *_left_over(place, "old")):
        shutil.rmtree(left, ignore_errors=True)


def _swap(new: Path, place: Path) -> None:
    """A whole folder into its place; what is there is deleted when the new one is in.

    A file system that cannot rename the folder (a layer of a container's image) loses nothing
    either: then it is deleted, and until the draft has its place `recover` takes the draft.
    """
    old = _beside(place, "old")
    try:
        if place.exists():
            os.replace(place, old)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(place)
    os.replace(new, place)
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)  # what cannot be deleted does no harm


def _lock(place: Path) -> Lock:
    """The lock of a folder lies beside it."""
    return Lock(place.with_name(f".{place.name}.lock"))


def _beside(place: Path, what: str) -> Path:
    """A fresh name beside a folder; names that begin with a dot are not for users."""
    return place.with_name(f".{place.name}.{what}-{uuid.uuid4().hex[:12]}")


def _left_over(place: Path, what: str) -> list[Path]:
    """The folders of such names that are there."""
    return sorted(place.parent.glob(f".{escape(place.name)}.{what}-*"))
