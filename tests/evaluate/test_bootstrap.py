"""Effects and their intervals: closed forms, slow versions, and how often they are right."""

import numpy as np
import pytest
from scipy import stats

from mdlib.evaluate import bootstrap, metrics
from mdlib.evaluate.bootstrap import Effect, mean_difference, miou_difference

OPTIONS = {"resamples": 2000, "seed": 0}


@pytest.fixture
def confusions(rng):
    """Per-image confusion matrices of two arms on the same true maps: (images, preds, classes)
    each.
    """
    true = rng.integers(0, 4, (12, 20, 20))
    preds = [
        np.where(rng.random(true.shape) < share, true, rng.integers(0, 5, true.shape))
        for share in (0.8, 0.5)
    ]
    return [
        np.stack(
            [
                metrics.confusion(p, t, num_preds=5, num_targets=4)
                for p, t in zip(pred, true, strict=True)
            ]
        )
        for pred in preds
    ]


def areas_of(confusions, mapping):
    """Of each image: (images, 3, C)."""
    return np.stack([metrics.class_areas(each, mapping) for each in confusions])


def against_nothing(difference, **options) -> Effect:
    return mean_difference(difference, np.zeros_like(difference), **options)


def ends(effect: Effect) -> list[float]:
    return [effect.low, effect.high]


def off_zero(effect: Effect) -> bool:
    return effect.low > 0 or effect.high < 0


# ---------------------------------------------------------------- means


def test_with_one_seed_it_is_the_paired_t_test(rng):
    a, b = rng.random((2, 30))
    judge = stats.ttest_rel(a, b)
    effect = mean_difference(a, b)
    np.testing.assert_allclose(ends(effect), judge.confidence_interval(0.95))
    assert effect.p == pytest.approx(judge.pvalue) and effect.value == pytest.approx((a - b).mean())
    assert mean_difference(a[None], b[None]) == effect


def test_with_seeds_both_variances_add_up_with_satterthwaites_freedom():
    difference = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]])
    # seeds 2 and 4: variance 2, over 2; pictures 2, 2 and 5: variance 3, over 3
    variance, freedom = 1 + 1, (1 + 1) ** 2 / (1 / 1 + 1 / 2)
    law = stats.t(freedom, loc=3, scale=np.sqrt(variance))
    effect = against_nothing(difference)
    assert effect.value == 3
    np.testing.assert_allclose(ends(effect), law.ppf([0.025, 0.975]))
    assert effect.p == pytest.approx(2 * law.cdf(0))


def test_a_difference_that_is_the_same_everywhere_has_an_interval_of_no_width():
    ones = np.ones((3, 40))
    assert mean_difference(1.25 * ones, ones) == Effect(0.25, 0.25, 0.25, 0.0)
    assert mean_difference(ones, ones) == Effect(0.0, 0.0, 0.0, 1.0)


def test_pairing_removes_what_both_arms_share(rng):
    hard = rng.normal(0, 5, 60)  # some images are hard for both
    a, b = hard + 0.5 + rng.normal(0, 0.1, 60), hard + rng.normal(0, 0.1, 60)
    together, apart = mean_difference(a, b), mean_difference(a, rng.permutation(b))
    assert together.high - together.low < 0.1 * (apart.high - apart.low)
    assert together.low > 0


def test_swapping_the_arms_swaps_the_ends(rng):
    a, b = rng.random((2, 3, 20))
    there, back = mean_difference(a, b), mean_difference(b, a)
    np.testing.assert_allclose(
        [there.value, there.low, there.high, there.p], [-back.value, -back.high, -back.low, back.p]
    )


# ---------------------------------------------------------------- mIoU


def test_areas_summed_and_divided_are_the_iou_of_the_set(confusions):
    mapping = np.array([0, 1, 2, -1, 3])
    areas = np.stack([areas_of(each, mapping) for each in confusions])
    np.testing.assert_allclose(
        metrics.areas_to_iou(areas[0].sum(0)), metrics.iou(confusions[0].sum(0), mapping)
    )
    expected = [metrics.mean_iou(each.sum(0), mapping) for each in confusions]
    np.testing.assert_allclose(bootstrap.miou(areas), expected)
    assert bootstrap.miou(areas[0]) == pytest.approx(expected[0])


