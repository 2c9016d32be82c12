"""Is a difference real?

Two arms are run on the same pictures, and with the same seeds. Both are drawn by chance: another
training or other pictures would give another difference. Its variance is therefore the sum of two
parts (1),

    V = v_seeds / S + v_pictures / n

v_seeds: variance of the S seeds' differences; v_pictures: variance of the n pictures' differences,
each a mean over seeds. What neither seed nor picture explains is in both parts, which errs on the
wide side (2). The interval is the difference +- t sqrt(V), with t of Satterthwaite's degrees of
freedom (3):

    V^2 / ((v_seeds / S)^2 / (S - 1) + (v_pictures / n)^2 / (n - 1))

With one seed only the second part is left: the interval then says nothing of another training. An
mIoU is no mean over pictures, so there the second part is the variance of a bootstrap over them.

Pictures that share something, an animal for example, are not independent of each other. With
`groups` the group is drawn in place of the picture, and the interval is about other groups (4).

1. Bouthillier et al., Accounting for variance in machine learning benchmarks, 2021.
2. Owen, The pigeonhole bootstrap, 2007.
3. Satterthwaite, An approximate distribution of estimates of variance components, 1946.
4. Cameron and Miller, A practitioner's guide to cluster-robust inference, 2015.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from mdlib.evaluate.metrics import areas_to_iou

CONFIDENCE = 0.95  # how often such an interval is meant to hold the true difference


@dataclass(frozen=True)
class Effect:
    """A difference of two arms, first minus second.

    Attributes:
        value: the difference on all pictures and seeds.
        low: the lower end of its interval.
        high: the upper end.
        p: the two-sided p-value of "there is no difference"; below 1 - CONFIDENCE where the
            interval excludes zero.
    """

    value: float
    low: float
    high: float
    p: float


def mean_difference(a: np.ndarray, b: np.ndarray, *, groups: np.ndarray | None = None) -> Effect:
    """The mean of a minus that of b.

    Args:
        a: (images,) or (seeds, images) values of one arm.
        b: the values of the other arm, of the same shape, paired entry by entry.
        groups: (images,) a label of each picture: pictures of one label are drawn together; None:
            each picture by itself.

    Returns:
        The difference, in the unit of a and b.

    Raises:
        ValueError: for shapes that differ, less than two pictures or groups, or values that are
            not finite.
    """
    a, b = _paired(a, b, axes=2)
    difference = a - b  # (S, n)
    by_image = difference.mean(0)
    count, member = _units(groups, np.ones(len(by_image), bool))
    # of each group, how far its pictures move the mean
    moved = np.bincount(member, by_image - by_image.mean()) / len(by_image)
    return _effect(difference.mean(1), float(moved @ moved), count)


def miou_difference(
    a: np.ndarray,
    b: np.ndarray,
    *,
    resamples: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> Effect:
    """The mIoU of a minus that of b.

    An mIoU is as in `miou`, in each resample for both arms over the same classes: those of the
    drawn truth. (A class that only one arm predicts, on a single pixel, would otherwise cost that
    arm alone a whole class.)

    Args:
        a: (images, 3, C) or (seeds, images, 3, C) areas of one arm in pixels, the
            `metrics.class_areas` of each image.
        b: the areas of the other arm, of the same shape, paired entry by entry.
        resamples: how often pictures are drawn anew; 2 or more.
        seed: of the draws.
        groups: (images,) a label of each picture: pictures of one label are drawn together; None:
            each picture by itself.

    Returns:
        The difference, in [-1, 1].

    Raises:
        ValueError: for shapes or truths that differ, less than two pictures or groups with truth,
            or values that are not finite.
    """
    return miou_contrast([a, b], [1, -1], resamples=resamples, seed=seed, groups=groups)


def miou_contrast(
    arms: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    resamples: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> Effect:
    """A weighted sum of the mIoU of several arms, see `miou_difference`.

    The weights 1, -1, -1, 1 make (a - b) - (c - d), an interaction: how much more the step from a
    to b costs than the step from c to d.

    Args:
        arms: for each arm (images, 3, C) or (seeds, images, 3, C) areas in pixels, of one shape,
            paired entry by entry.
        weights: of each arm; they sum to 0.
        resamples: as in `miou_difference`.
        seed: as in `miou_difference`.
        groups: as in `miou_difference`.

    Returns:
        The sum, in mIoU.

    Raises:
        ValueError: as `miou_difference`, and for another number of weights than arms.
    """
    if len(arms) != len(weights):
        raise ValueError(f"each of {len(arms)} arms needs one weight, got {len(weights)}")
    areas = np.stack([_paired(arms[0], arm, axes=4)[1] for arm in arms])  # (A, S, n, 3, C)
    truth = areas[0, 0, :, 2]  # (n, C)
    if (areas[..., 2, :] != truth).any():
        raise ValueError("all arms and seeds must be judged on the same true areas")
    labelled = np.asarray(truth.any(-1))  # a picture that is void all over says nothing
    count, member = _units(groups, labelled)
    by_image = areas[:, :, labelled].transpose(2, 1, 0, 3, 4)  # (n, S, A, 3, C)
    units = np.zeros((count, *by_image.shape[1:]))
    np.add.at(units, member, by_image)
    shares = np.full(count, 1 / count)
    draws = np.random.default_rng(seed).multinomial(count, shares, size=resamples)  # (R, units)
    signed = list(zip(weights, range(len(arms)), strict=True))
    drawn = sum(weight * _mious(units[:, :, arm], draws) for weight, arm in signed)  # (R, S)
    whole = sum(weight * miou(areas[arm]) for weight, arm in signed)  # (S,)
    return _effect(np.asarray(whole), np.asarray(drawn).mean(1).var(ddof=1), count)


def miou(areas: np.ndarray) -> np.ndarray:
    """The mIoU of a set, from the areas of its images.

    Areas are summed over the images before they are divided; then the mean is taken over the
    classes that the truth has.

    Args:
        areas: (images, 3, C) or (seeds, images, 3, C), the `metrics.class_areas` of each image in
            pixels.

    Returns:
        () or (seeds,) float64.
    """
    areas = np.asarray(areas)
    by_image = areas.reshape(-1, *areas.shape[-3:]).swapaxes(0, 1)  # (n, S, 3, C)
    return _mious(by_image, np.ones((1, len(by_image)))).reshape(areas.shape[:-3])


def _paired(a: np.ndarray, b: np.ndarray, *, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Both with a leading axis of seeds, float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim not in (axes - 1, axes) or 0 in a.shape:
        raise ValueError(
            f"two arms on the same seeds and images are compared, got {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(
            "values must be finite: leave an image out of both arms, or give it a value"
        )
    return (a, b) if a.ndim == axes else (a[None], b[None])


def _units(groups: np.ndarray | None, kept: np.ndarray) -> tuple[int, np.ndarray]:
    """How many units are drawn, and the number of each kept image's unit; kept: (images,) bool."""
    labels = np.arange(len(kept)) if groups is None else np.asarray(groups)
    if labels.shape != kept.shape:
        raise ValueError(f"each of {len(kept)} images needs one group, got shape {labels.shape}")
    names, member = np.unique(labels[kept], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"an interval needs two images or groups, got {len(names)}")
    return len(names), member


def _mious(areas: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(units, S, 3, C) areas and (R, units) how often each is drawn -> (R, S) mIoU."""
    drawn = np.einsum("ru,usac->rsac", draws, areas, optimize=True)
    return np.mean(areas_to_iou(drawn), axis=-1, where=drawn[..., 2, :] > 0)


def _effect(by_seed: np.ndarray, spread: float, units: int) -> Effect:
    """The effect of (S,) differences whose mean varies by `spread` if units are drawn anew."""
    value = float(by_seed.mean())
    parts = [(spread * units / (units - 1), units - 1)]  # a bootstrap divides by n, not n - 1
    if len(by_seed) > 1:
        parts.append((by_seed.var(ddof=1) / len(by_seed), len(by_seed) - 1))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Effect(value, value, value, float(value == 0))
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    error = np.sqrt(variance)
    reach = stdtrit(freedom, (1 + CONFIDENCE) / 2) * error
    p = 2 * stdtr(freedom, -abs(value) / error)
    return Effect(value, float(value - reach), float(value + reach), float(p))
