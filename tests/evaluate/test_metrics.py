"""Metrics against slow loops, brute force, closed forms, pycocotools and torchvision."""

from itertools import permutations

import numpy as np
import pytest
import torch
from fixtures import Samples
from pycocotools import mask as coco_mask
from torchvision.ops import box_iou as torchvision_box_iou

from mdlib.data import Sample
from mdlib.data.sample import Instances
from mdlib.evaluate import coco_ap, metrics

# ---------------------------------------------------------------- confusion and IoU


def confusion_spec(pred, target, num_preds, num_targets, ignore=255):
    counts = np.zeros((num_preds, num_targets), np.int64)
    for p, t in zip(pred.ravel(), target.ravel(), strict=True):
        if t != ignore:
            counts[p, t] += 1
    return counts


def iou_spec(pred, target, mapping, num_targets, ignore=255):
    """IoU from pixel sets: a pixel of an unmatched prediction gets the name -1, which is no class."""
    named = np.asarray(mapping)[pred]
    counted = target != ignore
    values = []
    for c in range(num_targets):
        a, b = (named == c) & counted, (target == c) & counted
        values.append((a & b).sum() / (a | b).sum() if (a | b).any() else np.nan)
    return np.array(values)


@pytest.fixture
def maps(rng):
    """Predictions 0-5 and targets 0-3 with void, (9, 11) each."""
    target = rng.integers(0, 4, (9, 11))
    target[rng.random(target.shape) < 0.1] = 255
    return rng.integers(0, 6, (9, 11)), target


def test_confusion_equals_a_double_loop(maps):
    counts = metrics.confusion(*maps, num_preds=6, num_targets=4)
    np.testing.assert_array_equal(counts, confusion_spec(*maps, 6, 4))
    assert counts.dtype == np.int64


def test_confusion_does_not_overflow_small_types():
    pred, target = np.full((300, 300), 20, np.uint8), np.full((300, 300), 20, np.uint8)
    assert metrics.confusion(pred, target, num_preds=21, num_targets=21)[20, 20] == 90_000


def test_confusion_adds_up_over_images(maps):
    whole = metrics.confusion(*maps, num_preds=6, num_targets=4)
    parts = [
        metrics.confusion(p, t, num_preds=6, num_targets=4) for p, t in zip(*maps, strict=True)
    ]
    np.testing.assert_array_equal(sum(parts), whole)


def test_confusion_of_void_alone_is_zero():
    assert not metrics.confusion(
        np.zeros((2, 2), int), np.full((2, 2), 255), num_preds=2, num_targets=3
    ).any()


@pytest.mark.parametrize(
    ("pred", "target"),
    [([0, 1], [0, 1, 2]), ([0, 6], [0, 1]), ([-1, 0], [0, 1]), ([0, 1], [0, 4]), ([0, 1], [-1, 0])],
)
def test_confusion_refuses_wrong_shapes_and_values(pred, target):
    with pytest.raises(ValueError):
        metrics.confusion(np.array(pred), np.array(target), num_preds=6, num_targets=4)


def test_iou_equals_its_definition_on_pixels(maps):
    mapping = np.array([0, 1, 2, 3, 1, -1])
    counts = metrics.confusion(*maps, num_preds=6, num_targets=4)
    np.testing.assert_allclose(metrics.iou(counts, mapping), iou_spec(*maps, mapping, 4))


def test_iou_of_the_truth_with_itself_is_one(maps):
    target = maps[1]
    counts = metrics.confusion(
        np.where(target == 255, 0, target), target, num_preds=4, num_targets=4
    )
    np.testing.assert_array_equal(metrics.iou(counts, np.arange(4)), 1)


def test_an_unmatched_prediction_is_a_false_negative_and_never_background():
    # 10 pixels of background named rightly; 10 of class 1, of which 4 fall to a cluster without a
    # name.
    counts = np.array([[10, 0], [0, 6], [0, 4]])
    np.testing.assert_allclose(metrics.iou(counts, np.array([0, 1, -1])), [1.0, 0.6])
    # Calling that cluster background would lower background's IoU: this is what must not happen by
    # itself.
    np.testing.assert_allclose(metrics.iou(counts, np.array([0, 1, 0])), [10 / 14, 0.6])


def test_a_class_absent_from_both_is_nan_and_left_out_of_the_mean():
    counts = np.array([[8, 2, 0], [0, 10, 0]])
    values = metrics.iou(counts, np.array([0, 1]))
    assert np.isnan(values[2])
    assert metrics.mean_iou(counts, np.array([0, 1])) == pytest.approx((0.8 + 10 / 12) / 2)


def test_a_class_that_is_predicted_but_absent_counts_as_zero():
    counts = np.array([[8, 0], [2, 0]])
    np.testing.assert_allclose(metrics.iou(counts, np.array([0, 1])), [0.8, 0.0])


