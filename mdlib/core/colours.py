"""Colours, label maps and masks as pictures: arrays in, arrays out. No figure is drawn here.

Colours are from Wong's colour-blind-safe set. Importing this module loads numpy alone.
"""

from collections.abc import Sequence

import numpy as np

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
RED = "#D55E00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
YELLOW = "#F0E442"
WHITE = "#FFFFFF"

MASK_COLOURS = (ORANGE, SKY, PURPLE)  # first, second, third object

Colour = str | Sequence[float]  # "#RRGGBB", or red, green and blue in [0, 1]


def class_colours(count: int) -> np.ndarray:
    """Colours that tell classes apart: evenly spaced hues in two lightnesses.

    Args:
        count: number of classes, the background included.

    Returns:
        (count, 3) float64 RGB in [0, 1]; 0, the background, is dark grey.
    """
    import seaborn as sns  # not at the top: it loads matplotlib

    hues = sns.husl_palette(max(1, count // 2), s=0.85, l=0.68) + sns.husl_palette(
        max(1, count - 1 - count // 2), h=0.03, s=0.7, l=0.42
    )
    return np.array([(0.18, 0.18, 0.18), *hues])[:count]


def overlay(
    image: np.ndarray,
    masks: np.ndarray,
    *,
    colours: Sequence[Colour] = MASK_COLOURS,
    strength: float = 0.5,
) -> np.ndarray:
    """Paint masks over an image, each with a border of one pixel.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (n, H, W) bool; later ones are painted over earlier ones.
        colours: of the masks, in turn.
        strength: of the colour inside a mask, from 0 (its border alone) to 1 (opaque).

    Returns:
        (H, W, 3) float64 RGB in [0, 1].
    """
    out = image.astype(np.float64) / 255
    for index, mask in enumerate(masks):
        colour = _rgb(colours[index % len(colours)])
        out[mask] = (1 - strength) * out[mask] + strength * colour
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        out[mask & ~inner] = colour
    return out


def _rgb(colour: Colour) -> np.ndarray:
    """(3,) float64 in [0, 1] of a colour."""
    if not isinstance(colour, str):
        return np.array(colour, np.float64)
    return np.frombuffer(bytes.fromhex(colour.removeprefix("#")), np.uint8) / 255


def colorize(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Paint a label map.

    Args:
        labels: (H, W) integers; void is 255 of uint8, 65535 of uint16, and what is negative.
        colours: (n, 3) float RGB in [0, 1], one for each label; later labels have the last.

    Returns:
        (H, W, 3) float RGB in [0, 1]; void is white.
    """
    unsigned = np.issubdtype(labels.dtype, np.unsignedinteger)
    void = labels == np.iinfo(labels.dtype).max if unsigned else labels < 0
    return np.where(void[..., None], 1.0, colours[np.minimum(labels, len(colours) - 1)])
