"""Crops, whitening, k-means and the table of counts against loops and closed forms."""

import numpy as np
import pytest
import torch
from fixtures import Samples

from mdlib.core import shards
from mdlib.core.mask import Mask
from mdlib.data import InMemory, Instances, Sample
from mdlib.evaluate import naming
from mdlib.method import clusters

# ---------------------------------------------------------------- crops


def test_each_mask_is_cropped_from_its_own_image_however_many_it_has(rng):
    scenes = Samples(
        Sample(name, rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for name in "abc"
    )
    masks = []
    for name, corner in (("a", 0), ("a", 9), ("c", 4)):
        pixels = np.zeros((20, 20), bool)
        pixels[corner : corner + 8, corner : corner + 8] = True
        masks.append(Mask.from_pixels(pixels, image_id=name))
    crops = clusters.crop_masks(scenes, masks, size=8)
    assert scenes.asked == {("image", 0): 1, ("image", 2): 1}  # each image once, no label
    for crop, image, corner in zip(
        crops, (scenes[0], scenes[0], scenes[2]), (0, 9, 4), strict=True
    ):
        np.testing.assert_array_equal(
            crop.permute(1, 2, 0).numpy(), image.image[corner : corner + 8, corner : corner + 8]
        )


def test_an_empty_mask_has_no_crop(rng):
    scenes = Samples([Sample("a", np.zeros((20, 20, 3), np.uint8))])
    empty = Mask.from_pixels(np.zeros((20, 20), bool), image_id="a")
    with pytest.raises(ValueError, match="an empty mask of a has no box"):
        clusters.crop_masks(scenes, [empty], size=8)


def test_a_crop_at_its_own_size_is_the_picture(rng):
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    crop = clusters.crop_boxes(image, np.array([[4, 2, 12, 10]]), size=8)[0]
    np.testing.assert_array_equal(crop.permute(1, 2, 0).numpy(), image[2:10, 4:12])


@pytest.mark.parametrize(
    ("box", "part"),
    [((0, 0, 20, 10), (8, 16)), ((0, 0, 10, 20), (16, 8)), ((0, 0, 1, 40), (16, 1))],
)
def test_a_crop_keeps_its_aspect_ratio_and_is_padded_with_zeros(box, part):
    crop = clusters.crop_boxes(np.full((40, 40, 3), 200, np.uint8), np.array([box]), size=16)[0]
    height, width = part
    assert (crop[:, :height, :width] == 200).all()
    assert not crop[:, height:].any() and not crop[:, :, width:].any()


def test_no_boxes_make_no_crops():
    assert clusters.crop_boxes(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 4)), size=8).shape == (
        0,
        3,
        8,
        8,
    )


def test_an_empty_box_is_refused():
    with pytest.raises(ValueError, match="empty"):
        clusters.crop_boxes(np.zeros((9, 9, 3), np.uint8), np.array([[3, 3, 3, 5]]), size=8)


@pytest.mark.parametrize("box", [(-3, 0, 5, 5), (0, 0, 10, 5), (12, 0, 14, 5)])
def test_a_box_outside_the_picture_is_refused(box):
    with pytest.raises(ValueError, match="outside"):
        clusters.crop_boxes(np.zeros((9, 9, 3), np.uint8), np.array([box]), size=8)


def test_masks_are_described_by_their_crops_whether_those_are_made_ahead_or_not(
    rng, random_encoder, request
):
    scenes = Samples(
        Sample(name, rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for name in "abc"
    )
    masks = [
        Mask.from_pixels(np.pad(np.ones((9, 8), bool), ((i, 11 - i), (3, 13))), image_id=name)
        for i, name in enumerate("aabcc")
    ]
    expected = clusters.embed_crops(
        random_encoder, clusters.crop_masks(scenes, masks, size=16), batch=2
    )
    np.testing.assert_array_equal(
        clusters.embed_masks(random_encoder, scenes, masks, size=16, batch=2), expected
    )
    request.getfixturevalue("workers")
    np.testing.assert_array_equal(
        clusters.embed_masks(random_encoder, scenes, masks, size=16, batch=2), expected
    )
    assert clusters.embed_masks(random_encoder, scenes, [], size=16, batch=2).shape == (
        0,
        random_encoder.width,
    )


def test_descriptions_kept_in_parts_are_the_same(random_encoder, rng, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SIZE", 4)
    images = {str(i): rng.integers(0, 255, (20, 24, 3), dtype=np.uint8) for i in range(3)}
    pixels = np.zeros((20, 24), bool)
    pixels[3:12, 5:20] = True
    masks = [Mask.from_pixels(pixels, image_id=i) for i in images for _ in range(3)]
    see = dict(size=16, batch=2)
    expected = clusters.embed_masks(random_encoder, InMemory(images), masks, **see)
    kept = dict(**see, shards=tmp_path)
    assert len(expected) == 9 and expected.dtype == np.float32
    for _ in range(2):  # made, then with one part missing
        found = clusters.embed_masks(random_encoder, InMemory(images), masks, **kept)
        np.testing.assert_array_equal(found, expected)
        (tmp_path / "0000004-0000008.npz").unlink()


def test_descriptions_do_not_hang_on_the_batch_size(random_encoder):
    crops = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    all_at_once = clusters.embed_crops(random_encoder, crops, batch=5)
    assert all_at_once.shape == (5, random_encoder.width) and all_at_once.dtype == np.float32
    np.testing.assert_allclose(
        clusters.embed_crops(random_encoder, crops, batch=2), all_at_once, atol=1e-5
    )


def test_no_crops_have_no_descriptions(random_encoder):
    none = torch.zeros(0, 3, 16, 16, dtype=torch.uint8)
    assert clusters.embed_crops(random_encoder, none, batch=4).shape == (0, random_encoder.width)


# ---------------------------------------------------------------- whitening and k-means


def whiten_spec(features, training):
    """Column by column, then row by row; the mean stays in, the deviation is the training
    features'.
    """
    out = features.astype(np.float64).copy()
    for d in range(out.shape[1]):
        deviation = np.sqrt(((training[:, d] - training[:, d].mean()) ** 2).mean())
        out[:, d] /= deviation if deviation > 0 else 1
    for row in out:
        row /= np.sqrt((row**2).sum())
    return out


def test_whitening_equals_its_definition(rng):
    # the last dimension never changes
    training, others = rng.normal(3, [[1, 10, 0.1, 0]], (2, 50, 4))
    deviation = clusters.feature_deviation(training)
    np.testing.assert_allclose(
        clusters.whiten(others, deviation), whiten_spec(others, training), rtol=1e-4
    )


def test_whitening_does_not_see_the_scale_of_a_dimension(rng):
    features = rng.normal(1, 1, (50, 4))
    scaled = features * [1, 7, 100, 0.01]
    whitened, again = (
        clusters.whiten(f, clusters.feature_deviation(f)) for f in (features, scaled)
    )
    np.testing.assert_allclose(again, whitened, rtol=1e-5)


def test_whitening_a_row_of_zeros_gives_zeros():
    assert not clusters.whiten(np.zeros((1, 3)), np.ones(3)).any()


def blobs(rng, count=30):
    """Four clear groups: (4 * count, 2) and their numbers."""
    centres = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])
    return (centres[:, None] + rng.normal(0, 0.5, (4, count, 2))).reshape(-1, 2), np.repeat(
        np.arange(4), count
    )


