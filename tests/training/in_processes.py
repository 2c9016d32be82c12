"""What the processes of test_launch.py run: a small network on batches that are functions of the
step.

A file of its own, because each process imports it: nothing here needs torchvision or timm.
"""

import copy
from pathlib import Path

import torch
from torch import nn

from mdlib.core.files import write_json
from mdlib.core.weights import save_weights
from mdlib.training import launch, loop

BATCH, STEPS = 8, 5


def recipe(**changed):
    """A constant rate, and a decay that weights feel."""
    given = dict(optimizer="adamw", peak_lr=0.03, lr_milestones=(99,), warmup=0, weight_decay=0.1)
    rest = dict(steps=STEPS, backbone_lr_scale=1.0, accumulation_steps=1, seed=0, clip_norm=1.0)
    return loop.Recipe(**{**given, **rest, **changed})


def numbers(step, part=0, parts=1):
    return torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(step))[
        launch.share(BATCH, part, parts)
    ]


def loss_of(model, batch):
    """A mean over images, without dropout."""
    loss = (model(batch) - 1).square().mean()
    return loss, {"twice": 2 * loss.item()}


def train(model, *, checkpoint=None, **changed):
    """`steps` of STEPS steps."""
    options = dict(checkpoint=checkpoint, identity={}, log_every=1)
    return loop.fit(model.train(), numbers, loss_of, recipe(**changed), **options)


def train_with_a_break(model, *, checkpoint, folder, **changed):
    """For `launch`: stopped after two steps and resumed, and once more without a break; both leave
    their histories.
    """
    again = copy.deepcopy(model)
    train(model, checkpoint=checkpoint, **changed, steps=2)
    history = train(model, checkpoint=checkpoint, **changed)
    whole = train(again, **changed)
    if launch.size() > 1:
        write_json(Path(folder) / f"{launch.rank()}.json", {"broken": history, "whole": whole})
        save_weights(Path(folder) / f"{launch.rank()}.safetensors", model.state_dict(), header={})
    return history


def network(*, dropout=0.0):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))


def fail(model, *, checkpoint):
    raise loop.TrainingError(f"{checkpoint} belongs to a run with other settings")
