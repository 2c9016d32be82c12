"""The pretraining objective: closed forms, a pure stream of batches, and a loss that can be learnt."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdlib.models.encoder import IMAGENET_MEAN, IMAGENET_STD
from mdlib.training import pretrain

# ---------------------------------------------------------------- loss


def test_info_nce_equals_its_definition():
    queries, keys = (F.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    terms = []
    for i in range(5):
        similar = torch.stack([queries[i] @ keys[j] / 0.2 for j in range(5)])
        terms.append(-(similar[i].exp() / similar.exp().sum()).log())
    torch.testing.assert_close(
        pretrain.info_nce(queries, keys, temperature=0.2), torch.stack(terms).mean()
    )


def test_info_nce_at_its_limits():
    unit = torch.eye(4)
    assert pretrain.info_nce(unit, unit, temperature=0.01).item() == pytest.approx(0, abs=1e-6)
    same = torch.ones(4, 4) / 2  # all clips look alike: one in four is right
    assert pretrain.info_nce(same, same, temperature=0.2).item() == pytest.approx(np.log(4))


def test_info_nce_does_not_see_the_order_of_the_clips():
    queries, keys = torch.randn(6, 8), torch.randn(6, 8)
    order = torch.randperm(6)
    before = pretrain.info_nce(queries, keys, temperature=0.5)
    torch.testing.assert_close(
        pretrain.info_nce(queries[order], keys[order], temperature=0.5), before
    )


@pytest.fixture(scope="module")
def layers():
    """Twelve clips, a disc of one colour and some noise: (12, 2, 64, 64, 4) uint8 premultiplied."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64] - 32
    alpha = np.broadcast_to((np.hypot(y, x) < 20)[..., None], (12, 2, 64, 64, 1))
    colours = rng.integers(0, 256, (12, 1, 1, 1, 3)) + rng.normal(0, 20, (12, 2, 64, 64, 3))
    return np.concatenate([colours.clip(0, 255) * alpha, 255 * alpha], -1).astype(np.uint8)


DARK = np.zeros((3, 64, 64, 3), np.uint8)


def batches(layers, places=DARK, **changed):
    options = {"batch": 6, "seed": 0, "wide_every": 0, "device": "cpu"} | changed
    return pretrain.ClipBatches(layers, places, **options)


def test_a_few_steps_on_one_batch_lower_the_tracking_loss(layers):
    student, teacher = pretrain.build_models(seed=0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    crops = batches(layers)(0)
    losses = []
    for _ in range(12):
        loss = pretrain.tracking_loss(student, teacher, crops, temperature=0.2)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pretrain.update_ema(teacher, student, momentum=0.9)
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


def test_the_tracking_loss_teaches_the_student_alone(layers):
    student, teacher = pretrain.build_models(seed=0)
    crops = batches(layers)(0)
    pretrain.tracking_loss(student, teacher, crops, temperature=0.2).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_the_tracking_loss_looks_for_the_other_frame(layers):
    """By the definition: queries of either size against the teacher's large crop of the other frame."""
    student, teacher = pretrain.build_models(seed=0)
    crops = batches(layers)(0)
    with torch.no_grad():
        loss = pretrain.tracking_loss(student, teacher, crops, temperature=0.2)
        keys = teacher(crops["large"].flatten(0, 1)).unflatten(0, (2, 6))
        expected = []
        for size in ("large", "small"):
            queries = student(crops[size].flatten(0, 1)).unflatten(0, (2, 6))
            expected += [
                pretrain.info_nce(queries[i], keys[1 - i], temperature=0.2) for i in (0, 1)
            ]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


# ---------------------------------------------------------------- student and teacher


def test_learners_start_equal_and_repeat_with_their_seed():
    student, teacher = pretrain.build_models(seed=3)
    again, _ = pretrain.build_models(seed=3)
    other, _ = pretrain.build_models(seed=4)
    first = next(student.parameters())
    assert torch.equal(first, next(teacher.parameters())) and torch.equal(
        first, next(again.parameters())
    )
    assert not torch.equal(first, next(other.parameters()))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_the_second_part_goes_on_with_class_attention_and_forgets_the_keys():
    first, _ = pretrain.build_models(seed=0)
    assert not first.vit.joins_last
    given = first.vit.state_dict()
    student, teacher = pretrain.build_models(seed=0, begun=first.vit)
    keys = "blocks.5.attn.qkv.weight"
    for learner in (student, teacher):
        assert learner.vit.joins_last
        state = learner.vit.state_dict()
        assert not state[keys][144:288].any() and torch.equal(state[keys][:144], given[keys][:144])
        assert all(torch.equal(state[name], given[name]) for name in given if name != keys)
    assert given[keys][144:288].any()  # a copy was changed, not the first part's


def test_a_learner_gives_unit_vectors():
    student, _ = pretrain.build_models(seed=0)
    torch.testing.assert_close(student(torch.randn(3, 3, 32, 32)).norm(dim=1), torch.ones(3))


def test_follow_is_the_running_mean():
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    start, end = teacher.weight.detach().clone(), student.weight.detach().clone()
    for _ in range(5):
        pretrain.update_ema(teacher, student, momentum=0.8)
    torch.testing.assert_close(teacher.weight, 0.8**5 * start + (1 - 0.8**5) * end)
    assert torch.equal(student.weight, end)


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, "teacher"), (0.0, "student")])
def test_follow_at_its_limits(momentum, expected):
    networks = {"teacher": nn.Linear(3, 2), "student": nn.Linear(3, 2)}
    before = copy.deepcopy(networks)
    pretrain.update_ema(networks["teacher"], networks["student"], momentum=momentum)
    torch.testing.assert_close(networks["teacher"].weight, before[expected].weight)


