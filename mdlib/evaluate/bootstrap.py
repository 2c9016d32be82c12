"""Is a difference real?

A paired bootstrap over images and seeds, and the record of a claim that was tested.

Two arms are run on the same images, and with the same seeds. Images and seeds are drawn anew with
replacement, both arms alike, many times; the middle 95 % of the differences are the interval. Of n
images or seeds n - 1 are drawn: the spread of a mean then is the standard error (a draw of n would
be too narrow by sqrt((n - 1) / n), a fifth for three seeds) (1). Seeds and images are drawn
independently of each other, which errs on the wide side (2). With one seed the interval is about
images alone; three seeds are few, and their interval is a rough one.

1. McCarthy, Pseudo-replication: half samples, 1969; Rao and Wu, Resampling inference with complex
survey data, 1988.
2. Owen, The pigeonhole bootstrap, 2007.
"""

from dataclasses import dataclass

import numpy as np

from mdlib.evaluate.metrics import areas_to_iou

CONFIDENCE = 0.95  # share of the resamples inside an interval


@dataclass(frozen=True)
class Interval:
    """A difference of two arms, first minus second, and its interval.

    Attributes:
        value: the difference on all images and seeds.
        low: the lower end of the interval.
        high: its upper end.
    """

    value: float
    low: float
    high: float


def mean_difference(a: np.ndarray, b: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The mean of a minus that of b, with a paired bootstrap interval.

    Args:
        a: (images,) or (seeds, images) values of one arm.
        b: the values of the other arm, of the same shape, paired entry by entry.
        resamples: how often images and seeds are drawn anew.
        seed: of the draws.

    Returns:
        The difference, in the unit of a and b.

    Raises:
        ValueError: for shapes that differ, a single image, or values that are not finite.
    """
    a, b = _paired(a, b, axes=2)
    seeds, images = _draws(a.shape[:2], resamples=resamples, seed=seed)
    difference = a - b
    drawn = np.einsum("rs,si,ri->r", seeds, difference, images, optimize=True)
    return _effect(float(difference.mean()), drawn)


def miou_difference(a: np.ndarray, b: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The mIoU of a minus that of b, with a paired bootstrap interval.

    Areas are summed over the drawn images before they are divided, as mIoU is over a set; then the
    mean is taken over the classes that occur, and over the drawn seeds.

    Args:
        a: (images, 2, C) or (seeds, images, 2, C) areas of one arm in pixels, the
            `metrics.intersection_and_union` of each image.
        b: the areas of the other arm, of the same shape, paired entry by entry.
        resamples: how often images and seeds are drawn anew.
        seed: of the draws.

    Returns:
        The difference, in [-1, 1].

    Raises:
        ValueError: for shapes that differ, a single image, or values that are not finite.
    """
    a, b = _paired(a, b, axes=4)
    seeds, images = _draws(a.shape[:2], resamples=resamples, seed=seed)
    drawn = ((_mious(a, images) - _mious(b, images)) * seeds).sum(1)
    return _effect(float((miou(a) - miou(b)).mean()), drawn)


def miou(areas: np.ndarray) -> np.ndarray:
    """The mIoU of a set, from the areas of its images.

    Args:
        areas: (images, 2, C) or (seeds, images, 2, C), the `metrics.intersection_and_union` of
            each image in pixels.

    Returns:
        () or (seeds,) float64, mean over the classes that occur.
    """
    areas = np.asarray(areas)
    return _mious(areas.reshape(-1, *areas.shape[-3:]), np.ones((1, areas.shape[-3]))).reshape(
        areas.shape[:-3]
    )


def _paired(a: np.ndarray, b: np.ndarray, *, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Both with a leading axis of seeds, float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim not in (axes - 1, axes):
        raise ValueError(
            f"two arms on the same seeds and images are compared, got {a.shape} and {b.shape}"
        )
    a, b = (each[None] if each.ndim < axes else each for each in (a, b))
    if a.shape[1] < 2 or not len(a):
        raise ValueError(
            f"an interval needs two images or more, got {a.shape[1]} with {len(a)} seeds"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(
            "values must be finite: leave an image out of both arms, or give it a value"
        )
    return a, b


def _draws(size: tuple[int, int], *, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(resamples, S) and (resamples, I): how often each seed and image is drawn; rows sum to 1."""
    rng = np.random.default_rng(seed)

    def shares(count: int) -> np.ndarray:
        drawn = max(1, count - 1)
        return rng.multinomial(drawn, np.full(count, 1 / count), size=resamples) / drawn

    return shares(size[0]), shares(size[1])


def _mious(areas: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(S, I, 2, C) areas and (R, I) shares -> (R, S) mIoU."""
    drawn = np.einsum("ri,siac->rsac", images, areas, optimize=True)
    return np.nanmean(areas_to_iou(drawn), axis=-1)


def _effect(value: float, drawn: np.ndarray) -> Interval:
    """A value with the percentile interval of its (resamples,) drawn values."""
    low, high = np.percentile(drawn, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Interval(value, float(low), float(high))
