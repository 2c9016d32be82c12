"""Drops are chosen on dev and measured on val; a mask on a grid, patch by patch."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from mdlib.studies import compositions


def test_a_drop_is_chosen_on_dev_and_measured_on_val_scene_by_scene():
    dev = {"plain": np.array([0.5, 0.7]), "sharp": np.array([0.1, 0.2]), "soft": np.array([0.9])}
    # on val another composition is the best one, and another the worst
    val = {
        "plain": np.array([0.0, 0.1, 0.2]),
        "sharp": np.array([0.3, 0.9, 0.4]),
        "soft": np.array([0.6, 0.5, 0.7]),
    }
    drop = compositions.measure_drop(dev, val)
    assert (drop.best, drop.worst) == ("soft", "sharp")
    np.testing.assert_allclose(drop.values, [0.3, -0.4, 0.3])


def test_a_rule_that_does_not_care_has_no_drop():
    same = {name: np.full(4, 0.3) for name in ("plain", "sharp")}
    assert not compositions.measure_drop(same, same).values.any()


def grid_spec(mask, cells):
    """Overlaps of pixels and patches in exact fractions."""
    sizes = [Fraction(cell) / n for cell, n in zip(cells, mask.shape, strict=True)]
    found = np.zeros([int(np.ceil(cell)) for cell in cells], bool)
    for row, column in np.ndindex(*found.shape):
        inside = whole = Fraction(0)
        for y, x in product(range(mask.shape[0]), range(mask.shape[1])):
            area = Fraction(1)
            for cell, pixel, size in zip((row, column), (y, x), sizes, strict=True):
                overlap = min(Fraction(cell + 1), (pixel + 1) * size) - max(cell, pixel * size)
                area *= max(Fraction(0), overlap)
            whole += area
            inside += area * int(mask[y, x])
        found[row, column] = 2 * inside > whole
    return found


@pytest.mark.parametrize("cells", [(4.0, 4.0), (5.0, 3.0), (3.5, 2.25), (12.0, 16.0)])
def test_a_patch_has_what_most_of_its_area_has(cells, rng):
    for _ in range(3):
        mask = rng.random((8, 9)) < 0.5
        found = compositions.to_grid(mask, cells_hw=cells)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, grid_spec(mask, cells))


def test_a_grid_of_the_pixels_themselves_changes_nothing_and_one_half_is_not_most(rng):
    mask = rng.random((6, 7)) < 0.5
    np.testing.assert_array_equal(compositions.to_grid(mask, cells_hw=(6, 7)), mask)
    stripes = np.tile([True, False], (4, 3))
    assert not compositions.to_grid(stripes, cells_hw=(2, 3)).any()
