"""A long computation over many items, kept in parts, so that a kill loses no more than one part.

Each part is a file that is written whole or not at all. A run that begins again reads the parts
that are there and makes the others; what comes out is the same, to the bit. `Stage.shards` names
the folder: it outlives a kill, is of these parameters, inputs and code, and goes when the stage is
finished.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdlib.core.files import StoreError, atomic
from mdlib.core.mask import Mask, read_masks, write_masks

SIZE = 100  # items of a part, or a few more where a batch must not be divided


@dataclass(frozen=True)
class Form:
    """How the items of a part are kept.

    Attributes:
        ending: of the file, with its dot.
        write: write(path, items) writes a file whole or not at all.
        read: read(path) gives the items back; StoreError for a file that is missing or broken.
        is_counted: whether `make` gives one item for each of the range.
    """

    ending: str
    write: Callable[[Path, Sequence], object]
    read: Callable[[Path], Sequence]
    is_counted: bool = False


def in_shards(
    folder: Path | None,
    count: int,
    make: Callable[[range], Iterable],
    *,
    form: Form,
    batch: int = 1,
) -> Iterator[Any]:
    """Yield what `make` makes of `count` items, in order, and keep it in parts.

    Args:
        folder: of the parts; None: nothing is kept, and `make` is called once for all.
        count: number of items.
        make: make(part) makes what belongs to a range of the items: a function of the range alone,
            which is called for each part that is not there, in order.
        form: how it is kept.
        batch: `make` takes so many items at once. A part is a whole number of batches, so that the
            batches are those of one call for all.

    Yields:
        What `make` gives, one by one.
    """
    if folder is None:
        yield from make(range(count))
        return
    size = -(-SIZE // batch) * batch
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    paths = [folder / f"{part.start:07d}-{part.stop:07d}{form.ending}" for part in parts]
    there = sum(path.is_file() for path in paths)
    if there:
        print(f"{there} of {len(parts)} parts were kept before: {folder.name}")
    for part, path in zip(parts, paths, strict=True):
        kept = _kept(path, form, len(part) if form.is_counted else None)
        yield from _made(path, form, make(part)) if kept is None else kept


def _kept(path: Path, form: Form, count: int | None) -> Sequence | None:
    """The items of a part, or None where it is not there, or broken; count: how many, if known."""
    if not path.is_file():
        return None
    try:
        items = form.read(path)
    except StoreError as error:
        print(f"made again: {error}")
        return None
    if count not in (None, len(items)):
        print(f"made again: {path} holds {len(items)} items, expected {count}")
        return None
    return items


def _made(path: Path, form: Form, items: Iterable) -> Sequence:
    """The items of a part, once they are written."""
    made = list(items)
    form.write(path, made)
    return made


# ---------------------------------------------------------------- forms


def _write_masks(path: Path, masks: Sequence[Mask]) -> None:
    """Masks as a COCO file."""
    write_masks(path, masks, images={mask.image_id: mask.size for mask in masks})


def _write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Arrays of any shapes as .npz, with a checksum of each."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        if any(array.dtype.hasobject for array in arrays):
            raise ValueError("arrays of Python objects would be pickled")
        np.savez(file, *arrays)  # its allow_pickle is an array of its own before numpy 2.1


def _read_arrays(path: Path) -> list[np.ndarray]:
    """The arrays of a .npz file, in the order in which they were written."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in file.files]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is not a whole .npz file: {error}") from None


MASKS = Form(".json", _write_masks, read_masks)
ARRAYS = Form(".npz", _write_arrays, _read_arrays, is_counted=True)


def write_rows(path: Path, rows: Iterable[np.ndarray], *, count: int) -> None:
    """Write arrays of one shape and dtype as one .npy, (count, ...), each as it comes.

    Args:
        path: where to; a file that is there is replaced, once the new one is whole.
        rows: the arrays; never more than one is in memory.
        count: how many they are, 1 or more.

    Raises:
        ValueError: for another number of arrays, or one of another shape or dtype.
    """
    form, done = None, 0
    with atomic(path) as temporary, open(temporary, "wb") as file:
        for done, row in enumerate(rows, 1):
            if form is None:
                form = (row.shape, row.dtype)
                head = {"descr": np.lib.format.dtype_to_descr(row.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, head | {"shape": (count, *row.shape)})
            if form != (row.shape, row.dtype):
                raise ValueError(f"row {done} is {row.shape} {row.dtype}, the first is {form}")
            file.write(row.tobytes())
        if done != count:
            raise ValueError(f"{done} rows of {count}")
