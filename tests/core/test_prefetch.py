"""Made ahead in threads: the same things in the same order, never too many, and no thread that
outlives its block.
"""

import threading
import time

import pytest
import torch

from mdlib.core import prefetch
from mdlib.core.prefetch import made_ahead


class Maker:
    """i -> i squared, later ones sooner; knows what it was asked for, and in which threads."""

    def __init__(self, *, fails_at=None):
        self.asked, self.threads, self.fails_at = [], set(), fails_at

    def __call__(self, i):
        self.asked.append(i)
        self.threads.add(threading.current_thread())
        time.sleep(0.004 * (i % 3 == 0))
        if i == self.fails_at:
            raise ValueError(f"no {i}")
        return i * i

    def ended(self):
        return not any(thread.is_alive() for thread in self.threads - {threading.current_thread()})


def test_things_come_in_order_and_no_more_are_made_than_allowed(threaded):
    maker, taken = Maker(), []
    with made_ahead(maker, range(20), most=5, device="cpu") as things:
        for thing in things:
            taken.append(thing)
            assert len(maker.asked) <= len(taken) + 4  # of five at a time, one is taken
    assert taken == [i * i for i in range(20)] and sorted(maker.asked) == list(range(20))
    assert threading.current_thread() not in maker.threads and maker.ended()


def test_several_are_made_at_the_same_time(threaded):
    met = threading.Barrier(3)  # passes when three threads wait at it, and breaks if they never do
    with made_ahead(lambda i: met.wait(timeout=20), range(6), most=6, device="cpu") as things:
        assert len(list(things)) == 6


def test_the_next_are_made_while_the_first_is_used(threaded):
    maker = Maker()
    with made_ahead(maker, range(9), most=4, device="cpu") as things:
        next(things)
        for _ in range(500):
            if len(maker.asked) == 4:
                return
            time.sleep(0.01)
    pytest.fail(f"only {maker.asked} were made")


def test_an_error_comes_in_the_place_of_its_thing(threaded):
    maker, taken = Maker(fails_at=4), []
    with (
        pytest.raises(ValueError, match="no 4"),
        made_ahead(maker, range(20), most=3, device="cpu") as things,
    ):
        for thing in things:
            taken.append(thing)
    assert taken == [0, 1, 4, 9] and maker.ended()


def test_who_stops_early_leaves_no_thread(threaded):
    maker = Maker()

    def some():
        with made_ahead(maker, range(1000), most=3, device="cpu") as things:
            yield from things

    first = next(some())  # the generator is dropped, and closed, here
    assert first == 0 and maker.ended() and len(maker.asked) <= 4
    with pytest.raises(KeyError), made_ahead(maker, range(1000), most=3, device="cpu") as things:
        raise KeyError(next(things))
    assert maker.ended()


def test_on_a_cpu_each_is_made_here_when_it_is_asked_for():
    maker = Maker()
    with made_ahead(maker, range(5), most=3, device="cpu") as things:
        for i, thing in enumerate(things):
            assert thing == i * i and maker.asked == list(range(i + 1))
    assert maker.threads == {threading.current_thread()}


def test_every_thread_works_for_the_gpu_of_who_asked(monkeypatch):
    told = {}
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda gpu: told.setdefault(threading.current_thread(), gpu)
    )
    maker = Maker()
    with made_ahead(maker, range(20), most=8, device=torch.device("cuda")) as things:
        assert len(list(things)) == 20
    assert maker.threads <= told.keys() and set(told.values()) == {3}
    assert 1 < len(told) <= prefetch.THREADS["cuda"]