def test_encoder_of_is_a_copy_that_does_not_go_on_learning(pictures):
    learner, _ = pretrain.build_models(seed=0)
    encoder = pretrain.encoder_of(learner, device="cpu")
    before = encoder.tokens(pictures).cls
    with torch.no_grad():
        next(learner.vit.parameters()).add_(1)
    assert torch.equal(encoder.tokens(pictures).cls, before)
    assert learner.training and all(p.requires_grad for p in learner.parameters())


# ---------------------------------------------------------------- views


def test_batches_are_a_pure_function_of_the_step(layers):
    one, other = batches(layers), batches(layers)
    other(0)  # neither what came before nor the global random state matters
    torch.rand(3)
    for size in ("large", "small"):
        assert torch.equal(one(5)[size], other(5)[size])
        assert not torch.equal(one(5)[size], one(6)[size])
        assert not torch.equal(one(5)[size], batches(layers, seed=1)(5)[size])


def test_every_wide_step_shows_larger_crops_of_fewer_clips(layers):
    stream = batches(layers, wide_every=3)
    shapes = [[tuple(crops.shape) for crops in stream(step).values()] for step in range(3)]
    narrow = [(2, 6, 3, 64, 64), (2, 6, 3, 32, 32)]
    assert shapes == [narrow, narrow, [(2, 2, 3, 112, 112), (2, 2, 3, 48, 48)]]


def test_the_two_frames_of_a_row_are_of_one_clip():
    layers = np.zeros((2, 2, 64, 64, 4), np.uint8)
    layers[..., 3] = 255  # nothing of the place is seen
    layers[1, ..., :3] = 200  # a black and a bright clip: no colour jitter can confuse them
    crops = batches(layers, batch=2)(0)
    large, small = (each.mean((2, 3, 4)) > 0 for each in crops.values())  # (2 frames, 2 clips)
    assert torch.equal(large[0], large[1]) and torch.equal(small, large)
    assert large[0].sum() == 1


def test_a_frame_is_its_layer_on_a_place(layers):
    stream, generator = batches(layers), torch.Generator().manual_seed(0)
    frames = stream.frames(count=12, generator=generator)
    alpha = torch.from_numpy(layers[0, 0, ..., 3] > 0)
    assert frames[:, :, ~alpha].mean() < 0.02  # a dark place, and the noise of the camera
    seen = frames[:, :, alpha].mean(-1)  # (24, 3)
    true = torch.from_numpy(layers[:, :, alpha.numpy(), :3]).float().mean(2) / 255  # (12, 2, 3)
    order = [int((true[:, 0] - colour).abs().sum(1).argmin()) for colour in seen]
    assert order[:12] == order[12:] and sorted(order[:12]) == list(range(12))


def test_each_frame_has_a_place_of_its_own():
    empty = np.zeros((50, 2, 16, 16, 4), np.uint8)
    places = np.arange(0, 250, 5, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2)
    stream = batches(empty, places.repeat(3, 3), batch=50)
    seen = stream.frames(count=50, generator=torch.Generator().manual_seed(1)).mean((1, 2, 3))
    drawn = (seen * 255 / 5).round()
    assert len(drawn.unique()) > 30 and (drawn[:50] != drawn[50:]).float().mean() > 0.9


def test_too_few_clips_for_a_batch_are_refused(layers):
    with pytest.raises(ValueError, match="clips"):
        batches(layers, batch=13)
    with pytest.raises(ValueError, match="too small"):
        batches(layers, batch=2, wide_every=4)


def test_crops_are_pictures_once_the_normalisation_is_undone():
    frames = torch.rand(7, 3, 40, 40)
    crops = pretrain.crop_views(
        frames, size=24, scale=(0.2, 1.0), generator=torch.Generator().manual_seed(0)
    )
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = crops * std + mean
    assert crops.shape == (7, 3, 24, 24)
    assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5


def test_colour_jitter_keeps_grey_grey():
    grey = torch.rand(20, 1, 8, 8).expand(-1, 3, -1, -1)
    jittered = pretrain.jitter_colour(grey, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        jittered, jittered.mean(1, keepdim=True).expand_as(jittered), atol=1e-5, rtol=0
    )
