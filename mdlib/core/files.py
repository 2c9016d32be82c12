"""The one place that writes artifacts.

Whatever is written is whole or absent: a temporary name first, then a rename.

Formats: masks as COCO-style JSON with RLE, semantic maps as palette PNG (VOC's), features as .npy,
weights as safetensors with the architecture in the header, everything else JSON. Nothing is
pickled.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

UMASK = os.umask(0)  # the user's; it can be read only by setting it
os.umask(UMASK)


class StoreError(Exception):
    """Something on disk is missing, broken or not what was expected."""


# ---------------------------------------------------------------- files


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, whose folder is made where there is none.

    It is renamed to `path` on success and removed on any failure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~UMASK)  # mkstemp's is private, and some writers set their own
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or a folder's names are on the disk, and would outlive a power cut.

    Nothing happens for a folder where the system cannot do it (Windows, some network disks), and
    for what is neither a file nor a folder.
    """
    if not path.is_file() and (os.name == "nt" or not path.is_dir()):
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if path.is_file() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON with sorted keys.

    Raises:
        ValueError: for NaN and infinities, because other readers cannot read them.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path, **options: Any) -> Any:
    """Read the value of a JSON file.

    Args:
        path: the file.
        options: of json.loads.

    Raises:
        StoreError: for a file that is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), **options)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except ValueError as error:
        raise StoreError(f"{path} is not JSON: {error}") from None


def digest_bytes(*parts: bytes) -> str:
    """SHA-256 of byte strings, 64 hexadecimal digits; where one ends and the next begins counts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits; an unchanged file is read once."""
    found = os.stat(path)
    return _digest_file(str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@cache
def _digest_file(path: str, *_: int) -> str:
    """The digest of a file; its size and times are its state."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(path: Path) -> str:
    """SHA-256 of the names and the bytes of all files below a folder; links are followed.

    Files and folders whose names begin with a dot do not count, nor do the bytes of a file that may
    not be read. A folder that links lead to twice is read once.
    """
    entries: list[tuple[str, str]] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if real not in seen else []
        for file in files if real not in seen else ():
            full = Path(folder, file)
            if not file.startswith(".") and full.is_file():
                entries.append((full.relative_to(path).as_posix(), _digest_if_readable(full)))
        seen.add(real)
    return digest_bytes(*(repr(entry).encode() for entry in sorted(entries)))


def _digest_if_readable(path: Path) -> str:
    """The digest of a file; a word where it may not be read, which later stages leave out."""
    try:
        return digest_file(path)
    except OSError:
        return "unreadable"


# ---------------------------------------------------------------- arrays


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, whatever the file's ending.

    Raises:
        ValueError: for an array of Python objects, which would be pickled.
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    """Read an array of a .npy file.

    Raises:
        StoreError: for a file that is missing, broken, or would have to be unpickled.
    """
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (ValueError, EOFError) as error:
        raise StoreError(f"{path} is not a whole .npy file: {error}") from None
