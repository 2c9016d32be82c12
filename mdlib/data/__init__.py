"""Data sets behind one door: `open_dataset(name, root=..., split=...)` opens a `Dataset`.

To add a data set, write one file with a subclass of `dataset.Dataset` and add it to OPENERS.

In a run its splits play roles: "train" (clusters are made and named, networks learn), "dev"
(choices) and "val" (the report). Notebook 00 writes down which split plays which role; later
notebooks open them with `roles.open_role`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mdlib.data.coco import CocoDataset
from mdlib.data.compose import Composition
from mdlib.data.dataset import Cached, Dataset, InMemory, Labels, NoLabels, Subset
from mdlib.data.folder import FolderDataset
from mdlib.data.sample import VOID, Instances, Sample
from mdlib.data.voc import VocDataset
from mdlib.data.zoo import ZooDataset

OPENERS: dict[str, Callable[..., Dataset]] = {
    "zoo": ZooDataset,
    "voc2012": partial(VocDataset, year=2012),
    "voc2007": partial(VocDataset, year=2007),
    "coco": CocoDataset,
    "coco_agnostic": partial(CocoDataset, agnostic=True),
    "folder": FolderDataset,
}


def open_dataset(
    name: str,
    *,
    root: str | Path,
    split: str,
    count: int | None = None,
    composition: Composition | None = None,
) -> Dataset:
    """Open a split of a data set by name.

    Args:
        name: a key of OPENERS.
        root: the folder that holds the data set.
        split: one of the data set's own splits.
        count: only the first `count` images; None for all.
        composition: how the zoo's scenes are composed; None for the demo's mixture, and for every
            other data set.

    Raises:
        ValueError: for an unknown name or split, a broken list, a count that the split does not
            have, or a composition of a data set that is not composed.
        FileNotFoundError: where the data is missing.
    """
    if name not in OPENERS:
        raise ValueError(f"unknown data set {name!r}; expected one of {sorted(OPENERS)}")
    if composition is None:
        return OPENERS[name](root, split, count)
    if name != "zoo":
        raise ValueError(f"only the zoo is composed: {name} takes no composition")
    return ZooDataset(root, split, count, composition=composition)


__all__ = [
    "VOID",
    "Cached",
    "Dataset",
    "InMemory",
    "Instances",
    "Labels",
    "NoLabels",
    "Sample",
    "Subset",
    "open_dataset",
]
