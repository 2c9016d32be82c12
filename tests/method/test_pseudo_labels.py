"""Predictions to one label map, against the same rule written out pixel by pixel."""

import numpy as np
import pytest

from mdlib.core.mask import Mask
from mdlib.method.pseudo_labels import (
    LARGEST_LABEL,
    OVERLAPS,
    clustered_map,
    confident,
    filtered_map,
    label_map,
)

each_overlap = pytest.mark.parametrize("overlap", OVERLAPS)


def label_map_spec(masks, clusters, scores, *, threshold, overlap):
    """Loops alone: repeatedly take the best prediction that is left, and paste it pixel by pixel."""
    n, height, width = masks.shape
    left = [i for i in range(n) if scores[i] >= threshold] or list(range(n))
    only_one = all(score < threshold for score in scores)
    labels = [[0] * width for _ in range(height)]
    while left:
        best = left[0]
        for i in left:
            if scores[i] > scores[best]:
                best = i
        left = [] if only_one else [i for i in left if i != best]
        pixels = [(y, x) for y in range(height) for x in range(width) if masks[best, y, x]]
        if overlap == "skip" and any(labels[y][x] for y, x in pixels):
            continue
        for y, x in pixels:
            labels[y][x] = int(clusters[best]) + 1
    return np.array(labels)


def squares(*corners, side=2, size=(6, 8)):
    """(n, H, W) bool: one square mask a corner (y, x)."""
    masks = np.zeros((len(corners), *size), bool)
    for mask, (y, x) in zip(masks, corners, strict=True):
        mask[y : y + side, x : x + side] = True
    return masks


def pasted(masks, clusters, scores, *, threshold=0.5, overlap="skip"):
    return label_map(
        masks, np.array(clusters), np.array(scores), threshold=threshold, overlap=overlap
    )


# ---------------------------------------------------------------- the rule


@each_overlap
@pytest.mark.parametrize("seed", range(30))
def test_label_maps_equal_the_slow_rule(overlap, seed):
    rng = np.random.default_rng(seed)
    n = rng.integers(0, 7)
    corners = np.stack([rng.integers(0, 5, n), rng.integers(0, 7, n)], 1)
    masks, clusters = squares(*corners, side=3), rng.integers(0, 4, n)
    scores = rng.integers(0, 11, n) / 10  # tenths: ties and exact thresholds are frequent
    for threshold in (0.0, 0.5, 1.0):
        ours = pasted(masks, clusters, scores, threshold=threshold, overlap=overlap)
        theirs = label_map_spec(masks, clusters, scores, threshold=threshold, overlap=overlap)
        np.testing.assert_array_equal(ours, theirs)


def test_skip_leaves_out_what_touches_and_overwrite_pastes_it_over():
    masks = squares((0, 0), (1, 1))  # they share one pixel
    skipped, overwritten = (
        pasted(masks, [4, 7], [0.9, 0.8], overlap=overlap) for overlap in OVERLAPS
    )
    assert set(np.unique(skipped)) == {0, 5} and set(np.unique(overwritten)) == {0, 5, 8}
    assert (skipped[masks[0]] == 5).all() and (overwritten[masks[1]] == 8).all()
    assert (overwritten == 5).sum() == 3


def test_a_skipped_mask_does_not_block_the_next():
    masks = squares((0, 0), (1, 1), (2, 2))  # the second touches both others
    labels = pasted(masks, [0, 1, 2], [0.9, 0.8, 0.7])
    assert set(np.unique(labels)) == {0, 1, 3}


@each_overlap
def test_disjoint_masks_all_stay(overlap):
    masks = squares((0, 0), (0, 2), (2, 0), (4, 6))
    labels = pasted(masks, [3, 3, 0, 9], [0.6, 0.9, 0.7, 0.8], overlap=overlap)
    np.testing.assert_array_equal(labels, (masks * np.array([4, 4, 1, 10])[:, None, None]).sum(0))


@each_overlap
def test_the_map_does_not_depend_on_the_order_of_the_predictions(rng, overlap):
    masks = squares(*rng.integers(0, 5, (5, 2)), side=3)
    clusters, scores = np.arange(5), rng.permutation(5) / 5
    turned = rng.permutation(5)
    labels = [
        pasted(masks[i], clusters[i], scores[i], threshold=0.3, overlap=overlap)
        for i in (np.arange(5), turned)
    ]
    np.testing.assert_array_equal(*labels)


# ---------------------------------------------------------------- the threshold


