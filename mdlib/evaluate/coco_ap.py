"""COCO's average precision and recall of masks, and the paper's "single" protocol.

The evaluation is that of faster_coco_eval. AP is the mean over IoU thresholds 0.50, 0.55 ... 0.95
with at most 100 predictions an image; AR1, AR10 and AR100 are the recalls at 1, 10 and 100
predictions, averaged over the same thresholds.

Sizes are COCO's, in pixels of the picture as it is stored. On pictures much smaller than COCO's 640
x 480 few objects or none are "large", and a size that no object has is left out; limits that grow
with the picture would call nearly every object of the zoo large and tell less.

Sources: Lin et al., Microsoft COCO, arXiv 1405.0312; cocodataset.org, detection evaluation.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from mdlib.core.mask import Mask
from mdlib.data.sample import Instances
from mdlib.evaluate.metrics import UNMATCHED, best_overlap, box_iou

# pixels, COCO's
SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100  # predictions of one image that COCO looks at


@dataclass(frozen=True)
class CocoScores:
    """The numbers of an evaluation, and its curves of precision over recall.

    Attributes:
        values: AP, AP50, AP75, AR1, AR10, AR100, and AP_small, AR_small ... of the sizes that
            occur, in [0, 1]; empty without an object.
        precision: (10, 101) float64, the precision at THRESHOLDS and RECALLS, made monotone, mean
            over classes.
    """

    values: dict[str, float]
    precision: np.ndarray


def coco_scores(
    images: Sequence[Sequence[Mask]],
    truths: Iterable[Instances],
    *,
    names: np.ndarray | None = None,
) -> CocoScores:
    """COCO's evaluation of masks over a data set.

    In a crowd region predictions are ignored, whatever their class. A prediction without a pixel is
    none.

    Args:
        images: the predictions of each image.
        truths: the true objects of each image, looked at once and in order.
        names: (k,) the class of each cluster, from 1, for an evaluation by class; predictions in a
            cluster of -1 are of no class and are left out (`named`). None: class-agnostic.

    Returns:
        The scores; zeros where nothing was predicted.

    Raises:
        ValueError: where there are only boxes, or the numbers of images differ.
    """
    truth = _annotations(truths, by_class=names is not None)
    if len(images) != len(truth["images"]):
        raise ValueError(
            f"predictions of {len(images)} images, true objects of {len(truth['images'])}"
        )
    found = [
        {
            "image_id": i,
            "category_id": 1 if names is None else int(names[mask.cluster]),
            "score": mask.score,
            "segmentation": mask.rle,
        }
        for i, masks in enumerate(images if names is None else named(images, names))
        for mask in _with_pixels(masks)
    ]
    if not found or not any(not each["iscrowd"] for each in truth["annotations"]):
        return _without_predictions(truth)
    reference = COCO(truth)
    judge = COCOeval_faster(reference, reference.loadRes(found), "segm")
    judge.params.maxDets = [1, 10, MAX_DETECTIONS]
    judge.params.iouThrs, judge.params.recThrs = THRESHOLDS, RECALLS
    judge.params.areaRng, judge.params.areaRngLbl = (
        [list(SIZES[size]) for size in SIZES],
        list(SIZES),
    )
    judge.evaluate()
    judge.accumulate()
    # (T, R, K, A, M), (T, K, A, M); -1: no object
    precision, recall = judge.eval["precision"], judge.eval["recall"]
    return CocoScores(_values(precision, recall), _mean(precision[:, :, :, 0, -1], axis=2))


def single(
    images: Sequence[Sequence[Mask]], truths: Iterable[Instances], *, overlap: str
) -> tuple[list[list[Mask]], Iterator[Instances]]:
    """The "single" protocol: one prediction of each image against the object that it overlaps best.

    An image without a prediction keeps one object, its largest, which is missed; one without an
    object keeps its prediction, which is a false alarm. Crowds are left out.

    Args:
        images: the predictions of each image, as `coco_scores` takes them.
        truths: the true objects of each image, looked at once and in order.
        overlap: what is compared to choose the object: "box" (the paper) or "mask".

    Returns:
        images: the most confident prediction of each image.
        truths: one object of each image; they come one image at a time.

    Raises:
        ValueError: `overlap` is neither.
    """
    if overlap not in ("box", "mask"):
        raise ValueError(f'overlap must be "box" or "mask", got {overlap!r}')
    seen = map(_with_pixels, images)
    best = [[max(masks, key=lambda mask: mask.score)] if masks else [] for masks in seen]
    pairs = zip(best, truths, strict=True)
    return best, (_reduced(kept, true, overlap) for kept, true in pairs)


def _with_pixels(masks: Sequence[Mask]) -> list[Mask]:
    """The predictions that have a pixel."""
    return [mask for mask in masks if mask.area]


def _reduced(kept: list[Mask], true: Instances, overlap: str) -> Instances:
    """The one object of an image that the "single" protocol judges; none where there is none."""
    if not len(true.labels):
        chosen = []
    elif not kept:
        chosen = [int(true.masks.sum((1, 2)).argmax())]
    elif overlap == "box":
        chosen = [reduce_to_best_box(np.array(kept[0].box), true.boxes)]
    else:
        chosen = [best_overlap(kept[0].pixels(), true.masks)[1]]
    return Instances(masks=true.masks[chosen], labels=true.labels[chosen])


def named(images: Sequence[Sequence[Mask]], names: np.ndarray) -> list[list[Mask]]:
    """The predictions whose cluster has a class.

    A prediction of no class can neither be right nor wrong.

    Args:
        images: the predictions of each image.
        names: (k,) the class of each cluster, from 1; -1 where it has none.

    Returns:
        The predictions that are left, image by image, in their order.
    """
    return [[mask for mask in masks if names[mask.cluster] != UNMATCHED] for masks in images]


def _annotations(truths: Iterable[Instances], *, by_class: bool) -> dict:
    """The true objects as a COCO file; crowds of an unknown class are crowds of every class."""
    sizes, objects, crowds = [], [], []
    for i, true in enumerate(truths):
        if not true.has_masks:
            raise ValueError("these objects have boxes alone: masks cannot be judged by them")
        sizes.append(true.masks.shape[1:])
        objects += [
            _annotation(i, pixels) | {"category_id": int(label) if by_class else 1}
            for pixels, label in zip(true.masks, true.labels, strict=True)
        ]
        crowds += [_annotation(i, pixels) for pixels in true.crowds]
    categories = sorted({each["category_id"] for each in objects}) if by_class else [1]
    objects += [{**crowd, "category_id": c, "iscrowd": 1} for crowd in crowds for c in categories]
    return {
        "images": [{"id": i, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(sizes)],
        "categories": [{"id": c, "name": str(c)} for c in categories],
        "annotations": [{**each, "id": 1 + n} for n, each in enumerate(objects)],
    }


def _annotation(image: int, pixels: np.ndarray) -> dict:
    """(H, W) bool as an annotation of a COCO file."""
    return Mask.from_pixels(pixels, image_id=str(image)).to_coco(number=0, image_number=image)


def _without_predictions(truth: dict) -> CocoScores:
    """Zero for all that can be found; nothing where there is no object."""
    areas = np.array([each["area"] for each in truth["annotations"] if not each["iscrowd"]])
    exists = np.array([((low <= areas) & (areas <= high)).any() for low, high in SIZES.values()])
    shape = (len(THRESHOLDS), len(RECALLS), 1, len(SIZES), 3)
    precision = np.broadcast_to(np.where(exists, 0.0, -1.0)[:, None], shape)
    return CocoScores(_values(precision, precision[:, 0]), np.zeros(shape[:2]))


def _values(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """(T, R, K, A, M) precision and (T, K, A, M) recall -> the numbers by their names."""
    values = {
        "AP": precision[..., 0, -1],
        "AP50": precision[0, ..., 0, -1],
        "AP75": precision[5, ..., 0, -1],
    }
    values |= {f"AR{most}": recall[..., 0, m] for m, most in enumerate((1, 10, MAX_DETECTIONS))}
    for a, size in enumerate(SIZES):
        if size != "all":
            values |= {f"AP_{size}": precision[..., a, -1], f"AR_{size}": recall[..., a, -1]}
    return {name: float(_mean(value)) for name, value in values.items() if (value > -1).any()}


def _mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean over what is not -1, COCO's mark for "no object"; 0 where nothing is."""
    there = values > -1
    return np.where(there, values, 0).sum(axis) / there.sum(axis).clip(1)


