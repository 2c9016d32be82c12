"""DeepLab-v3: the hardest pixels' loss, views whose labels follow the picture, a batch learnt by
heart, the linear probe.
"""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures import Samples

from mdlib.core import shards
from mdlib.core.label_map import read_label_map, write_label_map
from mdlib.core.weights import WeightsError, save_weights
from mdlib.data import Sample, open_dataset
from mdlib.evaluate import metrics
from mdlib.method import crf, pseudo_labels, segmenter
from mdlib.method.segmenter import (
    VOID,
    Augment,
    SegmentationBatch,
    SegmentationBatches,
    View,
    batch_loss,
    build_segmenter,
    label_map,
    load_segmenter,
    ohem_loss,
    predict_logits,
    probabilities,
    refined_maps,
    reset_classifier,
    show,
)
from mdlib.models.backbones import FeatureCache
from mdlib.models.encoder import ZOO_WEIGHTS
from mdlib.training.loop import Recipe, fit

SIDE = 64


def tiny_segmenter(*, outputs=4, weights=None, trainable=0, cache=None):
    torch.manual_seed(0)
    given = dict(weights=weights, trainable_blocks=trainable, outputs=outputs, cache=cache)
    return build_segmenter("vit", **given)


@pytest.fixture(scope="module")
def model():
    """With random weights, in eval mode; tests that change it make a copy first."""
    return tiny_segmenter().eval()


# ---------------------------------------------------------------- loss


def ohem_loss_spec(logits, labels, *, share):
    """One pixel after another: the mean of the largest int(share * n) of -log softmax, at least
    one.
    """
    losses = []
    for b, y, x in np.ndindex(*labels.shape):
        if labels[b, y, x] != VOID:
            pixel = logits[b, :, y, x].double()
            losses.append(float(pixel.exp().sum().log() - pixel[labels[b, y, x]]))
    hardest = sorted(losses, reverse=True)[: max(1, int(share * len(losses)))]
    return sum(hardest) / len(hardest)


