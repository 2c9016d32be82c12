"""The one training loop: float32 or bfloat16, a schedule, checkpoints, and a log line.

It stops where loss or gradient is not finite, and it resumes at the step where it was stopped. Two
rules make it resumable without saving any random state. A batch is a function of the step
(`batches(step)`), and the global seed is set anew at each step from (seed, step). So a run that
was killed and resumed does the same arithmetic as one that was not; on a CPU the weights are
bit-equal. The first rule also lets worker processes prepare the next batches for a GPU.

A batch may be taken in equal parts whose gradients are averaged: one after the other where a card
is too small for the whole batch (`accumulation_steps`), and one in each process under `launch`.
Each part has a seed of its own, so that the two ways are the same arithmetic. What is computed over
a batch is computed over each part: BatchNorm's statistics, OHEM's hardest pixels.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdlib.core.settings import Settings
from mdlib.core.weights import WeightsError, fit_weights, read_weights, save_weights
from mdlib.data.loading import load
from mdlib.training import launch

CHECKPOINT_EVERY = 100  # steps

Loss = Callable[[nn.Module, Any], tuple[Tensor, dict[str, float]]]


class TrainingError(Exception):
    """Training cannot go on: the loss is not finite, or the checkpoint is of another run."""


@dataclass(frozen=True)
class Recipe(Settings):
    """How a network learns.

    Attributes:
        steps: updates, 1 or more.
        optimizer: "adamw", or "sgd" with momentum 0.9 (the reference's).
        peak_lr: learning rate after the warm-up, above 0.
        lr_milestones: steps from which the rate is a tenth; none: half a cosine down to 0.
        warmup: steps of a linear rise to `peak_lr`; 0 or more.
        weight_decay: of weights; 0 or more.
        backbone_lr_scale: share of the rate for the body, which starts from trained weights; 0 or
            more.
        accumulation_steps: parts in which a process takes its share of a batch, in turn; 1 or more.
        seed: of dropout and everything else that is drawn in a step; 0 or more.
        schedule: steps of the cosine, where it is longer than the training; None: `steps`.
        clip_norm: largest norm of the gradient, above 0; math.inf: any.
        bf16: whether the loss is computed in bfloat16 on a GPU (slower on most CPUs).
    """

    steps: int
    optimizer: str
    peak_lr: float
    lr_milestones: tuple[int, ...]
    warmup: int
    weight_decay: float
    backbone_lr_scale: float
    accumulation_steps: int
    seed: int
    schedule: int | None = None
    clip_norm: float = 5.0
    bf16: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of its range."""
        object.__setattr__(self, "lr_milestones", tuple(self.lr_milestones))  # JSON has lists
        self.check("steps", self.steps >= 1, "1 or more")
        self.check("optimizer", self.optimizer in ("adamw", "sgd"), '"adamw" or "sgd"')
        self.check("peak_lr", 0 < self.peak_lr < math.inf, "above 0")
        self.check(
            "lr_milestones", all(drop >= 0 for drop in self.lr_milestones), "steps from 0 on"
        )
        self.check("warmup", self.warmup >= 0, "0 or more")
        self.check("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more")
        self.check("backbone_lr_scale", 0 <= self.backbone_lr_scale < math.inf, "0 or more")
        self.check("accumulation_steps", self.accumulation_steps >= 1, "1 or more")
        self.check("seed", self.seed >= 0, "0 or more")
        self.check("schedule", (self.schedule or self.steps) >= self.steps, "`steps` or more")
        self.check("clip_norm", self.clip_norm > 0, "above 0")

    def learning_rate(self, step: int) -> float:
        """Compute the rate of a step, counted from 0.

        Linear to `peak_lr` over `warmup` steps, then half a cosine down to 0; or, with
        `lr_milestones`, a tenth of the rate before from each of these steps on.
        """
        if step < self.warmup:
            return self.peak_lr * (step + 1) / self.warmup
        if self.lr_milestones:
            return self.peak_lr * 0.1 ** sum(step >= drop for drop in self.lr_milestones)
        left = max(1, (self.schedule or self.steps) - self.warmup)
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / left))


