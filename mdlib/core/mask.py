"""A binary mask of an image, run-length encoded, and the files that hold masks.

`Mask` is what every stage passes on: about a hundredth of the memory of its pixels. Box and area
come from the run lengths, without decoding. A file of masks is a COCO file that pycocotools opens;
COCO dictionaries are built and read here and nowhere else.

Source of the format: cocodataset.org, data format; run lengths by faster_coco_eval.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, overload

import numpy as np
from faster_coco_eval import mask as rle

from mdlib.core.files import StoreError, atomic, read_json

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive

MADE_BY = "masks by MaskDistill"  # in the head of each file of masks
NO_CLUSTER = 0  # COCO's category of a mask without a cluster; that of cluster c is 1 + c


class RunLengths(TypedDict):
    """A mask in COCO's form: size [H, W], and the run lengths as text, columns first."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask of an image.

    Attributes:
        image_id: id of the image in its data set.
        rle: COCO's run lengths.
        score: how sure its maker is, in [0, 1].
        cluster: from 0; None before stage 2.
    """

    image_id: str
    rle: RunLengths
    score: float = 1.0
    cluster: int | None = None

    @classmethod
    def from_pixels(
        cls, pixels: np.ndarray, *, image_id: str, score: float = 1.0, cluster: int | None = None
    ) -> "Mask":
        """Encode pixels, (H, W) bool.

        Raises:
            ValueError: for another shape or dtype.
        """
        return cls(image_id, encode_mask(pixels), score, cluster)

    @classmethod
    def from_coco(cls, annotation: Mapping, *, image_id: str, image_hw: tuple[int, int]) -> "Mask":
        """Take the mask of a COCO annotation with polygons or run lengths.

        Args:
            annotation: needs "segmentation"; "score" (default 1) and "category_id" are read.
            image_id: id of its image in the data set.
            image_hw: (H, W) of its image.

        Raises:
            ValueError: for a polygon of fewer than three points, or run lengths of another size.
        """
        category = annotation.get("category_id", NO_CLUSTER)
        encoded = _encoded_outline(annotation["segmentation"], image_hw)
        cluster = None if category == NO_CLUSTER else category - 1
        return cls(image_id, encoded, annotation.get("score", 1.0), cluster)

    def pixels(self) -> np.ndarray:
        """(H, W) bool, decoded at each call."""
        return rle.decode(_as_bytes(self.rle)).astype(bool)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        height, width = self.rle["size"]
        return height, width

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(rle.area(_as_bytes(self.rle)))

    @property
    def box(self) -> Box | None:
        """The tight box, or None for an empty mask."""
        x, y, width, height = (int(side) for side in rle.toBbox(_as_bytes(self.rle)))
        return (x, y, x + width, y + height) if width and height else None

    def to_coco(self, *, number: int, image_number: int) -> dict[str, Any]:
        """Make a COCO annotation of a mask; bbox is x, y, width, height in pixels.

        Args:
            number: id of the annotation, from 1.
            image_number: id of the image in the same COCO file.
        """
        x0, y0, x1, y1 = self.box or (0, 0, 0, 0)
        return {
            "id": number,
            "image_id": image_number,
            "category_id": NO_CLUSTER if self.cluster is None else 1 + self.cluster,
            "score": self.score,
            "segmentation": self.rle,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": self.area,
            "iscrowd": 0,
        }


class Masks(Sequence[Mask]):
    """The masks of a data set, in the order of their file."""

    def __init__(self, masks: Iterable[Mask] = ()):
        self._masks = tuple(masks)

    def __len__(self) -> int:
        return len(self._masks)

    @overload
    def __getitem__(self, i: int) -> Mask: ...
    @overload
    def __getitem__(self, i: slice) -> "Masks": ...
    def __getitem__(self, i: int | slice) -> "Mask | Masks":
        return Masks(self._masks[i]) if isinstance(i, slice) else self._masks[i]

    def by_image(self, ids: Sequence[str]) -> list[list[Mask]]:
        """The masks of each image, [] where it has none, in the order of `ids`.

        Raises:
            ValueError: for a mask of an image that is not among the ids, and for an id twice.
        """
        found: dict[str, list[Mask]] = {image_id: [] for image_id in ids}
        if len(found) < len(ids):
            raise ValueError("an id stands there twice: the masks of one image would be another's")
        for mask in self._masks:
            if mask.image_id not in found:
                raise ValueError(f"a mask of {mask.image_id!r}, which the data set does not hold")
            found[mask.image_id].append(mask)
        return list(found.values())

    def with_clusters(self, clusters: Sequence[int]) -> "Masks":
        """The same masks, mask i in clusters[i].

        Raises:
            ValueError: for another number of clusters than masks.
        """
        pairs = zip(self._masks, clusters, strict=True)
        return Masks(replace(mask, cluster=int(cluster)) for mask, cluster in pairs)


def write_masks(
    path: Path,
    masks: Iterable[Mask],
    *,
    images: Mapping[str, tuple[int, int]],
    categories: Sequence[str] = (),
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> Masks:
    """Write a COCO file, each mask as it comes, whole or not at all.

    Args:
        path: where to; a file that is there is replaced.
        masks: any iterable: of a generator never more than one mask with its pixels is in memory.
        images: (H, W) of each image by its id, also of those without a mask.
        categories: a name for each cluster; () for masks without clusters.
        more: further values of an image's entry by its id, such as its "file_name".

    Returns:
        The masks.

    Raises:
        ValueError: for a mask of an image that is not in `images`, or of another size.
    """
    entries: dict[str, dict[str, Any]] = {
        image_id: {"id": n, "name": image_id, "file_name": image_id, "height": h, "width": w}
        for n, (image_id, (h, w)) in enumerate(images.items(), 1)
    }
    for image_id, values in (more or {}).items():
        entries[image_id] |= values
    named = [{"id": NO_CLUSTER, "name": "object"}] if not categories else []
    named += [{"id": 1 + c, "name": name} for c, name in enumerate(categories)]
    head = {
        "info": {"description": MADE_BY},
        "licenses": [],
        "categories": named,
        "images": list(entries.values()),
    }
    written = []
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "annotations": [')
        for number, mask in enumerate(masks, 1):
            if images.get(mask.image_id) != mask.size:
                raise ValueError(
                    f"a mask of {mask.image_id!r} of {mask.size} pixels: no such image"
                )
            entry = mask.to_coco(number=number, image_number=entries[mask.image_id]["id"])
            text = json.dumps(entry, sort_keys=True, allow_nan=False)
            file.write((",\n" if number > 1 else "\n") + text)
            written.append(mask)
        file.write("\n]}\n")
    return Masks(written)


def read_masks(path: Path) -> Masks:
    """Read the masks of a file that `write_masks` wrote; none is decoded.

    Raises:
        StoreError: for a file that is missing, broken or of another form.
    """
    content = read_json(path)
    try:
        names = {image["id"]: image["name"] for image in content["images"]}
        return Masks(_read_annotations(content["annotations"], names))
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path} is no file of masks: it lacks {error}") from None


def is_file_of_masks(path: Path) -> bool:
    """Whether `write_masks` wrote a file, and not somebody else one of the same name."""
    try:
        return path.is_file() and read_json(path)["info"]["description"] == MADE_BY
    except (StoreError, OSError, LookupError, TypeError, RecursionError):
        return False


def _read_annotations(annotations: list[dict], names: dict[int, str]) -> Iterator[Mask]:
    """The masks of a file's entries; names: the images' ids by their numbers."""
    for entry in annotations:
        cluster = None if entry["category_id"] == NO_CLUSTER else entry["category_id"] - 1
        yield Mask(names[entry["image_id"]], entry["segmentation"], entry["score"], cluster)


# ---------------------------------------------------------------- pixels


def encode_mask(pixels: np.ndarray) -> RunLengths:
    """Encode pixels, (H, W) bool, as COCO's run lengths.

    Raises:
        ValueError: for another shape or dtype.
    """
    if pixels.ndim != 2 or pixels.dtype != bool:
        raise ValueError(f"a mask is (H, W) bool, got {pixels.shape} {pixels.dtype}")
    return _as_text(rle.encode(np.asfortranarray(pixels, np.uint8)))


def mask_to_box(pixels: np.ndarray) -> Box:
    """Find the tight box around a mask, (H, W) bool.

    Raises:
        ValueError: if the mask is empty.
    """
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if not rows.size:
        raise ValueError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _encoded_outline(outline: list | Mapping, image_hw: tuple[int, int]) -> RunLengths:
    """Polygons [[x, y, x, y, ...], ...], or run lengths with counts as text or as a list."""
    height, width = image_hw
    if isinstance(outline, list):
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in outline):
            raise ValueError("a polygon has three points or more")
        if not outline:
            return encode_mask(np.zeros(image_hw, bool))
        return _as_text(rle.merge(rle.frPyObjects(outline, height, width)))
    if list(outline["size"]) != [height, width]:
        raise ValueError(f"an RLE of size {outline['size']} in an image of {[height, width]}")
    if isinstance(outline["counts"], str):
        return {"size": list(outline["size"]), "counts": outline["counts"]}
    return _as_text(rle.frPyObjects(outline, height, width))


def _as_text(encoded: Mapping[str, Any]) -> RunLengths:
    """Run lengths as JSON holds them."""
    counts = encoded["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in encoded["size"]], "counts": text}


def _as_bytes(encoded: RunLengths) -> dict[str, Any]:
    """Run lengths as the library of COCO takes them."""
    return {"size": encoded["size"], "counts": encoded["counts"].encode()}
