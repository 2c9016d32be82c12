"""Miniature data sets in the true folder layout and file formats, made from zoo scenes.

Written below a test's tmp_path.

Their pictures are the zoo's, and the zoo's twenty classes stand for VOC's and for COCO's first
twenty.
"""

import json
from collections import Counter
from pathlib import Path

import contourpy
import numpy as np
import torch
from PIL import Image
from scipy import ndimage, sparse
from scipy.io import savemat
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from mdlib.core.files import write_text
from mdlib.core.label_map import write_label_map
from mdlib.core.mask import Mask, encode_mask, mask_to_box
from mdlib.data.dataset import Dataset
from mdlib.data.sample import VOID, Instances, Sample
from mdlib.data.voc import CLASSES
from mdlib.data.zoo import ZooDataset
from mdlib.method.detector import build_detector

# by category id, "N/A" where COCO has none
COCO_NAMES = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
BLOB_SIDE = 64  # pixels of the pictures of `blobs`


class Samples(Dataset):
    """Samples in memory as a data set; `asked` counts what was decoded, (what, index) by times."""

    name = "samples"

    def __init__(self, samples, *, classes=("background", "thing")):
        self.samples, self.classes, self.asked = list(samples), classes, Counter()
        self.ids = tuple(sample.id for sample in self.samples)
        kinds = {(s.semantic is not None, s.instances is not None) for s in self.samples}
        boxes = any(s.instances is not None and not s.instances.has_masks for s in self.samples)
        full = {(True, True): "masks", (True, False): "maps", (False, True): "boxes"}
        self.labels = "boxes" if boxes else full.get(min(kinds, default=()), "none")

    def _give(self, what: str, i: int):
        self.asked[what, i] += 1
        return getattr(self.samples[i], what)

    def size(self, i: int) -> tuple[int, int]:
        return self.samples[i].image.shape[:2]

    def image(self, i: int) -> np.ndarray:
        return self._give("image", i)

    def semantic(self, i: int) -> np.ndarray:
        return self._give("semantic", i)

    def instances(self, i: int) -> Instances:
        return self._give("instances", i)


