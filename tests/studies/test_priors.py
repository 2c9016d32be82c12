"""Every baseline against a slow version written from its paper, planted objects, flips and images
without a cut.
"""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.linalg import eigh

from mdlib.method import normalized_cut
from mdlib.studies import priors

HEADS, DIM, GRID = 2, 6, (7, 9)
PATCHES = GRID[0] * GRID[1]


def region(top, left, bottom, right):
    inside = torch.zeros(GRID, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    return inside


SMALL, LARGE = region(1, 1, 3, 3), region(3, 5, 6, 8)


def keys_of(*blobs, noise=0.0):
    """(heads, N, d) keys: background and blobs each have an axis of their own."""
    keys = torch.zeros(HEADS, PATCHES, DIM)
    keys[..., 0] = 1
    for axis, blob in enumerate(blobs, 1):
        keys[:, blob.flatten()] = torch.eye(DIM)[axis]
    return keys + noise * torch.randn(HEADS, PATCHES, DIM)


def flipped(keys):
    return keys.unflatten(-2, GRID).flip(-2).flatten(-3, -2)


def component(foreground, seed):
    regions, _ = ndimage.label(np.reshape(foreground, GRID))
    return regions == regions.ravel()[seed]


def flat(keys):
    return np.concatenate(list(keys.double().numpy()), 1)


def cut_token(keys):
    return priors.token_cut(keys, grid_hw=GRID, tau=0.2)


def lost(keys, expansion=20):
    return priors.lost(keys, grid_hw=GRID, expansion=expansion)


# ---------------------------------------------------------------- attention


def attention_spec(attention, mass):
    """DINO's rule, patch by patch from the best on, for values that all differ."""
    kept, held = np.zeros(PATCHES, bool), 0.0
    for p in np.argsort(-attention):
        if held < mass * attention.sum():
            kept[p] = True
        held += attention[p]
    return component(kept, attention.argmax())


@pytest.mark.parametrize("mass", [0.05, 0.6, 1.0])
def test_attention_mask_equals_its_spec(mass):
    attention = torch.randn(5, 2, PATCHES).softmax(-1)
    found = priors.attention_mask(attention, grid_hw=GRID, mass=mass)
    for image, masks in zip(attention.double().numpy(), found, strict=True):
        for head, mask in zip(image, masks, strict=True):
            np.testing.assert_array_equal(mask.numpy(), attention_spec(head, mass))


def test_attention_mask_by_hand():
    attention = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.4, 0.1, 0.4], [0.25, 0.25, 0.25, 0.25]])
    found = priors.attention_mask(attention, grid_hw=(1, 4), mass=0.5)[:, 0]
    # 2nd: one of two maxima that do not touch
    assert found.int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]]


def test_equal_attention_gives_the_whole_image():
    assert priors.attention_mask(
        torch.full((2, PATCHES), 1 / PATCHES), grid_hw=GRID, mass=0.1
    ).all()


def test_attention_mask_refuses_raw_scores_and_wrong_shapes():
    with pytest.raises(ValueError, match="non-negative"):
        priors.attention_mask(torch.randn(2, PATCHES), grid_hw=GRID, mass=0.6)
    with pytest.raises(ValueError, match=r"7 \* 8"):
        priors.attention_mask(torch.rand(2, PATCHES), grid_hw=(7, 8), mass=0.6)
    with pytest.raises(ValueError, match="mass"):
        priors.attention_mask(torch.rand(2, PATCHES), grid_hw=GRID, mass=0.0)


# ---------------------------------------------------------------- LOST


def lost_spec(keys, expansion):
    f = flat(keys)
    degree = [sum(f[p] @ f[q] >= 0 for q in range(PATCHES)) for p in range(PATCHES)]
    ranked = sorted(range(PATCHES), key=lambda p: (degree[p], p))
    joined = [p for p in ranked[:expansion] if f[p] @ f[ranked[0]] >= 0]
    mask = [sum(f[p] @ f[q] for q in joined) >= 0 for p in range(PATCHES)]
    return component(mask, ranked[0])


