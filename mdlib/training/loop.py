"""The one training loop: fp32 or bf16, a schedule, resume to the same step, NaN stop, a log line.

Two habits make it resumable without saving any random state. A batch is a function of the step
(`batch_of(step)`), and the global seed is set anew at each step from (seed, step). So a run that
was killed and resumed does the same arithmetic as one that was not; on a CPU the weights are
bit-equal. The first habit also lets a GPU find its next batches ready: threads make them ahead of
their steps.

A batch may be taken in equal parts whose gradients are added: one after the other where a card is
too small for the whole batch (`accumulate`), and one in each process under `distributed.launch`.
Each part has a seed of its own, so that the two ways are the same arithmetic. What looks at the
whole batch sees a part: BatchNorm's statistics, OHEM's hardest pixels.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mdlib.core.prefetch import made_ahead
from mdlib.core.weights import fit_weights, read_weights, save_weights
from mdlib.training import launch


class TrainingError(Exception):
    """Training cannot go on: the loss is not finite, or the checkpoint is of another run."""


def learning_rate(
    step: int, *, steps: int, warmup: int, peak: float, drops: Sequence[int] = ()
) -> float:
    """Linear to `peak` over `warmup` steps, then half a cosine down to 0; or, with `drops`, a tenth
    of it from each of these steps on.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if drops:
        return peak * 0.1 ** sum(step >= drop for drop in drops)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def recipe(parameters: Mapping[str, object]) -> dict[str, object]:
    """Those of the parameters of 03 or 05 that say how a network learns, for another one: keywords
    of `train_network`.
    """
    return {
        name: parameters[name]
        for name in (
            "steps",
            "peak_lr",
            "lr_drops",
            "warmup",
            "optimizer",
            "weight_decay",
            "body_scale",
            "accumulate",
        )
    }


def make_optimizer(
    model: nn.Module, *, kind: str, weight_decay: float, body_scale: float
) -> torch.optim.Optimizer:
    """An optimizer of what learns in a detector or segmenter: "adamw", or "sgd" with momentum 0.9
    (the reference's).

    body_scale: the body (`body` or `backbone.body`) starts from trained weights and learns at this
    share of the rate. Biases and norms are not decayed by AdamW.
    """
    if kind not in ("adamw", "sgd"):
        raise ValueError(f'optimizer must be "adamw" or "sgd", got {kind!r}')
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = body_scale if "body." in name else 1.0
            decay = weight_decay if parameter.ndim > 1 or kind == "sgd" else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    parts = [
        {"params": members, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), members in groups.items()
    ]
    return (
        torch.optim.AdamW(parts, lr=0.0)
        if kind == "adamw"
        else torch.optim.SGD(parts, lr=0.0, momentum=0.9)
    )


def train_network(
    name: str, model: nn.Module, loss_of: Callable[[object, int], tuple[Tensor, dict[str, float]]], batches, *,
    steps: int, peak_lr: float, lr_drops: Sequence[int] = (), warmup: int, optimizer: str, weight_decay: float, body_scale: float, seed: int, settings: dict,
    checkpoint: Path | None, accumulate: int = 1,
) -> list[dict]:  # fmt: skip
    """Train a detector or a segmenter in place, on the device of its batches; returns the history.

    See `learning_rate`, `make_optimizer` and `fit`; bf16 on a GPU.
    """
    model.to(batches.device).train()
    return fit(
        {name: model},
        make_optimizer(model, kind=optimizer, weight_decay=weight_decay, body_scale=body_scale),
        loss_of,
        batches,
        steps=steps,
        lr_of=lambda step: learning_rate(
            step, steps=steps, warmup=warmup, peak=peak_lr, drops=lr_drops
        ),
        seed=seed,
        settings=settings,
        checkpoint=checkpoint,
        clip_norm=5.0,
        bf16=batches.device == "cuda",
        accumulate=accumulate,
    )


