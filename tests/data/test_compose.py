"""Composed scenes: what a dial changes and what it leaves, pairs of compositions, refused values."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from mdlib.data import compose, zoo
from mdlib.data.compose import COMPOSITIONS, MIXTURE, Composition

COUNT = 24  # scenes of a composition


def composed(*drawn_from, seed, index):
    """Scene `index`: (image, masks, labels, names)."""
    parts = compose.scene_parts(*drawn_from, seed=seed, index=index)
    return parts.render(), parts.masks, parts.labels, parts.names


@pytest.fixture(scope="module")
def pictures(zoo_root):
    """The cut-outs and photographs of train."""
    data = zoo.ZooDataset(zoo_root, "train")
    return data.cutouts, data.photographs


@pytest.fixture(scope="module")
def scenes(pictures):
    """{composition: its first scenes, each (image, masks, labels, names)}."""
    return {
        name: [composed(*pictures, each, seed=7, index=i) for i in range(COUNT)]
        for name, each in COMPOSITIONS.items()
    }


def detail(image):
    """(H, W) how much a picture changes from pixel to pixel."""
    return np.abs(ndimage.laplace(image.mean(-1)))


# ---------------------------------------------------------------- every composition


def test_a_scene_is_the_same_again_and_others_differ(pictures, scenes):
    for name, found in scenes.items():
        again = composed(*pictures, COMPOSITIONS[name], seed=7, index=5)
        for one, other in zip(found[5], again, strict=True):
            np.testing.assert_array_equal(one, other)
        assert len({scene[0].tobytes() for scene in found}) == COUNT
    other_seed = composed(*pictures, MIXTURE, seed=8, index=5)
    assert (other_seed[0] != scenes["mixture"][5][0]).any()


def test_masks_do_not_overlap_and_none_is_empty(scenes):
    for found in scenes.values():
        for image, masks, labels, names in found:
            assert image.shape == (128, 128, 3) and image.dtype == np.uint8
            assert masks.dtype == bool and masks.shape == (len(names), 128, 128)
            assert labels.dtype == np.int64 and len(labels) == len(names)
            assert not (masks.sum(0) > 1).any() and masks.any((1, 2)).all()


def test_an_object_is_where_its_mask_says(scenes):
    inside, outside = [], []
    for (bare, *_), (image, masks, *_) in zip(scenes["empty"], scenes["mixture"], strict=True):
        changed = np.abs(image.astype(int) - bare).max(-1) > 8
        inside.append(changed[masks.any(0)].mean())
        outside.append(changed[~ndimage.binary_dilation(masks.any(0), iterations=3)].mean())
    # an object may have the ground's colour here and there; thin parts may be half transparent
    assert np.mean(inside) > 0.9 and np.mean(outside) < 0.01


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("mixture", {1, 2, 3}), ("portrait", {1}), ("crowd", {3}), ("edge", {1}), ("empty", {0})],
)
def test_a_composition_has_its_number_of_objects(scenes, name, numbers):
    assert {len(names) for *_, names in scenes[name]} == numbers


def test_a_scene_is_its_parts_pasted_in_order(pictures, scenes):
    for name, composition in COMPOSITIONS.items():
        parts = compose.scene_parts(*pictures, composition, seed=7, index=5)
        image, masks, labels, names = scenes[name][5]
        canvas = parts.ground
        for layer in parts.layers:
            canvas = compose.paste(canvas, layer)
        # the grain has a standard deviation of 2.5; whole numbers cut off one half on average
        error = image.astype(float) + 0.5 - canvas.clip(0, 255)
        assert abs(error.mean()) < 0.3 and 1.5 < error.std() < 2.8
        np.testing.assert_array_equal(parts.render(), image)
        np.testing.assert_array_equal(parts.masks, masks)
        np.testing.assert_array_equal(parts.labels, labels)
        assert parts.names == names


def test_parts_know_the_photograph_of_their_ground(pictures):
    # the light of a photograph changes by a factor of 0.75 to 1.15
    photographs = [Image.new("RGB", (200, 160), (level,) * 3) for level in (20, 60, 180)]
    found = [
        compose.scene_parts(pictures[0], photographs, COMPOSITIONS["empty"], seed=3, index=i)
        for i in range(COUNT)
    ]
    levels = [parts.ground.mean() for parts in found]
    assert [parts.photograph for parts in found] == np.digitize(levels, [35, 100]).tolist()
    assert {parts.photograph for parts in found} == {0, 1, 2}
    invented = compose.scene_parts(*pictures, COMPOSITIONS["invented"], seed=3, index=0)
    assert invented.photograph == -1


# ---------------------------------------------------------------- pairs


def test_focus_and_ground_leave_the_objects_as_they_are(scenes):
    for other in ("sharp", "soft", "invented"):
        for one, two in zip(scenes["mixture"], scenes[other], strict=True):
            np.testing.assert_array_equal(one[1], two[1])
            assert one[3] == two[3]


def test_scene_i_of_two_compositions_shows_the_same_animals(scenes):
    for other in ("portrait", "crowd", "edge", "camouflage"):
        for (*_, one), (*_, two) in zip(scenes["mixture"], scenes[other], strict=True):
            shared = min(len(one), len(two))
            assert one[:shared] == two[:shared]


def test_scene_i_stands_on_the_same_ground(scenes):
    for (bare, *_), (image, masks, *_) in zip(scenes["empty"], scenes["crowd"], strict=True):
        same = np.abs(image.astype(int) - bare).max(-1) <= 1
        assert same[~ndimage.binary_dilation(masks.any(0), iterations=3)].mean() > 0.97


# ---------------------------------------------------------------- dials


def test_the_share_of_grounds_in_focus_is_that_of_the_dial(pictures, scenes):
    def in_focus(name):
        """Scenes whose ground is the one that is all in focus."""
        pairs = zip(scenes[name], scenes["sharp"], strict=True)
        return sum(np.array_equal(one[0], two[0]) for one, two in pairs)

    assert in_focus("soft") == in_focus("portrait") == 0
    assert COUNT * 0.15 < in_focus("mixture") < COUNT * 0.65


def test_blur_takes_detail_from_the_ground(pictures):
    def ground(blur):
        soft = replace(MIXTURE, sharp=0, blur=(blur, blur))
        return [compose.draw_ground(pictures[1], soft, seed=1, index=i, side=128) for i in range(8)]

    amounts = [[detail(one).mean() for one in ground(blur)] for blur in (0, 0.5, 1, 2, 4)]
    assert (np.diff(amounts, axis=0) < 0).all()


def test_an_invented_ground_has_less_detail_than_any_photograph_in_focus(pictures):
    painted = [compose.paint_landscape(np.random.default_rng(i)) for i in range(8)]
    sharp = [
        compose.draw_ground(pictures[1], COMPOSITIONS["sharp"], seed=1, index=i, side=128)
        for i in range(8)
    ]
    assert max(detail(p).mean() for p in painted) < min(detail(s).mean() for s in sharp)


def extents(scene):
    """Longer side of each object's box, in pixels."""
    ys_xs = [np.nonzero(mask) for mask in scene[1]]
    return [max(np.ptp(ys), np.ptp(xs)) + 1 for ys, xs in ys_xs]


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.35), (0.7, 0.75)])
def test_an_object_is_as_large_as_the_dial_says(pictures, low, high):
    one = Composition(object_counts=(0, 1), object_size=(low, high), object_place=(0, 0))
    found = [composed(*pictures, one, seed=2, index=i) for i in range(COUNT)]
    sizes = np.concatenate([extents(scene) for scene in found]) / 128
    # thin parts that are less than half opaque are not in the mask
    assert sizes.max() <= high + 2 / 128 and np.median(sizes) > low - 3 / 128