SETTINGS = {"batch_size": 64, "restarts": 5}


def test_kmeans_finds_clear_groups_and_repeats_itself(rng):
    features, groups = blobs(rng)
    first, second = (
        clusters.fit_kmeans(features, k=4, seed=3, **SETTINGS).predict(features) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    together = first[:, None] == first[None]
    # whatever the clusters are called
    np.testing.assert_array_equal(together, groups[:, None] == groups[None])


def test_kmeans_refuses_fewer_masks_than_clusters(rng):
    with pytest.raises(ValueError, match="3 masks cannot make 4 clusters"):
        clusters.fit_kmeans(rng.normal(size=(3, 2)), k=4, seed=0, **SETTINGS)


def test_kmeans_refuses_features_that_are_not_finite():
    with pytest.raises(ValueError, match="finite"):
        clusters.fit_kmeans(np.full((9, 2), np.nan), k=2, seed=0, **SETTINGS)


def test_assignment_equals_the_nearest_centre_by_loops(rng):
    features, centres = rng.normal(size=(40, 3)), rng.normal(size=(5, 3))
    nearest = [min(range(5), key=lambda c: ((f - centres[c]) ** 2).sum()) for f in features]
    found = clusters.assign_clusters(features, centres)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, nearest)
    assert clusters.assign_clusters(features[:0], centres).shape == (0,)


def test_assignment_equals_what_kmeans_predicts(rng):
    features, _ = blobs(rng)
    model = clusters.fit_kmeans(features, k=4, seed=0, **SETTINGS)
    np.testing.assert_array_equal(
        clusters.assign_clusters(features, model.cluster_centers_), model.predict(features)
    )


# ---------------------------------------------------------------- names


@pytest.fixture
def two_animals():
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 0:8, 0:8], masks[1, 10:20, 10:20] = True, True
    return Instances(masks, np.array([5, 3]))


def test_a_mask_takes_the_class_of_the_best_overlapping_box(two_animals):
    mask = np.zeros((20, 20), bool)
    mask[6:18, 6:18] = True  # overlaps both, the second much more
    assert naming.mask_class(Mask.from_pixels(mask, image_id="a"), two_animals) == 3


def test_a_mask_that_touches_nothing_is_background(two_animals):
    pixels = np.zeros((20, 20), bool)
    empty = Mask.from_pixels(pixels, image_id="a")
    pixels[0:3, 15:18] = True
    corner = Mask.from_pixels(pixels, image_id="a")
    nothing = Instances(np.zeros((0, 20, 20), bool), np.zeros(0, np.int64))
    for mask, true in ((empty, two_animals), (corner, two_animals), (corner, nothing)):
        assert naming.mask_class(mask, true) == 0


def test_classes_of_masks_are_asked_once_for_each_image(two_animals):
    image, pixels = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), bool)
    semantic = np.zeros((20, 20), np.uint8)
    data = Samples([Sample(name, image, semantic, two_animals) for name in "ab"])
    pixels[6:18, 6:18] = True
    masks = [Mask.from_pixels(pixels, image_id=name) for name in "aab"]
    assert naming.mask_classes(masks, data).tolist() == [3, 3, 3]
    assert data.asked == {("instances", 0): 1, ("instances", 1): 1}


def test_counts_equal_a_loop(rng):
    numbers, classes = rng.integers(0, 4, 60), rng.integers(0, 3, 60)
    expected = [[((numbers == c) & (classes == t)).sum() for t in range(3)] for c in range(4)]
    np.testing.assert_array_equal(
        naming.count_matrix(numbers, classes, k=4, num_classes=3), expected
    )


@pytest.mark.parametrize(("number", "label"), [(-1, 0), (0, -1), (4, 0), (0, 3)])
def test_counts_refuse_numbers_outside_the_table(number, label):
    with pytest.raises((ValueError, IndexError)):
        naming.count_matrix(np.array([number]), np.array([label]), k=4, num_classes=3)
