"""A lock of the operating system, and a note of who holds it.

The kernel releases it when its process ends, however that ends: a killed process blocks nobody. The
note is for people; it may be left over, and counts only while the lock is held.
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from mdlib.core.files import StoreError, read_json, write_json

PATIENCE = 1.0  # seconds: whoever only looks at a lock holds it for a moment


def utc_now() -> str:
    """This second, UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Lock:
    """The lock of a file, which is made; `FILE.json` is its note.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path, self.note = path, path.with_name(f"{path.name}.json")
        self._lock = FileLock(path, thread_local=False)

    def acquire(self, *, busy: str, **note: Any) -> None:
        """Take the lock, or say who has it.

        Args:
            busy: what the error says, with "{who}" for the process that holds the lock.
            note: JSON values that the note holds beside process, host and time.

        Raises:
            StoreError: another process holds it, or the folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=PATIENCE)
            write_json(self.note, {**note, **_me()})
        except Timeout:
            raise StoreError(busy.replace("{who}", _described(self.note))) from None
        except OSError as error:
            self._lock.release()
            raise StoreError(f"{self.path.parent} cannot be written: {error.strerror}") from None

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        if not self._lock.is_locked:
            return
        try:
            self.note.unlink(missing_ok=True)
        finally:
            self._lock.release()

    @contextmanager
    def held(self, *, busy: str, **note: Any) -> Iterator[None]:
        """Hold the lock in a `with` block; the arguments and errors are those of `acquire`."""
        self.acquire(busy=busy, **note)
        try:
            yield
        finally:
            self.release()

    def holder(self) -> dict[str, Any] | None:
        """What the note says of the process that holds the lock now; None where none does."""
        if not self.path.is_file():
            return None
        try:
            with FileLock(self.path, thread_local=False).acquire(timeout=0):
                return None
        except Timeout:  # or another process that looked at this moment
            found = _read(self.note)
            here = found.get("host") == platform.node()
            return None if here and not psutil.pid_exists(found["process"]) else found
        except OSError:  # a folder that cannot be written, where nobody works
            return None


def _me() -> dict[str, Any]:
    """This process, its machine and the time."""
    return {"process": os.getpid(), "host": platform.node(), "started": utc_now()}


def _read(note: Path) -> dict[str, Any]:
    """A note; {} while its process has not written it yet."""
    try:
        found = read_json(note)
    except StoreError:
        return {}
    return found if isinstance(found, dict) else {}


def _described(note: Path) -> str:
    """Who holds a lock, in words."""
    found = _read(note)
    if not found:
        return "another process"
    where = "" if found.get("host") == platform.node() else f" on {found.get('host')}"
    return f"process {found.get('process')}{where}, since {found.get('started')}"
