"""Object masks against an explicit N x N affinity, and what flips, shifts and ties must not change."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from mdlib.method import masks

HEADS, DIM, GRID = 3, 4, (5, 7)
PATCHES = GRID[0] * GRID[1]


def object_mask_spec(query, keys, *, top_k, cls_heads, mass):
    """One image, in float64, as the paper writes it: query (heads, d), keys (heads, N, d) -> (h, w)
    bool.
    """
    query, keys = query.double().numpy(), keys.double().numpy()
    g_cls = np.mean([keys[head] @ query[head] for head in range(cls_heads)], 0)
    if mass is not None:
        running, total = 0.0, g_cls.sum()
        kept = np.zeros_like(g_cls)
        for p in np.argsort(g_cls, kind="stable"):
            running += g_cls[p]
            if running / total > 1 - mass:
                kept[p] = g_cls[p]
        g_cls = kept
    ranked = sorted(range(PATCHES), key=lambda p: (-g_cls[p], p))[: max(1, int(top_k * PATCHES))]
    flat = np.concatenate(list(keys), 1)  # (N, heads * d)
    affinity = flat @ flat.T
    sources = [p for p in ranked if affinity[ranked[0], p] > 0]
    g_diff = sum(affinity[p] for p in sources)
    regions, _ = ndimage.label((g_diff > 0).reshape(GRID))  # 4-connected by default
    return regions == regions.ravel()[ranked[0]]


def random_tokens(*batch, offset=0.0):
    return torch.randn(*batch, HEADS, DIM) + offset, torch.randn(
        *batch, HEADS, PATCHES, DIM
    ) + offset


def mask_of(query, keys, **changed):
    return masks.object_mask(
        query, keys, **{"grid_hw": GRID, "top_k": 0.4, "cls_heads": HEADS, "mass": None} | changed
    )


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize("offset", [0.0, 0.3, 1.0])  # 0: centred keys; 1: keys that mostly agree
@pytest.mark.parametrize("mass", [None, 0.5])
@pytest.mark.parametrize(("top_k", "cls_heads"), [(0.4, 3), (0.01, 1), (1.0, 2)])
def test_object_mask_equals_the_explicit_affinity(offset, mass, top_k, cls_heads):
    queries, keys = random_tokens(6, offset=offset)
    if mass is not None:
        # Scores need a clear positive sum, or the rule has no meaning; keys still disagree in one
        # dimension.
        queries, keys = queries.abs(), keys.abs() * torch.tensor([1.0, 1.0, 1.0, -1.0]) + 0.5
    settings = {"top_k": top_k, "cls_heads": cls_heads, "mass": mass}
    expected = [object_mask_spec(q, k, **settings) for q, k in zip(queries, keys, strict=True)]
    np.testing.assert_array_equal(mask_of(queries, keys, **settings).numpy(), np.stack(expected))


def test_object_mask_finds_a_planted_object():
    inside = torch.zeros(GRID, dtype=torch.bool)
    inside[1:4, 2:5] = True
    direction = torch.randn(HEADS, 1, DIM)
    keys = torch.where(inside.flatten()[:, None], direction, -direction)
    assert torch.equal(mask_of(direction[:, 0], keys, top_k=0.2), inside)


def test_object_mask_leaves_out_a_second_object_that_does_not_touch():
    objects = torch.zeros(GRID, dtype=torch.bool)
    objects[:, 0], objects[:, 6] = True, True
    direction = torch.randn(HEADS, 1, DIM)
    keys = torch.where(objects.flatten()[:, None], direction, -direction)
    mask = mask_of(direction[:, 0], keys)
    # the seed, on a tie, is the lower index: the left object
    assert mask[:, 0].all() and not mask[:, 6].any()


def test_object_mask_flips_with_the_picture():
    queries, keys = random_tokens(8, offset=0.2)
    flipped = keys.unflatten(-2, GRID).flip(-2).flatten(-3, -2)
    assert torch.equal(mask_of(queries, flipped), mask_of(queries, keys).flip(-1))


def test_object_mask_holds_the_seed_and_so_is_never_empty():
    queries, keys = random_tokens(64)
    found = mask_of(queries, keys).flatten(1)
    seeds = masks.cls_scores(queries, keys, cls_heads=HEADS).argmax(1)
    assert found[torch.arange(64), seeds].all()


def test_object_mask_takes_any_leading_dimensions():
    queries, keys = random_tokens(2, 3)
    found = mask_of(queries, keys)
    assert found.shape == (2, 3, *GRID) and found.dtype == torch.bool
    assert torch.equal(found[1, 2], mask_of(queries[1, 2], keys[1, 2]))


def test_object_mask_computes_half_precision_tokens_in_float32():
    queries, keys = (tokens.half() for tokens in random_tokens(16))
    assert torch.equal(mask_of(queries, keys), mask_of(queries.float(), keys.float()))


def centred(queries, keys, center, heads=HEADS):
    scores = masks.cls_scores(queries, keys, cls_heads=heads)
    return masks.center_features(keys, scores, center=center)


def test_keys_as_trained_are_left_alone_and_an_unknown_center_is_refused():
    queries, keys = random_tokens(2)
    assert torch.equal(centred(queries, keys, "none"), keys)
    with pytest.raises(ValueError, match="balanced"):
        centred(queries, keys, "median")


def test_balanced_keys_separate_a_small_object_where_the_mean_leaks():
    """A one-dimensional world: 2 of 20 patches are the object at 1, a twilight of 3 lies at 0.3,
    the rest at 0.
    """
    values = torch.tensor([1.0] * 2 + [0.3] * 3 + [0.0] * 15)
    keys, query = values.view(1, 1, 20, 1), torch.ones(1, 1, 1)
    above = {c: (centred(query, keys, c, heads=1) > 0).sum().item() for c in ("mean", "balanced")}
    assert above == {"mean": 5, "balanced": 2}


@pytest.mark.parametrize("center", ["mean", "balanced"])
def test_centred_keys_do_not_see_a_shift_of_each_picture(center):
    queries, keys = random_tokens(8)
    shifted = keys + 3 * torch.randn(8, HEADS, 1, DIM)
    expected = mask_of(queries, centred(queries, keys, center))
    assert torch.equal(mask_of(queries, centred(queries, shifted, center)), expected)
    # without centring they do: the test can fail
    assert not torch.equal(mask_of(queries, shifted), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": 0.0},
        {"top_k": 1.1},
        {"cls_heads": 0},
        {"cls_heads": 4},
        {"mass": 0.0},
        {"mass": 1.5},
    ],
)
def test_object_mask_refuses_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        mask_of(*random_tokens(), **wrong)


RULE = masks.MaskRule(top_k=0.4, cls_heads=2, mass=None, center="none")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_k": 0.0}, "top_k"),
        ({"cls_heads": 0}, "cls_heads"),
        ({"mass": 1.5}, "mass"),
        ({"center": "median"}, "balanced"),
        ({"affinity": "query"}, "affinity"),
        ({"max_masks": 0}, "max_masks"),
        ({"center": "mean", "mass": 0.5}, "centred scores sum to about zero"),
    ],
)
def test_a_rule_refuses_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(RULE, **wrong)


def test_a_rule_takes_its_own_names_and_misses_none():
    own = {**vars(RULE), "max_masks": 3, "min_objectness": 0.1, "max_ncut": 0.03}
    rule = masks.MaskRule.of({**own, "input_side": 224, "np": np})
    assert vars(rule) == own
    assert rule.one_mask() == RULE
    with pytest.raises(ValueError, match="MaskRule is missing center"):
        masks.MaskRule.of({name: own[name] for name in own if name != "center"})


def test_a_trace_holds_the_steps_of_the_mask():
    queries, keys = random_tokens(2, 3)
    rule = masks.MaskRule(top_k=0.4, cls_heads=2, mass=None, center="balanced")
    trace = masks.trace_mask(queries, keys, grid_hw=GRID, rule=rule)
    for at in np.ndindex(2, 3):
        moved = centred(queries[at][None], keys[at][None], "balanced", heads=2)
        flat = moved[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(
            trace.scores[at], masks.cls_scores(queries[at][None], keys[at][None], cls_heads=2)[0]
        )
        best = trace.candidates[at]
        assert best.tolist() == trace.scores[at].sort(descending=True).indices[:14].tolist()
        assert torch.equal(trace.sources[at], flat[best] @ flat[best[0]] > 0)
        torch.testing.assert_close(
            trace.g_diff[at], flat @ flat[best[trace.sources[at]]].sum(0), rtol=1e-4, atol=1e-4
        )
        expected = masks.object_mask(
            queries[at], moved[0], grid_hw=GRID, top_k=0.4, cls_heads=2, mass=None
        )
        assert torch.equal(trace.mask[at], expected)


def test_whitened_affinities_are_those_of_fishers_discriminant():
    queries, keys = random_tokens(3)
    scores = masks.cls_scores(queries, keys, cls_heads=HEADS)
    white = masks.whiten_features(keys, scores).transpose(1, 2).flatten(2)
    for i in range(3):
        flat = keys[i].transpose(0, 1).flatten(1)
        lowest = flat[scores[i].argsort()[: int(masks.BOTTOM_SHARE * PATCHES)]]
        covariance = torch.cov(lowest.T, correction=0)
        ridge = covariance.diagonal().mean() * torch.eye(flat.shape[1])
        expected = flat @ torch.linalg.inv(covariance + ridge) @ flat.T
        torch.testing.assert_close(white[i] @ white[i].T, expected, rtol=1e-3, atol=1e-4)


def test_whitening_finds_an_object_that_a_loud_ground_hides():
    """The object differs along one of 16 directions; all patches vary much along another."""
    generator = torch.Generator().manual_seed(0)
    features = 0.1 * torch.randn(8, 1, 40, 16, generator=generator)
    features[..., 0] += 3 * torch.randn(8, 1, 40, generator=generator)
    features[..., :10, 1] += 1.0  # the object
    query = torch.zeros(8, 1, 16)
    query[..., 1] = 1.0
    inside = torch.arange(40) < 10
    rule = masks.MaskRule(top_k=0.25, cls_heads=1, mass=None, center="balanced")
    right = {}
    for white in (False, True):
        found = masks.trace_mask(query, features, grid_hw=(4, 10), rule=replace(rule, whiten=white))
        right[white] = ((found.g_diff > 0) == inside).float().mean().item()
    assert right[True] > 0.8 > 0.7 > right[False]


def test_equal_features_whiten_to_finite_ones():
    equal = torch.ones(2, HEADS, PATCHES, DIM)
    assert torch.isfinite(masks.whiten_features(equal, torch.zeros(2, PATCHES))).all()


@pytest.mark.parametrize("center", ["mean", "balanced"])
def test_features_are_centred_by_the_rule_and_rank_by_the_keys(center):
    queries, keys = random_tokens(4)
    features = torch.randn_like(keys) + 3.0
    rule = replace(RULE, center=center)
    own = masks.trace_mask(queries, keys, grid_hw=GRID, rule=rule, features=features)
    assert torch.equal(own.scores, masks.cls_scores(queries, keys, cls_heads=RULE.cls_heads))
    moved = masks.center_features(features, own.scores, center=center)
    expected, _ = masks.diffuse(moved, own.candidates, own.candidates[:, 0])
    assert torch.equal(own.g_diff, expected)


def test_a_trace_from_other_features_and_another_seed():
    queries, keys = random_tokens(4)
    features, seed = torch.randn_like(keys), torch.randint(0, PATCHES, (4,))
    rule = masks.MaskRule(top_k=0.4, cls_heads=HEADS, mass=None, center="none")
    own = masks.trace_mask(queries, keys, grid_hw=GRID, rule=rule)
    other = masks.trace_mask(queries, keys, grid_hw=GRID, rule=rule, features=features, seed=seed)
    assert torch.equal(other.candidates, own.candidates)
    expected, sources = masks.diffuse(features, own.candidates, seed)
    assert torch.equal(other.g_diff, expected) and torch.equal(other.sources, sources)
    component = masks.seed_component((expected > 0).view(4, *GRID), seed)
    assert torch.equal(other.mask, component) and component.any()


def test_object_mask_refuses_tokens_that_are_not_finite_or_do_not_fit():
    queries, keys = random_tokens(2)
    with pytest.raises(ValueError, match="finite"):
        mask_of(queries, keys.index_fill(2, torch.tensor([3]), float("nan")))
    with pytest.raises(ValueError, match=r"N = 5 \* 6"):
        mask_of(queries, keys, grid_hw=(5, 6))
    with pytest.raises(ValueError, match="does not fit"):
        mask_of(queries[:1], keys)


# ---------------------------------------------------------------- its parts


def test_cls_scores_average_the_first_heads_only():
    query, keys = random_tokens(1)
    scores = masks.cls_scores(query, keys, cls_heads=2)
    expected = ((query[0, 0] * keys[0, 0]).sum(-1) + (query[0, 1] * keys[0, 1]).sum(-1)) / 2
    torch.testing.assert_close(scores[0], expected)


def test_top_patches_are_best_first_and_ties_go_to_the_lower_index():
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0]])
    assert masks.top_patches(scores, top_k=0.75).tolist() == [[1, 3, 2]]
    assert masks.top_patches(torch.zeros(1, 500), top_k=0.5).tolist() == [list(range(250))]


# of 35
@pytest.mark.parametrize(("top_k", "count"), [(0.001, 1), (0.4, 14), (0.45, 15), (1.0, 35)])
def test_top_patches_keep_the_whole_part_of_the_share_and_one_at_least(top_k, count):
    assert masks.top_patches(torch.randn(2, PATCHES), top_k=top_k).shape == (2, count)


def test_mass_keeps_the_scores_that_hold_the_upper_share():
    scores = torch.tensor([[0.3, 0.1, 0.4, 0.2]])  # cumulated upwards: 0.1 0.3 0.6 1.0
    torch.testing.assert_close(
        masks.apply_mass(scores, mass=0.5), torch.tensor([[0.3, 0.0, 0.4, 0.0]])
    )
    torch.testing.assert_close(masks.apply_mass(scores, mass=1.0), scores)
    # exactly at the bound a patch is left out, as in DINO's `cumval > 1 - threshold`
    equal = torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    assert masks.apply_mass(equal, mass=0.75).tolist() == [[0.0, 0.25, 0.25, 0.25]]


def test_diffusion_equals_the_sum_of_affinity_rows():
    keys = torch.randn(1, HEADS, PATCHES, DIM)
    candidates = torch.tensor([[4, 0, 17, 30]])
    g_diff, sources = masks.diffuse(keys, candidates, torch.tensor([4]))
    flat = keys[0].transpose(0, 1).flatten(1)
    affinity = flat @ flat.T
    torch.testing.assert_close(
        g_diff[0], sum(affinity[p] for p in candidates[0] if affinity[4, p] > 0)
    )
    assert sources[0].tolist() == [affinity[4, p].item() > 0 for p in candidates[0]]


def test_seed_component_follows_a_path_longer_than_any_fixed_number_of_steps():
    path = torch.ones(1, 9, 30, dtype=torch.bool)
    path[:, 1::4, :-1] = False
    path[:, 3::4, 1:] = False  # a snake from the first corner to the last
    assert torch.equal(masks.seed_component(path, torch.tensor([0])), path)


def test_seed_component_equals_scipy_and_does_not_touch_corners():
    foreground = torch.rand(20, 11, 13) < 0.55
    seeds = foreground.flatten(1).int().argmax(1)
    for mask, seed, found in zip(
        foreground, seeds, masks.seed_component(foreground, seeds), strict=True
    ):
        regions, _ = ndimage.label(mask.numpy())
        np.testing.assert_array_equal(found.numpy(), regions == regions.ravel()[seed])


# ---------------------------------------------------------------- attention


def test_attention_inside_equals_the_softmax_summed_over_the_mask():
    queries, keys = random_tokens(3)
    mask = torch.rand(3, *GRID) < 0.4
    for query, key, inside, share in zip(
        queries, keys, mask, masks.attention_share(queries, keys, mask), strict=True
    ):
        heads = [
            (k @ q / DIM**0.5).softmax(0)[inside.flatten()].sum()
            for q, k in zip(query, key, strict=True)
        ]
        torch.testing.assert_close(share, sum(heads) / HEADS)


def test_attention_inside_at_its_limits_and_blind_to_the_keys_origin():
    queries, keys = random_tokens(3)
    everything = torch.ones(3, *GRID, dtype=torch.bool)
    torch.testing.assert_close(masks.attention_share(queries, keys, everything), torch.ones(3))
    assert not masks.attention_share(queries, keys, ~everything).any()
    half = torch.rand(3, *GRID) < 0.5
    shifted = keys + torch.randn(3, HEADS, 1, DIM)
    before, after = (masks.attention_share(queries, k, half) for k in (keys, shifted))
    torch.testing.assert_close(after, before)


# ---------------------------------------------------------------- to pixels


def test_grid_masks_grow_to_whole_patches():
    mask = torch.rand(2, 3, 4) < 0.5
    pixels = masks.mask_to_pixels(mask, padded_hw=(24, 32), image_hw=(24, 32))
    np.testing.assert_array_equal(pixels.numpy(), np.kron(mask.numpy(), np.ones((1, 8, 8), bool)))


def test_padding_is_cut_off():
    mask = torch.rand(1, 3, 4) < 0.5
    whole = masks.mask_to_pixels(mask, padded_hw=(24, 32), image_hw=(24, 32))
    cut = masks.mask_to_pixels(mask, padded_hw=(24, 32), image_hw=(20, 27), crop_hw=(20, 27))
    assert torch.equal(cut, whole[:, :20, :27])


def test_pixels_flip_with_the_grid_at_any_size():
    mask = torch.rand(4, 3, 5) < 0.5
    sizes = {"padded_hw": (24, 40), "image_hw": (31, 17)}
    flipped = masks.mask_to_pixels(mask.flip(-1), **sizes)
    assert torch.equal(flipped, masks.mask_to_pixels(mask, **sizes).flip(-1))