def random_pixels(*, void=0.3, outputs=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(
        np.where(rng.random((2, 5, 7)) < void, VOID, rng.integers(0, outputs, (2, 5, 7)))
    )
    return torch.from_numpy(rng.normal(0, 2, (2, outputs, 5, 7)).astype(np.float32)), labels


@pytest.mark.parametrize("share", [0.01, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("void", [0.0, 0.3, 0.97])
def test_the_loss_equals_the_slow_one(share, void):
    logits, labels = random_pixels(void=void)
    assert ohem_loss(logits, labels, share=share).item() == pytest.approx(
        ohem_loss_spec(logits, labels, share=share), rel=1e-5
    )


def test_with_all_pixels_the_loss_is_plain_cross_entropy():
    logits, labels = random_pixels()
    torch.testing.assert_close(
        ohem_loss(logits, labels, share=1.0), F.cross_entropy(logits, labels, ignore_index=VOID)
    )


def test_the_loss_sinks_as_easier_pixels_are_counted():
    losses = [ohem_loss(*random_pixels(), share=share).item() for share in (0.1, 0.3, 0.6, 1.0)]
    assert losses == sorted(losses, reverse=True) and losses[0] > 2 * losses[-1]


def test_easy_and_void_pixels_get_no_gradient():
    logits, labels = random_pixels()
    logits.requires_grad_()
    ohem_loss(logits, labels, share=0.2).backward()
    touched = logits.grad.abs().sum(1) > 0
    assert touched.sum() == int(0.2 * (labels != VOID).sum()) and not touched[labels == VOID].any()


def test_a_batch_of_void_gives_zero_with_zero_finite_gradients(model):
    net = copy.deepcopy(model).train()
    loss = ohem_loss(net(torch.rand(2, 3, 32, 32)), torch.full((2, 32, 32), VOID), share=0.25)
    loss.backward()
    assert loss.item() == 0
    assert all(
        p.grad is not None and (p.grad == 0).all() for p in net.parameters() if p.requires_grad
    )


@pytest.mark.parametrize("label", [5, 254])
def test_a_label_without_a_logit_is_refused(label):
    logits, labels = random_pixels()
    labels[0, 0, 0] = label
    with pytest.raises(ValueError, match=f"label {label} for 5 logits"):
        ohem_loss(logits, labels, share=0.5)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="share"):
        ohem_loss(*random_pixels(), share=share)


# ---------------------------------------------------------------- batches

# a label is readable in the picture
COLOURS = np.array([[40, 40, 40], [220, 40, 40], [40, 220, 40], [40, 40, 220]], np.uint8)


def coded(count=3, *, height=60, width=60, seed=0):
    """Pictures whose colour says the label: rectangles of labels 1, 2, 3 in places that no symmetry
    maps on each other.
    """
    rng = np.random.default_rng(seed)
    samples, labels = [], []
    for i in range(count):
        plan = np.zeros((height, width), np.uint8)
        for label in (1, 2, 3):
            y, x = rng.integers(0, height - 20), rng.integers(0, width - 20)
            plan[y : y + 18, x : x + 14] = label
        samples.append(Sample(f"scene_{i}", COLOURS[plan], plan))
        labels.append(plan)
    return Samples(samples), labels


def batches_of(
    scenes, labels, *, batch=2, side=SIDE, label_side=None, scale=0.25, rotation=5.0, seed=0
):
    augment = Augment(side=side, label_side=label_side or side, scale=scale, rotation=rotation)
    return SegmentationBatches(
        scenes, labels, batch=batch, augment=augment, seed=seed, device="cpu"
    )


def decoded(images):
    """(B, 3, S, S) pictures -> the label whose colour is nearest, and whether that colour is met
    without mixing.
    """
    distance = (
        (images[:, None] * 255 - torch.from_numpy(COLOURS).float()[None, :, :, None, None])
        .abs()
        .amax(2)
    )
    nearest = distance.min(1)
    return nearest.indices, nearest.values < 3


def test_a_view_is_a_pure_function_of_seed_and_step():
    batches = batches_of(*coded(5))
    first = [batches(step) for step in range(4)]
    for step in (3, 0, 2, 1):
        for again in (batches(step), batches_of(*coded(5))(step)):
            assert again.ids == first[step].ids
            assert torch.equal(again.images, first[step].images) and torch.equal(
                again.labels, first[step].labels
            )
    assert not torch.equal(first[0].images, first[1].images)
    assert not torch.equal(batches_of(*coded(5), seed=1)(0).images, first[0].images)


def test_the_parts_of_a_batch_are_the_batch():
    batches = batches_of(*coded(7), batch=6)
    whole, parts = batches(5), [batches(5, part, 3) for part in range(3)]
    assert whole.ids == [image_id for part in parts for image_id in part.ids]
    for name in ("images", "labels"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


def test_a_batch_has_the_promised_shapes_types_and_ids():
    batch = batches_of(*coded(3), side=40)(0)
    assert batch.images.shape == (2, 3, 40, 40) and batch.images.dtype == torch.float32
    assert batch.labels.shape == (2, 40, 40) and batch.labels.dtype == torch.int64
    assert 0 <= batch.images.min() <= batch.images.max() <= 1
    # no image twice, unless it must be
    assert len(set(batch.ids)) == 2 <= len(batches_of(*coded(1))(0).ids)


def test_batches_and_logits_decode_images_and_no_labels(model):
    scenes, labels = coded(3)
    ids = batches_of(scenes, labels)(0).ids
    assert scenes.asked == {("image", scenes.index_of(image_id)): 1 for image_id in ids}
    scenes.asked.clear()
    assert len(list(predict_logits(model, scenes, side=48, batch=2, device="cpu"))) == 3
    assert scenes.asked == {("image", i): 1 for i in range(3)}


@pytest.mark.parametrize(("height", "width"), [(60, 60), (48, 72), (90, 50)])
@pytest.mark.parametrize(
    "options", [{"scale": 0.0, "rotation": 0.0}, {}, {"scale": 0.4, "rotation": 40.0}]
)
def test_labels_follow_the_picture_wherever_it_is_moved(height, width, options):
    batches = batches_of(*coded(3, height=height, width=width), **options)
    compared = set()
    for step in range(12):
        batch = batches(step)
        read, pure = decoded(batch.images)
        inside = pure & (batch.labels != VOID)
        # a hair's breadth at an edge may round otherwise
        assert (read == batch.labels)[inside].float().mean() > 0.999
        assert inside.float().mean() > 0.25
        compared |= set(batch.labels[inside].tolist())
    assert compared == {0, 1, 2, 3}


def test_an_unmoved_square_view_is_the_picture_or_its_mirror_image():
    scenes, labels = coded(3, height=SIDE, width=SIDE)
    batches, ways = batches_of(scenes, labels, scale=0.0, rotation=0.0), set()
    assert batches.augment.repeats and not batches_of(scenes, labels).augment.repeats
    views = set()
    for step in range(12):
        batch = batches(step)
        for image, shown, name in zip(batch.images, batch.labels, batch.ids, strict=True):
            index = int(name[-1])
            mirrored = not np.array_equal(shown.numpy(), labels[index])
            turned = slice(None, None, -1 if mirrored else 1)
            np.testing.assert_array_equal(shown.numpy(), labels[index][:, turned])
            np.testing.assert_allclose(
                image.permute(1, 2, 0).numpy() * 255, scenes[index].image[:, turned], atol=0.1
            )
            ways.add((index, mirrored))
            views.add(image.numpy().tobytes())
    assert len(ways) == len(views) == 6  # exactly two ways: a frozen body may keep its maps


@pytest.mark.parametrize("options", [{"scale": 0.0, "rotation": 0.0}, {}])
def test_labels_may_be_shown_in_fewer_pixels_than_the_picture(options):
    fine, coarse = (batches_of(*coded(5), label_side=n, **options) for n in (SIDE, SIDE // 4))
    for step in range(6):
        one, other = fine(step), coarse(step)
        assert torch.equal(one.images, other.images) and other.labels.shape == (
            2,
            SIDE // 4,
            SIDE // 4,
        )
        # the four about each centre
        near = torch.stack([one.labels[:, y::4, x::4] for y in (1, 2) for x in (1, 2)])
        assert (near == other.labels).any(0).float().mean() > 0.99


@pytest.mark.parametrize(
    "wrong", [{"scale": 1.0}, {"scale": -0.1}, {"rotation": -1.0}, {"side": 0}, {"label_side": 0}]
)
def test_an_impossible_augmentation_is_refused_by_name(wrong):
    given = dict(side=SIDE, label_side=SIDE, scale=0.25, rotation=5.0, batch=8)
    assert Augment.of(given) == Augment(SIDE, SIDE, 0.25, 5.0)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Augment.of({**given, **wrong})


def test_what_is_not_mirrored_is_shown_in_one_way():
    augment = Augment(SIDE, SIDE, 0.0, 0.0, mirror=False)
    assert {augment.draw(np.random.default_rng(seed)) for seed in range(20)} == {View()}


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (80, 48), (40, 40), (96, 64)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_an_unmoved_view_is_the_bilinear_picture_and_the_label_nearest_to_each_centre(
    height, width, mirrored
):
    """Against grid_sample at the centres of the square's pixels, the picture in its middle."""
    (scene,), (labels,) = coded(1, height=height, width=width)
    image, drawn = show(scene.image, labels, View(mirrored=mirrored), side=SIDE, label_side=16)
    scale = torch.tensor([max(height, width) / width, max(height, width) / height])
    theta = torch.diag(scale * torch.tensor([-1.0 if mirrored else 1.0, 1.0]))
    theta = torch.cat([theta, torch.zeros(2, 1)], 1)[None]
    grids = (F.affine_grid(theta, (1, 1, n, n), align_corners=False) for n in (SIDE, 16))
    picture = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
    options = dict(align_corners=False, padding_mode="border")
    expected = F.grid_sample(picture, next(grids), mode="bilinear", **options)[0]
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)
    marked = torch.from_numpy(labels).float()[None, None] + 1
    options["padding_mode"] = "zeros"  # 0 is outside
    nearest = F.grid_sample(marked, next(grids), mode="nearest", **options)[0, 0].long()
    assert torch.equal(drawn, torch.where(nearest == 0, VOID, nearest - 1))


def test_a_moved_view_shows_what_its_numbers_say():
    """A disc right of the middle: a turn takes it down, a zoom outwards, a shift along."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    disc = (np.hypot(x - 44, y - 32) < 6).astype(np.uint8)  # 12 pixels right of the middle
    image = np.repeat((disc * 255)[..., None], 3, 2)
    places = {
        View(rotation=90.0): (32, 44),
        View(scale=1.5): (50, 32),
        View(scale=0.5, shift=(-0.25, 0.5)): (30, 48),
        View(mirrored=True, scale=1.25, shift=(-0.25, 0.0)): (25, 32),
    }
    for view, place in places.items():
        picture, labels = show(image, disc, view, side=SIDE, label_side=SIDE)
        for weights in ((labels == 1).float(), (picture.mean(0) > 0.8).float()):
            found = [(weights * torch.from_numpy(axis)).sum() / weights.sum() for axis in (x, y)]
            assert [value.item() for value in found] == pytest.approx(place, abs=0.5), view


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 64), (64, 48)])
def test_a_view_turns_without_distortion(height, width):
    """A disc in the middle of any picture stays that disc, however it is turned and mirrored."""

    def disc(rows, columns):
        y, x = np.mgrid[:rows, :columns] + 0.5
        return np.hypot(y - rows / 2, x - columns / 2) < 18

    scenes = Samples(Sample(str(i), np.zeros((height, width, 3), np.uint8)) for i in range(2))
    batches = batches_of(
        scenes, [disc(height, width).astype(np.uint8)] * 2, scale=0.0, rotation=45.0
    )
    shown = torch.cat([batches(step).labels for step in range(6)]).numpy() == 1
    expected = disc(SIDE, SIDE)
    assert min((one & expected).sum() / (one | expected).sum() for one in shown) > 0.95


def test_void_stays_void_and_outside_the_picture_is_void():
    scenes, labels = coded(2, height=30, width=60)
    batch = batches_of(scenes, labels, scale=0.0, rotation=0.0)(0)
    inside = batch.labels != VOID  # a 2:1 picture in a square: half of it, between two bands
    assert inside[:, 16:48].all() and not inside[:, :16].any() and not inside[:, 48:].any()
    all_void = [np.full((30, 60), 255, np.uint8)] * 2
    assert (batches_of(scenes, all_void)(0).labels == VOID).all()


def test_a_smaller_picture_is_surrounded_by_void_and_a_larger_one_fills_the_view():
    scenes, labels = coded(3, height=SIDE, width=SIDE)
    batches, sizes = batches_of(scenes, labels, scale=0.5, rotation=0.0), []
    for step in range(20):
        rng = np.random.default_rng([0, step])
        rng.choice(3, 2, replace=False)
        views = [batches.augment.draw(rng) for _ in range(2)]
        inside = (batches(step).labels != VOID).float().mean((1, 2)).tolist()
        assert inside == pytest.approx([min(1, view.scale) ** 2 for view in views], abs=0.04)
        sizes += [view.scale for view in views]
    assert min(sizes) < 0.6 and max(sizes) > 1.4


@pytest.mark.parametrize("largest", [0, 3, 254, 255, 300])
def test_every_label_comes_through_a_view_unchanged(largest):
    labels = [np.full((40, 40), largest, np.uint16)] * 2  # as pseudo_labels.label_map makes them
    shown = batches_of(
        Samples(Sample(str(i), np.zeros((40, 40, 3), np.uint8)) for i in range(2)), labels
    )(0).labels
    assert set(shown.unique().tolist()) <= {largest, VOID} and (shown == largest).any()


def test_a_batch_of_one_is_refused(model):
    with pytest.raises(ValueError, match="two images"):
        batches_of(*coded(3), batch=1)
    with pytest.raises(ValueError, match="two images"):
        copy.deepcopy(model).train()(torch.rand(1, 3, 32, 32))


def test_label_maps_that_are_not_one_an_image_are_refused():
    scenes, labels = coded(3)
    with pytest.raises(ValueError, match="2 label maps for 3 images"):
        batches_of(scenes, labels[:2])


# ---------------------------------------------------------------- the network


def test_logits_have_the_size_of_the_picture_even_where_it_is_no_whole_patch(model):
    with torch.no_grad():
        assert model(torch.rand(1, 3, 36, 50)).shape == (1, 4, 36, 50)
        assert model.features(torch.rand(1, 3, 36, 50)).shape == (1, 96, 5, 7)


@pytest.fixture(scope="module")
def by_heart(zoo_root):
    """A segmenter that learnt two zoo scenes by heart: (model, scenes, labels, history)."""
    scenes = Samples(open_dataset("zoo", root=zoo_root, split="train", count=2))
    # every scene a cluster of its own
    labels = [(s.semantic > 0).astype(np.uint8) * (1 + i) for i, s in enumerate(scenes)]
    net = tiny_segmenter(weights=ZOO_WEIGHTS, trainable=1).train()
    # 80 steps, because running statistics that start at a variance of 1 need as many to reach the
    # tokens' 0.005.
    images = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1).float() / 255 for s in scenes])
    batch = SegmentationBatch(images, torch.from_numpy(np.stack(labels)).long(), scenes.ids)
    given = recipe(steps=80, warmup=3, peak_lr=2e-3, weight_decay=0.0)
    loss, options = partial(batch_loss, share=0.5), dict(checkpoint=None, identity={}, log_every=1)
    history = fit(net, lambda step: batch, loss, given, **options)
    return net.eval(), scenes, labels, history


def test_the_loss_of_a_batch_learnt_by_heart_falls_far(by_heart):
    losses = [row["loss"] for row in by_heart[3]]
    assert np.mean(losses[-3:]) < 0.3 * np.mean(losses[:3])


def test_what_was_learnt_by_heart_is_labelled_right(by_heart):
    net, scenes, labels, _ = by_heart
    logits = predict_logits(net, scenes, side=128, batch=2, device="cpu")
    right = [
        label_map(one, image_hw=plan.shape) == plan
        for one, plan in zip(logits, labels, strict=True)
    ]
    assert np.mean(right) > 0.9
    foreground = [ok[plan > 0].mean() for ok, plan in zip(right, labels, strict=True)]
    assert min(foreground) > 0.75  # background alone would be right in most pixels too


def recipe(**changed):
    given = dict(optimizer="adamw", peak_lr=1e-3, lr_milestones=[], warmup=1, weight_decay=0.01)
    return Recipe(
        **{
            **given,
            "backbone_lr_scale": 0.1,
            "accumulation_steps": 1,
            "steps": 3,
            "seed": 0,
            **changed,
        }
    )


def test_a_segmenter_learns_resumes_and_leaves_frozen_weights_alone(tmp_path):
    def run():
        net, loss = tiny_segmenter(), partial(batch_loss, share=0.5)
        options = dict(checkpoint=tmp_path / "run", identity={"tiny": True})
        return net, fit(net, batches_of(*coded(3)), loss, recipe(), **options)

    (done, history), (again, same) = run(), run()
    fresh = tiny_segmenter()
    assert history == same and [row["step"] for row in history] == [3]
    assert all(
        torch.equal(a, b)
        for a, b in zip(done.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(done.body.parameters(), fresh.body.parameters(), strict=True)
    )
    assert not torch.equal(done.classifier.weight, fresh.classifier.weight)


def test_worker_processes_and_a_shared_cache_change_no_number(workers):
    found = []
    shared = FeatureCache(10**9)
    for cache in (FeatureCache(0), shared, shared):
        net = tiny_segmenter(cache=cache)
        batches = batches_of(*coded(3), scale=0.0, rotation=0.0)
        loss = partial(batch_loss, share=0.5)
        fit(net, batches, loss, recipe(), checkpoint=None, identity={})
        found.append(net.state_dict())
    for other in found[1:]:
        assert all(torch.equal(other[key], value) for key, value in found[0].items())
    assert 0 < len(shared.maps) <= 6  # three pictures, shown in two ways


# ---------------------------------------------------------------- the linear probe


def test_only_the_new_classifier_of_a_probe_learns(model):
    probe = reset_classifier(copy.deepcopy(model), outputs=11)
    assert {key for key, p in probe.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert not any(
        part.training for name, part in probe.named_modules() if not name.startswith("classifier")
    )
    before = copy.deepcopy(probe.state_dict())
    ohem_loss(
        probe(torch.rand(2, 3, 32, 32)), torch.randint(0, 11, (2, 32, 32)), share=1.0
    ).backward()
    torch.optim.SGD([p for p in probe.parameters() if p.requires_grad], lr=1.0).step()
    moved = {
        key for key, value in probe.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == {"classifier.weight", "classifier.bias"}


def test_a_probe_starts_small_and_is_another_for_another_seed(model):
    probe = reset_classifier(copy.deepcopy(model), outputs=50)
    assert probe.classifier.weight.shape == (50, 96, 1, 1)
    assert probe.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert probe.classifier.weight.mean().abs() < 5e-4 and not probe.classifier.bias.any()
    torch.manual_seed(1)
    assert not torch.equal(
        reset_classifier(copy.deepcopy(model), outputs=50).classifier.weight,
        probe.classifier.weight,
    )


def test_a_probe_is_a_matrix_product_of_the_features(model):
    probe, images = reset_classifier(copy.deepcopy(model), outputs=6), torch.rand(2, 3, 40, 48)
    torch.nn.init.normal_(probe.classifier.bias)
    with torch.no_grad():
        features = probe.features(images)
        coarse = torch.einsum(
            "oc,bchw->bohw", probe.classifier.weight[:, :, 0, 0], features
        ) + probe.classifier.bias.view(-1, 1, 1)
        expected = F.interpolate(coarse, size=(40, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(probe(images), expected, atol=1e-5, rtol=1e-4)
        # the features are the trained ones
        torch.testing.assert_close(features, model.features(images))


# ---------------------------------------------------------------- prediction


def test_predicted_logits_are_at_stride_8_whatever_the_pictures_size(model):
    scenes = Samples([*coded(2)[0], *coded(1, height=35, width=90)[0]])
    logits = list(predict_logits(model, scenes, side=48, batch=2, device="cpu"))
    assert [tuple(one.shape) for one in logits] == [(4, 6, 6)] * 3
    assert all(one.dtype == torch.float32 and not one.requires_grad for one in logits)
    alone = list(predict_logits(model, scenes, side=48, batch=1, device="cpu"))
    torch.testing.assert_close(torch.stack(logits), torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_pictures_read_ahead_give_the_same_logits(model, request):
    scenes = Samples([*coded(4)[0], *coded(1, height=35, width=90)[0]])
    expected = torch.stack(list(predict_logits(model, scenes, side=48, batch=2, device="cpu")))
    request.getfixturevalue("workers")
    assert torch.equal(
        torch.stack(list(predict_logits(model, scenes, side=48, batch=2, device="cpu"))), expected
    )


def test_predicted_logits_are_the_networks_own_at_the_side_asked_for(model):
    scenes, _ = coded(1, height=48, width=48)
    (ours,) = predict_logits(model, scenes, side=48, batch=1, device="cpu")
    image = torch.from_numpy(scenes[0].image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        full = F.interpolate(ours[None], size=(48, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(full, model(image), atol=1e-4, rtol=1e-4)


def test_probabilities_sum_to_one_and_the_map_is_the_most_probable():
    logits = 3 * torch.randn(5, 4, 6)
    shares, labels = probabilities(logits, image_hw=(33, 47)), label_map(logits, image_hw=(33, 47))
    assert shares.shape == (5, 33, 47) and shares.dtype == torch.float32 and (shares >= 0).all()
    torch.testing.assert_close(shares.sum(0), torch.ones(33, 47))
    assert labels.shape == (33, 47) and labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, shares.numpy().argmax(0))


@pytest.mark.parametrize(
    ("outputs", "dtype"), [(255, np.uint8), (256, np.uint16), (301, np.uint16)]
)
def test_a_map_of_many_outputs_does_not_wrap(outputs, dtype):
    logits = torch.zeros(outputs, 2, 3)
    logits[-1] = 5.0
    labels = label_map(logits, image_hw=(8, 9))
    assert labels.dtype == dtype and (labels == outputs - 1).all()


@pytest.mark.parametrize("outputs", [1, 2, 3, 7, 9, 25, 61])
@pytest.mark.parametrize("image_hw", [(128, 128), (375, 500), (40, 30), (1, 400)])
@pytest.mark.parametrize("band", [1, 200_000])
def test_a_map_made_of_a_few_outputs_at_a_time_is_that_of_all_at_once(
    outputs, image_hw, band, monkeypatch
):
    logits = torch.randn(outputs, 24, 20)
    logits[:, :5] = logits[:, :5].round()  # ties
    whole = F.interpolate(logits[None], size=image_hw, mode="bilinear", align_corners=False)[0]
    if sum(image_hw) > 128:  # there alone a picture may be too large for one band
        monkeypatch.setattr(segmenter, "BAND", band)
    labels = label_map(logits, image_hw=image_hw)
    np.testing.assert_array_equal(labels, whole.argmax(0).numpy())


def test_300_clusters_go_from_pseudo_map_to_score_without_a_wrap(tmp_path):
    """Mask -> 16-bit PNG -> batch -> loss -> logits of 301 outputs -> map -> PNG -> counts."""
    k, cluster, hw = 300, 280, (40, 60)
    left, right = np.zeros((2, *hw), bool)
    left[:, :20], right[:, 40:] = True, True
    masks = np.stack([left, right])
    made = pseudo_labels.label_map(masks, [cluster, 254], [0.9, 0.8], threshold=0.5, overlap="skip")
    write_label_map(tmp_path / "pseudo.png", made)
    stored = read_label_map(tmp_path / "pseudo.png")
    assert stored.dtype == np.uint16 and set(np.unique(stored)) == {0, 255, 281}
    stored[0, 0] = 65535  # void

    images = Samples([Sample(str(i), np.zeros((*hw, 3), np.uint8)) for i in range(2)])
    batch = batches_of(images, [stored] * 2, scale=0.0, rotation=0.0)(0)
    assert set(batch.labels.unique().tolist()) == {VOID, 0, 255, 281}  # 255 is no void here

    known = batch.labels.clamp(0)
    perfect = 20.0 * F.one_hot(known, k + 1).permute(0, 3, 1, 2)
    assert ohem_loss(perfect, batch.labels, share=1.0).item() < 1e-3
    assert ohem_loss(perfect.flip(1), batch.labels, share=1.0).item() > 10

    exact = 20.0 * F.one_hot(torch.from_numpy(made.astype(np.int64)), k + 1).permute(2, 0, 1)
    labels = label_map(exact, image_hw=hw)
    np.testing.assert_array_equal(labels, made)
    write_label_map(tmp_path / "predicted.png", labels)
    counts = metrics.confusion(
        read_label_map(tmp_path / "predicted.png"), stored, num_preds=k + 1, num_targets=k + 1
    )
    assert counts.sum() == stored.size - 1 and counts.trace() == counts.sum()
    assert counts[281, 281] == left.sum() - 1 and counts[255, 255] == right.sum()


def test_logits_and_refined_maps_kept_in_parts_are_the_same(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "SIZE", 2)
    rng = np.random.default_rng(0)
    scenes = Samples(
        Sample(str(i), rng.integers(0, 255, (24 + 8 * i, 32, 3), dtype=np.uint8)) for i in range(5)
    )
    see = dict(side=48, batch=2, device="cpu")
    expected = list(predict_logits(model, scenes, **see))
    killed = predict_logits(model, scenes, **see, shards=tmp_path / "logits")
    torch.testing.assert_close(next(killed), expected[0], rtol=0, atol=0)
    found = list(predict_logits(model, scenes, **see, shards=tmp_path / "logits"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert "1 of 3 parts were kept before: logits" in capsys.readouterr().out

    if crf.available():
        settings = crf.CrfSettings(2, 1.0, 3.0, 9.0, 13.0, 4.0)
        rows = [row.numpy() for row in expected]
        whole = list(refined_maps(rows, scenes, settings, workers=1))
        kept = dict(workers=1, shards=tmp_path / "maps")
        next(refined_maps(rows, scenes, settings, **kept))
        for logits in (rows, iter(rows)):  # any iterable: what is there is passed over
            for a, b in zip(refined_maps(logits, scenes, settings, **kept), whole, strict=True):
                np.testing.assert_array_equal(a, b)
            (tmp_path / "maps" / "0000002-0000004.npz").unlink(missing_ok=True)


def test_probabilities_of_one_size_are_the_plain_softmax():
    logits = torch.randn(5, 4, 6)
    torch.testing.assert_close(
        probabilities(logits, image_hw=(4, 6)), logits.exp() / logits.exp().sum(0)
    )


# ---------------------------------------------------------------- files


def architecture(outputs=4):
    return {
        "architecture": {
            "network": "deeplab_v3",
            "backbone": "vit",
            "outputs": outputs,
            "side": SIDE,
        }
    }


def test_a_stored_segmenter_predicts_the_same(by_heart, tmp_path):
    net, scenes, _, _ = by_heart
    # training laid it out channels last, and sums differ so
    net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    save_weights(tmp_path / "segmenter", net.state_dict(), header=architecture())
    loaded = load_segmenter(tmp_path / "segmenter", device="cpu")
    assert not loaded.training
    ours, theirs = (
        torch.stack(list(predict_logits(m, scenes, side=SIDE, batch=3, device="cpu")))
        for m in (net, loaded)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, "expected a deeplab_v3"),
        (
            {
                "architecture": {
                    "network": "mask_rcnn",
                    "backbone": "vit",
                    "num_clusters": 3,
                    "shorter_side": 64,
                }
            },
            "expected a deeplab_v3",
        ),
        ({"architecture": {"network": "deeplab_v3", "backbone": "vit"}}, "outputs"),
        (architecture(outputs=5), "does not fit"),
    ],
)
def test_a_file_that_is_no_such_segmenter_is_refused(model, tmp_path, header, message):
    save_weights(tmp_path / "other", model.state_dict(), header=header)
    with pytest.raises(WeightsError, match=message):
        load_segmenter(tmp_path / "other", device="cpu")


def test_missing_and_truncated_segmenters_are_refused(model, tmp_path):
    with pytest.raises(WeightsError, match="no weights at"):
        load_segmenter(tmp_path / "segmenter", device="cpu")
    save_weights(tmp_path / "segmenter", model.state_dict(), header=architecture())
    (tmp_path / "segmenter").write_bytes((tmp_path / "segmenter").read_bytes()[:-5])
    with pytest.raises(WeightsError, match="not a whole"):
        load_segmenter(tmp_path / "segmenter", device="cpu")


# ---------------------------------------------------------------- rounds


@pytest.mark.skipif(not crf.available(), reason='pip install -e ".[crf]"')
@pytest.mark.parametrize("workers", [1, 2])
def test_refined_maps_are_the_crf_of_each_picture(workers):
    rng = np.random.default_rng(0)
    shapes = [(24 + 8 * i, 32) for i in range(3)]
    scenes = Samples(
        Sample(str(i), rng.integers(0, 255, (*hw, 3), dtype=np.uint8), np.zeros(hw, np.uint8))
        for i, hw in enumerate(shapes)
    )
    logits = rng.normal(0, 2, (3, 4, 3, 4)).astype(np.float16)
    settings = crf.CrfSettings(
        steps=3,
        gaussian_sxy=1.0,
        gaussian_compat=3.0,
        bilateral_sxy=9.0,
        bilateral_srgb=13.0,
        bilateral_compat=4.0,
    )
    found = list(refined_maps(iter(logits), scenes, settings, workers=workers))
    assert {what for what, _ in scenes.asked} == {"image"}  # no label is decoded
    for one, scene, labels in zip(logits.astype(np.float32), scenes, found, strict=True):
        soft = probabilities(torch.from_numpy(one), image_hw=scene.image.shape[:2]).numpy()
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, crf.dense_crf(scene.image, soft, settings).argmax(0))
