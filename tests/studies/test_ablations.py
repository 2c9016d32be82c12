"""Arms that need no training: where an arm is the method itself it must equal the method; elsewhere
limits and closed forms.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mdlib.core.mask import Mask, mask_to_box
from mdlib.data import open_dataset
from mdlib.method import clusters, proposals, pseudo_labels
from mdlib.method.masks import MaskRule
from mdlib.studies import ablations

RULE = MaskRule(top_k=0.4, cls_heads=2, mass=None, center="mean")


@pytest.fixture(scope="module")
def scenes(zoo_root):
    return open_dataset("zoo", root=zoo_root, split="dev", count=3)


@pytest.fixture(scope="module")
def tokens(scenes, random_encoder):
    return ablations.image_tokens(scenes, random_encoder, input_side=64)


@pytest.fixture
def found(scenes):
    """Two masks of the first scene and one of the second."""
    masks = [
        (0, scenes[0].instances.masks[0]),
        (0, ~scenes[0].instances.masks[0]),
        (1, scenes[1].instances.masks[0]),
    ]
    return [Mask.from_pixels(pixels, image_id=scenes.ids[i]) for i, pixels in masks]


# ---------------------------------------------------------------- stage 1


def test_a_rule_s_masks_are_those_of_the_whole_stage(scenes, tokens, random_encoder):
    found = ablations.masks_by_rule(
        lambda seen: proposals.tokens_to_masks(seen, RULE),
        tokens,
        scenes,
        input_side=64,
        patch=random_encoder.patch,
    )
    whole = proposals.propose_masks(scenes, random_encoder, RULE, input_side=64, batch_size=1)
    for own, expected in zip(found, whole, strict=True):
        (mask,) = own
        assert mask.image_id == expected.image_id and mask.rle == expected.rle
        assert mask.score == pytest.approx(expected.score, rel=1e-5)


def test_a_rule_without_masks_finds_none(scenes, tokens, random_encoder):
    nothing = ablations.masks_by_rule(
        lambda seen: (torch.zeros(1, 2, *seen.grid_hw, dtype=torch.bool), torch.zeros(1, 2)),
        tokens,
        scenes,
        input_side=64,
        patch=random_encoder.patch,
    )
    assert nothing == [[], [], []]


# ---------------------------------------------------------------- stage 2


def test_the_box_crop_is_stage_2_and_masking_changes_it(scenes, found, random_encoder):
    # 44: no multiple of the patch
    features = ablations.embed_three_ways(random_encoder, scenes, found, size=44, batch=2)
    expected = clusters.embed_crops(
        random_encoder, clusters.crop_masks(scenes, found, size=44), batch=2
    )
    np.testing.assert_allclose(features["box crop"], expected, rtol=1e-4, atol=1e-4)
    assert all(each.shape == expected.shape for each in features.values())
    assert not np.allclose(features["masked crop"], features["box crop"], atol=1e-3)


def test_a_mask_that_fills_its_box_masks_nothing_and_pools_all(scenes, random_encoder):
    pixels = np.zeros((128, 128), bool)
    pixels[20:84, 30:94] = True
    mask = Mask.from_pixels(pixels, image_id=scenes.ids[0])
    found = ablations.embed_three_ways(random_encoder, scenes, [mask], size=64, batch=1)
    np.testing.assert_allclose(found["masked crop"], found["box crop"], rtol=1e-5, atol=1e-5)
    crop = clusters.crop_boxes(scenes[0].image, np.array([mask_to_box(pixels)]), size=64)
    np.testing.assert_allclose(
        found["masked pooling"],
        random_encoder.tokens(crop).patches.mean(1).numpy(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_reference_s_transform_is_whitening(rng):
    train, other = (
        rng.normal(1, [1, 5, 0.1, 2], (50, 4)).astype(np.float32),
        rng.normal(size=(7, 4)).astype(np.float32),
    )
    deviation = clusters.feature_deviation(train)
    for found, plain in zip(
        ablations.transform("deviation, L2", train, other, components=2),
        (train, other),
        strict=True,
    ):
        np.testing.assert_allclose(found, clusters.whiten(plain, deviation), rtol=1e-5)


def test_transforms_do_what_their_names_say(rng):
    train, other = (
        rng.normal(2, [1, 5, 0.1, 2], (50, 4)).astype(np.float32),
        rng.normal(size=(7, 4)).astype(np.float32),
    )
    as_it_is = ablations.transform("as they are", train, other, components=2)
    np.testing.assert_array_equal(as_it_is[1], other)
    for name in ablations.TRANSFORMS:
        first, second = ablations.transform(name, train, other, components=2)
        assert first.shape[1] == second.shape[1] == (2 if "PCA" in name else 4)
        if "L2" in name:
            np.testing.assert_allclose(np.linalg.norm(second, axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="transform"):
        ablations.transform("PCA whitening", train, other, components=2)


def test_clusters_of_clear_blobs_are_right_and_of_noise_are_not(rng):
    centres = rng.normal(0, 10, (4, 6))
    labels = {split: rng.integers(1, 5, 120) for split in ("train", "dev")}
    pairs = [
        ((centres[labels[s] - 1] + rng.normal(0, 0.1, (120, 6))).astype(np.float32), labels[s])
        for s in labels
    ]
    recipe = {"k": 4, "num_classes": 5, "seeds": range(2), "batch_size": 200, "restarts": 5}
    scores = ablations.cluster_scores(*pairs, **recipe)
    assert scores == {
        "accuracy": [1.0, 1.0],
        "one to one": [1.0, 1.0],
        "nmi": pytest.approx([1.0, 1.0]),
    }
    noise = ablations.cluster_scores(
        (pairs[0][0], rng.permutation(labels["train"])),
        (pairs[1][0], rng.permutation(labels["dev"])),
        **recipe,
    )
    assert max(noise["accuracy"]) < 0.5 and max(noise["nmi"]) < 0.2


def test_one_to_one_names_leave_surplus_clusters_without(rng):
    features, labels = rng.normal(size=(60, 3)).astype(np.float32), np.ones(60, int)
    recipe = {"k": 6, "num_classes": 2, "seeds": [0], "batch_size": 100, "restarts": 1}
    scores = ablations.cluster_scores((features, labels), (features, labels), **recipe)
    assert scores["accuracy"] == [1.0] and scores["one to one"][0] < 1


# ---------------------------------------------------------------- stage 4


def test_as_many_are_kept_at_random_as_by_the_filter(rng):
    scores = np.array([0.2, 0.9, 0.4, 0.95, 0.5])
    drawn = [ablations.kept_at_random(scores, threshold=0.6, rng=rng) for _ in range(200)]
    assert (
        {len(each) for each in drawn}
        == {len(pseudo_labels.confident(scores, threshold=0.6))}
        == {2}
    )
    assert all((np.diff(scores[each]) <= 0).all() for each in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=5)
    assert counts.min() > 50 and counts.sum() == 400  # every mask as likely as another: 80 expected
    assert len(ablations.kept_at_random(scores, threshold=0.99, rng=rng)) == 1
    assert len(ablations.kept_at_random(np.zeros(0), threshold=0.5, rng=rng)) == 0


def test_where_the_filter_keeps_all_random_dropping_drops_nothing(rng):
    scores = np.array([0.7, 0.9, 0.8])
    assert ablations.kept_at_random(scores, threshold=0.5, rng=rng).tolist() == [1, 2, 0]


def test_stacked_masks_fit_a_label_map(found):
    mask = replace(found[0], cluster=2)
    labels = pseudo_labels.label_map(
        *pseudo_labels.stack_masks([mask], (128, 128)), threshold=0.5, overlap="skip"
    )
    np.testing.assert_array_equal(labels, 3 * mask.pixels())
    assert not pseudo_labels.label_map(
        *pseudo_labels.stack_masks([], (128, 128)), threshold=0.5, overlap="skip"
    ).any()