def test_an_object_stands_where_the_dial_says(pictures):
    def middles(place):
        one = Composition(object_counts=(0, 1), object_size=(0.3, 0.3), object_place=place)
        found = [composed(*pictures, one, seed=2, index=i) for i in range(COUNT)]
        boxes = [np.nonzero(masks[0]) for _, masks, *_ in found]
        return np.array([[(a.min() + a.max() + 1) / 256 - 0.5 for a in box] for box in boxes])

    assert np.abs(middles((0, 0))).max() < 0.05
    distance = np.abs(middles((0.2, 0.25))).max(1)
    assert (distance > 0.15).all() and (distance < 0.3).all()


def test_an_object_at_the_edge_is_cut_by_the_border(scenes):
    def touches(name):
        frame = np.ones((128, 128), bool)
        frame[1:-1, 1:-1] = False
        return np.mean([(masks.any(0) & frame).any() for _, masks, *_ in scenes[name]])

    assert touches("edge") > 0.9 and touches("portrait") < 0.3


def test_likeness_moves_the_grounds_colours_to_the_objects(pictures):
    def distance(likeness):
        """How far the mean colour of the ground is from the object's, mean over scenes."""
        alike = Composition(object_counts=(0, 1), likeness=likeness)
        found = [composed(*pictures, alike, seed=3, index=i) for i in range(COUNT)]
        return np.mean(
            [
                np.linalg.norm(image[masks[0]].mean(0) - image[~masks[0]].mean(0))
                for image, masks, *_ in found
            ]
        )

    none, half, all_of_it = (distance(likeness) for likeness in (0, 0.5, 1))
    assert all_of_it < half < none and all_of_it < none / 3


def test_take_on_colours_gives_mean_and_deviation(rng):
    ground = rng.uniform(90, 120, (16, 16, 3)).astype(np.float32)
    layer = np.zeros((16, 16, 4), np.float32)
    layer[4:12, 4:12, :3], layer[4:12, 4:12, 3] = rng.normal(150, 5, (8, 8, 3)), 255
    inside = layer[4:12, 4:12, :3].reshape(-1, 3)
    alike = compose.take_on_colours(ground, layer, likeness=1.0)
    np.testing.assert_allclose(alike.mean((0, 1)), inside.mean(0), rtol=1e-4)
    np.testing.assert_allclose(alike.std((0, 1)), inside.std(0), rtol=1e-3)
    np.testing.assert_array_equal(compose.take_on_colours(ground, layer, likeness=0.0), ground)


