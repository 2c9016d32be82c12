"""Does a method follow low-level cues? Scenes with one cue changed, and what clusters tell of cues.

The masks of a scene stay what they were when `grey`, `exchange_hues`, `blur_objects` or
`share_texture` changes it, so a rule is judged on the same truth before and after.

A cluster tells something of a fact where the two have mutual information. It is adjusted for
chance (1): 0 for clusters that are drawn at random, 1 for clusters that are the fact.

1. Vinh, Epps and Bailey, Information theoretic measures for clusterings comparison, JMLR 2010.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

from mdlib.data.compose import Parts, turn_hue
from mdlib.data.zoo import ZooDataset
from mdlib.method import clusters

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
HUES, SIZES = 8, 4  # bins
LEVELS = 4  # bins of a colour histogram, for each of red, green, blue


# ---------------------------------------------------------------- scenes with one cue changed


def grey(parts: Parts) -> Parts:
    """Take all colour away: grounds and objects keep their luma alone."""
    layers = parts.layers.copy()
    layers[..., :3] = (layers[..., :3] @ LUMA)[..., None]
    ground = np.repeat((parts.ground @ LUMA)[..., None], 3, -1)
    return replace(parts, ground=ground, layers=layers)


def exchange_hues(parts: Parts) -> Parts:
    """Give the ground the objects' mean hue, and the objects the ground's.

    Each is turned as a whole, so hues that differ within an object still do.

    Args:
        parts: of a scene with an object.
    """
    seen = [layer[mask][:, :3] for layer, mask in zip(parts.layers, parts.masks, strict=True)]
    turn = mean_hue(np.concatenate(seen)) - mean_hue(parts.ground)
    layers = parts.layers.copy()
    layers[..., :3] = turn_hue(layers[..., :3], -turn).clip(0)
    return replace(parts, ground=turn_hue(parts.ground, turn).clip(0, 255), layers=layers)


def blur_objects(parts: Parts, *, radius: float) -> Parts:
    """Put the objects out of focus, their outlines as well.

    Args:
        parts: of a scene; with its ground in focus the focus is the reverse of a portrait's.
        radius: standard deviation of the Gaussian, in pixels.
    """
    layers = ndimage.gaussian_filter(parts.layers, (0, radius, radius, 0))
    return replace(parts, layers=layers)


def share_texture(parts: Parts) -> Parts:
    """Make the ground of the largest object's own texture: a square of its inside, mirrored.

    Args:
        parts: of a scene with an object.
    """
    largest = int(parts.masks.sum((1, 2)).argmax())
    patch = parts.layers[largest][inner_square(parts.masks[largest])]
    colours = 255 * patch[..., :3] / patch[..., 3:]  # not multiplied by alpha any more
    side, own = len(parts.ground), len(patch)
    margins = (0, max(0, side - own))
    tiled = np.pad(colours, (margins, margins, (0, 0)), mode="symmetric")
    return replace(parts, ground=tiled[:side, :side].clip(0, 255))


def inner_square(mask: np.ndarray) -> tuple[slice, slice]:
    """Find the largest square of odd side inside a mask, the first on a tie.

    Args:
        mask: (H, W) bool, not empty.

    Returns:
        Its rows and columns.
    """
    # steps of a chess king to the next pixel outside
    distance = ndimage.distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
    reach = int(distance.max()) - 1
    row, column = np.unravel_index(int(distance.argmax()), mask.shape)
    return (
        slice(int(row) - reach, int(row) + reach + 1),
        slice(int(column) - reach, int(column) + reach + 1),
    )


def mean_hue(colours: np.ndarray) -> float:
    """The hue of the mean colour: pale pixels count less than vivid ones.

    Args:
        colours: (..., 3) RGB, also premultiplied.

    Returns:
        Radians in [0, 2 pi): 0 is red, 2 pi / 3 green; `turn_hue` by an angle adds that angle.
    """
    red, green, blue = colours.reshape(-1, 3).mean(0, dtype=np.float64)
    return math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) % (2 * math.pi)


# ---------------------------------------------------------------- what clusters tell


@dataclass(frozen=True)
class Crops:
    """The boxes of n objects, and what is known of each.

    Attributes:
        crops: (n, 3, S, S) uint8, as stage 2 sees them.
        histograms: (n, LEVELS ** 3) float32, the shares of colours in each box.
        facts: {fact: (n,) int64 a number of its kind}: "class"; "photograph", "ground hue", "hue",
            "size" and "place", which are low-level.
    """

    crops: Tensor
    histograms: np.ndarray
    facts: Mapping[str, np.ndarray]


def take_crops(data: ZooDataset, indices: Sequence[int], *, size: int) -> Crops:
    """Crop the true box of the one object of each scene, and note the facts.

    Hues are those of the object, and of the ground in its box, in HUES bins of equal width. The
    size is the share of the picture, in SIZES bins with as many objects each. The place is the
    quarter of the picture that holds the middle of the box.

    Args:
        data: scenes of one object each.
        indices: of n scenes.
        size: pixels of a crop's side.

    Raises:
        ValueError: for a scene with another number of objects.
    """
    crops, histograms, rows = [], [], []
    for i in indices:
        parts = data.parts(i)
        if len(parts.labels) != 1:
            raise ValueError(f"{data.ids[i]} has {len(parts.labels)} objects, expected 1")
        mask, image = parts.masks[0], parts.render()
        (ys, xs), side = np.nonzero(mask), len(mask)
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        inside = slice(box[1], box[3]), slice(box[0], box[2])
        crops.append(clusters.crop_boxes(image, box[None], size=size))
        histograms.append(colour_histogram(image[inside]))
        hues = [_bin_of(mean_hue(each)) for each in (parts.ground[inside], image[mask])]
        right, below = box[0] + box[2] > side, box[1] + box[3] > side
        rows.append((parts.labels[0], parts.photograph, *hues, mask.mean(), right + 2 * below))
    names = ("class", "photograph", "ground hue", "hue", "size", "place")
    facts = dict(zip(names, np.array(rows, np.float64).T, strict=True))
    edges = np.quantile(facts["size"], np.arange(1, SIZES) / SIZES)
    facts["size"] = np.searchsorted(edges, facts["size"])
    whole = {name: values.astype(np.int64) for name, values in facts.items()}
    return Crops(torch.cat(crops), np.stack(histograms), whole)


def _bin_of(hue: float) -> int:
    """Which of HUES bins holds a hue in radians."""
    return int(hue / (2 * math.pi) * HUES) % HUES


def colour_histogram(image: np.ndarray) -> np.ndarray:
    """Count colours in LEVELS bins for each of red, green and blue, all three together.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (LEVELS ** 3,) float32, with sum 1.
    """
    bins = image.reshape(-1, 3).astype(np.int64) * LEVELS // 256
    number = bins @ (LEVELS ** np.arange(2, -1, -1))
    return (np.bincount(number, minlength=LEVELS**3) / len(number)).astype(np.float32)


def information(
    features: np.ndarray, facts: Mapping[str, np.ndarray], *, k: int, seed: int, restarts: int
) -> dict[str, float]:
    """Cluster features by stage 2's recipe, and measure what the clusters tell of each fact.

    Args:
        features: (n, D) of n crops.
        facts: {fact: (n,) int64}.
        k: number of clusters.
        seed: of k-means.
        restarts: number of initialisations; the one with the best inertia is kept.

    Returns:
        {fact: adjusted mutual information of cluster and fact, at most 1}.
    """
    white = clusters.whiten(features, clusters.feature_deviation(features))
    fitted = clusters.fit_kmeans(white, k=k, seed=seed, batch_size=len(white), restarts=restarts)
    found = clusters.assign_clusters(white, fitted.cluster_centers_)
    return {name: float(adjusted_mutual_info_score(fact, found)) for name, fact in facts.items()}
