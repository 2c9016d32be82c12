"""Mask R-CNN: targets that are what they say, a batch learnt by heart, predictions that keep their
contract.
"""

import copy
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from unittest import mock

import numpy as np
import pytest
import torch
from fixtures import BLOB_SIDE, Samples, blobs, tiny_detector
from PIL import Image

from mdlib.core import shards
from mdlib.core.mask import Mask, Masks, encode_mask, read_masks, write_masks
from mdlib.core.weights import WeightsError, read_weights, save_weights
from mdlib.data import InMemory, Sample, open_dataset
from mdlib.method.detector import (
    DetectionBatch,
    DetectionBatches,
    RegionHead,
    detector_loss,
    load_detector,
    predict,
    target_of,
    to_tensor,
)
from mdlib.method.segmenter import build_segmenter
from mdlib.models.encoder import ZOO_WEIGHTS
from mdlib.training import loop


def batches_of(scenes, masks, *, batch=2, seed=0):
    return DetectionBatches(scenes, Masks(masks), batch=batch, seed=seed, device="cpu")


def assert_same_batch(a, b):
    assert a.ids == b.ids
    for (image_a, target_a), (image_b, target_b) in zip(a, b, strict=True):
        assert torch.equal(image_a, image_b) and target_a.keys() == target_b.keys()
        assert all(
            torch.equal(target_a[key], target_b[key]) for key in ("boxes", "labels", "masks")
        )


# ---------------------------------------------------------------- targets


def test_a_target_counts_labels_from_one_and_ends_its_box_after_the_last_pixel():
    mask = np.zeros((9, 12), bool)
    mask[2:5, 3:10] = True
    target = target_of(mask[None], [0], image_id="a")
    assert target["boxes"].tolist() == [[3, 2, 10, 5]] and target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1] and target["labels"].dtype == torch.int64
    assert target["masks"].shape == (1, 9, 12) and target["masks"].dtype == torch.uint8
    np.testing.assert_array_equal(target["masks"][0].numpy(), mask)
    # as k-means hands clusters out
    assert target_of(mask[None], np.array([41]), image_id="a")["labels"].tolist() == [42]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1)])
def test_a_degenerate_box_is_refused_by_name(height, width):
    mask = np.zeros((8, 8), bool)
    mask[3 : 3 + height, 2 : 2 + width] = True
    with pytest.raises(ValueError, match=f"pic: a mask of {width} x {height}"):
        target_of(mask[None], [0], image_id="pic")


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="empty"):
        target_of(np.zeros((1, 8, 8), bool), [0], image_id="pic")


# ---------------------------------------------------------------- batches


def with_unusable_masks():
    scenes, masks = blobs(5)
    thin = np.zeros((BLOB_SIDE, BLOB_SIDE), bool)
    masks[1] = replace(masks[1], rle=encode_mask(thin))
    thin[10, 5:30] = True  # one pixel high
    masks[3] = replace(masks[3], rle=encode_mask(thin))
    return scenes, masks


def test_images_without_a_usable_mask_are_left_out():
    batches = batches_of(*with_unusable_masks())
    assert batches.kept == [0, 2, 4]
    seen = {name for step in range(20) for name in batches(step).ids}
    assert seen == {"scene_0", "scene_2", "scene_4"}


def test_no_usable_mask_at_all_is_an_error():
    scenes, masks = blobs(2)
    empty = encode_mask(np.zeros((BLOB_SIDE, BLOB_SIDE), bool))
    with pytest.raises(ValueError, match="no mask"):
        batches_of(scenes, [replace(mask, rle=empty) for mask in masks])


def test_batches_are_made_without_decoding_and_a_batch_decodes_its_own_masks(monkeypatch):
    decoded, pixels = [], Mask.pixels
    monkeypatch.setattr(Mask, "pixels", lambda mask: decoded.append(mask.image_id) or pixels(mask))
    scenes, masks = blobs(6)
    batches = batches_of(scenes, masks, batch=2)
    assert not decoded and not scenes.asked
    seen = batches(0).ids
    assert sorted(decoded) == sorted(seen) and len(seen) == 2
    assert scenes.asked == {("image", scenes.index_of(name)): 1 for name in seen}


