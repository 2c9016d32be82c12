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
def clips():
    """Twelve clips of one colour and noise each: (12, 2, 64, 64, 3) uint8."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (12, 1, 1, 1, 3))
    return (colours + rng.normal(0, 20, (12, 2, 64, 64, 3))).clip(0, 255).astype(np.uint8)


def batches(clips, **changed):
    return pretrain.ClipBatches(
        clips, **{"batch": 6, "seed": 0, "wide_every": 0, "device": "cpu"} | changed
    )


def test_a_few_steps_on_one_batch_lower_the_tracking_loss(clips):
    student, teacher = pretrain.build_models(seed=0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    crops = batches(clips)(0)
    losses = []
    for _ in range(12):
        loss = pretrain.tracking_loss(student, teacher, crops, temperature=0.2)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pretrain.update_ema(teacher, student, momentum=0.9)
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


def test_the_tracking_loss_teaches_the_student_alone(clips):
    student, teacher = pretrain.build_models(seed=0)
    pretrain.tracking_loss(student, teacher, batches(clips)(0), temperature=0.2).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


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


def test_momentum_goes_from_its_base_to_one():
    values = [pretrain.momentum_schedule(step, steps=100, base=0.99) for step in range(101)]
    assert values[0] == pytest.approx(0.99) and values[-1] == pytest.approx(1.0)
    assert values == sorted(values)


def test_encoder_of_is_a_copy_that_does_not_go_on_learning(pictures):
    learner, _ = pretrain.build_models(seed=0)
    encoder = pretrain.encoder_of(learner, device="cpu")
    before = encoder.tokens(pictures).cls
    with torch.no_grad():
        next(learner.vit.parameters()).add_(1)
    assert torch.equal(encoder.tokens(pictures).cls, before)
    assert learner.training and all(p.requires_grad for p in learner.parameters())


# ---------------------------------------------------------------- views


def test_batches_are_a_pure_function_of_the_step(clips):
    one, other = batches(clips), batches(clips)
    other(0)  # neither what came before nor the global random state matters
    torch.rand(3)
    for name, view in one(5).items():
        assert torch.equal(view, other(5)[name])
        assert not torch.equal(view, one(6)[name])
        assert not torch.equal(view, batches(clips, seed=1)(5)[name])


def test_every_wide_step_shows_larger_crops_of_fewer_clips(clips):
    stream = batches(clips, wide_every=3)
    shapes = [(tuple(b["large"].shape), tuple(b["small"].shape)) for b in map(stream, range(3))]
    usual, wide = ((2, 6, 3, 64, 64), (2, 6, 3, 32, 32)), ((2, 2, 3, 112, 112), (2, 2, 3, 48, 48))
    assert shapes == [usual, usual, wide]


def test_the_two_frames_of_a_row_are_of_one_clip():
    clips = np.zeros((2, 2, 32, 32, 3), np.uint8)
    clips[1] = 200  # a black and a bright clip: no colour jitter can confuse them
    bright = batches(clips, batch=2)(0)["large"].mean((2, 3, 4)) > 0  # (2 frames, 2 clips)
    assert torch.equal(bright[0], bright[1])
    assert bright[0].sum() == 1


def test_too_few_clips_for_a_batch_are_refused(clips):
    with pytest.raises(ValueError, match="clips"):
        batches(clips, batch=13)


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
