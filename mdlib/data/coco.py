"""COCO as its publisher's archives unpack, and COCO20k, a part of it.

    ROOT/annotations/instances_train2014.json, instances_val2017.json
    ROOT/train2014/*.jpg, ROOT/val2017/*.jpg    (or ROOT/images/train2014 ...)
    ROOT/coco_20k_filenames.txt                 the list of COCO20k [2], a file name a line:
                                                train2014/COCO_train2014_<id>.jpg

Splits: train2014 82,783 images; val2017 5,000; coco20k 19,817 of train2014. Choices are made on
dev: the images of train2014 outside COCO20k whose id is a multiple of 100, some 630.

Classes are the background and the 80 things, in the order of their category ids; or "object" alone
(agnostic). Overlapping objects are painted from large to small into the semantic map. A crowd
(iscrowd = 1) is no object: it stands in Instances.crowds, and in the semantic map its pixels are
void where no object covers them. An outline so thin that it covers no pixel is left out.

A JSON file is read once and not kept: an opened split holds the outlines of its own images, as JSON
text, about a kilobyte an object (150 MB for COCO20k). Reading all of train2014's takes half a
minute.

[1] Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014.
[2] Vo et al., Toward unsupervised, multi-object discovery in large-scale image collections, ECCV
2020; the list as Simeoni et al., LOST, BMVC 2021, publish it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from mdlib.core.mask import Mask
from mdlib.data.dataset import Dataset, Labels
from mdlib.data.images import ImageError, read_image
from mdlib.data.listing import check_exist, read_list
from mdlib.data.sample import VOID, Instances, Sample

COUNTS = {"train2014": 82783, "val2017": 5000, "coco20k": 19817}  # images, as published
SPLITS = (*COUNTS, "dev")
THINGS = 80
LIST = "coco_20k_filenames.txt"
DEV_EVERY = 100


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object as the JSON gives it.

    Attributes:
        category: its category id.
        crowd: COCO's iscrowd.
        outline: its segmentation, polygons or RLE, as JSON text.
    """

    category: int
    crowd: bool
    outline: bytes


class ImageEntry(TypedDict):
    """What is kept of an image's entry; sides in pixels."""

    id: int
    file_name: str
    height: int
    width: int


@dataclass
class Index:
    """What is kept of a JSON file.

    Attributes:
        categories: (id, name), sorted by id.
        images: of one split, sorted by file name.
        annotations: by image id; an image without an object is absent.
    """

    categories: list[tuple[int, str]]
    images: list[ImageEntry]
    annotations: dict[int, list[Annotation]] = field(default_factory=dict)


