"""Label maps as palette PNG, as VOC's: written and read by index, never by colour."""

from pathlib import Path

import numpy as np
from PIL import Image

from mdlib.core.files import StoreError, atomic


def voc_palette() -> list[int]:
    """VOC's 256 colours, flat R, G, B: the bits of a label spread over three channels."""
    label, bit, channel = np.ogrid[:256, :8, :3]
    return ((label >> (3 * bit + channel) & 1) << (7 - bit)).sum(1).ravel().tolist()


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """Write a label map as VOC's palette PNG.

    Args:
        path: where to; a file that is there is replaced.
        labels: (H, W) integers in 0-255.

    Raises:
        ValueError: for labels that are no integers, or that a byte cannot hold.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"a label map holds integers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() > 255:
        raise ValueError(f"a label map holds 0-255, got {labels.min()}..{labels.max()}")
    image = Image.fromarray(labels.astype(np.uint8)).convert("L")
    image.putpalette(voc_palette())
    with atomic(Path(path)) as temporary:
        image.save(temporary, format="PNG")


def read_label_map(path: str | Path) -> np.ndarray:
    """Read the labels of a palette, grey or black-and-white PNG.

    Args:
        path: the file; a palette is read by index, never by colour.

    Returns:
        (H, W) uint8; 0 and 1 of a black-and-white picture.

    Raises:
        StoreError: for a file that is missing, broken, far too large, coloured, or deeper than
            8 bits.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise StoreError(
                    f"{path}: a label map is a palette or grey PNG, this one is {image.mode}"
                )
            return np.array(image).astype(np.uint8)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise StoreError(f"{path} is not a whole PNG: {error}") from None
