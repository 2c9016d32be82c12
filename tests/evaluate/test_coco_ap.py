"""COCO's evaluation through faster_coco_eval: hand-made cases, pycocotools as an outside judge, and
the "single" protocol.
"""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mdlib.core.mask import Mask
from mdlib.data.sample import Instances
from mdlib.evaluate import coco_ap, metrics
from mdlib.evaluate.coco_ap import coco_scores, named, single


def box(x0, y0, x1, y1, side=128):
    mask = np.zeros((side, side), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def truth(*masks, labels=None):
    stacked = np.stack(masks) if masks else np.zeros((0, 128, 128), bool)
    return Instances(masks=stacked, labels=np.array(labels or [1] * len(masks), np.int64))


def said(mask, score, label=1):
    return Mask.from_pixels(mask, image_id="0", score=score, cluster=label - 1)


A, B = box(0, 0, 20, 20), box(60, 60, 100, 100)  # 400 pixels: small; 1,600: medium
HALF = box(0, 0, 20, 12)  # IoU 0.6 with A
NAMES = np.arange(1, 10)  # `said` puts a mask of class c into cluster c - 1


def ap(hits, positives):
    return coco_ap.average_precision(-np.arange(len(hits)), np.array(hits, bool), positives)


# ---------------------------------------------------------------- hand-made cases


def test_the_truth_scores_one_everywhere():
    values = coco_scores([[said(A, 0.9), said(B, 0.8)]], [truth(A, B)]).values
    expected = dict.fromkeys(
        ("AP", "AP50", "AP75", "AR10", "AR100", "AP_small", "AR_small", "AP_medium", "AR_medium"),
        1.0,
    )
    # one prediction finds one of two; no object is large
    assert values == pytest.approx(expected | {"AR1": 0.5})


def test_a_mask_of_iou_06_is_a_hit_at_three_thresholds_of_ten():
    result = coco_scores([[said(HALF, 0.9)]], [truth(A)])
    assert result.values["AP"] == pytest.approx(0.3)  # 0.50, 0.55, 0.60
    assert (result.values["AP50"], result.values["AP75"], result.values["AR100"]) == pytest.approx(
        (1, 0, 0.3)
    )
    np.testing.assert_allclose(result.precision.mean(1), [1] * 3 + [0] * 7)


def test_a_surer_false_alarm_and_a_duplicate_cost_precision():
    false, twice = box(30, 100, 60, 128), box(60, 60, 100, 99)
    found = [[said(false, 0.9), said(B, 0.8), said(twice, 0.7), said(A, 0.6)]]
    values = coco_scores(found, [truth(A, B)]).values
    assert values["AP50"] == pytest.approx(ap([0, 1, 0, 1], 2))
    assert values["AR1"] == 0 and values["AR10"] == pytest.approx(1)


def test_sizes_judge_the_objects_of_their_size_alone():
    values = coco_scores([[said(B, 0.9)]], [truth(A, B)]).values
    assert values["AP_small"] == 0 and values["AP_medium"] == pytest.approx(1)
    assert "AP_large" not in values


def test_class_aware_asks_for_the_class_and_weighs_classes_alike():
    truths = [truth(A, B, labels=[3, 7])]
    right, swapped = (
        [[said(A, 0.9, label=first), said(B, 0.8, label=second)]]
        for first, second in ((3, 7), (7, 3))
    )
    assert coco_scores(right, truths, names=NAMES).values["AP50"] == pytest.approx(1)
    assert coco_scores(swapped, truths, names=NAMES).values["AP50"] == 0
    assert coco_scores(swapped, truths).values["AP50"] == pytest.approx(1)
    # 9 is no true class: it belongs to none that is averaged
    one = [[said(A, 0.9, label=3), said(B, 0.8, label=9)]]
    assert coco_scores(one, truths, names=NAMES).values["AP50"] == pytest.approx(0.5)


def test_a_prediction_in_a_crowd_is_ignored():
    crowd = Instances(masks=A[None], labels=np.array([1]), crowds=box(40, 0, 128, 40)[None])
    found = [[said(box(50, 5, 70, 25), 0.9), said(A, 0.5)]]
    for names in (None, NAMES):
        assert coco_scores(found, [crowd], names=names).values["AP50"] == pytest.approx(1)
    assert coco_scores(found, [truth(A)]).values["AP50"] == pytest.approx(0.5)


# ---------------------------------------------------------------- against pycocotools


def random_case(rng, count=25, levels=100):
    """Predictions near the objects, false alarms and crowds. levels: of the scores; few make ties."""
    images, truths = [], []
    for _ in range(count):
        corners = rng.integers(0, 70, (rng.integers(0, 4), 2))
        sides = rng.integers(8, 58, (len(corners), 2))
        masks = [box(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sides, strict=True)]
        true = truth(*masks, labels=rng.integers(1, 4, len(masks)).tolist())
        if rng.random() < 0.3:
            x, y = rng.integers(0, 90, 2)
            true = Instances(true.masks, true.labels, crowds=box(x, y, x + 40, y + 30)[None])
        near = [
            (np.roll(m, rng.integers(-5, 6, 2), (0, 1)), c)
            for m, c in zip(masks, true.labels, strict=True)
            if rng.random() < 0.8
        ]
        near += [
            (box(x, y, x + 30, y + 20), 1) for x, y in rng.integers(0, 90, (rng.integers(0, 3), 2))
        ]
        images.append(
            [
                said(
                    m,
                    rng.integers(levels) / levels,
                    int(c if rng.random() < 0.8 else rng.integers(1, 4)),
                )
                for m, c in near
            ]
        )
        truths.append(true)
    return images, truths


def pycocotools_stats(images, truths, *, by_class):
    reference = COCO()
    reference.dataset = {**coco_ap._annotations(truths, by_class=by_class), "info": {}}
    found = [
        {
            "image_id": i,
            "category_id": 1 + mask.cluster if by_class else 1,
            "score": mask.score,
            "segmentation": mask.rle,
        }
        for i, masks in enumerate(images)
        for mask in masks
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
        judge = COCOeval(reference, reference.loadRes(found), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    order = [
        "AP",
        "AP50",
        "AP75",
        "AP_small",
        "AP_medium",
        "AP_large",
        "AR1",
        "AR10",
        "AR100",
        "AR_small",
        "AR_medium",
        "AR_large",
    ]
    return {name: value for name, value in zip(order, judge.stats, strict=True) if value > -1}


@pytest.mark.parametrize(("names", "levels"), [(None, 100), (NAMES, 100), (None, 3)])
def test_all_numbers_equal_pycocotools(rng, names, levels):
    images, truths = random_case(rng, levels=levels)
    expected = pycocotools_stats(images, truths, by_class=names is not None)
    assert 0.05 < expected["AP"] < 0.95  # neither end, or the comparison says little
    assert coco_scores(images, truths, names=names).values == pytest.approx(expected, abs=1e-6)


def test_ap50_equals_our_own(rng):
    images, truths = random_case(rng)
    truths = [Instances(true.masks, true.labels) for true in truths]
    scores, hits = [], []
    for found, true in zip(images, truths, strict=True):
        pixels = np.array([mask.pixels() for mask in found], bool).reshape(-1, *A.shape)
        own = np.array([mask.score for mask in found])
        scores.append(own)
        overlaps = metrics.mask_iou(pixels, true.masks)
        hits.append(coco_ap.detection_hits(own, overlaps, threshold=0.5))
    objects = sum(len(true.labels) for true in truths)
    expected = coco_ap.average_precision(np.concatenate(scores), np.concatenate(hits), objects)
    result = coco_scores(images, truths)
    assert result.values["AP50"] == pytest.approx(expected, abs=1e-6)
    assert result.precision[0].mean() == pytest.approx(result.values["AP50"])


def test_100_predictions_of_an_image_are_looked_at():
    false = [said(box(x, 100, x + 1, 128), 0.9) for x in range(100)]
    late = said(A, 0.1)
    assert coco_scores([[*false, late]], [truth(A)]).values["AP50"] == 0
    found = coco_scores([[*false[1:], late]], [truth(A)])
    assert found.values["AP50"] == pytest.approx(0.01)


# ---------------------------------------------------------------- nothing there


def test_no_prediction_at_all_scores_zero_where_there_are_objects():
    assert coco_scores([[], []], [truth(A), truth()]).values == dict.fromkeys(
        ("AP", "AP50", "AP75", "AR1", "AR10", "AR100", "AP_small", "AR_small"), 0.0
    )


def test_no_object_at_all_has_no_score():
    for images in ([[said(A, 0.9)]], [[]]):
        result = coco_scores(images, [truth()])
        assert result.values == {} and not result.precision.any()


def test_boxes_alone_and_lists_of_different_length_are_refused():
    boxes = Instances(masks=None, labels=np.array([1]), drawn_boxes=np.array([[0, 0, 5, 5]]))
    with pytest.raises(ValueError, match="boxes alone"):
        coco_scores([[]], [boxes])
    with pytest.raises(ValueError):
        coco_scores([[], []], [truth(A)])


# ---------------------------------------------------------------- protocols


def one_each(images, truths, overlap="box"):
    """`single`, with its objects as a list."""
    best, reduced = single(images, truths, overlap=overlap)
    return best, list(reduced)


def test_single_keeps_the_surest_prediction_and_the_object_that_its_box_overlaps_best():
    images, truths = one_each([[said(A, 0.4), said(B, 0.9)]], [truth(A, B, labels=[1, 2])])
    assert [mask.score for mask in images[0]] == [0.9]
    assert truths[0].labels.tolist() == [2] and (truths[0].masks[0] == B).all()


def test_single_may_choose_the_object_by_its_mask():
    outline = box(0, 0, 64, 64)
    outline[2:62, 2:62] = False  # a thin frame: a box that is best, and nearly no mask
    inner = box(0, 0, 50, 50)
    found, objects = [[said(box(0, 0, 60, 60), 0.9)]], [truth(outline, inner, labels=[1, 2])]
    assert one_each(found, objects)[1][0].labels.tolist() == [1]
    assert one_each(found, objects, "mask")[1][0].labels.tolist() == [2]
    with pytest.raises(ValueError, match="overlap"):
        one_each(found, objects, "area")


def test_single_of_an_image_without_prediction_misses_its_largest_object():
    images, truths = one_each([[], [said(A, 0.9)]], [truth(A, B, labels=[1, 2]), truth(A)])
    assert images[0] == [] and truths[0].labels.tolist() == [2]
    values = coco_scores(images, truths).values
    assert values["AP50"] == pytest.approx(ap([1], 2)) and values["AR1"] == pytest.approx(0.5)


def test_single_of_an_image_without_object_is_a_false_alarm():
    images, truths = one_each([[said(B, 0.9)], [said(A, 0.8)]], [truth(), truth(A)])
    assert not len(truths[0].labels)
    assert coco_scores(images, truths).values["AP50"] == pytest.approx(0.5)


def test_single_equals_the_library_s_own_form(rng):
    images, truths = random_case(rng)
    kept = [i for i, true in enumerate(truths) if len(true.labels)]
    one, reduced = one_each([images[i] for i in kept], [truths[i] for i in kept])
    overlaps = [
        metrics.mask_iou(r[0].pixels()[None], t.masks)[0, 0] if r else 0.0
        for r, t in zip(one, reduced, strict=True)
    ]
    scores = np.array([r[0].score if r else -np.inf for r in one])
    values = coco_scores(one, reduced).values
    expected = coco_ap.average_precision(scores, np.array(overlaps) >= 0.5, len(kept))
    assert values["AP50"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("overlap", ["box", "mask"])
def test_a_prediction_without_a_pixel_is_none(overlap):
    pixels = np.zeros((1, 20, 30), bool)
    pixels[0, 3:9, 4:12] = True
    truth = [Instances(masks=pixels, labels=np.array([1]))]
    empty = Mask.from_pixels(np.zeros((20, 30), bool), image_id="a", score=0.9)
    right = Mask.from_pixels(pixels[0], image_id="a", score=0.8)
    assert coco_ap.coco_scores([[empty, right]], truth).values["AP50"] == 1
    assert coco_ap.coco_scores([[empty]], truth).values["AP50"] == 0
    best, _ = coco_ap.single([[empty, right]], truth, overlap=overlap)
    assert best == [[right]]
    best, judged = coco_ap.single([[empty]], truth, overlap=overlap)
    assert best == [[]] and len(next(judged).labels) == 1  # missed


@pytest.mark.parametrize("names", [None, np.array([1])])
def test_a_crowd_without_a_pixel_changes_nothing(names):
    pixels = np.zeros((1, 20, 30), bool)
    pixels[0, 3:9, 4:12] = True
    found = [[Mask.from_pixels(pixels[0], image_id="a", cluster=0)]]
    true = Instances(masks=pixels, labels=np.array([1]), crowds=np.zeros((1, 20, 30), bool))
    assert coco_ap.coco_scores(found, [true], names=names).values["AP"] == 1


def test_clusters_without_a_name_predict_no_class():
    images, names = [[said(A, 0.8, label=1), said(B, 0.9, label=2)]], np.array([5, -1])
    assert named(images, names) == [[images[0][0]]]
    # nor are they false alarms: the surer of the two is not counted
    values = coco_scores(images, [truth(A, labels=[5])], names=names).values
    assert values["AP50"] == pytest.approx(1) and values["AR1"] == pytest.approx(1)
