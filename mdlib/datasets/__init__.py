"""Data sets behind one door: `open_dataset(name, root=..., split=...)` yields Samples.

To add a data set, write one file with a class that has `name`, `classes`, `ids()`, `__len__` and
`__getitem__ -> Sample`, and add it to OPENERS.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from mdlib.datasets.sample import VOID, Instances, Sample
from mdlib.datasets.zoo import ZooDataset


class Dataset(Protocol):
    """What every data set offers. classes[0] is "background"."""

    name: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def ids(self) -> list[str]: ...


OPENERS: dict[str, Callable[..., Dataset]] = {"zoo": ZooDataset}


def open_dataset(name: str, *, root: str | Path, split: str, count: int | None = None) -> Dataset:
    """Open a data set by name. count: only its first `count` images (None: all).

    Raises ValueError for an unknown name or split, FileNotFoundError where the data is missing.
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
        size = sample.image.nbytes + (sample.semantic.nbytes if sample.semantic is not None else 0)
        size += sample.instances.masks.nbytes if sample.instances is not None else 0
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
        labels = sample.instances.labels
        if len(labels) != len(sample.instances.masks):
            return f"{sample.id}: {len(labels)} labels for {len(sample.instances.masks)} instance masks"
        if len(labels) and not (1 <= labels.min() and labels.max() < num_classes):
            return f"{sample.id}: instance labels {labels.min()}..{labels.max()} are outside 1..{num_classes - 1}"
        if not sample.instances.masks.any((1, 2)).all():
            return f"{sample.id}: an instance mask is empty"
    return None


__all__ = ["VOID", "Dataset", "Instances", "Remembered", "Sample", "check_sample", "open_dataset"]