# ---------------------------------------------------------------- steps


def test_paste_is_alpha_compositing(rng):
    canvas, colour = rng.uniform(0, 255, (2, 6, 7, 3))
    alpha = rng.uniform(0, 1, (6, 7, 1))
    layer = np.concatenate([alpha * colour, 255 * alpha], -1)
    np.testing.assert_allclose(compose.paste(canvas, layer), (1 - alpha) * canvas + alpha * colour)


def test_transform_gives_the_longer_side_and_layers_put_it_at_its_centre():
    cutout = Image.new("RGBA", (40, 20))
    cutout.paste((200, 100, 50, 255), (5, 4, 35, 16))  # 30 x 12 pixels that are not transparent
    image = compose.transform(cutout, longer=60, flip=False, degrees=0)
    assert image.mode == "RGBa" and image.size == (60, 24)
    layer = compose.lay(image, (70, 40), 0.5, side=128)
    ys, xs = np.nonzero(layer[..., 3] > 127)
    assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == (40, 100, 28, 52)
    np.testing.assert_allclose(layer[40, 70], [100, 50, 25, 255], atol=1)


def test_turn_hue_keeps_grey_mean_and_saturation_and_a_whole_turn_changes_nothing(rng):
    colours = rng.uniform(0, 255, (5, 3)).astype(np.float32)
    np.testing.assert_allclose(compose.turn_hue(colours, 2 * np.pi), colours, atol=1e-3)
    grey = np.full((2, 3), 77, np.float32)
    np.testing.assert_allclose(compose.turn_hue(grey, 1.3), grey, atol=1e-3)
    turned = compose.turn_hue(colours, 1.3)
    assert np.abs(turned - colours).max() > 10
    np.testing.assert_allclose(turned.mean(1), colours.mean(1), rtol=1e-5)
    saturation = [np.linalg.norm(c - c.mean(1, keepdims=True), axis=1) for c in (colours, turned)]
    np.testing.assert_allclose(*saturation, rtol=1e-4)
    np.testing.assert_allclose(compose.turn_hue(0.3 * colours, 1.3), 0.3 * turned, rtol=1e-3)


def test_a_ground_in_focus_is_a_window_of_a_photograph(rng):
    blocks = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    photograph = Image.fromarray(blocks).filter(ImageFilter.GaussianBlur(3))
    ground = compose.take_ground([photograph], np.random.default_rng(0), blur=0)
    assert ground.shape == (128, 128, 3) and ground.dtype == np.float32
    assert ground.min() >= 0 and ground.max() <= 255


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"ground": "lawn"}, "photograph"),
        ({"sharp": 1.1}, r"\[0, 1\]"),
        ({"blur": (2, 1)}, "least first"),
        ({"blur": (0, 1, 2)}, "two numbers"),
        ({"blur": (0, 65)}, r"\[0, 64\]"),
        ({"object_counts": ()}, "sum to 1"),
        ({"object_counts": (0.5, 0.4)}, "sum to 1"),
        ({"object_counts": (-0.5, 1.5)}, "sum to 1"),
        ({"object_counts": (0, 0, 0, 0, 1)}, "up to 4"),
        ({"object_size": (0.05, 0.5)}, r"\[0.1, 1.5\]"),
        ({"object_place": (0.1, 0.6)}, r"\[0, 0.5\]"),
        ({"likeness": -0.1}, r"\[0, 1\]"),
        ({"sharp": float("nan")}, r"\[0, 1\]"),
    ],
)
def test_a_composition_refuses_values_out_of_their_range(wrong, why):
    (name,) = wrong
    for make in (lambda: Composition(**wrong), lambda: MIXTURE.changed(wrong)):
        with pytest.raises(ValueError, match=f"{name}.*{why}"):
            make()


def test_dials_that_are_none_stay_and_other_names_do_not_matter():
    changed = MIXTURE.changed({"sharp": None, "likeness": 0.5, "blur": [1, 2], "dataset": "zoo"})
    assert changed == replace(MIXTURE, likeness=0.5, blur=(1, 2))
    assert MIXTURE.changed({}) == MIXTURE


def test_an_invented_ground_takes_no_focus():
    for dials in ({"ground": "invented", "sharp": 0.5}, {"ground": "invented", "blur": [1, 1]}):
        with pytest.raises(ValueError, match="no focus"):
            MIXTURE.changed(dials)
    assert MIXTURE.changed({"ground": "invented"}) == COMPOSITIONS["invented"]


def test_objects_that_have_no_room_are_an_error(pictures, monkeypatch):
    monkeypatch.setattr(compose, "MOST_ATTEMPTS", 5)
    crammed = Composition(object_counts=(0, 0, 0, 1), object_size=(1.5, 1.5), object_place=(0, 0))
    with pytest.raises(ValueError, match=r"no room for its 3 objects.*object_size=\(1.5, 1.5\)"):
        composed(*pictures, crammed, seed=0, index=0)