def reduce_to_best_box(box: np.ndarray, true_boxes: np.ndarray) -> int:
    """The true box that a predicted box overlaps best.

    For the "single" protocol, whose ground truth is this one object. A box that touches none still
    gets index 0: the object counts as missed, it does not vanish from the truth.

    Args:
        box: (4,) x0, y0, x1, y1 in pixels, ends exclusive.
        true_boxes: (n, 4), likewise.

    Returns:
        The index of the true box, the first on a tie; -1 only where n = 0.
    """
    return int(box_iou(box, true_boxes)[0].argmax()) if len(true_boxes) else -1


def average_precision(scores: np.ndarray, hits: np.ndarray, positives: int) -> float:
    """COCO's AP at one threshold: precision made monotone, averaged at 101 recalls.

    Args:
        scores: (n,) of all predictions, higher is more confident.
        hits: (n,) bool, whether each found an object.
        positives: number of true objects.

    Returns:
        The average precision, in [0, 1]; NaN without a true object.
    """
    if positives == 0:
        return float("nan")
    order = np.argsort(-np.asarray(scores, np.float64), kind="mergesort")
    hits = np.asarray(hits, bool)[order]
    found = hits.cumsum()
    recall, precision = found / positives, found / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    where = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[np.minimum(where, len(hits))].mean())


def detection_hits(scores: np.ndarray, overlaps: np.ndarray, *, threshold: float) -> np.ndarray:
    """COCO's greedy matching of predictions to true objects, in one image.

    Best score first (stable on ties), a prediction takes the free object that it overlaps most, if
    that IoU reaches the threshold; on equal IoUs the last one, as pycocotools. Source: pycocotools,
    COCOeval.evaluateImg (no crowds).

    Args:
        scores: (n,) of the predictions.
        overlaps: (n, m) IoU of each prediction with each true object.
        threshold: the lowest IoU of a hit, in (0, 1].

    Returns:
        (n,) bool, whether each prediction found an object, in the order given.

    Raises:
        ValueError: where the shapes do not fit.
    """
    scores, overlaps = np.asarray(scores, np.float64), np.asarray(overlaps, np.float64)
    if scores.ndim != 1 or overlaps.ndim != 2 or len(scores) != len(overlaps):
        raise ValueError(
            f"expected scores (n,) and overlaps (n, m), got {scores.shape} and {overlaps.shape}"
        )
    hits, free = np.zeros(len(scores), bool), np.ones(overlaps.shape[1], bool)
    for i in np.argsort(-scores, kind="stable"):
        allowed = np.flatnonzero(free & (overlaps[i] >= min(threshold, 1 - 1e-10)))
        if len(allowed):
            best = allowed[overlaps[i, allowed] == overlaps[i, allowed].max()][-1]
            hits[i], free[best] = True, False
    return hits
