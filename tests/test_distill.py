"""Stage 1 over a data set: one mask an image as in the paper, or several."""

import weakref
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch

from mdlib import distill, masks, store
from mdlib.datasets import open_dataset
from mdlib.encoder import load_encoder
from mdlib.presets import NOTEBOOKS
from mdlib.progress import track

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


# ---------------------------------------------------------------- memory


def test_the_notebook_never_holds_the_masks_of_more_than_a_batch(scenes, encoder, tmp_path, monkeypatch):
    """Its own cell, run on a few scenes: of the masks that stage 1 made, how many are alive at once?"""
    made, most = [], 0

    def watched(*args, **options):
        nonlocal most
        for found in distill_masks(*args, **options):
            made.append(weakref.ref(found.mask))
            most = max(most, sum(mask() is not None for mask in made))
            yield found

    distill_masks = distill.distill_masks
    monkeypatch.setattr(distill, "distill_masks", watched)
    cells = nbformat.read(NOTEBOOKS / "01_distill_masks.ipynb", as_version=4).cells
    (whole,) = [cell.source for cell in cells if "store.write_masks" in cell.source]
    kept = dict(
        distill=distill, store=store, track=track, encoder=encoder, stage=SimpleNamespace(folder=tmp_path),
        splits={"train": scenes, "dev": scenes}, paper={**RUN, "batch_size": 2}, several={},
    )  # fmt: skip
    exec(whole, kept)
    assert len(made) == 12 and most <= 4  # two batches of two
    assert sum(mask() is not None for mask in made) <= 2  # the last batch, which `found` still holds
    assert [[record["image_id"] for record in found] for found in kept["by_image"]["dev"]] == [[name] for name in scenes.ids()]
