"""PASCAL VOC 2012 with the SBD labels, and PASCAL VOC 2007, as their publishers' archives unpack.

    ROOT/VOCdevkit/VOC2012/{JPEGImages, SegmentationClass, SegmentationObject, Annotations,
                            ImageSets}
    ROOT/benchmark_RELEASE/dataset/{cls, inst, train.txt, val.txt}    (SBD; for trainaug and fit)
    ROOT/VOCdevkit/VOC2007/{JPEGImages, Annotations, ImageSets}

ROOT may also be a VOCdevkit folder, or a VOC2012 or VOC2007 folder in one; SBD is then looked for
beside VOCdevkit.

Splits of VOC 2012. Choices are made on dev, which is a part of VOC's train, never of val:
    train      1,464 images of ImageSets/Segmentation/train.txt
    val        1,449 images of val.txt
    instances  2,913 images: both, for mask AP
    trainaug  10,582 images: train and all of SBD, less val [2]. A label map is VOC's where VOC has
                             one, else SBD's (no void)
    dev          147 images: every tenth of train, by name
    fit       10,435 images: trainaug without dev, for whoever trains on labels and chooses on dev
    boxes     11,540 images of ImageSets/Main/trainval.txt, boxes alone: CorLoc
Splits of VOC 2007, boxes alone: train 2,501, val 2,510, trainval 5,011 (the support set; CorLoc),
test 4,952.

Objects of VOC and SBD have masks. Boxes are those drawn in the XML, difficult and truncated objects
included, as in the published CorLoc tables; VOC counts pixels from 1 and includes both ends, so x0
= xmin - 1 and x1 = xmax [3].

[1] Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010 and 2015.
[2] Hariharan et al., Semantic Contours from Inverse Detectors, ICCV 2011; the union is Chen et al.,
DeepLab, 2018.
[3] VOC development kit 2012, section on annotations; Simeoni et al., LOST, BMVC 2021, for what
counts as an object.
"""

import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from mdlib.data.dataset import Dataset
from mdlib.data.images import ImageError, image_size, read_image, read_true_labels
from mdlib.data.listing import check_count, check_exist, check_unique, read_list
from mdlib.data.sample import VOID, Instances, Sample

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
COUNTS = {  # images of each split, as published
    2012: {
        "train": 1464,
        "val": 1449,
        "instances": 2913,
        "trainaug": 10582,
        "dev": 147,
        "fit": 10435,
        "boxes": 11540,
    },
    2007: {"train": 2501, "val": 2510, "trainval": 5011, "test": 4952},
}
NAMES = {2012: r"\d{4}_\d{6}", 2007: r"\d{6}"}  # how the images of a year are called
DEV_EVERY = 10


