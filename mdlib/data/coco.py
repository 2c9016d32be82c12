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
void where no object covers them. An outline so thin that it covers no pixel is left out, of
objects and of crowds.

Numbers may be written as text ("7"). Annotations of no image, of no known category, without an
outline, without image_id or category_id, and of one id are counted when a split is opened, and some
are named. A file none of whose annotations can be used is refused: one of boxes alone, which are no
labels here, or a panoptic one.

Pictures are read as they are stored, not turned by EXIF, because COCO's outlines were drawn so;
where the JSON gives the sides of the turned picture, it is turned (`images.lies_turned`).

A JSON file is read once and not kept: an opened split holds the outlines of its own images, as JSON
text, about a kilobyte an object (150 MB for COCO20k). Reading all of train2014's takes half a
minute.

[1] Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014.
[2] Vo et al., Toward unsupervised, multi-object discovery in large-scale image collections, ECCV
2020; the list as Simeoni et al., LOST, BMVC 2021, publish it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, TypedDict

import numpy as np

from mdlib.core.mask import Mask
from mdlib.data.dataset import Dataset, Labels
from mdlib.data.images import ImageError, lies_turned, read_image
from mdlib.data.listing import check_count, check_exist, check_unique, preview, read_list
from mdlib.data.names import make_ids, shown
from mdlib.data.sample import VOID, Instances, Sample

