"""Reading picture files rightly, whatever their mode, and refusing what cannot be read.

Pillow alone would turn 16-bit pictures white, show the hidden colours of transparent pixels, ignore
the EXIF rotation, fill truncated files with black rows and start Ghostscript on a PostScript file
that is named photo.jpg; each is dealt with here, once. Whatever a decoder raises is an ImageError.

A camera that is held upright stores the picture lying down and notes in EXIF how to turn it. A
picture without labels is turned. One with labels of its pixels lies as its labels do: see
`lies_turned`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mdlib.core.files import StoreError
from mdlib.core.label_map import read_label_map
from mdlib.data.names import shown
from mdlib.data.sample import VOID

# Pillow's names. No PostScript, PDF or WMF: others' programs draw those; no films, no stubs.
KNOWN = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
)
Image.init()
FORMATS = tuple(kind for kind in KNOWN if kind in Image.OPEN)  # AVIF and others may be missing
MAX_BYTES = 1_000_000_000  # of memory while a picture is read: 100 megapixels of a photograph
MAX_ASPECT = 100  # a side to the other: of a longer strip nothing is left where it is made small
DEEP = ("I", "F")  # modes of more than 16 bits; those of 16 begin with "I;16"
ORIENTATION = 0x0112  # the tag of EXIF
# how a picture that was turned for its orientation is turned back
BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


class ImageError(ValueError):
    """A picture or label file that cannot be used; the message names the file and the reason."""


def picture_endings() -> set[str]:
    """Endings such as ".jpg" of the formats that `read_image` reads."""
    known = Image.registered_extensions().items()
    return {ending for ending, kind in known if kind in FORMATS}


def read_image(path: str | Path, *, min_side: int = 8, turned: bool = True) -> np.ndarray:
    """Read any picture file, transparency on white.

    Args:
        path: the file.
        min_side: pixels that its shorter side must have.
        turned: upright by its EXIF tag; False: as it is stored.

    Returns:
        (H, W, 3) uint8 RGB, writeable. Deep pictures are scaled to 8 bits: 16-bit ones by 1 / 257,
        others from their own range.

    Raises:
        ImageError: for a file that is missing, empty, truncated, unknown or too small, for a strip
            beyond MAX_ASPECT, for one that would take more than MAX_BYTES, or no regular file.
    """
    with _opened(path, otherwise="not a whole picture") as image:
        if min(image.size) < min_side:
            raise ImageError(
                f"{shown(path)}: {image.width} x {image.height} pixels, "
                f"at least {min_side} a side are needed"
            )
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ImageError(
                f"{shown(path)}: {image.width} x {image.height} pixels, a strip of more than "
                f"{MAX_ASPECT} to 1: cut it into pieces"
            )
        needed = image.width * image.height * _bytes_per_pixel(image)
        if needed > MAX_BYTES:
            raise ImageError(
                f"{shown(path)}: {image.width} x {image.height} pixels of mode {image.mode} take "
                f"{needed / 1e9:.3g} GB to read, more than {MAX_BYTES / 1e9:.3g} GB: shrink it"
            )
        orientation = image.getexif().get(ORIENTATION, 1)
        image.load()
        if turned:
            ImageOps.exif_transpose(image, in_place=True)
        elif image.format == "TIFF" and orientation in BACK:  # Pillow turned it already
            image = image.transpose(BACK[orientation])
        return _rgb(image)


def image_size(path: str | Path, *, turned: bool = True) -> tuple[int, int]:
    """Read (H, W) of a picture as `read_image` would give it, from the file's header alone.

    Raises:
        ImageError: for a file that is missing or no picture.
    """
    with _opened(path, otherwise="not a picture") as image:
        swaps = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        # Pillow gives a TIFF's size as it is when turned, others' as they are stored
        swapped = swaps and turned != (image.format == "TIFF")
        return (image.width, image.height) if swapped else (image.height, image.width)


def lies_turned(path: str | Path, labels_hw: tuple[int, int]) -> bool:
    """Whether a picture must be turned by its EXIF tag to lie under its labels.

    Labels belong to the pixels as they are stored: published data sets are read that way. Only
    where labels have the size of the turned picture and not of the stored one, somebody drew them
    on the turned picture.

    Args:
        path: the file.
        labels_hw: (H, W) that the labels have.

    Raises:
        ImageError: for a file that is missing or no picture.
    """
    return image_size(path, turned=False) != labels_hw == image_size(path)


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
        ImageError: for a file that `core.label_map.read_label_map` refuses, another size or depth,
            or values outside the range.
    """
    try:
        labels = read_label_map(path)
    except StoreError as error:
        raise ImageError(shown(error)) from None
    if labels.dtype != np.uint8:
        raise ImageError(
            f"{shown(path)}: a data set's label map is a palette or grey PNG of 8 bits, "
            f"this one is {labels.dtype}"
        )
    if labels.shape != tuple(image_hw):
        raise ImageError(
            f"{shown(path)}: the label map is {labels.shape}, its image {tuple(image_hw)}"
        )
    unknown = np.setdiff1d(np.unique(labels), [*range(num_classes), VOID])
    if unknown.size:
        raise ImageError(
            f"{shown(path)}: unknown labels {unknown[:5].tolist()}; "
            f"expected 0..{num_classes - 1} or {VOID}"
        )
    return labels


@contextmanager
def _opened(path: str | Path, *, otherwise: str) -> Iterator[Image.Image]:
    """A picture whose header is read. Whatever its decoder raises becomes an ImageError."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for ever
            raise ImageError(f"{shown(path)}: no regular file")
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{shown(path)}: no such file") from None
    except Exception as error:
        # decoders raise nearly anything for a damaged file: struct.error, KeyError, SyntaxError
        reason = str(error) or type(error).__name__
        raise ImageError(f"{shown(path)}: {otherwise} ({shown(reason)})") from None


def _has_alpha(image: Image.Image) -> bool:
    """Whether some pixels may be transparent."""
    return "A" in image.getbands() or "transparency" in image.info


def _is_deep(image: Image.Image) -> bool:
    """Whether a channel has more than 8 bits."""
    return image.mode.startswith("I;16") or image.mode in DEEP


def _bytes_per_pixel(image: Image.Image) -> int:
    """About the memory that reading takes: Pillow's copies, and numpy's."""
    return 32 if _is_deep(image) else 20 if _has_alpha(image) else 10


def _rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a decoded picture."""
    if _is_deep(image):
        deep = np.asarray(image, np.float64)
        if not np.isfinite(deep).all():
            raise ValueError("some of its values are not finite")
        # Deep pictures: 16-bit ones are divided by 257 (65535 / 255); others are stretched to their
        # own range.
        low, high = (
            (0.0, 65535.0)
            if image.mode != "F" and deep.max() <= 65535
            else (deep.min(), deep.max())
        )
        grey = ((deep - low) / max(high - low, 1e-12) * 255).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if _has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # a copy: an array of Pillow's own memory is read-only
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