class VocDataset(Dataset):
    """One split of VOC 2012 or 2007; Sample.id is VOC's name of the image, such as 2007_000033."""

    classes = CLASSES

    def __init__(
        self,
        root: str | Path,
        split: str,
        count: int | None = None,
        *,
        year: int,
        whole: bool = True,
    ):
        """Open a split.

        Args:
            root: as the head of this module tells.
            split: one of COUNTS[year].
            count: only the first `count` images; None for all.
            year: 2012 or 2007.
            whole: ask whether every file of the split is there; `checks.check_dataset` reads them.

        Raises:
            ValueError: for an unknown split, a broken list, an image that is listed twice, or a
                count that the split does not have.
            FileNotFoundError: where the data is missing.
        """
        self.name, self.split = f"voc{year}", split
        self.folder, self.sbd = find_devkit(root, year), find_sbd(root)
        names = list_split(self.folder, self.sbd, split, year=year)
        check_unique(names, what=f"{self.name} {split}")
        check_count(count, len(names), what=f"{self.name} {split}")
        self.ids = tuple(names[:count])
        self.lists = split_lists(self.folder, self.sbd, split, year=year)
        self.labels = "boxes" if year == 2007 or split == "boxes" else "masks"
        # Only trainaug and fit hold images that VOC itself has no label map for.
        self.by_sbd: set[str] = set()
        if split in ("trainaug", "fit"):
            self.by_sbd = set(names) - set(read_list(segmentation_list(self.folder, "train")))
        if whole:
            check_exist(self.sources()[len(self.lists) :], what=f"{self.name} {split}")

    def __getitem__(self, i: int) -> Sample:
        """Image i with all its labels."""
        if self.labels == "boxes" or not 0 <= i < len(self):
            return super().__getitem__(i)
        semantic = self.semantic(i)  # read once, not again for the classes of the objects
        return Sample(self.ids[i], self.image(i), semantic, self._objects(i, semantic))

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of image i, from its header."""
        return image_size(self.image_path(self.ids[i]), turned=False)

    def image(self, i: int) -> np.ndarray:
        """Image i, (H, W, 3) uint8 RGB, as it is stored: so lie its labels."""
        return read_image(self.image_path(self.ids[i]), turned=False)

    def sources(self) -> list[Path]:
        """The lists of the split, its images, and their label files."""
        return [
            *self.lists,
            *(p for name in self.ids for p in (self.image_path(name), *self.label_paths(name))),
        ]

    def semantic(self, i: int) -> np.ndarray:
        """Class indices of image i, (H, W) uint8; NoLabels where there are boxes alone."""
        if self.labels == "boxes":
            return super().semantic(i)
        path = self.label_paths(self.ids[i])[0]
        if path.suffix == ".png":
            return read_true_labels(path, image_hw=self.size(i), num_classes=len(CLASSES))
        semantic = read_mat(path, "GTcls", self.size(i))
        if semantic.max() >= len(CLASSES):
            raise ImageError(
                f"{path}: unknown label {semantic.max()}; expected 0..{len(CLASSES) - 1}"
            )
        return semantic

    def instances(self, i: int) -> Instances:
        """Objects of image i: with masks, or with drawn boxes where there are boxes alone."""
        if self.labels == "boxes":
            return read_boxes(self.label_paths(self.ids[i])[0], self.size(i))
        return self._objects(i, self.semantic(i))

    def _objects(self, i: int, semantic: np.ndarray) -> Instances:
        """The objects of image i, their classes by its semantic map (H, W)."""
        path, (height, width) = self.label_paths(self.ids[i])[1], semantic.shape
        if path.suffix == ".png":
            objects = read_true_labels(path, image_hw=(height, width), num_classes=VOID)
        else:
            objects = read_mat(path, "GTinst", (height, width))
        return split_objects(semantic, objects, source=path)

    def image_path(self, name: str) -> Path:
        """The file of an image."""
        return self.folder / "JPEGImages" / f"{name}.jpg"

    def label_paths(self, name: str) -> tuple[Path, ...]:
        """The files that hold an image's labels."""
        if self.labels == "boxes":
            return (self.folder / "Annotations" / f"{name}.xml",)
        if name in self.by_sbd:
            return self.sbd / "cls" / f"{name}.mat", self.sbd / "inst" / f"{name}.mat"
        return (
            self.folder / "SegmentationClass" / f"{name}.png",
            self.folder / "SegmentationObject" / f"{name}.png",
        )


def find_devkit(root: str | Path, year: int) -> Path:
    """Find the folder VOC<year>.

    Args:
        root: a folder above it, a VOCdevkit, or that folder itself.
        year: 2012 or 2007.

    Raises:
        FileNotFoundError: where there is none; it names the years that are there.
    """
    root, name = Path(root).absolute(), f"VOC{year}"
    for folder in (root / "VOCdevkit" / name, root / name, root):
        if folder.name == name and folder.is_dir():
            return folder
    others = sorted(
        {
            p.name
            for base in (root / "VOCdevkit", root, root.parent)
            for p in base.glob("VOC2*")
            if p.is_dir()
        }
    )
    raise FileNotFoundError(
        f"no {name} at {root}: expected {root / 'VOCdevkit' / name}"
        + (f"; found another year: {', '.join(others)}" if others else "")
        + f'. Fetch it with mdlib.data.download.fetch_dataset("voc{year}", root), '
        "or give the folder of a VOCdevkit"
    )


def find_sbd(root: str | Path) -> Path:
    """Find where SBD lies or is expected.

    That is benchmark_RELEASE/dataset under root, or beside the VOCdevkit that root is or is in.
    """
    root = Path(root).absolute()
    places = [
        base / "benchmark_RELEASE" / "dataset" for base in (root, root.parent, root.parent.parent)
    ]
    return next((place for place in places if place.is_dir()), places[0])


def segmentation_list(folder: Path, split: str) -> Path:
    """The list of a split of the segmentation task, "train" or "val"."""
    return folder / "ImageSets" / "Segmentation" / f"{split}.txt"


def split_lists(folder: Path, sbd: Path, split: str, *, year: int) -> list[Path]:
    """The files of names that `list_split` reads."""
    if year == 2007 or split == "boxes":
        return [folder / "ImageSets" / "Main" / f"{'trainval' if split == 'boxes' else split}.txt"]
    if split in ("train", "val"):
        return [segmentation_list(folder, split)]
    if split == "dev":
        return [segmentation_list(folder, "train")]
    both = [segmentation_list(folder, part) for part in ("train", "val")]
    return both if split == "instances" else [*both, sbd / "train.txt", sbd / "val.txt"]


