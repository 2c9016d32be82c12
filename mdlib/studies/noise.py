"""A dial of noise: some of stage 1's masks are replaced by wrong ones.

The real masks have noise of their own, but nobody can turn it up. Here a share of the masks is
replaced, half of them by a box of ground, half by a mask of another picture: the two ways in which
a mask can miss its object altogether, with an outline that says nothing and with one that looks
like an object's.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from mdlib.core.mask import Mask, Masks, encode_mask
from mdlib.data import Dataset

AS_FOUND, BOX, FOREIGN = range(3)  # what became of a mask
SHRINK = 0.8  # a box that finds no room is tried again with sides of this share
LEAST_SIDE = 2  # pixels, of a box


def add_noise(
    masks: Sequence[Mask], dataset: Dataset, *, share: float, seed: int
) -> tuple[Masks, np.ndarray]:
    """Replace a share of masks, one mask a picture, by wrong ones.

    Which masks are replaced, how and by what is drawn for each place in the list, so that a larger
    share replaces the same masks in the same way, and more of them.

    Args:
        masks: n masks of two pictures or more.
        dataset: their pictures, with semantic maps: these say where ground is.
        share: of the masks that are replaced, in [0, 1]; their number is rounded.
        seed: of the draws.

    Returns:
        The masks in the same order, each with its picture, score and cluster; and (n,) int64, what
        became of each: AS_FOUND, BOX or FOREIGN.

    Raises:
        ValueError: for a share out of its range, or masks of one picture alone.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    if len({mask.image_id for mask in masks}) < 2:
        raise ValueError("masks of one picture alone cannot be exchanged")
    noisy, kinds = list(masks), np.full(len(masks), AS_FOUND)
    order = np.random.default_rng(seed).permutation(len(masks))
    for place, i in enumerate(order[: round(share * len(masks))].tolist()):
        rng = np.random.default_rng([seed, i])
        kinds[i] = (BOX, FOREIGN)[place % 2]
        if kinds[i] == BOX:
            ground = dataset.semantic(dataset.index_of(masks[i].image_id)) == 0
            pixels = ground_box(masks[i], ground, rng)
        else:
            pixels = foreign_mask(masks, i, rng)
        noisy[i] = replace(masks[i], rle=encode_mask(pixels))
    return Masks(noisy), kinds


def ground_box(mask: Mask, ground: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a box of ground of about a mask's size.

    The box has the sides of the mask's own, or the largest share of them, a power of SHRINK, with
    which it finds a place that holds ground alone. Where there is none, it is a tiny box with as
    much ground as can be.

    Args:
        mask: with a pixel or more.
        ground: (H, W) bool.
        rng: chooses among the places.

    Returns:
        (H, W) bool.
    """
    x0, y0, x1, y1 = mask.box or (0, 0, 1, 1)
    height, width = max(LEAST_SIDE, y1 - y0), max(LEAST_SIDE, x1 - x0)
    while True:
        # mean over the box about each pixel; outside of the picture is worse than any object
        taken = ndimage.uniform_filter(
            np.where(ground, 0.0, 1.0), (height, width), mode="constant", cval=2.0
        )
        free = taken.min() < 0.5 / (height * width)  # less than half a pixel: rounding
        if free or (height, width) == (LEAST_SIDE, LEAST_SIDE):
            break
        height, width = (max(LEAST_SIDE, int(SHRINK * side)) for side in (height, width))
    places = np.argwhere(taken < taken.min() + 0.5 / (height * width))
    y, x = places[rng.integers(len(places))]
    top, left = max(0, y - height // 2), max(0, x - width // 2)
    pixels = np.zeros(ground.shape, bool)
    pixels[top : top + height, left : left + width] = True
    return pixels


def foreign_mask(masks: Sequence[Mask], i: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a mask of another picture, stretched to the size of mask i's picture.

    Args:
        masks: with a pixel or more each, of two pictures or more.
        i: which of them is replaced.
        rng: chooses among the others.

    Returns:
        (H, W) bool, with a pixel or more.
    """
    height, width = masks[i].size
    others = [mask for mask in masks if mask.image_id != masks[i].image_id]
    while True:
        pixels = others[rng.integers(len(others))].pixels()
        rows = np.arange(height) * pixels.shape[0] // height
        columns = np.arange(width) * pixels.shape[1] // width
        stretched = pixels[np.ix_(rows, columns)]
        if stretched.any():  # a tiny mask may be lost in a small picture
            return stretched
