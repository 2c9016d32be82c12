"""What the processes of test_distributed.py run: a small network on batches that are functions of
the step.

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


def numbers(step, part=0, parts=1):
    return torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(step))[
        launch.share(BATCH, part, parts)
    ]


def train(model, *, checkpoint=None, steps=STEPS, **changed):
    """`steps` of STEPS steps; batches are functions of the step, and without dropout the loss is a
    mean over images.
    """
    model.train()
    return loop.fit(
        {"model": model}, torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.1),
        lambda batch, step: ((loss := (model(batch) - 1).square().mean()), {"twice": 2 * loss.item()}), numbers,
        steps=steps, lr_of=lambda step: 0.03, seed=0, settings={}, checkpoint=checkpoint, log_every=1, clip_norm=1.0, **changed,
    )  # fmt: skip


def train_with_a_break(model, *, checkpoint, folder):
    """For `launch`: stopped after two steps and resumed, and once more without a break; both leave
    their histories.
    """
    again = copy.deepcopy(model)
    train(model, checkpoint=checkpoint, steps=2)
    history = train(model, checkpoint=checkpoint)
    whole = train(again)
    if launch.size() > 1:
        write_json(Path(folder) / f"{launch.rank()}.json", {"broken": history, "whole": whole})
        save_weights(Path(folder) / f"{launch.rank()}.safetensors", model.state_dict(), header={})
    return history


def network(*, dropout=0.0):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))


def fail(model, *, checkpoint):
    raise loop.TrainingError(f"{checkpoint} belongs to a run with other settings")