def test_a_mask_of_an_unknown_image_is_refused():
    scenes, masks = blobs(3)
    with pytest.raises(ValueError, match="a mask of 'scene_2', which the data set does not hold"):
        batches_of(Samples(scenes.samples[:2]), masks)


def test_an_image_has_any_number_of_masks_and_all_of_them_become_targets():
    scenes, masks = blobs(3)
    second = np.zeros((BLOB_SIDE, BLOB_SIDE), bool)
    second[50:60, 45:60] = True
    thin = np.zeros((BLOB_SIDE, BLOB_SIDE), bool)
    thin[3, 10:40] = True  # no box: left out, its image stays
    more = [
        Mask.from_pixels(second, image_id="scene_0", cluster=7),
        Mask.from_pixels(thin, image_id="scene_0", cluster=1),
    ]
    batches = batches_of(scenes, [masks[0], masks[2], *more], batch=2)
    assert batches.kept == [0, 2]
    for image, target in batches(0):
        expected = (
            [(masks[0].pixels(), 0), (second, 7)]
            if target["id"] == "scene_0"
            else [(masks[2].pixels(), 2)]
        )
        turned = slice(
            None,
            None,
            1 if torch.equal(image, to_tensor(scenes[int(target["id"][-1])].image, "cpu")) else -1,
        )
        assert target["labels"].tolist() == [1 + cluster for _, cluster in expected]
        np.testing.assert_array_equal(
            target["masks"].numpy(), np.stack([mask[:, turned] for mask, _ in expected])
        )
        assert len(target["boxes"]) == len(expected)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    scenes, masks = blobs(6)
    batches = batches_of(scenes, masks, batch=4)
    first = [batches(step) for step in range(4)]
    np.random.seed(1)  # noqa: NPY002, the global state must not matter
    for step in (3, 0, 2, 1):  # in any order, from any instance
        assert_same_batch(batches(step), first[step])
        assert_same_batch(batches_of(*blobs(6), batch=4)(step), first[step])
    assert len({tuple(batch.ids) for batch in first}) > 1
    assert [batches_of(scenes, masks, batch=4, seed=1)(s).ids for s in range(4)] != [
        b.ids for b in first
    ]


def test_a_batch_repeats_no_image_unless_it_must():
    scenes, masks = blobs(3)
    assert all(len(set(batches_of(scenes, masks, batch=3)(step).ids)) == 3 for step in range(10))
    assert len(batches_of(scenes, masks, batch=5)(0)) == 5


def test_mirroring_moves_image_mask_and_box_together():
    scenes, masks = blobs(3)
    batches, mirrored = batches_of(scenes, masks, batch=1), set()
    for step in range(40):
        ((image, target),) = batches(step)
        index = int(target["id"][-1])
        flip = not torch.equal(image, to_tensor(scenes[index].image, "cpu"))
        turned = slice(None, None, -1 if flip else 1)
        mask = masks[index].pixels()[:, turned]
        assert torch.equal(image, to_tensor(scenes[index].image[:, turned], "cpu"))
        np.testing.assert_array_equal(target["masks"][0].numpy(), mask)
        assert torch.equal(target["boxes"], target_of(mask[None], [0], image_id="")["boxes"])
        assert target["labels"].tolist() == [1 + masks[index].cluster]
        mirrored.add((index, flip))
    assert len(mirrored) == 6  # each image was seen both ways


def test_a_picture_becomes_channels_between_zero_and_one():
    image = np.array([[[0, 51, 255], [255, 0, 102]]], np.uint8)
    tensor = to_tensor(image, "cpu")
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 1, 2)
    torch.testing.assert_close(tensor[:, 0, 1], torch.tensor([1.0, 0.0, 0.4]))


# ---------------------------------------------------------------- the network


