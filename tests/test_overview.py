"""The method's figure: every step needed, print size, alternative text in both files, readable without colour."""

import numpy as np
import pytest
from PIL import Image

from mdlib import overview


@pytest.fixture(scope="module")
def panels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    panels = {key: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for key, _, _ in overview.STEPS}
    return panels | {"attention": rng.random((7, 9))}


@pytest.fixture(scope="module")
def saved(panels, tmp_path_factory):
    return overview.save(overview.method_figure(panels), tmp_path_factory.mktemp("figures"))


def test_a_missing_step_is_named(panels):
    with pytest.raises(ValueError, match="crf"):
        overview.method_figure({key: image for key, image in panels.items() if key != "crf"})


def test_the_png_has_print_size(saved):
    with Image.open(saved[0]) as image:
        assert image.info["dpi"][0] >= 200 and image.width > 2000
        assert overview.ALT in image.info["Description"]


def test_the_svg_says_what_it_shows(saved):
    text = saved[1].read_text(encoding="utf-8")
    assert overview.ALT.partition(".")[0] in text
    assert len(text) < 2e6


def test_every_step_is_written_out(panels):
    figure = overview.method_figure(panels)
    said = [(ax.get_title(loc="left"), ax.get_xlabel()) for ax in figure.axes]
    assert said == [(heading, text) for _, heading, text in overview.STEPS]
    for ax in figure.axes:  # dark on white: legible in grey
        for colour in (ax.title.get_color(), ax.xaxis.label.get_color()):
            assert np.mean(overview.plt.matplotlib.colors.to_rgb(colour)) < 0.4


def test_the_same_panels_give_the_same_files(panels, saved, tmp_path):
    for first, second in zip(saved, overview.save(overview.method_figure(panels), tmp_path)):
        assert first.read_bytes() == second.read_bytes()
