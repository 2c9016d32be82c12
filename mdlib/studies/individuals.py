"""Do the numbers hold for animals that no stage has met?

The zoo names its animals, and some of them stand in dev or val alone. So the numbers of val can be
taken again on a part of it: on scenes whose animals all stand in train, too, or on the others.
"""

from collections.abc import Sequence

import numpy as np

from mdlib.core.mask import Mask
from mdlib.data import Dataset
from mdlib.data.sample import Instances
from mdlib.evaluate import coco_ap, metrics


def familiar_scenes(dataset: Dataset, train: Dataset) -> np.ndarray | None:
    """Which scenes hold no animal but such as stand in `train`, too.

    Args:
        dataset: with objects.
        train: likewise.

    Returns:
        (n,) bool, where a scene without an object is familiar; None where objects have no names,
        so that nobody knows which are the same.
    """
    if not any(dataset.instances(i).names for i in range(len(dataset))):  # the smaller set first
        return None
    known = {name for i in range(len(train)) for name in train.instances(i).names}
    return np.array([known.issuperset(dataset.instances(i).names) for i in range(len(dataset))])


def score_masks(images: Sequence[Sequence[Mask]], truths: Sequence[Instances]) -> dict[str, float]:
    """Judge the masks of some images, each image's best one first.

    Args:
        images: the masks of each image, with scores.
        truths: its objects.

    Returns:
        "mask_iou", the mean IoU of the first masks with the objects that they overlap best;
        "corloc", the share of first boxes with IoU >= 0.5; "ap50_single" and "ap50_multi", as 09
        has them. NaN where no image holds an object.
    """
    holding = [i for i, true in enumerate(truths) if len(true.labels)]
    if not holding:
        return dict.fromkeys(("mask_iou", "corloc", "ap50_single", "ap50_multi"), np.nan)
    ious = [metrics.top_iou([m.pixels() for m in images[i][:1]], truths[i]) for i in holding]
    boxes = [images[i][0].box if images[i] else None for i in holding]
    best, reduced = coco_ap.single(images, truths, overlap="box")
    return {
        "mask_iou": float(np.mean(ious)),
        "corloc": metrics.corloc(boxes, [truths[i].boxes for i in holding]),
        "ap50_single": coco_ap.coco_scores(best, reduced).values["AP50"],
        "ap50_multi": coco_ap.coco_scores(images, truths).values["AP50"],
    }


def score_maps(confusion: np.ndarray, mapping: np.ndarray) -> float:
    """The mIoU of a part of a set: the mean over the classes that truly stand in it.

    (`metrics.mean_iou` also counts classes that are predicted alone. On a part with few objects
    that would be most of them.)

    Args:
        confusion: (rows, C) pixels of the part's images.
        mapping: (rows,) the class of each row, -1 where it has none.
    """
    return float(metrics.iou(confusion, mapping)[confusion.sum(0) > 0].mean())