def test_a_region_keeps_its_mean_beside_what_the_layer_makes_of_it():
    head, regions = RegionHead(5, hidden=4), torch.randn(3, 5, 7, 7)
    out = head(regions)
    assert out.shape == (3, head.out_channels) == (3, 9)
    torch.testing.assert_close(out[:, :5], regions.mean((2, 3)))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_with_masks_of_one_cluster_and_any_batch_has_a_finite_gradient(batch):
    scenes, masks = blobs(3)
    masks = [replace(mask, cluster=0) for mask in masks]
    model = tiny_detector(clusters=1, trainable=1).train()
    loss, parts = detector_loss(model, batches_of(scenes, masks, batch=batch)(0))
    loss.backward()
    assert parts.keys() == {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}
    assert loss.item() == pytest.approx(sum(parts.values()), rel=1e-5)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0


def test_a_batch_of_pictures_of_several_sizes_is_trained_on():
    wide, wide_masks = blobs(1, height=40, width=64)
    tall, tall_masks = blobs(1, height=70, width=50)
    scenes = Samples([*wide.samples, Sample("tall", tall.image(0))])
    batch = batches_of(scenes, [*wide_masks, replace(tall_masks[0], image_id="tall")])(0)
    assert {tuple(image.shape) for image, _ in batch} == {(3, 40, 64), (3, 70, 50)}
    loss, _ = detector_loss(tiny_detector().train(), batch)
    assert torch.isfinite(loss)


# ---------------------------------------------------------------- it learns


def fitted(model, batch, *, steps, peak):
    given = dict(
        optimizer="adamw", lr_milestones=[], warmup=3, weight_decay=0.0, backbone_lr_scale=0.3
    )
    recipe = loop.Recipe(steps=steps, peak_lr=peak, accumulation_steps=1, seed=0, **given)
    options = dict(checkpoint=None, identity={}, log_every=1)
    return loop.fit(model, lambda step: batch, detector_loss, recipe, **options)


@pytest.fixture(scope="module")
def by_heart(zoo_root):
    """A detector that learnt three zoo scenes, one subject each, by heart: (model, scenes, masks,
    history).
    """
    singles = [
        s
        for s in open_dataset("zoo", root=zoo_root, split="train", count=30)
        if len(s.instances.labels) == 1
    ][:3]
    half = [Sample(s.id, s.image[::2, ::2], instances=None) for s in singles]
    masks = [
        Mask.from_pixels(s.instances.masks[0][::2, ::2], image_id=s.id, cluster=i)
        for i, s in enumerate(singles)
    ]
    model = tiny_detector(weights=ZOO_WEIGHTS, side=96).train()
    batch = DetectionBatch(
        (
            to_tensor(sample.image, "cpu"),
            target_of(mask.pixels()[None], [mask.cluster], image_id=sample.id),
        )
        for sample, mask in zip(half, masks, strict=True)
    )
    history = fitted(model, batch, steps=60, peak=2e-3)
    return model.eval(), Samples(half), masks, history


def test_the_loss_of_a_batch_learnt_by_heart_falls_far(by_heart):
    history = by_heart[3]
    first, last = (np.mean([row["loss"] for row in rows]) for rows in (history[:3], history[-3:]))
    assert last < 0.35 * first
    assert history[-1]["classifier"] < 0.5 * history[0]["classifier"]


def test_what_was_learnt_by_heart_is_found_with_its_mask_and_cluster(by_heart):
    model, scenes, masks, _ = by_heart
    for found, mask in zip(predict(model, scenes, batch=2, device="cpu"), masks, strict=True):
        best = found[0]
        inside, true = best.pixels(), mask.pixels()
        assert (best.cluster, best.image_id) == (mask.cluster, mask.image_id)
        assert (inside & true).sum() / (inside | true).sum() > 0.5 and best.score > 0.3


# ---------------------------------------------------------------- predictions