COUNTS = {"train2014": 82783, "val2017": 5000, "coco20k": 19817}  # images, as published
SPLITS = (*COUNTS, "dev")
THINGS = 80
LIST = "coco_20k_filenames.txt"
DEV_EVERY = 100
NAMELESS = "without an id"  # in messages
_PACKED = object()  # stands where an annotation stood that was packed


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object as the JSON gives it.

    Attributes:
        name: its id, for messages.
        category: its category id.
        crowd: COCO's iscrowd.
        outline: its segmentation, polygons or RLE, as JSON text.
    """

    name: str
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
        problems: a sentence for each kind of annotation that cannot be used.
    """

    categories: list[tuple[int, str]]
    images: list[ImageEntry]
    annotations: dict[int, list[Annotation]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class CocoDataset(Dataset):
    """One split of COCO.

    Sample.id is the file name without its ending, such as COCO_train2014_000000000009.

    Attributes:
        problems: a sentence for each kind of annotation that cannot be used; printed at opening.
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
            whole: ask whether every image is there, and print the problems of its annotations.

        Raises:
            ValueError: for an unknown split, a broken list, an image that is there twice, a file
                name that leaves the folder, annotations without an outline among them, or a count
                that the split does not have.
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
        path = Path(root) / "annotations" / f"instances_{year}.json"
        self.index = read_index(path, wanted=wanted.get(split, lambda _: True))
        self.lists = [path, list_path] if split in wanted else [path]
        unknown = (
            inside - {image["id"] for image in self.index.images} if split == "coco20k" else set()
        )
        if unknown:
            raise ValueError(
                f"{list_path}: {len(unknown)} of its images are not in instances_{year}.json, "
                f"such as id {min(unknown)}"
            )
        files = [Path(image["file_name"]).name for image in self.index.images]
        check_unique([Path(file).stem for file in files], what=f"coco {split}")
        check_count(count, len(files), what=f"coco {split}")
        self.images, self.problems = self.index.images[:count], self.index.problems
        self.ids = tuple(make_ids(files)[:count])
        names = ["object"] if agnostic else [name for _, name in self.index.categories]
        if len(names) >= VOID:
            raise ValueError(f"coco {split}: {len(names)} categories, {VOID - 1} are the most")
        self.classes = ("background", *names)
        self.label_of = {
            id_: 1 if agnostic else 1 + i for i, (id_, _) in enumerate(self.index.categories)
        }
        if whole:
            check_exist(
                [self.folder / image["file_name"] for image in self.images], what=f"coco {split}"
            )
            for problem in self.problems:
                print(problem)

    def sources(self) -> list[Path]:
        """The JSON file, the list of COCO20k where it is read, and the images."""
        images = [self.folder / image["file_name"] for image in self.images]
        return [path.absolute() for path in (*self.lists, *images)]

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
        image = read_image(path, turned=lies_turned(path, self.size(i)))
        if image.shape[:2] != self.size(i):
            raise ImageError(
                f"{shown(path)}: {image.shape[:2]}, its annotation says {self.size(i)}"
            )
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
            except Exception as error:  # whatever the decoder of outlines raises
                raise ImageError(
                    f"{shown(entry['file_name'])}: annotation {annotation.name} cannot be read "
                    f"({error!r})"
                ) from None
            if annotation.category not in self.label_of:
                raise ImageError(
                    f"{shown(entry['file_name'])}: annotation {annotation.name} has the unknown "
                    f"category {annotation.category}"
                )
            if not mask.any():
                continue
            if annotation.crowd:
                crowds.append(mask)
            else:
                masks.append(mask)
                labels.append(self.label_of[annotation.category])
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
        ValueError: for a file that is broken or of another form; for a number that is none, with
            the id of its annotation; for an image or a category that is there twice; for a file
            name that leaves the folder; for two categories of one name; where no annotation has an
            outline, or each lacks image_id or category_id.
    """
    annotations: dict[int, list[Annotation]] = {}
    bare: list[str] = []  # names of wanted annotations without an outline
    others: Counter[int] = Counter()  # ids of images that are not wanted, or not there

    def pack(entry: dict[str, Any]) -> object:
        if "category_id" not in entry or "image_id" not in entry:
            return entry
        name = _name_of(entry)
        image, category, crowd = (
            _whole_number(entry.get(key, 0), f"{key} of annotation {name}")
            for key in ("image_id", "category_id", "iscrowd")
        )
        if crowd not in (0, 1):
            raise _Refused(f"iscrowd of annotation {name} is {crowd}, neither 0 nor 1")
        if not wanted(image):
            others[image] += 1
        elif entry.get("segmentation") in (None, []):
            bare.append(name)
        else:
            outline = json.dumps(entry["segmentation"]).encode()
            annotations.setdefault(image, []).append(
                Annotation(name, category, bool(crowd), outline)
            )
        return _PACKED

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=pack)
        categories = sorted(
            (_whole_number(c["id"], "the id of a category"), shown(c["name"]))
            for c in content["categories"]
        )
        images = [_image_entry(image) for image in content["images"]]
        if not isinstance(content["annotations"], list):
            raise _Refused(f"its annotations are {content['annotations']!r:.40}, no list")
        strange = [entry for entry in content["annotations"] if entry is not _PACKED]
        if strange and len(strange) == len(content["annotations"]):
            raise _Refused(
                f"not one of {len(strange)} annotations has image_id and category_id: expected "
                "COCO's instance annotations, not panoptic ones or captions"
            )
    except FileNotFoundError:
        raise FileNotFoundError(f"the annotations {path} are missing") from None
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a whole file of COCO's instance annotations ({error!r})"
        ) from None
    for values, what, key in (
        ([image["id"] for image in images], "images", "id"),
        ([number for number, _ in categories], "categories", "id"),
        ([name for _, name in categories], "categories", "name"),
    ):
        if twice := [value for value, times in Counter(values).items() if times > 1]:
            raise ValueError(
                f"{path}: {len(twice)} {what} are there twice: {key} {preview(map(str, twice))}"
            )
    if bare and not annotations:
        raise ValueError(
            f"{path}: not one of {len(bare)} annotations has an outline (segmentation): "
            "boxes alone are no labels here"
        )
    there = {image["id"] for image in images}
    strays = {number: others[number] for number in others.keys() - there}
    strays |= {number: len(annotations.pop(number)) for number in annotations.keys() - there}
    known = {number for number, _ in categories}
    kept = [annotation for found in annotations.values() for annotation in found]
    unknown = [a for a in kept if a.category not in known]
    times = Counter(a.name for a in kept if a.name != NAMELESS)
    shared = {name: number for name, number in times.items() if number > 1}
    told = (
        (bare, len(bare), "annotations have no outline and are left out: id"),
        (strays, sum(strays.values()), "annotations are of no image: image_id"),
        (
            [_name_of(entry) for entry in strange],
            len(strange),
            "annotations lack image_id or category_id and are left out: id",
        ),
        (shared, sum(shared.values()), "annotations have the id of another one, all count: id"),
        ([a.name for a in unknown], len(unknown), "annotations are of no known category: id"),
    )
    return Index(
        categories,
        sorted((i for i in images if wanted(i["id"])), key=lambda image: image["file_name"]),
        annotations,
        [
            f"{path.name}: {number:,} {what} {preview(map(str, names))}"
            for names, number, what in told
            if number
        ],
    )


def _name_of(entry: object) -> str:
    """The id of an annotation, for messages."""
    return str(entry.get("id", NAMELESS)) if isinstance(entry, dict) else NAMELESS


class _Refused(ValueError):
    """A value in a JSON file that cannot be taken for what it stands for."""


def _whole_number(value: object, what: str) -> int:
    """A whole number, also one that is written as text or with a point."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value):
        return int(value)
    raise _Refused(f"{what} is {value!r}, expected a whole number")


def _image_entry(image: dict[str, Any]) -> ImageEntry:
    """What is kept of an image's entry, of the right types."""
    name = image["file_name"]
    number, height, width = (
        _whole_number(image[key], f"{key} of image {name!r}") for key in ("id", "height", "width")
    )
    # as every machine reads it: with both kinds of slashes, and with drives
    place = PureWindowsPath(name)
    if place.anchor or ".." in place.parts or not place.name:
        raise _Refused(f"the file name {name!r} of image {number} leaves the folder of the images")
    if min(height, width) < 1:
        raise _Refused(f"image {name!r} has {width} x {height} pixels")
    return ImageEntry(id=number, file_name=name, height=height, width=width)


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
