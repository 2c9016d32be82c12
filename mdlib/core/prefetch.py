"""What is needed next, made in threads while a GPU works on what came before: pictures to decode,
batches to prepare.

Pillow and NumPy let other threads run while they work, so a few threads fill several cores. On a
CPU the network needs those cores itself: there nothing is made before it is asked for, and no
thread is started.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

THREADS = {"cuda": 4}  # by the kind of device that takes what is made


@contextmanager
def made_ahead(
    make: Callable, items: Iterable, *, most: int, device: str | torch.device
) -> Iterator[Iterator]:
    """make(item) of each item, in the order of the items: `with made_ahead(...) as things: for
    thing in things: ...`

    most: how many are made, or in the making, at a time. device: where they are going. make: called
    in several threads at once, so it hangs on its item alone, and never on the global random state.
    What it raises is raised where its item would have come. When the block is left, early or not,
    its threads have ended.
    """
    kind = torch.device(device).type
    if kind not in THREADS:
        yield map(make, items)
        return
    gpu = torch.cuda.current_device() if kind == "cuda" else None
    pool = ThreadPoolExecutor(THREADS[kind], initializer=_begin, initargs=(gpu,))
    try:
        yield _in_order(pool, make, items, most)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ThreadPoolExecutor, make: Callable, items: Iterable, most: int) -> Iterator:
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(make, item))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _begin(gpu: int | None) -> None:
    """What holds for a thread alone, as a new one begins."""
    torch.set_num_threads(1)  # a core each
    if gpu is not None:
        torch.cuda.set_device(gpu)  # "cuda" means the same GPU as where the threads were asked for
