"""Is a data set whole and right?

Everything that is missing or wrong, at once, before a run of hours begins.
"""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from mdlib.core.progress import track
from mdlib.data import OPENERS, Dataset, coco, open_dataset, voc
from mdlib.data.coco import CocoDataset
from mdlib.data.folder import FolderDataset
from mdlib.data.images import ImageError, image_size
from mdlib.data.listing import missing_files, preview
from mdlib.data.sample import VOID, Instances, Sample
from mdlib.data.voc import VocDataset

T = TypeVar("T", bound=Dataset)
LONG = 4  # a picture whose sides differ by more is a strip
LARGE = 24_000_000  # pixels of a photograph that is told apart


def check_dataset(name: str, root: str | Path, *, splits: Iterable[str]) -> list[str]:
    """Look for what is missing or wrong with splits of a data set.

    Lists, counts, files, the size of every image (from its header), every label of VOC and of a
    folder, and which annotations of COCO can be used are looked at; the pixels of the images are
    not. A miniature opens all the same: here it is told that its counts are not the publisher's.

    Args:
        name: a key of OPENERS.
        root: the folder that holds the data set.
        splits: of the data set's own.

    Returns:
        One sentence for each problem; [] for a data set as published.

    Raises:
        ValueError: for an unknown name.
    """
    if name in ("voc2012", "voc2007"):
        return _check_voc(root, splits, year=int(name[3:]))
    if name in ("coco", "coco_agnostic"):
        return _check_coco(root, splits)
    if name == "folder":
        return _check_folder(root, splits)
    if name not in OPENERS:
        raise ValueError(f"unknown data set {name!r}; expected one of {sorted(OPENERS)}")
    return _open_all(splits, lambda split: open_dataset(name, root=root, split=split))[1]


def _open_all(splits: Iterable[str], opener: Callable[[str], T]) -> tuple[list[T], list[str]]:
    """The splits that could be opened, and why the others could not."""
    opened: list[T] = []
    problems: list[str] = []
    for split in splits:
        try:
            opened.append(opener(split))
        except (OSError, ValueError) as error:
            # a missing folder is one problem, however many splits want it
            if str(error) not in problems:
                problems.append(str(error))
    return opened, problems


def _check_voc(root: str | Path, splits: Iterable[str], *, year: int) -> list[str]:
    """The problems of splits of VOC."""
    opened, problems = _open_all(
        splits, lambda split: VocDataset(root, split, year=year, whole=False)
    )
    # label files -> (split, index): an image of several splits is looked at once
    todo: dict[tuple[Path, ...], tuple[VocDataset, int]] = {}
    for data in opened:
        problems += _count(data.name, data.split, len(data), voc.COUNTS[year][data.split])
        todo |= {data.label_paths(name): (data, i) for i, name in enumerate(data.ids)}
    if not opened:
        return problems
    folder = opened[0].folder
    problems += _absent(
        {data.image_path(data.ids[i]) for data, i in todo.values()}, "images are missing"
    )
    problems += _absent(
        {path for paths in todo for path in paths},
        "label files are missing, their images have no labels",
    )
    images = {path.stem for path in (folder / "JPEGImages").glob("*.jpg")}
    for labels in ("SegmentationClass", "SegmentationObject", "Annotations"):
        strays = sorted(
            path.name for path in (folder / labels).glob("*.*") if path.stem not in images
        )
        if strays:
            problems.append(
                f"{folder / labels}: {len(strays)} label files have no image: {preview(strays)}"
            )
    faults = []
    for paths, (data, i) in track(
        todo.items(), total=len(todo), what=f"checking the labels of voc{year}"
    ):
        image = data.image_path(data.ids[i])
        if image.is_file() and all(path.is_file() for path in paths):
            try:
                data.instances(i)
            except ImageError as error:
                faults.append(str(error))
    return problems + _few(faults, "images or label files")


def _check_coco(root: str | Path, splits: Iterable[str]) -> list[str]:
    """The problems of splits of COCO."""
    opened, problems = _open_all(splits, lambda split: CocoDataset(root, split, whole=False))
    sizes: dict[Path, tuple[int, int]] = {}
    for data in opened:
        problems += _count("coco", data.split, len(data), coco.COUNTS.get(data.split))
        problems += [problem for problem in data.problems if problem not in problems]
        if len(data.classes) != 1 + coco.THINGS:
            problems.append(
                f"coco {data.split}: {len(data.classes) - 1} categories, "
                f"{coco.THINGS} are published"
            )
        sizes |= {
            data.folder / image["file_name"]: (image["height"], image["width"])
            for image in data.images
        }
        if data.split in ("train2014", "val2017"):
            strays = sorted(
                {path.name for path in data.folder.glob("*.jpg")}
                - {image["file_name"] for image in data.images}
            )
            if strays:
                some = f"{len(strays)} images are in no annotation file: {preview(strays)}"
                problems.append(f"{data.folder}: {some}")
    problems += _absent(sizes, "images are missing")
    faults = []
    for path, size in track(sizes.items(), total=len(sizes), what="checking the images of coco"):
        try:
            if path.is_file() and size not in (image_size(path, turned=False), image_size(path)):
                faults.append(f"{path}: {image_size(path)}, its annotation says {size}")
        except ImageError as error:
            faults.append(str(error))
    return problems + _few(faults, "images")