def test_merge_predictions_keeps_every_pixel():
    counts = np.arange(12).reshape(4, 3)
    merged = metrics.merge_predictions(counts, np.array([2, -1, 2, 0]))
    np.testing.assert_array_equal(merged, [counts[3], [0, 0, 0], counts[0] + counts[2], counts[1]])


def test_the_confusions_of_images_add_up_to_that_of_the_set():
    rng = np.random.default_rng(0)
    truths, maps = rng.integers(0, 3, (4, 6, 5)), rng.integers(0, 7, (4, 6, 5))
    images = [np.zeros((*truth.shape, 3), np.uint8) for truth in truths]
    samples = [
        Sample(str(i), im, t.astype(np.uint8))
        for i, (im, t) in enumerate(zip(images, truths, strict=True))
    ]
    dataset = Samples(samples, classes=("background", "cat", "dog"))
    found = list(metrics.per_image_confusion((labels for labels in maps), dataset, rows=7))
    assert [each.shape for each in found] == 4 * [(7, 3)]
    np.testing.assert_array_equal(found[2], confusion_spec(maps[2], truths[2], 7, 3))
    np.testing.assert_array_equal(sum(found), confusion_spec(maps, truths, 7, 3))


# ---------------------------------------------------------------- naming clusters


def pair_scores_spec(counts, score):
    if score == "count":
        return counts.astype(float)
    values = np.zeros(counts.shape)
    for p, t in np.ndindex(counts.shape):
        union = counts[p].sum() + counts[:, t].sum() - counts[p, t]
        values[p, t] = counts[p, t] / union if union else 0
    return values


def best_total_spec(values):
    """The best total over all one-to-one matchings, by trying every one."""
    values = values if values.shape[0] <= values.shape[1] else values.T
    n, m = values.shape
    return max(
        sum(values[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(m), n)
    )


@pytest.mark.parametrize("score", ["iou", "count"])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (1, 4), (4, 1)])
def test_hungarian_equals_brute_force(rng, score, shape):
    for _ in range(5):
        counts = rng.integers(0, 30, shape)
        mapping = metrics.match_hungarian(counts, score=score)
        matched = np.flatnonzero(mapping >= 0)
        assert len(matched) == len(set(mapping[matched])) == min(shape)
        values = pair_scores_spec(counts, score)
        assert values[matched, mapping[matched]].sum() == pytest.approx(
            best_total_spec(values), rel=1e-6
        )


def test_hungarian_by_iou_and_by_count_differ():
    # By counts the large cluster 1 takes class 0 (40 + 0 > 10 + 25); by IoU it may not (0.53 < 0.2
    # + 0.38).
    counts = np.array([[10, 0], [40, 25]])
    np.testing.assert_array_equal(metrics.match_hungarian(counts, score="count"), [1, 0])
    np.testing.assert_array_equal(metrics.match_hungarian(counts, score="iou"), [0, 1])


def test_hungarian_respects_pinned_pairs_and_is_best_for_the_rest(rng):
    for score in ("iou", "count"):
        counts = rng.integers(0, 30, (5, 4))
        counts[2, 3] = 1000  # would be matched if it could
        mapping = metrics.match_hungarian(counts, score=score, pinned={0: 3})
        assert mapping[0] == 3
        assert (mapping[1:] != 3).all()
        rest = pair_scores_spec(counts, score)[1:, :3]
        matched = np.flatnonzero(mapping[1:] >= 0)
        assert rest[matched, mapping[1:][matched]].sum() == pytest.approx(
            best_total_spec(rest), rel=1e-6
        )


def test_hungarian_leaves_surplus_predictions_unmatched():
    mapping = metrics.match_hungarian(np.array([[9, 0], [0, 9], [1, 1], [0, 0]]))
    np.testing.assert_array_equal(mapping, [0, 1, -1, -1])


def test_hungarian_ties_go_to_the_lower_predictions_and_classes():
    np.testing.assert_array_equal(metrics.match_hungarian(np.full((4, 2), 7)), [0, 1, -1, -1])
    np.testing.assert_array_equal(metrics.match_hungarian(np.full((2, 4), 7)), [0, 1])


@pytest.mark.parametrize("score", ["iou", "count"])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 21, 27])
def test_hungarian_of_a_square_matrix_of_ties_is_the_identity(n, score):
    for value in (0, 7):
        np.testing.assert_array_equal(
            metrics.match_hungarian(np.full((n, n), value), score=score), np.arange(n)
        )


def test_hungarian_tie_break_never_outweighs_one_count():
    big = 4_000_000_000
    counts = np.array([[big, 0], [0, big], [0, big + 1]])
    np.testing.assert_array_equal(metrics.match_hungarian(counts, score="count"), [0, -1, 1])