def list_split(folder: Path, sbd: Path, split: str, *, year: int) -> list[str]:
    """List the names of the images of a split, sorted.

    Args:
        folder: VOC<year>, see `find_devkit`.
        sbd: see `find_sbd`; read for trainaug and fit alone.
        split: one of COUNTS[year].
        year: 2012 or 2007.

    Raises:
        ValueError: for an unknown split, or names of another year.
        FileNotFoundError: for a list that is missing.
    """
    if split not in COUNTS[year]:
        raise ValueError(
            f"unknown voc{year} split {split!r}; expected one of {sorted(COUNTS[year])}"
        )
    lists = [read_list(path) for path in split_lists(folder, sbd, split, year=year)]
    if split == "dev":
        names = sorted(lists[0])[::DEV_EVERY]
    elif split in ("trainaug", "fit"):
        train, val, *of_sbd = lists
        dev = sorted(train)[::DEV_EVERY] if split == "fit" else []
        names = list(set(train).union(*of_sbd) - {*val, *dev})
    else:
        names = [name for listed in lists for name in listed]
    wrong = [name for name in names if not re.fullmatch(NAMES[year], name)]
    if wrong:
        raise ValueError(
            f"{folder} lists {wrong[0]!r}, which is no name of VOC {year}: is it another year?"
        )
    return sorted(names)


def read_boxes(path: Path, image_hw: tuple[int, int]) -> Instances:
    """Read the drawn boxes of a VOC XML file, cut at the image.

    Args:
        path: the file.
        image_hw: (H, W) of the image.

    Raises:
        ImageError: for a file that is missing, broken, or holds an unknown class, and for a box
            that is empty or outside the image.
    """
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
        labels = np.array([CLASSES.index(_text(o, "name").strip()) for o in objects], np.int64)
        ends = [
            [float(_text(o, f"bndbox/{end}")) for end in ("xmin", "ymin", "xmax", "ymax")]
            for o in objects
        ]
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise ImageError(f"{path}: not an annotation of VOC ({error})") from None
    height, width = image_hw
    boxes = np.array(ends, np.float64).reshape(-1, 4) - [1, 1, 0, 0]
    boxes = boxes.clip(0, [width, height, width, height])
    if not (boxes[:, :2] < boxes[:, 2:]).all():
        raise ImageError(
            f"{path}: a box is empty or outside its image of {width} x {height} pixels"
        )
    return Instances(None, labels, drawn_boxes=boxes)


def _text(element: ElementTree.Element, path: str) -> str:
    """The text of the first element at a path, or ValueError."""
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"{path} is missing")
    return text


def read_mat(path: Path, key: str, image_hw: tuple[int, int]) -> np.ndarray:
    """Read the field Segmentation of an SBD file.

    Args:
        path: the file.
        key: "GTcls" for classes, "GTinst" for objects.
        image_hw: (H, W) of the image.

    Returns:
        (H, W) uint8.

    Raises:
        ImageError: for a file that is missing, broken, or of another size than the image.
    """
    try:
        values = np.asarray(loadmat(path, variable_names=[key])[key]["Segmentation"][0, 0])
    except (
        MatReadError,
        OSError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        NotImplementedError,
        zlib.error,
    ) as error:
        raise ImageError(
            f"{path}: not a whole SBD file with {key}.Segmentation ({error})"
        ) from None
    if values.shape != tuple(image_hw):
        raise ImageError(f"{path}: the label map is {values.shape}, its image {tuple(image_hw)}")
    return values.astype(np.uint8)


def split_objects(semantic: np.ndarray, objects: np.ndarray, *, source: Path) -> Instances:
    """Make masks of an object map.

    An object's class is the one that most of its pixels have in the semantic map.

    Args:
        semantic: (H, W) uint8 class indices, 0 background, 255 void.
        objects: (H, W) uint8: 1, 2, ... objects, 0 background, 255 void.
        source: the file of the object map, for the message.

    Raises:
        ImageError: for an object that has no class.
    """
    masks, labels = [], []
    for value in np.setdiff1d(np.unique(objects), [0, VOID]):
        mask = objects == value
        votes = np.bincount(semantic[mask], minlength=VOID + 1)[1 : len(CLASSES)]
        if not votes.any():
            raise ImageError(f"{source}: object {value} has no class in the semantic map")
        masks.append(mask)
        labels.append(1 + int(votes.argmax()))
    return Instances(
        np.stack(masks) if masks else np.zeros((0, *objects.shape), bool),
        np.array(labels, np.int64),
    )
