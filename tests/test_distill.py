"""Stage 1 over a data set: one mask an image as in the paper, or several."""

import numpy as np
import pytest
import torch

from mdlib import distill, masks
from mdlib.datasets import open_dataset
from mdlib.encoder import load_encoder

SETTINGS = {"top_k": 0.4, "cls_heads": 3, "mass": None, "center": "balanced"}
RUN = {**SETTINGS, "input_side": 128, "batch_size": 4}


@pytest.fixture(scope="module")
def scenes(zoo_root):
    return open_dataset("zoo", root=zoo_root, split="dev", count=6)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("zoo", device="cpu")


def test_one_mask_an_image_is_object_mask_with_its_attention(scenes, encoder):
    found = list(distill.distill_masks(scenes, encoder, **RUN))
    assert [d.id for d in found] == scenes.ids()
    for i, distilled in enumerate(found):
        tokens = encoder.tokens(torch.from_numpy(scenes[i].image).permute(2, 0, 1)[None])
        mask, score = distill.mask_tokens(tokens, **SETTINGS)
        pixels = masks.mask_to_pixels(mask, padded_hw=(128, 128), image_hw=(128, 128))[0].numpy()
        assert (distilled.mask != pixels).mean() < 0.01  # a batch is not bit-equal to an image alone
        assert distilled.score == pytest.approx(score.item(), abs=0.01)


def test_several_masks_an_image_do_not_overlap_and_come_in_order(scenes, encoder):
    one = list(distill.distill_masks(scenes, encoder, **RUN))
    found = list(distill.distill_masks(scenes, encoder, **RUN, max_masks=3))
    assert [d.id for d in found] == sorted(d.id for d in found)
    for first in one:
        own = [d.mask for d in found if d.id == first.id]
        assert 1 < len(own) <= 3
        np.testing.assert_array_equal(own[0], first.mask)
        assert np.sum(own, 0).max() == 1 and all(mask.any() for mask in own)


def test_an_image_may_have_no_mask_at_all(scenes, encoder):
    assert not list(distill.distill_masks(scenes, encoder, **RUN, max_masks=3, min_contrast=100.0))


def test_the_mass_rule_is_refused_for_centred_keys(scenes, encoder):
    with pytest.raises(ValueError, match="mass"):
        next(distill.distill_masks(scenes, encoder, **RUN | {"mass": 0.5}))
