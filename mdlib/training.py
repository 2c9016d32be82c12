"""The one training loop: fp32 or bf16, a schedule, resume to the same step, NaN stop, a log line.

Two habits make it resumable without saving any random state. A batch is a function of the step
(`batch_of(step)`), and the global seed is set anew at each step from (seed, step). So a run that was
killed and resumed does the same arithmetic as one that was not; on a CPU the weights are bit-equal.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mdlib import store


class TrainingError(Exception):
    """Training cannot go on: the loss is not finite, or the checkpoint is of another run."""


def cosine_schedule(step: int, *, steps: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """Learning rate at `step`: linear to `peak` over `warmup` steps, then half a cosine down to `final`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, *, kind: str, weight_decay: float, body_scale: float) -> torch.optim.Optimizer:
    """An optimizer of what learns in a detector or segmenter: "adamw", or "sgd" with momentum 0.9 (the reference's).

    body_scale: the body (`body` or `backbone.body`) starts from trained weights and learns at this share of the rate.
    Biases and norms are not decayed by AdamW.
    """
    if kind not in ("adamw", "sgd"):
        raise ValueError(f'optimizer must be "adamw" or "sgd", got {kind!r}')
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = body_scale if "body." in name else 1.0
            decay = weight_decay if parameter.ndim > 1 or kind == "sgd" else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    parts = [{"params": members, "lr_scale": scale, "weight_decay": decay} for (scale, decay), members in groups.items()]
    return torch.optim.AdamW(parts, lr=0.0) if kind == "adamw" else torch.optim.SGD(parts, lr=0.0, momentum=0.9)


def fit(
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[object, int], tuple[Tensor, dict[str, float]]],
    batch_of: Callable[[int], object],
    *,
    steps: int,
    lr_of: Callable[[int], float],
    seed: int,
    settings: dict,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    log_every: int = 20,
    clip_norm: float | None = None,
    after_step: Callable[[int], dict[str, float] | None] | None = None,
    bf16: bool = False,
    log: Callable[[str], None] = print,
) -> list[dict]:
    """Train in place; returns the history, one row {step, loss, lr, seconds, ...} every log_every steps.

    modules: all that is saved and resumed, by name; the optimizer holds the parameters that learn.
    loss_of(batch, step) -> (scalar loss, parts to log). after_step(step) runs after each update (a momentum
    encoder, an evaluation); what it returns is added to the log. settings: what makes this run this run;
    a checkpoint with other settings is refused. bf16: autocast the loss (for a GPU; slower on most CPUs).
    Raises TrainingError naming the step when the loss is not finite; the last checkpoint stays.
    """
    history: list[dict] = []
    start, before = 0, 0.0
    if checkpoint is not None and Path(checkpoint).is_file():
        start, before, history = _resume(Path(checkpoint), modules, optimizer, settings)
        log(f"resumed at step {start} of {steps}")
    began = time.monotonic()
    extra: dict[str, float] = {}
    device_type = next(iter(optimizer.param_groups[0]["params"])).device.type
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step) * group.get("lr_scale", 1.0)
        batch = batch_of(step)
        try:
            with torch.autocast(device_type, torch.bfloat16, enabled=bf16):
                loss, parts = loss_of(batch, step)
        except torch.OutOfMemoryError as error:
            raise TrainingError(f"the GPU ran out of memory at step {step}: lower `batch`, or the pictures' side ({error})") from None
        if not torch.isfinite(loss):
            raise TrainingError(f"loss is {loss.item()} at step {step} ({parts}); batch ids: {getattr(batch, 'ids', 'n/a')}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip_norm or math.inf)
        if not torch.isfinite(norm):
            raise TrainingError(f"the gradient is not finite at step {step}, where the loss is {loss.item():.4g} ({parts})")
        optimizer.step()
        extra |= (after_step(step) if after_step else None) or {}
        done = step + 1
        if done % log_every == 0 or done == steps:
            seconds = before + time.monotonic() - began
            row = {"step": done, "loss": loss.item(), "lr": lr_of(step), "seconds": round(seconds, 1), **parts, **extra}
            history.append(row)
            left = (time.monotonic() - began) / (done - start) * (steps - done)
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k not in ("step", "seconds"))
            log(f"step {done}/{steps}  {numbers}  {seconds:.0f} s, {left:.0f} s left")
            extra = {}
        if checkpoint is not None and (done % checkpoint_every == 0 or done == steps):
            _save(Path(checkpoint), modules, optimizer, settings, done, before + time.monotonic() - began, history)
    return history


def _save(path, modules, optimizer, settings, step, seconds, history) -> None:
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items() if value is not None}
    header = {"settings": settings, "step": step, "seconds": seconds, "history": history}
    # Cloned, because momentum copies and tied weights may share memory, which safetensors refuses.
    store.save_weights(path, {name: tensor.clone() for name, tensor in tensors.items()}, header=header)


def _resume(path, modules, optimizer, settings) -> tuple[int, float, list[dict]]:
    tensors, header = store.read_weights(path)
    if header.get("settings") != json.loads(json.dumps(settings)):
        raise TrainingError(f"{path} belongs to a run with other settings; remove it to start anew")
    for name, module in modules.items():
        state = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        store.fit_weights(module, state, source=path)
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, slot = key.split("/")
            slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return header["step"], header["seconds"], header["history"]