@pytest.mark.parametrize("expansion", [1, 20, 1000])
def test_lost_equals_its_spec(expansion):
    keys = torch.randn(4, HEADS, PATCHES, DIM) + torch.tensor([0.0, 0.1, 0.2, 0.3]).view(4, 1, 1, 1)
    expected = [lost_spec(image, expansion) for image in keys]
    np.testing.assert_array_equal(lost(keys, expansion).numpy(), np.stack(expected))


def test_lost_finds_the_smaller_side():
    """Two kinds of patches that point apart: the seed is of the kind that is rarer, whatever CLS
    thinks.
    """
    for inside in (LARGE, ~LARGE):
        keys = torch.where(inside.flatten()[:, None], 1.0, -1.0) * torch.rand(HEADS, PATCHES, DIM)
        assert torch.equal(lost(keys), LARGE)


# ---------------------------------------------------------------- TokenCut


def token_cut_spec(keys):
    """One image; scipy's solver of the generalised problem, in the paper's words."""
    f = flat(keys)
    f = f / np.linalg.norm(f, axis=1, keepdims=True)
    weights = np.where(f @ f.T >= 0.2, 1.0, 1e-5)
    degree = np.diag(weights.sum(1))
    y = eigh(degree - weights, degree)[1][:, 1]
    seed = np.abs(y).argmax()
    side = y > y.mean()
    return component(side == side[seed], seed)


def test_token_cut_equals_its_spec():
    keys = torch.randn(6, HEADS, PATCHES, DIM) + 0.3
    np.testing.assert_array_equal(
        cut_token(keys).numpy(), np.stack([token_cut_spec(image) for image in keys])
    )


def test_token_cut_cuts_out_an_object_and_leaves_the_second_one():
    assert torch.equal(cut_token(keys_of(SMALL)), SMALL)
    assert torch.equal(cut_token(keys_of(SMALL, LARGE)), LARGE)


# ---------------------------------------------------------------- what all of them share

GRAPHS = [lost, cut_token]


@pytest.mark.parametrize("prior", GRAPHS)
def test_masks_flip_with_the_picture(prior):
    keys = torch.randn(4, HEADS, PATCHES, DIM) + 0.3
    # integer degrees tie, and ties go to the lower index: make one patch the only seed
    if prior is lost:
        keys[:, :, 30] = -5.0
    assert torch.equal(prior(flipped(keys)), prior(keys).flip(-1))


@pytest.mark.parametrize("value", [1.0, 0.0])
@pytest.mark.parametrize("prior", GRAPHS)
def test_equal_keys_give_the_whole_image(prior, value):
    assert prior(torch.full((2, HEADS, PATCHES, DIM), value)).all()


def test_of_two_equal_objects_the_one_with_the_lower_index_is_taken():
    """Twins, both unlike everything else, get the same entries of the eigenvector."""
    twins = [region(1, 1, 3, 3), region(4, 5, 6, 7)]
    assert torch.equal(cut_token(keys_of(*twins)), twins[0])


@pytest.mark.parametrize("prior", GRAPHS)
def test_any_leading_dimensions(prior):
    keys = torch.randn(2, 3, HEADS, PATCHES, DIM)
    found = prior(keys)
    assert found.shape == (2, 3, *GRID) and found.dtype == torch.bool
    assert torch.equal(found[1, 2], prior(keys[1, 2]))


@pytest.mark.parametrize("prior", GRAPHS)
def test_keys_that_do_not_fit_are_refused(prior):
    keys = torch.randn(HEADS, PATCHES, DIM)
    with pytest.raises(ValueError, match=r"N = 7 \* 9"):
        prior(keys[:, 1:])
    with pytest.raises(ValueError, match="finite"):
        prior(keys.index_fill(1, torch.tensor([3]), float("inf")))


def test_an_expansion_below_one_is_refused():
    with pytest.raises(ValueError, match="expansion"):
        lost(keys_of(SMALL), expansion=0)


