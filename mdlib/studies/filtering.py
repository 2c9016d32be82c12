"""Does a model know which masks are good? Scores of masks, and what is left at each share kept.

Risk-coverage curves (1) compare an order of masks with two others: a random one, which no knowledge
goes into, and that of the true quality (the oracle), which no order can beat.

1. El-Yaniv, Wiener, On the foundations of noise-free selective classification, JMLR 2010.
"""

from collections.abc import Sequence

import numpy as np

from mdlib.core.mask import Mask
from mdlib.data import Dataset
from mdlib.evaluate import metrics
from mdlib.method.pseudo_labels import stack_masks


def mask_scores(masks: Sequence[Mask], predictions: Sequence[Mask]) -> np.ndarray:
    """How much a detector agrees with masks that it did not make, of one image.

    The score of a mask is the largest product of a prediction's score and its IoU with the mask,
    over the predictions of the mask's own cluster. The prediction's score alone would say that
    such an object is there, not that this mask is the object; the IoU alone would trust predictions
    that the detector itself does not believe.

    Args:
        masks: n masks with clusters.
        predictions: of the same image, with clusters and scores in [0, 1]; any number.

    Returns:
        (n,) float64 in [0, 1]; 0 where no prediction of the cluster touches the mask.
    """
    scores = np.zeros(len(masks))
    if not masks or not predictions:
        return scores
    pixels, clusters, _ = stack_masks(masks, masks[0].size)
    predicted, guessed, believed = stack_masks(predictions, predictions[0].size)
    same = clusters[:, None] == guessed[None]
    return (metrics.mask_iou(pixels, predicted) * believed * same).max(1)


def mask_quality(masks: Sequence[Mask], dataset: Dataset) -> np.ndarray:
    """IoU of each mask with the true object that it overlaps best.

    Args:
        masks: n masks.
        dataset: their pictures, with masks of objects.

    Returns:
        (n,) float64 in [0, 1].
    """
    truths = (dataset.instances(dataset.index_of(mask.image_id)).masks for mask in masks)
    pairs = zip(masks, truths, strict=True)
    return np.array([metrics.best_overlap(mask.pixels(), true)[0] for mask, true in pairs])


def coverage_curve(scores: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Mean quality of the masks that are kept, for each number of them.

    Args:
        scores: (n,); the masks with the largest ones are kept. Masks with equal scores share their
            mean quality, as if their order were random.
        quality: (n,) what a mask is worth, such as its IoU.

    Returns:
        (n,) float64: entry m - 1 is the mean quality of the m best masks.
    """
    _, tie = np.unique(-np.asarray(scores), return_inverse=True)
    fair = (np.bincount(tie, quality) / np.bincount(tie))[tie]
    best_first = fair[np.argsort(tie, kind="stable")]
    return np.cumsum(best_first) / np.arange(1, len(best_first) + 1)


def order_skill(scores: np.ndarray, quality: np.ndarray) -> float:
    """How far an order of masks is on the way from a random one to the oracle.

    Args:
        scores: as in `coverage_curve`.
        quality: as in `coverage_curve`.

    Returns:
        Area between the curve of `scores` and that of a random order, over the same area of the
        oracle: 1 is the oracle, 0 a random order, below 0 a worse one; 0 where all masks are of
        the same quality.
    """
    random = np.mean(quality)
    oracle = coverage_curve(quality, quality).mean() - random
    return float((coverage_curve(scores, quality).mean() - random) / oracle) if oracle > 0 else 0.0


def confirmed_share(scores: np.ndarray, *, threshold: float, least: float) -> float:
    """Which share of masks a filter should keep, chosen without a label.

    A mask is confirmed where a prediction that stage 4 would keep covers it with an IoU of a half,
    as a match is counted everywhere: where its score is half the threshold or more.

    Args:
        scores: (n,) of `mask_scores`.
        threshold: stage 4's.
        least: the least share, in (0, 1]: a segmenter needs something to learn from.

    Returns:
        The share of confirmed masks, or `least`, in (0, 1].
    """
    return max(least, float(np.mean(np.asarray(scores) >= threshold / 2)))


def keep_best(scores: np.ndarray, *, share: float) -> np.ndarray:
    """Keep the masks with the largest scores.

    Args:
        scores: (n,); on a tie the lower index is kept.
        share: of the masks, in (0, 1]; their number is rounded.

    Returns:
        (n,) bool.
    """
    kept = np.zeros(len(scores), bool)
    kept[np.argsort(-np.asarray(scores), kind="stable")[: round(share * len(scores))]] = True
    return kept


def keep_at_random(count: int, *, share: float, rng: np.random.Generator) -> np.ndarray:
    """Keep as many masks as `keep_best`, drawn at random.

    Args:
        count: number of masks, n.
        share: as in `keep_best`.
        rng: draws them.

    Returns:
        (n,) bool.
    """
    return keep_best(rng.random(count), share=share)


def influence(quality: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """What each mask adds to the mean quality of those kept, for an interval over pictures.

    A mean over a chosen part is a ratio of two sums, and both change where other pictures are
    drawn. To first order it changes like the mean of these values (the delta method).

    Args:
        quality: (n,).
        kept: (n,) bool, one True or more.

    Returns:
        (n,) float64 whose mean is the mean quality of the kept masks.
    """
    mean = np.mean(quality[kept])
    return mean + kept * (quality - mean) / np.mean(kept)
