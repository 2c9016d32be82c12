"""A changed cue changes that cue alone; facts and information against known values."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from mdlib.data.compose import COMPOSITIONS, MIXTURE, turn_hue
from mdlib.data.zoo import ZooDataset
from mdlib.studies import cues

ONE = replace(MIXTURE, object_counts=(0, 1))


@pytest.fixture(scope="module")
def scenes(zoo_root):
    """Parts of the same eight scenes with their grounds in focus, one to three objects each."""
    data = ZooDataset(zoo_root, "train", 8, composition=COMPOSITIONS["sharp"])
    return [data.parts(i) for i in range(len(data))]


def colour_range(picture):
    return np.ptp(np.asarray(picture, float), -1).max()


def detail(picture):
    return np.abs(ndimage.laplace(picture.astype(float).mean(-1)))


CHANGES = {
    "grey": cues.grey,
    "hues": cues.exchange_hues,
    "focus": lambda parts: cues.blur_objects(parts, radius=2),
    "texture": cues.share_texture,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_leaves_the_truth_and_the_scene_that_it_was_given(change, scenes):
    before = scenes[0].render()
    changed = change(scenes[0])
    assert changed.masks is scenes[0].masks and changed.names == scenes[0].names
    assert changed.render().shape == before.shape and (changed.render() != before).any()
    np.testing.assert_array_equal(scenes[0].render(), before)


def test_a_grey_scene_has_no_colour_and_the_same_luma(scenes):
    for parts in scenes:
        found = cues.grey(parts).render()
        assert colour_range(found) <= 1 < colour_range(parts.render())  # cut to whole numbers
        np.testing.assert_allclose(found[..., 0], parts.render() @ cues.LUMA, atol=12)


def apart(one, other):
    """Distance of two angles."""
    return abs((one - other + np.pi) % (2 * np.pi) - np.pi)


def objects_hue(parts):
    seen = [layer[mask][:, :3] for layer, mask in zip(parts.layers, parts.masks, strict=True)]
    return cues.mean_hue(np.concatenate(seen))


def test_hues_are_exchanged(scenes):
    moved = []
    for parts in scenes:
        changed = cues.exchange_hues(parts)
        # what is turned out of the range of colours is cut, so hues are not quite equal
        assert apart(cues.mean_hue(changed.ground), objects_hue(parts)) < 0.35
        assert apart(objects_hue(changed), cues.mean_hue(parts.ground)) < 0.35
        moved.append(apart(objects_hue(changed), objects_hue(parts)))
        np.testing.assert_array_equal(changed.layers[..., 3], parts.layers[..., 3])
    assert max(moved) > 1


def test_the_hue_of_pure_colours_and_what_a_turn_adds(rng):
    for number, colour in enumerate(((9, 0, 0), (9, 9, 0), (0, 9, 0), (0, 9, 9), (0, 0, 9))):
        assert cues.mean_hue(np.array([colour])) == pytest.approx(number * np.pi / 3)
    colours = rng.uniform(0, 255, (5, 3)).astype(np.float32)
    turned = cues.mean_hue(turn_hue(colours, 1.3))
    assert apart(turned, cues.mean_hue(colours) + 1.3) < 1e-4
    # a vivid red among pale blues
    mixed = np.array([[255, 0, 0], [100, 100, 110], [100, 100, 110]])
    assert apart(cues.mean_hue(mixed), 0) < 0.1


def test_objects_lose_their_detail_and_the_ground_keeps_its_own(scenes):
    for parts in scenes:
        changed = cues.blur_objects(parts, radius=2)
        inside = ndimage.binary_erosion(parts.masks.any(0), iterations=2)
        before, after = (detail(each.render())[inside].mean() for each in (parts, changed))
        assert after < before
        np.testing.assert_array_equal(changed.ground, parts.ground)


def test_the_ground_is_made_of_mirrored_pieces_of_the_largest_object(scenes):
    for parts in scenes:
        ground = cues.share_texture(parts).ground
        largest = parts.masks.sum((1, 2)).argmax()
        rows, columns = cues.inner_square(parts.masks[largest])
        own = rows.stop - rows.start
        patch = parts.layers[largest][rows, columns]
        colours = (255 * patch[..., :3] / patch[..., 3:]).clip(0, 255)
        np.testing.assert_allclose(ground[:own, :own], colours, rtol=1e-5)
        np.testing.assert_array_equal(ground[own : 2 * own, :own], ground[own - 1 :: -1, :own])
        assert ground.shape == parts.ground.shape


def square_spec(mask):
    """The side of the largest square, all tried."""
    return max(
        side
        for side in range(1, min(mask.shape) + 1, 2)
        for top in range(mask.shape[0] - side + 1)
        for left in range(mask.shape[1] - side + 1)
        if mask[top : top + side, left : left + side].all()
    )


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_the_inner_square_is_the_largest(share, rng):
    for _ in range(5):
        mask = rng.random((9, 12)) < share
        rows, columns = cues.inner_square(mask)
        assert mask[rows, columns].all()
        assert rows.stop - rows.start == columns.stop - columns.start == square_spec(mask)


# ---------------------------------------------------------------- clusters


@pytest.fixture(scope="module")
def crops(zoo_root):
    data = ZooDataset(zoo_root, "train", 60, composition=ONE)
    return data, cues.take_crops(data, range(20, 60), size=32)


def test_crops_are_those_of_the_scenes_that_were_asked_for(crops):
    data, found = crops
    assert found.crops.shape == (40, 3, 32, 32) and found.histograms.shape == (40, 64)
    np.testing.assert_array_equal(
        found.facts["class"], [data.instances(i).labels[0] for i in range(20, 60)]
    )
    x0, y0, x1, y1 = data.instances(23).boxes[0].astype(int)
    own = data.image(23)[y0:y1, x0:x1]
    np.testing.assert_array_equal(found.histograms[3], cues.colour_histogram(own))


def test_facts_lie_in_their_bins(crops):
    data, found = crops
    facts = found.facts
    assert all(values.shape == (40,) and values.dtype == np.int64 for values in facts.values())
    assert np.bincount(facts["size"], minlength=4).tolist() == [10, 10, 10, 10]
    areas = [data.instances(i).masks.mean() for i in range(20, 60)]
    assert np.array_equal(np.sort(facts["size"]), facts["size"][np.argsort(areas)])
    for name in ("ground hue", "hue"):
        assert facts[name].min() >= 0 and facts[name].max() < cues.HUES
    assert set(facts["photograph"]) <= set(range(len(data.photographs)))
    boxes = np.array([data.instances(i).boxes[0] for i in range(20, 60)])
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_array_equal(facts["place"] % 2, middles[:, 0] > 64)
    np.testing.assert_array_equal(facts["place"] // 2, middles[:, 1] > 64)


def test_scenes_without_one_object_are_refused(zoo_root):
    data = ZooDataset(zoo_root, "train", 3, composition=COMPOSITIONS["crowd"])
    with pytest.raises(ValueError, match="train_00001 has 3 objects"):
        cues.take_crops(data, [1], size=32)


def test_a_colour_histogram_counts_colours():
    image = np.array([[[0, 0, 0], [255, 255, 255]], [[63, 0, 64], [255, 0, 0]]], np.uint8)
    expected = np.zeros((4, 4, 4))
    expected[0, 0, 0] = expected[3, 3, 3] = expected[0, 0, 1] = expected[3, 0, 0] = 0.25
    np.testing.assert_array_equal(cues.colour_histogram(image), expected.ravel())


def test_information_is_one_for_what_the_features_are_and_none_for_what_they_are_not(rng):
    kind, other = rng.integers(0, 4, (2, 400))
    features = np.eye(4)[kind] + 0.01 * rng.normal(size=(400, 4))
    facts = {"kind": kind, "renamed": 7 - kind, "other": other}
    found = cues.information(features, facts, k=4, seed=0, restarts=3)
    assert found["kind"] == found["renamed"] == pytest.approx(1)
    assert abs(found["other"]) < 0.05