def miou_spec(areas):
    """Of (images, 3, C), class by class."""
    hits, unions, truth = areas.sum(0)
    return np.mean([hits[c] / unions[c] for c in range(len(truth)) if truth[c] > 0])


def test_miou_difference_equals_loops_over_resamples(confusions):
    mapping = np.array([0, 1, 2, 3, -1])
    # two "seeds": the same truth, of the second arm's predictions or the first's
    first, second = (areas_of(each, mapping) for each in confusions)
    a, b = np.stack([first, first]), np.stack([second, (first + second) / 2])
    drawn = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=50)
    loops = [
        np.mean([miou_spec(x[rows]) - miou_spec(y[rows]) for x, y in zip(a, b, strict=True)])
        for rows in (np.repeat(np.arange(12), times) for times in drawn)
    ]
    by_seed = [miou_spec(x) - miou_spec(y) for x, y in zip(a, b, strict=True)]
    pictures, seeds = 12 / 11 * np.var(loops, ddof=1), np.var(by_seed, ddof=1) / 2
    freedom = (pictures + seeds) ** 2 / (pictures**2 / 11 + seeds**2)
    law = stats.t(freedom, loc=np.mean(by_seed), scale=np.sqrt(pictures + seeds))
    effect = miou_difference(a, b, resamples=50, seed=7)
    assert effect.value == pytest.approx(np.mean(by_seed))
    np.testing.assert_allclose(ends(effect), law.ppf([0.025, 0.975]))
    assert effect.p == pytest.approx(2 * law.cdf(0))


def test_where_all_unions_are_alike_an_miou_is_a_mean(rng):
    """Then the closed form of a mean must come out, up to the bootstrap's own noise."""
    a, b = np.full((2, 4, 25, 3, 2), 100.0)
    a[:, :, 0], b[:, :, 0] = rng.random((2, 4, 25, 2)) * 100
    effect = miou_difference(a, b, resamples=40_000, seed=0)
    exact = mean_difference(a[:, :, 0].mean(-1) / 100, b[:, :, 0].mean(-1) / 100)
    assert effect.value == pytest.approx(exact.value)
    width = exact.high - exact.low
    np.testing.assert_allclose(ends(effect), ends(exact), atol=0.02 * width)


def test_the_effect_is_the_difference_of_the_two_reported_numbers(confusions):
    mapping = np.array([0, 1, 2, 3, -1])
    a, b = (areas_of(each, mapping) for each in confusions)
    expected = metrics.mean_iou(confusions[0].sum(0), mapping) - metrics.mean_iou(
        confusions[1].sum(0), mapping
    )
    assert miou_difference(a, b, **OPTIONS).value == pytest.approx(expected)


def test_what_no_truth_has_counts_nowhere(confusions):
    """A class of stray pixels, and a picture that is void all over."""
    mapping = np.array([0, 1, 2, 3, -1])
    a, b = (areas_of(each, mapping) for each in confusions)
    wider = [np.pad(each, ((0, 1), (0, 0), (0, 1))) for each in (a, b)]
    wider[1][:12, 1, -1] = 3  # unions without a true area
    assert miou_difference(*wider, **OPTIONS) == miou_difference(a, b, **OPTIONS)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another(confusions):
    a, b = (areas_of(each, np.array([0, 1, 2, 3, -1])) for each in confusions)
    assert miou_difference(a, b, **OPTIONS) == miou_difference(a, b, **OPTIONS)
    assert miou_difference(a, b, **OPTIONS) != miou_difference(a, b, resamples=2000, seed=1)


def percentile_rule(a, b, *, resamples, seed):
    """What was here before: each arm over the classes that it or the truth has, the middle 95 % of
    draws of n - 1 pictures.
    """
    rows = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a) - 1))

    def mious(areas):
        return np.nanmean(metrics.areas_to_iou(areas[rows].sum(1)), axis=-1)

    return np.percentile(mious(a) - mious(b), [2.5, 97.5])


