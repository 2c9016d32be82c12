"""How good is it?

Confusion matrices, matching, IoU, average precision, CorLoc. Pure, and int64 where it counts.

Everything streams: a confusion matrix is added up over images, so no data set is ever held in
memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

from mdlib.core.label_map import void_of

if TYPE_CHECKING:  # for its name alone: whoever only counts need not wait for PyTorch
    from mdlib.data import Dataset
    from mdlib.data.sample import Instances

UNMATCHED = -1
BAND = 2_000_000  # pixels of masks that are compared at once: 16 MB


def confusion(
    pred: np.ndarray,
    target: np.ndarray,
    *,
    num_preds: int,
    num_targets: int,
    ignore: int | None = None,
) -> np.ndarray:
    """Count pairs of predicted and true values, pixel by pixel.

    Args:
        pred: integers in 0..num_preds - 1, of any shape.
        target: integers in 0..num_targets - 1, or `ignore`, of the same shape.
        num_preds: number of predicted values.
        num_targets: number of true ones.
        ignore: pixels with this target never count; None: 65535 where targets are uint16, else 255.

    Returns:
        (num_preds, num_targets) int64, entry [p, t] the pixels predicted p where t is true. Add
        them up over images.

    Raises:
        ValueError: for a shape mismatch or a value outside the ranges.
    """
    pred, target = np.asarray(pred), np.asarray(target)
    if pred.shape != target.shape:
        raise ValueError(f"prediction {pred.shape} and target {target.shape} differ in shape")
    if ignore is None:
        ignore = void_of(target.dtype if target.dtype == np.uint16 else np.uint8)
    counted = target != ignore
    p, t = pred[counted].astype(np.int64), target[counted].astype(np.int64)
    if p.size and (p.min() < 0 or p.max() >= num_preds):
        raise ValueError(f"predictions {p.min()}..{p.max()} are outside 0..{num_preds - 1}")
    if t.size and (t.min() < 0 or t.max() >= num_targets):
        raise ValueError(
            f"targets {t.min()}..{t.max()} are outside 0..{num_targets - 1} (ignored: {ignore})"
        )
    return np.bincount(p * num_targets + t, minlength=num_preds * num_targets).reshape(
        num_preds, num_targets
    )


def per_image_confusion(
    maps: Iterable[np.ndarray], dataset: "Dataset", *, rows: int
) -> Iterator[np.ndarray]:
    """The confusion matrix of each image's label map with its true map.

    Args:
        maps: (H, W) integers of each image, in the order of the data set.
        dataset: the images, with semantic labels.
        rows: number of values in the maps.

    Yields:
        (rows, C) int64 of each image; their `sum` is that of the set.
    """
    for i, labels in enumerate(maps):
        yield confusion(
            labels, dataset.semantic(i), num_preds=rows, num_targets=len(dataset.classes)
        )


# ---------------------------------------------------------------- naming clusters


def match_hungarian(
    confusion: np.ndarray, *, score: str = "iou", pinned: dict[int, int] | None = None
) -> np.ndarray:
    """Match predictions to classes one-to-one, with the best total score.

    Ties go to the lower prediction, then the lower class, whatever the solver does.

    Args:
        confusion: (num_preds, num_targets) counts of pixels or masks.
        score: "iou", or "count" for the raw counts.
        pinned: {prediction: class} fixed beforehand.

    Returns:
        (num_preds,) int64 class of each prediction, -1 where nothing was left to match.

    Raises:
        ValueError: for an unknown score.
    """
    if score not in ("iou", "count"):
        raise ValueError(f'score must be "iou" or "count", got {score!r}')
    counts = np.asarray(confusion)
    mapping = np.full(len(counts), UNMATCHED, np.int64)
    for pred, target in (pinned or {}).items():
        mapping[pred] = target
    rows = np.flatnonzero(mapping == UNMATCHED)
    columns = np.setdiff1d(np.arange(counts.shape[1]), list((pinned or {}).values()))
    values = (_pairwise_iou(counts) if score == "iou" else counts.astype(np.float64))[
        np.ix_(rows, columns)
    ]
    # A tie-break below any real difference: a bonus for low indices. It must not be a sum of a
    # row's and a column's share, which every complete matching would collect alike. All bonuses
    # together stay below half a count.
    bonus = np.outer(np.arange(len(rows), 0, -1), np.arange(len(columns), 0, -1)) / max(
        1, values.size
    )
    smallest = (
        0.5 / max(1, min(values.shape))
        if score == "count"
        else 1e-9 * max(values.max(initial=0.0), 1e-12)
    )
    values = values + smallest * bonus
    chosen_rows, chosen_columns = linear_sum_assignment(values, maximize=True)
    mapping[rows[chosen_rows]] = columns[chosen_columns]
    return mapping


def match_majority(confusion: np.ndarray, *, pinned: dict[int, int] | None = None) -> np.ndarray:
    """Match many-to-one: each prediction takes its most frequent class, the lowest on a tie.

    Args:
        confusion: (num_preds, num_targets) counts of pixels or masks.
        pinned: {prediction: class} fixed beforehand.

    Returns:
        (num_preds,) int64 class of each prediction, -1 where it was never seen.
    """
    counts = np.asarray(confusion)
    mapping = np.where(counts.sum(1) > 0, counts.argmax(1), UNMATCHED).astype(np.int64)
    for pred, target in (pinned or {}).items():
        mapping[pred] = target
    return mapping


def merge_predictions(confusion: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """Add up the rows of predictions that stand for the same class.

    Args:
        confusion: (num_preds, num_targets) counts.
        mapping: (num_preds,) the class of each prediction, -1 where it has none.

    Returns:
        (num_targets + 1, num_targets) int64: rows are classes, the last row collects unmatched
        predictions.
    """
    counts, mapping = np.asarray(confusion), np.asarray(mapping)
    merged = np.zeros((counts.shape[1] + 1, counts.shape[1]), np.int64)
    np.add.at(merged, np.where(mapping == UNMATCHED, counts.shape[1], mapping), counts)
    return merged


def class_areas(confusion: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """Intersection, union and true area of each class after naming, in pixels.

    A pixel of an unmatched prediction is a false negative of its class and a false positive of
    none; it is never counted as background.

    Args:
        confusion: (num_preds, C) counts, of an image or summed over images.
        mapping: (num_preds,) the class of each prediction, -1 where it has none.

    Returns:
        (3, C) float64: intersections, unions, true areas.
    """
    merged = merge_predictions(confusion, mapping)
    hits, truth = np.diagonal(merged[:-1]), merged.sum(0)
    return np.stack([hits, merged[:-1].sum(1) + truth - hits, truth]).astype(np.float64)


def areas_to_iou(areas: np.ndarray) -> np.ndarray:
    """Divide intersections by unions.

    Args:
        areas: (..., 3, C) intersections, unions and true areas in pixels, as of `class_areas`.

    Returns:
        (..., C) float64 IoU in [0, 1], NaN where a class has no union.
    """
    hits, unions = areas[..., 0, :], areas[..., 1, :]
    return np.divide(hits, unions, out=np.full(hits.shape, np.nan), where=unions > 0)


def iou(confusion: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """Intersection over union of each class after naming.

    What an unmatched prediction counts as: see `class_areas`.

    Args:
        confusion: (num_preds, num_targets) counts of pixels.
        mapping: (num_preds,) the class of each prediction, -1 where it has none.

    Returns:
        (num_targets,) float64 in [0, 1], NaN where a class is absent from both truth and
        prediction.
    """
    return areas_to_iou(class_areas(confusion, mapping))


def mean_iou(confusion: np.ndarray, mapping: np.ndarray) -> float:
    """Mean of `iou` over the classes that occur."""
    return float(np.nanmean(iou(confusion, mapping)))


def object_agreement(named: np.ndarray, target: np.ndarray, *, ignore: int = 255) -> float:
    """Share of an image's pixels with the right class, where the map or the truth has an object.

    Args:
        named: (H, W) class of each pixel, 0 background; -1 is no class.
        target: (H, W) true class of each pixel, 0 background.
        ignore: pixels with this target never count.

    Returns:
        The share, in [0, 1]; 1.0 where neither has an object.
    """
    seen = ((named != 0) | (target != 0)) & (target != ignore)
    return float((named == target)[seen].mean()) if seen.any() else 1.0


def _pairwise_iou(counts: np.ndarray) -> np.ndarray:
    """(num_preds, num_targets) counts -> IoU of each pair, 0 where both are empty."""
    union = counts.sum(1, keepdims=True) + counts.sum(0, keepdims=True) - counts
    return np.divide(counts, union, out=np.zeros(counts.shape), where=union > 0)


# ---------------------------------------------------------------- masks and boxes


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of each mask of one stack with each of another.

    Args:
        a: (n, H, W) bool.
        b: (m, H, W) bool.

    Returns:
        (n, m) float64 in [0, 1]; two empty masks have IoU 0.
    """
    a, b = (masks.reshape(len(masks), int(np.prod(masks.shape[1:]))) for masks in (a, b))
    step = max(1, BAND // max(1, len(a) + len(b)))  # pixels; integers, so any sums are exact
    both = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], step):
        some = slice(start, start + step)
        both += a[:, some].astype(np.float64) @ b[:, some].astype(np.float64).T
    union = a.sum(1)[:, None] + b.sum(1)[None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of each box with each of others.

    Args:
        a: (n, 4) x0, y0, x1, y1 in pixels, ends exclusive; (4,) is one box.
        b: (m, 4), likewise.

    Returns:
        (n, m) float64 in [0, 1]; two empty boxes have IoU 0.
    """
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    low, high = (
        np.maximum(a[:, None, :2], b[None, :, :2]),
        np.minimum(a[:, None, 2:], b[None, :, 2:]),
    )
    both = (high - low).clip(0).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)[None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def best_overlap(mask: np.ndarray, instances: np.ndarray) -> tuple[float, int]:
    """The instance that a mask overlaps best.

    Args:
        mask: (H, W) bool.
        instances: (n, H, W) bool.

    Returns:
        The best IoU and its index, the first on a tie; (0.0, -1) where there is no instance.
    """
    if not len(instances):
        return 0.0, -1
    overlaps = mask_iou(mask[None], instances)[0]
    return float(overlaps.max()), int(overlaps.argmax())


def top_iou(masks: Sequence[np.ndarray], instances: "Instances") -> float:
    """IoU of an image's first mask with the object that it overlaps best.

    Args:
        masks: (H, W) bool masks of the image, of which the first is judged.
        instances: its true objects.

    Returns:
        The IoU, in [0, 1]; 0 without a mask or an object.
    """
    return best_overlap(masks[0], instances.masks)[0] if len(masks) else 0.0


def corloc(boxes: list, truths: list) -> float:
    """CorLoc: share of images whose one predicted box has IoU >= 0.5 with any true box.

    Args:
        boxes: (4,) x0, y0, x1, y1 of each image in pixels, ends exclusive; None where it has none.
        truths: (n, 4) true boxes of each image, likewise.

    Returns:
        The share, in [0, 1]; an image without a predicted or a true box is missed.

    Raises:
        ValueError: for lists of different lengths.
    """
    hits = [
        box is not None and len(true) > 0 and box_iou(box, true).max() >= 0.5
        for box, true in zip(boxes, truths, strict=True)
    ]
    return float(np.mean(hits))