def fit(
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[object, int], tuple[Tensor, dict[str, float]]],
    batch_of: Callable[..., object],
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
    accumulate: int = 1,
    log: Callable[[str], None] = print,
) -> list[dict]:
    """Train in place; returns the history, one row {step, loss, lr, seconds, ...} every log_every
    steps.

    modules: all that is saved and resumed, by name; the optimizer holds the parameters that learn.
    loss_of(batch, step) -> (scalar loss, parts to log). after_step(step) runs after each update (a
    momentum encoder, an evaluation); what it returns is added to the log. settings: what makes this
    run this run; a checkpoint with other settings is refused. bf16: autocast the loss (for a GPU;
    slower on most CPUs). accumulate: in how many parts this process takes its share of a batch; a
    batch in parts is asked for by batch_of(step, part, parts). For a GPU that happens ahead, in
    threads: batch_of draws from a generator of its own, seeded by the step, and never from the
    global one. Weights are laid out channels last: convolutions are faster so, on a GPU and on a
    CPU. Raises TrainingError naming the step when the loss is not finite; the last checkpoint
    stays.
    """
    history: list[dict] = []
    start, before = 0, 0.0
    first = launch.rank() == 0  # the process that says and writes what all of them do
    parts = accumulate * launch.size()
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device_type = learning[0].device.type
    for module in modules.values():
        module.to(memory_format=torch.channels_last)
    # a checkpoint that the first process is still writing is one for all of them
    launch.wait()
    if checkpoint is not None and Path(checkpoint).is_file():
        start, before, history = _resume(Path(checkpoint), modules, optimizer, settings)
        if first:
            log(f"resumed at step {start} of {steps}")
    began = time.monotonic()
    extra: dict[str, float] = {}
    # the parts that this process takes
    own = range(launch.rank() * accumulate, (launch.rank() + 1) * accumulate)
    wanted = [
        (step,) if parts == 1 else (step, part, parts)
        for step in range(start, steps)
        for part in own
    ]
    with made_ahead(lambda place: batch_of(*place), wanted, most=4, device=device_type) as batches:
        for step in range(start, steps):
            for group in optimizer.param_groups:
                group["lr"] = lr_of(step) * group.get("lr_scale", 1.0)
            optimizer.zero_grad(set_to_none=True)
            means: dict[str, float] = {}
            for part in own:
                torch.manual_seed(seed * 1_000_003 + step + part * 1_000_000_000_039)
                batch = next(batches)
                try:
                    with torch.autocast(device_type, torch.bfloat16, enabled=bf16):
                        loss, named = loss_of(batch, step)
                    if not torch.isfinite(loss):
                        raise TrainingError(
                            f"loss is {loss.item()} at step {step} ({named}); batch ids: {getattr(batch, 'ids', 'n/a')}"
                        )
                    (loss / parts).backward()
                except torch.OutOfMemoryError as error:
                    way_out = "raise `accumulate`, or lower `batch` or the pictures' side"
                    raise TrainingError(
                        f"the GPU ran out of memory at step {step}: {way_out} ({error})"
                    ) from None
                for name, value in {"loss": loss.item(), **named}.items():
                    means[name] = means.get(name, 0.0) + value / parts
            launch.add_gradients(learning)
            norm = nn.utils.clip_grad_norm_(learning, clip_norm or math.inf)
            if not torch.isfinite(norm):
                raise TrainingError(
                    f"the gradient is not finite at step {step}, where the loss is {loss.item():.4g} ({named})"
                )
            optimizer.step()
            extra |= (after_step(step) if after_step else None) or {}
            done = step + 1
            if done % log_every == 0 or done == steps:
                seconds = before + time.monotonic() - began
                means = launch.add_numbers(means)
                row = {
                    "step": done,
                    "loss": means.pop("loss"),
                    "lr": lr_of(step),
                    "seconds": round(seconds, 1),
                    **means,
                    **extra,
                }
                history.append(row)
                left = (time.monotonic() - began) / (done - start) * (steps - done)
                numbers = "  ".join(
                    f"{k} {v:.4g}" for k, v in row.items() if k not in ("step", "seconds")
                )
                if first:
                    log(f"step {done}/{steps}  {numbers}  {seconds:.0f} s, {left:.0f} s left")
                extra = {}
            if first and checkpoint is not None and (done % checkpoint_every == 0 or done == steps):
                _save(
                    Path(checkpoint),
                    modules,
                    optimizer,
                    settings,
                    done,
                    before + time.monotonic() - began,
                    history,
                )
    return history


def _save(path, modules, optimizer, settings, step, seconds, history) -> None:
    tensors = {
        f"{name}/{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer/{index}/{slot}": torch.as_tensor(value)
            for slot, value in slots.items()
            if value is not None
        }
    header = {"settings": settings, "step": step, "seconds": seconds, "history": history}
    # Cloned, because momentum copies and tied weights may share memory, which safetensors refuses.
    save_weights(path, {name: tensor.clone() for name, tensor in tensors.items()}, header=header)


def _resume(path, modules, optimizer, settings) -> tuple[int, float, list[dict]]:
    tensors, header = read_weights(path)
    if header.get("settings") != json.loads(json.dumps(settings)):
        raise TrainingError(f"{path} belongs to a run with other settings; remove it to start anew")
    for name, module in modules.items():
        state = {
            key.removeprefix(f"{name}/"): value
            for key, value in tensors.items()
            if key.startswith(f"{name}/")
        }
        fit_weights(module, state, source=path)
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, slot = key.split("/")
            slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict(
        {"state": slots, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return header["step"], header["seconds"], header["history"]