def fit(
    model: nn.Module,
    batches: Callable[..., Any],
    loss: Loss,
    recipe: Recipe,
    *,
    checkpoint: Path | None,
    identity: Mapping[str, Any],
    after_step: Callable[[int], dict[str, float] | None] | None = None,
    log_every: int = 20,
) -> list[dict]:
    """Train a model in place, on its device and in the mode (train or eval) that it is in.

    Args:
        model: the network, with all that is saved and resumed. Its weights are laid out channels
            last, which makes convolutions faster on a GPU and on a CPU.
        batches: batches(step) gives the batch of a step; batches(step, part, parts) a part of it.
            Where it has a method `on_cpu` of the same arguments, and a batch `to(device)`, worker
            processes prepare batches for a GPU.
        loss: loss(model, batch) gives the scalar loss, and parts of it for the log.
        recipe: optimizer, schedule and seed.
        checkpoint: a file that is written every CHECKPOINT_EVERY steps and at the end, and resumed
            where it is there; None: no checkpoint. The one before it is kept beside it, and taken
            where the last one is broken.
        identity: the settings that a run is known by, as JSON; a checkpoint with others is refused.
        after_step: after_step(step) runs after each update (a momentum encoder, an evaluation);
            what it returns is added to the log.
        log_every: steps between two rows.

    Returns:
        The history: rows {"step", "loss", "lr", "seconds", ...}; losses are those of the row's own
        step.

    Raises:
        TrainingError: naming the step, where loss or gradient is not finite, or the GPU's memory
            is too small; the last checkpoint stays. Also for a checkpoint of another run.
    """
    model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, recipe)
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = learning[0].device
    journal = _resume(checkpoint, model, optimizer, identity, steps=recipe.steps)
    network = launch.parallel(model)
    parts = _parts(batches, journal.step, recipe, device)
    for step in range(journal.step, recipe.steps):
        optimizer.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        for part in range(recipe.accumulation_steps):
            begin_step(optimizer, recipe, step=step, part=part)
            batch = next(parts)
            last = part == recipe.accumulation_steps - 1
            with _memory_error_explained(step), launch.gradients_exchanged(network, now=last):
                with torch.autocast(device.type, torch.bfloat16, enabled=_bf16(recipe, device)):
                    value, named = loss(network, batch)
                _check_loss(value, named, step, batch)
                (value / recipe.accumulation_steps).backward()
            for name, number in {"loss": value.item(), **named}.items():
                means[name] = means.get(name, 0.0) + number / recipe.accumulation_steps
        norm = nn.utils.clip_grad_norm_(learning, recipe.clip_norm)
        _check_gradient(norm, value, named, step)
        optimizer.step()
        journal.note((after_step(step) if after_step else None) or {})
        journal.step = done = step + 1
        if done % log_every == 0 or done == recipe.steps:
            journal.write(launch.mean(means), lr=recipe.learning_rate(step), steps=recipe.steps)
        if done % CHECKPOINT_EVERY == 0 or done == recipe.steps:
            _save(checkpoint, model, optimizer, identity, journal)
    return journal.history


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make the optimizer of the parameters that learn, in groups with their "lr_scale".

    The body (`body` or `backbone.body`) learns at `recipe.backbone_lr_scale` of the rate. AdamW
    decays neither biases and norms nor the positions of a ViT; SGD decays all, as the reference
    does.

    Args:
        model: its parameters that need a gradient.
        recipe: optimizer, decay and scale.

    Returns:
        AdamW or SGD with momentum 0.9, at the rate 0 until `begin_step` sets it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = recipe.backbone_lr_scale if "body." in name else 1.0
            decayed = parameter.ndim > 1 and "pos_embed" not in name
            decay = recipe.weight_decay if decayed or recipe.optimizer == "sgd" else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    parts = [
        {"params": members, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), members in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parts, lr=0.0)
    return torch.optim.SGD(parts, lr=0.0, momentum=0.9)


def begin_step(
    optimizer: torch.optim.Optimizer, recipe: Recipe, *, step: int, part: int = 0
) -> None:
    """Set a step's learning rate, and the global seed of this process's `part` of its batch."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate(step) * group["lr_scale"]
    part += launch.rank() * recipe.accumulation_steps
    torch.manual_seed(recipe.seed * 1_000_003 + step + part * 1_000_000_000_039)


# ---------------------------------------------------------------- what a step needs


def _parts(batches: Callable, start: int, recipe: Recipe, device: torch.device) -> Iterator:
    """The parts of all batches that this process takes, from step `start` on, on the device."""
    first = launch.rank() * recipe.accumulation_steps
    parts = launch.size() * recipe.accumulation_steps
    places = [
        (step,) if parts == 1 else (step, first + part, parts)
        for step in range(start, recipe.steps)
        for part in range(recipe.accumulation_steps)
    ]
    if hasattr(batches, "on_cpu"):
        ready = load(partial(_call, batches.on_cpu), places, device=device)
        return (batch.to(device) for batch in ready)
    return (batches(*place) for place in places)


def _call(function: Callable, arguments: tuple) -> Any:
    """function(*arguments), for worker processes."""
    return function(*arguments)


def has_bf16_units(device: torch.device) -> bool:
    """Whether a device computes faster in bfloat16 than in float32: GPUs, some CPUs."""
    if device.type == "cuda":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether the loss is computed in bfloat16."""
    return recipe.bf16 and device.type == "cuda"


def _check_loss(value: Tensor, named: Mapping[str, float], step: int, batch: Any) -> None:
    """Raise TrainingError for a loss that is not finite, with the ids of the batch."""
    if not torch.isfinite(value):
        ids = getattr(batch, "ids", "n/a")
        raise TrainingError(f"loss is {value.item()} at step {step} ({named}); batch ids: {ids}")


