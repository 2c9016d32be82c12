"""Reading picture files rightly, whatever their mode, and refusing what cannot be read.

Pillow alone would turn 16-bit pictures white, show the hidden colours of transparent pixels, ignore
the EXIF rotation and fill truncated files with black rows; each is dealt with here, once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mdlib.core.files import StoreError
from mdlib.core.label_map import read_label_map
from mdlib.data.sample import VOID

MAX_PIXELS = 100_000_000


class ImageError(ValueError):
    """A picture or label file that cannot be used; the message names the file and the reason."""


def read_image(path: str | Path, *, min_side: int = 8) -> np.ndarray:
    """Read any picture file, upright by its EXIF tag, transparency on white.

    Args:
        path: the file.
        min_side: pixels that its shorter side must have.

    Returns:
        (H, W, 3) uint8 RGB, writeable. Deep pictures are scaled to 8 bits: 16-bit ones by 1 / 257,
        others from their own range.

    Raises:
        ImageError: for a missing, empty, truncated, unknown, too small or absurdly large file.
    """
    image = ImageOps.exif_transpose(_open(path))
    if min(image.size) < min_side:
        raise ImageError(
            f"{path}: {image.width} x {image.height} pixels, at least {min_side} a side are needed"
        )
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        deep = np.asarray(image, np.float64)
        if not np.isfinite(deep).all():
            raise ImageError(f"{path}: some of its values are not finite")
        # Deep pictures: 16-bit ones are divided by 257 (65535 / 255); others are stretched to their
        # own range.
        low, high = (
            (0.0, 65535.0)
            if image.mode != "F" and deep.max() <= 65535
            else (deep.min(), deep.max())
        )
        grey = ((deep - low) / max(high - low, 1e-12) * 255).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))  # a copy: an array of Pillow's own memory is read-only


def image_size(path: str | Path) -> tuple[int, int]:
    """Read (H, W) of a picture as `read_image` would give it, from the file's header alone.

    Raises:
        ImageError: for a file that is missing or no picture.
    """
    with _reading(path, otherwise="not a picture"), Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 swap the sides
        return (image.width, image.height) if turned else (image.height, image.width)


def read_true_labels(
    path: str | Path, *, image_hw: tuple[int, int], num_classes: int
) -> np.ndarray:
    """Read a label map of a data set and check that it fits its image.

    Args:
        path: a palette or grey PNG; a palette is read by index, never by colour.
        image_hw: (H, W) of the image in pixels.
        num_classes: number of labels, the background included.

    Returns:
        (H, W) uint8: 0..num_classes - 1, and 255 for void.

    Raises:
        ImageError: for a file that `core.label_map.read_label_map` refuses, another size, or
            values outside the range.
    """
    try:
        labels = read_label_map(path)
    except StoreError as error:
        raise ImageError(str(error)) from None
    if labels.dtype != np.uint8:
        raise ImageError(f"{path}: a data set's label map has 8 bits, this one {labels.dtype}")
    if labels.shape != tuple(image_hw):
        raise ImageError(f"{path}: the label map is {labels.shape}, its image {tuple(image_hw)}")
    unknown = np.setdiff1d(np.unique(labels), [*range(num_classes), VOID])
    if unknown.size:
        raise ImageError(
            f"{path}: unknown labels {unknown[:5].tolist()}; "
            f"expected 0..{num_classes - 1} or {VOID}"
        )
    return labels


def _open(path: str | Path) -> Image.Image:
    """A picture with its pixels decoded, or ImageError."""
    with _reading(path, otherwise="not a whole picture"):
        image = Image.open(path)
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"{path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}"
            )
        image.load()
        return image


@contextmanager
def _reading(path: str | Path, *, otherwise: str) -> Iterator[None]:
    """Turn what Pillow raises for a missing or broken file into an ImageError that names it."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: {otherwise} ({error})") from None
