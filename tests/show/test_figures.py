"""Figures: which images are shown."""

import numpy as np
import pytest

from mdlib.show import figures


def test_cases_are_the_ends_and_the_middle_from_good_to_bad(rng):
    values = rng.permutation(21).astype(float)
    best, median, worst = (values[rows].tolist() for rows in figures.cases(values, 3).values())
    assert best == [20, 19, 18] and median == [11, 10, 9] and worst == [2, 1, 0]


def test_cases_leave_out_what_has_no_value_and_keep_the_order_of_ties():
    picked = figures.cases([np.nan, 0.5, 0.5, np.nan, 0.9, 0.5], 2, labels=("up", "same", "down"))
    assert picked == {"up": [4, 1], "same": [1, 2], "down": [2, 5]}


@pytest.mark.parametrize("count", [0, 1, 4])
def test_cases_of_fewer_images_than_asked_for(count):
    picked = figures.cases(np.arange(count), 6)
    assert set(map(tuple, picked.values())) == {tuple(range(count))[::-1]}
