"""What every data set offers, a part of a data set, and one that keeps its images in memory.

A method decodes what it names and no more: training and the mask stages ask for `image(i)`, judges
for `semantic(i)` or `instances(i)`, and `dataset[i]` is all of it, for eyes.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from mdlib.data.sample import Instances, Sample

# What is known of the images: semantic maps and instances with masks; semantic maps alone; drawn
# boxes alone; nothing.
Labels = Literal["masks", "maps", "boxes", "none"]


class NoLabels(ValueError):
    """A data set was asked for labels that it does not have."""


class Dataset(ABC):
    """Images by index from 0, and what is known of them.

    A subclass sets the four attributes and writes `size` and `image`, and what its `labels`
    promise: `semantic` for "masks" and "maps", `instances` for "masks" and "boxes".

    Attributes:
        name: as it is shown beside numbers and figures.
        classes: names of the class indices; classes[0] is "background".
        ids: one for each image, in order; each may name a file.
        labels: what is known of the images, see `Labels`.
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: Labels

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Sample:
        """Image i with all its labels.

        Raises:
            IndexError: outside 0..len - 1.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return Sample(
            self.ids[i],
            self.image(i),
            self.semantic(i) if self.labels in ("masks", "maps") else None,
            self.instances(i) if self.labels in ("masks", "boxes") else None,
        )

    def index_of(self, image_id: str) -> int:
        """The index of an image.

        Raises:
            KeyError: for an id that the data set does not hold.
        """
        if not hasattr(self, "_index"):
            self._index = {image_id: i for i, image_id in enumerate(self.ids)}
        return self._index[image_id]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(H, W) of every image by its id."""
        return {image_id: self.size(i) for i, image_id in enumerate(self.ids)}

    def file_name(self, i: int) -> str:
        """What image i is called where it comes from; its id where it has no file."""
        return self.ids[i]

    def sources(self) -> list[Path]:
        """Every file and folder whose bytes the data set reads, absolute.

        A folder stands for all that is below it, so that a new file counts; [] for a data set that
        reads none, or none outside its run.
        """
        return []

    @abstractmethod
    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of image i; no pixel is decoded where a file's header says it."""

    @abstractmethod
    def image(self, i: int) -> np.ndarray:
        """Image i, (H, W, 3) uint8 RGB; no label is decoded."""

    def semantic(self, i: int) -> np.ndarray:
        """Class indices of image i, (H, W) uint8, 0 background, 255 void; the image is not decoded.

        Raises:
            NoLabels: where `labels` is "boxes" or "none".
        """
        raise NoLabels(f"{self.name} has no semantic map of {self.ids[i]}")

    def instances(self, i: int) -> Instances:
        """Objects of image i, with masks, or with drawn boxes where `labels` is "boxes".

        Raises:
            NoLabels: where `labels` is "maps" or "none".
        """
        raise NoLabels(f"{self.name} has no instances of {self.ids[i]}")


class InMemory(Dataset):
    """Images without labels, {id: (H, W, 3) uint8 RGB}."""

    name = "images"
    classes = ("background",)
    labels: Labels = "none"

    def __init__(self, images: Mapping[str, np.ndarray]):
        self.ids, self._images = tuple(images), list(images.values())

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of image i."""
        height, width, _ = self._images[i].shape
        return height, width

    def image(self, i: int) -> np.ndarray:
        """Image i as it was given, not a copy."""
        return self._images[i]


class Subset(Dataset):
    """Some images of a data set, in its order."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        without: Collection[str] = (),
        first: int | None = None,
        part: range | None = None,
    ):
        """Choose the images.

        Args:
            dataset: the whole.
            without: ids that are left out.
            first: then only so many images are kept; None for all.
            part: of these the images at a range of positions, such as range(100, 200); None: all.
        """
        self.dataset, self.name, self.classes = dataset, dataset.name, dataset.classes
        self.labels = dataset.labels
        left_out = set(without)
        self.indices = [i for i, name in enumerate(dataset.ids) if name not in left_out][:first]
        if part is not None:
            self.indices = [self.indices[i] for i in part]
        self.ids = tuple(dataset.ids[i] for i in self.indices)

    def __getitem__(self, i: int) -> Sample:
        """Image i of the part with all its labels."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return self.dataset[self.indices[i]]

    def file_name(self, i: int) -> str:
        """What image i is called where it comes from."""
        return self.dataset.file_name(self.indices[i])

    def sources(self) -> list[Path]:
        """Those of the whole: its lists say which images are a part."""
        return self.dataset.sources()

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of image i."""
        return self.dataset.size(self.indices[i])

    def image(self, i: int) -> np.ndarray:
        """Image i, (H, W, 3) uint8 RGB."""
        return self.dataset.image(self.indices[i])

    def semantic(self, i: int) -> np.ndarray:
        """Class indices of image i, (H, W) uint8; NoLabels where there are none."""
        return self.dataset.semantic(self.indices[i])

    def instances(self, i: int) -> Instances:
        """Objects of image i; NoLabels where they are not known."""
        return self.dataset.instances(self.indices[i])


class Cached(Dataset):
    """A data set that keeps the images it has given, if all of them fit into `budget` bytes.

    For training, which asks for the same image in every epoch. Each image may take its equal share
    of the budget, so of a large set of photographs nothing is kept: a part of it would fill the
    memory and save little. Labels are not kept.
    """

    def __init__(self, dataset: Dataset, *, budget: float = 1e9):
        """Keep the images of `dataset`, `budget` bytes in all."""
        self.dataset, self.name, self.classes = dataset, dataset.name, dataset.classes
        self.ids, self.labels = dataset.ids, dataset.labels
        self.share = budget / max(1, len(dataset))
        self.kept: dict[int, np.ndarray] = {}

    def file_name(self, i: int) -> str:
        """What image i is called where it comes from."""
        return self.dataset.file_name(i)

    def sources(self) -> list[Path]:
        """Every file and folder whose bytes the data set reads."""
        return self.dataset.sources()

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of image i."""
        return self.dataset.size(i)

    def image(self, i: int) -> np.ndarray:
        """Image i, (H, W, 3) uint8 RGB."""
        if i in self.kept:
            return self.kept[i]
        image = self.dataset.image(i)
        if image.nbytes <= self.share:
            self.kept[i] = image
        return image

    def semantic(self, i: int) -> np.ndarray:
        """Class indices of image i, (H, W) uint8; NoLabels where there are none."""
        return self.dataset.semantic(i)

    def instances(self, i: int) -> Instances:
        """Objects of image i; NoLabels where they are not known."""
        return self.dataset.instances(i)
