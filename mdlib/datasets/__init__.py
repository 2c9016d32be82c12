"""Data sets behind one door: `open_dataset(name, root=..., split=...)` yields Samples.

To add a data set, write one file with a class that has `name`, `classes`, `ids()`, `__len__` and
`__getitem__ -> Sample`, and add it to OPENERS.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from mdlib.datasets.coco import CocoDataset
from mdlib.datasets.folder import FolderDataset
from mdlib.datasets.sample import VOID, Instances, Sample
from mdlib.datasets.voc import VocDataset
from mdlib.datasets.zoo import ZooDataset


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

    Raises ValueError for an unknown name or split, a broken list, or a count that the split does not have;
    FileNotFoundError where the data is missing.
    """
    if name not in OPENERS:
        raise ValueError(f"unknown data set {name!r}; expected one of {sorted(OPENERS)}")
    return OPENERS[name](root, split, count)


class Remembered:
    """A data set that keeps the samples it has given while they fit into `budget` bytes.

    For training, which asks for the same picture in every epoch: composing or decoding it again costs more than a step.
    """

    def __init__(self, dataset: Dataset, *, budget: float = 1e9):
        self.dataset, self.name, self.classes, self.left = dataset, dataset.name, dataset.classes, budget
        self.kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def ids(self) -> list[str]:
        return self.dataset.ids()

    def __getitem__(self, index: int) -> Sample:
        if index in self.kept:
            return self.kept[index]
        sample = self.dataset[index]
        held = [sample.image, sample.semantic]
        held += [sample.instances.masks, sample.instances.crowds] if sample.instances is not None else []
        size = sum(array.nbytes for array in held if array is not None)
        if size <= self.left:
            self.kept[index], self.left = sample, self.left - size
        return sample


def check_sample(sample: Sample, *, num_classes: int) -> str | None:
    """What is wrong with a sample, or None. Shapes were checked when it was built; this looks at the values."""
    height, width = sample.image.shape[:2]
    if min(height, width) < 8:
        return f"{sample.id}: the image is {height} x {width} pixels, too small for a patch"
    if sample.semantic is not None:
        unknown = np.setdiff1d(np.unique(sample.semantic), [*range(num_classes), VOID])
        if unknown.size:
            return f"{sample.id}: the semantic map holds unknown values {unknown[:5].tolist()}"
    if sample.instances is not None:
        labels, masks, boxes = sample.instances.labels, sample.instances.masks, sample.instances.drawn_boxes
        if len(labels) != len(boxes if masks is None else masks):
            return f"{sample.id}: {len(labels)} labels for {len(boxes if masks is None else masks)} instances"
        if len(labels) and not (1 <= labels.min() and labels.max() < num_classes):
            return f"{sample.id}: instance labels {labels.min()}..{labels.max()} are outside 1..{num_classes - 1}"
        if masks is not None and not masks.any((1, 2)).all():
            return f"{sample.id}: an instance mask is empty"
        if masks is None and not ((boxes[:, :2] < boxes[:, 2:]).all() and (boxes >= 0).all() and (boxes <= [width, height] * 2).all()):
            return f"{sample.id}: a box is empty or leaves the image"
    return None


__all__ = ["VOID", "Dataset", "Instances", "Remembered", "Sample", "check_sample", "open_dataset"]