def test_coinciding_eigenvalues_take_the_part_with_the_lower_index():
    """Three stripes of one size, each unlike the others: every cut between them is as good."""
    stripes = [region(0, left, 7, left + 3) for left in (0, 3, 6)]
    assert torch.equal(cut_token(keys_of(*stripes[1:])), stripes[0])


def test_patches_that_are_alike_to_none_are_not_cut():
    assert normalized_cut.second_eigenvector(torch.eye(PATCHES) + 1e-5).abs().max() == 0
    assert priors.token_cut(torch.eye(PATCHES).expand(1, -1, -1), grid_hw=GRID, tau=0.2).all()


# ---------------------------------------------------------------- from the picture

GREY, RED = (128, 128, 128), (200, 60, 40)


def picture(*, size=(32, 40), ground=GREY, square=None, colour=RED):
    image = np.full((*size, 3), ground, np.uint8)
    if square is not None:
        image[square] = colour
    return image


SQUARE = (slice(10, 22), slice(15, 30))


def test_lab_of_colours_whose_values_are_known():
    """sRGB's primaries, white, black and grey in CIE Lab at D65."""
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 128, 128]]
    expected = [
        [53.24, 80.09, 67.20],
        [87.73, -86.18, 83.18],
        [32.30, 79.19, -107.86],
        [100, 0, 0],
        [0, 0, 0],
        [53.59, 0, 0],
    ]
    np.testing.assert_allclose(priors.to_lab(np.array([colours], np.uint8))[0], expected, atol=0.03)


def test_frequency_tuned_saliency_far_from_edges_is_the_distance_to_the_mean_colour():
    image = picture(square=SQUARE)
    lab, found = priors.to_lab(image), priors.frequency_tuned_saliency(image)
    for place in ((16, 22), (2, 2)):
        assert found[place] == pytest.approx(np.linalg.norm(lab[place] - lab.mean((0, 1))))


def test_geodesic_saliency_is_the_step_into_the_object():
    image = picture(square=SQUARE)
    lab, found = priors.to_lab(image), priors.geodesic_saliency(image)
    expected = np.zeros(found.shape)
    expected[SQUARE] = np.linalg.norm(lab[16, 22] - lab[0, 0])
    np.testing.assert_allclose(found, expected)


def geodesic_spec(image):
    """Relax every edge until nothing changes (Bellman and Ford)."""
    lab = priors.to_lab(image)
    height, width = lab.shape[:2]
    edges = [
        (a, b, axis)
        for axis, (a, b) in enumerate([(np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])])
    ]
    cost = {axis: np.linalg.norm(lab[a] - lab[b], axis=2) for a, b, axis in edges}
    smallest = np.full((height, width), np.inf)
    for a, b, axis in edges:
        smallest[a] = np.minimum(smallest[a], cost[axis])
        smallest[b] = np.minimum(smallest[b], cost[axis])
    cost = {axis: np.where(c < smallest.mean(), 0, c) for axis, c in cost.items()}
    distance = np.full((height, width), np.inf)
    distance[[0, -1]] = distance[:, [0, -1]] = 0
    while True:
        before = distance.copy()
        for a, b, axis in edges:
            distance[a] = np.minimum(distance[a], distance[b] + cost[axis])
            distance[b] = np.minimum(distance[b], distance[a] + cost[axis])
        if np.array_equal(before, distance):
            return distance


def test_geodesic_saliency_equals_relaxation(rng):
    image = rng.integers(0, 256, (9, 12, 3), np.uint8)
    np.testing.assert_allclose(priors.geodesic_saliency(image), geodesic_spec(image))


@pytest.mark.parametrize("saliency", [priors.frequency_tuned_saliency, priors.geodesic_saliency])
def test_saliency_flips_with_the_picture_and_a_bare_picture_has_none(saliency, rng):
    image = rng.integers(0, 256, (9, 12, 3), np.uint8)
    np.testing.assert_allclose(saliency(image[:, ::-1]), saliency(image)[:, ::-1], atol=1e-9)
    bare = saliency(picture())
    np.testing.assert_allclose(bare, 0, atol=1e-9)
    assert not priors.salient_mask(np.zeros_like(bare), factor=2).any()


