"""Data sets behind one door: `open_dataset(name, root=..., split=...)` yields Samples.

To add a data set, write one file with a class that has `name`, `classes`, `ids()`, `__len__` and
`__getitem__ -> Sample`, and add it to OPENERS.

In a run its splits play roles: "train" (clusters are made and named, networks learn), "dev"
(choices) and "val" (the report). Notebook 00 writes down which split plays which; the later ones
open them with `open_role`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from mdlib.data.coco import CocoDataset
from mdlib.data.folder import FolderDataset
from mdlib.data.sample import VOID, Instances, Sample
from mdlib.data.voc import VocDataset
from mdlib.data.zoo import ZooDataset


class Dataset(Protocol):
    """What every data set offers. classes[0] is "background"."""

    name: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def ids(self) -> list[str]: ...


OPENERS: dict[str, Callable[..., Dataset]] = {
    "zoo": ZooDataset,
    "voc2012": partial(VocDataset, year=2012),
    "voc2007": partial(VocDataset, year=2007),
    "coco": CocoDataset,
    "coco_agnostic": partial(CocoDataset, agnostic=True),
    "folder": FolderDataset,
}


def open_dataset(name: str, *, root: str | Path, split: str, count: int | None = None) -> Dataset:
    """Open a data set by name. count: only its first `count` images (None: all).

    Raises ValueError for an unknown name or split, a broken list, or a count that the split does
    not have; FileNotFoundError where the data is missing.
    """
    if name not in OPENERS:
        raise ValueError(f"unknown data set {name!r}; expected one of {sorted(OPENERS)}")
    return OPENERS[name](root, split, count)


__all__ = ["VOID", "Dataset", "Instances", "Sample", "open_dataset"]
