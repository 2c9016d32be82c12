"""Colours are matplotlib's to the bit, without matplotlib."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from mdlib.core import colours

NAMES = ("BLUE", "ORANGE", "GREEN", "RED", "PURPLE", "SKY", "YELLOW", "WHITE")


def test_no_drawing_library_is_loaded_with_the_module():
    program = (
        "import sys, mdlib.core.colours; print(*{'matplotlib', 'seaborn', 'PIL'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_border_has_the_colour_that_matplotlib_gives(name):
    colour = getattr(colours, name)
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    for given in (colour, to_rgb(colour)):
        painted = colours.overlay(np.zeros((5, 5, 3), np.uint8), mask[None], colours=(given,))
        np.testing.assert_array_equal(painted[1, 1], to_rgb(colour))
        np.testing.assert_array_equal(painted[2, 2], 0.5 * np.array(to_rgb(colour)))
        assert not painted[~mask].any()


def test_each_class_has_a_colour_of_its_own_and_void_is_white():
    for count in (1, 2, 3, 21, 81):
        found = colours.class_colours(count)
        assert found.shape == (count, 3) and (found >= 0).all() and (found <= 1).all()
        assert len(np.unique(found, axis=0)) == count
    for void, dtype in ((255, np.uint8), (65535, np.uint16), (-1, np.int64)):
        painted = colours.colorize(np.array([[0, 2, void]], dtype), found)
        np.testing.assert_array_equal(painted[0], [found[0], found[2], [1, 1, 1]])
    many = colours.class_colours(301)  # 255 is a label like any other where there are so many
    painted = colours.colorize(np.array([[255, 300]], np.uint16), many)
    np.testing.assert_array_equal(painted[0], [many[255], many[300]])
