"""Scores of masks, risk-coverage curves by hand, and shares that are equal."""

import itertools

import numpy as np
import pytest

from mdlib.core.mask import Mask
from mdlib.data.zoo import ZooDataset
from mdlib.evaluate.bootstrap import mean_difference
from mdlib.studies.filtering import (
    confirmed_share,
    coverage_curve,
    influence,
    keep_at_random,
    keep_best,
    mask_quality,
    mask_scores,
    order_skill,
)

# five masks: what the model thinks of them, and what they are worth
SCORES = np.array([0.9, 0.1, 0.5, 0.7, 0.3])
QUALITY = np.array([0.8, 0.2, 0.6, 0.0, 0.4])


def band(start: int, stop: int, *, cluster: int, score: float = 1.0) -> Mask:
    """Columns of a picture of 4 x 10 pixels."""
    pixels = np.zeros((4, 10), bool)
    pixels[:, start:stop] = True
    return Mask.from_pixels(pixels, image_id="a", score=score, cluster=cluster)


# ---------------------------------------------------------------- scores of masks


def test_the_score_is_that_of_the_best_prediction_of_its_cluster():
    masks = [band(0, 4, cluster=1), band(6, 10, cluster=2), band(4, 6, cluster=3)]
    predictions = [
        band(0, 4, cluster=2, score=1.0),  # the first mask to the pixel, but another cluster
        band(0, 8, cluster=1, score=0.8),  # IoU 1/2 with the first mask
        band(0, 3, cluster=1, score=0.4),  # IoU 3/4
        band(0, 2, cluster=3, score=0.9),  # beside the third mask
    ]
    np.testing.assert_allclose(mask_scores(masks, predictions), [0.8 / 2, 0, 0])
    np.testing.assert_allclose(mask_scores(masks, predictions[2:]), [0.4 * 3 / 4, 0, 0])


def test_without_masks_or_predictions_there_is_no_score():
    assert mask_scores([], [band(0, 2, cluster=0)]).shape == (0,)
    assert mask_scores([band(0, 2, cluster=0)], []).tolist() == [0]


def test_quality_is_the_iou_with_the_object(zoo_root):
    zoo = ZooDataset(zoo_root, "train", 3)
    masks = []
    for i, name in enumerate(zoo.ids):
        pixels = zoo.instances(i).masks[0].copy()
        if i == 1:
            pixels[:] = False
            pixels[0, 0] = True
        masks.append(Mask.from_pixels(pixels, image_id=name))
    quality = mask_quality(masks, zoo)
    assert quality[[0, 2]].tolist() == [1, 1] and quality[1] < 0.01


# ---------------------------------------------------------------- curves


def test_the_curve_of_five_masks_by_hand():
    # in the order of their scores: 0.8, 0.0, 0.6, 0.4, 0.2
    expected = [0.8, 0.8 / 2, 1.4 / 3, 1.8 / 4, 2.0 / 5]
    np.testing.assert_allclose(coverage_curve(SCORES, QUALITY), expected)


def test_masks_of_one_score_share_their_quality():
    np.testing.assert_allclose(coverage_curve(np.ones(5), QUALITY), [0.4] * 5)
    tied = np.array([1.0, 0.0, 0.0, 1.0, 0.0])  # 0.8 and 0.0 first, in any order
    np.testing.assert_allclose(coverage_curve(tied, QUALITY)[:2], [0.4, 0.4])


def test_no_order_beats_the_oracle_and_random_orders_average_to_the_mean():
    oracle = coverage_curve(QUALITY, QUALITY)
    curves = [
        coverage_curve(np.array(order), QUALITY) for order in itertools.permutations(range(5))
    ]
    assert all((curve <= oracle + 1e-12).all() for curve in curves)
    np.testing.assert_allclose(np.mean(curves, 0), [0.4] * 5)
    skills = [order_skill(np.array(order), QUALITY) for order in itertools.permutations(range(5))]
    assert max(skills) == pytest.approx(1) and np.mean(skills) == pytest.approx(0)


def test_skill_is_one_for_the_oracle_and_zero_for_no_order():
    assert order_skill(QUALITY, QUALITY) == pytest.approx(1)
    assert order_skill(np.zeros(5), QUALITY) == pytest.approx(0)
    assert order_skill(-QUALITY, QUALITY) < 0
    assert order_skill(SCORES, np.ones(5)) == 0
    area, best = np.mean([0.8, 0.4, 1.4 / 3, 0.45, 0.4]), np.mean([0.8, 0.7, 0.6, 0.5, 0.4])
    assert order_skill(SCORES, QUALITY) == pytest.approx((area - 0.4) / (best - 0.4))


# ---------------------------------------------------------------- what is kept


def test_shares_are_equal_and_the_best_are_kept(rng):
    for share in (0.2, 0.34, 0.5, 1.0):
        best = keep_best(SCORES, share=share)
        assert best.sum() == keep_at_random(5, share=share, rng=rng).sum() == round(5 * share)
        assert SCORES[best].min() >= SCORES[~best].max(initial=0)
    assert keep_best(np.zeros(4), share=0.5).tolist() == [True, True, False, False]


def test_every_mask_is_kept_at_random_as_often():
    rng = np.random.default_rng(0)
    often = np.mean([keep_at_random(5, share=0.4, rng=rng) for _ in range(4000)], 0)
    np.testing.assert_allclose(often, 0.4, atol=0.03)


def test_the_share_is_that_of_confirmed_masks_or_the_least():
    assert confirmed_share(SCORES, threshold=0.9, least=0.1) == 0.6  # 0.9, 0.5 and 0.7
    assert confirmed_share(SCORES, threshold=0.9, least=0.8) == 0.8
    # a mask that a prediction at the threshold covers by a half is confirmed
    scores = mask_scores([band(0, 4, cluster=1)], [band(0, 8, cluster=1, score=0.6)])
    assert confirmed_share(scores, threshold=0.6, least=0.1) == 1
    assert confirmed_share(scores, threshold=0.61, least=0.1) == 0.1


def test_influence_has_the_mean_of_what_is_kept_and_its_spread_over_pictures(rng):
    quality = rng.random(300)
    kept = rng.random(300) < quality
    values = influence(quality, kept)
    assert values.mean() == pytest.approx(quality[kept].mean())
    np.testing.assert_allclose(influence(quality, np.ones(300, bool)), quality)
    draws = rng.integers(300, size=(4000, 300))
    gains = [quality[d][kept[d]].mean() - quality[d].mean() for d in draws]
    effect = mean_difference(values, quality)
    assert effect.high - effect.value == pytest.approx(1.96 * np.std(gains), rel=0.06)
