"""What the processes of test_distributed.py run: a small network on batches that are functions of
the step.

A file of its own, because each process imports it: nothing here needs torchvision or timm.
"""

import copy
from pathlib import Path

import torch
from torch import nn

from mdlib.core import files as store
from mdlib.training import launch as distributed
from mdlib.training import loop as training

BATCH, STEPS = 8, 5


def numbers(step, part=0, parts=1):
    return torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(step))[
        distributed.share(BATCH, part, parts)
    ]


def train(model, *, checkpoint=None, steps=STEPS, **changed):
    """`steps` of STEPS steps; batches are functions of the step, and without dropout the loss is a
    mean over images.
    """
    model.train()
    return training.fit(
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
    if distributed.size() > 1:
        store.write_json(
            Path(folder) / f"{distributed.rank()}.json", {"broken": history, "whole": whole}
        )
        store.save_weights(
            Path(folder) / f"{distributed.rank()}.safetensors", model.state_dict(), header={}
        )
    return history


def network(*, dropout=0.0):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))


def fail(model, *, checkpoint):
    raise training.TrainingError(f"{checkpoint} belongs to a run with other settings")