def test_predictions_keep_their_contract(by_heart):
    model, scenes, _, _ = by_heart
    found = list(predict(model, scenes, batch=2, device="cpu"))
    assert len(found) == len(scenes) and all(found)
    for i, masks in enumerate(found):
        scores = [mask.score for mask in masks]
        assert scores == sorted(scores, reverse=True) and 0 <= scores[-1] <= scores[0] <= 1
        for mask in masks:
            assert mask.image_id == scenes.ids[i] and mask.cluster in range(3)
            assert mask.size == scenes.size(i) and mask.area > 0 and mask.box is not None
    assert {what for what, _ in scenes.asked} == {"image"}


def test_predictions_do_not_depend_on_the_batch_and_can_be_stored(by_heart, tmp_path):
    model, scenes, _, _ = by_heart
    together, alone = (list(predict(model, scenes, batch=batch, device="cpu")) for batch in (3, 1))
    assert [len(image) for image in together] == [len(image) for image in alone]
    for a, b in zip(chain(*together), chain(*alone), strict=True):
        assert a.cluster == b.cluster and a.score == pytest.approx(b.score, abs=1e-4)
    write_masks(tmp_path / "masks.json", chain(*together), images=scenes.sizes())
    assert read_masks(tmp_path / "masks.json").by_image(scenes.ids) == together


def test_pictures_read_ahead_give_the_same_predictions(by_heart, request):
    model, scenes, _, _ = by_heart
    expected = list(predict(model, scenes, batch=2, device="cpu"))
    request.getfixturevalue("workers")
    assert list(predict(model, scenes, batch=2, device="cpu")) == expected


def test_an_image_without_a_prediction_gives_an_empty_list(by_heart):
    model, scenes, _, _ = by_heart
    sceptic = copy.deepcopy(model)
    sceptic.roi_heads.score_thresh = 1.1
    assert list(predict(sceptic, scenes, batch=2, device="cpu")) == [[], [], []]


def known(by_heart, height, width):
    """The scenes that are known by heart, at another size."""
    resized = (Image.fromarray(s.image).resize((width, height)) for s in by_heart[1])
    return Samples([Sample(f"scene_{i}", np.array(image)) for i, image in enumerate(resized)])


def test_masks_have_the_size_of_pictures_that_are_resized_for_the_network(by_heart):
    scenes = known(by_heart, 45, 80)
    found = next(predict(by_heart[0], scenes, batch=1, device="cpu"))
    assert found and {mask.size for mask in found} == {(45, 80)}


@pytest.mark.parametrize(("height", "width"), [(64, 64), (45, 80), (300, 200)])
def test_masks_pasted_one_by_one_are_torchvisions(by_heart, height, width):
    model, scenes = by_heart[0], known(by_heart, height, width)
    images = [
        torch.from_numpy(scene.image.copy()).permute(2, 0, 1).float() / 255 for scene in scenes
    ]
    with torch.no_grad():
        theirs = model(images)
    for output, found in zip(theirs, predict(model, scenes, batch=3, device="cpu"), strict=True):
        pixels = (output["masks"][:, 0] > 0.5).numpy()
        kept = pixels.any((1, 2))
        assert kept.any() and [mask.score for mask in found] == output["scores"][kept].tolist()
        np.testing.assert_array_equal(np.stack([mask.pixels() for mask in found]), pixels[kept])
        assert [1 + mask.cluster for mask in found] == output["labels"][kept].tolist()


