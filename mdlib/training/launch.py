"""One training in several processes, one a GPU: each takes its part of every batch, and their
gradients are added.

    history = launch(segmenter.train, model, batches, processes=gpus, steps=..., checkpoint=...)

The processes are started as torchrun starts them (torch.distributed.launcher), which works from a
notebook's cell too: each is a new Python that imports the function by its name and gets a copy of
its arguments. The first one alone writes log lines and checkpoints. When they have ended, the
function runs once more in the notebook: the last checkpoint says that nothing is left to do, so it
only takes the weights and the history from there. A training that was stopped goes on in the same
way.

A script that torchrun itself has started may call `launch` as well: then each of torchrun's
processes takes its part. `training.fit` asks this module who it is; in one process all of this does
nothing.
"""

import copy
import os
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


class ProcessError(Exception):
    """One of the processes failed; the message says which, and why."""


def launch(train: Callable, model: nn.Module, *args, processes: int, **options):
    """train(model, *args, **options), in so many processes; one: here. Returns what it returns.

    train: a function of a module that moves the model to its device and trains it through
    `training.fit` with a checkpoint. Raises ValueError where a training has no checkpoint or the
    machine not so many GPUs, ProcessError where a process fails.
    """
    if dist.is_torchelastic_launched():
        return _work(train, model, args, options)
    if processes > 1:
        gpus = torch.cuda.device_count()
        if gpus and processes > gpus:
            raise ValueError(f"{processes} processes need a GPU each, and there are {gpus}")
        if options.get("checkpoint") is None:
            raise ValueError("several processes hand their result over in a checkpoint: name one")
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            run_id="maskdistill", max_restarts=0, local_addr="localhost",
        )  # fmt: skip
        try:
            elastic_launch(config, _work_on_copy)(train, model.cpu(), args, options)
        except ChildFailedError as error:
            number, failure = error.get_first_failure()
            said = (
                failure.message["message"] if isinstance(failure.message, dict) else failure.message
            )
            raise ProcessError(f"process {number} of {processes} failed: {said}") from None
    return train(model, *args, **options)


def _work(train: Callable, model: nn.Module, args: tuple, options: dict):
    """What each process does."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # "cuda" means this one from here on
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
    """Until all the processes are here."""
    if size() > 1:
        dist.barrier()


def share(batch: int, part: int, parts: int) -> slice:
    """Where one of `parts` equal parts of a batch lies.

    Raises ValueError where they would not be equal.
    """
    if batch % parts:
        raise ValueError(
            f"a batch of {batch} has no {parts} equal parts: `batch` must be a multiple of accumulate * gpus"
        )
    return slice(part * batch // parts, (part + 1) * batch // parts)


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over the processes, in place.

    A parameter that had no part in a loss has a gradient of zero.
    """
    if size() > 1:
        for parameter in (parameters := list(parameters)):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        _add([parameter.grad for parameter in parameters])


def add_numbers(numbers: dict[str, float]) -> dict[str, float]:
    """The same names with the sums over the processes."""
    if size() == 1:
        return numbers
    total = torch.tensor(
        list(numbers.values()),
        dtype=torch.float64,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    _add([total])
    return dict(zip(numbers, total.tolist()))


def _add(tensors: list[Tensor]) -> None:
    """All in one message: many small ones would wait for each other."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view(tensor.shape))
