"""Several objects: planted blobs come out one by one, touching ones are cut apart, and emptiness is
refused.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mdlib.method import masks, several_masks

HEADS, DIM, GRID = 3, 8, (14, 18)
PATCHES = GRID[0] * GRID[1]


def region(top, left, bottom, right):
    inside = torch.zeros(GRID, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    return inside


LEFT, RIGHT = region(2, 2, 7, 7), region(6, 10, 13, 16)
NECK = region(6, 7, 7, 10)  # ties them together


def scene(*blobs, noise=0.1, common=2.0):
    """(query, keys) of one picture: blobs share what CLS looks for, and each has a direction of its
    own.

    The background's keys point away from what CLS looks for; all keys carry a little noise.
    """
    directions = F.normalize(torch.randn(HEADS, 1 + len(blobs), DIM), dim=-1)
    # orthonormal in each head
    directions = torch.linalg.qr(directions.transpose(1, 2)).Q.transpose(1, 2)
    keys = -common * directions[:, :1].expand(-1, PATCHES, -1).clone()
    for number, blob in enumerate(blobs):
        # (heads, d)
        own = common * directions[:, 0] + (1 - 0.1 * number) * directions[:, 1 + number]
        keys[:, blob.flatten()] = own[:, None]
    return directions[:, 0], keys + noise * torch.randn(HEADS, PATCHES, DIM)


def masks_of(query, keys, **changed):
    rule = masks.MaskRule(
        top_k=0.4, cls_heads=HEADS, mass=None, center="none", max_masks=3, min_objectness=0.1
    )
    return several_masks.object_masks(query, keys, grid_hw=GRID, rule=replace(rule, **changed))


def as_sets(found):
    return {tuple(mask.flatten().tolist()) for mask in found if mask.any()}


# ---------------------------------------------------------------- seed again


def test_one_mask_without_score_and_seams_is_object_mask():
    queries, keys = torch.randn(4, 2, HEADS, DIM), torch.randn(4, 2, HEADS, PATCHES, DIM) + 0.2
    for mass, q, k in ((None, queries, keys), (0.5, queries.abs(), keys.abs())):
        settings = {"top_k": 0.3, "cls_heads": 2, "mass": mass}
        found, contrasts = masks_of(q, k, **settings, max_masks=1, min_objectness=None)
        assert found.shape == (4, 2, 1, *GRID) and contrasts.shape == (4, 2, 1)
        assert torch.equal(found[:, :, 0], masks.object_mask(q, k, grid_hw=GRID, **settings))


def test_two_blobs_two_masks_and_no_third():
    found, contrasts = masks_of(*scene(LEFT, RIGHT))
    assert as_sets(found) == as_sets([LEFT, RIGHT])
    assert found[:2].any((1, 2)).all() and (contrasts[:2] > 0.5).all()
    assert not found[2].any() and contrasts[2] == 0


def test_one_blob_one_mask():
    found, _ = masks_of(*scene(LEFT))
    assert as_sets(found) == as_sets([LEFT])


def test_later_masks_depend_on_no_setting_of_how_many_there_may_be():
    query, keys = scene(LEFT, RIGHT)
    three, two = masks_of(query, keys)[0], masks_of(query, keys, max_masks=2)[0]
    assert torch.equal(three[:2], two)


def test_masks_do_not_overlap_even_where_nothing_is_refused():
    queries, keys = torch.randn(6, HEADS, DIM), torch.randn(6, HEADS, PATCHES, DIM)
    found, _ = masks_of(queries, keys, max_masks=5, min_objectness=None)
    assert found.sum(1).max() == 1
    assert found.any((2, 3)).all()  # there are candidates left for all five
    # until all candidates are taken
    everything, _ = masks_of(queries, keys, max_masks=200, min_objectness=None)
    assert not everything[:, -1].any()


def test_masks_flip_with_the_picture():
    query, keys = scene(LEFT, RIGHT)
    flipped = keys.unflatten(-2, GRID).flip(-2).flatten(-3, -2)
    for max_ncut in (None, 0.03):
        found, contrasts = masks_of(query, keys, max_ncut=max_ncut)
        mirrored, same = masks_of(query, flipped, max_ncut=max_ncut)
        assert torch.equal(mirrored, found.flip(-1))
        torch.testing.assert_close(same, contrasts)


def test_an_image_in_a_batch_is_as_it_is_alone():
    images = [scene(LEFT, RIGHT), scene(RIGHT), scene(LEFT | NECK | RIGHT)]
    queries, keys = (torch.stack(part) for part in zip(*images, strict=True))
    found, contrasts = masks_of(queries, keys, max_ncut=0.03)
    for i, (query, key) in enumerate(images):
        alone, score = masks_of(query, key, max_ncut=0.03)
        assert torch.equal(found[i], alone)
        torch.testing.assert_close(contrasts[i], score)


@pytest.mark.parametrize("center", ["none", "balanced"])
def test_an_empty_scene_has_no_mask(center):
    queries = torch.randn(8, HEADS, DIM)
    for keys in (
        torch.randn(8, HEADS, PATCHES, DIM),
        torch.zeros(8, HEADS, PATCHES, DIM),
        torch.ones(8, HEADS, PATCHES, DIM),
    ):
        found, contrasts = masks_of(
            queries, keys, center=center, max_ncut=0.03, min_objectness=0.25
        )
        assert not found.any() and not contrasts.any()


def test_an_object_all_over_the_image_has_nothing_to_contrast_with():
    query, keys = scene(region(0, 0, *GRID))
    assert not masks_of(query, keys)[0].any()
    kept, contrasts = masks_of(query, keys, min_objectness=None)
    assert kept[0].all() and not kept[1:].any() and not contrasts.any()


def test_keys_are_centred_by_the_rule():
    query, keys = scene(LEFT, RIGHT)
    shifted = keys + 3 * torch.randn(HEADS, 1, DIM)
    for center in ("mean", "balanced"):
        scores = masks.cls_scores(query[None], keys[None], cls_heads=HEADS)
        centred = masks.center_features(keys[None], scores, center=center)[0]
        for moved in (keys, shifted):
            assert torch.equal(
                masks_of(query, moved, center=center)[0], masks_of(query, centred)[0]
            )


def test_more_heads_than_there_are_are_refused():
    with pytest.raises(ValueError, match="cls_heads"):
        masks_of(*scene(LEFT), cls_heads=9)


# ---------------------------------------------------------------- seams


def test_blobs_that_touch_are_one_mask_without_seams_and_two_with():
    both = LEFT | NECK | RIGHT
    query, keys = scene(LEFT | NECK, RIGHT)
    merged, _ = masks_of(query, keys)
    assert as_sets(merged) == as_sets([both])
    cut, _ = masks_of(query, keys, max_ncut=0.03)
    assert as_sets(cut) == as_sets([LEFT | NECK, RIGHT])


def test_a_neck_alone_is_a_seam_but_a_compact_blob_has_none():
    # one direction all over: only the outline can tell
    query, keys = scene(LEFT | NECK | RIGHT, noise=0.0)
    found, _ = masks_of(query, keys, max_ncut=0.03)
    assert (found & RIGHT).sum((1, 2)).max() == RIGHT.sum() and found.any((1, 2)).sum() == 2
    query, keys = scene(RIGHT, noise=0.0)
    assert as_sets(masks_of(query, keys, max_ncut=0.03)[0]) == as_sets([RIGHT])


def test_seed_part_keeps_the_seeds_side():
    _, keys = scene(LEFT | NECK, RIGHT)
    both = LEFT | NECK | RIGHT
    for own in (LEFT | NECK, RIGHT):
        seed = own.flatten().int().argmax()
        assert torch.equal(several_masks.split_at_cut(keys, both, seed, max_ncut=0.03), own)
        assert torch.equal(several_masks.split_at_cut(keys, both, seed, max_ncut=0.0), both)


# ---------------------------------------------------------------- the score


def contrast_spec(query, keys, inside, outside):
    """One image in float64: query (heads, d), keys (heads, N, d), inside and outside lists of
    patches.
    """
    query, keys = query.double(), keys.double()
    attention = torch.stack(
        [(k @ q / DIM**0.5).softmax(0) for q, k in zip(query, keys, strict=True)]
    ).mean(0)
    flat = torch.cat(list(keys), 1)
    ratio = attention[inside].mean() / attention[outside].mean()
    between = (flat[inside].mean(0) - flat[outside].mean(0)).square().sum() / 4
    within = (flat[inside].var(0).sum() + flat[outside].var(0).sum()) / 2
    return ratio.log() * between / (between + within)


def objectness(query, keys, inside, among):
    """Of masks whose features are the keys."""
    attention = masks.cls_attention(query, keys).mean(1)
    return several_masks.objectness(attention, keys, inside, among)


def test_contrast_equals_its_definition_and_is_blind_to_the_keys_origin():
    queries, keys = torch.randn(5, HEADS, DIM), torch.randn(5, HEADS, PATCHES, DIM)
    inside, among = torch.rand(5, PATCHES) < 0.3, torch.rand(5, PATCHES) < 0.8
    expected = [
        contrast_spec(q, k, i.nonzero()[:, 0], (a & ~i).nonzero()[:, 0])
        for q, k, i, a in zip(queries, keys, inside, among, strict=True)
    ]
    found = objectness(queries, keys, inside, among)
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-4, atol=1e-6)
    shifted = objectness(queries, keys + 5 * torch.randn(5, HEADS, 1, DIM), inside, among)
    torch.testing.assert_close(shifted, found, rtol=1e-3, atol=1e-5)


def test_contrast_is_negative_where_cls_looks_away():
    query, keys = scene(LEFT)
    everything, inside = torch.ones(1, PATCHES, dtype=torch.bool), LEFT.flatten()[None]
    assert objectness(query[None], keys[None], inside, everything) > 0.5
    assert objectness(-query[None], keys[None], inside, everything) < -0.5


def test_contrast_of_a_side_without_two_patches_or_of_equal_keys_is_zero():
    query, keys = scene(LEFT)
    everything = torch.ones(1, PATCHES, dtype=torch.bool)
    one = torch.zeros(1, PATCHES, dtype=torch.bool).index_fill_(1, torch.tensor([40]), True)
    for inside in (everything, ~everything, one, ~one):
        assert objectness(query[None], keys[None], inside, everything).item() == 0
    assert (
        objectness(
            query[None], torch.ones_like(keys)[None], LEFT.flatten()[None], everything
        ).item()
        == 0
    )