def _check_gradient(norm: Tensor, value: Tensor, named: Mapping[str, float], step: int) -> None:
    """Raise TrainingError for a gradient that is not finite."""
    if not torch.isfinite(norm):
        where = f"at step {step}, where the loss is {value.item():.4g} ({named})"
        raise TrainingError(f"the gradient is not finite {where}")


@contextmanager
def _memory_error_explained(step: int) -> Iterator[None]:
    """Raise TrainingError where the GPU's memory is too small, with the ways out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        way_out = "raise `accumulation_steps`, or lower `batch` or the pictures' side"
        raise TrainingError(
            f"the GPU ran out of memory at step {step}: {way_out} ({error})"
        ) from None


# ---------------------------------------------------------------- log and checkpoint


class _Journal:
    """What a training has done so far: its step, its seconds and the rows of its history."""

    def __init__(self, *, step: int = 0, seconds: float = 0.0, history: list[dict] | None = None):
        self.step, self.history = step, history or []
        self.began, self.before, self.first = time.monotonic(), seconds, step
        self.notes: dict[str, float] = {}

    def seconds(self) -> float:
        """Seconds of training, those before a resume among them."""
        return self.before + time.monotonic() - self.began

    def note(self, notes: Mapping[str, float]) -> None:
        """Keep numbers for the next row."""
        self.notes |= notes

    def write(self, means: dict[str, float], *, lr: float, steps: int) -> None:
        """A row of the history; the first process prints it."""
        numbers = {"loss": means["loss"], "lr": lr, "seconds": round(self.seconds(), 1)}
        row = {"step": self.step, **numbers} | {n: v for n, v in means.items() if n != "loss"}
        row |= self.notes
        self.history.append(row)
        self.notes = {}
        left = (time.monotonic() - self.began) / (self.step - self.first) * (steps - self.step)
        shown = (f"{k} {v:.4g}" for k, v in row.items() if k not in ("step", "seconds"))
        if launch.rank() == 0:
            line = f"step {self.step}/{steps}  {'  '.join(shown)}"
            print(f"{line}  {self.seconds():.0f} s, {left:.0f} s left")


def _save(
    path: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    journal: _Journal,
) -> None:
    """The checkpoint, written by the first process."""
    if path is None or launch.rank() != 0:
        return
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer/{index}/{slot}": torch.as_tensor(value)
            for slot, value in slots.items()
            if value is not None
        }
    header = {
        "identity": dict(identity),
        "step": journal.step,
        "seconds": journal.seconds(),
        "history": journal.history,
    }
    # Cloned, because momentum copies and tied weights may share memory, which safetensors refuses.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    last, before = _kept(path)
    if last.is_file():
        last.replace(before)
    save_weights(last, tensors, header=header | {"digest": _digest(tensors, header)})


def _kept(path: Path) -> tuple[Path, Path]:
    """The files of the last checkpoint and of the one before it."""
    return Path(path), Path(path).with_name(f"{Path(path).name}.before")


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Digest of a checkpoint: a torn file may have its full length, and zeros in it."""
    sha = hashlib.sha256(json.dumps([sorted(tensors), dict(header)], sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        sha.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _resume(
    path: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    *,
    steps: int,
) -> _Journal:
    """The journal of the last whole checkpoint, whose weights are taken; else a new one."""
    launch.wait()  # a checkpoint that the first process is still writing is one for all of them
    found = None
    for file in _kept(path) if path is not None else ():
        if file.is_file() and found is None:
            try:
                found = _read(file, model, optimizer, identity)
            except WeightsError as error:
                launch.wait()  # the others are to find it, too
                if launch.rank() == 0:
                    print(f"left out: {error}")
                    file.unlink()  # or it would take the place of the one before
    if found is not None and launch.rank() == 0:
        print(f"resumed at step {found.step} of {steps}")
    return found or _Journal()


def _read(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> _Journal:
    """The journal of a checkpoint, whose weights are taken; WeightsError where it is broken."""
    tensors, header = read_weights(path)
    lacking = {"identity", "step", "seconds", "history", "digest"} - header.keys()
    if lacking:
        raise WeightsError(f"{path} is no checkpoint: it lacks {', '.join(sorted(lacking))}")
    if header.pop("digest") != _digest(tensors, header):
        raise WeightsError(f"{path} is damaged: it does not hold what was written")
    if header["identity"] != json.loads(json.dumps(dict(identity))):
        raise TrainingError(f"{path} belongs to a run with other settings; remove it to start anew")
    state = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
    fit_weights(model, state, source=path)
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, slot = key.split("/")
            slots.setdefault(int(index), {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return _Journal(**{name: header[name] for name in ("step", "seconds", "history")})
