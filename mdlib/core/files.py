"""The one place that writes artifacts.

Whatever is written is whole or absent: a temporary name first, then a rename.

Formats: masks as COCO-style JSON with RLE, semantic maps as palette PNG (VOC's), features as .npy,
weights as safetensors with the architecture in the header, everything else JSON. Nothing is
pickled.
"""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class StoreError(Exception):
    """Something on disk is missing, broken or not what was expected."""


# ---------------------------------------------------------------- files


@contextmanager
def atomic(path: Path):
    """Yields a temporary path beside `path`; renamed to `path` on success, removed on any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # writers that replace the file lose its mode
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value) -> None:
    """Sorted keys and strict JSON: NaN is refused, because other readers cannot read it."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path, **options):
    """The value of a JSON file. options: of json.loads. Raises StoreError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), **options)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except ValueError as error:
        raise StoreError(f"{path} is not JSON: {error}") from None


def digest_bytes(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.hexdigest()


def digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(path: Path) -> str:
    """Of the names and sizes of all files below a folder, not of their bytes; hidden ones do not
    count.
    """
    found = [
        (p.relative_to(path).as_posix(), p.stat().st_size)
        for p in Path(path).rglob("*")
        if p.is_file()
    ]
    return digest_bytes(
        *(repr(entry).encode() for entry in sorted(found) if "/." not in f"/{entry[0]}")
    )


# ---------------------------------------------------------------- weights


# ---------------------------------------------------------------- masks and maps


def write_array(path: Path, array: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (ValueError, EOFError) as error:
        raise StoreError(f"{path} is not a whole .npy file: {error}") from None
