"""Familiar scenes by names, and scores of a part by the definitions of the whole."""

import numpy as np
import pytest

from mdlib.core.mask import Mask
from mdlib.data import Dataset
from mdlib.data.sample import Instances
from mdlib.evaluate import coco_ap, metrics
from mdlib.studies import individuals


class Named(Dataset):
    """Scenes of 8 x 8 pixels; an object of each name stands in a row of its own."""

    name, labels, classes = "named", "masks", ("background", "cat")

    def __init__(self, *scenes):
        self.scenes = scenes
        self.ids = tuple(f"scene_{i}" for i in range(len(scenes)))

    def size(self, i):
        return 8, 8

    def image(self, i):
        return np.zeros((8, 8, 3), np.uint8)

    def instances(self, i):
        names = self.scenes[i]
        masks = np.zeros((len(names), 8, 8), bool)
        for row in range(len(names)):
            masks[row, 2 * row : 2 * row + 2, :4] = True
        return Instances(masks, np.ones(len(names), np.int64), tuple(names))


def test_a_scene_is_familiar_if_all_its_animals_stand_in_train():
    train = Named(("ann", "bob"), (), ("cid",))
    val = Named(("ann",), ("bob", "cid"), ("ann", "dan"), (), ("eve",))
    assert individuals.familiar_scenes(val, train).tolist() == [True, True, False, True, False]


def test_without_names_nobody_knows():
    class Anonymous(Named):
        def instances(self, i):
            found = super().instances(i)
            return Instances(found.masks, found.labels)

    data = Anonymous(("ann",))
    assert individuals.familiar_scenes(data, data) is None


def masks_of(scenes, chosen):
    """A mask for each chosen object of each scene, the first with the largest score."""
    return [
        [
            Mask.from_pixels(scenes.instances(i).masks[n], image_id=scenes.ids[i], score=1 - n / 9)
            for n in objects
        ]
        for i, objects in enumerate(chosen)
    ]


def test_masks_are_scored_by_the_definitions_of_the_whole():
    scenes = Named(("ann", "bob"), ("cid",), (), ("dan",))
    truths = [scenes.instances(i) for i in range(4)]
    images = masks_of(scenes, [(0,), (0,), (), ()])  # bob and dan are missed
    scores = individuals.score_masks(images, truths)
    assert scores["mask_iou"] == pytest.approx(2 / 3) and scores["corloc"] == pytest.approx(2 / 3)
    assert scores["ap50_multi"] == coco_ap.coco_scores(images, truths).values["AP50"] < 0.6
    best, reduced = coco_ap.single(images, truths, overlap="box")
    assert scores["ap50_single"] == coco_ap.coco_scores(best, reduced).values["AP50"] > 0.6


def test_a_part_without_an_object_has_no_score_of_masks():
    scenes = Named((), ())
    scores = individuals.score_masks([[], []], [scenes.instances(i) for i in range(2)])
    assert len(scores) == 4 and np.isnan(list(scores.values())).all()


def test_the_miou_of_a_part_is_over_the_classes_that_stand_in_it():
    confusion = np.array([[90, 0, 5], [10, 0, 5], [0, 0, 30]])  # class 1 is predicted, never true
    ious = metrics.iou(confusion, np.arange(3))
    assert ious[1] == 0
    assert individuals.score_maps(confusion, np.arange(3)) == pytest.approx((ious[0] + ious[2]) / 2)
    whole = np.array([[90, 1, 5], [10, 7, 5], [0, 0, 30]])
    assert individuals.score_maps(whole, np.arange(3)) == metrics.mean_iou(whole, np.arange(3))