def blobs(count=3, *, height=BLOB_SIDE, width=BLOB_SIDE, seed=0):
    """Grey noise with one bright rectangle an image, and its mask: (scenes, masks of clusters 0, 1,
    2, 0, ...).
    """
    rng = np.random.default_rng(seed)
    samples, masks = [], []
    for i in range(count):
        mask = np.zeros((height, width), bool)
        y, x = rng.integers(2, height // 3), rng.integers(2, width // 3)
        mask[y : y + height // 2, x : x + width // 3] = True
        image = rng.integers(60, 100, (height, width, 3)).astype(np.uint8)
        image[mask, i % 3] = 230
        samples.append(Sample(f"scene_{i}", image))
        masks.append(Mask.from_pixels(mask, image_id=f"scene_{i}", cluster=i % 3))
    return Samples(samples), masks


def tiny_detector(*, clusters=3, side=BLOB_SIDE, trainable=0, weights=None):
    torch.manual_seed(0)
    return build_detector(
        "vit",
        weights=weights,
        trainable_blocks=trainable,
        num_clusters=clusters,
        shorter_sides=(side,),
    )


def scenes(zoo_root: Path, split: str, count: int, *, start: int = 0):
    """(image, masks, labels) of zoo scenes as photographs are: two of three cut to a landscape or
    portrait format.

    Only what is left of an object with 60 pixels or more stays one.
    """
    data = ZooDataset(zoo_root, split, start + count)
    for i in range(start, start + count):
        sample = data[i]
        window = [np.s_[16:112, :], np.s_[:, 20:112], np.s_[:, :]][i % 3]
        masks = (
            sample.instances.masks[(slice(None), *window)]
            if isinstance(window, tuple)
            else sample.instances.masks
        )
        kept = masks.sum((1, 2)) >= 60
        yield sample.image[window], masks[kept], sample.instances.labels[kept]


def write_jpeg(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def write_lines(path: Path, lines: list[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))


# ---------------------------------------------------------------- VOC


def label_maps(
    masks: np.ndarray, labels: np.ndarray, *, void: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(semantic map, object map) (H, W) uint8, with VOC's band of void around each object or, as
    SBD's, without.
    """
    semantic, objects = np.zeros((2, *masks.shape[1:]), np.uint8)
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True), 1):
        semantic[mask], objects[mask] = label, number
    for mask in masks if void else ():
        band = ndimage.binary_dilation(mask, iterations=2) & ~ndimage.binary_erosion(mask)
        semantic[band], objects[band] = VOID, VOID
    return semantic, objects


def write_xml(path: Path, masks: np.ndarray, labels: np.ndarray, *, folder: str) -> None:
    height, width = masks.shape[1:]
    objects = ""
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        x0, y0, x1, y1 = mask_to_box(mask)
        objects += (
            f"<object><name>{CLASSES[label]}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{number % 2}</difficult>"
            f"<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
            "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
        )
    write_text(
        path,
        f"<annotation><folder>{folder}</folder><filename>{path.stem}.jpg</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size><segmented>1</segmented>{objects}</annotation>\n",
    )


def write_mats(
    folder: Path, name: str, semantic: np.ndarray, objects: np.ndarray, labels: np.ndarray
) -> None:
    """cls/NAME.mat and inst/NAME.mat with the structures of SBD."""
    borders = np.empty((20, 1), object)  # a column of sparse matrices, one a class
    borders[:, 0] = [sparse.csc_matrix(semantic == label) for label in range(1, 21)]
    present = np.unique(semantic[semantic > 0]).reshape(-1, 1)
    classes = {"Boundaries": borders, "Segmentation": semantic, "CategoriesPresent": present}
    instances = {
        "Boundaries": borders[: len(labels)],
        "Segmentation": objects,
        "Categories": labels.reshape(-1, 1),
    }
    for kind, key, content in (("cls", "GTcls", classes), ("inst", "GTinst", instances)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        savemat(folder / kind / f"{name}.mat", {key: content}, do_compression=True)


def make_voc2012(
    root: Path, zoo_root: Path, *, train: int = 11, val: int = 4, extra: int = 5
) -> Path:
    """VOCdevkit/VOC2012 and benchmark_RELEASE under root. extra: images with SBD labels alone.

    Returns root.

    As in the real ones, SBD's lists also hold an image of VOC's train and two of VOC's val.
    """
    folder, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    names = {
        "train": [f"2007_{i:06d}" for i in range(train)],
        "val": [f"2008_{i:06d}" for i in range(val)],
    }
    names["extra"] = [f"2009_{i:06d}" for i in range(extra)]
    in_sbd = {*names["extra"], names["train"][0], *names["val"][:2]}
    content = {"train": scenes(zoo_root, "train", train), "val": scenes(zoo_root, "val", val)}
    content["extra"] = scenes(zoo_root, "train", extra, start=train)
    for part, listed in names.items():
        for name, (image, masks, labels) in zip(listed, content[part], strict=True):
            write_jpeg(folder / "JPEGImages" / f"{name}.jpg", image)
            write_xml(folder / "Annotations" / f"{name}.xml", masks, labels, folder="VOC2012")
            if name in in_sbd:
                write_mats(sbd, name, *label_maps(masks, labels, void=False), labels)
            if part != "extra":
                semantic, objects = label_maps(masks, labels, void=True)
                write_label_map(folder / "SegmentationClass" / f"{name}.png", semantic)
                write_label_map(folder / "SegmentationObject" / f"{name}.png", objects)
    for part in ("train", "val"):
        write_lines(folder / "ImageSets" / "Segmentation" / f"{part}.txt", names[part])
    write_lines(
        folder / "ImageSets" / "Segmentation" / "trainval.txt", names["train"] + names["val"]
    )
    write_lines(
        folder / "ImageSets" / "Main" / "trainval.txt",
        sorted(name for listed in names.values() for name in listed),
    )
    write_lines(sbd / "train.txt", [*names["extra"][:-2], names["train"][0], names["val"][0]])
    write_lines(sbd / "val.txt", [*names["extra"][-2:], names["val"][1]])
    return root


def make_voc2007(root: Path, zoo_root: Path, *, trainval: int = 4, test: int = 2) -> Path:
    """VOCdevkit/VOC2007 under root, with boxes alone. Returns root."""
    folder = root / "VOCdevkit" / "VOC2007"
    names = [f"{i:06d}" for i in range(1, trainval + test + 1)]
    for name, (image, masks, labels) in zip(
        names, scenes(zoo_root, "train", trainval + test, start=50), strict=True
    ):
        write_jpeg(folder / "JPEGImages" / f"{name}.jpg", image)
        write_xml(folder / "Annotations" / f"{name}.xml", masks, labels, folder="VOC2007")
    lists = {
        "trainval": names[:trainval],
        "train": names[: trainval // 2],
        "val": names[trainval // 2 : trainval],
        "test": names[trainval:],
    }
    for split, listed in lists.items():
        write_lines(folder / "ImageSets" / "Main" / f"{split}.txt", listed)
    return root


# ---------------------------------------------------------------- COCO


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of a mask as COCO's annotators draw them: one polygon [x, y, x, y, ...] a part, with
    two decimals.
    """
    lines = contourpy.contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    return [(line[:-1] - 0.5).clip(0).round(2).ravel().tolist() for line in lines if len(line) > 3]


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed RLE counts, as COCO's crowds have: lengths of runs down the columns, beginning
    with zeros.
    """
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [2]])
    return np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat))])).tolist()


def make_coco(root: Path, zoo_root: Path, *, train: int = 8, val: int = 4) -> Path:
    """annotations, train2014, val2017 and the list of COCO20k under root. Returns root.

    Every third object is given as compressed RLE, the others as polygons. The left half of the
    third image of a split is a crowd, the fourth has no object. The last two images of train2014
    are not in COCO20k, and one of these is in dev.
    """
    categories = [
        {"id": i, "name": name, "supercategory": ""}
        for i, name in enumerate(COCO_NAMES)
        if i and name != "N/A"
    ]
    ids = {
        "train2014": [*range(7, 7 + train - 1), 500],
        "val2017": list(range(100001, 100001 + val)),
    }
    for year, split in (("train2014", "train"), ("val2017", "val")):
        images, annotations = [], []
        for number, (id_, (image, masks, labels)) in enumerate(
            zip(ids[year], scenes(zoo_root, split, len(ids[year])), strict=True)
        ):
            file_name = (
                f"COCO_train2014_{id_:012d}.jpg" if year == "train2014" else f"{id_:012d}.jpg"
            )
            height, width = image.shape[:2]
            write_jpeg(root / year / file_name, image)
            images.append(
                {"id": id_, "file_name": file_name, "height": height, "width": width, "license": 1}
            )
            if number == 2:
                half = np.zeros((height, width), bool)
                half[:, : width // 2] = True
                crowd = {"size": [height, width], "counts": runs(half)}
                annotations.append(
                    {"image_id": id_, "category_id": 1, "iscrowd": 1, "segmentation": crowd}
                )
            for mask, label in zip(masks, labels, strict=True) if number != 3 else ():
                x0, y0, x1, y1 = mask_to_box(mask)
                annotations.append(
                    {
                        "image_id": id_,
                        "category_id": categories[label - 1]["id"],
                        "iscrowd": 0,
                        "segmentation": encode_mask(mask)
                        if len(annotations) % 3 == 0
                        else polygons(mask),
                        "area": float(mask.sum()),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                    }
                )
        for number, annotation in enumerate(annotations):
            annotation["id"] = 1000 + number
        content = {
            "info": {},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        write_text(root / "annotations" / f"instances_{year}.json", json.dumps(content))
    write_lines(
        root / "coco_20k_filenames.txt",
        [f"train2014/COCO_train2014_{i:012d}.jpg" for i in reversed(ids["train2014"][:-2])],
    )
    return root