class CocoDataset(Dataset):
    """One split of COCO.

    Sample.id is the file name without its ending, such as COCO_train2014_000000000009.
    """

    labels: Labels = "masks"

    def __init__(
        self,
        root: str | Path,
        split: str,
        count: int | None = None,
        *,
        agnostic: bool = False,
        whole: bool = True,
    ):
        """Open a split.

        Args:
            root: the folder that the archives were unpacked in.
            split: one of SPLITS.
            count: only the first `count` images; None for all.
            agnostic: all objects are of one class, "object".
            whole: ask whether every image is there.

        Raises:
            ValueError: for an unknown split, a broken list, or a count that is too large.
            FileNotFoundError: where the data is missing.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown coco split {split!r}; expected one of {sorted(SPLITS)}")
        year = "val2017" if split == "val2017" else "train2014"
        self.name, self.split, self.folder = "coco", split, find_images(root, year)
        list_path = Path(root) / LIST
        inside = read_ids(list_path) if split in ("coco20k", "dev") else set()
        wanted: dict[str, Callable[[int], bool]] = {
            "coco20k": inside.__contains__,
            "dev": lambda i: i % DEV_EVERY == 0 and i not in inside,
        }
        self.index = read_index(
            Path(root) / "annotations" / f"instances_{year}.json",
            wanted=wanted.get(split, lambda _: True),
        )
        unknown = (
            inside - {image["id"] for image in self.index.images} if split == "coco20k" else set()
        )
        if unknown:
            raise ValueError(
                f"{list_path}: {len(unknown)} of its images are not in instances_{year}.json, "
                f"such as id {min(unknown)}"
            )
        if count is not None and count > len(self.index.images):
            raise ValueError(
                f"coco {split} has {len(self.index.images)} images, {count} were asked for"
            )
        self.images = self.index.images[:count]
        self.ids = tuple(Path(image["file_name"]).stem for image in self.images)
        names = ["object"] if agnostic else [name for _, name in self.index.categories]
        self.classes = ("background", *names)
        self.label_of = {
            id_: 1 if agnostic else 1 + i for i, (id_, _) in enumerate(self.index.categories)
        }
        if whole:
            check_exist(
                [self.folder / image["file_name"] for image in self.images], what=f"coco {split}"
            )

    def __getitem__(self, i: int) -> Sample:
        """Image i with all its labels."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        instances = self.instances(i)  # decoded once, not again for the semantic map
        return Sample(self.ids[i], self.image(i), paint(instances, self.size(i)), instances)

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of image i, as the JSON says."""
        return self.images[i]["height"], self.images[i]["width"]

    def image(self, i: int) -> np.ndarray:
        """Image i, (H, W, 3) uint8 RGB; ImageError for another size than the JSON says."""
        path = self.folder / self.images[i]["file_name"]
        image = read_image(path)
        if image.shape[:2] != self.size(i):
            raise ImageError(f"{path}: {image.shape[:2]}, its annotation says {self.size(i)}")
        return image

    def semantic(self, i: int) -> np.ndarray:
        """Class indices of image i, (H, W) uint8, painted by `paint`."""
        return paint(self.instances(i), self.size(i))

    def instances(self, i: int) -> Instances:
        """The objects and crowds of image i, in the order of the JSON.

        Raises:
            ImageError: for an outline that cannot be read.
        """
        entry, size = self.images[i], self.size(i)
        masks, labels, crowds = [], [], []
        for annotation in self.index.annotations.get(entry["id"], ()):
            try:
                mask = Mask.from_coco(
                    {"segmentation": json.loads(annotation.outline)},
                    image_id=self.ids[i],
                    image_hw=size,
                ).pixels()
                label = self.label_of[annotation.category]
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise ImageError(
                    f"{entry['file_name']}: an annotation cannot be read ({error!r})"
                ) from None
            if annotation.crowd:
                crowds.append(mask)
            elif mask.any():
                masks.append(mask)
                labels.append(label)
        none = np.zeros((0, *size), bool)
        return Instances(
            np.stack(masks) if masks else none,
            np.array(labels, np.int64),
            crowds=np.stack(crowds) if crowds else none,
        )


def find_images(root: str | Path, year: str) -> Path:
    """Find the images of a year, "train2014" or "val2017".

    Returns:
        root/<year> or root/images/<year>.

    Raises:
        FileNotFoundError: where there is neither.
    """
    for folder in (Path(root) / year, Path(root) / "images" / year):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"no {year} at {root}: expected {Path(root) / year}. Fetch it with "
        'mdlib.data.download.fetch_dataset("coco", root), '
        "or give the folder that holds annotations and images"
    )


def read_ids(path: Path) -> set[int]:
    """Read the image ids of a list of file names: the number at the end of each.

    Raises:
        ValueError: for a line without one, and for an empty list.
    """
    lines = read_list(path)
    found = [match for line in lines if (match := re.search(r"(\d+)(\.\w+)?$", line))]
    if len(found) < len(lines) or not lines:
        raise ValueError(
            f"{path}: expected a file name such as train2014/COCO_train2014_000000000009.jpg "
            "in each line"
        )
    return {int(match[1]) for match in found}


def read_index(path: Path, *, wanted: Callable[[int], bool]) -> Index:
    """Read the images with a wanted id and their annotations.

    Annotations are packed while the JSON is parsed, others are dropped, so that the whole of it
    (600,000 outlines for train2014) never stands in memory as Python objects.

    Args:
        path: a JSON file of COCO's instance annotations.
        wanted: whether the image of an id is kept.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file that is broken or of another form.
    """
    annotations: dict[int, list[Annotation]] = {}

    def pack(entry: dict[str, Any]) -> dict[str, Any] | None:
        if "segmentation" not in entry or "image_id" not in entry:
            return entry
        if wanted(entry["image_id"]):
            outline = json.dumps(entry["segmentation"]).encode()
            annotations.setdefault(entry["image_id"], []).append(
                Annotation(entry["category_id"], bool(entry.get("iscrowd", 0)), outline)
            )
        return None

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=pack)
        categories = sorted((c["id"], c["name"]) for c in content["categories"])
        images = [
            ImageEntry(
                id=image["id"],
                file_name=image["file_name"],
                height=image["height"],
                width=image["width"],
            )
            for image in content["images"]
            if wanted(image["id"])
        ]
    except FileNotFoundError:
        raise FileNotFoundError(f"the annotations {path} are missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a whole file of COCO's instance annotations ({error!r})"
        ) from None
    return Index(categories, sorted(images, key=lambda image: image["file_name"]), annotations)


def paint(instances: Instances, image_hw: tuple[int, int]) -> np.ndarray:
    """Paint the semantic map of objects that may overlap.

    Args:
        instances: with masks; crowds become void where no object covers them.
        image_hw: (H, W) of the image.

    Returns:
        (H, W) uint8: objects from large to small, the later of two equals in front.
    """
    semantic = np.zeros(image_hw, np.uint8)
    semantic[instances.crowds.any(0)] = VOID
    for i in np.argsort(-instances.masks.sum((1, 2)), kind="stable"):
        semantic[instances.masks[i]] = instances.labels[i]
    return semantic
