"""Stage 1 over a data set: one mask an image as in the paper, or several."""

from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch

from mdlib.core import mask as mask_module
from mdlib.core.mask import by_image, read_masks, write_masks
from mdlib.core.paths import NOTEBOOKS
from mdlib.core.progress import track
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
    assert [d["image_id"] for d in found] == scenes.ids()
    for i, record in enumerate(found):
        tokens = encoder.tokens(torch.from_numpy(scenes[i].image).permute(2, 0, 1)[None])
        mask, score = proposals.tokens_to_masks(tokens, ONE)
        pixels = masks.mask_to_pixels(mask[:, 0], padded_hw=(128, 128), image_hw=(128, 128))[
            0
        ].numpy()
        # a batch is not bit-equal to an image alone
        assert (record["mask"] != pixels).mean() < 0.01
        assert record["score"] == pytest.approx(score.item(), abs=0.01)


def test_several_masks_an_image_do_not_overlap_and_come_in_order(scenes, encoder):
    one = list(proposals.propose_masks(scenes, encoder, ONE, **RUN))
    found = list(proposals.propose_masks(scenes, encoder, THREE, **RUN))
    assert [d["image_id"] for d in found] == sorted(d["image_id"] for d in found)
    for first in one:
        own = [d["mask"] for d in found if d["image_id"] == first["image_id"]]
        assert 1 < len(own) <= 3
        np.testing.assert_array_equal(own[0], first["mask"])
        assert np.sum(own, 0).max() == 1 and all(mask.any() for mask in own)


def test_an_image_may_have_no_mask_at_all(scenes, encoder):
    strict = replace(THREE, min_contrast=100.0)
    assert not list(proposals.propose_masks(scenes, encoder, strict, **RUN))


# ---------------------------------------------------------------- batches


class Pictures(list):
    """Samples as a data set that counts how many of them were asked for."""

    asked = 0

    def __getitem__(self, index):
        self.asked += 1
        return super().__getitem__(index)


def cut(scenes, sizes):
    """Scenes cut down to some sizes (height, width), in their turn."""
    return Pictures(
        Sample(f"p{i}", np.ascontiguousarray(scenes[i % len(scenes)].image[:height, :width]))
        for i, (height, width) in enumerate(sizes)
    )


def assert_same(found, expected):
    assert [(d["image_id"], d["score"]) for d in found] == [
        (d["image_id"], d["score"]) for d in expected
    ]
    assert all(np.array_equal(a["mask"], b["mask"]) for a, b in zip(found, expected))


def by_neighbours(dataset, encoder, rule, *, batch_size, input_side):
    """Of one size: batch after batch in the order of the data set, and nothing else."""
    for start in range(0, len(dataset), batch_size):
        batch = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        for own in proposals._propose_batch(batch, encoder, rule, input_side=input_side):
            yield from own


@pytest.mark.parametrize("rule", [ONE, replace(THREE, min_contrast=0.08, max_seam=0.03)])
def test_images_of_one_size_make_the_batches_they_always_made(rule, scenes, encoder, request):
    expected = list(by_neighbours(scenes, encoder, rule, **RUN))
    assert_same(list(proposals.propose_masks(scenes, encoder, rule, **RUN)), expected)
    request.getfixturevalue("threaded")
    assert_same(list(proposals.propose_masks(scenes, encoder, rule, **RUN)), expected)


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
    assert (
        [d["image_id"] for d in found]
        == [d["image_id"] for d in alone]
        == sorted(d["image_id"] for d in found)
    )
    assert {d["image_id"] for d in found} == {f"p{i}" for i in range(len(SIZES))}
    for a, b in zip(found, alone):
        # a batch is not bit-equal to an image alone
        assert (
            a["mask"].shape == SIZES[int(a["image_id"][1:])]
            and (a["mask"] != b["mask"]).mean() < 0.02
        )
        assert a["score"] == pytest.approx(b["score"], abs=0.02)


def test_a_batch_is_given_when_it_is_full_when_its_window_is_over_and_at_the_end(scenes):
    tall, wide, small = (128, 96), (96, 128), (8, 8)
    bytes_each = 128 * 96 * 3
    sizes = [tall, wide, wide, tall, small, wide, tall, wide, wide, wide]

    def batches(window):
        return [
            list(batch)
            for batch in proposals.batches_by_size(cut(scenes, sizes), batch_size=3, window=window)
        ]

    assert batches(1e9) == [[1, 2, 5], [0, 3, 6], [7, 8, 9], [4]]
    assert batches(5.5 * bytes_each) == [[1, 2, 5], [0, 3, 6], [7, 8, 9], [4]]
    assert batches(4.5 * bytes_each) == [[1, 2, 5], [0, 3], [7, 8, 9], [4], [6]]
    assert batches(3.5 * bytes_each) == [[0, 3], [1, 2, 5], [4], [7, 8, 9], [6]]
    assert batches(0) == [[0], [1, 2], [3], [4], [5], [6], [7, 8, 9]]  # neighbours


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("ahead", [False, True])
def test_pictures_and_masks_that_wait_are_bounded_by_the_window(
    ahead, scenes, encoder, monkeypatch, request
):
    """One picture of a rare size at the start, then many: it must not hold up the others for good."""
    if ahead:
        request.getfixturevalue("threaded")
    each = 48 * 40 * 3
    monkeypatch.setattr(proposals, "WINDOW", 10 * each)
    pictures = cut(scenes, [(40, 40)] + [(48, 40)] * 60)
    most = 0
    for given, _ in enumerate(
        proposals.propose_masks(pictures, encoder, ONE, **RUN | {"input_side": 40}), 1
    ):
        most = max(most, pictures.asked - given)
    # the window, a batch, and one that is read ahead
    assert given == 61 and 8 <= most <= 10 + 4 + ahead * 4


def test_the_notebook_writes_its_masks_without_their_pixels(scenes, encoder, tmp_path, monkeypatch):
    """Its own cell, run on a few scenes: no mask that stage 1 made is decoded."""

    def refuse(encoded):
        raise AssertionError("a mask was decoded")

    cells = nbformat.read(NOTEBOOKS / "01_distill_masks.ipynb", as_version=4).cells
    (whole,) = [cell.source for cell in cells if "write_masks(" in cell.source]

    def propose(data, network, rule):
        return proposals.propose_masks(data, network, rule, **RUN | {"batch_size": 2})

    kept = dict(
        write_masks=write_masks, read_masks=read_masks, by_image=by_image, track=track, encoder=encoder, stage=SimpleNamespace(folder=tmp_path),
        splits={"train": scenes, "dev": scenes}, rule=ONE, propose=propose,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(mask_module, "decode_mask", refuse)
        exec(whole, kept)
    found = kept["masks_by_image"]["dev"]
    assert [[record["image_id"] for record in of_image] for of_image in found] == [
        [name] for name in scenes.ids()
    ]
    expected = propose(scenes, encoder, ONE)
    assert all(
        np.array_equal(of_image[0]["mask"], record["mask"])
        for of_image, record in zip(found, expected, strict=True)
    )
