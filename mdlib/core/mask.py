"""Instance masks as run lengths, COCO's RLE: about a hundredth of the memory of their pixels."""

from collections.abc import Mapping

import numpy as np
from faster_coco_eval import mask as rle


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
