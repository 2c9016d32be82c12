"""A progress bar where someone watches, a plain line every few seconds where papermill does."""

import os
import time
from collections.abc import Iterable, Iterator

from tqdm.auto import tqdm


def track(items: Iterable, *, total: int, what: str, every: float = 10.0) -> Iterator:
    """Iterate over items, showing how far it is.

    Under the runner (MDLIB_BATCH is set) it prints plain lines.
    """
    if "MDLIB_BATCH" not in os.environ:
        yield from tqdm(items, total=total, desc=what)
        return
    began = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= every or done == total:
            print(
                f"{what}: {done}/{total}, {now - began:.0f} s, {(now - began) / done * (total - done):.0f} s left",
                flush=True,
            )
            last = now
