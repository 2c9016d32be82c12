"""The paired bootstrap against closed forms, and what a claim says."""

import numpy as np
import pytest

from mdlib.core.files import read_json
from mdlib.evaluate import bootstrap, metrics
from mdlib.evaluate.bootstrap import Interval, mean_difference, miou_difference
from mdlib.studies import claims
from mdlib.studies.claims import claim

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


# ---------------------------------------------------------------- means


def areas_of(confusions, mapping):
    """Of each image: (images, 2, C)."""
    return np.stack([metrics.intersection_and_union(each, mapping) for each in confusions])


def test_a_constant_difference_has_an_interval_of_no_width(rng):
    b = rng.random((3, 40))
    effect = mean_difference(b + 0.25, b, **OPTIONS)
    np.testing.assert_allclose([effect.value, effect.low, effect.high], 0.25, atol=1e-12)


def test_equal_arms_differ_by_nothing_however_they_vary(rng):
    a = rng.random(30)
    assert mean_difference(a, a, **OPTIONS) == Interval(0.0, 0.0, 0.0)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution(rng):
    difference = rng.normal(0.1, 1.0, 400)
    effect = mean_difference(difference, np.zeros(400), **{**OPTIONS, "resamples": 20_000})
    error = difference.std(ddof=1) / 20
    np.testing.assert_allclose(
        [effect.low, effect.high],
        difference.mean() + np.array([-1.96, 1.96]) * error,
        atol=0.06 * error,
    )


def test_three_seeds_spread_as_their_standard_error():
    values = np.array([0.0, 1.0, 5.0])  # a seed moves every image alike
    drawn, _ = bootstrap._draws((3, 2), resamples=40_000, seed=0)
    assert (drawn @ values).std() == pytest.approx(values.std(ddof=1) / np.sqrt(3), rel=0.02)


def test_pairing_removes_what_both_arms_share(rng):
    hard = rng.normal(0, 5, 60)  # some images are hard for both
    a, b = hard + 0.5 + rng.normal(0, 0.1, 60), hard + rng.normal(0, 0.1, 60)
    together, apart = (
        mean_difference(a, b, **OPTIONS),
        mean_difference(a, rng.permutation(b), **OPTIONS),
    )
    assert together.high - together.low < 0.1 * (apart.high - apart.low)
    assert together.low > 0


@pytest.mark.parametrize("seeds", [1, 6])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(seeds):
    rng, covered = np.random.default_rng(3), 0
    for trial in range(200):
        difference = (
            0.3
            + rng.normal(0, 1, (1, 50))
            + rng.normal(0, 0.2, (seeds, 1)) * (seeds > 1)
            + rng.normal(0, 0.3, (seeds, 50))
        )
        effect = mean_difference(difference, np.zeros_like(difference), resamples=400, seed=trial)
        covered += effect.low <= 0.3 <= effect.high
    assert 0.89 <= covered / 200 <= 0.99


def test_swapping_the_arms_swaps_the_ends(rng):
    a, b = rng.random((2, 3, 20))
    there, back = mean_difference(a, b, **OPTIONS), mean_difference(b, a, **OPTIONS)
    np.testing.assert_allclose(
        [there.value, there.low, there.high], [-back.value, -back.high, -back.low]
    )


def test_the_same_seed_gives_the_same_interval_and_another_seed_another(rng):
    a, b = rng.random((2, 25))
    assert mean_difference(a, b, **OPTIONS) == mean_difference(a, b, **OPTIONS)
    assert mean_difference(a, b, **OPTIONS) != mean_difference(a, b, resamples=2000, seed=1)


# ---------------------------------------------------------------- mIoU


def test_areas_summed_and_divided_are_the_iou_of_the_set(confusions):
    mapping = np.array([0, 1, 2, -1, 3])
    hits, unions = areas_of(confusions[0], mapping).sum(0)
    np.testing.assert_allclose(hits / unions, metrics.iou(confusions[0].sum(0), mapping))
    areas = np.stack([areas_of(each, mapping) for each in confusions])
    expected = [metrics.mean_iou(each.sum(0), mapping) for each in confusions]
    np.testing.assert_allclose(bootstrap.miou(areas), expected)
    assert bootstrap.miou(areas[0]) == pytest.approx(expected[0])


