"""Stage 1 over a data set: one mask an image as in the paper, or several."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures import Samples

from mdlib.core.mask import Mask, read_masks, write_masks
from mdlib.data import Sample, open_dataset
from mdlib.method import masks, proposals
from mdlib.method.masks import MaskRule
from mdlib.models.encoder import load_encoder

ONE = MaskRule(top_k=0.4, cls_heads=3, mass=None, center="balanced")
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
        batch = {dataset.ids[i]: dataset.image(i) for i in indices}
        for own in proposals._propose_batch(batch, encoder, rule, input_side=input_side):
            yield from own


@pytest.mark.parametrize("rule", [ONE, replace(THREE, min_objectness=0.08, max_ncut=0.03)])
def test_images_of_one_size_make_the_batches_they_always_made(rule, scenes, encoder, request):
    expected = list(by_neighbours(scenes, encoder, rule, **RUN))
    assert list(proposals.propose_masks(scenes, encoder, rule, **RUN)) == expected
    request.getfixturevalue("workers")
    assert list(proposals.propose_masks(scenes, encoder, rule, **RUN)) == expected


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
        images = (sample.image for sample in cut(scenes, sizes))
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
