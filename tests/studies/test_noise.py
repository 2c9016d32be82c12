"""The dial of noise: how many masks are replaced, by what, and that all else stays."""

import numpy as np
import pytest

from mdlib.core.mask import Mask, Masks
from mdlib.data.zoo import ZooDataset
from mdlib.studies import noise
from mdlib.studies.noise import AS_FOUND, BOX, FOREIGN, add_noise, foreign_mask, ground_box


@pytest.fixture(scope="module")
def zoo(zoo_root):
    return ZooDataset(zoo_root, "train", 20)


@pytest.fixture(scope="module")
def true_masks(zoo):
    """The first object of each scene, with a score and a cluster."""
    return Masks(
        Mask.from_pixels(zoo.instances(i).masks[0], image_id=name, score=0.5 + i / 100, cluster=i)
        for i, name in enumerate(zoo.ids)
    )


@pytest.mark.parametrize(("share", "boxes", "foreign"), [(0, 0, 0), (0.2, 2, 2), (0.35, 4, 3)])
def test_that_share_is_replaced_half_of_it_in_each_way(zoo, true_masks, share, boxes, foreign):
    noisy, kinds = add_noise(true_masks, zoo, share=share, seed=0)
    assert [(kinds == kind).sum() for kind in (BOX, FOREIGN)] == [boxes, foreign]
    for before, after, kind in zip(true_masks, noisy, kinds, strict=True):
        assert (after == before) == (kind == AS_FOUND)
        assert (after.image_id, after.score, after.cluster, after.size) == (
            (before.image_id, before.score, before.cluster, before.size)
        )


def test_a_box_is_a_box_of_ground_and_a_foreign_mask_is_of_another_picture(zoo, true_masks):
    noisy, kinds = add_noise(true_masks, zoo, share=1, seed=3)
    shapes = {mask.image_id: mask.pixels() for mask in true_masks}
    for i, (mask, kind) in enumerate(zip(noisy, kinds, strict=True)):
        pixels = mask.pixels()
        if kind == BOX:
            x0, y0, x1, y1 = mask.box
            assert mask.area == (x1 - x0) * (y1 - y0) and not zoo.semantic(i)[pixels].any()
            own = true_masks[i].box
            assert x1 - x0 <= own[2] - own[0] and y1 - y0 <= own[3] - own[1]
        else:
            same = {name for name, shape in shapes.items() if (shape == pixels).all()}
            assert same and zoo.ids[i] not in same


def test_the_draw_is_the_seeds_own_and_more_noise_keeps_what_less_had(zoo, true_masks):
    some, kinds = add_noise(true_masks, zoo, share=0.4, seed=1)
    again, _ = add_noise(true_masks, zoo, share=0.4, seed=1)
    assert list(some) == list(again)
    assert list(some) != list(add_noise(true_masks, zoo, share=0.4, seed=2)[0])
    more, more_kinds = add_noise(true_masks, zoo, share=0.8, seed=1)
    replaced = np.flatnonzero(kinds)
    assert (more_kinds[replaced] == kinds[replaced]).all()
    assert [more[i] for i in replaced] == [some[i] for i in replaced]


def test_a_box_shrinks_until_it_finds_room(rng):
    ground = np.zeros((40, 50), bool)
    ground[3:13, 20:32] = True  # 10 x 12 pixels
    large = Mask.from_pixels(np.ones((40, 50), bool), image_id="a")
    for _ in range(5):
        box = ground_box(large, ground, rng)
        assert ground[box].all()
        # sides of 40 and 50 times the largest power of 0.8 that fits
        assert box.any(1).sum() in (8, 9, 10) and box.any(0).sum() in (10, 11, 12)


def test_a_box_that_fits_has_the_masks_sides_and_every_place_is_drawn(rng):
    ground = np.ones((6, 6), bool)
    pixels = np.zeros((6, 6), bool)
    pixels[:3, :4] = True
    mask = Mask.from_pixels(pixels, image_id="a")
    boxes = {Mask.from_pixels(ground_box(mask, ground, rng), image_id="a").box for _ in range(300)}
    assert boxes == {(x, y, x + 4, y + 3) for x in range(3) for y in range(4)}


def test_a_picture_without_ground_gets_a_tiny_box(rng):
    full = Mask.from_pixels(np.ones((9, 9), bool), image_id="a")
    assert ground_box(full, np.zeros((9, 9), bool), rng).sum() == noise.LEAST_SIDE**2


def test_a_mask_of_another_size_is_stretched(rng):
    left = np.zeros((10, 20), bool)
    left[:, :10] = True
    masks = [
        Mask.from_pixels(np.ones((4, 6), bool), image_id="a"),
        Mask.from_pixels(left, image_id="b"),
    ]
    np.testing.assert_array_equal(foreign_mask(masks, 0, rng), np.tile([1, 1, 1, 0, 0, 0], (4, 1)))


def test_a_mask_that_is_lost_in_a_small_picture_is_not_taken(rng):
    dot, half = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
    dot[1, 1], half[:50] = True, True
    masks = [
        Mask.from_pixels(np.ones((4, 4), bool), image_id="a"),
        Mask.from_pixels(dot, image_id="b"),
        Mask.from_pixels(half, image_id="c"),
    ]
    assert all(foreign_mask(masks, 0, rng).sum() == 8 for _ in range(10))


def test_what_cannot_be_done_is_refused(zoo, true_masks):
    with pytest.raises(ValueError, match="share must be in"):
        add_noise(true_masks, zoo, share=1.2, seed=0)
    with pytest.raises(ValueError, match="one picture alone"):
        add_noise(true_masks[:1], zoo, share=0.5, seed=0)
