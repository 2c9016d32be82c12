"""Confident masks to a label map: stage 4.

The rule: sort the predictions of an image by score; keep those at or above the threshold, or the
best one alone where none reaches it; paste the kept masks in that order.
"""

from collections.abc import Sequence

import numpy as np

from mdlib.core.label_map import void_of
from mdlib.core.mask import Mask

OVERLAPS = ("skip", "overwrite")
LARGEST_LABEL = void_of(np.uint16) - 1


def confident(scores: np.ndarray, *, threshold: float) -> np.ndarray:
    """Select the predictions that are kept, best first.

    Args:
        scores: (n,); n may be 0.
        threshold: least score; where none reaches it the best prediction alone is kept.

    Returns:
        (m,) int64 indices; ties go to the lower index.
    """
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    kept = order[np.asarray(scores, np.float64)[order] >= threshold]
    return kept if len(kept) else order[:1]


def label_map(
    masks: np.ndarray, clusters: np.ndarray, scores: np.ndarray, *, threshold: float, overlap: str
) -> np.ndarray:
    """Paste the confident masks of an image into a label map.

    Args:
        masks: (n, H, W) bool; n may be 0, then all is background.
        clusters: (n,) integers from 0.
        scores: (n,) in [0, 1].
        threshold: see `confident`.
        overlap: "skip" (the paper's intent) leaves out a mask that touches what is already pasted;
            "overwrite" (the effect of the reference code) pastes every mask over what is there.

    Returns:
        (H, W) uint16: 0 background, 1 + cluster.

    Raises:
        ValueError: where the arguments do not fit, or a cluster is negative or would collide with
            the void label 65535.
    """
    masks, clusters, scores = (
        np.asarray(masks, bool),
        np.asarray(clusters, np.int64),
        np.asarray(scores),
    )
    if masks.ndim != 3 or not len(masks) == len(clusters) == len(scores):
        raise ValueError(
            f"masks must be (n, H, W) with n clusters and scores, "
            f"got {masks.shape}, {len(clusters)}, {len(scores)}"
        )
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap must be one of {OVERLAPS}, got {overlap!r}")
    if len(clusters) and (clusters.min() < 0 or clusters.max() >= LARGEST_LABEL):
        raise ValueError(
            f"a label map holds clusters 0..{LARGEST_LABEL - 1}, "
            f"got {clusters.min()}..{clusters.max()}"
        )
    labels = np.zeros(masks.shape[1:], np.uint16)
    for i in confident(scores, threshold=threshold):
        if overlap == "overwrite" or not labels[masks[i]].any():
            labels[masks[i]] = 1 + clusters[i]
    return labels


def filtered_map(
    masks: Sequence[Mask], *, image_hw: tuple[int, int], threshold: float, overlap: str
) -> np.ndarray:
    """Make the label map of one image's predictions, as stage 4 does: `label_map` of them.

    Args:
        masks: predictions of one image, with clusters.
        image_hw: (H, W), for an image without a prediction.
        threshold: see `label_map`.
        overlap: see `label_map`.

    Returns:
        (H, W) uint16: 0 background, 1 + cluster.

    Raises:
        ValueError: as `label_map`.
    """
    return label_map(*stack_masks(masks, image_hw), threshold=threshold, overlap=overlap)


def clustered_map(masks: Sequence[Mask], *, image_hw: tuple[int, int]) -> np.ndarray:
    """Make the label map of stage 2's masks of one image, with none of them left out.

    The masks of one image do not overlap. Without a mask all is background.

    Args:
        masks: masks of one image, with clusters.
        image_hw: (H, W), for an image without a mask.

    Returns:
        (H, W) uint16: 0 background, 1 + cluster.
    """
    labels = np.zeros(image_hw, np.uint16)
    pixels, clusters, _ = stack_masks(masks, image_hw)
    for own, cluster in zip(pixels, clusters, strict=True):
        labels[own] = 1 + cluster
    return labels


def stack_masks(
    masks: Sequence[Mask], image_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stack the masks of one image as the arrays that `label_map` takes.

    Args:
        masks: n masks of one image, with clusters; n may be 0.
        image_hw: (H, W), for an image without a mask.

    Returns:
        masks: (n, H, W) bool.
        clusters: (n,) int64.
        scores: (n,) float64.
    """
    pixels = np.stack([m.pixels() for m in masks]) if masks else np.zeros((0, *image_hw), bool)
    clusters = np.array([mask.cluster for mask in masks], np.int64)
    return pixels, clusters, np.array([mask.score for mask in masks], np.float64)