def test_a_score_at_the_threshold_is_kept_and_one_just_below_is_not():
    assert confident(np.array([0.5, np.nextafter(0.5, 0), 0.6]), threshold=0.5).tolist() == [2, 0]


def test_single_precision_scores_meet_the_threshold_as_they_are():
    assert confident(np.array([0.75, 0.25], np.float32), threshold=0.75).tolist() == [0]


@each_overlap
def test_where_none_is_confident_the_best_stands_alone(overlap):
    masks = squares((0, 0), (0, 4), (3, 3))
    labels = pasted(masks, [0, 1, 2], [0.1, 0.4, 0.3], overlap=overlap)
    np.testing.assert_array_equal(labels, 2 * masks[1])


def test_ties_go_to_the_lower_index():
    assert confident(np.array([0.7, 0.9, 0.9, 0.7]), threshold=0.5).tolist() == [1, 2, 0, 3]
    assert confident(np.array([0.2, 0.2]), threshold=0.5).tolist() == [0]
    masks = squares((0, 0), (0, 0))
    # cluster 5 is first, so the other is skipped
    assert pasted(masks, [5, 6], [0.9, 0.9]).max() == 6


@each_overlap
def test_without_a_prediction_all_is_background(overlap):
    labels = label_map(
        np.zeros((0, 4, 5), bool), np.zeros(0, int), np.zeros(0), threshold=0.5, overlap=overlap
    )
    assert labels.shape == (4, 5) and not labels.any()
    assert label_map(np.zeros((0, 4, 5)), [], [], threshold=0.5, overlap=overlap).shape == (4, 5)
    assert confident(np.zeros(0), threshold=0.5).size == 0


# ---------------------------------------------------------------- what is refused


def test_the_largest_cluster_stays_clear_of_void():
    assert pasted(squares((0, 0)), [LARGEST_LABEL - 1], [0.9]).max() == LARGEST_LABEL == 65534


@pytest.mark.parametrize("cluster", [-1, LARGEST_LABEL, 65535])
def test_a_cluster_that_no_label_can_hold_is_refused_even_unconfident(cluster):
    with pytest.raises(ValueError, match=f"0..{LARGEST_LABEL - 1}"):
        pasted(squares((0, 0), (3, 3)), [0, cluster], [0.9, 0.1])


@pytest.mark.parametrize(
    ("masks", "clusters", "scores"),
    [
        (squares((0, 0), (3, 3)), [0], [0.9, 0.8]),
        (squares((0, 0), (3, 3)), [0, 1], [0.9]),
        (squares((0, 0))[0], [0], [0.9]),
        (squares((0, 0)), [], []),
    ],
)
def test_arguments_that_do_not_fit_are_refused(masks, clusters, scores):
    with pytest.raises(ValueError, match=r"\(n, H, W\)"):
        pasted(masks, clusters, scores)


def test_an_unknown_overlap_names_the_known_ones():
    with pytest.raises(ValueError, match="overwrite"):
        pasted(squares((0, 0)), [0], [0.9], overlap="merge")


# ---------------------------------------------------------------- without a filter


def test_a_clustered_map_holds_every_mask_with_its_cluster():
    masks = np.zeros((2, 4, 5), bool)
    masks[0, :2, :2], masks[1, 3, 4] = True, True
    labels = clustered_map(
        [Mask.from_pixels(masks[i], image_id="a", cluster=c) for i, c in ((0, 0), (1, 59))],
        image_hw=(4, 5),
    )
    assert labels.dtype == np.uint16 and labels.tolist() == (masks[0] * 1 + masks[1] * 60).tolist()


def test_a_clustered_map_without_masks_is_background():
    assert not clustered_map([], image_hw=(3, 4)).any()


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_a_filtered_map_is_the_label_map_of_an_image_s_predictions(rng, overlap):
    pixels, clusters, scores = rng.random((5, 6, 7)) < 0.3, np.array([3, 0, 7, 1, 1]), rng.random(5)
    masks = [
        Mask.from_pixels(each, image_id="a", score=score, cluster=int(cluster))
        for each, score, cluster in zip(pixels, scores, clusters, strict=True)
    ]
    rule = {"threshold": 0.4, "overlap": overlap}
    expected = label_map(pixels, clusters, scores, **rule)
    assert expected.any()
    np.testing.assert_array_equal(filtered_map(masks, image_hw=(6, 7), **rule), expected)
    nothing = filtered_map([], image_hw=(3, 4), **rule)
    assert nothing.shape == (3, 4) and not nothing.any()