def _check_folder(root: str | Path, splits: Iterable[str]) -> list[str]:
    """The problems of a folder."""
    opened, problems = _open_all(splits, lambda split: FolderDataset(root, split))
    faults = []
    for data in opened:
        what, found = f"checking the pictures in {data.folder}", set[int]()
        for i in track(range(len(data)), total=len(data), what=what):
            try:
                data.size(i)
                if data.labels == "maps":
                    found.update(np.unique(data.semantic(i)).tolist())
            except ImageError as error:
                faults.append(str(error))
        if problem := void_alone(found):
            problems.append(f"{data.masks}: {problem}")
    return problems + _few(faults, "pictures or label maps")


def void_alone(labels: Collection[int]) -> str | None:
    """What is wrong with label maps that were drawn as 0 and 255, black and white; else None.

    Args:
        labels: all that stand in the maps of a data set.
    """
    if VOID in labels and not set(labels) - {0, VOID}:
        return f"every object pixel is {VOID}, which is void: write 1"
    return None


def unusual(image_hw: tuple[int, int]) -> str | None:
    """What makes a picture costly or of little use, or None.

    Args:
        image_hw: its (H, W).
    """
    height, width = image_hw
    if max(image_hw) > LONG * min(image_hw):
        return f"{width} x {height} pixels: a strip, seen at a coarser scale than others"
    if height * width > LARGE:
        return f"{width} x {height} pixels: large, so slow to read"
    return None


def _count(name: str, split: str, have: int, published: int | None) -> list[str]:
    """A sentence where a split has another number of images than the publisher's."""
    if published is None or have == published:
        return []
    return [
        f"{name} {split}: {have:,} images are listed, {published:,} are published "
        "(a miniature, or a broken list?)"
    ]


def _absent(paths: Iterable[Path], what: str) -> list[str]:
    """One sentence for each folder that lacks files."""
    gone: dict[Path, list[str]] = {}
    for path in missing_files(sorted(paths)):
        gone.setdefault(path.parent, []).append(path.name)
    return [f"{folder}: {len(names)} {what}: {preview(names)}" for folder, names in gone.items()]


def _few(faults: list[str], what: str, *, limit: int = 5) -> list[str]:
    """The first faults, and how many more there are."""
    if len(faults) <= limit:
        return faults
    return [*faults[:limit], f"and {len(faults) - limit} more {what} are wrong"]


def try_sample(dataset: Dataset, index: int) -> tuple[Sample | None, str | None]:
    """Read an image with all its labels and check it.

    Returns:
        (sample, None), or (None, what is wrong) where a file cannot be read or labels cannot be
        right.
    """
    try:
        sample = dataset[index]
    except ImageError as error:
        return None, str(error)
    problem = check_sample(sample, num_classes=len(dataset.classes))
    return (None, problem) if problem else (sample, None)


def check_sample(sample: Sample, *, num_classes: int) -> str | None:
    """Look at the values of a sample; its shapes were checked when it was built.

    Args:
        sample: an image with its labels.
        num_classes: number of classes, the background included.

    Returns:
        What is wrong, or None.
    """
    height, width = sample.image.shape[:2]
    if min(height, width) < 8:
        return f"{sample.id}: the image is {height} x {width} pixels, too small for a patch"
    if sample.semantic is not None:
        unknown = np.setdiff1d(np.unique(sample.semantic), [*range(num_classes), VOID])
        if unknown.size:
            return f"{sample.id}: the semantic map holds unknown values {unknown[:5].tolist()}"
    if sample.instances is not None:
        problem = _wrong_instances(sample.instances, (height, width), num_classes=num_classes)
        if problem:
            return f"{sample.id}: {problem}"
    return None


def _wrong_instances(
    instances: Instances, image_hw: tuple[int, int], *, num_classes: int
) -> str | None:
    """What is wrong with the objects of an image, or None."""
    if instances.has_masks and not instances.masks.any((1, 2)).all():
        return "an instance mask is empty"
    labels, boxes = instances.labels, instances.boxes
    if len(labels) != len(boxes):
        return f"{len(labels)} labels for {len(boxes)} instances"
    if len(labels) and not (labels.min() >= 1 and labels.max() < num_classes):
        return f"instance labels {labels.min()}..{labels.max()} are outside 1..{num_classes - 1}"
    height, width = image_hw
    whole = (boxes[:, :2] < boxes[:, 2:]).all() and (boxes >= 0).all()
    if not (whole and (boxes <= [width, height, width, height]).all()):
        return "a box is empty or leaves the image"
    return None
