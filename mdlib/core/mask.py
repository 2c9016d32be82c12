"""Instance masks as run lengths, COCO's RLE: about a hundredth of the memory of their pixels."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from faster_coco_eval import mask as rle

from mdlib.core.files import atomic, read_json


def encode_mask(mask: np.ndarray) -> dict:
    """(H, W) bool -> COCO RLE {"size": [H, W], "counts": str}."""
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    counts = encoded["counts"]
    return {
        "size": [int(s) for s in encoded["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def decode_mask(encoded: dict) -> np.ndarray:
    """COCO RLE -> (H, W) bool."""
    return rle.decode(_as_bytes(encoded)).astype(bool)


def mask_area(encoded: dict) -> int:
    """Pixels of a COCO RLE."""
    return int(rle.area(_as_bytes(encoded)))


def encoding_of(record: Mapping) -> dict:
    """The COCO RLE of a record's "mask": that of a MaskRecord as it is, not decoded to be encoded
    again.
    """
    return record.encoded if isinstance(record, MaskRecord) else encode_mask(record["mask"])


def _as_bytes(encoded: dict) -> dict:
    return {"size": encoded["size"], "counts": encoded["counts"].encode()}


class MaskRecord(Mapping):
    """A mask of an image: what is said of it, and "mask" (H, W) bool, which is decoded at each
    look.

    It is kept run-length encoded, about a hundredth of its pixels, so that the masks of a whole
    data set fit into memory. `record | {...}` adds values and stays small; `{**record}` holds the
    pixels.
    """

    def __init__(self, values: dict, encoded: dict):
        self._values, self.encoded = values, encoded

    def __getitem__(self, key: str):
        return decode_mask(self.encoded) if key == "mask" else self._values[key]

    def __iter__(self):
        return iter((*self._values, "mask"))

    def __len__(self) -> int:
        return len(self._values) + 1

    def __or__(self, values: dict) -> "MaskRecord":
        return MaskRecord(self._values | values, self.encoded)


def write_masks(path: Path, records: Iterable[Mapping]) -> None:
    """COCO-style JSON of predictions.

    A record: {"image_id", "mask" (H, W) bool, "score", and any JSON values}.

    Each is written as it comes: give a generator, and there is never more than one mask in memory.
    """
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"annotations": [')
        for number, record in enumerate(records):
            encoded = encoding_of(record)
            annotation = {key: record[key] for key in record if key != "mask"} | {
                "segmentation": encoded,
                "area": mask_area(encoded),
            }
            file.write(
                (",\n" if number else "\n")
                + json.dumps(annotation, sort_keys=True, allow_nan=False)
            )
        file.write("\n]}\n")


def read_masks(path: Path) -> list[MaskRecord]:
    """What `write_masks` wrote: records with "mask" (H, W) bool again, none of them decoded yet."""

    def record(value: dict):  # called for each object of the file, inner ones first
        others = {key: each for key, each in value.items() if key not in ("segmentation", "area")}
        return MaskRecord(others, value["segmentation"]) if "segmentation" in value else value

    return read_json(path, object_hook=record)["annotations"]


def by_image(records: Iterable[Mapping], ids: list[str]) -> list[list[Mapping]]:
    """Records gathered by image: one list for each of `ids`, empty where an image has none; order
    is kept.

    Raises ValueError for a record of an image that is not among `ids`.
    """
    gathered: dict[str, list[Mapping]] = {image_id: [] for image_id in ids}
    for record in records:
        if record["image_id"] not in gathered:
            raise ValueError(f"a mask of {record['image_id']!r}, which the data set does not hold")
        gathered[record["image_id"]].append(record)
    return list(gathered.values())


def mask_to_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Tight box x0, y0, x1, y1 (exclusive ends) around a (H, W) bool mask.

    Raises ValueError if it is empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        raise ValueError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