def test_stray_pixels_of_an_absent_class_decide_nothing(rng):
    """60 pictures of five classes in which the second arm draws three pixels of a sixth."""
    truth = rng.integers(500, 1500, (60, 5)).astype(float)
    arms = []
    for stray in (0, 3):
        hits = truth * rng.uniform(0.6, 0.9, (60, 5))
        unions = truth + rng.uniform(0, 300, (60, 5))
        areas = np.stack([hits, unions, truth], 1)
        arms.append(np.pad(areas, ((0, 0), (0, 0), (0, 1))))
        arms[-1][:, 1, 5] = stray
    low, _ = percentile_rule(*arms, **OPTIONS)
    assert low > 0.05  # a sixth of the second arm's mIoU is gone
    effect = miou_difference(*arms, **OPTIONS)
    assert effect.low < 0 < effect.high and effect.high - effect.low < 0.05


# ---------------------------------------------------------------- how often they are right

TRIALS, IMAGES = 2000, 300
# (standard deviation of the seeds' luck, of the pictures', of what is left), in units of a score
LUCK = {
    "none": (0.0, 0.0, 0.1),
    "seeds 0.01": (0.01, 0.0, 0.1),
    "seeds 0.02": (0.02, 0.0, 0.1),
    "pictures": (0.0, 0.1, 0.1),
    "both": (0.01, 0.1, 0.1),
}


def share_off_zero(luck: str, *, seeds: int, effect: float = 0.0) -> float:
    rng, (of_seed, of_image, rest) = np.random.default_rng(2), LUCK[luck]
    return np.mean(
        [
            off_zero(
                against_nothing(
                    effect
                    + of_seed * rng.standard_normal((seeds, 1))
                    + of_image * rng.standard_normal(IMAGES)
                    + rest * rng.standard_normal((seeds, IMAGES))
                )
            )
            for _ in range(TRIALS)
        ]
    )


@pytest.mark.parametrize("luck", LUCK)
@pytest.mark.parametrize(("seeds", "least", "most"), [(3, 0.02, 0.08), (5, 0.025, 0.065)])
def test_without_an_effect_one_interval_in_twenty_is_off_zero(luck, seeds, least, most):
    if luck == "none":  # what is left counts twice, as noise of seeds and of pictures
        least, most = 0.003, 0.02
    assert least < share_off_zero(luck, seeds=seeds) < most


@pytest.mark.parametrize(("luck", "least"), [("none", 0.99), ("seeds 0.01", 0.9), ("both", 0.8)])
def test_with_five_seeds_an_effect_of_three_hundredths_is_seen(luck, least):
    assert share_off_zero(luck, seeds=5, effect=0.03) > least


def test_without_an_effect_one_interval_of_an_miou_in_twenty_is_off_zero():
    """Three seeds, 40 pictures, three classes of which one is rare; luck of seeds and pictures."""
    rng, off = np.random.default_rng(3), []
    for trial in range(400):
        truth = rng.integers(50, 150, (40, 3)) * (rng.random((40, 3)) < [1, 0.5, 0.1])
        truth[:2, 1:] = 100
        arms = []
        for _ in range(2):
            right = 0.7 + 0.02 * rng.standard_normal((3, 1, 1)) + rng.normal(0, 0.1, (3, 40, 3))
            arms.append(np.stack([truth * right, truth * (1.2 - right / 5), truth + 0 * right], 2))
        off.append(off_zero(miou_difference(*arms, resamples=200, seed=trial)))
    assert 0.015 < np.mean(off) < 0.085


# ---------------------------------------------------------------- groups


@pytest.fixture
def areas(confusions):
    return [areas_of(each, np.array([0, 1, 2, 3, -1])) for each in confusions]


def test_one_picture_a_group_is_no_group(rng, areas):
    a, b = rng.random((2, 3, 12))
    plain, grouped = mean_difference(a, b), mean_difference(a, b, groups=rng.permutation(12))
    np.testing.assert_allclose(ends(grouped), ends(plain))
    names = np.array([f"animal {i:02d}" for i in range(12)])
    assert miou_difference(*areas, groups=names, **OPTIONS) == miou_difference(*areas, **OPTIONS)


