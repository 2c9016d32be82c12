"""One training in several processes, one a GPU.

Each process takes its part of every batch, and their gradients are averaged.

    history = launch(fit, model, batches, loss, recipe, processes=2, checkpoint=..., identity=...)

The processes are started as torchrun starts them (torch.distributed.launcher), which works from a
notebook's cell too: each is a new Python that imports the function by its name and gets a copy of
its arguments. The first process alone writes log lines and checkpoints. When all have ended, the
function runs once more in the notebook: the last checkpoint says that nothing is left to do, so it
only takes the weights and the history from there. A training that was stopped goes on in the same
way.

A script that torchrun itself has started may call `launch` as well: then each of torchrun's
processes takes its part. `loop.fit` asks this module which process it is in; in a single process
none of these functions changes anything.
"""

import copy
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel


class ProcessError(Exception):
    """One of the processes failed; the message says which, and why."""


def launch(train: Callable, model: nn.Module, *args: Any, processes: int, **options: Any) -> Any:
    """Call train(model, *args, **options) in several processes; with one: here.

    Args:
        train: `loop.fit`, or a function that calls it with a checkpoint. For several processes it
            and its arguments must be picklable: no lambda, and nothing that a notebook defines.
        model: on any device; each process moves its copy to its own GPU.
        args: further arguments of `train`.
        processes: number of processes, one a GPU; without a GPU they run on the CPU.
        options: keywords of `train`, `checkpoint` among them.

    Returns:
        What `train` returns; the model is trained in place.

    Raises:
        ValueError: for several processes without a checkpoint, or more of them than GPUs.
        ProcessError: where a process fails.
    """
    if dist.is_torchelastic_launched():
        return _work(train, model, args, options)
    if processes > 1:
        gpus = torch.cuda.device_count()
        if gpus and processes > gpus:
            raise ValueError(f"{processes} processes need a GPU each, and there are {gpus}")
        if options.get("checkpoint") is None:
            raise ValueError("several processes hand their result over in a checkpoint: name one")
        device = next(model.parameters()).device
        _run_elastic(processes, train, model.cpu(), args, options)
        model.to(device)
    return train(model, *args, **options)


def _run_elastic(
    processes: int, train: Callable, model: nn.Module, args: tuple, options: dict
) -> None:
    """Start the processes, and wait until they have ended."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="maskdistill",
        max_restarts=0,
        local_addr="localhost",
    )
    try:
        elastic_launch(config, _work_on_copy)(train, model, args, options)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        message = failure.message
        reason = message["message"] if isinstance(message, dict) else message
        raise ProcessError(f"process {number} of {processes} failed: {reason}") from None


def _work(train: Callable, model: nn.Module, args: tuple, options: dict) -> Any:
    """What each process does."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # "cuda" means this one from here on
        model.to("cuda")
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        return train(model, *args, **options)
    finally:
        dist.destroy_process_group()


def _work_on_copy(train: Callable, model: nn.Module, args: tuple, options: dict) -> None:
    """As `_work`; weights on the CPU arrive in memory that all the processes share."""
    _work(train, copy.deepcopy(model), args, options)


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Wait until all the processes are here."""
    if size() > 1:
        dist.barrier()


def share(batch: int, part: int, parts: int) -> slice:
    """Find one of the equal parts of a batch.

    Args:
        batch: items in the whole batch.
        part: which part, from 0.
        parts: number of parts.

    Returns:
        The slice of the part.

    Raises:
        ValueError: where the parts would not be equal.
    """
    if batch % parts:
        raise ValueError(
            f"a batch of {batch} has no {parts} equal parts: "
            "`batch` must be a multiple of accumulate * gpus"
        )
    return slice(part * batch // parts, (part + 1) * batch // parts)


def parallel(model: nn.Module) -> nn.Module:
    """Wrap a model so that gradients are averaged over the processes; in one process: itself."""
    if size() == 1:
        return model
    # Mask R-CNN has parameters that take no part in the loss of a batch without a region. BatchNorm
    # keeps its statistics in each process; those of the first one are saved.
    return DistributedDataParallel(model, find_unused_parameters=True, broadcast_buffers=False)


def gradients_exchanged(network: nn.Module, *, now: bool) -> AbstractContextManager:
    """Decide whether gradients are averaged after the loss of a part of a batch.

    Args:
        network: as `parallel` gives it.
        now: whether they are averaged over the processes; else they are only added up.

    Returns:
        A context for the forward and the backward pass of that part.
    """
    if now or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


def mean(numbers: dict[str, float]) -> dict[str, float]:
    """Average numbers over the processes, under the same names."""
    if size() == 1:
        return numbers
    device = "cuda" if torch.cuda.is_available() else "cpu"
    total = torch.tensor(list(numbers.values()), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(numbers, (total / size()).tolist(), strict=True))
