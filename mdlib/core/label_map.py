"""Label maps as PNG: VOC's palette PNG up to label 255, 16-bit grey PNG above.

Labels are written and read by index, never by colour. The largest value of a map's integers is
void: 255 in a map of bytes, 65535 in a map of 16 bits. So cluster 255 is a label like any other
wherever a map is of 16 bits.
"""

from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

from mdlib.core.files import StoreError, atomic

DEPTHS = {"P": np.uint8, "L": np.uint8, "1": np.uint8, "I;16": np.uint16}  # of Pillow's modes
# grey of 2 or 4 bits, which Pillow stretches to 0-255: by this
STRETCHED = {"L;2": 85, "L;4": 17}


def void_of(dtype: DTypeLike) -> int:
    """The label of pixels that do not count, in maps of `dtype`: uint8 255, uint16 65535.

    Raises:
        ValueError: for another dtype: label maps are uint8 or uint16.
    """
    if np.dtype(dtype) not in (np.uint8, np.uint16):
        raise ValueError(f"a label map is uint8 or uint16, got {np.dtype(dtype)}")
    return int(np.iinfo(dtype).max)


def voc_palette() -> list[int]:
    """VOC's 256 colours, flat R, G, B: the bits of a label spread over three channels."""
    label, bit, channel = np.ogrid[:256, :8, :3]
    return ((label >> (3 * bit + channel) & 1) << (7 - bit)).sum(1).ravel().tolist()


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """Write a label map as VOC's palette PNG, or as 16-bit grey PNG where a byte is too small.

    Args:
        path: where to; a file that is there is replaced.
        labels: (H, W) integers in 0-65535. In a uint16 map 255 is a label like any other (see
            `void_of`), so a map that holds it or more is written with 16 bits; a map of another
            dtype from 256 on.

    Raises:
        ValueError: for labels that are no integers, or that 16 bits cannot hold.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"a label map holds integers, got {labels.dtype}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > void_of(np.uint16):
        raise ValueError(f"a label map holds 0-65535, got {lowest}..{highest}")
    if highest > (254 if labels.dtype == np.uint16 else 255):
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = Image.fromarray(labels.astype(np.uint8)).convert("L")
        image.putpalette(voc_palette())
    with atomic(Path(path)) as temporary:
        image.save(temporary, format="PNG")


def read_label_map(path: str | Path) -> np.ndarray:
    """Read the labels of a palette, grey or black-and-white PNG.

    Args:
        path: the file; a palette is read by index, never by colour.

    Returns:
        (H, W) uint8, or uint16 of a PNG with 16 bits; 0 and 1 of a black-and-white picture.

    Raises:
        StoreError: for a file that is missing, broken, far too large, or coloured.
    """
    if not Path(path).is_file():  # opening a pipe would wait for ever
        raise StoreError(f"{path} is {'no regular file' if Path(path).exists() else 'missing'}")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in DEPTHS:
                raise StoreError(
                    f"{path}: a label map is a palette or grey PNG, this one is {image.mode}"
                )
            stretch = STRETCHED.get(str(image.tile[0].args), 1) if image.tile else 1
            return np.array(image).astype(DEPTHS[image.mode]) // DEPTHS[image.mode](stretch)
    except StoreError:
        raise
    except Exception as error:  # decoders raise nearly anything for a damaged file
        raise StoreError(f"{path} is not a whole PNG: {error}") from None