def test_copies_of_a_picture_in_a_group_count_as_that_picture(rng, areas):
    a, b = rng.random((2, 3, 12))
    groups = np.arange(36) % 12
    copied = mean_difference(np.tile(a, 3), np.tile(b, 3), groups=groups)
    np.testing.assert_allclose(ends(copied), ends(mean_difference(a, b)))
    copied = miou_difference(*(np.tile(x, (3, 1, 1)) for x in areas), groups=groups, **OPTIONS)
    np.testing.assert_allclose(ends(copied), ends(miou_difference(*areas, **OPTIONS)))


def test_pictures_that_share_an_animal_say_less(rng):
    groups = np.repeat(np.arange(20), 10)
    difference = rng.normal(0, 0.1, 20)[groups] + rng.normal(0, 0.1, 200)
    plain, grouped = against_nothing(difference), against_nothing(difference, groups=groups)
    assert grouped.value == plain.value and grouped.p > plain.p
    assert grouped.high - grouped.low > 1.5 * (plain.high - plain.low)


def test_groups_of_other_sizes_cover_as_well():
    rng, off = np.random.default_rng(5), []
    groups = np.repeat(np.arange(40), rng.integers(1, 12, 40))
    for _ in range(1000):
        difference = rng.normal(0, 0.1, 40)[groups] + rng.normal(0, 0.1, len(groups))
        off.append(off_zero(against_nothing(difference, groups=groups)))
    assert 0.03 < np.mean(off) < 0.085


# ---------------------------------------------------------------- contrasts


def test_an_interaction_is_the_difference_of_two_differences(areas):
    a, b = areas
    c = np.concatenate([a[:6], b[6:]])
    arms, weights = [a, b, c, b], [1, -1, -1, 1]
    effect = bootstrap.miou_contrast(arms, weights, **OPTIONS)
    by_hand = [bootstrap.miou(arm) for arm in arms]
    assert effect.value == pytest.approx(by_hand[0] - by_hand[1] - (by_hand[2] - by_hand[3]))
    # b cancels, to the last draw of pictures
    np.testing.assert_allclose(ends(effect), ends(miou_difference(a, c, **OPTIONS)), atol=1e-12)


def test_an_interaction_of_equal_steps_is_nothing(areas):
    seeds = [np.stack([arm, arm]) for arm in areas]
    effect = bootstrap.miou_contrast([*seeds, *seeds], [1, -1, -1, 1], **OPTIONS)
    assert effect == Effect(0.0, 0.0, 0.0, 1.0)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.5], [0.4], "two images"),
        ([0.5, 0.4], [0.4], "same seeds and images"),
        ([[[0.5, 0.4]]], [[[0.5, 0.4]]], "same seeds and images"),
        ([0.5, np.nan], [0.4, 0.4], "finite"),
        (np.zeros((0, 5)), np.zeros((0, 5)), "same seeds and images"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(a, b, expected):
    with pytest.raises(ValueError, match=expected):
        mean_difference(np.array(a), np.array(b))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [(["cat"] * 12, "got 1"), (["cat"] * 11, "each of 12 images needs one group")],
)
def test_groups_that_cannot_be_drawn_are_refused(areas, groups, expected):
    with pytest.raises(ValueError, match=expected):
        mean_difference(np.zeros(12), np.ones(12), groups=groups)
    with pytest.raises(ValueError, match=expected):
        miou_difference(*areas, groups=groups, **OPTIONS)


def test_miou_of_one_image_has_no_interval(areas):
    with pytest.raises(ValueError, match="two images"):
        miou_difference(areas[0][:1], areas[0][:1], **OPTIONS)


def test_arms_with_other_truths_are_refused(areas):
    with pytest.raises(ValueError, match="same true areas"):
        miou_difference(areas[0], areas[1][::-1], **OPTIONS)


def test_an_arm_without_a_weight_is_refused(areas):
    with pytest.raises(ValueError, match="one weight"):
        bootstrap.miou_contrast(areas, [1], **OPTIONS)