def test_geodesic_saliency_misses_what_touches_the_border():
    touching = (slice(10, 22), slice(0, 15))
    assert not priors.geodesic_saliency(picture(square=touching)).any()


def sharp_disc(rng, *, blur):
    """(picture, disc): a disc of grain on a ground of the same grain, blurred."""
    grain = rng.integers(0, 256, (64, 80), np.uint8)
    soft = ndimage.gaussian_filter(grain.astype(float), blur) if blur else grain
    ys, xs = np.mgrid[:64, :80]
    disc = np.hypot(ys - 30, xs - 45) < 16
    return np.where(disc, grain, soft).astype(np.uint8)[..., None].repeat(3, 2), disc


def sharp(image):
    return priors.sharp_mask(priors.local_sharpness(image, radius=2.0), factor=1.0)


def test_a_sharp_disc_on_blurred_ground_is_found(rng):
    image, disc = sharp_disc(rng, blur=2)
    found = sharp(image)
    assert (found & disc).sum() / (found | disc).sum() > 0.8
    np.testing.assert_array_equal(sharp(image[:, ::-1]), found[:, ::-1])
    image, disc = sharp_disc(rng, blur=0)  # where all is sharp, nothing tells the disc
    assert (sharp(image) & disc).sum() / (sharp(image) | disc).sum() < 0.5


def test_a_flat_picture_has_no_sharp_region():
    assert not priors.local_sharpness(picture(), radius=2.0).any()
    assert not sharp(picture()).any()


def test_sharpness_is_the_energy_of_the_laplacian_around_a_pixel():
    image = picture(size=(41, 41))
    image[20, 20] = 255
    light = priors.to_lab(image)[..., 0]
    step = light[20, 20] - light[0, 0]
    found = priors.local_sharpness(image, radius=2.0)
    # a single pixel: -4 at its place, 1 at its four neighbours; a Gaussian keeps the sum
    np.testing.assert_allclose(found.sum(), (16 + 4) * step**2, rtol=1e-6)
    assert np.unravel_index(found.argmax(), found.shape) == (20, 20)


def test_sharp_mask_is_the_largest_region_with_its_holes():
    sharpness = np.zeros((9, 12))
    sharpness[1:6, 1:6], sharpness[3, 3], sharpness[7:9, 8:12] = 4, 0, 9
    expected = np.zeros((9, 12), bool)
    expected[1:6, 1:6] = True
    np.testing.assert_array_equal(priors.sharp_mask(sharpness, factor=1.0), expected)


def test_salient_mask_is_the_square():
    image, expected = picture(square=SQUARE), np.zeros((32, 40), bool)
    expected[SQUARE] = True
    np.testing.assert_array_equal(
        priors.salient_mask(priors.geodesic_saliency(image), factor=2), expected
    )


def test_salient_mask_keeps_the_component_of_the_maximum():
    saliency = np.zeros((6, 8))
    saliency[1:3, 1:3], saliency[3:6, 5:8], saliency[4, 6] = 5, 5, 6
    found = priors.salient_mask(saliency, factor=2)
    assert found[3:, 5:].all() and found.sum() == 9
    assert not priors.salient_mask(np.full((6, 8), 3.0), factor=1).any()


def test_a_picture_must_be_uint8_colours():
    with pytest.raises(ValueError, match="uint8"):
        priors.to_lab(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        priors.to_lab(np.zeros((4, 4), np.uint8))


# ---------------------------------------------------------------- from nothing


def test_centre_box():
    box = priors.centre_box((10, 20), side=0.6)
    assert box.sum() == 6 * 12 and box[2:8, 4:16].all()
    np.testing.assert_array_equal(box, box[::-1, ::-1])
    assert priors.centre_box((10, 20), side=1.0).all()
    with pytest.raises(ValueError, match="side"):
        priors.centre_box((10, 20), side=0.0)
