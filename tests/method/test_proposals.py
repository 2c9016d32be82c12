"""Stage 1 over a data set: one mask an image as in the paper, or several."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures import Samples

from mdlib.core import shards
from mdlib.core.mask import Mask, read_masks, write_masks
from mdlib.data import Sample, Subset, open_dataset
from mdlib.method import masks, proposals
from mdlib.method.masks import MaskRule
from mdlib.models.encoder import load_encoder

ONE = MaskRule(
    top_k=0.4, cls_heads=3, mass=None, center="balanced", affinity="patches", whiten=True
)
THREE = replace(ONE, max_masks=3)
RUN = {"input_side": 128, "batch_size": 4}


@pytest.fixture(scope="module")
def scenes(zoo_root):
    return open_dataset("zoo", root=zoo_root, split="dev", count=6)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("zoo", device="cpu")


def test_one_mask_an_image_is_object_mask_with_its_attention(scenes, encoder):
    found = list(proposals.propose_masks(scenes, encoder, ONE, **RUN))
    assert tuple(mask.image_id for mask in found) == scenes.ids
    for i, mask in enumerate(found):
        tokens = encoder.tokens(torch.from_numpy(scenes[i].image).permute(2, 0, 1)[None])
        expected, score = proposals.tokens_to_masks(tokens, ONE)
        pixels = masks.mask_to_pixels(expected[:, 0], padded_hw=(128, 128), image_hw=(128, 128))[0]
        # a batch is not bit-equal to an image alone
        assert (mask.pixels() != pixels.numpy()).mean() < 0.01
        assert mask.score == pytest.approx(score.item(), abs=0.01) and mask.cluster is None


def test_several_masks_an_image_do_not_overlap_and_come_in_order(scenes, encoder):
    one = list(proposals.propose_masks(scenes, encoder, ONE, **RUN))
    found = list(proposals.propose_masks(scenes, encoder, THREE, **RUN))
    ids = [mask.image_id for mask in found]
    assert ids == sorted(ids)
    for first in one:
        own = [mask.pixels() for mask in found if mask.image_id == first.image_id]
        assert 1 < len(own) <= 3
        np.testing.assert_array_equal(own[0], first.pixels())
        assert np.sum(own, 0).max() == 1 and all(pixels.any() for pixels in own)


def test_an_image_may_have_no_mask_at_all(scenes, encoder):
    strict = replace(THREE, min_objectness=100.0)
    assert not list(proposals.propose_masks(scenes, encoder, strict, **RUN))


# ---------------------------------------------------------------- batches


def cut(scenes, sizes):
    """Scenes cut down to some sizes (height, width), in their turn."""
    return Samples(
        Sample(f"p{i}", np.ascontiguousarray(scenes[i % len(scenes)].image[:height, :width]))
        for i, (height, width) in enumerate(sizes)
    )


def by_neighbours(dataset, encoder, rule, *, batch_size, input_side):
    """Of one size: batch after batch in the order of the data set, and nothing else."""
    for start in range(0, len(dataset), batch_size):
        indices = range(start, min(start + batch_size, len(dataset)))
        images = torch.from_numpy(np.stack([dataset.image(i) for i in indices]))
        resized = proposals.resize_images(images.permute(0, 3, 1, 2), input_side=input_side)
        sizes = {dataset.ids[i]: dataset.size(i) for i in indices}
        for own in proposals._propose_batch(resized, sizes, encoder, rule):
            yield from own


@pytest.mark.parametrize("input_side", [128, 96])
@pytest.mark.parametrize("rule", [ONE, replace(THREE, min_objectness=0.08, max_ncut=0.03)])
def test_images_of_one_size_make_the_batches_they_always_made(
    rule, input_side, scenes, encoder, request
):
    run = RUN | {"input_side": input_side}
    expected = list(by_neighbours(scenes, encoder, rule, **run))
    assert list(proposals.propose_masks(scenes, encoder, rule, **run)) == expected
    request.getfixturevalue("workers")
    assert list(proposals.propose_masks(scenes, encoder, rule, **run)) == expected


def test_masks_kept_in_parts_are_the_same_and_a_part_is_not_made_again(
    scenes, encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr(shards, "SIZE", 2)
    rule, run = replace(THREE, min_objectness=0.08), RUN | {"batch_size": 2}
    expected = list(proposals.propose_masks(scenes, encoder, rule, **run))
    killed = proposals.propose_masks(scenes, encoder, rule, **run, shards=tmp_path)
    next(killed), killed.close()  # after the first part
    asked = Samples(scenes)
    resumed = proposals.propose_masks(asked, encoder, rule, **run, shards=tmp_path)
    assert list(resumed) == expected
    assert asked.asked == {("image", i): 1 for i in range(2, len(scenes))}


def test_a_mask_without_a_pixel_is_none(scenes, encoder, monkeypatch):
    nothing = torch.zeros(4, 1, 16, 16, dtype=torch.bool), torch.ones(4, 1)
    monkeypatch.setattr(proposals, "tokens_to_masks", lambda tokens, rule: nothing)
    four = Subset(scenes, first=4)
    assert not list(proposals.propose_masks(four, encoder, ONE, **RUN))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("image_hw", "seen_hw"),
    [
        ((128, 128), (64, 64)),
        ((60, 40), (96, 64)),
        ((40, 160), (64, 256)),  # four squares
        ((32, 3000), (13, 1239)),  # and no more: 190 squares' worth of patches otherwise
        ((5000, 8), (3200, 5)),
        ((1, 100_000), (1, 40477)),
    ],
)
def test_a_long_strip_has_the_pixels_of_four_squares(image_hw, seen_hw):
    resized = proposals.resize_images(
        torch.zeros(1, 3, *image_hw, dtype=torch.uint8), input_side=64
    )
    assert resized.shape[-2:] == seen_hw


SIZES = [
    (96, 128),
    (128, 96),
    (96, 128),
    (80, 80),
    (128, 96),
    (96, 128),
    (128, 96),
    (96, 128),
    (96, 128),
]


@pytest.mark.parametrize("window", [0.0, 1e5, 1e9])
def test_images_of_mixed_sizes_come_in_order_with_the_masks_they_have_alone(
    window, scenes, encoder, monkeypatch
):
    monkeypatch.setattr(proposals, "WINDOW", window)
    mixed = cut(scenes, SIZES)
    found, alone = (
        list(proposals.propose_masks(mixed, encoder, THREE, input_side=64, batch_size=size))
        for size in (4, 1)
    )
    ids = [mask.image_id for mask in found]
    assert ids == [mask.image_id for mask in alone] == sorted(ids)
    assert set(ids) == {f"p{i}" for i in range(len(SIZES))}
    for a, b in zip(found, alone, strict=True):
        assert a.size == SIZES[int(a.image_id[1:])]
        # a batch is not bit-equal to an image alone
        assert (a.pixels() != b.pixels()).mean() < 0.02
        assert a.score == pytest.approx(b.score, abs=0.02)


def test_a_batch_is_given_when_it_is_full_when_its_window_is_over_and_at_the_end(scenes):
    tall, wide, small = (128, 96), (96, 128), (8, 8)
    bytes_each = 128 * 96 * 3
    sizes = [tall, wide, wide, tall, small, wide, tall, wide, wide, wide]

    def batches(window):
        images = (torch.from_numpy(sample.image) for sample in cut(scenes, sizes))
        return [
            list(batch) for batch in proposals.batches_by_size(images, batch_size=3, window=window)
        ]

    assert batches(1e9) == [[1, 2, 5], [0, 3, 6], [7, 8, 9], [4]]
    assert batches(5.5 * bytes_each) == [[1, 2, 5], [0, 3, 6], [7, 8, 9], [4]]
    assert batches(4.5 * bytes_each) == [[1, 2, 5], [0, 3], [7, 8, 9], [4], [6]]
    assert batches(3.5 * bytes_each) == [[0, 3], [1, 2, 5], [4], [7, 8, 9], [6]]
    assert batches(0) == [[0], [1, 2], [3], [4], [5], [6], [7, 8, 9]]  # neighbours


# ---------------------------------------------------------------- memory


def test_pictures_and_masks_that_wait_are_bounded_by_the_window(scenes, encoder, monkeypatch):
    """One picture of a rare size at the start, then many: it must not hold up the others for good."""
    each = 48 * 40 * 3
    monkeypatch.setattr(proposals, "WINDOW", 10 * each)
    pictures = cut(scenes, [(40, 40)] + [(48, 40)] * 60)
    most = 0
    for given, _ in enumerate(
        proposals.propose_masks(pictures, encoder, ONE, **RUN | {"input_side": 40}), 1
    ):
        most = max(most, pictures.asked.total() - given)
    # the window and a batch
    assert given == 61 and 8 <= most <= 10 + 4


def test_only_images_are_decoded_not_their_labels(scenes, encoder):
    labelled = Samples(scenes)
    consumed = list(proposals.propose_masks(labelled, encoder, ONE, **RUN))
    assert len(consumed) == len(scenes)
    assert labelled.asked == {("image", i): 1 for i in range(len(scenes))}


def test_masks_are_written_and_read_without_their_pixels(scenes, encoder, tmp_path, monkeypatch):
    """No mask that stage 1 made is decoded."""

    def refuse(mask):
        raise AssertionError("a mask was decoded")

    expected = list(proposals.propose_masks(scenes, encoder, ONE, **RUN))
    path = tmp_path / "masks.json"
    with monkeypatch.context() as patch:
        patch.setattr(Mask, "pixels", refuse)
        found = proposals.propose_masks(scenes, encoder, ONE, **RUN)
        written = write_masks(path, found, images=scenes.sizes())
        read = read_masks(path).by_image(scenes.ids)
    assert list(written) == [mask for of_image in read for mask in of_image] == expected