def test_relabelling_clusters_changes_no_score(rng, maps):
    counts = metrics.confusion(*maps, num_preds=6, num_targets=4)
    order = rng.permutation(6)
    before = metrics.iou(counts, metrics.match_hungarian(counts))
    after = metrics.iou(counts[order], metrics.match_hungarian(counts[order]))
    np.testing.assert_allclose(before, after)


def test_hungarian_refuses_an_unknown_score():
    with pytest.raises(ValueError, match="dice"):
        metrics.match_hungarian(np.eye(2), score="dice")


def test_majority_takes_the_most_frequent_class():
    counts = np.array([[1, 5, 2], [7, 7, 0], [0, 0, 0], [0, 1, 3]])
    # A tie goes to the lower class; a cluster that was never seen has no name; classes may repeat.
    np.testing.assert_array_equal(metrics.match_majority(counts), [1, 0, -1, 2])
    np.testing.assert_array_equal(metrics.match_majority(counts, pinned={3: 0}), [1, 0, -1, 0])


# ---------------------------------------------------------------- masks and boxes


def random_masks(rng, count, size=(12, 15)):
    """Random rectangles with noisy borders: they overlap more than noise would."""
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        y, x = rng.integers(0, 6, 2)
        mask[y : y + rng.integers(3, 8), x : x + rng.integers(3, 9)] = True
    return masks ^ (rng.random(masks.shape) < 0.03)


def to_rle(mask):
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


def test_mask_iou_equals_pycocotools(rng):
    a, b = random_masks(rng, 6), random_masks(rng, 4)
    theirs = coco_mask.iou([to_rle(m) for m in a], [to_rle(m) for m in b], [0] * 4)
    np.testing.assert_allclose(metrics.mask_iou(a, b), theirs)


def test_mask_iou_at_its_limits():
    full, empty = np.ones((1, 3, 3), bool), np.zeros((1, 3, 3), bool)
    assert metrics.mask_iou(full, full) == 1
    assert metrics.mask_iou(full, empty) == metrics.mask_iou(empty, empty) == 0


@pytest.mark.parametrize("band", [1, 7, 100])
def test_mask_iou_by_bands_of_pixels_is_exact(rng, monkeypatch, band):
    a, b = rng.random((3, 9, 11)) < 0.5, rng.random((4, 9, 11)) < 0.3
    expected = metrics.mask_iou(a, b)
    monkeypatch.setattr(metrics, "BAND", band)
    np.testing.assert_array_equal(metrics.mask_iou(a, b), expected)


def test_mask_iou_of_no_masks_is_an_empty_table():
    assert metrics.mask_iou(np.zeros((0, 3, 3), bool), np.ones((2, 3, 3), bool)).shape == (0, 2)


def test_box_iou_equals_torchvision(rng):
    corners = rng.uniform(0, 50, (12, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 40, (12, 2))], 1)
    theirs = torchvision_box_iou(torch.from_numpy(boxes[:7]), torch.from_numpy(boxes[7:])).numpy()
    np.testing.assert_allclose(metrics.box_iou(boxes[:7], boxes[7:]), theirs)


def test_box_iou_of_no_boxes_is_an_empty_table():
    assert metrics.box_iou([], [[0, 0, 1, 1]]).shape == (0, 1)


def test_best_overlap_names_the_instance():
    instances = np.zeros((2, 4, 4), bool)
    instances[0, :2], instances[1, 2:] = True, True
    mask = np.zeros((4, 4), bool)
    mask[2:, :2] = True
    assert metrics.best_overlap(mask, instances) == (0.5, 1)
    assert metrics.best_overlap(mask, instances[:0]) == (0.0, -1)


def test_top_iou_looks_at_the_first_mask_alone(rng):
    first, second, true = random_masks(rng, 3)
    objects = Instances(masks=np.stack([second, true]), labels=np.array([1, 2]))
    nothing = Instances(masks=true[None][:0], labels=np.zeros(0, np.int64))
    expected = metrics.mask_iou(first[None], objects.masks).max()
    assert 0 < metrics.top_iou([first, second], objects) == expected < 1
    assert metrics.top_iou([], objects) == metrics.top_iou([first], nothing) == 0
    assert metrics.top_iou([], nothing) == 0


def test_corloc_counts_images_with_half_overlap():
    truth = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], float)
    exactly_half, less = (0, 0, 10, 5), (0, 0, 10, 4.9)
    boxes = [exactly_half, less, (50, 50, 60, 60), None, (0, 0, 10, 10)]
    assert metrics.corloc(boxes, [truth, truth, truth, truth, truth[:0]]) == pytest.approx(2 / 5)


def test_corloc_refuses_lists_of_different_length():
    with pytest.raises(ValueError):
        metrics.corloc([None], [np.zeros((0, 4))] * 2)


