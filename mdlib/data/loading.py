"""Items prepared in the order in which they are needed, by worker processes where a GPU takes them.

On a CPU the network needs the cores itself: there nothing is prepared before it is asked for, and
no process is started.

Memory: workers are forked, so what the parent holds (label maps, pixels of a data set that is in
memory) is shared with them and not copied. What a data set caches later, it caches in the worker
that read it: at most its own budget (`Remembered`) in each of the WORKERS, until the loader ends.
Each worker holds one item, or one batch of them, that waits to be taken.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

# processes, by the kind of device that takes the items; others: none
WORKERS = {"cuda": min(8, os.cpu_count() or 1)}


class _Items(Dataset):
    """make(item) as a map-style data set."""

    def __init__(self, make: Callable, items: Sequence) -> None:
        self.make, self.items = make, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.make(self.items[index])


def load(
    make: Callable, items: Sequence, *, device: str | torch.device, batch: int | None = None
) -> DataLoader:
    """make(item) for each item, in the order of the items.

    Args:
        make: a function of its item alone, which uses neither the GPU nor global random state. What
            it raises is raised where its item would have come.
        items: what it is called with.
        device: the device that takes what is made.
        batch: yield lists of so many; None: one by one.

    Returns:
        An iterable; each `iter` begins anew.
    """
    workers = WORKERS.get(torch.device(device).type, 0)
    return DataLoader(
        _Items(make, items),
        batch_size=batch,
        collate_fn=_as_it_is,  # a batch is a list already
        num_workers=workers,
        prefetch_factor=1 if workers else None,
        generator=torch.Generator(),  # else the loader would draw from the global random state
    )


def _as_it_is(item: Any) -> Any:
    """The item, not collated into tensors."""
    return item
