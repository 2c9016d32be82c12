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
    """(H, W) integers in 0-255 -> palette PNG as VOC's."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"a label map holds integers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() > 255:
        raise ValueError(f"a label map holds 0-255, got {labels.min()}..{labels.max()}")
    image = Image.fromarray(labels.astype(np.uint8)).convert("L")
    image.putpalette(voc_palette())
    with atomic(Path(path)) as temporary:
        image.save(temporary, format="PNG")


def read_label_map(path: Path) -> np.ndarray:
    """Palette or grey PNG -> (H, W) uint8 labels.

    Raises StoreError for a file that is missing, broken or coloured.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise StoreError(
                    f"{path} is {image.mode}, not a palette: its pixels are colours, not labels"
                )
            return np.array(image)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (OSError, SyntaxError) as error:
        raise StoreError(f"{path} is not a whole PNG: {error}") from None
