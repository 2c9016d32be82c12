"""Colours, label maps and masks as pictures: arrays in, arrays out. No figure is drawn here.

Colours are from Wong's colour-blind-safe set.
"""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442",
)  # fmt: skip


MASK_COLOURS = (ORANGE, SKY, PURPLE)  # first, second, third object


def class_colours(count: int) -> np.ndarray:
    """(count, 3) float colours for classes; 0, the background, is dark grey.

    Evenly spaced hues in two lightnesses.
    """
    hues = sns.husl_palette(max(1, (count) // 2), s=0.85, l=0.68) + sns.husl_palette(
        max(1, count - 1 - count // 2), h=0.03, s=0.7, l=0.42
    )
    return np.array([(0.18, 0.18, 0.18), *hues])[:count]


def overlay(
    image: np.ndarray, masks: np.ndarray, *, colours=MASK_COLOURS, strength: float = 0.5
) -> np.ndarray:
    """(H, W, 3) uint8 with (n, H, W) bool masks painted over, each with a border.

    Returns (H, W, 3) float in [0, 1].
    """
    out = image.astype(np.float64) / 255
    for index, mask in enumerate(masks):
        colour = np.array(plt.matplotlib.colors.to_rgb(colours[index % len(colours)]))
        out[mask] = (1 - strength) * out[mask] + strength * colour
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        out[mask & ~inner] = colour
    return out


def colour_map(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(H, W) labels, 255 void -> (H, W, 3) float; void is white."""
    return np.where((labels == 255)[..., None], 1.0, colours[np.minimum(labels, len(colours) - 1)])