def test_predictions_kept_in_parts_are_the_same(by_heart, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SIZE", 2)
    model, (scenes, _) = by_heart[0], blobs(5)
    see = dict(batch=2, device="cpu")
    expected = list(predict(model, scenes, **see))
    killed = predict(model, scenes, **see, shards=tmp_path)
    assert next(killed) == expected[0]
    asked = Samples(scenes)
    assert list(predict(model, asked, **see, shards=tmp_path)) == expected
    assert asked.asked == {("image", i): 1 for i in (2, 3, 4)}


# ---------------------------------------------------------------- files


def architecture(clusters=3, side=96):
    return {
        "architecture": {
            "network": "mask_rcnn",
            "backbone": "vit",
            "num_clusters": clusters,
            "shorter_side": side,
        }
    }


def test_a_stored_detector_predicts_the_same(by_heart, tmp_path):
    model, scenes, _, _ = by_heart
    # training laid it out channels last, and sums differ so
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    save_weights(tmp_path / "detector", model.state_dict(), header=architecture())
    loaded = load_detector(tmp_path / "detector", device="cpu")
    assert not loaded.training
    ours, theirs = (list(predict(m, scenes, batch=3, device="cpu")) for m in (model, loaded))
    assert ours == theirs


def test_a_segmenters_file_is_no_detector(tmp_path):
    model = build_segmenter("vit", weights=None, trainable_blocks=0, outputs=4)
    header = {
        "architecture": {"network": "deeplab_v3", "backbone": "vit", "outputs": 4, "side": 64}
    }
    save_weights(tmp_path / "segmenter", model.state_dict(), header=header)
    with pytest.raises(WeightsError, match="expected a mask_rcnn"):
        load_detector(tmp_path / "segmenter", device="cpu")


def test_a_detector_of_another_number_of_clusters_does_not_fit(tmp_path):
    save_weights(
        tmp_path / "detector",
        tiny_detector(clusters=3).state_dict(),
        header=architecture(clusters=4),
    )
    with pytest.raises(WeightsError, match="does not fit"):
        load_detector(tmp_path / "detector", device="cpu")


def test_a_missing_detector_names_its_path(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights at .*detector"):
        load_detector(tmp_path / "detector", device="cpu")


# ---------------------------------------------------------------- strips


@pytest.mark.parametrize("side", [16, 128, 192, 480])
@pytest.mark.parametrize("image_hw", [(8, 800), (1600, 16), (32, 3000)])
def test_the_longest_strips_are_trained_on_and_predicted(rng, side, image_hw):
    data = InMemory({"strip": rng.integers(0, 256, (*image_hw, 3), dtype=np.uint8)})
    pixels = np.zeros(image_hw, bool)
    pixels[2:8, 2:8] = True
    masks = Masks([Mask.from_pixels(pixels, image_id="strip", cluster=0)])
    batches = DetectionBatches(data, masks, batch=2, seed=0, device="cpu")
    model = tiny_detector(side=side).train()
    assert torch.isfinite(detector_loss(model, batches(0))[0])
    (found,) = predict(model, data, batch=1, device="cpu")
    assert all(mask.size == image_hw for mask in found)


# ---------------------------------------------------------------- a killed training goes on

STEPS = 5


def train_tiny(checkpoint, *, dies_at=None):
    """Five steps with a checkpoint every two; the process kills itself at the start of step
    `dies_at`.
    """
    torch.set_num_threads(1)
    batches, seen = batches_of(*blobs(3)), []
    model = tiny_detector(trainable=1).train()

    def batch_of(step):
        if step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(step)
        return batches(step)

    given = dict(
        optimizer="adamw", peak_lr=1e-3, lr_milestones=[STEPS], warmup=0, weight_decay=0.05
    )
    recipe = loop.Recipe(steps=STEPS, backbone_lr_scale=0.1, accumulation_steps=1, seed=3, **given)
    with mock.patch.object(loop, "CHECKPOINT_EVERY", 2):
        options = dict(checkpoint=checkpoint, identity={"tiny": True})
        loop.fit(model, batch_of, detector_loss, recipe, **options)
    return model.state_dict(), seen


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_detector_whose_training_was_killed_is_bit_equal_to_one_that_was_not(tmp_path):
    path = tmp_path / "checkpoint"
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_detector as t; t.train_tiny({str(path)!r}, dies_at=3)"
    killed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=os.path.dirname(__file__),
        check=False,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_weights(path)[1]["step"] == 2
    resumed, seen = train_tiny(path)
    whole, _ = train_tiny(None)
    assert seen == [2, 3, 4]
    assert (
        all(torch.equal(resumed[key], whole[key]) for key in whole)
        and resumed.keys() == whole.keys()
    )
    torch.manual_seed(0)
    fresh = tiny_detector(trainable=1).state_dict()
    assert not torch.equal(
        whole["roi_heads.box_predictor.cls_score.weight"],
        fresh["roi_heads.box_predictor.cls_score.weight"],
    )
