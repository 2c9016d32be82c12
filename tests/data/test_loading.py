"""Items from worker processes: the same ones in the same order, never too many, and no process that
outlives its loader.
"""

import os
import time

import numpy as np
import psutil
import pytest
import torch

from mdlib.data import loading
from mdlib.data.loading import load


def square(i):
    """i squared and the process that made it; later items are made sooner."""
    time.sleep(0.004 * (i % 3 == 0))
    if i == 13:
        raise ValueError("no 13")
    return i * i, os.getpid()


def test_items_come_in_order_from_several_processes(workers):
    items = list(load(square, range(12), device="cpu"))
    assert [value for value, _ in items] == [i * i for i in range(12)]
    makers = {process for _, process in items}
    assert len(makers) == 2 and os.getpid() not in makers


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_are_lists_of_what_was_made_and_the_last_is_what_is_left(batch, workers):
    batches = list(load(square, range(10), device="cpu", batch=batch))
    assert [len(each) for each in batches] == [batch] * (10 // batch) + [10 % batch] * (batch > 1)
    assert [value for each in batches for value, _ in each] == [i * i for i in range(10)]


def test_an_error_comes_in_the_place_of_its_item(workers):
    items = iter(load(square, range(20), device="cpu"))
    assert [next(items)[0] for _ in range(13)] == [i * i for i in range(13)]
    with pytest.raises(ValueError, match="no 13"):
        next(items)


def test_no_more_are_made_than_one_a_worker_waits(workers, tmp_path):
    made = iter(load(mark, [tmp_path / str(i) for i in range(20)], device="cpu"))
    for taken in range(1, 6):
        next(made)
        time.sleep(0.1)
        assert len(list(tmp_path.iterdir())) <= taken + 2


def mark(path):
    path.touch()


def test_who_stops_early_leaves_no_process(workers):
    before = set(psutil.Process().children())
    items = iter(load(square, range(1000), device="cpu"))
    next(items)
    started = set(psutil.Process().children()) - before
    assert len(started) == 2
    del items
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


def test_on_a_cpu_each_is_made_here_when_it_is_asked_for():
    asked = []
    for i, item in enumerate(load(lambda i: asked.append(i) or i, range(5), device="cpu")):
        assert item == i and asked == list(range(i + 1))


@pytest.mark.parametrize("number", [0, 2])
def test_a_loader_leaves_the_global_random_state_alone(number, monkeypatch):
    monkeypatch.setitem(loading.WORKERS, "cpu", number)
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    list(load(square, range(3), device="cpu"))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
