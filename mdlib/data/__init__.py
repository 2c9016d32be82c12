"""Data sets behind one door: `open_dataset(name, root=..., split=...)` yields Samples.

To add a data set, write one file with a class that has `name`, `classes`, `ids()`, `__len__` and
`__getitem__ -> Sample`, and add it to OPENERS.

In a run its splits play roles: "train" (clusters are made and named, networks learn), "dev"
(choices) and "val" (the report). Notebook 00 writes down which split plays which; the later ones
open them with `open_role`.
"""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from mdlib.core import files as store
from mdlib.core.paths import ROOT
from mdlib.data.coco import CocoDataset
from mdlib.data.folder import FolderDataset
from mdlib.data.images import ImageError
from mdlib.data.sample import VOID, Instances, Sample
from mdlib.data.scenes import StoredScenes
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


class Remembered:
    """A data set that keeps the samples it has given, if all of them fit into `budget` bytes.

    For training, which asks for the same picture in every epoch: composing or decoding it again
    costs more than a step. Each sample may take its equal share of the budget. So of a large set of
    photos nothing is kept: a part of it would fill the memory and spare little, in 00, which reads
    each picture once, nothing at all. left_out: ids that are passed over; first: how many of the
    others there are at most. labels: see `label_kind`.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        budget: float = 1e9,
        left_out: Collection[str] = (),
        first: int | None = None,
        labels: str = "none",
    ):
        self.dataset, self.name, self.classes, self.labels = (
            dataset,
            dataset.name,
            dataset.classes,
            labels,
        )
        self.places = [i for i, image_id in enumerate(dataset.ids()) if image_id not in left_out][
            :first
        ]
        self.share = budget / max(1, len(self.places))
        self.kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.places)

    def ids(self) -> list[str]:
        ids = self.dataset.ids()
        return [ids[place] for place in self.places]

    def __getitem__(self, index: int) -> Sample:
        if index in self.kept:
            return self.kept[index]
        sample = self.dataset[self.places[index]]
        held = [sample.image, sample.semantic]
        held += (
            [sample.instances.masks, sample.instances.crowds]
            if sample.instances is not None
            else []
        )
        if sum(array.nbytes for array in held if array is not None) <= self.share:
            self.kept[index] = sample
        return sample


def open_role(prepared: Path, role: str, *, first: int | None = None) -> Remembered:
    """The images that play a role in a run, as notebook 00 wrote it into `prepared`/index.json;
    first: no more than so many.

    Raises store.StoreError where the run has no such role.
    """
    index = store.read_json(prepared / "index.json")
    entries = index["splits"] | ({"support": index["support"]} if "support" in index else {})
    if role not in entries:
        raise store.StoreError(
            f"this run has no {role} images, only {', '.join(entries)}: see {role}_split of 00_prepare_data"
        )
    # the support set is of another data set
    entry, scenes = {**index, **entries[role]}, prepared / f"scenes_{role}.npz"
    data = open_dataset(
        entry["dataset"], root=ROOT / entry["root"], split=entry["split"], count=entry["count"]
    )
    if scenes.is_file():  # composed by 00, once for all
        data = StoredScenes(scenes, name=data.name, classes=data.classes, ids=data.ids())
    return Remembered(data, left_out=set(entry["left_out"]), first=first, labels=entry["labels"])


def has_support(prepared: Path) -> bool:
    """Whether the run has a second data set, whose masks join those of train in k-means; its role
    is "support".
    """
    return "support" in store.read_json(prepared / "index.json")


def open_roles(prepared: Path) -> dict[str, Remembered]:
    """All roles of a run and their images: train, and dev and val where there are any."""
    return {
        role: open_role(prepared, role)
        for role in store.read_json(prepared / "index.json")["splits"]
    }


def labelled_roles(prepared: Path) -> set[str]:
    """The roles whose images have semantic maps and masks; a line names the others, because nothing
    is scored there.
    """
    kinds = {
        role: entry["labels"]
        for role, entry in store.read_json(prepared / "index.json")["splits"].items()
    }
    bare = [role for role, kind in kinds.items() if kind != "masks"]
    if bare:
        print(f"{', '.join(bare)}: no label maps, so what needs them is left out")
    return set(kinds) - set(bare)


def label_kind(sample: Sample) -> str:
    """What is known of a sample: "masks" (a semantic map, and instances with masks), "boxes" (drawn
    ones alone) or "none".
    """
    if sample.instances is None:
        return "none"
    return "boxes" if sample.instances.masks is None or sample.semantic is None else "masks"


def try_sample(dataset: Dataset, index: int) -> tuple[Sample | None, str | None]:
    """(sample, None), or (None, what is wrong with it) for a file that cannot be read and labels
    that cannot be right.
    """
    try:
        sample = dataset[index]
    except ImageError as error:
        return None, str(error)
    problem = check_sample(sample, num_classes=len(dataset.classes))
    return (None, problem) if problem else (sample, None)


def check_sample(sample: Sample, *, num_classes: int) -> str | None:
    """What is wrong with a sample, or None.

    Shapes were checked when it was built; this looks at the values.
    """
    height, width = sample.image.shape[:2]
    if min(height, width) < 8:
        return f"{sample.id}: the image is {height} x {width} pixels, too small for a patch"
    if sample.semantic is not None:
        unknown = np.setdiff1d(np.unique(sample.semantic), [*range(num_classes), VOID])
        if unknown.size:
            return f"{sample.id}: the semantic map holds unknown values {unknown[:5].tolist()}"
    if sample.instances is not None:
        labels, masks, boxes = (
            sample.instances.labels,
            sample.instances.masks,
            sample.instances.drawn_boxes,
        )
        if len(labels) != len(boxes if masks is None else masks):
            return f"{sample.id}: {len(labels)} labels for {len(boxes if masks is None else masks)} instances"
        if len(labels) and not (1 <= labels.min() and labels.max() < num_classes):
            return f"{sample.id}: instance labels {labels.min()}..{labels.max()} are outside 1..{num_classes - 1}"
        if masks is not None and not masks.any((1, 2)).all():
            return f"{sample.id}: an instance mask is empty"
        if masks is None and not (
            (boxes[:, :2] < boxes[:, 2:]).all()
            and (boxes >= 0).all()
            and (boxes <= [width, height] * 2).all()
        ):
            return f"{sample.id}: a box is empty or leaves the image"
    return None


__all__ = [
    "VOID", "Dataset", "Instances", "Remembered", "Sample",
    "check_sample", "has_support", "label_kind", "labelled_roles", "open_dataset", "open_role", "open_roles", "try_sample",
]  # fmt: skip
