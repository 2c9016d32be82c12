"""A progress bar where someone watches, a plain line every few seconds where papermill does."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def track(items: Iterable[T], *, total: int, what: str, every: float = 10.0) -> Iterator[T]:
    """Iterate over items, showing how far it is.

    Under the runner (MDLIB_BATCH is set) it prints plain lines.

    Args:
        items: what to iterate over.
        total: how many they are.
        what: the words before the bar, or before the numbers of a line.
        every: seconds between two lines; the last item has a line, too.
    """
    if "MDLIB_BATCH" not in os.environ:
        yield from tqdm(items, total=total, desc=what)
        return
    began = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= every or done == total:
            took = now - began
            left = took / done * (total - done)
            print(f"{what}: {done}/{total}, {took:.0f} s, {left:.0f} s left", flush=True)
            last = now