def miou_spec(areas, shares):
    with np.errstate(invalid="ignore"):
        hits, unions = (areas * shares[:, None, None]).sum(0)
        return np.nanmean(np.where(unions > 0, hits / unions, np.nan))


def test_miou_difference_equals_loops_over_resamples(confusions):
    mapping = np.array([0, 1, 2, 3, -1])
    # two "seeds"
    a, b = (
        np.stack([areas_of(half, mapping) for half in (each, each[::-1])]) for each in confusions
    )
    seeds, images = bootstrap._draws((2, 12), resamples=50, seed=7)
    loops = [
        sum(s[j] * (miou_spec(a[j], i) - miou_spec(b[j], i)) for j in range(2))
        for s, i in zip(seeds, images, strict=True)
    ]
    effect = miou_difference(a, b, resamples=50, seed=7)
    np.testing.assert_allclose([effect.low, effect.high], np.percentile(loops, [2.5, 97.5]))
    assert effect.low <= effect.value <= effect.high


def test_the_effect_is_the_difference_of_the_two_reported_numbers(confusions):
    mapping = np.array([0, 1, 2, 3, -1])
    a, b = (areas_of(each, mapping) for each in confusions)
    expected = metrics.mean_iou(confusions[0].sum(0), mapping) - metrics.mean_iou(
        confusions[1].sum(0), mapping
    )
    assert miou_difference(a, b, **OPTIONS).value == pytest.approx(expected)


def test_a_class_that_no_image_has_counts_nowhere(confusions):
    mapping = np.array([0, 1, 2, 3, -1])
    a, b = (areas_of(each, mapping) for each in confusions)
    wider = [np.concatenate([each, np.zeros((12, 2, 1))], 2) for each in (a, b)]
    assert miou_difference(*wider, **OPTIONS) == miou_difference(a, b, **OPTIONS)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.5], [0.4], "two images"),
        ([0.5, 0.4], [0.4], "same seeds and images"),
        ([[[0.5, 0.4]]], [[[0.5, 0.4]]], "same seeds and images"),
        ([0.5, np.nan], [0.4, 0.4], "finite"),
        (np.zeros((0, 5)), np.zeros((0, 5)), "0 seeds"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(a, b, expected):
    with pytest.raises(ValueError, match=expected):
        mean_difference(np.array(a), np.array(b), **OPTIONS)


def test_miou_of_one_image_has_no_interval(confusions):
    areas = areas_of(confusions[0][:1], np.array([0, 1, 2, 3, -1]))
    with pytest.raises(ValueError, match="two images"):
        miou_difference(areas, areas, **OPTIONS)


# ---------------------------------------------------------------- claims


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (Interval(0.2, 0.1, 0.3), "holds"),
        (Interval(0.1, -0.1, 0.3), "does not hold"),
        (Interval(0.2, 0.0, 0.4), "does not hold"),  # not above
        (Interval(0.0, 0.0, 0.0), "does not hold"),  # a tie shows nothing
        (Interval(-0.2, -0.3, -0.1), "does not hold"),
        (None, "not run"),
    ],
)
def test_a_claim_holds_where_its_whole_interval_does(effect, verdict):
    assert claim("1", "x", experiment="y", effect=effect)["verdict"] == verdict


def test_an_unknown_claim_number_is_refused():
    with pytest.raises(ValueError, match="claim number"):
        claim("7", "x", experiment="y", effect=None)


def test_claims_are_gathered_in_order_and_untested_ones_are_named(tmp_path):
    ours = claim("", "ours", experiment="mIoU", effect=Interval(0.1, 0.05, 0.2))
    third = claim("3", "third", experiment="mIoU", effect=Interval(-0.1, -0.2, 0.0))
    (tmp_path / "a").mkdir()
    claims.write_claims(tmp_path / "b", [ours, third])
    gathered = claims.gather_claims([tmp_path / "a", tmp_path / "b"])
    assert [(r["number"], r["verdict"]) for r in gathered] == [
        ("1", "not run"),
        ("2", "not run"),
        ("3", "does not hold"),
        ("", "holds"),
    ]
    assert read_json(tmp_path / "b" / "claims.json")[0] == ours
    table = claims.claims_table(gathered)
    assert "| ours | mIoU | +0.100 | +0.050 to +0.200 | **holds** |" in table
    assert table.count("not run") == 2
