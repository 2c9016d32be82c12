"""What does a rule lose when scenes are composed in another way?

A rule's drop is the IoU of its masks in the composition that suits it best minus that in the one
that suits it worst, scene by scene. Both are chosen on dev and measured on val: chosen on the
scenes that measure them, the best would look too good and the worst too bad. The difference of two
rules' drops is an interaction of rule and composition; what makes scenes hard for every rule is in
both drops and cancels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-9  # what a share of exactly one half may exceed it by


@dataclass(frozen=True)
class Drop:
    """What a rule loses from one composition to another.

    Attributes:
        best: the composition with the rule's highest mean IoU on dev.
        worst: that with its lowest.
        values: (n,) IoU in `best` minus IoU in `worst` of each val scene.
    """

    best: str
    worst: str
    values: np.ndarray


def measure_drop(dev: Mapping[str, np.ndarray], val: Mapping[str, np.ndarray]) -> Drop:
    """Choose a rule's best and worst composition on dev, and measure its drop on val.

    Args:
        dev: {composition: (m,) IoU of the rule's masks in dev's scenes}.
        val: {composition: (n,) IoU in val's scenes}: entry i of each is scene i, so that the
            compositions are paired.

    Returns:
        The drop; the first composition on a tie.
    """
    best = max(dev, key=lambda name: dev[name].mean())
    worst = min(dev, key=lambda name: dev[name].mean())
    return Drop(best, worst, val[best] - val[worst])


def to_grid(mask: np.ndarray, *, cells_hw: tuple[float, float]) -> np.ndarray:
    """Bring a mask of pixels to the grid of an encoder: a patch is in it if most of its area is.

    Args:
        mask: (H, W) bool.
        cells_hw: height and width of the picture in patches; the last patches of a padded picture
            lie in it in part, and then that part decides.

    Returns:
        (h, w) bool, `cells_hw` rounded up.
    """
    rows, columns = (
        _shares(pixels, cells) for pixels, cells in zip(mask.shape, cells_hw, strict=True)
    )
    return np.asarray(rows @ mask @ columns.T > 0.5 + ROUNDING)


def _shares(pixels: int, cells: float) -> np.ndarray:
    """(cells rounded up, pixels): the share that each pixel has in each patch of a side."""
    low, at = np.arange(np.ceil(cells))[:, None], np.arange(pixels) * cells / pixels
    overlap = np.minimum(low + 1, at + cells / pixels) - np.maximum(low, at)
    overlap = overlap.clip(0)
    return overlap / overlap.sum(1, keepdims=True)