# ---------------------------------------------------------------- average precision


def test_average_precision_closed_forms():
    assert coco_ap.average_precision(np.array([0.9, 0.8]), np.array([True, True]), 2) == 1
    assert coco_ap.average_precision(np.array([0.9, 0.8]), np.array([False, False]), 2) == 0
    assert coco_ap.average_precision(np.array([]), np.array([], bool), 3) == 0
    # The one hit comes second: precision 1/2 at every recall.
    assert coco_ap.average_precision(
        np.array([0.9, 0.8]), np.array([False, True]), 1
    ) == pytest.approx(0.5)
    # One of two found: precision 1 at the 51 recalls from 0 to 0.5, then 0.
    assert coco_ap.average_precision(np.array([0.9]), np.array([True]), 2) == pytest.approx(
        51 / 101
    )


def test_average_precision_sees_only_the_order_of_scores(rng):
    scores, hits = rng.random(30), rng.random(30) < 0.5
    assert coco_ap.average_precision(scores, hits, 20) == coco_ap.average_precision(
        scores**3 - 7, hits, 20
    )


def test_average_precision_without_objects_is_nan():
    assert np.isnan(coco_ap.average_precision(np.array([0.5]), np.array([False]), 0))


# ---------------------------------------------------------------- matching in one image


def hits_spec(scores, overlaps, threshold):
    """The greedy rule as a triple loop over Python lists."""
    taken, hits = set(), [False] * len(scores)
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        best, which = min(threshold, 1 - 1e-10), None
        for j, overlap in enumerate(overlaps[i]):
            if j not in taken and overlap >= best:
                best, which = overlap, j
        if which is not None:
            taken.add(which)
            hits[i] = True
    return hits


@pytest.mark.parametrize("seed", range(20))
def test_detection_hits_equal_loops(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(0, 8, 2)
    scores, overlaps = rng.integers(0, 4, n) / 4, rng.integers(0, 5, (n, m)) / 4  # both with ties
    hits = coco_ap.detection_hits(scores, overlaps, threshold=0.5)
    assert hits.dtype == bool and hits.shape == (n,)
    assert hits.tolist() == hits_spec(scores.tolist(), overlaps.tolist(), 0.5)


def test_detection_hits_are_greedy_and_in_the_given_order():
    # The second is better scored and takes object 0; the first then settles for object 1; the third
    # finds nothing free.
    overlaps = np.array([[0.9, 0.6], [0.7, 0.5], [0.8, 0.8]])
    assert coco_ap.detection_hits([0.5, 0.9, 0.1], overlaps, threshold=0.5).tolist() == [
        True,
        True,
        False,
    ]
    # Greedy is not optimal: the best scored takes the only object that the other could have had.
    assert coco_ap.detection_hits([0.9, 0.5], [[0.8, 0.7], [0.6, 0.0]], threshold=0.5).tolist() == [
        True,
        False,
    ]


def test_detection_hits_reach_the_threshold():
    assert coco_ap.detection_hits([1.0], [[0.5]], threshold=0.5).tolist() == [True]
    assert coco_ap.detection_hits([1.0], [[0.4999]], threshold=0.5).tolist() == [False]
    # COCO's slack below 1
    assert coco_ap.detection_hits([1.0], [[1 - 1e-11]], threshold=1.0).tolist() == [True]


def test_detection_hits_refuse_shapes_that_do_not_fit():
    for scores, overlaps in [([0.5], np.zeros((2, 3))), ([0.5], [0.5]), (0.5, [[0.5]])]:
        with pytest.raises(ValueError, match="expected scores"):
            coco_ap.detection_hits(scores, overlaps, threshold=0.5)


def test_reduce_to_best_box():
    boxes = np.array([[0, 0, 4, 4], [10, 10, 20, 20], [12, 12, 20, 20]], float)
    assert coco_ap.reduce_to_best_box([11, 11, 20, 20], boxes) == 1
    assert coco_ap.reduce_to_best_box([13, 13, 20, 20], boxes) == 2
    # touches none: still one object, and missed
    assert coco_ap.reduce_to_best_box([50, 50, 60, 60], boxes) == 0
    assert coco_ap.reduce_to_best_box([0, 0, 4, 4], np.zeros((0, 4))) == -1


def test_object_agreement_looks_at_objects_alone_and_never_at_void():
    true = np.array([[0, 1, 1, 255], [0, 0, 2, 255]])
    assert metrics.object_agreement(np.where(true == 255, 7, true), true) == 1
    # of four pixels that either calls an object
    assert metrics.object_agreement(np.array([[0, 1, 2, 0], [3, 0, -1, 0]]), true) == 0.25
    assert metrics.object_agreement(np.zeros((2, 2), int), np.zeros((2, 2), np.uint8)) == 1
