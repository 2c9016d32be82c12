"""How good is it?

Confusion matrices, matching, IoU, average precision, CorLoc. Pure, and int64 where it counts.

Everything streams: a confusion matrix is added up over images, so no data set is ever held in
memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:  # for its name alone: whoever only counts need not wait for PyTorch
    from mdlib.data import Dataset
    from mdlib.data.sample import Instances

UNMATCHED = -1


def confusion(
    pred: np.ndarray, target: np.ndarray, *, num_preds: int, num_targets: int, ignore: int = 255
) -> np.ndarray:
    """Count pixel pairs: (num_preds, num_targets) int64, entry [p, t] = pixels predicted p where t
    is true.

    pred and target: integer arrays of one shape; pixels with target == ignore never count. Add over
    images. Raises ValueError for a shape mismatch or a value outside the ranges.
    """
    pred, target = np.asarray(pred), np.asarray(target)
    if pred.shape != target.shape:
        raise ValueError(f"prediction {pred.shape} and target {target.shape} differ in shape")
    counted = target != ignore
    p, t = pred[counted].astype(np.int64), target[counted].astype(np.int64)
    if p.size and not (0 <= p.min() and p.max() < num_preds):
        raise ValueError(f"predictions {p.min()}..{p.max()} are outside 0..{num_preds - 1}")
    if t.size and not (0 <= t.min() and t.max() < num_targets):
        raise ValueError(
            f"targets {t.min()}..{t.max()} are outside 0..{num_targets - 1} (ignored: {ignore})"
        )
    return np.bincount(p * num_targets + t, minlength=num_preds * num_targets).reshape(
        num_preds, num_targets
    )


def per_image_confusion(
    maps: Iterable[np.ndarray], dataset: "Dataset", *, rows: int
) -> Iterator[np.ndarray]:
    """The confusion matrix (rows, C) of each image's label map with its true map; their `sum` is
    that of the set.
    """
    for i, labels in enumerate(maps):
        yield confusion(
            labels, dataset.semantic(i), num_preds=rows, num_targets=len(dataset.classes)
        )


# ---------------------------------------------------------------- naming clusters


def match_hungarian(
    confusion: np.ndarray, *, score: str = "iou", pinned: dict[int, int] | None = None
) -> np.ndarray:
    """One-to-one matching of predictions to classes with the best total score.

    confusion (num_preds, num_targets) counts of pixels or masks. score: "iou", or "count" (the raw
    counts). pinned: {prediction: class} fixed beforehand. Returns (num_preds,) int64, -1 where
    nothing was left to match. Ties go to the lower prediction, then the lower class, whatever the
    solver does.
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
    """Many-to-one: each prediction takes its most frequent class (lowest on a tie).

    Never seen: -1. (num_preds,) int64.
    """
    counts = np.asarray(confusion)
    mapping = np.where(counts.sum(1) > 0, counts.argmax(1), UNMATCHED).astype(np.int64)
    for pred, target in (pinned or {}).items():
        mapping[pred] = target
    return mapping


def merge_predictions(confusion: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """(num_preds, num_targets) and (num_preds,) -> (num_targets + 1, num_targets): rows are
    classes, the last row collects unmatched predictions.
    """
    counts, mapping = np.asarray(confusion), np.asarray(mapping)
    merged = np.zeros((counts.shape[1] + 1, counts.shape[1]), np.int64)
    np.add.at(merged, np.where(mapping == UNMATCHED, counts.shape[1], mapping), counts)
    return merged


def intersection_and_union(confusion: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """Intersection and union of each class after naming, in pixels.

    A pixel of an unmatched prediction is a false negative of its class and a false positive of
    none; it is never counted as background.

    Args:
        confusion: (num_preds, C) counts, of an image or summed over images.
        mapping: (num_preds,) the class of each prediction, -1 where it has none.

    Returns:
        (2, C) float64: intersections, then unions.
    """
    merged = merge_predictions(confusion, mapping)
    hits = np.diagonal(merged[:-1])
    return np.stack([hits, merged[:-1].sum(1) + merged.sum(0) - hits]).astype(np.float64)


def areas_to_iou(areas: np.ndarray) -> np.ndarray:
    """Intersections and unions (..., 2, C) -> IoU (..., C), NaN where a class has no union."""
    hits, unions = areas[..., 0, :], areas[..., 1, :]
    return np.divide(hits, unions, out=np.full(hits.shape, np.nan), where=unions > 0)


def iou(confusion: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """Intersection over union of each class after naming: (num_targets,) float64.

    NaN where a class is absent from both truth and prediction. What an unmatched prediction counts
    as: see `intersection_and_union`.
    """
    return areas_to_iou(intersection_and_union(confusion, mapping))


def mean_iou(confusion: np.ndarray, mapping: np.ndarray) -> float:
    """Mean of `iou` over the classes that occur."""
    return float(np.nanmean(iou(confusion, mapping)))


def object_agreement(named: np.ndarray, target: np.ndarray, *, ignore: int = 255) -> float:
    """Share of one image's pixels with the right class, among those that the map or the truth calls
    an object.

    named, target: (H, W) class indices, 0 background; -1 in named is no class. 1.0 where neither
    sees an object.
    """
    seen = ((named != 0) | (target != 0)) & (target != ignore)
    return float((named == target)[seen].mean()) if seen.any() else 1.0


def _pairwise_iou(counts: np.ndarray) -> np.ndarray:
    union = counts.sum(1, keepdims=True) + counts.sum(0, keepdims=True) - counts
    return np.divide(counts, union, out=np.zeros(counts.shape), where=union > 0)


# ---------------------------------------------------------------- masks and boxes


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, H, W) bool, (m, H, W) bool -> (n, m) float64; two empty masks have IoU 0."""
    a, b = (
        masks.reshape(len(masks), int(np.prod(masks.shape[1:]))).astype(np.float64)
        for masks in (a, b)
    )
    both = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Boxes x0, y0, x1, y1 with exclusive ends: (n, 4), (m, 4) -> (n, m) float64."""
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    low, high = (
        np.maximum(a[:, None, :2], b[None, :, :2]),
        np.minimum(a[:, None, 2:], b[None, :, 2:]),
    )
    both = (high - low).clip(0).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)[None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def best_overlap(mask: np.ndarray, instances: np.ndarray) -> tuple[float, int]:
    """(H, W) bool against (n, H, W) bool -> (best IoU, its index); (0.0, -1) where there is no
    instance.
    """
    if not len(instances):
        return 0.0, -1
    overlaps = mask_iou(mask[None], instances)[0]
    return float(overlaps.max()), int(overlaps.argmax())


def top_iou(masks: Sequence[np.ndarray], instances: "Instances") -> float:
    """IoU of an image's first mask with the object that it overlaps best; 0 without either.

    Args:
        masks: (H, W) bool masks of the image, of which the first is judged.
        instances: Its true objects.
    """
    return best_overlap(masks[0], instances.masks)[0] if len(masks) else 0.0


def corloc(boxes: list, truths: list) -> float:
    """Share of images whose one predicted box (4,) or None has IoU >= 0.5 with any true box (n, 4)."""
    hits = [
        box is not None and len(true) > 0 and box_iou([box], true).max() >= 0.5
        for box, true in zip(boxes, truths, strict=True)
    ]
    return float(np.mean(hits))
